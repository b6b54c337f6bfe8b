"""Numbered requests: done once, answered the same for ever (PROTOCOL.md §6).

Knows the core and the table of operations; knows nothing of sockets or disk.
"""

from __future__ import annotations

from bus import journal, wire
from bus.core import Core, Session, trip
from bus.effects import AddOp, Recall
from bus.errors import Code, Refused
from bus.governor import MACHINE_FACTOR, RATE_MS
from bus.ops import OPS
from bus.ops.kinds import Answer, check, signature
from bus.world import Outbox, Saved

FULL_RETRY_MS = 1000
REPLY_HEAD_MAX = 3500


def request(core: Core, session: Session, req: wire.Req) -> None:
    """Answer one REQ: REP of a new or a saved result, or ERR."""
    if not session.ob:
        _err(core, session, req.q, Code.FORBIDDEN, "a view session has no outbox")
        return
    box = core.world.outboxes.get(session.ob) or Outbox(session.ob, session.who.key)
    digest = wire.digest(req.op, req.id, req.args, req.body)
    if req.q > box.high + 1:
        core.send(session.route, wire.Err(Code.OUT_OF_ORDER, "REQ", req.q, want=box.high + 1))
    elif req.q < 1:
        _err(core, session, req.q, Code.MALFORMED, "requests are numbered from 1")
    elif req.q <= box.high:
        _again(core, session, box, req.q, digest)
    elif req.floor <= box.high and session.mine < box.high:
        # A copied or restored outbox may share its number with another: what came before must be seen to agree.
        core.send(session.route, wire.Err(Code.OUT_OF_ORDER, "REQ", req.q, want=box.high))
    elif not core.writable:
        _err(core, session, req.q, Code.BUSY, "the broker's disk is full or read-only", FULL_RETRY_MS)
    elif wait := _wait(core, session, req):
        _err(core, session, req.q, Code.TOO_MANY, "too many requests", wait)
    else:
        _do(core, session, box, req, digest)


def _err(core: Core, session: Session, q: int, code: Code, text: str, retry: int = 0) -> None:
    core.send(session.route, wire.Err(code, "REQ", q, retry=retry, text=text))


def _again(core: Core, session: Session, box: Outbox, q: int, digest: bytes) -> None:
    saved = box.saved.get(q)
    if saved is None:
        core.batch.sends.append(Recall(session.route, box.id, q, digest))
        return
    if saved.digest == digest:
        session.mine = max(session.mine, q)
    core.send(session.route, answer_again(q, saved, digest))


def answer_again(q: int, saved: Saved | None, digest: bytes) -> wire.Rep | wire.Err:
    """The answer to a number that is done: the same reply, ERR 409 for other content, 410 when the journal forgot."""
    if saved is None:
        return wire.Rep(q, Code.GONE, text="done long ago; its record was pruned")
    if saved.digest != digest:
        return wire.Err(Code.CONFLICT, "REQ", q, text="this number was used for another request")
    return reply(q, saved.code, saved.reply)


def reply(q: int, code: int, packed: bytes) -> wire.Rep:
    """REP from a saved reply; a result too large for the head travels in the body."""
    if len(packed) > wire.BODY_MAX:
        return wire.Rep(q, code, {"large": True}, "the result is too large to be told (the queries tell it)")
    if len(packed) > REPLY_HEAD_MAX:
        return wire.Rep(q, code, {"large": True}, body=packed)
    result, text = wire.unpack(packed)
    return wire.Rep(q, code, result, text)


def _wait(core: Core, session: Session, req: wire.Req) -> int:
    """0 when the request is within the rate of the session, and of its machine, else ms until a few more are.

    A machine has a rate of its own, for a session that opened one outbox after another would have none. The owner's
    own sessions are spared: whom they could flood is himself.
    """
    op = OPS.get(req.op)
    settings = core.settings
    if settings.rate <= 0 or (op is not None and not op.metered):
        return 0
    buckets = {session.ob: (settings.rate, settings.burst)}
    if session.who.role != "owner":
        factor = MACHINE_FACTOR
        buckets[session.who.key] = (factor * settings.rate, factor * settings.burst)
    if core.governor.within(core.now, buckets):
        return 0
    trip(core, "rate", core.world.mailboxes[session.mailbox], core.now + RATE_MS)
    return max(20, int(1000 * min(32, settings.burst) / settings.rate))


def _do(core: Core, session: Session, box: Outbox, req: wire.Req, digest: bytes) -> None:
    """Do it and save the reply: one transaction with everything it wrote."""
    answer = _perform(core, session, req)
    world = core.world
    code, text = int(answer.code), wire.clip(answer.text, 1500)
    packed = wire.pack([answer.result, text])
    seq = world.seq + 1
    who = signature(world.mailboxes[session.mailbox])
    chain = journal.chain(world.chain, seq, core.now, box.id, req.q, req.op[:64], digest, code, packed, who)
    world.seq, world.chain = seq, chain
    world.outboxes[box.id] = box
    box.high = req.q
    floor = min(max(box.floor, req.floor), req.q)
    for q in range(box.floor, floor):
        box.saved.pop(q, None)
    box.floor = floor
    box.saved[req.q] = Saved(digest, code, packed)
    session.mine = req.q
    core.advanced(box)
    core.write(AddOp(seq, core.now, box.id, req.q, req.op[:64], digest, chain, code, packed, who))
    large = len(packed) > REPLY_HEAD_MAX
    core.send(session.route, reply(req.q, code, packed) if large else wire.Rep(req.q, code, answer.result, text))


def _perform(core: Core, session: Session, req: wire.Req) -> Answer:
    op = OPS.get(req.op)
    try:
        if op is None:
            raise Refused(Code.INVALID, f"there is no operation {req.op[:40]!r} (this broker may be older)")
        if op.role and session.who.role != op.role:
            raise Refused(Code.FORBIDDEN, f"{req.op} needs the role {op.role}")
        check(op, req.args)
        return op.handler(core, session, req)
    except Refused as refused:
        return Answer(refused.code, {k: v for k, v in refused.extra.items() if v}, str(refused))
