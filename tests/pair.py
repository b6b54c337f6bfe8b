"""A broker and its links back to back: no sockets, a clock of its own, real databases in memory.

`Bench` holds one `Hub` (store and broker), any number of `Seat`s (outbox and link) and the `Conn`s between them; they
are in tests.sim.shells. Nothing moves by itself: `run()` moves everything that can, `advance()` lets time pass, the
simulation moves single frames. After a crash memory is gone and the databases stay.

    bench = Bench(); api, web = bench.seat("api"), bench.seat("web"); bench.run()
    row = api.submit("send", {"to": ["web"]}, b"hello"); bench.run()
    assert api.results[row].code == 200 and web.read() == ["hello"]
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from agent.book import Shown
from agent.link import Profile
from agent.outbox import Outbox
from bus import wire
from bus.broker import Broker
from bus.core import Settings, Who
from bus.effects import Event, Push, Read, Recall, Send
from bus.store import Store
from tests.sim.shells import Conn, Hub, Item, Seat, Watch, completed

__all__ = [
    "START",
    "Bench",
    "Conn",
    "Direct",
    "Hub",
    "Item",
    "Seat",
    "Watch",
    "empty_outbox",
    "empty_store",
    "ledger_line",
]

START = 1_800_000_000_000

_EMPTY: dict[str, bytes] = {}


def empty_store() -> Store:
    """A store as it is after the first start; the schema is made once and copied."""
    if "store" not in _EMPTY:
        _EMPTY["store"] = Store.memory().dump()
    return Store.from_dump(_EMPTY["store"])


def empty_outbox() -> Outbox:
    """The same for an agent's database."""
    if "outbox" not in _EMPTY:
        _EMPTY["outbox"] = Outbox.memory().dump()
    return Outbox.from_dump(_EMPTY["outbox"])


def ledger_line(outbox: Outbox, key: str) -> Shown | None:
    """What an agent's disk knows of one message ("host/fid/id"), also where its Book no longer does."""
    sql = "SELECT state, path, proof, at, told FROM ledger WHERE ident = ?"
    line = outbox._db.execute(sql, (key,)).fetchone()
    return Shown(*line[:4], bool(line[4])) if line else None


