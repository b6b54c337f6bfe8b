"""The outbox's side of a link: what is sent, what is sent again, and what a reply settles."""

from __future__ import annotations

import hashlib

import pytest

from agent.book import Book, PutBook, SettleRow
from agent.effects import Batch, SendRow, Settled
from agent.sending import Sending
from bus import wire
from bus.errors import RemoteError
from bus.wire import Err, Rep


class Rig:
    """Rows `first`…`last`, connected, everything sent that may be."""

    def __init__(self, rows: int = 0, first: int = 1, base: int = 0) -> None:
        self.book = Book("a" * 32, base=base, first=first, last=first - 1)
        self.batch = Batch()
        self.sending = Sending(self.book, lambda: self.batch)
        self.sending.connected(0, first - 1 - base)
        for _ in range(rows):
            self.sending.add(0, "status", {}, b"", "i")
        self.flow()

    def flow(self, now: int = 0) -> list[int]:
        """The numbers that go out now."""
        self.sending.flow(now)
        batch, self.batch = self.batch, Batch()
        return [c.q for c in batch.sends if isinstance(c, SendRow)]

    def rep(self, q: int, **more: object) -> list[object]:
        """What a reply writes and tells."""
        self.sending.settle(5, Rep(q, 200, **more))  # type: ignore[arg-type]
        batch, self.batch = self.batch, Batch()
        return [*batch.writes, *batch.news]


def test_at_most_a_window() -> None:
    rig = Rig(70)
    assert rig.sending.sent == wire.OPEN_REQUESTS
    rig.rep(1)
    assert rig.flow() == [65]
    rig.sending.flow(0)
    assert rig.batch.sends == []


def test_floor_and_number_follow_the_base() -> None:
    rig = Rig(first=5, base=3)
    rig.sending.add(0, "status", {}, b"", "i")
    rig.sending.flow(0)
    assert rig.batch.sends == [SendRow(5, 2, 2)]


def test_settled_in_order_only() -> None:
    rig = Rig(3)
    assert rig.rep(2) == [] and rig.book.first == 1
    assert rig.flow() == [1, 2, 3], "a reply was lost"
    assert rig.rep(3) == [] and rig.flow() == [], "what follows says the same"
    assert rig.rep(1) == [SettleRow(1, 200, wire.pack({}), "", 5), Settled(1, 200, {}, "")]
    assert rig.rep(1) == [], "settled once"
    assert rig.rep(9) == [], "never sent"


def test_large_replies() -> None:
    rig = Rig(2)
    body = wire.pack([{"to": ["x" * 5000]}, "text"])
    assert rig.rep(1, result={"large": True}, body=body)[1] == Settled(1, 200, {"to": ["x" * 5000]}, "text")
    for bad in (b"\xc1", wire.pack([1, "t"]), wire.pack({}), wire.pack([{}, 1]), wire.pack([{}])):
        with pytest.raises(RemoteError):
            rig.rep(2, result={"large": True}, body=bad)
    assert rig.book.first == 2
    assert rig.rep(2, result={"large": True})[1] == Settled(2, 200, {"large": True}, "")


def test_out_of_order() -> None:
    rig = Rig(4)
    rig.sending.complaint(0, Err(412, "REQ", 3, want=2))
    assert rig.flow() == [2, 3, 4]
    rig.sending.complaint(0, Err(412, "REQ", 4, want=2))
    assert rig.flow() == [], "the ones behind it say the same"
    rig.rep(1)
    rig.sending.complaint(0, Err(412, "REQ", 4, want=2))
    assert rig.flow() == [2, 3, 4], "after a reply it counts again"
    rig.sending.compare(4, 4)
    rig.sending.complaint(0, Err(412, "REQ", 4, want=9))
    assert rig.flow() == [2, 3, 4], "a want beyond what was sent is none"


def test_conflict_renumbers_from_the_first_row() -> None:
    rig = Rig(4)
    rig.rep(1)
    assert not rig.sending.complaint(0, Err(409, "REQ", 3)), "its turn comes"
    assert rig.sending.complaint(0, Err(409, "REQ", 2))
    assert rig.book.ob == hashlib.blake2b(b"a" * 32 + b"/2", digest_size=16).hexdigest(), "a copy takes the same"
    assert (rig.book.base, rig.book.number(2)) == (1, 1)
    assert rig.batch.writes == [PutBook(rig.book)]
    rig.sending.connected(0, 0)
    assert rig.flow() == [1, 2, 3]


@pytest.mark.parametrize(("code", "retry", "until"), [(429, 500, 500), (503, 1, 10), (503, 10**9, 60_000)])
def test_pause(code: int, retry: int, until: int) -> None:
    rig = Rig(40)
    rig.rep(1)
    rig.sending.complaint(0, Err(code, "REQ", 5, retry=retry))
    assert rig.sending.paused_until == until
    assert rig.flow(until - 1) == []
    rig.sending.compare(40, 4)
    assert rig.flow(until - 1) == [], "a PONG does not end it"
    rig.sending.resume(until - 1)
    rig.sending.resume(until)
    assert rig.sending.paused_until == 0
    assert rig.flow(until) == list(range(5, 34)), "32 open from row 2 on"
    rig.rep(2)
    assert rig.flow(until) == [34, 35], "and one more with each reply"


def test_a_pause_for_a_row_that_is_none() -> None:
    rig = Rig(2)
    rig.sending.complaint(0, Err(429, "REQ", 7, retry=500))
    rig.sending.complaint(0, Err(400, "REQ", 1))
    assert rig.sending.paused_until == 0 and rig.flow() == []


@pytest.mark.parametrize(
    ("sent", "high", "again"),
    [
        (4, 4, [2, 3, 4]),
        (4, 3, [2, 3, 4]),
        (4, 1, [2, 3, 4]),
        (1, 1, []),
        (2, 1, [2, 3, 4]),
        (1, 4, []),
        (4, 2**53, [2, 3, 4]),
    ],
)
def test_barrier(sent: int, high: int, again: list[int]) -> None:
    """Rows 2…4 are open; a PING had been sent after row `sent`."""
    rig = Rig(4)
    rig.rep(1)
    rig.sending.compare(sent, high)
    assert rig.flow() == again


def test_lost_request_behind_an_open_one() -> None:
    rig = Rig(2)
    rig.rep(1)
    rig.rep(2)
    for _ in range(2):
        rig.sending.add(0, "status", {}, b"", "i")
    assert rig.flow() == [3, 4]
    rig.sending.compare(4, 2)
    assert rig.flow() == [3, 4]


def test_welcome() -> None:
    rig = Rig(3)
    assert not rig.sending.stale(0)
    rig.rep(1)
    assert rig.sending.stale(0) and not rig.sending.stale(1) and not rig.sending.stale(99)
    rig.sending.connected(0, 1)
    assert rig.flow() == [2, 3]
    rig.sending.connected(0, 0)
    assert rig.flow() == [1, 2] and rig.book.base == 1, "numbered anew, should nobody have done it before"
    rig.sending.connected(0, 7)
    assert rig.flow() == [1, 2], "a copy went on: the digests tell"
