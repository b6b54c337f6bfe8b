"""The folder in which finished texts wait for the client's hooks, and what the hooks say in it.

`<maildirs>/<client pid>-<start token>/`, one per client process, kept over `/clear`:

    tmp/ new/ cur/ done/    a text is written in tmp, waits in new, is claimed by a rename into cur, and lies in done
                            once it was printed; of several who want it one wins, and the one who lost sees nothing
    agent, told             pid of the agent, so that a hook can tell the user when it has died; and that it did
    activity                what the session is doing, written by the hooks
    bell                    a FIFO: the agent holds it open and rings it, the waiter of rewake.sh reads it
    waiter                  pid and start of the one who waits, written by it
    native                  there while the session's own inbox works: then nobody needs to wait

A text's name sorts by time and says what a shell needs to know without reading:
`<ms>.<kind>.<octets>[.<until>].<nonce>`. From the second `until` (since 1970) on no hook takes the text, for an agent
that is stopped or dead cannot take it back; octets is the length of the file's first line. That line is the text as a
JSON string in ASCII, so that a hook only puts words around it; the rest of the file is the text as it is.

A printed text was not read for that: "done" is a weaker proof than the transcript's. Must not know messages, the
ledger, nor how a text was made.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

from bus import processes
from bus.private import private_dir

Kind = Literal["task", "note"]
Doing = Literal["busy", "idle", "asking", "ended"]

TEXT_MAX = 9_000  # UTF-16 units; above 10,000 the client shows the model a preview only
FOLDERS = ("tmp", "new", "cur", "done")
_NAME = re.compile(r"\d{15}\.(task|note)\.\d+(?:\.\d+)?\.[0-9a-f]{12}")
_CLAIM = re.compile(rf"({_NAME.pattern})\.(\d{{1,10}})")
_DONE = re.compile(rf"({_NAME.pattern})(?:\.\d{{1,10}}|(\.noticed))?")


class Fate(Enum):
    """What became of a text that was put into a box."""

    WAITING = "waiting"  # nobody took it; it can be withdrawn
    CLAIMED = "claimed"  # somebody living is showing it
    PRINTED = "printed"  # it was handed to the client
    NOTICED = "noticed"  # only a notice of it could be given; nobody has seen the text
    LOST = "lost"  # whoever took it died over it: it may have been shown, or not
    GONE = "gone"  # withdrawn, or never there


@dataclass(frozen=True, slots=True)
class Activity:
    """What the hooks saw last: busy, idle, asking (the user is wanted) or ended; `at` in ms since 1970."""

    doing: Doing
    event: str
    at: int


class Box:
    """Four folders by which texts change hands. The methods may raise OSError when the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> Box:
        """Make the folders, private. ConfigError when they cannot be, or are somebody else's."""
        private_dir(self.path)
        for name in FOLDERS:
            private_dir(self.path / name)
        return self

    def put(self, text: str, kind: Kind, now: int, until: int = 0) -> str:
        """Have a text wait; its name. `now` in ms since 1970 orders texts, also those of one millisecond.

        From the second of `until` on, in ms since 1970, no hook shows it; 0 is for ever.
        ValueError when it is too long to be shown whole.
        """
        if len(text.encode("utf-16-le", "surrogatepass")) > 2 * TEXT_MAX:
            raise ValueError(f"a text for a hook has at most {TEXT_MAX} characters")
        quoted = json.dumps(text, ensure_ascii=True).encode("ascii")
        plain = text.encode("utf-8", "replace")
        taken = [int(name[:15]) for name in self._names("new")]
        at = max(now, taken[-1] + 1) if taken else now
        ends = f"{until // 1000}." if until else ""
        name = f"{at:015d}.{kind}.{len(quoted)}.{ends}{secrets.token_hex(6)}"
        temp = self.path / "tmp" / name
        try:
            with open(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(quoted + b"\n" + plain)
            os.rename(temp, self.path / "new" / name)
        except OSError:
            with suppress(OSError):
                temp.unlink()
            raise
        return name

    def withdraw(self, name: str) -> bool:
        """Take a text back before anybody claims it. True: nobody has seen it, nor will. False: ask `fate`."""
        try:
            os.rename(self.path / "new" / name, self.path / "tmp" / name)
        except FileNotFoundError:
            return False
        with suppress(OSError):
            (self.path / "tmp" / name).unlink()
        return True

    def claim(self, name: str) -> Path | None:
        """Take a waiting text, for one who shows it from Python; None when somebody else was first."""
        to = self.path / "cur" / f"{name}.{os.getpid()}"
        try:
            os.rename(self.path / "new" / name, to)
        except FileNotFoundError:
            return None
        return to

    def finish(self, claim: Path, shown: bool = True) -> None:
        """A claimed text was handed over (`shown`), or only a notice of it was."""
        name = claim.name.rpartition(".")[0]
        os.rename(claim, self.path / "done" / (name if shown else f"{name}.noticed"))

    def fate(self, name: str) -> Fate:
        """What became of a text."""
        # In the order in which it moves, so that it cannot slip by; twice, for one that was just claimed.
        for _ in range(2):
            if os.path.exists(self.path / "new" / name):
                return Fate.WAITING
            for _claim, claimed, pid in self._claims():
                if claimed == name:
                    # A pid of our time: claims are seconds old, so pids given out again do not matter here.
                    return Fate.CLAIMED if processes.start_time(pid) else self._done(name) or Fate.LOST
            done = self._done(name)
            if done is not None:
                return done
        return Fate.GONE

    def _done(self, name: str) -> Fate | None:
        noticed = [is_notice for _, done, is_notice in self._finished() if done == name]
        return None if not noticed else Fate.NOTICED if noticed[0] else Fate.PRINTED

    def tell_taken(self, name: str) -> None:
        """For who typed this text: it is proven that the model was given it, so it stands in no input line."""
        (self.path / "taken").write_text(name, "ascii")

    def was_taken(self, name: str) -> bool:
        """Whether that was told of this text, the last one that it was told of."""
        try:
            return (self.path / "taken").read_text("ascii") == name
        except (OSError, ValueError):
            return False

    def forget(self, name: str) -> None:
        """Its fate is settled: remove what is left of it."""
        for path, done, _ in self._finished():
            if done == name:
                path.unlink(missing_ok=True)
        for claim, claimed, _ in self._claims():
            if claimed == name:
                claim.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Every text in the box, in order: after a crash of the agent, what it has to ask the fate of."""
        found = set(self._names("new")) | {name for _, name, _ in self._claims()}
        found |= {name for _, name, _ in self._finished()}
        return sorted(found)

    def waiting(self) -> list[str]:
        """The names of what nobody has claimed, in order."""
        return self._names("new")

    def text(self, name: str) -> str:
        """The text of a name, wherever it is by now; "" when it is gone. To see what a former life had put there."""
        taken = [(path, known) for path, known, _ in (*self._claims(), *self._finished())]
        for path in (self.path / "new" / name, *(path for path, known in taken if known == name)):
            with suppress(OSError, ValueError):
                return body(path)
        return ""

    def _names(self, folder: str) -> list[str]:
        return sorted(name for name in _listed(self.path / folder) if _NAME.fullmatch(name))

    def _claims(self) -> Iterator[tuple[Path, str, int]]:
        for entry in _listed(self.path / "cur"):
            found = _CLAIM.fullmatch(entry)
            if found:
                yield self.path / "cur" / entry, found[1], int(found[3])

    def _finished(self) -> Iterator[tuple[Path, str, bool]]:
        for entry in _listed(self.path / "done"):
            found = _DONE.fullmatch(entry)
            if found:
                yield self.path / "done" / entry, found[1], found[3] is not None


class Maildir:
    """The folder of one client process, as its agent sees it. `box` is the hooks'."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.box = Box(path)
        self._bell = -1

    @staticmethod
    def place(maildirs: Path, pid: int, start: str) -> Path:
        """Where the folder of a client lies."""
        return maildirs / f"{pid}-{start}"

    @classmethod
    def open(cls, maildirs: Path, pid: int, start: str) -> Maildir:
        """Make or take over the folder of the client `pid`, started at `start`, for this process as its agent.

        What former processes of that pid left is removed first. ConfigError when the folder cannot be made.
        """
        private_dir(maildirs)
        made = cls(cls.place(maildirs, pid, start))
        for other in _listed(maildirs):
            if other.startswith(f"{pid}-") and other != made.path.name:
                _remove(maildirs / other)
        made.box.make()
        (made.path / "agent").write_text(f"{os.getpid()}\n", "ascii")
        (made.path / "told").unlink(missing_ok=True)
        made._hang_bell()
        return made

    def kept(self) -> Maildir:
        """This folder; made again where it is gone, as at log-out. ConfigError or OSError when that cannot be."""
        if (self.path / "agent").exists():
            return self
        self.close(remove=False)
        pid, _, start = self.path.name.partition("-")
        return Maildir.open(self.path.parent, int(pid), start)

    def _hang_bell(self) -> None:
        if sys.platform == "win32":
            return
        bell = self.path / "bell"
        with suppress(FileExistsError):
            os.mkfifo(bell, 0o600)
        # For reading too: so the open does not wait for a reader, and a ring is kept until somebody hears it.
        self._bell = os.open(bell, os.O_RDWR | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))

    def put(self, text: str, kind: Kind, now: int, until: int = 0) -> str:
        """As Box.put; a task rings the bell."""
        name = self.box.put(text, kind, now, until)
        if kind == "task":
            self.ring()
        return name

    def ring(self) -> None:
        """Have the waiter look."""
        if self._bell >= 0:
            with suppress(BlockingIOError):  # full: it has enough to hear
                os.write(self._bell, b"\n")

    def native(self, works: bool) -> None:
        """Whether the session's own inbox works: if so, the waiter is sent away and no other one waits."""
        mark = self.path / "native"
        if works and not mark.exists():
            mark.touch(0o600)
            self.ring()
        elif not works:
            mark.unlink(missing_ok=True)

    @property
    def waiter(self) -> bool:
        """Whether somebody waits for tasks now, so that an idle session can be woken."""
        try:
            words = (self.path / "waiter").read_text("ascii").split()
        except (OSError, ValueError):
            return False
        return bool(words) and words[0].isdecimal() and processes.start_time(int(words[0])) is not None

    def activity(self) -> Activity | None:
        """What the hooks wrote last; None before the first one, or in the middle of a write."""
        path = self.path / "activity"
        try:
            at = int(os.stat(path).st_mtime * 1000)
            words = path.read_text("ascii").split()
        except (OSError, ValueError):
            return None
        if not words:
            return None
        for doing in ("busy", "idle", "asking", "ended"):
            if words[0] == doing:
                return Activity(doing, words[1] if len(words) > 1 else "", at)
        return None

    def hooked(self) -> bool:
        """Whether a hook was ever heard from: else this path leads nowhere."""
        return (self.path / "activity").exists()

    def close(self, remove: bool = True) -> None:
        """Let go. With `remove`, the session has ended and nothing in the folder is wanted any more."""
        if self._bell >= 0:
            os.close(self._bell)
            self._bell = -1
        if remove:
            _remove(self.path)


def sweep(maildirs: Path) -> int:
    """Remove the folders of clients that live no more; how many. At the start of an agent, now and then."""
    removed = 0
    for name in _listed(maildirs):
        pid, _, start = name.partition("-")
        if pid.isascii() and pid.isdecimal() and start and not processes.alive(int(pid), start):
            _remove(maildirs / name)
            removed += 1
    return removed


def body(path: Path) -> str:
    """The text in a file of a box; ValueError when it is none of ours."""
    quoted, found, plain = path.read_bytes().partition(b"\n")
    if not (found and quoted.startswith(b'"') and quoted.endswith(b'"')):
        raise ValueError(f"{path.name} is no text of ours")
    return plain.decode("utf-8")


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _remove(path: Path) -> None:
    """A folder of ours, and never what a link in its place leads to."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
