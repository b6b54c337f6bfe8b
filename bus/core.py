"""What the broker's rules share: the world, the living sessions, the clock and the batch being filled.

No rule of the protocol lives here, only the vocabulary the rules are written in. No I/O: time comes in, effects go
out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bus import governor, wire
from bus.effects import Batch, Event, PutMailbox, PutOutbox, Send, Write
from bus.roll import Role, Roll
from bus.timers import Timers
from bus.world import Mailbox, Outbox, World


@dataclass(frozen=True, slots=True)
class Who:
    """Whose key a connection has, as the transport proved it: PROTOCOL.md §14."""

    key: str
    host: str
    role: str = "owner"  # "owner" | "member" | "observer"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person may configure. Rates in requests per second, sizes in octets, times in ms."""

    rate: int = wire.RATE_PER_S
    burst: int = wire.RATE_BURST
    lease: int = wire.LEASE_MS
    mailbox_messages: int = wire.MAILBOX_MESSAGES
    mailbox_bytes: int = wire.MAILBOX_BYTES
    state_keys: int = wire.STATE_KEYS
    listens: str = ""  # address and port, for people to see
    held_messages: int = governor.HELD_MESSAGES
    held_bytes: int = governor.HELD_BYTES
    hops: int = governor.HOPS_MAX
    thanks: int = governor.THANKS_MAX
    wakes: int = governor.WAKES_PER_HOUR


@dataclass(slots=True)
class Session:
    """One open route. `open` tells of what was pushed and is unsettled its number in the mailbox and the number it
    went under, in order; `quiet` are those of it that wake nobody. `todo` is what wakes and is still to push,
    `todo_quiet` the rest. `mine` is the highest number of the outbox that is known to be this client's own request.
    `life` tells the processes of one instance apart.
    """

    route: bytes
    who: Who
    mode: str
    inst: str
    ob: str
    mailbox: str  # id, "" in view mode
    hb: int
    heard: int
    person: bool = False  # it says that somebody sits at a keyboard, and holds no mailbox
    holds: bool = False
    prev: int = 0
    pushed: int = 0
    mine: int = 0
    life: str = ""
    open: dict[int, int] = field(default_factory=dict)
    quiet: set[int] = field(default_factory=set)
    todo: deque[int] = field(default_factory=deque)
    todo_quiet: deque[int] = field(default_factory=deque)
    parked: wire.Gone | None = None


@dataclass(slots=True)
class Invitation:
    """The one that is open: what its token hashes to, and what whoever brings it will be. Forgotten by a restart."""

    digest: bytes
    role: Role
    label: str  # "" = what the machine calls itself
    until: int
    tries: int
    port: int = 0  # where it is to be brought; 0 until the port is bound


@dataclass(slots=True)
class Activity:
    """What a session last said it does, until when (ms since 1970, 0 = no end). Forgotten by a restart."""

    state: str = ""
    until: int = 0


