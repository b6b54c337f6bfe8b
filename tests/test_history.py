"""A conversation read from a transcript: its turns, a search over them, and secrets that do not get out."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.delivery import history
from agent.delivery.history import Turn, page, read, search, turn
from agent.redact import redact
from bus.errors import Refused

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----"


def user(text: Any, **more: Any) -> dict[str, Any]:
    return {"type": "user", "timestamp": "2026-01-01T00:00:00Z", "message": {"role": "user", "content": text}, **more}


def model(*blocks: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": b} if isinstance(b, str) else b for b in blocks]
    return {"type": "assistant", "timestamp": "t2", "message": {"role": "assistant", "content": content}}


def written(tmp_path: Path, *records: Any) -> Path:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in records))
    return path


def test_turns_are_what_was_said(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"type": "mode", "mode": "user"},
        user("fix <it>\n<system-reminder>\nnoise\n</system-reminder>"),
        model({"type": "thinking", "thinking": "hm"}, "I will", {"type": "tool_use", "name": "Bash", "input": {}}),
        user([{"type": "tool_result", "content": "lots of noise"}]),
        b'{"broken "user"',
        b'["user"]',
        {
            "type": "attachment",
            "attachment": {"type": "queued_command", "prompt": "hurry", "origin": {"kind": "peer"}},
        },
        {"type": "attachment", "attachment": {"type": "queued_command", "prompt": "x", "commandMode": "other"}},
        model("done"),
        model("really"),
        user("<command-name>/clear</command-name>"),
        user("a caveat", isMeta=True),
        user("all before", isCompactSummary=True),
        user("<task-notification>x", origin={"kind": "task-notification"}),
        user("of a subagent", isSidechain=True),
        user("from a peer", isMeta=True, origin={"kind": "peer"}),
    )
    assert [(t.n, t.role, t.text) for t in read(path)] == [
        (1, "user", "fix <it>"),
        (2, "assistant", "I will"),
        (3, "tool", "Bash {}\n→ (no result)"),
        (4, "tool", "(a call that is not in this transcript)\n→ lots of noise"),
        (5, "peer", "hurry"),
        (6, "assistant", "done\n\nreally"),
        (7, "peer", "from a peer"),
    ]
    assert read(path)[0].time == "2026-01-01T00:00:00Z"
    with pytest.raises(Refused, match="cannot be read"):
        read(tmp_path / "none")


def call(ident: str, name: str, **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": ident, "name": name, "input": given}


def result(ident: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": ident, "content": content, **more}


def test_calls_and_their_results_are_turns(tmp_path: Path) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 5000}}
    path = written(
        tmp_path,
        user("go"),
        model("first", call("t1", "Bash", command="make test", description="run"), call("t2", "Read", path="a\nb")),
        model("then", call("t3", "mcp__x__shot")),
        # They end in another order than they began, and one comes with a word of the user.
        user([result("t2", "2 lines"), result("t1", [{"type": "text", "text": "Exit 1\nE: x"}], is_error=True)]),
        user([result("t3", [image, {"type": "text", "text": "done"}]), {"type": "text", "text": "and hurry"}]),
        model("end"),
    )
    assert [(t.role, t.text) for t in read(path)] == [
        ("user", "go"),
        ("assistant", "first"),
        ("tool", 'Bash {"command":"make test","description":"run"}\n→ error: Exit 1\nE: x'),
        ("tool", 'Read {"path":"a\\nb"}\n→ 2 lines'),
        ("assistant", "then"),
        ("tool", "mcp__x__shot {}\n→ [image image/png, 5000 characters of base64]\ndone"),
        ("user", "and hurry"),
        ("assistant", "end"),
    ]
    line = page(read(path)).turns[2].text
    assert line == 'Bash {"command":"make test","description":"run"} → error: Exit 1 E: x'


@pytest.mark.parametrize("regex", [False, True])
def test_a_search_finds_calls_and_results(tmp_path: Path, regex: bool) -> None:
    path = written(
        tmp_path,
        model(call("t1", "Bash", command="psql -h db.internal")),
        user([result("t1", "x" * 9000 + " relation users does not exist " + "y" * 9000)]),
    )
    found = read(path)
    for words in ("DB.INTERNAL", "relation users does not"):
        [hit] = search(found, words, regex=regex).hits
        assert (hit.n, hit.role) == (1, "tool") and words.lower() in hit.text.lower()
    whole = ""
    offset: int | None = 0
    while offset is not None:
        piece = turn(found, 1, offset)
        whole, offset = whole + piece.turn.text, piece.next or None
    assert whole.endswith("y" * 9000) and whole.startswith('Bash {"command"')


SECRETS = ("ghp_" + "a1" * 18, "AKIA" + "IOSFODNN7EXAMPLE", KEY, "postgres://bob:hunter2hunter2@db/x")


@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_gets_out_of_a_call_or_a_result(tmp_path: Path, secret: str) -> None:
    nested = json.dumps({"config": json.dumps({"text": f"use {secret} now"})})
    path = written(
        tmp_path,
        model(call("t1", "Write", content=f"a\n{secret}\nb", deep=[{"x": nested}], **{secret: 1})),
        user([result("t1", [{"type": "text", "text": nested}, {"type": "text", "text": f"out: {secret}"}])]),
        model(call("t2", "Bash", command=f"echo '{nested}'")),
        user([result("t2", nested, is_error=True)]),
    )
    core = secret.splitlines()[1] if secret is KEY else secret.partition("bob:")[2][:13] or secret
    assert core in str([t.text for t in read(path, raw=True)])
    for one in read(path):
        assert core not in one.text and "[redacted" in one.text, one.text


@pytest.mark.parametrize(
    "given",
    [
        {"password": "correct horse battery"},
        {"env": {"DB_PASSWORD": "p4ss;w0rd&with(all)"}},
        {"body": json.dumps({"api_key": "abcdefgh12345678"})},
        {"command": 'curl -d \'{"password": "hunter2hunter2"}\' -u bob:hunter2hunter2'},
    ],
)
def test_what_a_name_makes_a_secret_is_redacted_in_arguments_and_results(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    path = written(tmp_path, model(call("t1", "Http", **given)), user([result("t1", json.dumps(given))]))
    [one] = read(path)
    for value in ("correct horse", "p4ss", "abcdefgh12345678", "hunter2hunter2"):
        assert value not in one.text
    assert one.text.count("[redacted") >= 2


@pytest.mark.parametrize("wrap", [str, json.dumps, lambda text: json.dumps({"out": json.dumps([text])})])
@pytest.mark.parametrize("back", [0, 1, 5, 20, 40])
def test_no_half_of_a_secret_is_left_where_a_text_was_cut(tmp_path: Path, wrap: Any, back: int) -> None:
    """Wherever the cut falls: in what is kept, in the margin, or between the two."""
    token = "ghp_" + "Zq9" * 12
    for edge in (history.TOOL_CHARS, history.TOOL_CHARS + history.MARGIN):
        text = wrap("word " * ((edge - back) // 5) + f" {token} " + "word " * 20_000)
        path = written(tmp_path, model(call("t1", "Write", content=text)), user([result("t1", text)]))
        [one] = read(path)
        assert "ghp_" not in one.text and "Zq9" not in one.text
        assert len(one.text) < 2.2 * history.TOOL_CHARS and "characters)" in one.text


def test_what_is_huge_is_bounded_in_memory_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = "QUJD" * 1_000_000
    records = [user("go")]
    for n in range(8):
        records += [
            model(call(f"t{n}", "Write", content=blob)),
            user([result(f"t{n}", [{"type": "text", "text": blob}])]),
        ]
    path = written(tmp_path, *records, b'{"type":"user","message":"' + b"x" * 20_000_000 + b'"}', user("end"))
    begun = time.process_time()
    found = read(path)
    assert time.process_time() - begun < 20
    assert [t.role for t in found] == ["user", *["tool"] * 8, "user"] and found[-1].text == "end"
    assert max(len(t.text) for t in found) < 2.2 * history.TOOL_CHARS
    monkeypatch.setattr(history, "ALL_CHARS", 100_000)
    found = read(path)
    assert sum(len(t.text) for t in found) < 200_000
    assert len(found[1].text) < 3 * history.TOOL_LEAST < len(found[-2].text)


deep = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "message",
                    "content",
                    "text",
                    "role",
                    "id",
                    "tool_use_id",
                    "input",
                    "name",
                    "is_error",
                    "source",
                ]
            )
            | st.text(max_size=3),
            inner | st.sampled_from(["text", "tool_use", "tool_result", "image", "user", "assistant", "t1"]),
            max_size=6,
        )
    ),
    max_leaves=30,
)


@given(blocks=st.lists(deep, max_size=4), kind=st.sampled_from(["user", "assistant"]))
def test_records_of_any_shape_break_nothing(tmp_path_factory: pytest.TempPathFactory, blocks: Any, kind: str) -> None:
    typed = [
        {"type": t, "id": "t1", "tool_use_id": "t1", "input": b, "content": b, "name": b}
        for t, b in zip(("tool_use", "tool_result", "text", "image"), blocks, strict=False)
    ]
    path = tmp_path_factory.mktemp("any") / "t.jsonl"
    records = [
        {"type": kind, "message": {"content": [*blocks, *typed]}},
        {"type": kind, "message": {"content": blocks}},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = read(path)
    page(found)
    search(found, "a")


def turns(count: int, size: int = 10) -> list[Turn]:
    return [Turn(n, "user", "", f"turn {n} " + "x" * size) for n in range(1, count + 1)]


@given(count=st.integers(0, 60), limit=st.integers(1, 30), size=st.sampled_from([5, 500]))
def test_pages_join_to_all(count: int, limit: int, size: int) -> None:
    seen: list[int] = []
    before = 0
    while True:
        part = page(turns(count, size), before, limit, chars=2000)
        seen = [t.n for t in part.turns] + seen
        assert part.total == count and len(part.turns) <= limit
        before = part.before
        if not before:
            break
    assert seen == list(range(1, count + 1))


def test_a_long_turn_is_cut_to_a_line_and_read_in_pieces() -> None:
    long = [Turn(1, "user", "", "ab\n" * 10_000)]
    assert page(long).turns[0].text.endswith("… (30000 characters)") and "\n" not in page(long).turns[0].text
    offset, text = 0, ""
    while True:
        piece = turn(long, 1, offset)
        text += piece.turn.text
        assert piece.total == 30_000 and len(piece.turn.text) <= history.PAGE_CHARS
        offset = piece.next
        if not offset:
            break
    assert text == long[0].text
    with pytest.raises(Refused, match="no turn 2"):
        turn(long, 2)


@pytest.mark.parametrize("regex", [False, True])
def test_search_goes_back_and_on(regex: bool) -> None:
    some = turns(30)
    found = search(some, "TURN", regex=regex, limit=20)
    assert [hit.n for hit in found.hits] == list(range(30, 10, -1)) and found.before == 11
    rest = search(some, "TURN", regex=regex, limit=20, before=found.before)
    assert [hit.n for hit in rest.hits] == list(range(10, 0, -1)) and rest.before == 0
    assert search(some, "nowhere", regex=regex).hits == ()


def test_a_hit_has_what_stands_around_it() -> None:
    [hit] = search([Turn(1, "user", "", "a" * 500 + "[x](" + "b" * 500)], "[x](").hits
    assert hit.offset == 500 and "a[x](b" in hit.text and hit.text.startswith("…") and hit.text.endswith("…")
    assert len(hit.text) <= history.LINE_CHARS + 2


def test_a_regular_expression_that_is_wrong_or_slow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "REGEX_S", 0.5)
    for query, words in (
        ("(", "not a regular"),
        ("", "characters"),
        ("x" * 500, "characters"),
        ("(a+)+$b", "too long"),
    ):
        with pytest.raises(Refused, match=words):
            search([Turn(1, "user", "", "a" * 60)], query, regex=True)


def test_a_hostile_expression_over_a_large_result_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "REGEX_S", 0.5)
    path = written(tmp_path, model(call("t1", "Bash")), user([result("t1", "a" * 30_000)]))
    with pytest.raises(Refused, match="too long"):
        search(read(path), r"(a|aa)+$b", regex=True)


def test_secrets_are_redacted_unless_raw(tmp_path: Path) -> None:
    path = written(tmp_path, user(f"use {KEY} please"), model("postgres://bob:hunter2@db/x"))
    assert [t.text for t in read(path)] == [
        "use [redacted private key] please",
        "postgres://bob:[redacted password]@db/x",
    ]
    assert read(path, raw=True)[0].text == f"use {KEY} please"


@pytest.mark.parametrize(
    ("secret", "kind"),
    [
        (KEY, "private key"),
        ("-----BEGIN RSA PRIVATE KEY-----\ncut off", "private key"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N", "JWT"),
        ("sk-ant-" + "api03-abcdefghijklmnopqrst", "Anthropic key"),
        ("sk-proj-" + "a1" * 20, "API key"),
        ("AKIA" + "IOSFODNN7EXAMPLE", "AWS key id"),
        ("ghp_" + "a1" * 18, "GitHub token"),
        ("github_pat_" + "a1" * 30, "GitHub token"),
        ("glpat-" + "a1" * 10, "GitLab token"),
        ("xoxb-" + "1234567890-abcdef", "Slack token"),
        ("AIza" + "a" * 35, "Google key"),
        ("sk_live_" + "a1" * 12, "Stripe key"),
        ("npm_" + "a1" * 18, "npm token"),
    ],
)
def test_each_kind_of_secret(secret: str, kind: str) -> None:
    assert redact(f"a {secret} b").startswith(f"a [redacted {kind}]")
    assert secret not in redact(f'{{"x":"{secret}"}}')


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("DB_PASSWORD=correct-horse-battery", "DB_PASSWORD=[redacted secret]"),
        ('"api_key": "abcdefgh12345678"', '"api_key": "[redacted secret]"'),
        ("Authorization: Bearer abcdef1234567890", "Authorization: Bearer [redacted token]"),
        ("https://user:p%40ss@host/x", "https://user:[redacted password]@host/x"),
        ("aws_secret_access_key = " + "aB1/" * 10, "aws_secret_access_key = [redacted AWS secret]"),
    ],
)
def test_secrets_by_what_stands_before_them(text: str, kept: str) -> None:
    assert redact(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "the secret: it works",
        "password = os.environ['X']",
        "TOKEN=$TOKEN",
        "risk-taking-is-a-good-thing",
        "https://host:8080/a@b",
        "git@github.com:a/b.git",
        "a task-list-of-many-words-in-a-row",
        "def password(self): return None",
        "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


@given(st.text(alphabet="ab:/@=. \n\"'-_[]eyJsk1", max_size=200))
def test_twice_is_once(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "piece", ["-----BEGIN PRIVATE KEY-----", "a", "password", "https://a:", "eyJ", "bearer ", "_-", "sk-", "://:"]
)
def test_time_is_linear(piece: str) -> None:
    begun = time.process_time()
    redact(piece * (200_000 // len(piece)))
    assert time.process_time() - begun < 5
