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
    (session.todo if pending.wakes else session.todo_quiet).append(pending.n)
    push(core, session, mailbox)
    if session.todo or session.todo_quiet:
        core.crowded[session.route] = None


def answered(core: Core, mailbox: Mailbox, pending: Pending) -> None:
    """This copy came to a mailbox: if it replies to a message of that mailbox, and its sender was sent that one, that
    one is answered there. Only the disk knows whether it was.
    """
    by = core.world.mailboxes.get(pending.sender)
    if pending.re and by is not None:
        core.write(MoveById(by.id, pending.re, "answered", core.now, pending.msg, sender=mailbox.id))


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
    session.quiet.clear()
    session.todo = deque(n for n, pending in mailbox.pending.items() if pending.wakes)
    session.todo_quiet = deque(n for n, pending in mailbox.pending.items() if not pending.wakes)
    push(core, session, mailbox)
    if session.todo or session.todo_quiet:
        core.crowded[session.route] = None


def _next(session: Session, mailbox: Mailbox) -> int:
    """What is pushed next, the lower number first; 0 for nothing. Of what wakes nobody, which may wait for long until
    it is shown, only so much is pushed that the rest of the window is free for what wakes.
    """
    pending, todo, quiet = mailbox.pending, session.todo, session.todo_quiet
    while todo and todo[0] not in pending:
        todo.popleft()
    if len(session.quiet) < wire.WINDOW_QUIET:
        while quiet and quiet[0] not in pending:
            quiet.popleft()
        if quiet and (not todo or quiet[0] < todo[0]):
            return quiet.popleft()
    return todo.popleft() if todo else 0


def begin_life(core: Core, session: Session, mailbox: Mailbox) -> None:
    """Another process of a client gets the mail: what was pushed until now, the one before it may have shown."""
    if mailbox.life != session.life:
        mailbox.life = session.life
        mailbox.former, mailbox.former_quiet = mailbox.pushed, mailbox.pushed_quiet
        core.changed(mailbox)


def end_life(core: Core, session: Session, mailbox: Mailbox, begun: wire.Ranges) -> None:
    """A process has ended in good order. It began to show what it names; the rest is as if it was never pushed."""
    for n, pushed in session.open.items():
        pending = mailbox.pending.get(n)
        if pending is not None and any(a <= pushed <= b for a, b in begun):
            offered(core, mailbox, pending, core.now, "")
    mailbox.life = ""
    mailbox.pushed, mailbox.pushed_quiet = mailbox.former, mailbox.former_quiet
    core.changed(mailbox)


def _seen_before(core: Core, mailbox: Mailbox, pending: Pending, wakes: bool) -> bool:
    """Take note that it is pushed now. Whether an earlier process may have seen it: it was pushed there.

    What is noted is on the disk before anything leaves, in a row that is written with new mail anyway.
    """
    n = pending.n
    if n > (mailbox.pushed if wakes else mailbox.pushed_quiet) and core.writable:
        if wakes:
            mailbox.pushed = n
        else:
            mailbox.pushed_quiet = n
        core.changed(mailbox)
    return pending.status == "offered" or n <= (mailbox.former if wakes else mailbox.former_quiet)


def maybe_seen(core: Core, mailbox: Mailbox) -> tuple[int, int]:
    """The numbers, of what wakes and of the rest, up to which somebody may have been shown what is in this mailbox,
    for whoever asks for it there. A living holder has told what it began to show; one that is gone may not have.
    """
    if core.holder(mailbox) is not None:
        return mailbox.former, mailbox.former_quiet
    return mailbox.pushed, mailbox.pushed_quiet


def note_pushed(core: Core) -> None:
    """Take note of what was pushed while the disk took no writes."""
    for mailbox_id, route in core.holders.items():
        mailbox, session = core.world.mailboxes[mailbox_id], core.sessions.get(route)
        waking = [n for n in session.open if n not in session.quiet] if session else []
        quiet = list(session.quiet) if session else []
        if max(waking, default=0) > mailbox.pushed or max(quiet, default=0) > mailbox.pushed_quiet:
            mailbox.pushed = max(mailbox.pushed, *waking) if waking else mailbox.pushed
            mailbox.pushed_quiet = max(mailbox.pushed_quiet, *quiet) if quiet else mailbox.pushed_quiet
            core.changed(mailbox)


def push(core: Core, session: Session, mailbox: Mailbox) -> None:
    """Fill the window."""
    while len(session.open) < wire.WINDOW and (n := _next(session, mailbox)):
        pending = mailbox.pending[n]
        wakes = pending.wakes
        ttl = max(1, pending.expires - core.now) if pending.expires else 0
        again = _seen_before(core, mailbox, pending, wakes)
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
                mailbox.id,
            )
        )
        session.prev = session.open[n] = session.pushed
        if not wakes:
            session.quiet.add(n)


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
        session.quiet.discard(n)
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
    session.quiet.clear()
    session.todo.clear()
    session.todo_quiet.clear()
    session.holds = False


def offered(core: Core, mailbox: Mailbox, pending: Pending, when: int, proof: str) -> None:
    """A path of the recipient's agent has it, or had it; the first time counts."""
    if pending.status == "stored":
        pending.status = "offered"
        core.write(Move(mailbox.id, pending.n, "offered", when, proof, False))
        tell(core, mailbox, pending.msg, "offered", when, proof, pending)


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
        offered(core, mailbox, pending, when, proof)
        return
    if pending.status != "offered" and status != "injected":
        core.count("receipt not offered")
        return
    session = core.holder(mailbox)
    # Who acknowledges a message has seen it: that is the proof.
    leave(
        core,
        mailbox,
        n,
        "failed" if status == "failed" else "injected",
        "acked" if status == "acked" else proof,
        when,
    )
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
