"""Operations on mail: send, receipt, settle (PROTOCOL.md §10)."""

from __future__ import annotations

from typing import Any

from bus import names, wire
from bus.addresses import Target, resolve
from bus.core import Core, Session
from bus.deliveries import STEPS, deliver, ids, leave, push, step, tell
from bus.effects import AddMessage, AddRefusal, MoveById
from bus.errors import Code, Refused
from bus.ops.kinds import Answer, own_mailbox
from bus.world import Mailbox, Pending

KINDS = ("task", "note")
NEWS = {Code.OK: "stored", Code.HELD: "held"}
REASON_MAX = 200  # characters of a refusal that everybody is told


def send(core: Core, session: Session, req: wire.Req) -> Answer:
    """One copy in the mailbox of each recipient of this moment; the answer names every one of them."""
    sender = own_mailbox(core, session)
    args = req.args
    kind = args.get("kind", "task")
    if kind not in KINDS:
        raise Refused(Code.INVALID, f"kind {kind[:20]!r} is none of {', '.join(KINDS)}")
    if args.get("tag"):
        names.check_tag(args["tag"])
    for key in ("re", "thread"):
        if args.get(key) and not names.MESSAGE_ID.match(args[key]):
            raise Refused(Code.INVALID, f"{key!r} is no message id (16 of a-z 2-7)")
    if not names.MESSAGE_ID.match(req.id):
        raise Refused(Code.INVALID, "id is no message id (16 of a-z 2-7)")
    _check_text(req.body)
    targets = _recipients(core, sender, args)
    expires = core.now + args["ttl"] if args.get("ttl") else 0
    answered = args.get("re", "")
    core.write(
        AddMessage(
            req.id,
            sender.id,
            sender.name,
            sender.host,
            sender.key,
            kind,
            args.get("tag", ""),
            answered,
            args.get("thread") or answered,
            core.now,
            expires,
            args.get("hops", 0),
            req.body,
        )
    )
    told = [_one(core, sender, req, target, expires, kind) for target in targets]
    if answered:
        core.write(MoveById(sender.id, answered, "answered", core.now, req.id))
        tell(core, sender, answered, "answered", core.now, req.id)
    return Answer(Code(max(row["code"] for row in told)), {"to": told})


def _check_text(body: bytes) -> None:
    if not body:
        raise Refused(Code.INVALID, "the message is empty")
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise Refused(Code.INVALID, f"the message is not UTF-8 (octet {error.start})") from error


def _recipients(core: Core, sender: Mailbox, args: dict[str, Any]) -> list[Target]:
    """Resolved, without repetition and without the excluded; at least one."""
    wanted, excluded = args["to"], args.get("exclude", [])
    for entry in (*wanted, *excluded):
        if type(entry) is not str:
            raise Refused(Code.INVALID, "'to' and 'exclude' are lists of addresses")
    if not 1 <= len(wanted) <= wire.RECIPIENTS_MAX or len(excluded) > 64:
        raise Refused(Code.INVALID, f"'to' takes 1 to {wire.RECIPIENTS_MAX} addresses, 'exclude' at most 64")
    out = {t.mailbox.id for text in excluded for t in resolve(core, sender, text, new=False) if t.mailbox}
    found: dict[str, Target] = {}
    for text in wanted:
        for target in resolve(core, sender, text, new=bool(args.get("new"))):
            if target.mailbox is None:
                found.setdefault(f"!{text}", target)
            elif target.mailbox.id not in out:
                found.setdefault(target.mailbox.id, target)
    if not found:
        raise Refused(Code.NOT_FOUND, "nobody is left to send to (no living session, or all are excluded)")
    return list(found.values())


def _one(core: Core, sender: Mailbox, req: wire.Req, target: Target, expires: int, kind: str) -> dict[str, Any]:
    mailbox = target.mailbox
    if mailbox is None:
        return _refuse(core, sender, req, target.text, "", target.code, target.why)
    size = len(req.body)
    settings = core.settings
    if len(mailbox.pending) >= settings.mailbox_messages or core.octets(mailbox) + size > settings.mailbox_bytes:
        why = f"the mailbox of {mailbox.name} is full ({len(mailbox.pending)} unread); it must read first"
        return _refuse(core, sender, req, mailbox.name, mailbox.host, Code.FULL, why)
    if sender.id in core.numbers(mailbox).get(req.id, {}):
        return {"name": mailbox.name, "host": mailbox.host, "status": "stored", "code": int(Code.OK)}
    deliver(core, mailbox, Pending(0, req.id, sender.id, kind, size, expires, ts=core.now))
    core.emit(
        "msg.stored",
        id=req.id,
        **{"from": sender.name, "from_host": sender.host},
        to=mailbox.name,
        host=mailbox.host,
        mailbox=mailbox.id,
        kind=kind,
        tag=req.args.get("tag", ""),
        re=req.args.get("re", ""),
        size=size,
    )
    told = {"name": mailbox.name, "host": mailbox.host, "status": "stored", "code": int(Code.OK)}
    if core.presence(mailbox) != "open":
        told["text"] = "offline; it waits"
    return told


def _refuse(core: Core, sender: Mailbox, req: wire.Req, name: str, host: str, code: Code, why: str) -> dict[str, Any]:
    core.write(AddRefusal(sender.id, req.id, name[:128], host, int(code), why, core.now))
    core.emit(
        "msg.refused",
        id=req.id,
        **{"from": sender.name, "from_host": sender.host},
        to=name[:128],
        host=host,
        kind=req.args.get("kind", "task"),
        code=int(code),
        text=wire.clip(why, REASON_MAX),
    )
    return {"name": name[:128], "host": host, "status": "refused", "code": int(code), "text": why}


def receipt(core: Core, session: Session, req: wire.Req) -> Answer:
    """What became of messages in the session's own mailbox, as its agent saw it."""
    mailbox = own_mailbox(core, session)
    left = wire.RECEIPT_IDS
    for row in req.args["moved"]:
        if not (isinstance(row, list) and len(row) == 4 and row[0] in STEPS and isinstance(row[1], str)):
            raise Refused(Code.INVALID, f"'moved' is a list of [one of {', '.join(STEPS)}, proof, ago, ids]")
        status, proof, ago, listed = row
        when = core.now - min(max(ago, 0), core.now) if type(ago) is int else core.now
        for msg in ids(listed, left):
            step(core, mailbox, status, msg, when, proof[:64])
            left -= 1
    return Answer()


def settle_ids(core: Core, session: Session, req: wire.Req) -> Answer:
    """Mark messages as shown that were read by query, without holding the mailbox."""
    mailbox = own_mailbox(core, session)
    holder = core.holder(mailbox)
    if holder is not None and holder is not session:
        raise Refused(Code.CONFLICT, f"{mailbox.name!r} is held by a living session; it shows and marks its own mail")
    done = 0
    for msg in ids(req.args["ids"], wire.RECEIPT_IDS):
        host, _, ident = msg.rpartition("/")
        for n in core.numbers_of(mailbox, host, ident):
            leave(core, mailbox, n, "injected", req.args["proof"][:64], core.now)
            done += 1
    if holder is not None:
        push(core, holder, mailbox)
    return Answer(Code.OK, {"settled": done})