class Bench:
    """One broker, its seats, the connections between them and the clock."""

    def __init__(
        self,
        *,
        seed: int = 0,
        settings: Settings | None = None,
        watch: Watch | None = None,
        hub: type[Hub] = Hub,
        check_every: int = 1,
        keep_news: bool = True,
    ) -> None:
        self.now = START
        self.random = random.Random(seed)
        self.watch = watch or Watch()
        self.check_every = check_every
        self.keep_news = keep_news
        self.conns: dict[bytes, Conn] = {}
        self.seats: list[Seat] = []
        self._routes = self._lives = 0
        self.hub = hub(self, empty_store(), settings or Settings())

    def new_id(self) -> str:
        return f"{self.random.getrandbits(128):032x}"

    def new_row_id(self) -> str:
        return "".join(self.random.choices("abcdefghijklmnopqrstuvwxyz234567", k=16))

    def new_life(self) -> str:
        """What tells one process of an agent from the next."""
        self._lives += 1
        return f"life {self._lives}"

    def seat(
        self,
        name: str,
        *,
        mode: str = "hold",
        inst: str = "",
        key: str = "",
        host: str = "alpha",
        role: str = "owner",
        hb: int = wire.HEARTBEAT_MS,
        meta: dict[str, Any] | None = None,
        kind: type[Seat] = Seat,
        outbox: Outbox | None = None,
    ) -> Seat:
        """One more agent; keys follow hosts unless said otherwise."""
        inst = inst or f"{name}#{len(self.seats)}"
        profile = Profile(mode, inst, name, hb, meta or {}, life=self.new_life())
        seat = kind(self, profile, Who(key or f"key of {host}", host, role), outbox or empty_outbox())
        self.seats.append(seat)
        return seat

    # -- connections -----------------------------------------------------------------------------------------------

    def dial(self, seat: Seat) -> Conn:
        """A new connection; the handshake's end waits in its queue like a frame."""
        self._routes += 1
        conn = Conn(self._routes.to_bytes(4, "big"), seat)
        if self.hub.up:
            conn.down.append(("connected", []))
        else:
            conn.dead = True
            conn.down.append(("lost", []))
        self.conns[conn.route] = conn
        return conn

    def close(self, conn: Conn) -> None:
        """The client closed its socket: what it had sent may still arrive."""
        conn.dead = True
        conn.down.clear()
        if not conn.up:
            self.conns.pop(conn.route, None)

    def cut(self, conn: Conn, keep: int = 0, noticed: bool = True) -> None:
        """The connection dies; what is in flight is lost, but for the first `keep` frames to the client."""
        if conn.dead:
            conn.up.clear()
            if conn.seat.conn is not conn:
                self.conns.pop(conn.route, None)
            return
        conn.dead, conn.noticed = True, noticed
        conn.up.clear()
        while len(conn.down) > keep:
            conn.down.pop()
        conn.down.append(("lost", []))

    # -- time ------------------------------------------------------------------------------------------------------

    def deadline(self) -> int | None:
        """When something is due next."""
        times = [seat.link.deadline() for seat in self.seats]
        if self.hub.broker is not None:
            times.append(self.hub.broker.deadline())
        return min((t for t in times if t is not None), default=None)

    def pump(self) -> bool:
        """Move every frame that is in flight now, and do what is due. False when there was nothing."""
        moved = False
        for conn in list(self.conns.values()):
            if conn.up and self.hub.up:
                self.hub.feed(conn, len(conn.up))
                moved = True
                if conn.dead and conn.seat.conn is not conn:
                    self.conns.pop(conn.route, None)
        broker = self.hub.broker
        if broker is not None:
            due = broker.deadline()
            if moved or (due is not None and due <= self.now):
                self.hub.flush()
                moved = True
        for seat in list(self.seats):
            due = seat.link.deadline()
            frames = len(seat.conn.down) if seat.conn else 0
            if frames or (due is not None and due <= self.now):
                seat.take(frames)
                seat.flush()
                moved = True
        return moved

    def run(self, until: Callable[[], bool] | None = None, limit: int = 60_000) -> None:
        """Move frames until nothing is in flight; with `until`, let up to `limit` ms pass too, until it holds."""
        end = self.now + limit
        turns = 0
        while True:
            turns += 1
            assert turns < 20_000, "it does not come to rest"
            if self.pump():
                continue
            if until is None or until():
                return
            due = self.deadline()
            assert due is not None and due <= end, f"nothing came of it within {limit} ms"
            self.now = max(self.now, due)

    def advance(self, ms: int) -> None:
        """Let time pass; everything due on the way is done in order."""
        end = self.now + ms
        self.run()
        while (due := self.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.run()
        self.now = end
        self.run()


class Direct:
    """A broker alone: literal heads in, what it sends out, its batch on disk after every turn.

    `say()` returns the commands for the route that spoke, `sent` has those of the last turn for every route.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.now = START
        self.store = empty_store()
        self.settings = settings or Settings()
        self.broker = Broker(self.store.load(), self.now, self.settings)
        self.sent: dict[bytes, list[Any]] = {}
        self.events: list[Event] = []
        self.who: dict[bytes, Who] = {}
        self.outboxes: dict[bytes, int] = {}

    def say(self, route: bytes, head: dict[str, Any], body: bytes = b"") -> list[Any]:
        """One message with this head. The key of a route is alpha's until `who` says otherwise."""
        frames = [wire.SIGNATURE, wire.pack(head)] + ([body] if body else [])
        return self.raw(route, frames)

    def raw(self, route: bytes, frames: list[bytes]) -> list[Any]:
        who = self.who.setdefault(route, Who("key of alpha", "alpha"))
        self.broker.receive(self.now, route, who, frames)
        return self.turn().get(route, [])

    def turn(self) -> dict[bytes, list[Any]]:
        """Commit and send; memory must be what the disk has."""
        batch = self.broker.take()
        self.broker.committed(batch, self.store.apply(batch.writes))
        assert self.store.load() == self.broker.world
        self.sent = {}
        self.events = batch.events
        for effect in batch.sends:
            made: Any = effect
            match effect:
                case Send():
                    wire.encode(effect.command)
                    made = effect.command
                case Push():
                    made = completed(effect, self.store, self.now)
                case Read() | Recall():
                    pass
            self.sent.setdefault(effect.route, []).append(made)
        return self.sent

    def pass_time(self, ms: int) -> dict[bytes, list[Any]]:
        """Time passes; everything due is done. What was sent meanwhile, of all turns."""
        end = self.now + ms
        said: dict[bytes, list[Any]] = {}
        events: list[Event] = []
        while (due := self.broker.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.broker.tick(self.now)
            for route, commands in self.turn().items():
                said.setdefault(route, []).extend(commands)
            events += self.events
        self.now, self.sent, self.events = end, said, events
        return said

    def restart(self) -> None:
        """The process died; another begins with what the disk has."""
        self.broker = Broker(self.store.load(), self.now, self.settings)

    def hello(self, route: bytes, name: str, **more: Any) -> list[Any]:
        """HELLO; `inst` is the route and the outbox follows from it, unless said otherwise."""
        head = {"c": "HELLO", "mode": "hold", "inst": route.decode(), "ob": route.hex().rjust(32, "0"), "name": name}
        return self.say(route, head | more)

    def req(self, route: bytes, op: str, args: dict[str, Any], body: bytes = b"", **more: Any) -> Any:
        """REQ under the next number; the REP, or the first answer."""
        q = more.get("q", self.outboxes.get(route, 0) + 1)
        ident = (route.decode() + "".join("abcdefghij"[int(d)] for d in str(q))).ljust(16, "z")
        head = {"c": "REQ", "q": q, "floor": q, "op": op, "id": ident, "args": args}
        said = self.say(route, head | more, body)
        answers = [c for c in said if isinstance(c, wire.Rep | wire.Err)]
        if isinstance(answers[0], wire.Rep):
            self.outboxes[route] = max(q, self.outboxes.get(route, 0))
        return answers[0]

    def topics(self) -> list[str]:
        """The events of the last turn."""
        return [event.topic for event in self.events]
