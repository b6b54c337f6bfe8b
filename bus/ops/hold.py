"""Operations of the person at a machine: the policy, what is held, the pause (PROTOCOL.md §10).

Everything here is about the caller's own key, and nothing of it is for a session of a model: see `person`.
"""

from __future__ import annotations

from typing import Any

from bus import names, policy, wire
from bus.addresses import by_name
from bus.core import Core, Session
from bus.deliveries import named
from bus.errors import Code, Refused
from bus.ops.kinds import Answer, own_mailbox
from bus.ops.mail import KINDS
from bus.world import Rule


def person(session: Session) -> str:
    """The key whose policy this session may change. Refused (403) for whoever does not act for a person.

    A session says by itself that it is a person's, and every program of that key can: this keeps out agents, their
    tools, and whoever steers them by a message. Other keys it keeps out for certain.
    """
    if not session.person:
        raise Refused(
            Code.FORBIDDEN,
            "only a person decides that, at a terminal of this machine, outside any session (talkbus policy --help)",
        )
    return session.who.key


def set_rule(core: Core, session: Session, req: wire.Req) -> Answer:
    """Write a rule; the answer says what it is about, as it was understood."""
    key, args = person(session), req.args
    if args["action"] not in policy.ACTIONS:
        raise Refused(Code.INVALID, f"{args['action'][:20]!r} is none of {', '.join(policy.ACTIONS)}")
    about = _about(core, session, args)
    policy.put_rule(core, Rule(key, *about, args["action"], core.now))
    return Answer(Code.OK, {"rule": _told(core, about, args["action"])})


def unset_rule(core: Core, session: Session, req: wire.Req) -> Answer:
    """Remove the rule that is about exactly this."""
    key, about = person(session), _about(core, session, req.args)
    policy.drop_rule(core, key, about)
    return Answer(Code.OK, {"rule": _told(core, about, "")})


def _told(core: Core, about: tuple[str, str, str], action: str) -> dict[str, Any]:
    machine, name, kind = about
    label = policy.label_of(core, machine) if machine else ""
    return {"machine": machine, "host": label, "name": name, "kind": kind, "action": action}


def _about(core: Core, session: Session, args: dict[str, Any]) -> tuple[str, str, str]:
    """Machine, name and kind as a rule has them. A name without its machine is looked up as an address is."""
    own = session.who.key
    name, machine, kind = args.get("name", ""), args.get("machine", ""), args.get("kind", "")
    if kind and kind not in KINDS:
        raise Refused(Code.INVALID, f"kind {kind[:20]!r} is none of {', '.join(KINDS)}")
    name = names.check_name(name) if name else ""
    if machine:
        return policy.machine_key(core, own, machine), name, kind
    if not name:
        return "", "", kind
    found = by_name(core, own_mailbox(core, session), name)
    if len(found) == 1:
        return found[0].key, name, kind
    where = ", ".join(f"{m.name}@{m.host}" for m in found[:8]) or "nobody has it yet"
    code = Code.CONFLICT if found else Code.NOT_FOUND
    raise Refused(code, f"whose {name!r}? names are chosen by who has them, so say NAME@MACHINE ({where})")


def release(core: Core, session: Session, req: wire.Req) -> Answer:
    """These go on as stored."""
    return _each(core, session, req, "")


def drop(core: Core, session: Session, req: wire.Req) -> Answer:
    """These will never be shown, and their senders are told."""
    return _each(core, session, req, req.args.get("reason", "")[:40] or "dropped by a person")


def _each(core: Core, session: Session, req: wire.Req, reason: str) -> Answer:
    key = person(session)
    done, missing = 0, []
    names = list(dict.fromkeys(named(req.args["ids"], req.args.get("of"), wire.RECEIPT_IDS)))
    for name in names:
        policy.named(core, key, name)  # refuses before anything is done
    for name in names:
        found = policy.named(core, key, name)
        for mailbox, pending in found:
            if reason:
                policy.drop(core, mailbox, pending, "failed", reason)
            else:
                policy.release(core, mailbox, pending, "released by a person")
            done += 1
        if not found:
            missing.append(f"{name.host}/{name.msg}" if name.host else name.msg)
    if not done:
        raise Refused(Code.NOT_FOUND, "nothing of that is held here (talkbus hold list)")
    return Answer(Code.OK, {"done": done, "missing": missing})


def pause(core: Core, session: Session, req: wire.Req) -> Answer:
    """Hold everything that comes from now on, or go on and release what only this held back."""
    released = policy.set_pause(core, person(session), req.args["on"])
    return Answer(Code.OK, {"paused": req.args["on"], "released": released})
