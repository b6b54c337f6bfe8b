"""What becomes of mail by the recipient's word: accept, hold, refuse; what is held, released, dropped; the pause.

A policy belongs to an owner's key and is about the mail to all of its mailboxes: the person of each machine decides
for that machine. Without a rule the own key's mail is accepted and everybody else's is held. Knows the core and the
deliveries; it knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from bus.core import Core
from bus.deliveries import Name, answered, arrive, expire_at, tell
from bus.effects import AddDelivery, DropRule, Move, PutPause, PutRule, Release
from bus.errors import Code, Refused
from bus.governor import POLICY_RULES
from bus.world import Mailbox, Pending, Rule

ACTIONS = ("accept", "hold", "refuse")
PAUSED, NO_RULE, BY_RULE = "paused", "no rule for this machine", "by a rule"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one copy; `why` is a word for its sender."""

    action: str
    why: str = ""


ACCEPT = Verdict("accept")


def verdict(core: Core, sender: Mailbox, recipient: Mailbox, kind: str) -> Verdict:
    """The most specific rule decides: name at a machine, then the machine, each before with the kind than without;
    then, for other machines only, the kind, then everybody. A pause holds what would be accepted.
    """
    rules = core.world.policy.get(recipient.key)
    own = sender.key == recipient.key
    rule = None
    if rules:
        machine, name = sender.key, sender.name
        tried = [(machine, name, kind), (machine, name, ""), (machine, "", kind), (machine, "", "")]
        if not own:
            tried += [("", "", kind), ("", "", "")]
        rule = next((rules[about] for about in tried if about in rules), None)
    found = Verdict(rule.action, BY_RULE) if rule else ACCEPT if own else Verdict("hold", NO_RULE)
    if found.action == "accept" and recipient.key in core.world.paused:
        return Verdict("hold", PAUSED)
    return found


def paired(core: Core, hub_key: str, member_key: str) -> None:
    """Two machines were paired by their people: each accepts the other's mail from now on. A rule that somebody made
    about the whole machine stays. Keys as z85 text. Never refused: who has too many rules goes on holding that mail.
    """
    for key, machine in ((hub_key, member_key), (member_key, hub_key)):
        if (machine, "", "") not in core.world.policy.get(key, {}):
            with suppress(Refused):
                put_rule(core, Rule(key, machine, "", "", "accept", core.now))


def put_rule(core: Core, rule: Rule) -> None:
    """Refused (507) when a key has too many."""
    rules = core.world.policy.setdefault(rule.key, {})
    if rule.about not in rules and len(rules) >= POLICY_RULES:
        raise Refused(Code.FULL, f"there are {POLICY_RULES} rules already (unset some)")
    rules[rule.about] = rule
    core.write(PutRule(rule))
    core.emit("bus.policy", host=label_of(core, rule.key))


def drop_rule(core: Core, key: str, about: tuple[str, str, str]) -> None:
    """Refused (404) when there is none."""
    rules = core.world.policy.get(key, {})
    if about not in rules:
        raise Refused(Code.NOT_FOUND, "there is no such rule (talkbus policy lists them)")
    del rules[about]
    if not rules:
        del core.world.policy[key]
    core.write(DropRule(key, about))
    core.emit("bus.policy", host=label_of(core, key))


def machine_key(core: Core, own: str, text: str) -> str:
    """The key of a machine named by its label or by the key itself. Refused: 404 unknown, 409 several."""
    wanted = text.strip()
    known = dict(machines(core))
    if wanted in known:
        return wanted
    found = sorted(key for key, label in known.items() if label.lower() == wanted.lower())
    if len(found) == 1:
        return found[0]
    if found:
        raise Refused(
            Code.CONFLICT, f"several machines were called {wanted[:64]!r}: {', '.join(found[:4])} (use a key)"
        )
    near = ", ".join(sorted(set(known.values()) - {known.get(own, "")})[:8])
    raise Refused(Code.NOT_FOUND, f"no machine is called {wanted[:64]!r} (known: {near or 'no other machine yet'})")


def machines(core: Core) -> Iterator[tuple[str, str]]:
    """Keys and labels of all that have a mailbox or a session here."""
    for mailbox in core.world.mailboxes.values():
        yield mailbox.key, mailbox.host
    for session in core.sessions.values():
        yield session.who.key, session.who.host
    for rules in core.world.policy.values():
        for rule in rules.values():
            if rule.machine:
                yield rule.machine, label_of(core, rule.machine)


