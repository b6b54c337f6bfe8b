"""The screens of zmq-tap in a real terminal: drawn, resized, and the terminal left as it was, however they end."""

from __future__ import annotations

import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("pseudo-terminals of POSIX", allow_module_level=True)

from tests.e2e.terminal import Terminal
from tests.live.homes import DEADLINE, Home
from tests.live.taps import command, environ
from tests.story import HOSTILE

pytestmark = pytest.mark.timeout(120)

ALT_ON, ALT_OFF = b"\x1b[?1049h", b"\x1b[?1049l"
WAIT = 3 * DEADLINE  # textual takes a while to import on a loaded machine


class Window:
    """A terminal with a tap in it."""

    def __init__(
        self, home: Home, *args: str, before: str = "", rows: int = 24, columns: int = 80, **more: str
    ) -> None:
        self.terminal = Terminal(command(*args, before=before), Path("/"), environ(home, **more), rows, columns)
        self.before = termios.tcgetattr(self.terminal._master)

    def shows(self, *words: str) -> str:
        return self.terminal.wait_screen(lambda text: all(word in text for word in words), WAIT)

    def ended(self) -> tuple[int, str]:
        """Exit code, and what was printed after the screen was left; the terminal is as before, or this fails."""
        code = self.terminal.wait_end(WAIT)
        self.terminal._reader.join(DEADLINE)
        raw = self.terminal.raw
        assert raw.rfind(ALT_OFF) > raw.rfind(ALT_ON) > -1, "the screen was taken and given back"
        assert raw.rfind(b"\x1b[?25h") > raw.rfind(b"\x1b[?25l"), "the cursor is there again"
        assert b"\x1b[?1000h" not in raw, "the mouse is left to the terminal: text can be selected"
        assert termios.tcgetattr(self.terminal._master)[:4] == self.before[:4], "keys are read by lines again"
        return code, raw[raw.rfind(ALT_OFF) :].decode(errors="replace")

    def close(self) -> None:
        self.terminal.signal(signal.SIGKILL)
        self.terminal.hang_up()


@pytest.fixture
def windows() -> Iterator[list[Window]]:
    made: list[Window] = []
    yield made
    for window in made:
        window.close()


def test_the_office_is_drawn_and_left(home: Home, stack: ExitStack, windows: list[Window]) -> None:
    home.start()
    alice, bob = (stack.enter_context(home.session(name)) for name in ("alice", "bob"))
    windows.append(window := Window(home, "--office", "--bodies"))
    window.shows("talkbus office", "(·_·)", "alice", "bob", "live")
    alice.post("bob", "hello bob, are you there?")
    window.shows("(·o·)›", "talking", "“hello bob,", "alice → bob  hello bob, are you there?")
    bob.post("nobody", "x")
    window.shows("bob → nobody")
    window.terminal.resize(20, 60)
    shown = window.shows("alice", "bob", "q quits")
    assert max(map(len, shown.splitlines())) <= 60
    home.kill()
    window.shows("the connection is lost", "connecting")
    home.start()
    window.shows("the broker was restarted")
    window.terminal.write("q")
    assert window.ended()[0] == 0


def test_top_is_drawn_and_sorted(home: Home, stack: ExitStack, windows: list[Window]) -> None:
    home.start()
    alice = stack.enter_context(home.session("alice"))
    stack.enter_context(home.session("bob"))
    windows.append(window := Window(home, "--top"))
    window.shows("talkbus top", "2 here", "alice", "(now traffic)")
    alice.post("bob", "x")
    window.shows("1 unread", "just now")
    window.terminal.write("s")
    window.shows("(now unread)")
    window.terminal.write("\x03")
    assert window.ended()[0] == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_the_terminal_back(home: Home, windows: list[Window], number: signal.Signals) -> None:
    home.start()
    windows.append(window := Window(home, "--office"))
    window.shows("nobody is here", "live")
    window.terminal.signal(number)
    assert window.ended()[0] == 128 + number


