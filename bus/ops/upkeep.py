"""Operations on the store as a whole: prune (PROTOCOL.md §10)."""

from __future__ import annotations

from bus import wire
from bus.core import Core, Session
from bus.effects import PutMeta
from bus.errors import Code, Refused
from bus.ops.kinds import Answer


def prune(core: Core, _session: Session, req: wire.Req) -> Answer:
    """Order the removal; the store works it off in pieces. An earlier, later-reaching order stays."""
    before = req.args["before"]
    if before > core.now:
        raise Refused(Code.INVALID, "'before' lies in the future")
    if core.world.prune_before > core.now:
        raise Refused(
            Code.CONFLICT,
            "a clock that was ahead ordered a pruning up to a time to come; until then only what prune.days says "
            "is pruned (see talkbus doctor)",
        )
    if before > core.world.prune_before:
        core.world.prune_before = before
        core.write(PutMeta("prune_before", before))
        core.emit("bus.prune", before=before)
    return Answer(Code.OK, {"before": core.world.prune_before})
