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

import pytest

from tests.live.homes import wait_for
from tests.live.test_cli import DONE, REFUSED, ROOT, Bus
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
