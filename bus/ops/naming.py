"""Operations on names and on what peers see: rename, take, status (PROTOCOL.md §9, §10)."""

from __future__ import annotations

from bus import names, wire
from bus.core import Activity, Core, Session
from bus.deliveries import let_go
from bus.errors import Code, Refused
from bus.ops.kinds import Answer, own_mailbox
from bus.plain import is_plain
from bus.sessions import brief, describe, displace, make_mailbox, occupy, waits_for, welcome
from bus.world import Mailbox

METADATA_MAX = 1024
ACTIVITIES = ("busy", "idle", "waiting")


def acting(core: Core, session: Session) -> Session:
    """The session that holds the caller's mailbox: the caller itself, or the one a command line acts for."""
    return core.holder(own_mailbox(core, session)) or session


def rename(core: Core, session: Session, req: wire.Req) -> Answer:
    """Another name for the same mailbox: mail, id and term stay."""
    mailbox = own_mailbox(core, session)
    name = names.check_name(req.args["name"])
    other = core.mailbox_named(mailbox.key, name)
    if other is mailbox:
        return Answer(Code.OK, {"name": name})
    if other is not None:
        raise Refused(
            Code.CONFLICT,
            f"{name!r} is taken ({len(other.pending)} unread; 'take' it to get its mail, or choose another)",
        )
    relabel(core, mailbox, name)
    holder = core.holder(mailbox)
    if holder is not None:
        welcome(core, holder)
    return Answer(Code.OK, {"name": name})


def relabel(core: Core, mailbox: Mailbox, name: str) -> None:
    core.names.pop((mailbox.key, mailbox.name), None)
    former, mailbox.name = mailbox.name, name
    core.names[(mailbox.key, name)] = mailbox.id
    core.changed(mailbox)
    core.emit("peer.name", id=mailbox.id, name=name, former=former, host=mailbox.host)


def take(core: Core, session: Session, req: wire.Req) -> Answer:
    """The session goes on under a name another one had; the loser is told and parks."""
    mover = acting(core, session)
    mine = own_mailbox(core, mover)
    if not mover.holds:
        raise Refused(Code.CONFLICT, "only a living session can take a name (run this inside one)")
    name = names.check_name(req.args["name"])
    wanted = core.mailbox_named(mine.key, name)
    if wanted is mine:
        return Answer(Code.OK, {"name": name, "term": mine.term})
    presence = core.presence(wanted) if wanted is not None else "gone"
    if wanted is not None and presence != "gone" and req.args.get("term", 0) != wanted.term:
        held = waits_for(core, name, wanted) if presence == "lost" else f"{name!r} is held by a living session"
        raise Refused(
            Code.CONFLICT,
            f"{held} (say take with its present term, {wanted.term})",
            term=wanted.term,
            by=describe(wanted, presence),
        )
    if wanted is not None:
        displace(core, wanted, mover.inst)
        if req.args.get("fresh"):
            set_aside(core, wanted)
            wanted = None
    if wanted is None:
        wanted = make_mailbox(core, mover.who, name, mine.meta)
    let_go(core, mover, mine)
    mine.inst = ""
    core.changed(mine)
    core.emit("peer.gone", id=mine.id, name=mine.name, host=mine.host)
    occupy(core, mover, wanted, dict(mine.meta), rise=True)
    welcome(core, mover)
    if session is not mover:
        session.mailbox = wanted.id
        welcome(core, session)
    return Answer(Code.OK, {"name": name, "term": wanted.term, "unread": len(wanted.pending)})


def set_aside(core: Core, mailbox: Mailbox) -> None:
    """Its mail and history stay under another name, and nobody writes to it any more."""
    aside = f"{mailbox.name[:40]}-stale-{core.now // 1000}"
    while (mailbox.key, aside) in core.names:
        aside += "x"
    relabel(core, mailbox, aside)
    mailbox.inst = ""
    mailbox.meta = {**mailbox.meta, "stale": True}


def status(core: Core, session: Session, req: wire.Req) -> Answer:
    """What peers see: a summary, free metadata (None removes a key), and what the session does."""
    mailbox = own_mailbox(core, session)
    args = req.args
    meta = dict(mailbox.meta)
    state = args.get("activity", "busy")
    if state not in ACTIVITIES:
        raise Refused(Code.INVALID, f"activity {state[:20]!r} is none of {', '.join(ACTIVITIES)}")
    if "summary" in args:
        meta["summary"] = args["summary"][:200]
    if "wake" in args:
        meta["wake"] = args["wake"][:40]
    if "metadata" in args:
        known = meta.get("metadata")
        own = {**(known if isinstance(known, dict) else {}), **args["metadata"]}
        own = {k: v for k, v in own.items() if v is not None}
        if not is_plain(own):
            raise Refused(Code.INVALID, "metadata is no plain JSON of at most 6 levels")
        if len(wire.pack(own)) > METADATA_MAX:
            raise Refused(Code.TOO_LARGE, f"metadata is larger than {METADATA_MAX} octets")
        meta["metadata"] = own
    if meta != mailbox.meta:
        mailbox.meta = meta
        core.changed(mailbox)
    if "activity" in args or "busy" in args:
        set_activity(core, mailbox, state, args.get("busy", 0))
    tell_status(core, mailbox)
    return Answer(Code.OK, {"name": mailbox.name})


def tell_status(core: Core, mailbox: Mailbox) -> None:
    """What peers see of the session has changed."""
    known = core.activity.get(mailbox.id) or Activity()
    told = {key: brief(mailbox.meta.get(key, "")) for key in ("summary", "wake")}
    place = {"id": mailbox.id, "name": mailbox.name, "host": mailbox.host}
    core.emit("peer.status", **place, **told, activity=known.state, until=known.until)


def set_activity(core: Core, mailbox: Mailbox, state: str, lasts: int) -> bool:
    """`state` is one of ACTIVITIES; `lasts` in ms, 0 for no end. Whether that is news."""
    until = core.now + lasts if lasts else 0
    former, core.activity[mailbox.id] = core.activity.get(mailbox.id), Activity(state, until)
    if former is not None:
        core.call_off(former.until, "busy", mailbox.id)
    if until:
        core.at(until, "busy", mailbox.id)
    return former != core.activity[mailbox.id]


def lapse(core: Core, mailbox_id: str) -> None:
    """An announced busy time is over."""
    activity = core.activity.get(mailbox_id)
    mailbox = core.world.mailboxes.get(mailbox_id)
    if mailbox and activity and activity.until and activity.until <= core.now:
        core.activity[mailbox_id] = Activity("idle")
        tell_status(core, mailbox)
