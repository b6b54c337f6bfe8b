"""Seats: the local end of a mailbox, a folder with a random id, so that a rename moves nothing.

A seat remembers its name and project, and is held by a lock that ends with its holder. Who takes one looks at all of
them under one lock of the whole directory, so that no two get the same seat or make the same name. It must not know
links, brokers, or what stands in agent.db.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from bus import names
from bus.config import Home
from bus.errors import BusError, Code, ConfigError, Refused
from bus.private import private_dir, write_private
from bus.processes import FileLock, alive, holder

Kind = Literal["session", "human", "script"]

_SEAT = "seat.json"
_LIVE = "live.json"
_LOCK = "lock"
_DB = "agent.db"
_SESSION = "session"
_SCRIPT = ".cli"  # in the name of a seat only: a session may have one of the plain name
_OPTIONAL = ("mailbox", "store")  # an earlier talkbus wrote none
_TAKING_S = 10.0  # taking a seat is a matter of milliseconds; whoever holds the directory this long is stopped
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Live:
    """Who sits there now: the agent's process, the client it serves, and under what name. Start times are tokens of
    `processes.start_time`; `client_pid` is 0 and its start "" where no client is known.
    """

    pid: int
    start: str
    client_pid: int
    client_start: str
    name: str
    inst: str
    cwd: str
    mailbox: str = ""  # its id at the broker, in the database `store`
    store: str = ""


@dataclass(slots=True)
class Seat:
    """One seat. From take_seat() and wait_seat() it comes with its `lock` held; `leave()` lets go."""

    folder: Path
    name: str
    project: str
    kind: str
    created: int = 0  # ms since 1970
    asked: str = ""  # the name it was first asked for, where that was used already or it was renamed since
    mailbox: str = ""  # the id of what the broker called `name`, in its database `store`; "" until a WELCOME told
    store: str = ""
    lock: FileLock = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.lock = FileLock(self.folder / _LOCK)

    @property
    def database(self) -> Path:
        """Where its agent.db is, or is to be made."""
        return self.folder / _DB

    def renamed(self, name: str, mailbox: str = "", store: str = "") -> None:
        """The bus knows this seat by another name, or as another mailbox; it keeps both over restarts, together."""
        if (name, mailbox, store) != (self.name, self.mailbox, self.store):
            if name != self.name:
                self.asked = self.asked or self.name
            self.name, self.mailbox, self.store = name, mailbox, store
            self._save()

    @property
    def session(self) -> str:
        """The client's session that sat here last, "" when none said so."""
        try:
            return (self.folder / _SESSION).read_text("utf-8").strip()
        except (OSError, ValueError):
            return ""

    def remember(self, session: str) -> None:
        """The client's session that sits here, so that it comes back here when it is resumed."""
        if session and session != self.session:
            write_private(self.folder / _SESSION, session.encode())

    def announce(self, live: Live) -> None:
        """Tell other processes of this user who sits here, until `leave()` or until that process is gone."""
        write_private(self.folder / _LIVE, json.dumps(asdict(live)).encode())

    def leave(self) -> None:
        """Let go of the seat; what it remembers stays."""
        (self.folder / _LIVE).unlink(missing_ok=True)
        self.lock.release()

    def used(self) -> int:
        """When it was last in use, in ns since 1970 by the clock of the file system."""
        return max(_changed(self.folder / name) for name in (_SEAT, _LOCK, _DB, f"{_DB}-wal"))

    def _save(self) -> None:
        told = ("name", "project", "kind", "created", "asked", *_OPTIONAL)
        kept = {name: getattr(self, name) for name in told}
        write_private(self.folder / _SEAT, json.dumps(kept).encode())


