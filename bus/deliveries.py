"""The window of one mailbox: number, push, settle, expire (PROTOCOL.md §7).

Knows the core; knows nothing of requests, names or sockets.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from bus import wire
from bus.core import Core, Session
from bus.effects import AddDelivery, Move, MoveById, Push, Resolved
from bus.world import Mailbox, Pending

STEPS = ("offered", "injected", "acked", "failed")


class Name(NamedTuple):
    """What a message is called by whoever speaks of it. An id is chosen by its sender, and so may be another
    message's as well: only with `sender`, the mailbox that sent it, is this exact.
    """

    msg: str
    host: str = ""
    sender: str = ""


def deliver(core: Core, mailbox: Mailbox, pending: Pending) -> None:
    """Put one message at the end of a mailbox and push it if the window has room. `pending.n` is given here."""
    mailbox.top += 1
    pending.n = mailbox.top
    core.weigh(mailbox, pending.size)
    core.changed(mailbox)
    core.write(
        AddDelivery(
            mailbox.id, pending.n, pending.sender, pending.msg, mailbox.name, "stored", core.now, "", pending.quiet
        )
    )
    expire_at(core, mailbox, pending)
    if (mailbox.id, pending.msg, pending.sender) in core.stepped:
        pending.status = "offered"  # a receipt came first (the database is another); the disk takes steps last
    arrive(core, mailbox, pending)


def expire_at(core: Core, mailbox: Mailbox, pending: Pending) -> None:
    """Have its time looked at when that runs out."""
    if pending.expires:
        core.at(pending.expires, "expire", mailbox.id, pending.n)


def arrive(core: Core, mailbox: Mailbox, pending: Pending) -> None:
    """It has its number and is written: from now on it waits to be shown."""
    core.numbers(mailbox).setdefault(pending.msg, {})[pending.sender] = pending.n
    mailbox.pending[pending.n] = pending
    session = core.holder(mailbox)
    if session is None:
        return
    session.todo.append(pending.n)
    if len(session.open) < wire.WINDOW:
        push(core, session, mailbox)
    else:
        core.crowded[session.route] = None


def tell_crowded(core: Core) -> None:
    """A PONG nobody asked for, once a batch, to who cannot see what came beyond its window (§8)."""
    for route in core.crowded:
        session = core.sessions.get(route)
        if session is not None and session.holds:
            report(core, session, 0)
    core.crowded.clear()


def start_chain(core: Core, session: Session, mailbox: Mailbox) -> None:
    """Everything unsettled is to be pushed, from the beginning, with `prev` 0."""
    session.prev = 0
    session.open.clear()
    session.todo = deque(mailbox.pending)
    push(core, session, mailbox)
    if session.todo:
        core.crowded[session.route] = None


def push(core: Core, session: Session, mailbox: Mailbox) -> None:
    """Fill the window."""
    while session.todo and len(session.open) < wire.WINDOW:
        n = session.todo.popleft()
        pending = mailbox.pending.get(n)
        if pending is None:
            continue
        ttl = max(1, pending.expires - core.now) if pending.expires else 0
        again = pending.status == "offered"
        # A number of the route's own: an ACK that crosses a change of mailbox must not fit another message there.
        session.pushed += 1
        core.batch.sends.append(
            Push(
                session.route,
                session.pushed,
                session.prev,
                pending.sender,
                pending.msg,
                mailbox.name,
                ttl,
                again,
                pending.quiet,
            )
        )
        session.prev = session.open[n] = session.pushed


def settle(core: Core, session: Session, ack: wire.Ack) -> None:
    """ACK of the holder: what was pushed on this route and is unsettled leaves the mailbox."""
    mailbox = core.world.mailboxes[session.mailbox]
    if ack.resync:
        core.count("resync")
        start_chain(core, session, mailbox)
    status = "expired" if ack.as_ == "expired" else "injected"
    for n in [n for n, pushed in session.open.items() if any(a <= pushed <= b for a, b in ack.ranges)]:
        leave(core, mailbox, n, status, ack.proof[:64], core.now)
    push(core, session, mailbox)


def leave(core: Core, mailbox: Mailbox, n: int, status: str, proof: str, when: int) -> None:
    """A delivery is settled: it leaves the working set, and the holder's window."""
    pending = mailbox.pending.pop(n)
    core.call_off(pending.expires, "expire", mailbox.id, n)
    session = core.holder(mailbox)
    if session is not None:
        session.open.pop(n, None)
    senders = core.numbers(mailbox).get(pending.msg, {})
    senders.pop(pending.sender, None)
    if not senders:
        core.numbers(mailbox).pop(pending.msg, None)
    core.weigh(mailbox, -pending.size)
    core.write(Move(mailbox.id, n, status, when, proof, True))
    tell(core, mailbox, pending.msg, status, when, proof, pending)


def tell(core: Core, mailbox: Mailbox, msg: str, status: str, when: int, proof: str, pending: Pending) -> None:
    """One step of a copy, as of `when`."""
    sender = core.world.mailboxes.get(pending.sender)
    by = {"from": sender.name, "from_host": sender.host} if sender else {}
    place = {"to": mailbox.name, "host": mailbox.host, "mailbox": mailbox.id}
    core.emit(f"msg.{status}", id=msg, fid=pending.sender, **by, **place, kind=pending.kind, at=when, proof=proof)


