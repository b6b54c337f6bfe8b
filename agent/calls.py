"""Functions other threads hand to the thread of the link, with the futures of their results, and its clock.

A result is given out only after `committed()`: what somebody was told must be on the disk. It must not know links
beyond passing them on.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from agent.link import Link
from bus.errors import BusError, StoreError

T = TypeVar("T")
_AHEAD_MS = 1000


class Clock:
    """Ms since 1970 that never run backwards: steady, but catching up with the wall after a sleep."""

    def __init__(self) -> None:
        self._offset = time.time_ns() // 1_000_000 - time.monotonic_ns() // 1_000_000

    def __call__(self) -> int:
        steady = time.monotonic_ns() // 1_000_000 + self._offset
        ahead = time.time_ns() // 1_000_000 - steady
        if ahead > _AHEAD_MS:
            self._offset += ahead
            steady += ahead
        return steady


class Calls:
    """A queue with many writers and one reader, who may poll `fileno()` to be woken."""

    def __init__(self) -> None:
        self._queue: deque[tuple[Callable[[Link, int], Any], Future[Any]]] = deque()
        self._running: Future[Any] | None = None
        self._done: list[tuple[Future[Any], Any]] = []
        self._near, self._far = socket.socketpair()
        for end in (self._near, self._far):
            end.setblocking(False)
        self._lock = threading.Lock()
        self._closed: BusError | None = None

    def __bool__(self) -> bool:
        return bool(self._queue)

    def put(self, fn: Callable[[Link, int], T]) -> Future[T]:
        """Have it run; from any thread. Fails at once after close()."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed is not None:
                future.set_exception(self._closed)
                return future
            self._queue.append((fn, future))
        self.wake()
        return future

    def wake(self) -> None:
        """End the reader's wait; from any thread."""
        with self._lock:
            if self._closed is None:
                try:
                    self._far.send(b"!")
                except BlockingIOError:
                    return  # it was woken often enough

    def fileno(self) -> int:
        """What becomes readable by wake()."""
        return self._near.fileno()

    def woken(self) -> None:
        """The reader is awake."""
        try:
            while len(self._near.recv(4096)) == 4096:
                continue
        except BlockingIOError:
            return

    def run(self, link: Link, now: int) -> None:
        """Run what waits. A BusError is its caller's alone; StoreError and what nobody expected end the batch."""
        while self._queue:
            fn, future = self._queue.popleft()
            if future.done() or not future.set_running_or_notify_cancel():
                continue
            self._running = future
            try:
                self._done.append((future, fn(link, now)))
            except StoreError:
                raise
            except BusError as error:
                if not future.done():
                    future.set_exception(error)
            self._running = None

    def committed(self) -> None:
        """The batch is on the disk."""
        done, self._done = self._done, []
        for future, value in done:
            if not future.done():  # or those behind it would never hear
                future.set_result(value)

    def failed(self, error: BusError) -> None:
        """The batch is not, and nothing of it happened."""
        done, self._done = self._done, []
        if self._running is not None:
            done.append((self._running, None))
            self._running = None
        for future, _ in done:
            if not future.done():
                future.set_exception(error)

    def refuse(self, error: BusError) -> None:
        """Nothing can be done for those who wait."""
        while self._queue:
            _, future = self._queue.popleft()
            if not future.done() and future.set_running_or_notify_cancel():
                future.set_exception(error)

    def close(self, error: BusError) -> None:
        """Refuse everything, from now on too."""
        with self._lock:
            self._closed = error
        self.refuse(error)
        self._near.close()
        self._far.close()
