"""The broker without a socket: frames, losses and time in; one Batch of effects out.

    receive(now, route, who, frames)   lost(now, route)   tick(now)   deadline()   take() -> Batch

`now` is ms since 1970 and must not run backwards. After `take()` the caller commits the writes, tells
`committed(...)` what the disk made of them, then sends, then answers reads, then publishes, in this order; when the
commit fails for want of room it calls `undo(...)` with the world as the disk has it. The table below is the one of
PROTOCOL.md §5, compared with it by a test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bus import activity, deliveries, enrolment, policy, requests, sessions, wire
from bus.core import Core, Session, Settings, Who
from bus.effects import AddOp, Admit, Batch, Greet, Push, Read, Recall, Resolved, Send
from bus.errors import Code, RemoteError
from bus.ops import naming
from bus.ops import state as state_ops
from bus.roll import Roll
from bus.world import World

SESSIONS: dict[str, dict[str, str]] = {
    "new": {
        "HELLO": "open or refuse",
        "REQ": "unknown",
        "ACK": "unknown",
        "QRY": "unknown",
        "PING": "unknown",
        "BYE": "unknown",
        "lost": "nothing",
    },
    "open": {
        "HELLO": "second hello",
        "REQ": "request",
        "ACK": "settle",
        "QRY": "query",
        "PING": "pong",
        "BYE": "goodbye",
        "lost": "forget",
    },
    "parked": {
        "HELLO": "second hello",
        "REQ": "gone",
        "ACK": "gone",
        "QRY": "gone",
        "PING": "gone",
        "BYE": "goodbye",
        "lost": "forget",
    },
}


class Broker:
    """All rules of the broker's side. Not thread-safe; one owner feeds it."""

    def __init__(self, world: World, now: int, settings: Settings | None = None, roll: Roll | None = None) -> None:
        self.core = Core(world, now, settings or Settings(), roll)
        self._actions: dict[str, Callable[[Session, Any], None]] = {
            "second hello": self._second_hello,
            "request": self._request,
            "settle": self._settle,
            "query": self._query,
            "pong": self._pong,
            "goodbye": self._goodbye,
            "gone": self._gone,
        }
        self._table = {
            state: {wire.COMMANDS[name].cls: self._actions[action] for name, action in row.items() if name != "lost"}
            for state, row in SESSIONS.items()
            if state != "new"
        }
        self._arm()

    def _arm(self) -> None:
        core = self.core
        for mailbox in core.world.mailboxes.values():
            if mailbox.inst:
                core.at(core.lost_at.get(mailbox.id, core.started) + core.settings.lease, "lease", mailbox.id)
            for pending in (*mailbox.pending.values(), *mailbox.held.values()):
                if pending.expires:
                    core.at(max(pending.expires, core.started + core.settings.lease), "expire", mailbox.id, pending.n)
        for entry in core.world.state.values():
            if entry.expires:
                core.at(entry.expires, "state", entry.key)
        for ident, known in core.activity.items():
            if known.until:
                core.at(known.until, "busy", ident)

    @property
    def world(self) -> World:
        return self.core.world

    # -- in --------------------------------------------------------------------------------------------------------

    def knows(self, route: bytes) -> bool:
        """Whether a route has said HELLO; the shell need not ask the transport again who it is."""
        return route in self.core.sessions

    def receive(self, now: int, route: bytes, who: Who | None, frames: Sequence[bytes]) -> None:
        """One message from a route. `who` is the key of its connection; needed until `knows(route)`."""
        core = self.core
        core.now = now
        if not wire.signed(frames):
            core.count("unsigned")
            return
        session = core.sessions.get(route)
        try:
            command = wire.decode(frames, "C")
        except RemoteError as error:
            core.count("malformed")
            core.send(route, wire.Err(error.code, text=wire.clip(str(error))))
            return
        if session is None:
            self._first(route, who, command)
            return
        session.heard = now
        self._table["parked" if session.parked is not None else "open"][type(command)](session, command)

    def enroll(self, now: int, route: bytes, key: str, frames: Sequence[bytes]) -> None:
        """One message at the enrolment port; `key` is that of its connection, which is nobody's yet."""
        self.core.now = now
        enrolment.enroll(self.core, route, key, frames)

    def enrolling(self, port: int, problem: str = "") -> None:
        """Where the enrolment port was bound, after Admit; or that it cannot be."""
        core = self.core
        if core.invitation is None:
            return
        core.invitation.port = port
        if not port:
            core.count("enrolment port")
            enrolment.withdraw(core, problem[:200] or "no port")

    def lost(self, now: int, route: bytes) -> None:
        """A frame could not be handed to this route: its connection is dead."""
        self.core.now = now
        sessions.forget(self.core, route)

    def tick(self, now: int) -> None:
        """Do what is due; call it whenever `deadline()` has passed, at least."""
        core = self.core
        core.now = now
        for kind, ref in core.due():
            if kind == "silent":
                sessions.silent(core, *ref)
            elif kind == "invitation":
                enrolment.lapse(core)
            elif not core.writable:
                core.at(now + requests.FULL_RETRY_MS, kind, *ref)
            elif kind == "lease":
                sessions.lease_out(core, *ref)
            elif kind == "expire":
                deliveries.expire(core, *ref)
                policy.expire(core, *ref)
            elif kind == "state":
                state_ops.expire(core, *ref)
            elif kind == "busy":
                naming.lapse(core, *ref)

    def deadline(self) -> int | None:
        """When `tick` is wanted next, ms since 1970; None when nothing waits for time."""
        return self.core.next_timer()

    def announce(self, topic: str, **fields: Any) -> None:
        """An event of the shell's own (`bus.start`, `bus.stop`)."""
        self.core.emit(topic, **fields)

    # -- out -------------------------------------------------------------------------------------------------------

    def take(self) -> Batch:
        """Everything to be done since the last call."""
        deliveries.tell_crowded(self.core)
        return self.core.take()

    def committed(self, batch: Batch, found: Sequence[Resolved]) -> None:
        """`batch` is on disk. Steps that were told by id are events only now, and only where the disk has them; they
        follow those of the batch, to be published with them.
        """
        for each in found:
            deliveries.resolved(self.core, each)
        batch.events += self.core.batch.events
        self.core.batch.events.clear()

    def undo(self, now: int, batch: Batch, world: World) -> None:
        """The disk is full: `batch` was not written. `world` is the disk's.

        Requests and queries of the batch are told 503, sessions that were opened in it or changed their name are
        forgotten (they come again), and every holder's chain starts anew, because what was pushed was never sent.
        """
        former = self.core
        core = Core(world, now, former.settings, batch.former or former.roll)
        if not any(isinstance(effect, Admit) for effect in batch.doors):
            core.invitation = former.invitation
        core.started, core.events, core.counters = former.started, former.events, former.counters
        core.told, core.prune_doubt = former.told, former.prune_doubt
        for event in batch.events:
            core.tally(event.topic, -1)  # what it tells has not happened
        core.lost_at, core.activity, core.governor = former.lost_at, former.activity, former.governor
        core.count("undone")
        core.writable = False
        if core.invitation is not None:
            core.at(core.invitation.until, "invitation")
        # An invitation that was used or closed in the batch stays closed: whoever needs one asks for another.
        for effect in batch.doors:
            if isinstance(effect, Greet) and isinstance(effect.command, wire.Bye):
                enrolment.undone(core, effect)
            elif not isinstance(effect, Admit):
                core.batch.doors.append(effect)
        self.core = core
        self._arm()
        refused = {s.route for s in batch.sends if isinstance(s, Send) and isinstance(s.command, wire.Welcome)}
        # Holders first: one that was parked long ago may be of the same instance as the one that holds.
        for session in sorted(former.sessions.values(), key=lambda s: not s.holds):
            route = session.route
            mailbox = world.mailboxes.get(session.mailbox)
            if route in refused or (session.mailbox and mailbox is None):
                if mailbox is not None and mailbox.inst == session.inst:
                    core.lost_at[mailbox.id] = now
                continue
            core.sessions[route] = session
            core.at(now + 3 * session.hb, "silent", route)
            outbox = world.outboxes.get(session.ob)
            session.mine = min(session.mine, outbox.high if outbox else 0)
            holds = mailbox is not None and mailbox.inst == session.inst and mailbox.id not in core.holders
            if session.mode == "hold" and mailbox is not None and holds:
                session.holds, session.parked = True, None
                core.holders[mailbox.id] = route
                deliveries.start_chain(core, session, mailbox)
        for sent in batch.sends:
            asked = _asked(sent)
            if asked is not None:
                text = "the broker's disk is full or read-only"
                core.send(sent.route, wire.Err(Code.BUSY, *asked, retry=requests.FULL_RETRY_MS, text=text))
        core.emit("bus.full", requests=sum(isinstance(w, AddOp) for w in batch.writes))

    def resume(self) -> None:
        """The disk takes writes again. What was pushed meanwhile is noted now."""
        self.core.writable = True
        deliveries.note_pushed(self.core)

    # -- actions of the table --------------------------------------------------------------------------------------

    def _first(self, route: bytes, who: Who | None, command: Any) -> None:
        action = SESSIONS["new"][type(command).__name__.upper()]
        if who is None:
            self.core.count("revoked")  # a connection that was there before its key was taken off the roll
            return
        if action == "open or refuse":
            sessions.open_session(self.core, route, who, command)
            return
        self.core.count("unknown")
        ref = getattr(command, "q", 0) or getattr(command, "r", 0)
        self.core.send(
            route, wire.Err(Code.UNKNOWN_SESSION, type(command).__name__.upper(), ref, text="say HELLO first")
        )

    def _second_hello(self, session: Session, _command: Any) -> None:
        self.core.count("malformed")
        self.core.send(session.route, wire.Err(Code.MALFORMED, "HELLO", text="one HELLO a connection"))

    def _request(self, session: Session, req: wire.Req) -> None:
        if session.mailbox and self.core.writable:
            self.core.heard_from(self.core.world.mailboxes[session.mailbox])
        requests.request(self.core, session, req)

    def _settle(self, session: Session, ack: wire.Ack) -> None:
        if session.holds and self.core.writable:
            deliveries.settle(self.core, session, ack)
        else:
            self.core.count("ack ignored")

    def _query(self, session: Session, qry: wire.Qry) -> None:
        activity.query(self.core, session, qry)

    def _pong(self, session: Session, ping: wire.Ping) -> None:
        core = self.core
        mailbox = core.world.mailboxes.get(session.mailbox)
        if mailbox is not None and session.holds:
            if core.writable:
                core.heard_from(mailbox)
            if ping.st in naming.ACTIVITIES and naming.set_activity(core, mailbox, ping.st, 0):
                naming.tell_status(core, mailbox)
        deliveries.report(core, session, ping.k)

    def _goodbye(self, session: Session, bye: wire.Bye) -> None:
        sessions.goodbye(self.core, session, bye)

    def _gone(self, session: Session, _command: Any) -> None:
        if session.parked is not None:
            self.core.send(session.route, session.parked)


def _asked(sent: Send | Push | Read | Recall) -> tuple[str, int] | None:
    """What an answer that cannot be given was asked by: the command, and its number."""
    if isinstance(sent, Recall):
        return "REQ", sent.q
    if isinstance(sent, Read):
        return "QRY", sent.r
    command = sent.command if isinstance(sent, Send) else None
    if isinstance(command, wire.Rep):
        return "REQ", command.q
    return ("QRY", command.r) if isinstance(command, wire.Done) else None
