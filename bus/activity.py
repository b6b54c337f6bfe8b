"""What a session may ask of memory: whoami, peers, snapshot, stats; and the events of activity.

Queries that need the disk become Read effects (PROTOCOL.md §11, §12).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from bus import policy, wire
from bus.addresses import kind_of, stale
from bus.core import Core, Session
from bus.deliveries import maybe_seen, oldest, unread
from bus.effects import Read
from bus.errors import Code
from bus.governor import Breaker
from bus.roll import fingerprint
from bus.sessions import brief
from bus.world import Mailbox

QUERIES = {
    "whoami": "",
    "peers": "all?:flag active?:num scope?:text",
    "inbox": "ids?:list of?:list tag?:text from?:text re?:text kind?:text unread?:flag limit?:num after?:num "
    "before?:num oldest?:flag fid?:text",
    "message": "id:text of?:text",
    "why": "id:text of?:text",
    "history": "peer?:text limit?:num before?:num",
    "search": "query:text limit?:num",
    "state.get": "key:text",
    "state.list": "prefix?:text project?:text",
    "log": "after?:num limit?:num",
    "snapshot": "nonce:text",
    "stats": "",
    "policy": "",
    "held": "after?:num limit?:num",
    "prune": "before:num",
    "machines": "",
}
EVENTS = {
    "msg": "stored held refused offered injected acked answered expired failed",
    "peer": "open lost gone name status",
    "state": "set delete",
    "bus": "start stop full prune policy pause breaker",
    "lan": "invited closed joined refused revoked role",
    "sync": "the nonce",
}
BODIES = frozenset({"inbox", "message", "history", "search"})  # not for observers
BREAKERS_TOLD = 16
_TEXTS = ("cwd", "branch", "client", "summary", "project")


def query(core: Core, session: Session, qry: wire.Qry) -> None:
    """Answer from memory, or ask the disk."""
    if qry.what not in QUERIES:
        done(core, session, qry.r, Code.INVALID, f"there is no query {qry.what[:40]!r}")
        return
    if qry.what in BODIES and session.who.role == "observer":
        done(core, session, qry.r, Code.FORBIDDEN, "an observer may not read messages (ask the owner)")
        return
    answer = _IN_MEMORY.get(qry.what)
    if answer is None:
        core.batch.sends.append(_read(core, session, qry))
    else:
        answer(core, session, qry)


def done(core: Core, session: Session, r: int, code: Code, text: str = "") -> None:
    core.send(session.route, wire.Done(r, code, core.events, wire.clip(text)))


def row(core: Core, mailbox: Mailbox) -> dict[str, Any]:
    """What everybody may know of a mailbox."""
    meta = mailbox.meta
    activity = core.activity.get(mailbox.id)
    presence = core.presence(mailbox)
    told: dict[str, Any] = {
        "name": mailbox.name,
        "id": mailbox.id,
        "host": mailbox.host,
        "kind": "stale" if stale(mailbox) else kind_of(mailbox),
        "presence": presence,
        "activity": activity.state if activity and presence != "gone" else "",
        "until": activity.until if activity and presence != "gone" else 0,
        "last_active": core.now if presence == "open" else mailbox.active,
        "started": brief(meta.get("started", 0)),
        "unread": unread(mailbox),
        "oldest": oldest(mailbox),
        "wake": brief(meta.get("wake", "")),
        "term": mailbox.term,
        "metadata": meta.get("metadata", {}),
    }
    for key in _TEXTS:
        told[key] = brief(meta.get(key, ""))
    return told


def _whoami(core: Core, session: Session, qry: wire.Qry) -> None:
    mailbox = core.world.mailboxes.get(session.mailbox)
    value: dict[str, Any] = row(core, mailbox) if mailbox else {"name": "", "host": session.who.host}
    value["role"] = session.who.role
    if mailbox:
        value["held"] = len(mailbox.held)
    core.send(session.route, wire.Part(qry.r, value))
    done(core, session, qry.r, Code.OK)


def _peers(core: Core, session: Session, qry: wire.Qry) -> None:
    everyone = qry.args.get("all") is True
    active, scope = qry.args.get("active"), qry.args.get("scope")
    own = core.world.mailboxes.get(session.mailbox)
    for mailbox in sorted(core.world.mailboxes.values(), key=lambda m: (m.name, m.host)):
        told = row(core, mailbox)
        if not everyone and (told["kind"] != "session" or told["presence"] == "gone"):
            continue
        if type(active) is int and core.now - told["last_active"] > active:
            continue
        if own is not None and not _in_scope(own, session, mailbox, scope):
            continue
        if mailbox.key == session.who.key:
            told["held"] = len(mailbox.held)  # how much waits for a person is that person's business
        core.send(session.route, wire.Part(qry.r, told))
    done(core, session, qry.r, Code.OK)


def _in_scope(own: Mailbox, session: Session, other: Mailbox, scope: Any) -> bool:
    if scope == "machine":
        return other.host == session.who.host
    if scope in ("folder", "repo"):
        key = "cwd" if scope == "folder" else "project"
        return other.host == session.who.host and bool(own.meta.get(key)) and other.meta.get(key) == own.meta.get(key)
    return True


def _snapshot(core: Core, session: Session, qry: wire.Qry) -> None:
    """The marker goes into the stream of events first; the snapshot is as of that event."""
    nonce = qry.args.get("nonce")
    if type(nonce) is not str or not nonce.isalnum() or len(nonce) > 64:
        done(core, session, qry.r, Code.INVALID, "nonce is 1 to 64 letters and digits")
        return
    core.emit(f"sync.{nonce}")
    for mailbox in core.world.mailboxes.values():
        core.send(session.route, wire.Part(qry.r, {"peer": row(core, mailbox)}))
    for entry in core.world.state.values():
        told = {"key": entry.key, "ver": entry.ver, "by": entry.by, "ts": entry.ts, "size": entry.size}
        core.send(session.route, wire.Part(qry.r, {"state": told}))
    done(core, session, qry.r, Code.OK)


def _stats(core: Core, session: Session, qry: wire.Qry) -> None:
    world = core.world
    value = {
        "mailboxes": len(world.mailboxes),
        "sessions": len(core.sessions),
        "holding": len(core.holders),
        "presence": dict(Counter(core.presence(m) for m in world.mailboxes.values())),
        "unread": sum(len(m.pending) for m in world.mailboxes.values()),
        "octets": sum(core.octets(m) for m in world.mailboxes.values()),
        "oldest": min((ts for m in world.mailboxes.values() if (ts := oldest(m))), default=0),
        "state": len(world.state),
        "seq": world.seq,
        "chain": world.chain.hex(),
        "store": world.store,
        "writable": core.writable,
        "prune_doubt": core.prune_doubt,
        "started": core.started,
        "now": core.now,
        "held": sum(1 for _ in policy.held_of(core, session.who.key)),
        "paused": world.paused.get(session.who.key, 0),
        "breakers": [_breaker(core, known) for known in core.governor.breakers(core.now)[:BREAKERS_TOLD]],
        "counters": dict(core.counters),
        "told": dict(core.told),
    }
    core.send(session.route, wire.Part(qry.r, value))
    done(core, session, qry.r, Code.OK)


def _machines(core: Core, session: Session, qry: wire.Qry) -> None:
    """The roll, without keys; and to owners the invitation that is open, without its token."""
    roll = core.roll
    for public, one in sorted(roll, key=lambda entry: (entry[0] != roll.own, entry[1].label)):
        held = sum(1 for s in core.sessions.values() if s.who.key == public and s.holds)
        active = [m.active for m in core.world.mailboxes.values() if m.key == public]
        value = {
            "host": one.label,
            "role": one.role,
            "fingerprint": fingerprint(public),
            "since": one.since,
            "sessions": held,
            "last_active": core.now if held else max(active, default=0),
            "hub": public == roll.own,
            "you": public == session.who.key,
        }
        if public == roll.own:
            value["listens"] = core.settings.listens
        core.send(session.route, wire.Part(qry.r, value))
    invitation = core.invitation
    if invitation is not None and session.who.role == "owner":
        told = {"role": invitation.role, "until": invitation.until}
        told |= {"port": invitation.port, "tries": invitation.tries}
        core.send(session.route, wire.Part(qry.r, {"invitation": told}))
    done(core, session, qry.r, Code.OK)


def _breaker(core: Core, known: Breaker) -> dict[str, Any]:
    mailbox = core.world.mailboxes.get(known.mailbox)
    who = {"name": mailbox.name, "host": mailbox.host} if mailbox else {"name": known.mailbox, "host": ""}
    return {"what": known.what, **who, "until": known.until, "count": known.count}


def _policy(core: Core, session: Session, qry: wire.Qry) -> None:
    """The rules of the asker's key, as the most specific first, and what holds without one."""
    key = session.who.key
    rules = core.world.policy.get(key, {})
    for rule in sorted(rules.values(), key=lambda r: (not r.machine, not r.name, not r.kind, r.machine, r.name)):
        told = {"machine": rule.machine, "name": rule.name, "kind": rule.kind, "action": rule.action, "ts": rule.ts}
        told["host"] = policy.label_of(core, rule.machine) if rule.machine else ""
        told["own"] = rule.machine == key
        core.send(session.route, wire.Part(qry.r, {"rule": told}))
    core.send(session.route, wire.Part(qry.r, {"paused": core.world.paused.get(key, 0)}))
    done(core, session, qry.r, Code.OK)


def _held(core: Core, session: Session, qry: wire.Qry) -> None:
    """What is held has not been shown to any model, and is not by this either: the disk answers a person only."""
    if not session.person:
        done(
            core,
            session,
            qry.r,
            Code.FORBIDDEN,
            "what is held is for a person (talkbus hold list, outside a session)",
        )
        return
    core.batch.sends.append(_read(core, session, qry))


def _read(core: Core, session: Session, qry: wire.Qry) -> Read:
    mailbox = core.world.mailboxes.get(session.mailbox)
    seen = maybe_seen(core, mailbox) if mailbox is not None else (0, 0)
    who = session.who
    return Read(session.route, qry.r, qry.what, qry.args, session.mailbox, who.key, who.role, seen)


_IN_MEMORY = {
    "whoami": _whoami,
    "peers": _peers,
    "snapshot": _snapshot,
    "stats": _stats,
    "machines": _machines,
    "policy": _policy,
    "held": _held,
}
