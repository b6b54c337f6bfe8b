"""Operations on mail: send, receipt, settle (PROTOCOL.md §10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bus import names, policy, wire
from bus.addresses import Target, kind_of, resolve
from bus.core import Core, Session, trip
from bus.deliveries import STEPS, answered, deliver, leave, named, push, step
from bus.effects import AddMessage, AddRefusal, MoveById
from bus.errors import Code, Refused
from bus.governor import HOPS_MS, THANKS_MS, is_thanks
from bus.ops.kinds import Answer, own_mailbox
from bus.world import Mailbox, Pending

KINDS = ("task", "note")
QUESTIONS_MAX = 64  # a message may name as the ones it may answer
REASON_MAX = 200  # characters of a refusal that everybody is told


@dataclass(slots=True)
class Draft:
    """A message on its way to each of its recipients. `thanks`: it says nothing else; `person`: one sends it; `re` is
    the message it replies to, by its sender's word or because it was matched.
    """

    sender: Mailbox
    req: wire.Req
    kind: str
    expires: int
    hops: int
    thanks: bool
    person: bool
    re: str


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
    if args.get("ask") and len(targets) != 1:
        raise Refused(Code.INVALID, f"a question has one recipient, this one has {len(targets)}")
    expires = core.now + args["ttl"] if args.get("ttl") else 0
    matched = "" if args.get("re") else _matched(targets, args.get("answers", []))
    re, said = args.get("re") or matched, args.get("hops", 0)
    to = tuple(target.mailbox.id for target in targets if target.mailbox)
    hops = said if session.person else core.governor.hops(sender.id, re, said, to)
    draft = Draft(sender, req, kind, expires, hops, is_thanks(req.body), session.person, re)
    core.write(
        AddMessage(
            req.id,
            sender.id,
            sender.name,
            sender.host,
            sender.key,
            kind,
            args.get("tag", ""),
            re,
            args.get("thread") or re,
            core.now,
            expires,
            hops,
            req.body,
            core.now + min(args["ask"], wire.ASK_MAX_MS) if args.get("ask") else 0,
        )
    )
    told = [_one(core, draft, target) for target in targets]
    result = {"to": told, "re": matched} if matched else {"to": told}
    return Answer(Code(max(row["code"] for row in told)), result)


def _matched(targets: list[Target], offered: list[Any]) -> str:
    """The question that a message without `re` answers: of those that its sender was shown, the recipient's.

    `offered` has [mailbox that asked, id] of each. It is compared with where the message really goes, because names
    change hands. "" for none; Refused (409) for several.
    """
    mailbox = targets[0].mailbox if len(targets) == 1 else None
    if mailbox is None:
        return ""
    found = [
        pair[1]
        for pair in offered[:QUESTIONS_MAX]
        if isinstance(pair, list)
        and len(pair) == 2
        and pair[0] == mailbox.id
        and isinstance(pair[1], str)
        and names.MESSAGE_ID.match(pair[1])
    ]
    if len(found) > 1:
        raise Refused(
            Code.CONFLICT,
            f"several questions of {mailbox.name}@{mailbox.host} are open: {', '.join(found)} "
            '(say in reply_to which one this answers, or reply_to="" for none)',
        )
    return found[0] if found else ""


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


def _one(core: Core, draft: Draft, target: Target) -> dict[str, Any]:
    """One copy: refused, held or stored; what its sender is told of it."""
    mailbox, sender, req = target.mailbox, draft.sender, draft.req
    if mailbox is None:
        return _refuse(core, draft, target.text, "", target.code, target.why)
    said = {"name": mailbox.name, "host": mailbox.host, "id": mailbox.id}
    if sender.id in core.numbers(mailbox).get(req.id, {}):
        return {**said, "status": "stored", "code": int(Code.OK)}
    if mailbox.held and any(p.msg == req.id and p.sender == sender.id for p in mailbox.held.values()):
        return {**said, "status": "held", "code": int(Code.HELD)}
    verdict = policy.verdict(core, sender, mailbox, draft.kind)
    no = _against(core, draft, mailbox, verdict)
    if no is not None:
        return _refuse(core, draft, mailbox.name, mailbox.host, *no)
    run = _thanks(core, draft, mailbox)
    if run > core.settings.thanks > 0:
        trip(core, "thanks", mailbox, core.now + THANKS_MS)
        why = f"nothing but thanks, {run} times back and forth (say what is to be said, or leave it)"
        return _refuse(core, draft, mailbox.name, mailbox.host, Code.FORBIDDEN, why)
    held = verdict.action == "hold"
    words = _quiet(core, draft, mailbox, run, held)
    pending = Pending(
        0, req.id, sender.id, draft.kind, len(req.body), draft.expires, quiet=bool(words), ts=core.now, re=draft.re
    )
    if held:
        policy.hold_back(core, mailbox, pending, verdict.why)
        words = f"a person at {mailbox.host} decides ({verdict.why})"
    else:
        deliver(core, mailbox, pending)
        if core.presence(mailbox) != "open":
            words = "offline; it waits"
    core.governor.delivered(sender.id, mailbox.id, req.id, draft.hops, draft.thanks)
    status = "held" if held else "stored"
    core.emit(
        f"msg.{status}",
        id=req.id,
        fid=sender.id,
        **{"from": sender.name, "from_host": sender.host},
        to=mailbox.name,
        host=mailbox.host,
        mailbox=mailbox.id,
        kind=draft.kind,
        tag=req.args.get("tag", ""),
        re=draft.re,
        size=pending.size,
    )
    if not held:
        answered(core, mailbox, pending)
    told = {**said, "status": status, "code": int(Code.HELD if held else Code.OK)}
    return {**told, "text": words} if words else told


def _against(core: Core, draft: Draft, mailbox: Mailbox, verdict: policy.Verdict) -> tuple[Code, str] | None:
    """Why this copy is refused: by the recipient's policy, for its hops, or for want of room."""
    settings, size = core.settings, len(draft.req.body)
    if verdict.action == "refuse":
        return Code.FORBIDDEN, f"{mailbox.host} takes no such mail from {draft.sender.name}@{draft.sender.host}"
    if draft.hops > settings.hops > 0:
        trip(core, "hops", draft.sender, core.now + HOPS_MS)
        return Code.FORBIDDEN, (
            f"this is reply number {draft.hops} in a row without a person, {settings.hops} are allowed "
            "(if it is real work, send it anew and not as a reply)"
        )
    if len(mailbox.pending) + len(mailbox.held) >= settings.mailbox_messages or (
        core.octets(mailbox) + size > settings.mailbox_bytes
    ):
        return Code.FULL, f"the mailbox of {mailbox.name} is full ({len(mailbox.pending)} unread); it must read first"
    if verdict.action == "hold" and (
        len(mailbox.held) >= settings.held_messages
        or sum(p.size for p in mailbox.held.values()) + size > settings.held_bytes
    ):
        return Code.FULL, f"too much is held for {mailbox.name} ({len(mailbox.held)}); a person must look first"
    return None


