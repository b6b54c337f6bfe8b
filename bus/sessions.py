"""HELLO: who may hold which mailbox, for which term (PROTOCOL.md §5, §9).

Knows the core and the deliveries; knows nothing of requests.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from bus import names, wire
from bus.core import Core, Session, Who
from bus.deliveries import begin_life, end_life, let_go, start_chain
from bus.errors import Code, Refused
from bus.plain import is_plain
from bus.world import Mailbox

OUTBOX_ID = re.compile(r"[0-9a-f]{32}\Z")
META_MAX = 2048  # octets
META_ALL_MAX = 8192  # octets of everything that was ever said of a mailbox; beyond it only the newest counts
BRIEF_MAX = 400  # octets


def open_session(core: Core, route: bytes, who: Who, hello: wire.Hello) -> None:
    """Answer a HELLO: WELCOME, ERR or GONE."""
    try:
        session = admit(core, route, who, hello)
    except Refused as refused:
        term = refused.extra.get("term", 0)
        by: Any = refused.extra.get("by", {})
        core.count("hello refused")
        retry = int(str(refused.extra.get("retry", 1000))) if refused.code is Code.BUSY else 0
        core.send(
            route,
            wire.Err(refused.code, "HELLO", term=int(str(term)), by=by, retry=retry, text=wire.clip(str(refused))),
        )
        return
    if session.parked is not None:
        core.send(route, session.parked)
        return
    welcome(core, session)


def admit(core: Core, route: bytes, who: Who, hello: wire.Hello) -> Session:
    """The new session, already among the open ones. Refused with the code of PROTOCOL.md §9."""
    if hello.mode not in ("hold", "send", "view"):
        raise Refused(Code.INVALID, f"mode {hello.mode[:20]!r} is none of hold, send, view")
    hb = min(max(hello.hb, 1000), 60_000)
    session = Session(route, who, hello.mode, hello.inst[:128], "", "", hb, core.now)
    session.life = hello.life[:64] or session.inst  # an older client does not say
    if hello.mode != "view":
        if who.role == "observer":
            raise Refused(
                Code.FORBIDDEN, "an observer may look, not send or receive (ask the owner for another role)"
            )
        if not core.writable:
            raise Refused(Code.BUSY, "the broker's disk is full or read-only (make room; it goes on by itself)")
        session.ob = _outbox(core, who, hello)
        name = _name_now(core, who, hello)
        if len(wire.pack(hello.meta)) > META_MAX:
            raise Refused(Code.TOO_LARGE, f"meta is larger than {META_MAX} octets")
        if not is_plain(hello.meta):
            raise Refused(Code.INVALID, "meta is no plain JSON of at most 6 levels")
        session.person = hello.mode == "send" and hello.meta.get("kind") == "human"
        if hello.mode == "send":
            session.mailbox = (core.mailbox_named(who.key, name) or make_mailbox(core, who, name, hello.meta)).id
        else:
            hold(core, session, name, hello)
    if session.parked is None or hello.mode == "hold":
        core.sessions[route] = session
        core.at(core.now + 3 * hb, "silent", route)
    return session


def _outbox(core: Core, who: Who, hello: wire.Hello) -> str:
    if not OUTBOX_ID.match(hello.ob):
        raise Refused(Code.INVALID, "ob is no outbox id (32 hex digits)")
    known = core.world.outboxes.get(hello.ob)
    if known is not None and known.key != who.key:
        raise Refused(Code.FORBIDDEN, "this outbox belongs to another key")
    return hello.ob


def _name_now(core: Core, who: Who, hello: wire.Hello) -> str:
    """The name of the mailbox that is meant: the one the client remembers, however it is called now, or this name's.

    An id follows from key and name, so in another database it may be anybody's. What was set aside is nobody's.
    """
    name = names.check_name(hello.name)
    known = core.world.mailboxes.get(hello.id) if hello.store == core.world.store else None
    return known.name if known is not None and known.key == who.key and not known.meta.get("stale") else name


def make_mailbox(core: Core, who: Who, name: str, meta: dict[str, Any]) -> Mailbox:
    """A mailbox nobody has had. Its id follows from key and name, so it is the same in a database made anew."""
    seed = f"{who.key}/{name}"
    while (ident := hashlib.blake2b(seed.encode(), digest_size=4).hexdigest()) in core.world.mailboxes:
        seed += "+"
    mailbox = Mailbox(ident, who.key, who.host, name, active=core.now, meta=dict(meta))
    core.world.mailboxes[ident] = mailbox
    core.names[(who.key, name)] = ident
    core.changed(mailbox)
    core.emit("peer.name", id=ident, name=name, host=who.host, kind=brief(meta.get("kind", "session")))
    return mailbox


def hold(core: Core, session: Session, name: str, hello: wire.Hello) -> None:
    """Give the mailbox to this session, or raise Refused, or park it: the table of §9."""
    mailbox = core.mailbox_named(session.who.key, name)
    moved = held_by(core, session) if hello.term and (mailbox is None or mailbox.inst != session.inst) else None
    if moved is not None:
        mailbox = moved  # renamed, or sent to another mailbox, and the WELCOME that told so was lost
    if mailbox is None:
        mailbox = make_mailbox(core, session.who, name, hello.meta)
    elif mailbox.inst == session.inst and mailbox.inst:
        forget_former(core, mailbox)
        occupy(core, session, mailbox, hello.meta, rise=False)
        return
    presence = core.presence(mailbox)
    if presence == "gone":
        mine, theirs = hello.meta.get("project"), mailbox.meta.get("project")
        if mine and theirs and mine != theirs and hello.take != mailbox.term:
            raise Refused(
                Code.CONFLICT,
                f"{name!r} is the mailbox of another project, {brief(theirs)} (choose another name, or take it)",
                term=mailbox.term,
                by=describe(mailbox, presence),
            )
    elif hello.take != mailbox.term:
        told: dict[str, Any] = {"term": mailbox.term, "by": describe(mailbox, presence)}
        if presence == "lost" and hello.term:
            # The holder this database knows may be one of long ago, in an older copy. Only its lease is waited for.
            left = core.lease_left(mailbox)
            text = f"{waits_for(core, name, mailbox)} (it is tried again by itself)"
            raise Refused(Code.BUSY, text, **told, retry=left)
        if presence == "lost":
            raise Refused(Code.CONFLICT, f"{waits_for(core, name, mailbox)} (wait, or choose another name)", **told)
        text = f"{name!r} is held by a living session (take it, or choose another name)"
        if hello.term and was_displaced(core, mailbox, hello):
            session.parked = wire.Gone(Code.CONFLICT, mailbox.term, mailbox.inst, wire.clip(text))
            return
        raise Refused(Code.CONFLICT, text, **told)
    displace(core, mailbox, session.inst)
    occupy(core, session, mailbox, hello.meta, rise=True)


def held_by(core: Core, session: Session) -> Mailbox | None:
    """The mailbox that has this instance for its holder; at most one has."""
    found = (m for m in core.world.mailboxes.values() if m.inst == session.inst and m.key == session.who.key)
    return next(found, None) if session.inst else None


def waits_for(core: Core, name: str, mailbox: Mailbox) -> str:
    """What is true of a name whose holder is lost."""
    seconds = -(-core.lease_left(mailbox) // 1000)
    return f"{name!r} is kept for {seconds} s more for a session whose connection was lost"


def was_displaced(core: Core, mailbox: Mailbox, hello: wire.Hello) -> bool:
    """Whether a session that held a mailbox once lost it to the present holder, as far as this database knows.

    In an older copy it may never have held this one, or not yet: then it is a newcomer here. A client that does not
    say which mailbox it means is believed to mean this one.
    """
    if not hello.id:
        return True
    known = core.world.mailboxes.get(hello.id) if hello.store == core.world.store else None
    if known is mailbox:
        return hello.term < mailbox.term
    return known is not None and bool(known.meta.get("stale"))  # it was set aside for the holder of this one


def describe(mailbox: Mailbox, presence: str) -> dict[str, Any]:
    """Who holds a mailbox, or held it last, for the one who wanted it."""
    meta = mailbox.meta
    told: dict[str, Any] = {k: brief(meta[k]) for k in ("pid", "start", "host", "cwd", "project") if k in meta}
    known = {"inst": mailbox.inst, "living": presence == "open", "presence": presence}
    return {**told, **known, "name": mailbox.name, "id": mailbox.id}


def brief(value: Any, limit: int = BRIEF_MAX) -> Any:
    """A value of somebody's meta, cut so that several of them fit into a head; what is neither text nor number is
    left out.
    """
    if isinstance(value, str):
        return value.encode()[:limit].decode(errors="ignore")
    return value if type(value) in (int, float, bool) else ""


def occupy(core: Core, session: Session, mailbox: Mailbox, meta: dict[str, Any], rise: bool) -> None:
    """This session holds that mailbox from now on, and no other."""
    former = held_by(core, session) if rise else None
    if former is not None and former is not mailbox:
        if _another_process(former.meta, meta):
            displace(core, former, session.inst)  # it lives, and would come back to take what it was not told it lost
        else:
            forget_former(core, former)
        former.inst = ""
        core.changed(former)
        core.emit("peer.gone", id=former.id, name=former.name, host=former.host)
    mailbox.term += 1 if rise else 0
    mailbox.inst = session.inst
    mailbox.active = core.now
    if meta:
        known = {**mailbox.meta, **meta}
        mailbox.meta = known if len(wire.pack(known)) <= META_ALL_MAX else dict(meta)
    session.mailbox = mailbox.id
    session.holds = True
    begin_life(core, session, mailbox)
    core.holders[mailbox.id] = session.route
    core.lost_at.pop(mailbox.id, None)
    core.changed(mailbox)
    told = {key: brief(mailbox.meta.get(key, "")) for key in ("kind", "summary", "wake")}
    core.emit("peer.open", id=mailbox.id, name=mailbox.name, host=mailbox.host, term=mailbox.term, **told)


def _another_process(former: dict[str, Any], meta: dict[str, Any]) -> bool:
    """Whether two sessions of one instance are two processes: a client that was started twice with one session id."""
    return bool(former.get("pid") and meta.get("pid")) and (former["pid"], former.get("start")) != (
        meta["pid"],
        meta.get("start"),
    )


def displace(core: Core, mailbox: Mailbox, by: str) -> None:
    """Whoever holds it is told GONE and parks: nobody is evicted silently."""
    former = core.holder(mailbox)
    if former is None:
        return
    let_go(core, former, mailbox)
    text = f"{mailbox.name!r} was taken over by another session (choose another name, or take it back)"
    former.parked = wire.Gone(Code.CONFLICT, mailbox.term + 1, by[:128], text)
    core.send(former.route, former.parked)


def forget_former(core: Core, mailbox: Mailbox) -> None:
    """The same session on a new connection: the old route is dead and needs no word."""
    former = core.holder(mailbox)
    if former is not None:
        let_go(core, former, mailbox)
        core.sessions.pop(former.route, None)


def welcome(core: Core, session: Session) -> None:
    """WELCOME, and the mail that waits."""
    world = core.world
    mailbox = world.mailboxes.get(session.mailbox)
    outbox = world.outboxes.get(session.ob)
    core.send(
        session.route,
        wire.Welcome(
            mailbox.name if mailbox else "",
            mailbox.id if mailbox else "",
            mailbox.term if mailbox else 0,
            world.store,
            world.seq,
            world.chain.hex(),
            outbox.high if outbox else 0,
            session.hb,
            wire.WINDOW,
            core.now,
        ),
    )
    if session.holds and mailbox is not None:
        start_chain(core, session, mailbox)


def goodbye(core: Core, session: Session, bye: wire.Bye) -> None:
    """BYE: the route is new again; with `leave` the session has ended and its name is free."""
    core.send(session.route, wire.Bye())
    if not core.writable:
        forget(core, session.route)
        return
    core.sessions.pop(session.route, None)
    mailbox = core.world.mailboxes.get(session.mailbox)
    if mailbox is None or not session.holds:
        return
    if bye.begun is not None:
        end_life(core, session, mailbox, bye.begun)
    let_go(core, session, mailbox)
    core.lost_at[mailbox.id] = core.now
    mailbox.active = core.now
    if bye.leave:
        mailbox.inst = ""
        core.activity.pop(mailbox.id, None)
        core.emit("peer.gone", id=mailbox.id, name=mailbox.name, host=mailbox.host)
    else:
        _lost(core, mailbox)
    core.changed(mailbox)


def forget(core: Core, route: bytes) -> None:
    """The connection is dead. The mailbox is lost for its lease, then gone; the mail stays."""
    session = core.sessions.pop(route, None)
    if session is None or not session.holds:
        return
    mailbox = core.world.mailboxes[session.mailbox]
    let_go(core, session, mailbox)
    core.lost_at[mailbox.id] = core.now
    _lost(core, mailbox)


def _lost(core: Core, mailbox: Mailbox) -> None:
    core.at(core.now + core.settings.lease, "lease", mailbox.id)
    core.emit("peer.lost", id=mailbox.id, name=mailbox.name, host=mailbox.host)


def lease_out(core: Core, mailbox_id: str) -> None:
    """Nobody came back in time."""
    mailbox = core.world.mailboxes.get(mailbox_id)
    if mailbox is not None and mailbox.id not in core.holders and core.presence(mailbox) == "gone" and mailbox.inst:
        core.activity.pop(mailbox.id, None)
        core.emit("peer.gone", id=mailbox.id, name=mailbox.name, host=mailbox.host)


def silent(core: Core, route: bytes) -> None:
    """Three heartbeats without a word: the connection is taken for dead."""
    session = core.sessions.get(route)
    if session is None:
        return
    limit = session.heard + 3 * session.hb
    if limit > core.now:
        core.at(limit, "silent", route)
    else:
        core.count("silent")
        forget(core, route)
