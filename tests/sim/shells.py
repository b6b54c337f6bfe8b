"""The two ends of the bench: what stands for the broker's process and for an agent's, and the wire between them.

`Hub` keeps the order of the broker's shell (commit, send, answer reads, publish), `Seat` that of the agent's (commit,
connect, send, tell). Both can die at every hand-off. Every command travels as the frames of wire.encode.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.effects import Batch as LinkBatch
from agent.effects import Finished, News, Parked, Parted, SendRow, Settled, Welcomed
from agent.inbox import Letter
from agent.link import Link, Profile
from agent.outbox import Outbox
from bus import wire
from bus.broker import Broker
from bus.core import Settings, Who
from bus.effects import AddMessage, Batch, Event, Push, Read, Recall, Send
from bus.errors import Code, Refused, StoreError
from bus.requests import answer_again
from bus.store import Store

if TYPE_CHECKING:
    from tests.pair import Bench

Item = tuple[Any, list[bytes]]  # a command (or "connected", "lost") and its frames


class Watch:
    """What may be observed on a bench; the simulation's checker overrides it."""

    def up(self, seat: Seat, conn: Conn, command: Any) -> None:
        """A link put a command on its connection."""

    def fed(self, conn: Conn, command: Any) -> None:
        """The broker gets a command."""

    def committed(self, batch: Batch) -> None:
        """A batch of the broker is on disk."""

    def dropped(self) -> None:
        """A batch of the broker was undone or died with it."""

    def down(self, conn: Conn, command: Any) -> None:
        """The broker handed a command to a living connection."""

    def taken(self, seat: Seat, conn: Conn, command: Any) -> None:
        """A link gets a command."""

    def news(self, seat: Seat, news: News) -> None:
        """A link told its application something."""

    def note(self, text: str) -> None:
        """A line of the trace."""


@dataclass(slots=True, eq=False)
class Conn:
    """One connection. `dead`: what is sent is lost; `noticed`: the transport says so to the broker."""

    route: bytes
    seat: Seat
    up: deque[Item] = field(default_factory=deque)
    down: deque[Item] = field(default_factory=deque)
    ready: bool = False
    dead: bool = False
    noticed: bool = True
    hello: wire.Hello | None = None


def completed(push: Push, m: AddMessage) -> wire.Msg:
    """MSG of a push and the message it is about."""
    whole = {
        "tag": m.tag,
        "re": m.re,
        "thread": m.thread,
        "ttl": push.ttl,
        "hops": m.hops,
        "again": push.again,
        "quiet": push.quiet,
    }
    head = (push.n, push.prev, m.id, m.name, m.sender, m.host, push.to, m.kind, m.ts)
    return wire.Msg(*head, **whole, body=m.body)  # type: ignore[arg-type]


