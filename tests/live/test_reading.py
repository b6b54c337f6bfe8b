"""Whoever reads mail in a shell is killed, stopped or cut off in the middle: it comes again, and says so."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bus import wire
from tests.live.homes import Home, Peer, wait_for
from tests.live.test_cli import DONE, REFUSED, ROOT, UNREACHABLE, Bus
from tests.live.test_faults_disk import disk

pytestmark = [pytest.mark.timeout(180), pytest.mark.skipif(sys.platform == "win32", reason="pipes and signals")]

LARGE = "x" * 120_000  # more than a pipe or a terminal takes before somebody reads


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    (tmp_path / "somewhere").mkdir()
    made = Bus(tmp_path / "bus", tmp_path / "somewhere")
    yield made
    made.run("down")


def steps(bus: Bus, ident: str) -> list[tuple[str, str]]:
    (one,) = bus.ok("why", ident, "--json").json["to"]
    return [(step["status"], step["proof"]) for step in one["history"]]


def inbox(bus: Bus, *options: str) -> list[tuple[str, bool]]:
    """What a call shows: the beginning of each body, and whether it is marked as a possible repeat."""
    return [(m["body"][:20], m["again"]) for m in bus.ok("inbox", "--as", "b", "--json", *options).json]


def printing(bus: Bus, *args: str) -> subprocess.Popen[bytes]:
    """A call that has printed a part of a large message, and cannot go on: its pipe is full."""
    process = bus.start(*args)
    assert process.stdout is not None and os.read(process.stdout.fileno(), 1)
    return process


@pytest.mark.parametrize("options", [(), ("--json",), ("--wait", "5")])
def test_killed_between_print_and_mark(bus: Bus, options: tuple[str, ...]) -> None:
    ident = bus.ok("send", "--as", "a", "--new", "b", LARGE, "--json").json["id"]
    process = printing(bus, "inbox", "--as", "b", *options)
    assert steps(bus, ident) == [("stored", ""), ("offered", "printed")], "before a word of it was printed"
    process.kill()
    process.communicate()
    assert "possible repeat" in bus.ok("inbox", "--as", "b", "--peek").out
    assert inbox(bus) == [(LARGE[:20], True)]
    assert steps(bus, ident)[2:] == [("injected", "printed")]
    assert inbox(bus) == [] and inbox(bus, "--all") == [(LARGE[:20], False)]


def test_stopped_between_print_and_mark(bus: Bus) -> None:
    """The other reader is told who has the mail; nothing is shown twice."""
    bus.ok("send", "--as", "a", "--new", "b", LARGE)
    process = printing(bus, "inbox", "--as", "b")
    process.send_signal(signal.SIGSTOP)
    other = bus.run("inbox", "--as", "b")
    assert other.code == REFUSED and f"process {process.pid} is reading" in other.err and not other.out
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == DONE and LARGE.encode() in out, err
    assert inbox(bus) == []


def test_a_reader_from_another_seat_waits_as_well(bus: Bus) -> None:
    """The person and a script of the same name have a seat each, and one mailbox."""
    me = bus.ok("whoami", "--json").json["name"]
    bus.ok("send", "--as", "a", me, LARGE)
    process = printing(bus, "inbox")
    process.send_signal(signal.SIGSTOP)
    other = bus.run("inbox", "--as", me)
    assert other.code == REFUSED and f"process {process.pid} is reading" in other.err and not other.out
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == DONE and LARGE.encode() in out, err
    assert bus.ok("inbox", "--as", me, "--json").json == []


def test_broken_off_by_the_keyboard_in_a_terminal(bus: Bus) -> None:
    bus.ok("send", "--as", "a", "--new", "b", LARGE)
    master, slave = pty.openpty()
    try:
        process = bus.start("inbox", "--as", "b", stdout=slave, stdin=slave, start_new_session=True)
        os.close(slave)
        assert os.read(master, 1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
    finally:
        os.close(master)
    assert inbox(bus) == [(LARGE[:20], True)]


def test_a_pipe_that_is_closed_in_the_middle(bus: Bus) -> None:
    for text in ("first", LARGE, "last"):
        bus.ok("send", "--as", "a", "--new", "b", text)
    command = f"{sys.executable} -m talkbus inbox --as b | head -c 1000"
    done = subprocess.run(command, shell=True, cwd=bus.cwd, env=bus.env(), capture_output=True, check=False)
    assert b"first" in done.stdout and b"last" not in done.stdout
    assert inbox(bus) == [("first", True), (LARGE[:20], True), ("last", True)]


def test_an_ask_that_is_killed_while_it_prints_the_answer(bus: Bus) -> None:
    bus.ok("whoami", "--as", "a")
    asking = bus.start("ask", "--as", "b", "a", "how long?", "--timeout", "60")
    (question,) = wait_for(lambda: bus.ok("inbox", "--as", "a", "--json").json, "the question")
    bus.ok("send", "--as", "a", "b", LARGE, "--reply-to", question["id"])
    assert asking.stdout is not None and os.read(asking.stdout.fileno(), 1)
    asking.kill()
    asking.communicate()
    assert inbox(bus) == [(LARGE[:20], True)]


def test_what_was_shown_once_is_no_repeat_wherever_it_is_listed(bus: Bus) -> None:
    bus.ok("send", "--as", "a", "--new", "b", "hello")
    assert inbox(bus, "--peek") == inbox(bus) == [("hello", False)]
    assert inbox(bus, "--all") == [("hello", False)]
    for listing in (("history", "--json"), ("search", "hello", "--json")):
        assert [m["again"] for m in bus.ok(*listing).json] == [False], listing


def test_the_next_agent_is_told_as_well(bus: Bus) -> None:
    """A session that takes the name over later shows what a killed call had printed as a possible repeat."""
    bus.ok("send", "--as", "a", "--new", "b", "y" + LARGE)
    process = printing(bus, "inbox", "--as", "b")
    process.kill()
    process.communicate()
    lines = [
        {
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-11-25",
                "capabilities": {},
                "clientInfo": {"name": "raw", "version": "1"},
            },
        },
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": {"name": "check_messages", "arguments": {"wait_s": 20}}},
    ]
    env = bus.env(TALKBUS_NAME="b")
    command = [sys.executable, "-m", "talkbus", "mcp"]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
        assert agent.stdin is not None and agent.stdout is not None
        for line in lines:
            agent.stdin.write(json.dumps({"jsonrpc": "2.0", **line}).encode() + b"\n")
        agent.stdin.flush()
        agent.stdout.readline()
        text = json.loads(agent.stdout.readline())["result"]["content"][0]["text"]
        agent.stdin.close()
    assert "yxxx" in text and "possible repeat" in text


@pytest.mark.parametrize("killed", [True, False])
def test_with_the_disk_of_the_broker_full_nothing_is_shown_twice_unmarked(bus: Bus, killed: bool) -> None:
    """What the broker cannot write is on the reader's own disk, and told before anything is shown again."""
    (bus.root / "state").mkdir(parents=True, mode=0o700)
    with ExitStack() as stack:
        room = stack.enter_context(disk(bus.root / "state", list))
        stack.callback(lambda: bus.run("down"))
        agents = bus.root / "state" / "agents"
        agents.mkdir(mode=0o700)
        own = stack.enter_context(disk(agents, list))
        if not (room.mounted and own.mounted):
            pytest.skip("may not mount")
        bus.ok("send", "--as", "a", "--new", "b", LARGE)
        ident = bus.ok("send", "--as", "a", "b", "last", "--json").json["id"]
        assert inbox(bus, "--peek", "--limit", "1") == [(LARGE[:20], False)]
        room.fill()
        process = printing(bus, "inbox", "--as", "b", "--limit", "1")
        if killed:
            process.kill()
        _, err = process.communicate(timeout=60)
        assert killed or (process.returncode == DONE and b"not marked as read yet" in err), err
        full = bus.run("inbox", "--as", "b", "--json", "--limit", "1")
        assert LARGE not in full.out or full.json[0]["again"]
        room.free()
        shown: list[tuple[str, bool]] = []

        def more() -> bool:
            ran = bus.run("inbox", "--as", "b", "--json")
            shown.extend((m["body"][:20], m["again"]) for m in (ran.json if ran.out else []))
            return ("last", False) in shown

        wait_for(more, "the other message", 60)
        assert shown == [*([(LARGE[:20], True)] if killed else []), ("last", False)]
        wait_for(lambda: ("injected", "printed") in steps(bus, ident), "the broker's record")
        assert inbox(bus) == []


