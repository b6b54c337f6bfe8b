"""The command line without a broker: usage, mail, exit codes, what reaches a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from agent.asks import Answer
from agent.cli import exits
from agent.cli.main import COMMANDS
from agent.effects import Settled
from agent.outbox import StoredRow
from bus.errors import BusError, Code, Refused, StoreError, Unreachable
from tests.test_cli_bed import EVIL, ID, OTHERS, FakePerson, Script, letter, row, run, script, stored

__all__ = ["script"]  # a fixture

MESSAGE = {"again", "id", "from", "to", "kind", "tag", "reply_to", "thread", "ts", "body"}


# -- the group -------------------------------------------------------------------------------------------------------


def test_short_helps_are_those_of_the_commands() -> None:
    for name, (module, attribute, short) in COMMANDS.items():
        if name in OTHERS:
            continue
        command = getattr(import_module(f"agent.cli.{module}"), attribute)
        assert command.name == name
        assert command.get_short_help_str(200) == short, name


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in OTHERS])
def test_every_help_teaches_with_an_example(script: Script, name: str) -> None:
    result = run(script, name, "--help")
    assert result.exit_code == 0
    assert f"talkbus {name}" in result.output.partition("Options:")[0].replace("Usage: ", "", 1).partition("\n")[2]


def test_an_unknown_command_tells_the_nearest(script: Script) -> None:
    result = run(script, "snd")
    assert result.exit_code == exits.USAGE
    assert result.stderr == "error: there is no command 'snd'; did you mean 'send'? (see 'talkbus --help')\n".replace(
        "talkbus", "cli"
    ) or result.stderr.startswith("error: there is no command 'snd'; did you mean 'send'?")


@pytest.mark.parametrize("args", [("version",), ("--version",)])
def test_version(script: Script, args: tuple[str, ...]) -> None:
    assert run(script, *args).output == "talkbus 1.2.3\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unreachable("gone (start it)"), exits.UNREACHABLE),
        (Refused(Code.FORBIDDEN, "gone (start it)"), exits.REFUSED),
        (StoreError("gone (start it)"), exits.REFUSED),
        (exits.TimedOut("gone (start it)"), exits.TIMED_OUT),
    ],
)
def test_failures_are_one_line(script: Script, error: BusError, code: int) -> None:
    script.raises = error
    result = run(script, "peers")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", "error: gone (start it)\n")


def test_a_failure_of_many_lines_is_one_line_and_harmless(script: Script) -> None:
    script.raises = Refused(Code.INVALID, f"first {EVIL}\nsecond")
    result = run(script, "peers")
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.stderr and "second" in result.stderr


# -- send ------------------------------------------------------------------------------------------------------------


def test_send_json_is_the_contract(script: Script) -> None:
    script.settled = stored(row("api"))
    result = run(script, "send", "api", "hello", "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 0
    assert told["id"] == ID and told["status"] == "stored"
    assert told["to"][0] == row("api")
    assert script.done == [("send", {"to": ["api"], "kind": "task"}, b"hello")]


def test_send_takes_several_and_every_option(script: Script) -> None:
    script.settled = stored(row("a"), row("b"))
    options = ("--to", "c", "--note", "--tag", "t", "--reply-to", ID, "--ttl", "1.5", "--new", "--exclude", "x,y")
    assert run(script, "send", "a,b", "hi", *options).exit_code == 0
    args = script.done[0][1]
    assert args == {
        "to": ["a", "b", "c"],
        "kind": "note",
        "tag": "t",
        "re": ID,
        "ttl": 1500,
        "new": True,
        "exclude": ["x", "y"],
    }


def test_send_from_stdin_and_from_a_file(script: Script, tmp_path: Any) -> None:
    script.settled = stored(row("a"))
    run(script, "send", "a", "-", stdin="from stdin\n")
    file = tmp_path / "text"
    file.write_text("from a file")
    run(script, "send", "a", "--file", str(file))
    run(script, "send", "--to", "a", "to an option")
    assert [body for _, _, body in script.done] == [b"from stdin\n", b"from a file", b"to an option"]


@pytest.mark.parametrize(
    "args", [(), ("a",), ("--to", "a"), ("a", "two", "words"), ("", "text"), ("a", "x", "--kind", "other")]
)
def test_send_usage(script: Script, args: tuple[str, ...]) -> None:
    result = run(script, "send", *args)
    assert result.exit_code == exits.USAGE, result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(("body", "said"), [(b"x" * 262_145, "262144"), (b"\xff\xfe", "not UTF-8"), (b"", "empty")])
def test_send_refuses_what_is_no_message(script: Script, body: bytes, said: str) -> None:
    result = run(script, "send", "a", "-", stdin=body)
    assert result.exit_code == exits.REFUSED
    assert said in result.stderr and not script.done


def test_send_to_the_limit(script: Script) -> None:
    script.settled = stored(row("a"))
    assert run(script, "send", "a", "-", stdin=b"x" * 262_144).exit_code == 0


def test_a_refused_recipient_is_exit_1_with_its_reason(script: Script) -> None:
    script.settled = stored(row("api"), row("apy", "refused", 404, text="nobody is called 'apy'"), code=404)
    result = run(script, "send", "api,apy", "hi", "--json")
    assert result.exit_code == exits.REFUSED
    assert json.loads(result.stdout)["status"] == "refused"
    assert result.stderr == "error: apy: nobody is called 'apy' (--new opens a mailbox for it)\n"


def test_a_send_refused_as_a_whole(script: Script) -> None:
    script.settled = stored(code=422, text="the body is no text")
    result = run(script, "send", "api", "hi", "--json")
    assert result.exit_code == exits.REFUSED
    told = json.loads(result.stdout)
    assert told["to"] == [{"name": "api", "status": "refused", "code": 422, "text": "the body is no text"}]


@pytest.mark.parametrize("command", ["send", "ask"])
def test_an_answer_to_no_message_is_named_as_it_was_typed(script: Script, command: str) -> None:
    result = run(script, command, "api", "hi", "--reply-to", "nonsense")
    assert result.exit_code == exits.USAGE and not script.done
    assert result.stderr.startswith("error: --reply-to: 'nonsense' is no message id (16 of a-z 2-7")
    script.settled = stored(row("api"))
    assert run(script, "send", "api", "hi", "--reply-to", f" {ID.upper()} ").exit_code == 0
    assert script.done[-1][1]["re"] == ID


def test_held_and_queued_are_success(script: Script) -> None:
    script.settled = stored(row("api", "held", 202), code=202)
    assert json.loads(run(script, "send", "api", "hi", "--json").stdout)["status"] == "held"
    script.settled, script.reason = None, "the bus was stopped"
    result = run(script, "send", "api", "hi", "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (told["status"], told["to"]) == ("queued", [{"name": "api", "status": "queued", "code": 0}])
    assert told["since"] == 1_700_000_000_000
    spoken = run(script, "send", "api", "hi")
    assert "queued for api since" in spoken.stdout and "the bus was stopped" in spoken.stderr


def test_a_name_that_is_none_is_a_usage_error(script: Script) -> None:
    assert run(script, "send", "--as", "no name", "api", "hi").exit_code == exits.USAGE
    assert run(script, "--as", "bus", "whoami").exit_code == exits.USAGE


# -- inbox, ask, ack -------------------------------------------------------------------------------------------------


def mailbox(script: Script, *letters: tuple[dict[str, Any], bytes], presence: str = "gone") -> None:
    script.answers["whoami"] = [({"name": "me", "host": "h", "presence": presence}, b"")]
    script.answers["inbox"] = list(letters)
    script.settled = Settled(1, 200, {}, "")


def told_of(script: Script, op: str) -> list[list[str]]:
    """The ids that each request of this kind named; `offered` stands for the receipt that says so."""
    if op == "offered":
        return [args["moved"][0][3] for name, args, _ in script.done if name == "receipt"]
    return [args["ids"] for name, args, _ in script.done if name == op]


def test_inbox_json_is_the_contract_and_marks(script: Script) -> None:
    mailbox(script, (letter(re="a" * 16), b"h\xc3\xa9llo"))
    result = run(script, "inbox", "--json", "--tag", "t", "--from", "api", "--limit", "3")
    (told,) = json.loads(result.stdout)
    assert set(told) == MESSAGE
    assert (told["body"], told["reply_to"], told["from"]) == ("héllo", "a" * 16, "api")
    exact = {"ids": [f"h/{ID}"], "of": ["1"]}
    assert script.done == [
        ("receipt", {"moved": [["offered", "printed", 0, exact["ids"]]], "of": exact["of"]}, b""),
        ("settle", {**exact, "proof": "printed"}, b""),
    ]
    assert ("inbox", {"unread": True, "tag": "t", "from": "api", "limit": 3}) in script.asked


def test_inbox_peek_marks_nothing(script: Script) -> None:
    mailbox(script, (letter(), b"hi"))
    assert run(script, "inbox", "--peek").exit_code == 0
    assert not script.done


def test_inbox_of_a_living_session_only_looks(script: Script) -> None:
    mailbox(script, (letter(), b"hi"), presence="open")
    result = run(script, "inbox", "--json")
    assert len(json.loads(result.stdout)) == 1 and not script.done
    assert "only looks" in result.stderr


def test_an_empty_inbox(script: Script) -> None:
    mailbox(script)
    result = run(script, "inbox", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])
    assert "no unread mail" in run(script, "inbox").stderr


def test_a_body_cannot_reach_the_terminal(script: Script) -> None:
    mailbox(script, (letter(**{"from": EVIL, "tag": EVIL}), f"{EVIL}\nsecond".encode()))
    for args in (("inbox", "--peek"), ("inbox", "--peek", "--json")):
        assert not set("\x1b\x07\u202e") & set(run(script, *args).stdout)


def test_inbox_wait_joins_first_and_times_out_with_4(script: Script) -> None:
    mailbox(script)
    script.events = [({}, [], False)]
    result = run(script, "inbox", "--wait", "0.1", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (exits.TIMED_OUT, [])


def test_inbox_wait_shows_what_comes(script: Script) -> None:
    came: list[Any] = []
    mailbox(script)
    script.answers["inbox"] = lambda args: came

    def events() -> Iterator[Any]:
        yield {}, [], False
        yield None, [{"class": "msg", "event": "stored", "mailbox": "other"}], False
        came.append((letter(), b"hi"))
        yield None, [{"class": "msg", "event": "stored", "mailbox": FakePerson.id}], False

    script.events = events()  # type: ignore[assignment]
    result = run(script, "inbox", "--wait", "5", "--json")
    assert [m["id"] for m in json.loads(result.stdout)] == [ID]
    assert [what for what, _ in script.asked].count("inbox") == 2


def test_many_are_marked_in_pieces(script: Script) -> None:
    letters = [(letter(f"{n:016d}", n=n), b"x") for n in range(70)]
    mailbox(script, *letters)
    assert run(script, "inbox", "--limit", "70").exit_code == 0
    assert [len(ids) for ids in told_of(script, "settle")] == [32, 32, 6]
    assert told_of(script, "offered") == told_of(script, "settle")


def pages(script: Script, count: int, octets: int = 1) -> None:
    """A mailbox as the broker tells it: at most 200 at once, and 16 MiB of text, of which the last are left out."""

    def told(args: dict[str, Any]) -> Answer:
        numbers = [n for n in range(1, count + 1) if args.get("after", 0) < n < args.get("before", count + 1)]
        limit = min(args["limit"], 200)
        first = args["unread"] or args.get("oldest", False)
        numbers = numbers[:limit] if first else numbers[-limit:]
        fit = numbers[: (16 << 20) // octets]
        rows = [(letter(f"{n:016d}", n=n), b"x" * octets) for n in fit]
        return Answer(rows, 200 if rows else 204, text="" if fit == numbers else "the answer is cut")

    mailbox(script)
    script.answers["inbox"] = told


@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize(
    ("count", "limit", "octets"),
    [(1000, 450, 1), (400, 500, 1), (400, 400, 1), (1000, 10, 1), (250, 230, 200_000), (150, 130, 200_000)],
)
def test_more_than_the_broker_tells_at_once(
    script: Script, everything: bool, count: int, limit: int, octets: int
) -> None:
    pages(script, count, octets)
    result = run(script, "inbox", "--json", "--limit", str(limit), *(["--all"] if everything else []))
    shown = [int(m["id"]) for m in json.loads(result.stdout)]
    numbers = list(range(1, count + 1))
    assert shown == (numbers[-limit:] if everything else numbers[:limit])
    for op in ("offered", "settle"):
        assert [int(ident[-16:]) for ids in told_of(script, op) for ident in ids] == shown
    text = run(script, "inbox", "--peek", "--limit", "3", *(["--all"] if everything else [])).stdout
    assert text.count("\n\n") >= 2


def test_what_was_read_before_is_not_marked_again(script: Script) -> None:
    mailbox(script, (letter(status="injected"), b"old"), (letter("b" * 16, n=2), b"new"))
    assert run(script, "inbox", "--all").exit_code == 0
    assert told_of(script, "offered") == told_of(script, "settle") == [["h/" + "b" * 16]]


def test_a_page_that_does_not_come_leaves_whole_output_and_the_last_unread(script: Script) -> None:
    pages(script, 500)
    tell = script.answers["inbox"]

    def told(args: dict[str, Any]) -> Answer:
        return tell(args) if args.get("after", 0) < 400 else Answer([], 503, text="gone")  # type: ignore[no-any-return]

    script.answers["inbox"] = told
    result = run(script, "inbox", "--json", "--limit", "500")
    assert result.exit_code == exits.UNREACHABLE and len(json.loads(result.stdout)) == 400
    assert sum(map(len, told_of(script, "settle"))) == 200
    assert sum(map(len, told_of(script, "offered"))) == 400, "what was printed and not marked is known as such"


def test_what_was_offered_before_is_marked_as_a_repeat_and_not_offered_again(script: Script) -> None:
    mailbox(script, (letter(status="offered", again=True), b"hi"))
    assert "possible repeat" in run(script, "inbox").stdout
    assert told_of(script, "offered") == [] and told_of(script, "settle") == [[f"h/{ID}"]]


def test_what_cannot_be_offered_is_not_printed(script: Script) -> None:
    mailbox(script, (letter(), b"hi"))
    script.settled = Settled(1, 403, {}, "not yours")
    result = run(script, "inbox")
    assert result.exit_code == exits.REFUSED and "nothing was shown" in result.stderr and not result.stdout
    assert told_of(script, "settle") == []


def unsent(op: str, args: dict[str, Any]) -> StoredRow:
    return StoredRow(1, "r" * 16, op, args, b"", 1)


def test_what_the_broker_could_not_write_is_known_on_this_disk(script: Script) -> None:
    """Printed and marked here: not shown again. Printed, perhaps: shown as a possible repeat."""
    letters = [(letter(c * 16, n=n), b"text " + c.encode()) for n, c in enumerate("abc")]
    mailbox(script, *letters)
    script.unsent = [
        unsent(
            "receipt", {"moved": [["offered", "printed", 0, ["h/" + "a" * 16, "h/" + "b" * 16]]], "of": ["1", "1"]}
        ),
        unsent("receipt", {"moved": [["acked", "talkbus ack", 0, ["h/" + "c" * 16]]], "of": ["1"]}),
        unsent("settle", {"ids": ["h/" + "a" * 16, "h/" + "c" * 16], "of": ["1", "another"], "proof": "printed"}),
    ]
    result = run(script, "inbox", "--json")
    assert [(m["body"], m["again"]) for m in json.loads(result.stdout)] == [("text b", True), ("text c", False)]
    assert "1 more were shown before" in result.stderr


def test_a_broker_that_cannot_page_back_is_named(script: Script) -> None:
    pages(script, 500)
    tell = script.answers["inbox"]
    script.answers["inbox"] = lambda args: tell({k: v for k, v in args.items() if k != "before"})
    result = run(script, "inbox", "--all", "--limit", "500")
    assert result.exit_code == exits.REFUSED and "--limit 200" in result.stderr and not result.stdout


def test_ask_prints_the_answer(script: Script) -> None:
    mailbox(script, (letter("b" * 16, re=ID), b"8080"))
    script.settled = stored(row("api"))
    script.events = [({}, [], False)]
    result = run(script, "ask", "api", "which port?", "--json")
    assert json.loads(result.stdout)["body"] == "8080"
    assert [op for op, _, _ in script.done] == ["send", "receipt", "settle"]
    assert "8080" in run(script, "ask", "api", "which port?").stdout


def test_ask_without_an_answer_is_4_with_the_id(script: Script) -> None:
    mailbox(script)
    script.settled = stored(row("api"))
    script.events = [({}, [], False)]
    result = run(script, "ask", "api", "which port?", "--timeout", "0.1")
    assert result.exit_code == exits.TIMED_OUT and ID in result.stderr and not result.stdout


def test_ask_a_stranger_is_1(script: Script) -> None:
    mailbox(script)
    script.settled = stored(row("apy", "refused", 404, text="nobody"), code=404)
    script.events = [({}, [], False)]
    assert run(script, "ask", "apy", "hm?").exit_code == exits.REFUSED
    assert run(script, "ask", "a,b", "hm?").exit_code == exits.USAGE


def test_ack(script: Script) -> None:
    mailbox(script, (letter(status="injected"), b"x"))
    assert json.loads(run(script, "ack", ID, "--json").stdout) == [{"id": ID, "from": "api", "status": "acked"}]
    assert script.done == [("receipt", {"moved": [["acked", "talkbus ack", 0, [f"h/{ID}"]]], "of": ["1"]}, b"")]
    result = run(script, "ack", ID, "z" * 16)
    assert result.exit_code == exits.REFUSED and len(script.done) == 1
