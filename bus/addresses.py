"""Who an address means at this moment (PROTOCOL.md §9).

Knows the core and the grammar; changes nothing but to open a mailbox where `new` asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable

from bus import names, wire
from bus.core import Core, Who
from bus.errors import Code, Refused
from bus.record import record
from bus.sessions import make_mailbox
from bus.world import Mailbox

DAY_MS = 24 * 3600 * 1000
LISTED = 8


@record
class Target:
    """One recipient, or why the address has none."""

    text: str
    mailbox: Mailbox | None = None
    code: Code = Code.OK
    why: str = ""


def kind_of(mailbox: Mailbox) -> str:
    """ "session", "human" or "service": the latter two are not part of `*`."""
    kind = mailbox.meta.get("kind", "session")
    return kind if kind in ("human", "service") else "session"


def stale(mailbox: Mailbox) -> bool:
    """Set aside by a takeover."""
    return bool(mailbox.meta.get("stale"))


def resolve(core: Core, sender: Mailbox, text: str, new: bool) -> list[Target]:
    """The targets of one address; a single Target without mailbox says why there is none."""
    try:
        address = names.parse_address(text)
    except Refused as refused:
        return [Target(text, None, refused.code, str(refused))]
    boxes = core.world.mailboxes.values()
    if address.form == "all":
        living = [m for m in boxes if m is not sender and _living(core, m)]
        return [Target(text, m) for m in living] or [
            Target(text, None, Code.NOT_FOUND, "no other session was heard from in the last 24 hours")
        ]
    if address.form == "pool":
        return [Target(text, None, Code.NOT_FOUND, f"there is no pool {text[:64]!r}")]
    if address.form == "at":
        found = [m for m in boxes if m.name == address.name and m.host.lower() == address.host]
    elif address.form == "folder":
        found = [m for m in boxes if _works_in(core, m, text)]
        living = [m for m in found if core.presence(m) != "gone"]
        found = living or found
    else:
        found = by_name(core, sender, address.name)
    if len(found) == 1:
        return [Target(text, found[0])]
    if found:
        listed = "; ".join(_line(m) for m in found[:LISTED])
        return [Target(text, None, Code.CONFLICT, wire.clip(f"{text!r} means several: {listed} (use an id)", 1500))]
    if new and address.form == "name":
        return [_open(core, sender, text)]
    return [Target(text, None, Code.NOT_FOUND, unknown(core, sender, text))]


def _living(core: Core, mailbox: Mailbox) -> bool:
    if kind_of(mailbox) != "session" or stale(mailbox) or _over(core, mailbox):
        return False
    return mailbox.id in core.holders or (mailbox.term > 0 and core.now - mailbox.active < DAY_MS)


def by_name(core: Core, sender: Mailbox, name: str) -> list[Mailbox]:
    """Whom a bare name means to this sender: the own key's, else all that fit."""
    own = core.mailbox_named(sender.key, name)
    if own is not None:
        return [own]
    boxes = core.world.mailboxes.values()
    named = [m for m in boxes if m.name == name]
    if named:
        return named
    if names.PEER_ID.match(name):
        by_id = [m for m in boxes if m.id.startswith(name)]
        if by_id:
            return by_id
    return [m for m in boxes if _works_in(core, m, name)]


def _works_in(core: Core, mailbox: Mailbox, folder: str) -> bool:
    return (
        names.folder_matches(folder, str(mailbox.meta.get("cwd", "")))
        and not stale(mailbox)
        and not _over(core, mailbox)
    )


def _over(core: Core, mailbox: Mailbox) -> bool:
    """Whether it was a run without a user and has ended: nobody comes back to it, so only its name leads there."""
    return mailbox.meta.get("once") is True and core.presence(mailbox) == "gone"


def _open(core: Core, sender: Mailbox, text: str) -> Target:
    try:
        name = names.check_name(text)
    except Refused as refused:
        return Target(text, None, refused.code, str(refused))
    return Target(text, make_mailbox(core, Who(sender.key, sender.host), name, {}))


def _line(mailbox: Mailbox) -> str:
    return f"{mailbox.name}@{mailbox.host} id {mailbox.id} {mailbox.meta.get('cwd', '')}".rstrip()


def unknown(core: Core, sender: Mailbox, text: str) -> str:
    """The text for an address that fits nobody: nearest names and who lives."""
    boxes = core.world.mailboxes.values()
    near = names.nearest(text.lower(), (m.name for m in boxes if not stale(m)))
    living: Iterable[str] = sorted(m.name for m in boxes if m is not sender and core.presence(m) == "open")
    parts = [f"nobody is called {text[:64]!r}"]
    if near:
        parts.append(f"did you mean {', '.join(near)}?")
    shown = [n for n in living][:LISTED]
    parts.append(f"living sessions: {', '.join(shown)}" if shown else "no other session is living")
    return wire.clip("; ".join(parts), 600)
