"""After draining: what must hold when nothing moves any more."""

from __future__ import annotations

from collections.abc import Sequence

from bus.world import Mailbox
from tests.pair import ledger_line
from tests.sim.app import AppSeat
from tests.sim.truth import Truth


def idle(seats: Sequence[AppSeat]) -> bool:
    """Whether everybody is connected and has nothing left to do."""
    return all(
        s.state == "open" and s.link.book.unsettled == 0 and not s.link.inbox.moves and not s.hands and not s.choice()
        for s in seats
    )


def no_task_hidden(truth: Truth, seats: Sequence[AppSeat]) -> None:
    """Everybody has shown what may wake a session, though notes wait that nothing shows before a task comes."""
    holders = _holders(truth, seats)
    for (mailbox, n), known in truth.history.copies.items():
        if known.wakes and not known.settled and not known.held and mailbox in holders:
            if any(x.rests and x.msg.id == known.msg for x in holders[mailbox].link.inbox.waiting()):
                continue  # an answer that a call waits for
            truth.fail("window", f"{known.msg} is {n} in the mailbox of {holders[mailbox].label}, behind notes")


def last_look(truth: Truth, seats: Sequence[AppSeat]) -> None:
    """Raise Violation for what was lost, never shown, or told wrongly to the end."""
    holders = _holders(truth, seats)
    _believed(truth)
    _shown(truth, holders)
    _late(truth, holders)
    _seen(truth, seats)
    _asked(truth, seats)


def _holders(truth: Truth, seats: Sequence[AppSeat]) -> dict[str, AppSeat]:
    """Mailbox -> who believes to hold it; the broker must agree, and the names too."""
    assert truth.hub is not None
    broker = truth.hub.alive
    found: dict[str, AppSeat] = {}
    for seat in seats:
        if seat.profile.mode != "hold" or seat.conn is None:
            continue
        held = [m for m, route in broker.core.holders.items() if route == seat.conn.route]
        if len(held) != 1:
            truth.fail("not holding", f"{seat.label} is open as {seat.link.book.name}; at the broker it holds {held}")
            continue
        found[held[0]] = seat
        mine: Mailbox = broker.world.mailboxes[held[0]]
        others = [m for m in broker.world.mailboxes.values() if m.inst == seat.profile.inst and m is not mine]
        if mine.inst != seat.profile.inst or others:
            truth.fail("astray", f"{seat.label} holds {mine.name}; {[m.name for m in others]} wait for it for ever")
    return found


def _believed(truth: Truth) -> None:
    """What was told 2xx is in the database, unless a restored one forgot it."""
    history = truth.history
    for ident, (code, result) in truth.told.items():
        row = truth.rows.get(ident)
        if code >= 300 or row is None or row.op != "send":
            continue
        if ident not in history.applied:
            if ident not in truth.forgotten:
                truth.fail("believed, lost", f"{row}: told {code}, not in the journal")
            continue
        want = sum(1 for told in result.get("to", []) if told["code"] in (200, 202))
        have = sum(1 for c in history.copies.values() if c.mark == ident)
        if want != have:
            truth.fail("believed, lost", f"{row}: told {want} copies, there are {have}")


def _shown(truth: Truth, holders: dict[str, AppSeat]) -> None:
    """Nothing waits in a mailbox that somebody holds."""
    for (mailbox, n), known in truth.history.copies.items():
        if not known.settled and mailbox in holders:
            truth.fail("never shown", f"{known.msg} is {n} in the mailbox of {holders[mailbox].label}")


def _late(truth: Truth, holders: dict[str, AppSeat]) -> None:
    """What the broker took for expired and its agent can prove to have shown was corrected, if the agent stayed."""
    if truth.restored:
        return  # a restored broker tells again what had been corrected
    for (mailbox, n), known in truth.history.copies.items():
        seat = holders.get(mailbox)
        if known.settled != "expired" or "injected" in known.steps or seat is None:
            continue
        if any(
            s.proven and seat.origin.get(key) == mailbox and seat.taken_at.get(key) == seat.moved
            for (ledger, key), s in truth.sights.items()
            if ledger == seat.ledger and key.endswith(known.mark)
        ):
            truth.fail("late truth", f"{known.msg} ({n}) was told expired; {seat.label} has shown it")


def _seen(truth: Truth, seats: Sequence[AppSeat]) -> None:
    """What an application was shown, and proved, is in its ledger."""
    for seat in seats:
        written = {name: key for key, name in seat.names.items()}
        for (ledger, key), sight in truth.sights.items():
            if ledger == seat.ledger and sight.proven:
                line = ledger_line(seat.outbox, written.get(key, key))
                if line is None or line.state != "shown":
                    truth.fail("ledger", f"{seat.label} has shown {key}; its ledger says {line}")


def _asked(truth: Truth, seats: Sequence[AppSeat]) -> None:
    """Every query came to an end (a single lost frame may cost one: they have no barrier)."""
    for seat in seats:
        if seat.link._queries and not truth.dropped_frames:
            truth.fail("unanswered", f"{seat.label} waits for queries {seat.link._queries}")
