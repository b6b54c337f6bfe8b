"""Which process is which: a pid together with its start time, its ancestors, and a lock held by a living one.

A pid alone proves nothing, for it is given out again; pid and start token together name one process.
Linux is read from /proc, which costs no import and no clock; elsewhere psutil answers.

Knows nothing of brokers or agents.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bus.errors import ConfigError, StoreError

# Off Linux a start time follows corrections of the wall clock. A pid does not come round again that fast.
_CLOCK_SLACK_S = 5.0
_LOCK_BYTE = 1 << 30  # Windows locks are mandatory: lock a byte that no reader of the file ever reads


@dataclass(frozen=True, slots=True)
class _Facts:
    parent: int
    start: str


def start_time(pid: int) -> str | None:
    """A token of the start of `pid`, the same for its whole life and in every process that asks.

    None when there is no such process, or only its zombie.
    """
    facts = _facts(pid)
    return facts.start if facts else None


def alive(pid: int, start: str) -> bool:
    """Whether the very process that `start_time` once described still runs. A zombie does not."""
    now = start_time(pid)
    return now is not None and (now == start or _same_clock(now, start))


def ancestors(pid: int) -> list[int]:
    """The pids above `pid`, its parent first; empty when `pid` is gone."""
    found: list[int] = []
    facts = _facts(pid)
    while facts and facts.parent > 0 and facts.parent not in found:
        found.append(facts.parent)
        facts = _facts(facts.parent)
    return found


class FileLock:
    """One holder per file, over processes and within one; ends with its holder, however that dies.

    The file stays, for removing it would let two hold it. No child that is exec'ed inherits the lock.
    """

    __slots__ = ("_handle", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self, blocking: bool = False) -> bool:
        """True when held now. Without `blocking` it answers at once; with it, it waits without limit.

        ConfigError when the file cannot be made, StoreError when the disk takes no word: then it is not held.
        Holding it already is True.
        """
        if self._handle is not None:
            return True
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        try:
            handle = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise ConfigError(
                f"cannot lock {self.path}: {error.strerror} (make '{self.path.parent}' writable)"
            ) from error
        held = False
        try:
            if _lock(handle, blocking):
                os.ftruncate(handle, 0)
                os.write(handle, f"{os.getpid()} {start_time(os.getpid())}\n".encode())
                held = True
        except OSError as error:
            text = f"cannot lock {self.path}: {error.strerror} (free some disk space, make it writable)"
            raise StoreError(text, full=True) from error
        finally:
            if not held:
                os.close(handle)
        if held:
            self._handle = handle
        return held

    def release(self) -> None:
        """Let go; nothing happens when it is not held."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.ftruncate(handle, 0)
            _unlock(handle)
            os.close(handle)


def holder(path: Path) -> tuple[int, str] | None:
    """Pid and start token of the living process that holds the FileLock at `path`; None when nobody does."""
    try:
        words = path.read_text("ascii").split()
    except (OSError, UnicodeDecodeError):
        return None
    if len(words) != 2 or not words[0].isdecimal():
        return None
    pid, start = int(words[0]), words[1]
    return (pid, start) if alive(pid, start) else None


def _facts(pid: int) -> _Facts | None:
    if pid <= 0:
        return None
    if sys.platform == "linux":
        return _facts_proc(pid)
    return _facts_psutil(pid)


def _facts_proc(pid: int) -> _Facts | None:
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except (OSError, ValueError):
        return None
    # The name in parentheses is the process's own choice and may hold anything: count from the last ')'.
    fields = line[line.rfind(b")") + 2 :].split()
    if len(fields) < 20 or fields[0] in (b"Z", b"X", b"x"):
        return None
    return _Facts(int(fields[1]), f"{_boot()}-{int(fields[19])}")


@cache
def _boot() -> str:
    """Ticks count from boot, so a record that outlived a reboot needs this to be told apart."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii")[:8]
    except OSError:
        return "boot"


def _facts_psutil(pid: int) -> _Facts | None:
    import psutil  # type: ignore[import-untyped]

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            return _Facts(process.ppid(), f"t{process.create_time():.2f}")
    except (psutil.Error, OverflowError):
        return None


def _same_clock(now: str, start: str) -> bool:
    if not (now.startswith("t") and start.startswith("t")):
        return False
    try:
        return abs(float(now[1:]) - float(start[1:])) <= _CLOCK_SLACK_S
    except ValueError:
        return False


if sys.platform == "win32":
    import msvcrt
    import time

    def _lock(handle: int, blocking: bool) -> bool:
        while True:
            os.lseek(handle, _LOCK_BYTE, os.SEEK_SET)
            try:
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            except OSError:
                if not blocking:
                    return False
                time.sleep(0.02)
            else:
                os.lseek(handle, 0, os.SEEK_SET)
                return True

    def _unlock(handle: int) -> None:
        os.lseek(handle, _LOCK_BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    # flock and not lockf: the latter is lost as soon as this process closes any handle of the file,
    # which `holder` does.
    def _lock(handle: int, blocking: bool) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    def _unlock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)