class Hub:
    """The broker's shell, without sockets."""

    def __init__(self, bench: Bench, store: Store, settings: Settings) -> None:
        self.bench = bench
        self.store = store
        self.settings = settings
        self.broker: Broker | None = None
        self.full = False
        self.events: list[Event] = []
        self.batches = 0
        self.start()

    def start(self) -> None:
        """A process begins: what it knows is what the disk has."""
        self.broker = Broker(self.store.load(), self.bench.now, self.settings)

    @property
    def up(self) -> bool:
        return self.broker is not None

    @property
    def alive(self) -> Broker:
        assert self.broker is not None, "the broker is down"
        return self.broker

    def feed(self, conn: Conn, count: int = 1) -> None:
        """Let the broker receive the next frames of a connection."""
        bench, broker = self.bench, self.alive
        for _ in range(min(count, len(conn.up))):
            command, frames = conn.up.popleft()
            bench.watch.fed(conn, command)
            if isinstance(command, wire.Hello) and conn.hello is None:
                conn.hello = command
            broker.receive(bench.now, conn.route, conn.seat.who, frames)

    def flush(self, crash: str = "") -> None:
        """One turn of the shell. `crash` says where the process dies: "before" or "after" the commit, or "mid" of the
        sends.
        """
        broker = self.alive
        broker.tick(self.bench.now)
        batch = broker.take()
        if crash == "before":
            self.crash()
            return
        try:
            self.commit(batch)
        except StoreError as error:
            if not error.full:
                raise
            self.bench.watch.dropped()
            broker.undo(self.bench.now, batch, self.store.load())
            batch = broker.take()
            self.commit(batch)
        if crash == "after":
            self.crash()
            return
        count = len(batch.sends)
        self.speak(batch, self.bench.random.randrange(count + 1) if crash == "mid" else count)
        if crash:
            self.crash()
            return
        self.events += batch.events

    def commit(self, batch: Batch) -> None:
        if batch.writes:
            if self.full:
                raise StoreError("no room", full=True)
            self.store.apply(batch.writes)
        self.bench.watch.committed(batch)
        self.batches += 1
        if self.batches % self.bench.check_every == 0:
            self.check()

    def check(self) -> None:
        """Memory is what a restart would find."""
        found, world = self.store.load(), self.alive.world
        assert found == world, f"World is not what the disk has:\n{found}\n{world}"

    def speak(self, batch: Batch, count: int) -> None:
        for effect in batch.sends[:count]:
            match effect:
                case Send():
                    self.post(effect.route, effect.command)
                case Push():
                    self.post(effect.route, self.message(effect))
                case Recall():
                    saved = self.store.recall(effect.ob, effect.q)
                    self.post(effect.route, answer_again(effect.q, saved, effect.digest))
                case Read():
                    self.answer(effect)

    def message(self, push: Push) -> wire.Msg:
        return completed(push, self.store.message(push.sender, push.id))

    def answer(self, read: Read) -> None:
        code, text, parts = Code.OK, "", 0
        try:
            for value, body in self.store.read(read, self.bench.now):
                parts += 1
                self.post(read.route, wire.Part(read.r, value, body))
        except Refused as refused:
            code, text = refused.code, str(refused)
        if code is Code.OK and not parts:
            code = Code.NO_CONTENT
        self.post(read.route, wire.Done(read.r, code, len(self.events), text))

    def post(self, route: bytes, command: Any) -> None:
        frames = wire.encode(command)
        conn = self.bench.conns.get(route)
        if conn is None or (conn.dead and conn.noticed):
            self.alive.lost(self.bench.now, route)
        elif not conn.dead:
            self.bench.watch.down(conn, command)
            conn.down.append((command, frames))

    def crash(self) -> None:
        """The process is gone, and every connection with it; some of what it sent may still arrive."""
        self.bench.watch.dropped()
        self.broker = None
        for conn in list(self.bench.conns.values()):
            self.bench.cut(conn, keep=self.bench.random.randrange(len(conn.down) + 1))


