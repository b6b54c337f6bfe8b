"""A program in a pseudo-terminal: its output kept and drawn, keys sent to it, its end waited for.

A reader thread empties the terminal all the time, so that the program never blocks on it. It must not
know which program runs.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .screen import Screen
from .wait import DEADLINE, TooLate, until

ROWS, COLUMNS = 50, 200

# The program gets the terminal as its controlling one (a closed window must reach it as SIGHUP). Done in
# an interpreter of its own and not between fork and exec of this one, which has threads.
_LEAD = "import fcntl,os,sys,termios;fcntl.ioctl(0,termios.TIOCSCTTY,0);os.execv(sys.argv[1],sys.argv[1:])"


class Terminal:
    """One program and its terminal. `raw` is all it ever wrote; `screen` what a user would see now."""

    def __init__(
        self, command: Sequence[str], cwd: Path, env: Mapping[str, str], rows: int = ROWS, columns: int = COLUMNS
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._change = threading.Condition()
        self._raw = bytearray()
        self._drawn = Screen(rows, columns)
        self._over = False
        lead = [sys.executable, "-I", "-S", "-c", _LEAD, *command]
        self._process = subprocess.Popen(
            lead, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env=dict(env), start_new_session=True
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def raw(self) -> bytes:
        with self._change:
            return bytes(self._raw)

    @property
    def screen(self) -> str:
        with self._change:
            return self._drawn.text()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def reads_keys(self) -> bool:
        """True when the program takes single keys: before that a carriage return would become a newline."""
        return not termios.tcgetattr(self._master)[3] & termios.ICANON

    def resize(self, rows: int, columns: int) -> None:
        """As when somebody draws the window larger or smaller; what is shown is forgotten."""
        with self._change:
            self._drawn = Screen(rows, columns)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def write(self, keys: str) -> None:
        """Keys as they are, in one write."""
        rest = keys.encode()
        while rest:
            rest = rest[os.write(self._master, rest) :]

    def wait_screen(self, words: str | Callable[[str], bool], deadline: float = DEADLINE) -> str:
        """The screen as soon as it shows `words` (line breaks and spaces do not matter) or fits."""
        bare = "".join(words.split()) if isinstance(words, str) else ""
        fits = words if callable(words) else (lambda shown: bare in "".join(shown.split()))
        end = time.monotonic() + deadline
        with self._change:
            while True:
                shown = self._drawn.text()
                if fits(shown):
                    return shown
                if self._over or time.monotonic() >= end:
                    why = "the program ended" if self._over else f"not within {deadline:g} s"
                    raise TooLate(f"{why}: {words!r} on the screen; it shows:\n{shown}")
                self._change.wait(end - time.monotonic())

    def wait_end(self, deadline: float = DEADLINE) -> int:
        """The exit code of the program; negative for a signal."""
        until(lambda: not self.alive, "the end of the program", deadline)
        return int(self._process.returncode)

    def signal(self, number: signal.Signals) -> None:
        if self.alive:
            os.kill(self.pid, number)

    def hang_up(self) -> None:
        """Close the terminal, as a closed window does; the program gets SIGHUP."""
        with self._change:
            self._over = True
        self._reader.join(DEADLINE)
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def _read(self) -> None:
        while not self._over:
            if not select.select([self._master], [], [], 0.1)[0]:
                continue
            try:
                got = os.read(self._master, 65536)
            except OSError:  # Linux says EIO when the last holder of the other end is gone
                got = b""
            with self._change:
                self._raw += got
                self._drawn.feed(got)
                self._over = self._over or not got
                self._change.notify_all()