def take_seat(
    home: Home, name: str | None, project: str, kind: Kind = "session", session: str = "", folder: str = ""
) -> Seat:
    """A seat for a process that lives for a while, its lock held.

    With a name the free seat of that name, whatever its project. Without one a free seat of this project that was
    named after `folder` (by default the project's own): the one in which the client's `session` sat, else the one
    used last. Else a new one, named as asked or after the folder, with -2, -3… where another seat has the name.
    Refused (422) for what is no name; ConfigError where the directory cannot be used.
    """
    wanted = names.check_name(name) if name else ""
    base = wanted or names.canonical(folder_name(folder or project))
    with _Directory(home) as directory:
        seats = [seat for seat in directory.seats if seat.kind == kind]
        exact = [seat for seat in seats if wanted and seat.name == wanted]
        # What an earlier one was given who asked for the same name is as good; another project's is not.
        mine = [seat for seat in seats if seat.project == project and _named_after(seat, base, bool(wanted))]
        exact.sort(key=lambda seat: seat.project != project)  # stable: the one used last stays first
        mine.sort(key=lambda seat: not session or seat.session != session)
        for seat in exact + mine:
            if private_dir(seat.folder) and seat.lock.acquire():
                return directory.settle(seat)
        return directory.make(base, project, kind)


def wait_seat(home: Home, name: str, kind: Kind, timeout: float) -> Seat:
    """The seat of a person or a script, its lock held, made at the first time; waits for its turn.

    Processes side by side share it one after the other. Refused (503) when it stays taken for `timeout` seconds,
    (422) for what is no name. A seat that was renamed, or had to be named `name-2`, is found by the name it was asked
    for.
    """
    wanted = names.check_name(name)
    end = time.monotonic() + timeout
    with _Directory(home) as directory:
        seats = [seat for seat in directory.seats if seat.kind == kind]
        found = [seat for seat in seats if seat.name == wanted] or [seat for seat in seats if seat.asked == wanted]
        if not found:
            return directory.make(wanted, "", kind)
    seat = found[0]
    private_dir(seat.folder)
    if not _patiently(seat.lock, end):
        who = holder(seat.lock.path)
        raise Refused(
            Code.BUSY, f"{seat.name} is in use by {f'process {who[0]}' if who else 'another process'} (try again)"
        )
    # Whoever held it until now may have renamed it.
    return _read(seat.folder, seat.lock) or seat


def script_seat(name: str) -> str:
    """What the seat of a script is called: the script's name is in it, or begins it and its digest ends it."""
    room = names.NAME_MAX - len(_SCRIPT)
    if len(name) > room:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        name = f"{name[: room - 1 - len(digest)]}.{digest}"
    return name + _SCRIPT


def seat_in(folder: Path) -> Seat | None:
    """The seat in this folder, its lock not held; None where there is none."""
    return _read(folder)


def every(home: Home) -> list[Seat]:
    """All seats there are, in use or not; nothing is locked."""
    return sorted(_seats(home.agents), key=lambda seat: seat.name) if home.agents.is_dir() else []


def living(home: Home) -> list[Live]:
    """Who sits where at this moment, the one that sat down last first."""
    return [live for _, live in sorted(_lives(home), key=lambda pair: pair[0], reverse=True)]


def bereaved(home: Home) -> list[Live]:
    """Who sat where and was killed, while the client that was served goes on without another agent."""
    served = {(live.client_pid, live.client_start) for live in living(home)}
    ended = [live for _, live in _announced(home) if not alive(live.pid, live.start)]
    orphans = {
        (x.client_pid, x.client_start): x for x in ended if x.client_pid and alive(x.client_pid, x.client_start)
    }
    return [live for client, live in orphans.items() if client not in served]


def session_of(home: Home, pids: Iterable[int]) -> Live | None:
    """The living session a process runs inside: that of the first of `pids` (its ancestors, the parent first) that is
    the client of one. None outside of every session.
    """
    clients: dict[int, Live] = {}
    for live in living(home):
        clients.setdefault(live.client_pid, live)
    for pid in pids:
        inside = clients.get(pid)
        if inside is not None and alive(pid, inside.client_start):
            return inside
    return None


