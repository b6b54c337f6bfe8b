"""The line a session's status line shows, in a file a shell script can read: `<runtime>/status/<client pid>.line`.

Beside it `<client pid>.pid` names the agent that keeps it, so that what a dead one left is not believed. Must not
know who reads the line, nor where the numbers come from.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from bus.config import Home
from bus.private import private_dir, write_private
from bus.processes import alive, start_time

SCRIPT = Path(__file__).resolve().parent.parent / "hooks" / "statusline.sh"


class StatusFile:
    """The line of one client, kept by its agent. `hub`: the broker is another machine's, so its process is not looked
    for here.
    """

    def __init__(self, home: Home, client_pid: int, *, hub: bool = False) -> None:
        self._folder = home.runtime / "status"
        self._line = self._folder / f"{client_pid}.line"
        self._pid = self._folder / f"{client_pid}.pid"
        self._owner = f"{os.getpid()} {start_time(os.getpid())}{' hub' if hub else ''}\n".encode()
        self._written = b""

    def write(self, name: str, peers: int, unread: int, held: int = 0, off: bool = False) -> None:
        """Say it, if it is new: a change is there at once and whole. Numbers that are 0 are left out.

        `off`: the session is not on the bus, so what the bus has is not known.

        ConfigError or StoreError when the runtime directory cannot be used.
        """
        line = text(name, peers, unread, held, off).encode() + b"\n"
        if line == self._written and self._line.exists():
            return
        if not self._written:
            private_dir(self._folder.parent)
            sweep(private_dir(self._folder))
        write_private(self._pid, self._owner)
        write_private(self._line, line)
        self._written = line

    def clear(self) -> None:
        """The session is over. A line that another agent keeps by now stays."""
        self._written = b""
        if _read(self._pid) == self._owner:
            self._line.unlink(missing_ok=True)
            self._pid.unlink(missing_ok=True)


def text(name: str, peers: int, unread: int, held: int = 0, off: bool = False) -> str:
    """`api · 3 peers · ✉2 · 1 held`, without what is 0; `api · not on the bus` when it is `off`."""
    if off:
        return f"{name} · not on the bus"
    parts = [name]
    if peers > 0:
        parts.append(f"{peers} peer{'s' * (peers != 1)}")
    if unread > 0:
        parts.append(f"✉{unread}")
    if held > 0:
        parts.append(f"{held} held")
    return " · ".join(parts)


def sweep(folder: Path) -> None:
    """Remove what agents left that died before they could."""
    for pid in folder.glob("*.pid"):
        words = _read(pid).decode("ascii", "replace").split()
        if len(words) < 2 or not words[0].isdecimal() or not alive(int(words[0]), words[1]):
            with contextlib.suppress(OSError):
                pid.with_suffix(".line").unlink(missing_ok=True)
                pid.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
