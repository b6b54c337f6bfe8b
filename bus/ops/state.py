"""Operations on shared state: compare-and-set, time-to-live, delete (PROTOCOL.md §10)."""

from __future__ import annotations

from bus import names, wire
from bus.core import Core, Session
from bus.effects import DropState, PutState
from bus.errors import Code, Refused
from bus.ops.kinds import Answer, own_mailbox, signature
from bus.world import Entry


def present(core: Core, key: str) -> Entry | None:
    """The living entry of a key."""
    entry = core.world.state.get(key)
    return None if entry is None or (entry.expires and entry.expires <= core.now) else entry


def _compare(entry: Entry | None, key: str, args: dict[str, int]) -> None:
    if "ver" not in args:
        return
    have = entry.ver if entry else 0
    if args["ver"] != have:
        raise Refused(
            Code.CONFLICT,
            f"{key!r} is at version {have}, not {args['ver']} (read it again and decide)"
            if have
            else f"{key!r} does not exist (version 0)",
            ver=have,
            by=entry.by if entry else "",
        )


def set_value(core: Core, session: Session, req: wire.Req) -> Answer:
    """Write a value; its version is the number of this operation in the journal."""
    writer = own_mailbox(core, session)
    key = names.check_key(req.args["key"])
    if not req.body:
        raise Refused(Code.INVALID, "the value is empty (a JSON value is wanted)")
    if len(req.body) > wire.STATE_VALUE_MAX:
        raise Refused(Code.TOO_LARGE, f"the value has {len(req.body)} octets, {wire.STATE_VALUE_MAX} are allowed")
    entry = present(core, key)
    _compare(entry, key, req.args)
    if entry is None and key not in core.world.state and len(core.world.state) >= core.settings.state_keys:
        raise Refused(Code.FULL, f"there are {core.settings.state_keys} keys already (delete some)")
    ttl = req.args.get("ttl", 0)
    expires = core.now + ttl if ttl else 0
    ver = core.world.seq + 1
    project = str(writer.meta.get("project", ""))
    made = Entry(key, ver, signature(writer), project, core.now, expires, len(req.body))
    _forget_end(core, key)
    core.world.state[key] = made
    core.write(PutState(made, req.body))
    if expires:
        core.at(expires, "state", key)
    core.emit("state.set", key=key, ver=ver, by=made.by, size=made.size)
    return Answer(Code.OK, {"ver": ver})


def delete(core: Core, session: Session, req: wire.Req) -> Answer:
    """Remove a key; 404 when it is not there."""
    key = names.check_key(req.args["key"])
    entry = present(core, key)
    if entry is None:
        raise Refused(Code.NOT_FOUND, f"there is no state key {key!r}")
    _compare(entry, key, req.args)
    _drop(core, key, signature(own_mailbox(core, session)))
    return Answer(Code.OK, {"ver": core.world.seq + 1})


def _forget_end(core: Core, key: str) -> None:
    former = core.world.state.get(key)
    if former is not None:
        core.call_off(former.expires, "state", key)


def _drop(core: Core, key: str, by: str) -> None:
    _forget_end(core, key)
    del core.world.state[key]
    core.write(DropState(key))
    core.emit("state.delete", key=key, by=by)


def expire(core: Core, key: str) -> None:
    """A time-to-live ran out."""
    entry = core.world.state.get(key)
    if entry is not None and entry.expires and entry.expires <= core.now:
        _drop(core, key, "")
