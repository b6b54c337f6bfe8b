"""The client's own session file: which client we belong to, which session it runs, what it is doing.

The client writes `sessions/<pid>.json` in its configuration directory and keeps it up to date, also over `/clear`,
which changes the session id under a living agent. The file stays when the client is killed, so pid and start time
are compared. Nothing in it is documented as stable: whatever is missing or of the wrong kind counts as not there.

Must not know messages nor the bus.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bus import processes

FILE_MAX = 64 * 1024  # octets; those seen have 1 KiB
ONCE = "sdk-cli"  # the entry point of a run without a person (`claude -p`)
CLOCK_SLACK_S = 5.0  # off Linux a start time follows corrections of the wall clock
_SOCKET = re.compile(r"(?:^|[\\/])(\d{1,10})\.sock$")


@dataclass(frozen=True, slots=True)
class Session:
    """What a living client says about itself. `status` is idle, busy, waiting, shell, or "" when it does not say.

    `start` is the token of `bus.processes`; `status_at` in ms since 1970, 0 when unknown; `socket` is "" without one.
    """

    pid: int
    start: str
    id: str
    cwd: str
    status: str = ""
    status_at: int = 0
    socket: str = ""
    entrypoint: str = ""
    kind: str = ""
    version: str = ""

    @property
    def idle(self) -> bool:
        """No turn runs; something in the background may."""
        return self.status in ("idle", "shell")


def config_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the client keeps its files."""
    named = environ.get("CLAUDE_CONFIG_DIR", "")
    return Path(named) if named else Path(os.path.expanduser("~")) / ".claude"


def find_client(environ: Mapping[str, str] = os.environ, pid: int | None = None) -> int | None:
    """The pid of the client above this process, or None.

    The nearest ancestor with a session file that is true of it; else the client that the environment names, as long
    as it is an ancestor. So a shim between the two does no harm, and neither does an inherited environment.
    """
    above = processes.ancestors(os.getpid() if pid is None else pid)
    config = config_dir(environ)
    for ancestor in above:
        if read(ancestor, config) is not None:
            return ancestor
    named = named_pid(environ)
    return named if named in above else None


def named_pid(environ: Mapping[str, str]) -> int | None:
    """The client's pid as the environment of its children gives it: as a variable, or in the name of the socket."""
    plain = environ.get("CLAUDE_PID", "")
    if plain.isascii() and plain.isdecimal():
        return int(plain)
    found = _SOCKET.search(environ.get("CLAUDE_CODE_MESSAGING_SOCKET", ""))
    return int(found[1]) if found else None


def read(pid: int, config: Path) -> Session | None:
    """What the client `pid` says now; None when it says nothing, or when another process had this pid."""
    said = _load(config / "sessions" / f"{pid}.json")
    start = processes.start_time(pid)
    if said is None or start is None or said.get("pid") != pid or not _same_process(said, start):
        return None
    ident, cwd = _text(said, "sessionId"), _text(said, "cwd")
    if not ident or not _plain(ident):
        return None
    return Session(
        pid=pid,
        start=start,
        id=ident,
        cwd=cwd,
        status=_text(said, "status"),
        status_at=_number(said, "statusUpdatedAt"),
        socket=_text(said, "messagingSocketPath"),
        entrypoint=_text(said, "entrypoint"),
        kind=_text(said, "kind"),
        version=_text(said, "version"),
    )


def below(pid: int, config: Path) -> Session | None:
    """What the outermost client at or below `pid` says; None without one. A run without a person does not count."""
    found: dict[int, Session] = {}
    try:
        files = list((config / "sessions").glob("*.json"))
    except OSError:
        return None
    for file in files:
        number = int(file.stem) if file.stem.isascii() and file.stem.isdecimal() else 0
        if number and (number == pid or pid in processes.ancestors(number)):
            session = read(number, config)
            if session is not None and session.entrypoint != ONCE:
                found[number] = session
    outer = (one for number, one in found.items() if not found.keys() & set(processes.ancestors(number)))
    return next(outer, None)


def transcript_path(config: Path, ident: str, cwd: str = "") -> Path | None:
    """The transcript of the session `ident`, or None while there is none; `cwd` says where to look first."""
    if not _plain(ident):
        return None
    projects = config / "projects"
    if cwd:
        likely = projects / re.sub(r"[^A-Za-z0-9]", "-", cwd) / f"{ident}.jsonl"
        if likely.is_file():
            return likely
    # The folder is that of the start, not always today's, and long paths are shortened in a way of their own.
    try:
        return next((path for path in projects.glob(f"*/{ident}.jsonl") if path.is_file()), None)
    except OSError:
        return None


def _load(path: Path) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            said = json.loads(file.read(FILE_MAX))
    except (OSError, ValueError, RecursionError):  # not there, or in the middle of being written
        return None
    return said if isinstance(said, dict) else None


def _same_process(said: Mapping[str, Any], start: str) -> bool:
    """Whether the file was written by the process that has its pid now."""
    written = said.get("procStart")
    if sys.platform == "linux" and isinstance(written, str | int) and str(written).isdecimal():
        return start.rpartition("-")[2] == str(written)
    # Elsewhere the form of procStart is not known. A file older than its process is somebody else's.
    at = said.get("startedAt")
    if start.startswith("t") and isinstance(at, int | float):
        try:
            return at / 1000 >= float(start[1:]) - CLOCK_SLACK_S
        except ValueError:
            return False
    return True


def _plain(ident: str) -> bool:
    """Whether it may be part of a file's name."""
    return bool(re.fullmatch(r"[A-Za-z0-9_-]{1,128}", ident))


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    return value if isinstance(value, str) else ""


def _number(said: Mapping[str, Any], name: str) -> int:
    value = said.get(name)
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15 else 0
