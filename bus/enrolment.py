"""How a machine comes onto the roll and off it: invitation, enrolment, revocation (PROTOCOL.md §14).

The token itself never comes here but in the one frame that brings it; what is kept is its hash. Pure: the shell binds
the port, keeps the roll's file and cuts connections.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from bus import policy, wire
from bus.config import LABEL_MAX, is_label
from bus.core import Core, Invitation, Session, Who
from bus.effects import Admit, Cut, Greet, Shut
from bus.errors import Code, RemoteError
from bus.invitations import digest
from bus.roll import MACHINES_MAX, Principal, Role, with_role
from bus.sessions import forget

HEAD_MAX = 256  # octets of an ENROLL; what is larger is not looked at


def invite(core: Core, hashed: bytes, role: Role, label: str, ttl: int) -> Invitation:
    """Open an invitation for `ttl` ms; the one that was open is closed."""
    withdraw(core, "replaced")
    made = Invitation(hashed, role, label, core.now + ttl, wire.ENROL_TRIES)
    core.invitation = made
    core.at(made.until, "invitation")
    core.batch.doors.append(Admit())
    core.emit("lan.invited", role=role, until=made.until)
    return made


def withdraw(core: Core, why: str) -> bool:
    """Close the invitation that is open, if one is. False when none was."""
    if core.invitation is None:
        return False
    core.invitation = None
    core.batch.doors.append(Shut())
    core.emit("lan.closed", why=why)
    return True


def lapse(core: Core) -> None:
    """Its time may be over."""
    if core.invitation is not None and core.invitation.until <= core.now:
        withdraw(core, "expired")


def enroll(core: Core, route: bytes, public: str, frames: Sequence[bytes]) -> None:
    """One message at the enrolment port, from a machine with the key `public`.

    What is not ENROLL is noise: counted, and neither parsed further nor answered.
    """
    command = _parsed(frames)
    invitation = core.invitation
    if command is None or invitation is None or invitation.until <= core.now:
        core.count("enrolment noise")
        return
    if not hmac.compare_digest(digest(command.token), invitation.digest):
        invitation.tries -= 1
        core.count("enrolment refused")
        core.emit("lan.refused", left=invitation.tries)
        _greet(core, route, Code.FORBIDDEN, "this invitation is not known (ask for another: talkbus lan invite)")
        if invitation.tries <= 0:
            withdraw(core, "tries")
        return
    _admit(core, route, public, command.label, invitation)


def _parsed(frames: Sequence[bytes]) -> wire.Enroll | None:
    if len(frames) != 2 or frames[0] != wire.SIGNATURE or len(frames[1]) > HEAD_MAX:
        return None
    try:
        command = wire.decode(frames, "E")
    except RemoteError:
        return None
    return command if isinstance(command, wire.Enroll) else None


def _admit(core: Core, route: bytes, public: str, calls_itself: str, invitation: Invitation) -> None:
    roll = core.roll
    if public == roll.own:
        _greet(core, route, Code.CONFLICT, "this machine is the hub itself (run the join on another one)")
        return
    if not core.writable:
        _greet(core, route, Code.BUSY, "the hub's disk is full or read-only (make room there, and try again)")
        return
    if public not in roll and len(roll) >= MACHINES_MAX:
        _greet(core, route, Code.FULL, f"the hub knows {MACHINES_MAX} machines (talkbus lan revoke removes one)")
        return
    others = roll.without(public)
    known = roll.find(public)
    label = others.free_label(invitation.label or (known.label if known else label_of(calls_itself)))
    core.enter(others.adding(public, Principal(label, invitation.role, core.now)))
    policy.paired(core, core.roll.own, public)
    _refresh(core, public)
    core.batch.doors.append(Greet(route, wire.Bye()))
    core.emit("lan.joined", host=label, role=invitation.role)
    withdraw(core, "used")


def label_of(text: str) -> str:
    """What a machine calls itself, made to fit the grammar of labels."""
    made = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower())
    made = "-".join(part for part in made.split("-") if part)[:LABEL_MAX].rstrip("-")
    return made if is_label(made) else "host"


def _greet(core: Core, route: bytes, code: Code, text: str) -> None:
    core.batch.doors.append(Greet(route, wire.Err(code, "ENROLL", text=text)))


def undone(core: Core, greet: Greet) -> None:
    """The roll could not be written: whoever was about to hear that he is in hears that he is not."""
    _greet(core, greet.route, Code.BUSY, "the hub's disk is full (make room there, and ask for another invitation)")


def revoke(core: Core, public: str) -> None:
    """Take a key off the roll: its sessions end now, and whatever its connections still say is dropped."""
    core.enter(core.roll.without(public))
    for session in _of(core, public):
        end(core, session, "this machine was taken off the bus")
    core.batch.doors.append(Cut())


def change_role(core: Core, public: str, role: Role) -> None:
    """Another role, for the sessions that are open too; those it does not allow any more end."""
    core.enter(with_role(core.roll, public, role))
    _refresh(core, public)


def _refresh(core: Core, public: str) -> None:
    """Sessions of this key act under what the roll says of it now."""
    known = core.roll.find(public)
    assert known is not None
    for session in _of(core, public):
        session.who = Who(public, known.label, known.role)
        if known.role == "observer" and session.mode != "view":
            end(core, session, "the role of this machine is observer now")


def end(core: Core, session: Session, why: str) -> None:
    """An honest client connects again, and is told the rest then; the session itself is over."""
    core.count("ended")
    core.send(session.route, wire.Err(Code.UNKNOWN_SESSION, text=why))
    forget(core, session.route)


def _of(core: Core, public: str) -> list[Session]:
    return [session for session in core.sessions.values() if session.who.key == public]