CRASHES = {
    "drawing": "import agent.tap.office as o; o.Office.scene = lambda *a: 1 / 0",
    "taking": "import agent.tap.office as o; o.Office.take = lambda *a: 1 / 0",
    "reading": "import agent.tap.live as l\ndef bad(*a, **k):\n    raise ValueError('bad \\x1b[2J')\nl.View = 1\n"
    "import agent.cli.tap_source as s; s.live = bad",
    "painting": "import agent.tap.screen as s; s.strip = lambda row: 1 / 0",
}


@pytest.mark.parametrize("where", sorted(CRASHES))
def test_a_crash_gives_the_terminal_back_and_is_one_line(home: Home, windows: list[Window], where: str) -> None:
    home.start()
    windows.append(window := Window(home, "--office", before=CRASHES[where]))
    code, after = window.ended()
    said = after.partition("error: ")[2]
    assert code == 1 and said.startswith("the screen has failed: "), after
    assert "Traceback" not in after and "\x1b[2J" not in said


def test_what_cannot_begin_is_one_line(home: Home, windows: list[Window], tmp_path: Path) -> None:
    windows.append(window := Window(home, "--office"))
    code, after = window.ended()
    assert code == 3 and "error: no broker is running" in after
    broken = tmp_path / "x"
    broken.write_text("nonsense\n")
    windows.append(other := Window(home, "--office", "--replay", str(broken)))
    assert other.terminal.wait_end(WAIT) == 1 and ALT_ON not in other.terminal.raw


def test_hostile_text_drives_no_terminal(home: Home, stack: ExitStack, windows: list[Window]) -> None:
    home.start()
    alice, bob = (stack.enter_context(home.session(name)) for name in ("alice", "bob"))
    alice.do("status", {"summary": HOSTILE, "wake": HOSTILE, "metadata": {"x": HOSTILE}})
    screens = (("--office", "--bodies"), ("--top",), ("--bodies",))
    for args in screens:
        windows.append(Window(home, *args, columns=100))
    for window in windows:
        window.shows("alice", "bob")
    ident = alice.post("bob", f"{HOSTILE} and the end")
    alice.request("send", {"to": ["bob", HOSTILE]}, HOSTILE.encode())
    bob.do("receipt", {"moved": [["injected", HOSTILE, 0, [ident]]]})
    windows[0].shows("alice → bob", "\\u{1B}]0;owned")
    windows[1].shows("1 unread")
    windows[2].shows("injected", ident)
    for window in windows:
        raw = window.terminal.raw.replace(b"\x1b]22;default\x07", b"")  # textual's own: the shape of the pointer
        for bad in (
            b"\x1b]0;owned",
            b"\x07",
            b"\x1b[31m\xe2",
            b"\xe2\x80\xae",
            b"\xe2\x81\xa6",
            b"\xc2\x9b",
            b"\x1b[10;10H",
        ):
            assert bad not in raw, (window, bad)


def test_colours_arrows_and_who_does_not_want_them(home: Home, stack: ExitStack, windows: list[Window]) -> None:
    home.start()
    alice = stack.enter_context(home.session("alice"))
    for more in (
        {},
        {"NO_COLOR": "1"},
        {"TERM": "dumb"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ):
        windows.append(Window(home, columns=120, **more))
    for window in windows:
        window.shows("alice", "here")
    alice.post("bob", "x")
    for window in windows:
        window.shows("stored", "bob")
    coloured, *plain, ascii_ = (window.terminal.raw for window in windows)
    assert b"\x1b[32m" in coloured and "→".encode() in coloured
    assert not [raw for raw in plain if b"\x1b[" in raw]
    assert b"\x1b[32m" in ascii_ and ascii_.isascii() and b" -> " in ascii_


def test_a_recording_is_played_in_ascii(home: Home, windows: list[Window], tmp_path: Path) -> None:
    from agent.tap.recording import Recorder
    from tests.story import START, STORY

    path = tmp_path / "x.tap"
    with Recorder(path, START) as recorder:
        for item in STORY:
            recorder.write(item)
    ascii_ = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    windows.append(window := Window(home, "--office", "--replay", str(path), "--speed", "4", **ascii_))
    text = window.shows("the recording is over", "ada@mars > bob@mars", "x refused")
    assert text.isascii() and "venus" in text
    window.terminal.write("q")
    assert window.ended()[0] == 0
