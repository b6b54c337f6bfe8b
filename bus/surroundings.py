"""What is around the broker's loop in its process: clock, signals, log, and the limits of the system.

Knows nothing of the broker.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

OPEN_FILES = 65_536


class Clock:
    """ms since 1970. Never runs backwards: where the wall clock was set back it goes on from where it was."""

    def __init__(self) -> None:
        self._now = time.time_ns() // 1_000_000
        self._mono = time.monotonic_ns() // 1_000_000

    def __call__(self) -> int:
        mono = time.monotonic_ns() // 1_000_000
        self._now = max(time.time_ns() // 1_000_000, self._now + mono - self._mono - 1)
        self._mono = mono
        return self._now


class Wake:
    """SIGTERM and SIGINT as something a poller sees. Elsewhere than in the main thread it never comes."""

    def __init__(self) -> None:
        self.stopping = False
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._former: dict[signal.Signals, Any] = {}
        self._former_fd = -1

    def __enter__(self) -> Wake:
        if threading.current_thread() is threading.main_thread():
            self._former_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)
        if self._former:
            signal.set_wakeup_fd(self._former_fd)
        self._read.close()
        self._write.close()

    def fileno(self) -> int:
        """For a poller."""
        return self._read.fileno()

    def drain(self) -> None:
        """Call it when the descriptor is readable."""
        with contextlib.suppress(BlockingIOError):
            while self._read.recv(64):
                pass

    def _stop(self, _number: int, _frame: object) -> None:
        self.stopping = True


def log_to_stderr(level: str) -> None:
    """Log to stderr from `level` up, unless somebody has seen to it already."""
    root = logging.getLogger("talkbus")
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        root.addHandler(handler)
    root.setLevel(level.upper())


def be_private_and_wide() -> None:
    """Files of SQLite are made by the umask; a connection costs a descriptor."""
    if sys.platform == "win32":
        return
    import resource

    os.umask(0o077)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