# The command stops where it is about to tell the broker what it will print, until the file GO is there.
PAUSED = """
import os, sys, time
sys.path.insert(0, {root!r})
import agent.cli.inbox as inbox
_reads = inbox.somebody_reads
def _paused():
    if not os.path.exists({there!r}):
        open({there!r}, "w").close()
        while not os.path.exists({go!r}):
            time.sleep(0.01)
    _reads()
inbox.somebody_reads = _paused
sys.argv[0] = "talkbus"
import talkbus
sys.exit(talkbus.main())
"""


class Paused:
    """A command that has asked what is there, and has not told yet that it will print it."""

    def __init__(self, home: Home, *args: str) -> None:
        there, self._go = home.root / "there", home.root / "go"
        code = PAUSED.format(root=str(ROOT), there=str(there), go=str(self._go))
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, "-P", "-c", code, *args], env=home.environ, **pipes)
        self._there = there

    def reached(self) -> None:
        wait_for(self._there.exists, "the command's query")

    def ended(self) -> tuple[int, str, str]:
        """Let it go on; its exit code and what it printed."""
        self._go.touch()
        out, err = self._process.communicate(timeout=60)
        return self._process.returncode, out, err


def asked(home: Home, api: Peer, *options: str) -> tuple[Paused, str, str]:
    """An `ask` of the seat `b` whose answer is there; with the ids of question and answer."""
    asking = Paused(home, "ask", "--as", "b", "api", "how long?", *options)
    question = api.hear(wire.Msg).id
    answer = api.post("b", "two days", re=question)
    asking.reached()
    return asking, question, answer


