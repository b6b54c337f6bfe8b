"""`zmq-tap` as a process of its own, on pipes or in a pseudo-terminal, beside a bus of a test."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.live.homes import DEADLINE, ROOT, Home

_CODE = "import sys\nsys.path.insert(0, {root!r})\n{before}\nimport talkbus\ntalkbus.tap()\n"


def command(*args: str, before: str = "") -> list[str]:
    """The command line; `before` is code that runs first."""
    return [sys.executable, "-P", "-c", _CODE.format(before=before, root=str(ROOT)), *args]


def environ(home: Home, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in home.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    return {**kept, "TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **more}


class Tap:
    """Reads the lines of one tap as they come. Use it as a context manager."""

    def __init__(self, home: Home, *args: str, before: str = "", **more: str) -> None:
        self.process = subprocess.Popen(
            command(*args, before=before), env=environ(home, **more), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._rest = b""
        self.lines: list[str] = []

    def until(self, fits: Callable[[str], bool], deadline: float = DEADLINE) -> str:
        """The next line that fits; all lines are kept in `lines`."""
        end = time.monotonic() + deadline
        while True:
            line = self._line(end)
            assert line is not None, f"no such line: {self.lines[-5:]}, {self._said()}"
            self.lines.append(line)
            if fits(line):
                return line

    def event(self, name: str, **fields: Any) -> dict[str, Any]:
        """The next event of that name with these fields; for --json."""

        def fits(line: str) -> bool:
            told = json.loads(line)
            return told["event"] == name and all(told.get(key) == value for key, value in fields.items())

        found: dict[str, Any] = json.loads(self.until(fits))
        return found

    def end(self, deadline: float = DEADLINE) -> tuple[int, str]:
        """Exit code and stderr; what was still on stdout is in `lines`."""
        out, err = self.process.communicate(timeout=deadline)
        self.lines += [line for line in (self._rest + out).decode().splitlines() if line]
        self._rest = b""
        return self.process.returncode, err.decode()

    def _line(self, end: float) -> str | None:
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                return None
            got = os.read(self.process.stdout.fileno(), 65536)
            if not got:
                return None
            self._rest += got
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def _said(self) -> str:
        self.process.kill()
        return self.process.communicate()[1].decode()[-500:]

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def run(home: Home, *args: str, before: str = "") -> tuple[int, list[str], str]:
    """A tap that ends by itself: exit code, lines, stderr."""
    with Tap(home, *args, before=before) as tap:
        code, err = tap.end(3 * DEADLINE)
        assert "Traceback" not in err, err
        return code, tap.lines, err


def recorded(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a recording after its first."""
    for line in path.read_text("ascii").splitlines()[1:]:
        yield json.loads(line)