def resolved(core: Core, found: Resolved) -> None:
    """The batch is on disk, and this is what a step in it that was told by id came to there: only now it is told."""
    move = found.write
    if move.status == "answered":
        pass  # what an answer names may be anything its sender knows
    elif found.why == "unknown":
        core.count("receipt unknown")
    elif found.why == "ambiguous":
        core.count("receipt ambiguous")
    elif found.why:
        core.count("receipt not offered")
    mailbox = core.world.mailboxes.get(move.mailbox)
    if not found.fresh or mailbox is None:
        return
    if move.status == "offered":
        for n in found.fresh:
            if n in mailbox.pending:
                mailbox.pending[n].status = "offered"
    sender = core.world.mailboxes.get(found.sender)
    by = {"from": sender.name if sender else found.name, "from_host": sender.host if sender else found.host}
    place = {"to": mailbox.name, "host": mailbox.host, "mailbox": mailbox.id}
    about = {"id": move.msg, "fid": found.sender, **by, **place, "kind": found.kind}
    core.emit(f"msg.{move.status}", **about, at=move.ts, proof=move.proof)


def expire(core: Core, mailbox_id: str, n: int) -> None:
    """A time-to-live ran out. What is in the hands of a living session is that session's to answer for."""
    mailbox = core.world.mailboxes.get(mailbox_id)
    pending = mailbox.pending.get(n) if mailbox else None
    if mailbox is None or pending is None or not pending.expires or pending.expires > core.now:
        return
    session = core.holder(mailbox)
    if session is not None and n in session.open:
        return
    leave(core, mailbox, n, "expired", "", core.now)


def let_go(core: Core, session: Session, mailbox: Mailbox) -> None:
    """A session no longer holds this mailbox; what it had in hand may expire after the lease."""
    if core.holders.get(mailbox.id) == session.route:
        del core.holders[mailbox.id]
    for n in session.open:
        pending = mailbox.pending.get(n)
        if pending is not None and pending.expires:
            core.at(max(pending.expires, core.now + core.settings.lease), "expire", mailbox.id, n)
    session.open.clear()
    session.todo.clear()
    session.holds = False


def step(core: Core, mailbox: Mailbox, status: str, name: Name, when: int, proof: str) -> None:
    """One step that the recipient's agent reports; a step that was recorded stays as it is.

    Only a name that is exact settles a copy. By any other the disk decides which message is meant: an id that waits
    here may also be that of one that was settled, of which this side knows nothing.
    """
    found = core.numbers_of(mailbox, "", name.msg, name.sender) if name.sender else []
    if not found:
        if status == "offered" and name.sender:
            core.stepped.add((mailbox.id, name.msg, name.sender))
        core.write(MoveById(mailbox.id, name.msg, status, when, proof, name.host, name.sender))
        return
    n = found[0]
    pending = mailbox.pending[n]
    if status == "offered":
        if pending.status == "stored":
            pending.status = "offered"
            core.write(Move(mailbox.id, n, "offered", when, proof, False))
            tell(core, mailbox, name.msg, "offered", when, proof, pending)
        return
    if pending.status != "offered" and status != "injected":
        core.count("receipt not offered")
        return
    session = core.holder(mailbox)
    leave(core, mailbox, n, "failed" if status == "failed" else "injected", proof, when)
    if status == "acked":
        core.write(MoveById(mailbox.id, name.msg, "acked", when, proof, name.host, name.sender))
    if session is not None:
        push(core, session, mailbox)


def report(core: Core, session: Session, k: int) -> None:
    """PONG: what this side has of the other's doings (§8)."""
    outbox = core.world.outboxes.get(session.ob)
    more = len(core.world.mailboxes[session.mailbox].pending) - len(session.open) if session.holds else 0
    numbers = sorted(session.open.values())
    core.send(
        session.route,
        wire.Pong(k, outbox.high if outbox else 0, wire.ranges(numbers), max(0, more), core.now),
    )


def unread(mailbox: Mailbox) -> int:
    return len(mailbox.pending)


def oldest(mailbox: Mailbox) -> int:
    """When the longest waiting of its messages came, ms since 1970; 0 when none waits."""
    return next((pending.ts for pending in mailbox.pending.values()), 0)


def named(value: Any, of: Any, limit: int) -> list[Name]:
    """The messages that untrusted arguments name: ids or host/ids, and beside them the mailboxes that sent them. What
    is neither is left out.
    """
    found = []
    senders = of if isinstance(of, list) else []
    for at, text in enumerate(value[:limit] if isinstance(value, list) else ()):
        if isinstance(text, str) and len(text) <= 128:
            host, _, msg = text.rpartition("/")
            sender = senders[at] if at < len(senders) else ""
            found.append(Name(msg, host, sender if isinstance(sender, str) and len(sender) <= 64 else ""))
    return found