class Seat:
    """The agent's shell, without sockets, and an application that keeps what it was told."""

    def __init__(self, bench: Bench, profile: Profile, who: Who, outbox: Outbox) -> None:
        self.bench = bench
        self.profile = profile
        self.who = who
        self.outbox = outbox
        self.conn: Conn | None = None
        self.results: dict[int, Settled] = {}
        self.parts: dict[int, list[Parted]] = {}
        self.finished: dict[int, Finished] = {}
        self.parked: Parked | None = None
        self.seen: list[News] = []
        self.batches = 0
        self.called = (profile.name, "", "")  # name, mailbox and store, as a seat's file keeps them together
        self.link: Link = self._made()

    @property
    def label(self) -> str:
        return self.profile.inst

    @property
    def state(self) -> str:
        return self.link.state

    def _made(self) -> Link:
        bench = self.bench
        return Link(self.outbox.load(bench.new_id), self.profile, bench.new_row_id, bench.random.random)

    def restart(self) -> None:
        """The process died and begins again: the link knows what the disk has."""
        self.hang_up()
        self.parked = None
        old, (name, mailbox, store) = self.profile, self.called
        known = {"mailbox": mailbox, "store": store, "life": self.bench.new_life()}
        self.profile = Profile(old.mode, old.inst, name, old.hb, old.meta, **known)
        self.link = self._made()

    def hang_up(self) -> None:
        if self.conn is not None:
            self.bench.close(self.conn)
            self.conn = None

    # -- the shell -------------------------------------------------------------------------------------------------

    def take(self, count: int = 1) -> None:
        """Let the link receive the next frames of its connection."""
        for _ in range(count):
            if self.conn is None or not self.conn.down:
                return
            command, frames = self.conn.down.popleft()
            self.bench.watch.taken(self, self.conn, command)
            self.hand(command, frames)

    def hand(self, command: Any, frames: Sequence[bytes]) -> None:
        if command == "connected":
            assert self.conn is not None
            self.conn.ready = True
            self.link.connected(self.bench.now)
        elif command == "lost":
            self.hang_up()
            self.link.lost(self.bench.now, "cut")
        else:
            self.link.receive(self.bench.now, frames)

    def flush(self, crash: str = "") -> None:
        """One turn of the shell. `crash` says where the process dies: "before" or "after" the commit, or "sent"."""
        batch = self.link.take(self.bench.now)
        if crash != "before":
            self.commit(batch)
        if not crash or crash == "sent":
            self.speak(batch)
        if crash:
            self.restart()
            return
        for news in batch.news:
            self.tell(news)

    def commit(self, batch: LinkBatch) -> None:
        self.outbox.apply(batch.writes)
        self.batches += 1
        if self.batches % self.bench.check_every == 0:
            self.check()

    def check(self) -> None:
        """Memory is what a restart would find."""
        found, book = self.outbox.load(self.bench.new_id), self.link.book
        assert found == book, f"Book of {self.label} is not what the disk has:\n{found}\n{book}"

    def speak(self, batch: LinkBatch) -> None:
        if batch.connect:
            self.hang_up()
            if batch.connect == "open":
                self.conn = self.bench.dial(self)
        for effect in batch.sends:
            command = self.request(effect) if isinstance(effect, SendRow) else effect
            self.post(command)

    def request(self, effect: SendRow) -> wire.Req:
        row = self.outbox.row(effect.row)
        return wire.Req(effect.q, effect.floor, row.op, row.id, row.args, row.body)

    def post(self, command: Any) -> None:
        conn = self.conn
        assert conn is not None and conn.ready, f"{type(command).__name__} without a connection"
        frames = wire.encode(command)
        self.bench.watch.up(self, conn, command)
        if not conn.dead:
            conn.up.append((command, frames))

    def tell(self, news: News) -> None:
        self.bench.watch.news(self, news)
        match news:
            case Welcomed():
                self.called = (news.name, self.profile.mailbox, self.profile.store)
            case Settled():
                self.results[news.row] = news
            case Parted():
                self.parts.setdefault(news.r, []).append(news)
            case Finished():
                self.finished[news.r] = news
            case Parked():
                self.parked = news
                self.called = (self.called[0], self.profile.mailbox, self.profile.store)
        if self.bench.keep_news:
            self.seen.append(news)

    # -- the application -------------------------------------------------------------------------------------------

    def submit(self, op: str, args: dict[str, Any], body: bytes = b"", ident: str = "") -> int:
        """A request; returns its row. It is on disk and, if it can, on its way."""
        row, _ = self.link.submit(self.bench.now, op, args, body, ident)
        self.flush()
        return row

    def done(self, op: str, args: dict[str, Any], body: bytes = b"") -> Settled:
        """A request and its result."""
        row = self.submit(op, args, body)
        self.bench.run(lambda: row in self.results)
        return self.results[row]

    def query(self, what: str, **args: Any) -> tuple[int, list[tuple[dict[str, Any], bytes]]]:
        """A query's code and its parts."""
        r = self.link.ask(what, args)
        self.flush()
        self.bench.run(lambda: r in self.finished)
        return self.finished[r].code, [(p.value, p.body) for p in self.parts.get(r, [])]

    def offer(self, letters: Sequence[Letter] | None = None, path: str = "test") -> list[Letter]:
        """Take what waits into the application's hands."""
        given = self.link.inbox.offer(self.bench.now, letters or self.link.inbox.waiting(), path)
        self.flush()
        return given

    def read(self) -> list[str]:
        """Show everything that waits, with proof; the texts in order."""
        given = self.offer()
        self.link.inbox.shown(self.bench.now, [x.key for x in given], "proof")
        self.flush()
        return [x.msg.body.decode() for x in given]
