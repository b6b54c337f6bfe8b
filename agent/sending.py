"""The outbox's side of a link: which rows are on their way, which must go again (PROTOCOL.md §6, §8).

Sans-IO: it reads and changes the book and fills the batch of its link. It knows nothing of deliveries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from agent.book import AddRow, Book, PutBook, SettleRow
from agent.effects import Batch, SendRow, Settled
from bus import wire
from bus.errors import Code, RemoteError


class Sending:
    """Rows in order, at most `wire.OPEN_REQUESTS` open, each settled in order."""

    def __init__(self, book: Book, batch: Callable[[], Batch]) -> None:
        self._book = book
        self._batch = batch
        self.sent = 0  # the highest row sent on this connection
        self.window = wire.OPEN_REQUESTS
        self.paused_until = 0
        self.progress = 0  # when a reply last came
        self._deaf = False  # an answer out of order made us go back; the ones behind it say the same

    def add(self, now: int, op: str, args: dict[str, Any], body: bytes, ident: str) -> int:
        """A new row; it is sent after it is on disk. Its number is the handle of everything later."""
        book = self._book
        if book.unsettled == 0:
            self.progress = now
        book.last += 1
        self._batch().writes.append(AddRow(book.last, ident, op, wire.pack(args), body, now))
        return book.last

    def connected(self, now: int, high: int) -> None:
        """WELCOME: begin again from the lowest unsettled row, under a new outbox id if the broker has forgotten."""
        book = self._book
        if high < book.number(book.first) - 1:
            self.renumber(book.first)
        self.sent = book.first - 1
        self.window = wire.OPEN_REQUESTS
        self.paused_until = 0
        self.progress = now
        self._deaf = False

    def stale(self, high: int) -> bool:
        """Whether the broker's `high` shows that it was restored from an older copy, or made anew."""
        return high < self._book.number(self._book.first) - 1

    def renumber(self, row: int) -> None:
        """The next outbox id, in which `row` is number 1. Rows before it are settled. A copy that comes to this point
        takes the same id, so that rows both have are still done once.
        """
        book = self._book
        seed = f"{book.ob}/{book.number(row)}".encode()
        book.ob, book.base = hashlib.blake2b(seed, digest_size=16).hexdigest(), row - 1
        self._batch().writes.append(PutBook(book))

    def flow(self, now: int) -> None:
        """Send what may be sent."""
        book = self._book
        if now < self.paused_until:
            return
        floor = book.number(book.first)
        while self.sent < book.last and self.sent - book.first + 1 < self.window:
            self.sent += 1
            self._batch().sends.append(SendRow(self.sent, book.number(self.sent), floor))

    def settle(self, now: int, rep: wire.Rep) -> None:
        """REP: in order it settles its row; beyond the lowest unsettled row it shows that a reply was lost."""
        book = self._book
        row = book.row(rep.q)
        if row < book.first or row > self.sent:
            return
        if row > book.first:
            if not self._deaf:
                self._back(book.first)
            return
        result, text = rep.result, rep.text
        if rep.result.get("large") is True and rep.body:
            result, text = _large(rep.body)
        self._deaf = False
        self.progress = now
        self.window = min(wire.OPEN_REQUESTS, self.window + 1)
        book.first = row + 1
        batch = self._batch()
        batch.writes.append(SettleRow(row, rep.code, wire.pack(result), text, now))
        batch.news.append(Settled(row, rep.code, result, text))

    def complaint(self, now: int, err: wire.Err) -> bool:
        """ERR to a REQ. True when the connection must be made anew (another copy used this outbox)."""
        book = self._book
        row = book.row(err.ref)
        if err.code == Code.OUT_OF_ORDER:
            if not self._deaf:
                self._back(book.row(err.want))
        elif err.code == Code.CONFLICT and row == book.first:
            self.renumber(row)
            return True
        elif err.code in (Code.TOO_MANY, Code.BUSY) and book.first <= row <= self.sent:
            self._back(row)
            self.window = 32
            self.paused_until = now + min(max(err.retry, 10), 60_000)
        return False

    def compare(self, sent: int, high: int) -> None:
        """PONG (§8): `sent` was the highest row sent before its PING, `high` is the broker's last number."""
        book = self._book
        done = book.row(high)
        self._deaf = False
        if self.paused_until:
            return
        if book.first <= min(done, sent):
            self._back(book.first)
        elif done < sent:
            self._back(done + 1)

    def resume(self, now: int) -> None:
        """A pause that is over."""
        if self.paused_until and now >= self.paused_until:
            self.paused_until = 0

    def _back(self, row: int) -> None:
        """Send again from `row`."""
        if self._book.first <= row <= self.sent:
            self.sent = row - 1
            self._deaf = True


def _large(body: bytes) -> tuple[dict[str, Any], str]:
    value = wire.unpack(body, wire.BODY_MAX)
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], dict) and isinstance(value[1], str)):
        raise RemoteError(Code.MALFORMED, "a large reply is no [result, text]")
    return value[0], value[1]