def label_of(core: Core, key: str) -> str:
    """What a machine is called; the beginning of its key where it was never here."""
    for mailbox in core.world.mailboxes.values():
        if mailbox.key == key:
            return mailbox.host
    return next((s.who.host for s in core.sessions.values() if s.who.key == key), key[:12])


# -- what is held ----------------------------------------------------------------------------------------------------


def hold_back(core: Core, mailbox: Mailbox, pending: Pending, why: str) -> None:
    """Keep one message for a person. Its number is a provisional one: with its release it gets another."""
    mailbox.top += 1
    pending.n, pending.status, pending.why = mailbox.top, "held", why
    core.weigh(mailbox, pending.size)
    mailbox.held[pending.n] = pending
    core.changed(mailbox)
    core.write(
        AddDelivery(
            mailbox.id, pending.n, pending.sender, pending.msg, mailbox.name, "held", core.now, why, pending.quiet
        )
    )
    expire_at(core, mailbox, pending)


def held_of(core: Core, key: str) -> Iterator[tuple[Mailbox, Pending]]:
    """Everything that is held for the person of a key, in the order it came to each mailbox."""
    for mailbox in core.world.mailboxes.values():
        if mailbox.key == key:
            yield from ((mailbox, pending) for pending in list(mailbox.held.values()))


def named(core: Core, key: str, name: Name) -> list[tuple[Mailbox, Pending]]:
    """The held copies of one message. Refused (409) where the name fits messages of several senders."""
    boxes = core.world.mailboxes
    found = [
        (mailbox, pending)
        for mailbox, pending in held_of(core, key)
        if pending.msg == name.msg
        and name.sender in ("", pending.sender)
        and name.host in ("", boxes[pending.sender].host)
    ]
    senders = dict.fromkeys(f"{boxes[p.sender].name}@{boxes[p.sender].host}" for _, p in found)
    if len({pending.sender for _, pending in found}) > 1:
        several = ", ".join(senders)
        raise Refused(Code.CONFLICT, f"messages of several senders have the id {name.msg}: {several} (say which)")
    return found


def release(core: Core, mailbox: Mailbox, pending: Pending, proof: str) -> None:
    """It goes on as stored, behind what came meanwhile."""
    del mailbox.held[pending.n]
    core.call_off(pending.expires, "expire", mailbox.id, pending.n)
    former = pending.n
    mailbox.top += 1
    pending.n, pending.status, pending.why = mailbox.top, "stored", ""
    core.changed(mailbox)
    core.write(Release(mailbox.id, former, pending.n, core.now, proof))
    expire_at(core, mailbox, pending)
    arrive(core, mailbox, pending)
    sender = core.world.mailboxes[pending.sender]
    core.emit(
        "msg.stored",
        id=pending.msg,
        fid=sender.id,
        **{"from": sender.name, "from_host": sender.host},
        to=mailbox.name,
        host=mailbox.host,
        mailbox=mailbox.id,
        kind=pending.kind,
        re=pending.re,
        size=pending.size,
        released=True,
    )
    answered(core, mailbox, pending)


def drop(core: Core, mailbox: Mailbox, pending: Pending, status: str, proof: str) -> None:
    """It is settled without ever having been shown: `failed` by a person's word, `expired` by its own time."""
    del mailbox.held[pending.n]
    core.call_off(pending.expires, "expire", mailbox.id, pending.n)
    core.weigh(mailbox, -pending.size)
    core.write(Move(mailbox.id, pending.n, status, core.now, proof, True))
    tell(core, mailbox, pending.msg, status, core.now, proof, pending)


def set_pause(core: Core, key: str, on: bool) -> int:
    """Hold everything, or go on; what only the pause held back is released. Returns how many that were."""
    if on:
        if key not in core.world.paused:
            core.world.paused[key] = core.now
            core.write(PutPause(key, core.now))
            core.emit("bus.pause", host=label_of(core, key), on=True)
        return 0
    if core.world.paused.pop(key, None) is None:
        return 0
    core.write(PutPause(key, 0))
    core.emit("bus.pause", host=label_of(core, key), on=False)
    waiting = [(mailbox, pending) for mailbox, pending in held_of(core, key) if pending.why == PAUSED]
    for mailbox, pending in waiting:
        release(core, mailbox, pending, "resumed")
    return len(waiting)


def expire(core: Core, mailbox_id: str, n: int) -> None:
    """The time of something held ran out."""
    mailbox = core.world.mailboxes.get(mailbox_id)
    pending = mailbox.held.get(n) if mailbox else None
    if mailbox is not None and pending is not None and 0 < pending.expires <= core.now:
        drop(core, mailbox, pending, "expired", "while it was held")