def _thanks(core: Core, draft: Draft, mailbox: Mailbox) -> int:
    """How long the exchange of mere thanks between these two is by now; people may thank as they like."""
    mere = draft.thanks and not draft.person
    return core.governor.thanks(core.now, draft.sender.id, mailbox.id, mere, draft.re)


def _quiet(core: Core, draft: Draft, mailbox: Mailbox, run: int, held: bool) -> str:
    """Why this copy starts nothing, though it is a task; "" where it may wake the session."""
    limit = core.settings.wakes
    if draft.kind != "task":
        return ""
    if run > 1 and core.settings.thanks > 0:
        return "it wakes nobody: thanks for thanks"
    if held or limit <= 0 or core.presence(mailbox) != "open" or kind_of(mailbox) != "session":
        return ""
    if draft.person and draft.sender.key == mailbox.key:
        return ""
    if core.governor.wake(core.now, mailbox.id, limit):
        return ""
    trip(core, "wakes", mailbox, core.governor.next_wake(core.now, mailbox.id))
    return f"it does not wake {mailbox.name}: woken {limit} times within an hour; it is shown with what comes next"


def _refuse(core: Core, draft: Draft, name: str, host: str, code: Code, why: str) -> dict[str, Any]:
    core.write(AddRefusal(draft.sender.id, draft.req.id, name[:128], host, int(code), why, core.now))
    core.emit(
        "msg.refused",
        id=draft.req.id,
        fid=draft.sender.id,
        **{"from": draft.sender.name, "from_host": draft.sender.host},
        to=name[:128],
        host=host,
        kind=draft.kind,
        code=int(code),
        text=wire.clip(why, REASON_MAX),
    )
    return {"name": name[:128], "host": host, "status": "refused", "code": int(code), "text": why}


def receipt(core: Core, session: Session, req: wire.Req) -> Answer:
    """What became of messages in the session's own mailbox, as its agent saw it."""
    mailbox = own_mailbox(core, session)
    left, at = wire.RECEIPT_IDS, 0
    of = req.args.get("of", [])
    for row in req.args["moved"]:
        if not (isinstance(row, list) and len(row) == 4 and row[0] in STEPS and isinstance(row[1], str)):
            raise Refused(Code.INVALID, f"'moved' is a list of [one of {', '.join(STEPS)}, proof, ago, ids]")
        status, proof, ago, listed = row
        when = core.now - min(max(ago, 0), core.now) if type(ago) is int else core.now
        for name in named(listed, of[at:], left):
            step(core, mailbox, status, name, when, proof[:64])
            left -= 1
        at += len(listed) if isinstance(listed, list) else 0
    return Answer()


def settle_ids(core: Core, session: Session, req: wire.Req) -> Answer:
    """Mark messages as shown that were read by query, without holding the mailbox."""
    mailbox = own_mailbox(core, session)
    holder = core.holder(mailbox)
    if holder is not None and holder is not session:
        raise Refused(Code.CONFLICT, f"{mailbox.name!r} is held by a living session; it shows and marks its own mail")
    done = 0
    for name in named(req.args["ids"], req.args.get("of"), wire.RECEIPT_IDS):
        if not name.sender:
            # It may be that of another message, which nobody was shown.
            core.count("settle ambiguous")
            continue
        found = core.numbers_of(mailbox, name.host, name.msg, name.sender)
        if not found:
            # It may have expired after it was read and before it was printed: that it was shown is told late.
            core.write(
                MoveById(mailbox.id, name.msg, "injected", core.now, req.args["proof"][:64], sender=name.sender)
            )
            continue
        for n in found:
            leave(core, mailbox, n, "injected", req.args["proof"][:64], core.now)
        done += 1
    if holder is not None:
        push(core, holder, mailbox)
    return Answer(Code.OK, {"settled": done})