class _Directory:
    """All seats, with the lock under which they are given out."""

    def __init__(self, home: Home) -> None:
        self._root = private_dir(home.agents)
        self._lock = FileLock(self._root / _LOCK)
        self.seats: list[Seat] = []

    def __enter__(self) -> _Directory:
        if not _patiently(self._lock, time.monotonic() + _TAKING_S):
            who = holder(self._lock.path)
            raise ConfigError(f"{self._root} is locked by process {who[0] if who else '?'} (end it)")
        self.seats = sorted(_seats(self._root), key=Seat.used, reverse=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def settle(self, seat: Seat) -> Seat:
        """A seat that was just locked, under a name that no other living one has: theirs came first."""
        others = [other for other in self.seats if other is not seat]
        if any(other.name == seat.name and holder(other.lock.path) for other in others):
            try:
                seat.renamed(_free_name(seat.name, {other.name for other in others}))
            except BusError:
                seat.lock.release()
                raise
        return seat

    def make(self, base: str, project: str, kind: Kind) -> Seat:
        """A new seat, locked, under the first free name."""
        name = _free_name(base, {seat.name for seat in self.seats})
        folder = private_dir(self._root / secrets.token_hex(8))
        seat = Seat(folder, name, project, kind, time.time_ns() // 1_000_000, base if base != name else "")
        seat._save()
        seat.lock.acquire()
        return seat


def _patiently(lock: FileLock, end: float) -> bool:
    """The lock, waited for until `end` on the monotonic clock."""
    while not lock.acquire():
        if time.monotonic() >= end:
            return False
        time.sleep(_POLL_S)
    return True


def folder_name(project: str) -> str:
    """The last part of a path or of a git remote."""
    parts = [part for part in re.split(r"[/\\:]+", project) if part]
    return parts[-1].removesuffix(".git") if parts else ""


def _named_after(seat: Seat, base: str, numbered: bool) -> bool:
    """Whether this seat was given to one who asked for `base`; with `numbered` only under a name with a number."""
    if _numbered(seat.name, base):
        return True
    return not numbered and (base in (seat.name, seat.asked) or _numbered(seat.asked, base))


def _numbered(name: str, base: str) -> bool:
    """Whether a name is what `_free_name` makes of another."""
    head, _, number = name.rpartition("-")
    return number.isdecimal() and head == base[: names.NAME_MAX - len(number) - 1].rstrip("-._")


def _free_name(base: str, used: set[str]) -> str:
    name, number = base, 1
    while name in used:
        number += 1
        name = f"{base[: names.NAME_MAX - len(str(number)) - 1].rstrip('-._')}-{number}"
    return name


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _seats(root: Path) -> Iterator[Seat]:
    for folder in root.iterdir():
        seat = _read(folder)
        if seat is not None:
            yield seat


def _read(folder: Path, lock: FileLock | None = None) -> Seat | None:
    """The seat in a folder; None for a folder that was never finished, or is none of ours."""
    wanted: dict[str, Callable[..., Any]] = {"name": str, "project": str, "kind": str, "created": int, "asked": str}
    kept = _json(folder / _SEAT, wanted | dict.fromkeys(_OPTIONAL, str))
    if kept is None or kept["kind"] not in get_args(Kind) or not names.NAME.match(kept["name"]):
        return None
    seat = Seat(folder, **kept)
    seat.lock = lock or seat.lock
    return seat


def _lives(home: Home) -> Iterator[tuple[int, Live]]:
    """Those who are there, each with the time of its announcement."""
    yield from ((at, live) for at, live in _announced(home) if alive(live.pid, live.start))


def _announced(home: Home) -> Iterator[tuple[int, Live]]:
    """The same with those who died without taking it back."""
    try:
        files = [folder / _LIVE for folder in home.agents.iterdir()]
    except OSError:
        return
    wanted: dict[str, Callable[..., Any]] = {f.name: int if "pid" in f.name else str for f in fields(Live)}
    for file in files:
        kept = _json(file, wanted)
        if kept is not None:
            yield _changed(file), Live(**kept)


def _json(path: Path, wanted: dict[str, Callable[..., Any]]) -> dict[str, Any] | None:
    """The values of a file of ours; None when it is not there or not as we write it."""
    try:
        kept = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(kept, dict):
        return None
    kept = dict.fromkeys(_OPTIONAL, "") | kept
    if any(type(kept.get(name)) is not kind for name, kind in wanted.items()):
        return None
    return {name: kept[name] for name in wanted}
