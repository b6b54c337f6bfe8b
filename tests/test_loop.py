"""The shell of the link against a broker process: what is on disk before it is told, and what a bad disk costs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.book import SettleRow, Write
from agent.calls import Clock
from agent.effects import News, Settled
from agent.link import Link, Profile
from agent.loop import Loop
from agent.outbox import Outbox, StoredRow
from bus.config import load
from bus.errors import Code, LocalError, StoreError, Unreachable
from bus.private import private_dir
from tests.live.test_mcp_bed import Bed, bed, until

pytestmark = pytest.mark.timeout(60)


class Fickle(Outbox):
    """A disk that refuses when told to."""

    refuse = False
    blind = False  # what was written cannot be read
    settles: Callable[[], None] | None = None  # called when a reply was written

    def apply(self, writes: Sequence[Write]) -> None:
        if writes and self.refuse:
            raise StoreError("agent.db: no room (make some)", full=True)
        super().apply(writes)
        if self.settles is not None and any(isinstance(write, SettleRow) for write in writes):
            self.settles()

    def row(self, row: int) -> StoredRow:
        self._look()
        return super().row(row)

    def find(self, row: int) -> StoredRow | None:
        self._look()
        return super().find(row)

    def _look(self) -> None:
        if self.blind:
            raise StoreError("agent.db: cannot read: disk I/O error (check the disk)")


Make = Callable[..., Loop]


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bed]:
    with bed(tmp_path / "bus") as made:
        made.stop_mark()
        yield made


@pytest.fixture
def make(bus: Bed, tmp_path: Path) -> Iterator[Make]:
    loops: list[Loop] = []

    def one(name: str, path: str = "", **more: Any) -> Loop:
        private_dir(tmp_path / "seats")
        outbox = Fickle.open(tmp_path / "seats" / f"{path or name}.db")
        profile = Profile("hold", f"inst-{len(loops)}", name)
        loops.append(Loop(bus.home, load(bus.home, {}), outbox, profile, **more))
        loops[-1].start()
        return loops[-1]

    yield one
    for loop in loops:
        loop.stop(leave=True, timeout=0.2)


def connected(loop: Loop) -> Loop:
    until(lambda: loop.status().connected)
    return loop


def test_a_request_is_on_disk_when_submit_returns_and_settled_by_the_broker(make: Make) -> None:
    loop = connected(make("alice"))
    row, ident = loop.submit("send", {"to": ["alice"]}, b"to myself")
    assert loop.call(lambda _link, _now: loop.outbox.row(row).id).result() == ident
    settled = loop.settled(row).result(5)
    assert settled.code == Code.OK and settled.row == row
    assert loop.settled(row).result(5) == settled  # again, from the disk
    until(lambda: loop.call(lambda link, _now: len(link.inbox.waiting())).result() == 1)


def test_what_cannot_be_sent_is_refused_and_nothing_is_written(make: Make) -> None:
    loop = connected(make("alice"))
    with pytest.raises(LocalError):
        loop.submit("send", {"to": ["x" * 5000]}, b"x")
    assert loop.call(lambda link, _now: link.book.last).result() == 0


def test_rows_written_while_no_broker_runs_go_out_in_order_when_one_does(make: Make, bus: Bed) -> None:
    loop = connected(make("alice"))
    bus.kill()
    until(lambda: not loop.status().connected)
    rows = [loop.submit("state.set", {"key": f"k{n}"}, b"1")[0] for n in range(100)]
    late = [loop.settled(row) for row in rows]
    asked = loop.asking("state.list", {"prefix": "k"}, 20)
    assert not any(future.done() for future in late)
    bus.up()
    assert [future.result(15).row for future in late] == rows
    assert len(asked.result(5).rows) <= 100 and asked.result().code in (Code.OK, Code.NO_CONTENT)
    assert len(loop.ask("state.list", {"prefix": "k"}, 5).rows) == 100


def test_a_query_that_nobody_answers_ends_in_time(make: Make, bus: Bed) -> None:
    loop = connected(make("alice"))
    bus.kill()
    begun = time.monotonic()
    answer = loop.ask("whoami", {}, 0.5)
    assert answer.code == Code.BUSY and answer.text and 0.4 < time.monotonic() - begun < 2


def test_a_stopped_bus_is_waited_for_and_named(make: Make, bus: Bed) -> None:
    bus.kill()
    loop = make("alice")
    until(lambda: "talkbus down" in loop.status().reason)
    bus.up()
    connected(loop)


def test_a_disk_that_refuses_fails_the_caller_and_nothing_is_sent_or_shown(make: Make, bus: Bed) -> None:
    loop, peer = connected(make("alice")), connected(make("bob"))
    peer.submit("send", {"to": ["alice"]}, b"hello")
    until(lambda: loop.call(lambda link, _now: link.inbox.waiting()).result())
    disk = loop.outbox
    assert isinstance(disk, Fickle)

    def offer(link: Link, now: int) -> list[str]:
        return [letter.key for letter in link.inbox.offer(now, link.inbox.waiting(), "test")]

    disk.refuse = True
    with pytest.raises(StoreError):
        loop.call(offer).result()
    with pytest.raises(StoreError):
        loop.submit("send", {"to": ["bob"]}, b"never")
    disk.refuse = False
    until(lambda: loop.call(lambda link, _now: link.inbox.waiting()).result())
    assert len(loop.call(offer).result()) == 1
    assert loop.settled(loop.submit("send", {"to": ["bob"]}, b"now")[0]).result(5).code == Code.OK
    until(lambda: peer.call(lambda link, _now: link.inbox.waiting()).result())
    bodies = peer.call(lambda link, _now: [letter.msg.body for letter in link.inbox.waiting()]).result()
    assert bodies == [b"now"]


def fickle(loop: Loop) -> Fickle:
    assert isinstance(loop.outbox, Fickle)
    return loop.outbox


def test_who_waits_for_a_row_that_is_on_disk_hears_its_reply_however_the_disk_fares_meanwhile(make: Make) -> None:
    loop = connected(make("alice"))
    disk = fickle(loop)
    disk.blind = True
    row, _ = loop.submit("state.set", {"key": "k"}, b"1")  # on disk; to send it, it has to be read
    early = loop.settled(row)
    until(lambda: not loop.status().connected)
    late = loop.settled(row)  # the disk is known to fail
    assert not early.done() and not late.done()
    disk.blind = False
    assert early.result(15).code == late.result(15).code == Code.OK
    disk.blind = True
    again = loop.settled(row)
    time.sleep(0.3)
    assert not again.done()
    disk.blind = False
    assert again.result(15).code == Code.OK


def test_a_reply_that_is_on_disk_is_found_there_when_the_news_of_it_was_lost(make: Make) -> None:
    loop = connected(make("alice"))

    def failing(*_: object) -> None:
        del loop._send  # type: ignore[attr-defined]
        raise StoreError("agent.db: cannot read: disk I/O error (check the disk)")

    def settled() -> None:
        fickle(loop).settles = None
        loop._send = failing  # type: ignore[assignment]

    fickle(loop).settles = settled
    row, _ = loop.submit("state.set", {"key": "k"}, b"1")
    assert loop.settled(row).result(15).code == Code.OK
    assert fickle(loop).settles is None


def test_waiters_that_gave_up_or_were_answered_do_not_keep_the_loop_from_ending(make: Make, bus: Bed) -> None:
    loop = connected(make("alice"))
    bus.kill()
    row, _ = loop.submit("state.set", {"key": "k"}, b"1")
    answered, given_up, waiting = (loop.settled(row) for _ in range(3))
    until(lambda: loop.call(lambda _link, _now: len(loop._waiters.get(row, [])) == 3).result())
    answered.set_result(Settled(row, 200, {}, ""))
    assert given_up.cancel()
    died: list[threading.ExceptHookArgs] = []
    former, threading.excepthook = threading.excepthook, died.append
    try:
        loop.stop(leave=True)
    finally:
        threading.excepthook = former
    assert not died
    with pytest.raises(Unreachable):
        waiting.result(1)
    with pytest.raises(StoreError):
        loop.outbox.recent(1)  # it was closed, the last step of the end


def test_a_call_that_somebody_else_has_answered_costs_the_others_nothing(make: Make) -> None:
    loop = connected(make("alice"))
    gate = threading.Event()
    first = loop.call(lambda _link, _now: gate.wait(5))
    strange, last = loop.call(lambda _link, _now: 1), loop.call(lambda _link, _now: 2)
    strange.set_result(0)
    gate.set()
    assert first.result(5) and last.result(5) == 2
    assert loop.status().connected


def test_a_function_that_fails_costs_its_caller_an_error_and_the_loop_lives(make: Make) -> None:
    loop = connected(make("alice"))

    def wrong(_link: Link, _now: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(StoreError, match="ZeroDivisionError"):
        loop.call(wrong).result(5)
    connected(loop)
    assert loop.ask("whoami", {}, 5).code == Code.OK


def test_a_cancelled_call_is_not_run(make: Make) -> None:
    loop = connected(make("alice"))
    gate, ran = threading.Event(), []
    first = loop.call(lambda _link, _now: gate.wait(5))
    second = loop.call(lambda _link, _now: ran.append(1))
    assert second.cancel()
    gate.set()
    first.result(5)
    loop.call(lambda _link, _now: None).result(5)
    assert not ran


def test_stop_says_goodbye_and_fails_who_waits(make: Make) -> None:
    alice, bob = connected(make("alice")), connected(make("bob"))
    begun = time.monotonic()
    bob.stop(leave=True)
    assert time.monotonic() - begun < 0.5
    with pytest.raises(Unreachable):
        bob.submit("send", {"to": ["alice"]}, b"late")
    rows = alice.ask("peers", {"all": True}, 5).rows
    assert [v["presence"] for v, _ in rows if v["name"] == "bob"] == ["gone"]
    bob.stop(leave=True)


def test_stop_without_a_broker_is_quick_and_fails_waiters(make: Make, bus: Bed) -> None:
    loop = connected(make("alice"))
    bus.kill()
    row, _ = loop.submit("send", {"to": ["alice"]}, b"x")
    waiter, asked = loop.settled(row), loop.asking("whoami", {}, 60)
    begun = time.monotonic()
    loop.stop(leave=True)
    assert time.monotonic() - begun < 1.0
    assert asked.result(1).code == Code.BUSY
    with pytest.raises(Unreachable):
        waiter.result(1)


def test_news_is_told_after_the_commit(make: Make) -> None:
    found: list[tuple[int, int | None]] = []
    box: list[Loop] = []

    def heard(news: News) -> None:
        if isinstance(news, Settled):
            found.append((news.row, box[0].outbox.row(news.row).code))

    box.append(make("alice", on_news=heard))
    loop = connected(box[0])
    loop.settled(loop.submit("state.set", {"key": "k"}, b"1")[0]).result(5)
    until(lambda: found == [(1, Code.OK)])


def test_idle_it_sleeps(make: Make) -> None:
    loop = connected(make("alice"))
    time.sleep(0.3)
    turns, turn = [0], loop._turn

    def counted() -> None:
        turns[0] += 1
        turn()

    loop._turn = counted  # type: ignore[method-assign]
    time.sleep(1.5)
    assert turns[0] <= 4


def test_the_clock_never_runs_backwards_and_follows_the_wall_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, steady = [10**18], [5 * 10**9]
    monkeypatch.setattr(time, "time_ns", lambda: wall[0])
    monkeypatch.setattr(time, "monotonic_ns", lambda: steady[0])
    clock = Clock()
    assert clock() == 10**12
    wall[0] -= 3600 * 10**9
    steady[0] += 10**9
    assert clock() == 10**12 + 1000  # set back: it goes on
    wall[0] = 10**18 + 7200 * 10**9
    assert clock() == 10**12 + 7_200_000  # woken from sleep
