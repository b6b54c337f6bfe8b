"""No secret with a form leaves silently, ordinary text stays, time is bounded; one place does it for every request."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.book import AddRow
from agent.link import Link, Profile
from agent.outbox import Outbox
from agent.redact import Found, outgoing, redact, redact_json
from bus import wire
from bus.errors import LocalError

LETTERS = string.ascii_letters + string.digits
URLSAFE = LETTERS + "-_"
HEX = "0123456789abcdef"
TOKEN = "ghp_" + "a1B2" * 9


def some(alphabet: str, least: int, most: int) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=least, max_size=most)


def after(prefix: str, rest: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return rest.map(lambda text: prefix + text)


SECRETS: dict[str, st.SearchStrategy[str]] = {
    "Anthropic key": after("sk-ant-api03-", some(URLSAFE, 24, 110)),
    "API key": st.one_of(after("sk-proj-", some(LETTERS, 40, 60)), after("sk-", some(LETTERS, 40, 60))),
    "AWS key id": after("AKIA", some(string.ascii_uppercase + "234567", 16, 16)),
    "GitHub token": st.one_of(
        *(after(f"gh{c}_", some(LETTERS, 36, 36)) for c in "pousr"), after("github_pat_", some(LETTERS, 60, 82))
    ),
    "GitLab token": after("glpat-", some(URLSAFE, 20, 40)),
    "Slack token": after("xoxb-", some(string.digits + "-", 24, 50)),
    "Google key": after("AIza", some(URLSAFE, 35, 35)),
    "Google token": after("ya29.", some(URLSAFE, 40, 200)),
    "Stripe key": st.one_of(after("sk_live_", some(LETTERS, 24, 99)), after("whsec_", some(LETTERS, 32, 32))),
    "npm token": after("npm_", some(LETTERS, 36, 36)),
    "PyPI token": after("pypi-", some(URLSAFE, 60, 200)),
    "JWT": st.tuples(some(URLSAFE, 12, 60), some(URLSAFE, 12, 200), some(URLSAFE, 20, 86)).map(
        lambda parts: f"eyJ{parts[0]}.eyJ{parts[1]}.{parts[2]}"
    ),
    "private key": some(LETTERS + "+/\n", 40, 400).map(
        lambda text: f"-----BEGIN RSA PRIVATE KEY-----\n{text}\n-----END RSA PRIVATE KEY-----"
    ),
    "Docker token": after("dckr_pat_", some(URLSAFE, 27, 27)),
    "Telegram token": st.tuples(some(string.digits, 9, 9), some(URLSAFE, 33, 33)).map(":AA".join),
}
# What stands around a secret: anything that is no part of it, escapes of JSON and URLs among it.
BEFORE = st.text(max_size=30).map(lambda t: t + " ") | st.sampled_from(
    ["", "\n", '"', "'", "=", ": ", "(", "`", "\\n", "\\t", "%3D", "%20", "export X=", "https://", "- ", "\u2028"]
)
BEHIND = st.sampled_from(["", " ", "\n", '"', "'", ")", "`", ",", ";", "\\n", " and more", "\r\n", "&x=1"])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SECRETS)), st.data())
def test_no_secret_with_a_form_passes_silently(kind: str, data: Any) -> None:
    secret = data.draw(SECRETS[kind])
    before = data.draw(BEFORE)
    text = before + secret + data.draw(BEHIND)
    found = Found()
    kept = redact(text, found)
    assert secret not in kept and secret[-12:] not in kept.replace(before, "", 1)
    assert found and kind in found.kinds and f"[redacted {kind}]" in kept
    assert redact(kept) == kept


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(sorted(SECRETS)), min_size=2, max_size=6), st.data())
def test_several_in_one_text(kinds: list[str], data: Any) -> None:
    secrets = [data.draw(SECRETS[kind]) for kind in kinds]
    kept = redact(" and ".join(secrets))
    assert not any(secret in kept for secret in secrets) and kept.count(" and ") == len(kinds) - 1


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=" abcdefghijklmnopqrstuvwxyz0123456789.,\n/()", max_size=400))
def test_plain_words_are_left_alone(text: str) -> None:
    found = Found()
    assert redact(text, found) == text and not found


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("curl -u bob:hunter22 https://x", "curl -u bob:[redacted password] https://x"),
        ("docker run -u 1000:1000 image", "docker run -u 1000:1000 image"),
        ("postgres://bob:s3cret@db:5432/x", "postgres://bob:[redacted password]@db:5432/x"),
        ("redis://:s3cret@cache", "redis://:[redacted password]@cache"),
        (
            "https://blob.core.windows.net/c?sv=1&sig=" + "aB%2F" * 10,
            "https://blob.core.windows.net/c?sv=1&sig=[redacted Azure signature]",
        ),
        ("-----BEGIN PRIVATE KEY-----\nMIIEvQ\n\nplease use it" + " word" * 9000, None),
        ("commit 4b825dc642cb6eb9a060e54bf8d69288fbee4904", "commit 4b825dc642cb6eb9a060e54bf8d69288fbee4904"),
        ("id 550e8400-e29b-41d4-a716-446655440000", "id 550e8400-e29b-41d4-a716-446655440000"),
    ],
)
def test_forms(text: str, kept: str | None) -> None:
    made = redact(text)
    if kept is None:
        assert "MIIEvQ" not in made and made.startswith("[redacted private key]")
    else:
        assert made == kept


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "piece",
    [
        *(
            "-----BEGIN PRIVATE KEY-----",
            "-----BEGIN RSA PRIVATE KEY-----\nA",
            "password=",
            "secret: ",
            "https://a:",
            "eyJ",
        ),
        *("eyJaaaaaaaa.eyJ", "bearer ", "sk-", "-u a:", "--user a", "AKIA", "xoxb-", "aws_secret_access_key=", "gl"),
        *(
            "authorization: bearer ",
            "?sig=",
            "1234567890:AA",
            "SG.aaaaaaaaaaaaaaaa.",
            '\\"',
            '"',
            "\\",
            "api_key\"'  :",
        ),
    ],
)
def test_a_body_of_the_greatest_size_ends(piece: str) -> None:
    """A pattern that goes back and forth would take hours here."""
    text = piece * (wire.BODY_MAX // len(piece))
    redact(text)
    redact_json(f'{{"a": {json.dumps(text)}}}')
    redact(text[:-1] + "@")


# -- JSON ------------------------------------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from([TOKEN, f"x\n{TOKEN}\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(PLAIN, st.booleans())
def test_json_stays_json_and_loses_only_secrets(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    kept = redact_json(text)
    assert TOKEN not in kept
    assert json.loads(kept) == _replaced(value)
    if TOKEN not in text:
        assert kept == text


def _replaced(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(TOKEN, "[redacted GitHub token]")
    if isinstance(value, dict):
        return {key: _replaced(entry) for key, entry in value.items()}
    return [_replaced(entry) for entry in value] if isinstance(value, list) else value


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["password", "db_password", "apiKey", "client_secret", "access_token"]),
    st.text("abcXYZ0189 \"'\\,;{}[]()\n-_.:@!é", min_size=8, max_size=40).filter(lambda t: t[0].isalnum()),
    st.booleans(),
)
def test_a_named_secret_goes_whatever_is_in_it_and_json_stays_json(name: str, value: str, ascii_only: bool) -> None:
    text = json.dumps({"a": 1, name: value, "z": [value[:4]]}, ensure_ascii=ascii_only)
    found = Found()
    kept = json.loads(redact_json(text, found))
    assert kept[name].startswith("[redacted ") and (kept["a"], kept["z"]) == (1, [value[:4]])
    assert found and value not in json.dumps(kept)


def test_json_is_kept_as_it_was_written() -> None:
    text = '{"n": 123456789012345678901234567890.10, "t": "' + TOKEN + '", "p": 1e5}'
    assert redact_json(text) == text.replace(TOKEN, "[redacted GitHub token]")
    assert json.loads(redact_json('{"api_key": "abcdefgh12345678"}')) == {"api_key": "[redacted secret]"}
    number = '{"access_token_expires": 1700000000000, "z": "' + TOKEN + '"}'
    assert json.loads(redact_json(number)) == {"access_token_expires": 1700000000000, "z": "[redacted GitHub token]"}
    cut = json.dumps({"k": "-----BEGIN PRIVATE KEY-----\nMIIE", "z": [1, 2]})
    assert json.loads(redact_json(cut)) == {"k": "[redacted private key]", "z": [1, 2]}
    assert TOKEN not in redact_json("no json " + TOKEN), "what is no JSON loses its secrets too"


# -- the one place ---------------------------------------------------------------------------------------------------


def link(raw: bool = False) -> Link:
    outbox = Outbox.memory()
    return Link(outbox.load(lambda: "0" * 32), Profile("hold", "i", "api", raw=raw), lambda: "a" * 16, lambda: 0.0)


def written(made: Link) -> AddRow:
    (row,) = [w for w in made.batch.writes if isinstance(w, AddRow)]
    return row


@pytest.mark.parametrize(
    ("op", "args", "body"),
    [
        ("send", {"to": ["web"]}, f"use {TOKEN}".encode()),
        ("state.set", {"key": "k"}, json.dumps({"token": TOKEN}).encode()),
        ("status", {"summary": f"with {TOKEN}", "metadata": {"a": [{"b": TOKEN}]}}, b""),
    ],
)
def test_nothing_is_written_to_the_outbox_with_a_secret(op: str, args: dict[str, Any], body: bytes) -> None:
    made = link()
    made.submit(1, op, args, body)
    row = written(made)
    assert TOKEN.encode() not in row.body + row.args
    assert b"[redacted GitHub token]" in row.body + row.args
    as_is = link(raw=True)
    as_is.submit(1, op, args, body)
    assert TOKEN.encode() in written(as_is).body + written(as_is).args


def test_what_is_no_text_is_refused_and_not_changed() -> None:
    for op, args in (("send", {"to": ["web"], "tag": TOKEN}), ("state.set", {"key": TOKEN})):
        made = link()
        with pytest.raises(LocalError, match="holds a secret"):
            made.submit(1, op, args, b"1")
        assert not made.batch.writes


def test_a_text_that_grows_beyond_the_limit_is_refused() -> None:
    made = link()
    text = ("redis://:x@h " * (wire.BODY_MAX // 13)).encode()
    with pytest.raises(LocalError, match="octets"):
        made.submit(1, "send", {"to": ["web"]}, text)
    assert not made.batch.writes


@given(st.binary(max_size=300))
def test_any_octets_pass_unchanged_or_redacted(body: bytes) -> None:
    assert outgoing("send", {}, body)[1] == body or b"[redacted" in outgoing("send", {}, body)[1]


def test_no_tool_can_ask_for_raw() -> None:
    """Only the command line's own module makes a link that does not redact, and it asks who sits there first."""
    root = Path(__file__).parent.parent / "agent"
    users = [p.relative_to(root).as_posix() for p in sorted(root.rglob("*.py")) if "raw=True" in p.read_text("utf-8")]
    assert users == ["cli/mail.py"]
