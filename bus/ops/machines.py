"""Operations on the roll: invite, close, revoke, another role (PROTOCOL.md §10, §14)."""

from __future__ import annotations

from bus import enrolment, wire
from bus.config import LABEL_MAX, is_label
from bus.core import Core, Session
from bus.errors import Code, Refused
from bus.invitations import DIGEST_SIZE
from bus.ops.kinds import Answer
from bus.roll import ROLES, Role, role_of


def invite(core: Core, _session: Session, req: wire.Req) -> Answer:
    """One invitation is open at a time. The caller made the token and tells its hash: the token itself never comes
    here before it is used.
    """
    args = req.args
    try:
        hashed = bytes.fromhex(args["digest"])
    except ValueError:
        hashed = b""
    if len(hashed) != DIGEST_SIZE:
        raise Refused(Code.INVALID, f"'digest' is no hash of {DIGEST_SIZE} octets in hex")
    ttl = args.get("ttl", wire.ENROL_MS)
    if not 1000 <= ttl <= wire.ENROL_MS:
        raise Refused(Code.INVALID, f"'ttl' is 1000 to {wire.ENROL_MS} ms")
    label = args.get("label", "")
    if label:
        _check_label(label)
    made = enrolment.invite(core, hashed, _role(args.get("role", "member")), label, ttl)
    return Answer(Code.OK, {"until": made.until, "role": made.role})


def close(core: Core, _session: Session, _req: wire.Req) -> Answer:
    """Withdraw the invitation."""
    if not enrolment.withdraw(core, "withdrawn"):
        raise Refused(Code.NOT_FOUND, "no invitation is open")
    return Answer()


def revoke(core: Core, session: Session, req: wire.Req) -> Answer:
    """Off the roll, and off the bus at once."""
    label, public = _machine(core, session, req)
    enrolment.revoke(core, public)
    core.emit("lan.revoked", host=label)
    return Answer(Code.OK, {"host": label})


def change_role(core: Core, session: Session, req: wire.Req) -> Answer:
    """Another role for a machine; it counts at once."""
    label, public = _machine(core, session, req)
    role = _role(req.args["role"])
    enrolment.change_role(core, public, role)
    core.emit("lan.role", host=label, role=role)
    return Answer(Code.OK, {"host": label, "role": role})


def _machine(core: Core, session: Session, req: wire.Req) -> tuple[str, str]:
    """Label and key of another machine than the hub and the caller's own."""
    label = req.args["host"].strip().lower()
    public = core.roll.labelled(label)
    if public is None:
        others = sorted(one.label for key, one in core.roll if key != core.roll.own)
        known = f"the machines are {', '.join(others[:16])}" if others else "no machine is paired"
        raise Refused(Code.NOT_FOUND, f"no machine is called {label[:64]!r} ({known})")
    if public == core.roll.own:
        raise Refused(Code.INVALID, f"{label!r} is the hub itself (talkbus lan down closes it to the network)")
    if public == session.who.key:
        raise Refused(Code.INVALID, f"{label!r} is the machine you are on (talkbus lan leave, or ask at the hub)")
    return label, public


def _role(text: str) -> Role:
    role = role_of(text)
    if role is None:
        raise Refused(Code.INVALID, f"role {text[:20]!r} is none of {', '.join(ROLES)}")
    return role


def _check_label(label: str) -> None:
    if not is_label(label):
        raise Refused(Code.INVALID, f"label {label[:40]!r} is not at most {LABEL_MAX} of a-z 0-9 -")
