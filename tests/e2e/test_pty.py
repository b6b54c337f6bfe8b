"""`talkbus claude` with the real client, and with a plain program that reads lines. Needs no broker."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from agent.delivery.maildir import Box, Fate
from agent.delivery.transcript import Seen, scan

from .api import FakeApi
from .session import Home
from .terminal import Terminal
from .wait import until

ROOT = Path(__file__).parents[2]
LEAD = (
    "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
    "from agent.cli.claude import claude\n"
    "claude.main(prog_name='talkbus claude')"
)
COMMAND = [sys.executable, "-I", "-c", LEAD, str(ROOT)]


def now() -> int:
    return time.time_ns() // 1_000_000


class Seat:
    """A supervisor in a terminal, with a bus of its own."""

    def __init__(self, root: Path, program: str, *arguments: str, cwd: Path, env: dict[str, str]) -> None:
        self.root = root
        given = {**env, "TALKBUS_HOME": str(root), "TALKBUS_CLAUDE_BIN": program}
        self.terminal = Terminal([*COMMAND, *arguments], cwd, given)

    @property
    def box(self) -> Box:
        def found() -> Path | None:
            boxes = (self.root / "run" / "maildirs").glob("*/pty")
            return next((path for path in boxes if (path / "owner").exists()), None)

        return Box(until(found, "the box"))

    @property
    def child(self) -> psutil.Process:
        return psutil.Process(int(self.box.path.parent.name.partition("-")[0]))

    def close(self) -> None:
        if self.terminal.alive:
            self.terminal.signal(signal.SIGTERM)
            try:
                self.terminal.wait_end(3)
            except AssertionError:
                self.terminal.signal(signal.SIGKILL)
                self.terminal.wait_end()
        self.terminal.hang_up()


@pytest.fixture
def seats() -> Iterator[list[Seat]]:
    made: list[Seat] = []
    yield made
    for seat in made:
        seat.close()


# --- the real client


@pytest.mark.e2e
def test_a_message_is_pasted_into_an_idle_session(api: FakeApi, home: Home, seats: list[Seat]) -> None:
    folder = home.project()
    env = home.environment(folder, "", {})
    seat = Seat(home.root / "bus", str(home.binary), "--permission-mode", "plan", cwd=folder, env=env)
    seats.append(seat)
    pid = seat.child.pid
    until(lambda: home.session_file(pid).get("status") == "idle", "the session")
    assert "--permission-mode" in seat.child.cmdline()

    name = seat.box.put("id-aaaa line one\nline two", "task", now())
    request = api.wait("id-aaaa line one\nline two")
    assert seat.box.fate(name) is Fate.PRINTED
    until(lambda: home.session_file(pid).get("status") == "idle", "the end of the turn")
    path = home.transcript_file(request.session)
    assert path is not None
    until(lambda: scan(path, [("k", "id-aaaa")])["k"] is Seen.INJECTED, "the proof")

    # Busy: it waits. A draft: it waits for the person to send it.
    turn = api.on("please think", "thought", hold=True)
    seat.terminal.write("please think")
    seat.terminal.wait_screen("❯ please think")
    name = seat.box.put("id-bbbb", "task", now())
    time.sleep(1.2)  # longer than the keyboard has to be still
    assert seat.box.fate(name) is Fate.WAITING
    seat.terminal.write("\r")
    api.wait("please think")
    time.sleep(0.7)
    assert seat.box.fate(name) is Fate.WAITING
    turn.release()
    request = api.wait("id-bbbb")
    assert "please think" not in request.new
    assert len([r for r in api.requests if "id-" in r.new]) == 2

    until(lambda: home.session_file(pid).get("status") == "idle", "the end of the turn")
    seat.terminal.write("/exit\r")
    assert seat.terminal.wait_end() == 0


@pytest.mark.e2e
def test_a_killed_client_leaves_a_usable_terminal(api: FakeApi, home: Home, seats: list[Seat]) -> None:
    folder = home.project()
    seat = Seat(home.root / "bus", str(home.binary), cwd=folder, env=home.environment(folder, "", {}))
    seats.append(seat)
    until(lambda: home.session_file(seat.child.pid).get("status") == "idle", "the session")
    until(seat.terminal.reads_keys, "raw keys")
    seat.child.kill()
    assert seat.terminal.wait_end() == 128 + signal.SIGKILL
    assert not seat.terminal.reads_keys()
    end = seat.terminal.raw.rpartition(b"\x1b[?2004l")
    assert end[1] and b"\x1b[?2004h" not in end[2] and b"\x1b[?25h" in end[2]


# --- any other program


def plain(tmp_path: Path, script: str, *arguments: str) -> Seat:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "TERM": "xterm", "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    return Seat(tmp_path / "bus", str(program), *arguments, cwd=tmp_path, env=env)


def test_a_plain_program_gets_a_notice(tmp_path: Path, seats: list[Seat]) -> None:
    seats.append(seat := plain(tmp_path, 'while read -r line; do echo "got:$line"; done'))
    names = [seat.box.put(f"line one\nrm -rf {n}", "task", now()) for n in range(2)]
    seat.terminal.wait_screen("got:talkbus: 2 messages for this session; to read: talkbus inbox")
    assert [seat.box.fate(name) for name in names] == [Fate.NOTICED] * 2
    assert "rm -rf" not in seat.terminal.screen
    # A person's line in the making is not disturbed.
    seat.terminal.write("half a ")
    name = seat.box.put("more", "task", now())
    time.sleep(2.5)
    assert seat.box.fate(name) is Fate.WAITING
    seat.terminal.write("line\n")
    seat.terminal.wait_screen("got:half a line")
    seat.terminal.wait_screen("got:talkbus: a message")


def test_a_program_that_takes_pastes_gets_the_message(tmp_path: Path, seats: list[Seat]) -> None:
    script = (
        "printf '\\033[?20'; sleep 0.2; printf '04h>'; stty raw -echo\n"
        "dd bs=1 count=32 2>/dev/null | tr '\\033\\n\\r' 'E|R'"
    )
    seats.append(seat := plain(tmp_path, script))
    seat.terminal.wait_screen(">")
    name = seat.box.put("one\ntwo \x1b[201~\r\x03 \x9bthree", "task", now())
    seat.terminal.wait_screen("E[200~one|two [201~ threeE[201~R")
    until(lambda: seat.box.fate(name) is Fate.PRINTED, "its fate")


def test_bytes_window_and_arguments_go_through(tmp_path: Path, seats: list[Seat]) -> None:
    script = 'echo "args:$*"; stty size; stty raw -echo; printf ready; dd bs=1 count=6 2>/dev/null | od -An -tx1'
    seats.append(seat := plain(tmp_path, script, "--help", "-p", "--", "a b", "--json"))
    seat.terminal.wait_screen("args:--help -p -- a b --json")
    seat.terminal.wait_screen("50 200")
    seat.terminal.wait_screen("ready")
    seat.terminal.write("\x00\x03\x1a\x1b\x11é"[:6])
    seat.terminal.wait_screen("00 03 1a 1b 11 c3")
    assert seat.terminal.wait_end() == 0


def test_a_new_window_size_reaches_the_program(tmp_path: Path, seats: list[Seat]) -> None:
    seats.append(seat := plain(tmp_path, "trap 'stty size' WINCH; echo up; while :; do sleep 0.05; done"))
    seat.terminal.wait_screen("up")
    fcntl.ioctl(seat.terminal._master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    seat.terminal.signal(signal.SIGWINCH)
    seat.terminal.wait_screen("33 99")


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -KILL $$", 137), ("echo last words; exit 0", 0)])
def test_its_end_is_ours(tmp_path: Path, seats: list[Seat], script: str, code: int) -> None:
    seats.append(seat := plain(tmp_path, script))
    assert seat.terminal.wait_end() == code
    if "last" in script:
        seat.terminal.wait_screen("last words")


def test_signals_are_handed_on(tmp_path: Path, seats: list[Seat]) -> None:
    seats.append(seat := plain(tmp_path, "trap 'echo told; exit 9' TERM; echo up; while :; do sleep 0.05; done"))
    seat.terminal.wait_screen("up")
    seat.terminal.signal(signal.SIGTERM)
    assert seat.terminal.wait_end() == 9
    seat.terminal.wait_screen("told")
    assert not seat.terminal.reads_keys()  # the terminal is as it was


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TALKBUS_HOME": str(tmp_path / "bus")}
    program = shutil.which("true") or "true"
    for named, words in ((program, "have to be a terminal"), (str(tmp_path / "none"), "TALKBUS_CLAUDE_BIN")):
        given = {**env, "TALKBUS_CLAUDE_BIN": named}
        done = subprocess.run(COMMAND, env=given, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert done.stderr.startswith("error: ") and words in done.stderr