class Core:
    """The state all rules read and change."""

    def __init__(self, world: World, now: int, settings: Settings, roll: Roll | None = None) -> None:
        self.world = world
        self.settings = settings
        self.roll = roll or Roll({})
        self.invitation: Invitation | None = None
        self.now = now
        self.started = now
        self.sessions: dict[bytes, Session] = {}
        self.holders: dict[str, bytes] = {}
        self.lost_at: dict[str, int] = {}
        self.activity: dict[str, Activity] = {}
        self.governor = governor.Governor()
        self.counters: dict[str, int] = {}
        self.told: dict[str, int] = {}  # events by topic, since the start
        self.crowded: dict[bytes, None] = {}  # routes to be told, with the batch, that mail waits beyond the window
        self.events = 0
        self.writable = True
        self.prune_doubt = ""  # why the shell does not prune as configured
        self.batch = Batch()
        self._dirty_mailboxes: dict[str, None] = {}
        self._dirty_outboxes: dict[str, None] = {}
        self.timers = Timers()
        self.stepped: set[tuple[str, str, str]] = set()  # (mailbox, message, host) offered in this batch, not pending
        self._octets: dict[str, int] = {}
        self._numbers: dict[str, dict[str, dict[str, int]]] = {}
        self.names: dict[tuple[str, str], str] = {(m.key, m.name): m.id for m in world.mailboxes.values()}

    # -- effects ---------------------------------------------------------------------------------------------------

    def write(self, write: Write) -> None:
        self.batch.writes.append(write)

    def send(self, route: bytes, command: wire.Command) -> None:
        self.batch.sends.append(Send(route, command))

    def emit(self, topic: str, **fields: Any) -> None:
        """One event of activity; never a body."""
        self.events += 1
        self.tally(topic, 1)
        self.batch.events.append(Event(self.events, topic, self.now, fields))

    def enter(self, roll: Roll) -> None:
        """Another roll, to be on the disk with this batch."""
        if self.batch.roll is None:
            self.batch.former = self.roll
        self.roll = self.batch.roll = roll

    def tally(self, topic: str, number: int) -> None:
        """Count events by topic; markers, each of which has a topic of its own, as one."""
        kind = "sync" if topic.startswith("sync.") else topic
        self.told[kind] = self.told.get(kind, 0) + number

    def count(self, what: str) -> None:
        self.counters[what] = self.counters.get(what, 0) + 1

    def changed(self, mailbox: Mailbox) -> None:
        """Its row is written once, with the batch."""
        self._dirty_mailboxes[mailbox.id] = None

    def advanced(self, outbox: Outbox) -> None:
        """Its row is written once, with the batch."""
        self._dirty_outboxes[outbox.id] = None

    def take(self) -> Batch:
        """Everything since the last call. Rows of mailboxes come first: deliveries refer to them."""
        batch, self.batch = self.batch, Batch()
        world = self.world
        rows: list[Write] = [PutMailbox(world.mailboxes[i]) for i in self._dirty_mailboxes if i in world.mailboxes]
        rows += [PutOutbox(world.outboxes[i]) for i in self._dirty_outboxes]
        batch.writes[:0] = rows
        self._dirty_mailboxes.clear()
        self._dirty_outboxes.clear()
        self.stepped.clear()
        return batch

    # -- time ------------------------------------------------------------------------------------------------------

    def at(self, when: int, kind: str, *ref: Any) -> None:
        """Ask for `tick` to look at `ref` at `when`. Whoever looks checks first: not everything is called off."""
        self.timers.add((when, kind, ref))

    def call_off(self, when: int, kind: str, *ref: Any) -> None:
        """What may lie far ahead and be over before is not kept until then. 0 is a time nothing was asked for."""
        if when:
            self.timers.call_off((when, kind, ref))

    def due(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        while (timer := self.timers.take(self.now)) is not None:
            yield timer[1], timer[2]

    def next_timer(self) -> int | None:
        return self.timers.next()

    # -- mailboxes -------------------------------------------------------------------------------------------------

    def mailbox_named(self, key: str, name: str) -> Mailbox | None:
        found = self.names.get((key, name))
        return self.world.mailboxes[found] if found else None

    def holder(self, mailbox: Mailbox) -> Session | None:
        route = self.holders.get(mailbox.id)
        return self.sessions.get(route) if route is not None else None

    def presence(self, mailbox: Mailbox) -> str:
        """ "open" while a session holds it, "lost" within the lease after it vanished, "gone" after that."""
        if mailbox.id in self.holders:
            return "open"
        if not mailbox.inst:
            return "gone"
        return "lost" if self.lease_left(mailbox) > 0 else "gone"

    def lease_left(self, mailbox: Mailbox) -> int:
        """How long, in ms, a mailbox that lost its holder is kept for it; 0 or less when that time is over."""
        return self.lost_at.get(mailbox.id, self.started) + self.settings.lease - self.now

    def octets(self, mailbox: Mailbox) -> int:
        """Octets of unsettled text in a mailbox, held mail included."""
        if mailbox.id not in self._octets:
            parts = (*mailbox.pending.values(), *mailbox.held.values())
            self._octets[mailbox.id] = sum(p.size for p in parts)
        return self._octets[mailbox.id]

    def weigh(self, mailbox: Mailbox, size: int) -> None:
        self._octets[mailbox.id] = self.octets(mailbox) + size

    def numbers(self, mailbox: Mailbox) -> dict[str, dict[str, int]]:
        """Unsettled message id -> sender's mailbox -> number, kept beside `pending`. Ids of two keys may clash."""
        if mailbox.id not in self._numbers:
            made: dict[str, dict[str, int]] = {}
            for p in mailbox.pending.values():
                made.setdefault(p.msg, {})[p.sender] = p.n
            self._numbers[mailbox.id] = made
        return self._numbers[mailbox.id]

    def numbers_of(self, mailbox: Mailbox, host: str, msg: str) -> list[int]:
        """The unsettled numbers of one message id, from senders of `host` ("" = of any)."""
        boxes = self.world.mailboxes
        senders = self.numbers(mailbox).get(msg, {})
        return [n for sender, n in senders.items() if not host or (sender in boxes and boxes[sender].host == host)]

    def heard_from(self, mailbox: Mailbox) -> None:
        """Presence for others to see; written at most once a minute."""
        if self.now - mailbox.active >= 60_000:
            mailbox.active = self.now
            self.changed(mailbox)


def trip(core: Core, what: str, mailbox: Mailbox, until: int) -> None:
    """A limit of the governor was hit: counted, shown by `stats` until then, and told once by an event."""
    core.count(what)
    if core.governor.trip(core.now, what, mailbox.id, until):
        core.emit("bus.breaker", what=what, id=mailbox.id, name=mailbox.name, host=mailbox.host, until=until)