def test_nothing_is_printed_that_the_broker_has_not_confirmed(home: Home) -> None:
    """The broker hangs between the query and the receipt: a session that joins later would show it unmarked."""
    home.start()
    assert home.process is not None
    with home.session("a") as sender:
        ident = sender.post("b", "hello")
    for options in ((), ("--json",)):
        (home.root / "go").unlink(missing_ok=True)
        (home.root / "there").unlink(missing_ok=True)
        reading = Paused(home, "inbox", "--as", "b", *options)
        reading.reached()
        home.process.send_signal(signal.SIGSTOP)
        code, out, err = reading.ended()
        home.process.send_signal(signal.SIGCONT)
        assert (code, out) == (UNREACHABLE, "") and "error: nothing was shown" in err, (code, out, err)
    with home.session("b") as session:
        assert session.hear(wire.Msg).id == ident


def test_an_answer_is_not_printed_that_the_broker_has_not_confirmed(home: Home) -> None:
    home.start()
    assert home.process is not None
    with home.session("api") as api:
        asking, question, answer = asked(home, api)
        home.process.send_signal(signal.SIGSTOP)
        code, out, err = asking.ended()
        home.process.send_signal(signal.SIGCONT)
    assert (code, out) == (UNREACHABLE, "") and "error: nothing was shown" in err and question in err, (
        code,
        out,
        err,
    )
    with home.session("b") as session:
        assert session.hear(wire.Msg).id == answer


@pytest.mark.parametrize("options", [(), ("--all",)])
def test_what_a_session_shows_meanwhile_is_not_printed_again(home: Home, options: tuple[str, ...]) -> None:
    home.start()
    with home.session("a") as sender:
        read = sender.post("b", "read before")
        with home.session("b") as session:
            first = session.hear(wire.Msg)
            session.say(wire.Ack([[first.n, first.n]], "transcript"))
            wait_for(lambda: "injected" in why(home, read), "the session's mark")
            session.say(wire.Bye(True))
            session.hear(wire.Bye)
        ids = [sender.post("b", text) for text in ("shown meanwhile", "still new")]
        reading = Paused(home, "inbox", "--as", "b", "--json", *options)
        reading.reached()
        with home.session("b") as session:
            shown = session.hear(wire.Msg)
            session.say(wire.Ack([[shown.n, shown.n]], "transcript"))
            wait_for(lambda: "injected" in why(home, ids[0]), "the session's mark")
            session.say(wire.Bye(True))
            session.hear(wire.Bye)
        code, out, err = reading.ended()
    printed = [(m["body"], m["again"]) for m in json.loads(out)]
    before = [("read before", False)] if options else []
    assert code == DONE and printed == [*before, ("still new", False)], (printed, err)
    assert "1 more are shown by a session, or were meanwhile" in err


@pytest.mark.parametrize("goodbye", [False, True])
def test_what_a_session_may_have_shown_before_it_died_is_a_possible_repeat(home: Home, goodbye: bool) -> None:
    home.start()
    with home.session("a") as sender, home.session("b") as session:
        sender.post("b", "pushed")
        session.hear(wire.Msg)
        if goodbye:  # it has begun to show nothing
            session.say(wire.Bye(True, begun=[]))
            session.hear(wire.Bye)
    home.kill()  # and nothing has told the broker that the session was shown it
    home.start()
    with home.session("c") as sender:
        sender.post("b", "new")
    reading = Paused(home, "inbox", "--as", "b", "--json")
    reading.reached()
    code, out, err = reading.ended()
    printed = [(m["body"], m["again"]) for m in json.loads(out)]
    assert code == DONE and printed == [("pushed", not goodbye), ("new", False)], (printed, err)


def test_nothing_is_printed_of_a_mailbox_that_a_session_holds_by_now(home: Home) -> None:
    """It was given the message as new before the command could say that it is about to print it."""
    home.start()
    with home.session("a") as sender:
        sender.post("b", "pay the invoice")
        reading = Paused(home, "inbox", "--as", "b")
        reading.reached()
        with home.session("b") as session:
            assert not session.hear(wire.Msg).again
            code, out, err = reading.ended()
    assert (code, out) == (REFUSED, "") and "nothing was shown" in err and "--peek" in err, (out, err)


def test_an_answer_that_a_session_shows_meanwhile_is_printed_as_a_possible_repeat(home: Home) -> None:
    home.start()
    with home.session("api") as api:
        asking, _, answer = asked(home, api, "--json")
        with home.session("b") as session:
            shown = session.hear(wire.Msg)
            session.say(wire.Ack([[shown.n, shown.n]], "transcript"))
            wait_for(lambda: "injected" in why(home, answer), "the session's mark")
            session.say(wire.Bye(True))
            session.hear(wire.Bye)
        code, out, err = asking.ended()
    told = json.loads(out)
    assert (code, told["body"], told["again"]) == (DONE, "two days", True), (out, err)
    assert "was shown the answer before" in err


def why(home: Home, ident: str) -> list[str]:
    """The steps of the only copy of a message."""
    with home.view() as view:
        answer = view.query("why", {"id": ident})
    return [step["status"] for step in answer.rows[0][0]["history"]]
