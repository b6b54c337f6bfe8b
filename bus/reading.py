"""Queries the disk answers: the quick ones where they are asked, the slow ones by a thread beside the loop.

Search, history, `why`, the journal and the preview of a pruning may look at much of the disk; the broker's loop does
not wait for them. Knows the store's queries and how a PART looks; it must not know routes beyond their name, nor
touch the broker or its sockets.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import zmq

from bus import wire
from bus.effects import Read
from bus.errors import Code, LocalError, Refused, StoreError
from bus.sockets import Context, Socket
from bus.store import Store

_SLOW = frozenset({"search", "history", "why", "log", "prune"})
WAITING_MAX = 64  # queries; a further one is told to come again
ANSWER_MAX = 16 << 20  # octets of one answer; what is beyond it is left out, and DONE says so
_AHEAD = 64  # PARTs made before the loop took them
_ENDPOINT = "inproc://talkbus.reading"
_CLOSE_POLL_S = 0.01


def slow(read: Read) -> bool:
    """Whether the answer may take long, so that the thread gives it: so may a look through a mailbox's past."""
    if read.what == "inbox":
        return not read.args.get("ids") and read.args.get("unread") is False
    return read.what in _SLOW


class Telling:
    """One answer on its way out: take all of `frames()`, then `code` and `text` are those of its DONE."""

    def __init__(self, store: Store, read: Read, now: int) -> None:
        """`now` in ms since 1970."""
        self.code, self.text = Code.OK, ""
        self._store, self._read, self._now = store, read, now
        self._count = self._left_out = 0

    def frames(self) -> Iterator[list[bytes]]:
        """The frames of each PART. What does not fit a head is left out and counted. StoreError as it comes."""
        octets = 0
        try:
            for value, body in self._store.read(self._read, self._now):
                octets += len(body)
                if octets > ANSWER_MAX and self._count:
                    self.text = f"the answer is cut after {self._count} (ask for fewer at once)"
                    return
                try:
                    frames = wire.encode(wire.Part(self._read.r, value, body))
                except LocalError:
                    self._left_out += 1
                    self.text = f"{self._left_out} left out, too large to be told"
                    continue
                self._count += 1
                yield frames
        except Refused as refused:
            self.code, self.text = refused.code, str(refused)
            return
        if self._read.what == "search":
            done, total = self._store.indexed()
            self.text = self.text or ("" if done >= total else f"{done} of {total} messages are indexed so far")
        if not self._count:
            self.code = Code.NO_CONTENT


class Reader:
    """The thread that reads. `take()` whenever `socket` is readable; `close()` before the context ends."""

    def __init__(self, ctx: Context, store: Store) -> None:
        self._jobs: queue.Queue[tuple[Read | None, int] | None] = queue.Queue(WAITING_MAX)
        self._store = store
        self.sizes: dict[str, int] = {}  # the store's, as of the last measure()
        self.socket: Socket = ctx.socket(zmq.PULL)
        self._out: Socket = ctx.socket(zmq.PUSH)
        self.socket.setsockopt(zmq.RCVHWM, _AHEAD)
        self._out.setsockopt(zmq.SNDHWM, _AHEAD)
        for end in (self.socket, self._out):
            end.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ENDPOINT)
        self._out.connect(_ENDPOINT)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="reading", daemon=True)
        self._thread.start()

    def ask(self, read: Read, now: int) -> bool:
        """Have a query answered; False when too many wait already. `now` in ms since 1970."""
        return self._put((read, now))

    def measure(self) -> None:
        """Have `sizes` brought up to date, when there is time."""
        if self._jobs.empty():
            self._put((None, 0))

    def take(self) -> list[bytes] | None:
        """The next piece of an answer, None when there is none yet.

        [route, b"", signature, head, …] is ready to be sent; [route, r, code, text] is the end, for a DONE; [b""]
        says that `sizes` are new.
        """
        try:
            piece: list[bytes] = self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return piece

    def close(self) -> None:
        """End the thread; an answer under way is cut off."""
        self._closing = True
        while self._thread.is_alive():
            self._put(None)
            while self.take() is not None:
                pass
            self._thread.join(_CLOSE_POLL_S)
        self.socket.close(0)

    def _put(self, job: tuple[Read | None, int] | None) -> bool:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            return False
        return True

    # -- in the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        store: Store | None = None
        while (job := self._jobs.get()) is not None and not self._closing:
            read, now = job
            try:
                store = store or self._store.reader()
                if read is None:
                    self.sizes = store.sizes()
                    self._out.send(b"")
                else:
                    self._answer(store, read, now)
            except StoreError as error:
                # The next query tries again with a new connection.
                if store is not None:
                    store.close()
                    store = None
                if read is not None:
                    self._done(read, Code.BUSY, str(error))
        if store is not None:
            store.close()
        self._out.close(0)

    def _answer(self, store: Store, read: Read, now: int) -> None:
        telling = Telling(store, read, now)
        for frames in telling.frames():
            if self._closing:
                return
            self._out.send_multipart([read.route, b"", *frames])
        self._done(read, telling.code, telling.text)

    def _done(self, read: Read, code: Code, text: str) -> None:
        told: list[Any] = [read.route, b"%d" % read.r, b"%d" % code, wire.clip(text).encode()]
        self._out.send_multipart(told)
