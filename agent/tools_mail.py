"""The tools for mail: send_message, check_messages, ack, message_status. What they claim is what is on a disk.

They must not know the MCP SDK, nor how a result travels to the client.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from agent import render
from agent.asks import Answer
from agent.delivery.piggyback import BUDGET, counted, fitting, letter_of, plain
from agent.effects import Settled
from agent.inbox import Letter
from agent.link import Link
from agent.redact import outgoing
from agent.tooling import Args, Desk, ToolError
from bus import names, wire
from bus.errors import Code

REPLY_S = 0.3  # how long a result waits for the broker's word
TOLD_MAX = 20  # recipients of one message that a result lists
QUERY_S = 4.0
WAIT_MAX_S = 55
REFILL_S = 1.5
RECONNECT_MS = 2000  # a connection that was lost just now is worth waiting for
LIMIT_MAX = 200
NOTHING = "no unread messages"


async def send_message(desk: Desk, args: Args) -> str:
    """Write it down, then tell what the broker said of each recipient, or that it has not yet."""
    to, body = recipients(args, "to"), args.body()
    request: dict[str, Any] = {"to": to}
    check_recipients(to)
    kind = args.text("kind", "task")
    if kind not in ("task", "note"):
        raise ToolError("'kind' must be task or note")
    request["kind"] = kind
    if args.has("tag"):
        request["tag"] = names.check_tag(args.text("tag"))
    if args.has("reply_to"):
        request["re"] = message_id(args.text("reply_to"), "reply_to")
    if args.has("exclude"):
        request["exclude"] = recipients(args, "exclude")
        check_recipients(request["exclude"])
    if args.has("ttl_s"):
        request["ttl"] = args.number("ttl_s", 0, 1, 10_000_000) * 1000
    ident, settled = await post(desk, "send", request, body.encode(), REPLY_S)
    more = redacted("send", request, body.encode())
    if settled is None:
        return queued(desk, ident) + more
    return not_sent(settled, ident) + more


def redacted(op: str, args: dict[str, Any], body: bytes) -> str:
    """What the link takes out of a request before it writes it, as a sentence more; "" for nothing."""
    found = outgoing(op, args, body)[2]
    return f" (redacted before it left: {found}; there is no way around that for you)" if found else ""


async def post(desk: Desk, op: str, args: dict[str, Any], body: bytes, wait: float) -> tuple[str, Settled | None]:
    """A request on the disk, with the broker's reply if that comes within `wait` s. BusError when it is not there."""
    loop = desk.session.loop
    row, ident = await asyncio.wrap_future(loop.call(lambda link, now: link.submit(now, op, args, body)))
    try:
        return ident, await asyncio.wait_for(asyncio.wrap_future(loop.settled(row)), wait)
    except TimeoutError:
        return ident, None


def queued(desk: Desk, ident: str) -> str:
    """What is true of a request the broker has not confirmed."""
    status = desk.session.loop.status()
    if status.connected:
        return f"queued (id {ident}): the broker has not confirmed it yet; it is on disk and goes out by itself."
    if status.parked is not None:
        return f"queued (id {ident}): {desk.session.off_the_bus(status.parked)} It is on disk and waits for that."
    since = render.age(desk.session.loop.clock() - status.since_ms)
    return (
        f"queued (id {ident}): broker not reachable since {since} ({status.reason or 'no connection'}); "
        "it is on disk and goes out by itself."
    )


def not_sent(settled: Settled, ident: str) -> str:
    """What the broker said of a send, per recipient; ToolError when nobody got it."""
    rows = settled.result.get("to")
    if settled.code < 300 and settled.result.get("large") and not isinstance(rows, list):
        return f"id {ident}; stored for all of them (too many to list: message_status)"
    if not isinstance(rows, list) or not rows:
        raise ToolError(f"not sent: {settled.text or 'the broker refused it'} (code {settled.code})")
    lines = []
    for row in sorted(rows, key=lambda row: -int(row.get("code", 0)))[:TOLD_MAX]:
        name = f"{row.get('name', '?')}@{row['host']}" if row.get("host") else str(row.get("name", "?"))
        why = f" ({render.safe(str(row['text']))})" if row.get("text") else ""
        lines.append(f"{render.safe(name)}: {row.get('status', '?')}{why}")
    if len(rows) > TOLD_MAX:
        lines.append(f"and {len(rows) - TOLD_MAX} more (message_status)")
    if all(row.get("status") == "refused" for row in rows):
        raise ToolError("not sent: " + "; ".join(lines))
    return f"id {ident}; " + "; ".join(lines)


def recipients(args: Args, name: str) -> list[str]:
    """Addresses, one string or a list; commas separate too, except in a folder, which may have one."""
    texts = args.texts(name)
    found = [part.strip() for text in texts for part in ([text] if "/" in text else text.split(","))]
    found = [part for part in found if part]
    if not found:
        raise ToolError(f"{name!r} is empty (a name, an id, name@host, a folder, or *; list_peers tells them)")
    return found


def check_recipients(found: Sequence[str]) -> None:
    """Refused or ToolError for what can be no address, before anything is written."""
    if len(found) > wire.RECIPIENTS_MAX:
        raise ToolError(
            f"{len(found)} recipients, {wire.RECIPIENTS_MAX} are allowed (send to * with exclude, or twice)"
        )
    for text in found:
        names.parse_address(text)


def message_id(text: str, name: str) -> str:
    """A whole message id."""
    ident = text.strip().lower()
    if not names.MESSAGE_ID.match(ident):
        raise ToolError(f"{name!r}: {text[:40]!r} is no message id (16 of a-z 2-7, as shown after 'id')")
    return ident


async def query(desk: Desk, what: str, args: dict[str, Any], wait: float = QUERY_S) -> Answer:
    """Ask the broker; ToolError when it does not answer or refuses. 204 is no error."""
    answer = await asyncio.wrap_future(desk.session.loop.asking(what, args, wait))
    if answer.code == Code.BUSY:
        raise ToolError(f"the broker is not reachable: {answer.text or 'no answer'} (it is tried again; call later)")
    if answer.code not in (Code.OK, Code.NO_CONTENT):
        raise ToolError(f"{answer.text or 'refused'} (code {answer.code})")
    return answer


# -- check_messages --------------------------------------------------------------------------------------------------


async def check_messages(desk: Desk, args: Args) -> str:
    """Unread mail from what is here already; anything filtered from the broker, which has all of it."""
    if args.has("id"):
        return await _one(desk, args)
    if args.number("offset", 0, 0, 1_000_000):
        raise ToolError("'offset' goes with 'id'")
    peek = args.flag("peek")
    wait = args.number("wait_s", 0, 0, 600)
    begun = time.monotonic()
    end = begun + min(wait, WAIT_MAX_S, desk.ask_max)
    unread = args.flag("unread_only", True)
    filters = {name: args.text(name) for name in ("tag", "from") if args.has(name)}
    limit = args.number("limit", 20, 1, LIMIT_MAX)
    plainly = unread and not filters and not args.has("limit")
    if desk.session.loop.clock() - desk.session.loop.status().since_ms < RECONNECT_MS:
        await desk.session.known(RECONNECT_MS / 1000)
    while True:
        beat = desk.session.pulse.arm()
        if plainly:
            text, count, left = await desk.mail.waiting(desk.call, peek=peek)
        else:
            text, count, left = await _filtered(desk, filters, unread, limit, peek)
        if count:
            return "\n\n".join(part for part in (text, counted(left)) if part)
        # What is counted and not here is behind the window, and on its way since the last messages were confirmed.
        remaining = max(end, begun + REFILL_S if left else 0) - time.monotonic()
        if remaining <= 0:
            break
        await asyncio.wait([beat], timeout=remaining)
    if left:
        return counted(left)
    status = desk.session.loop.status()
    if not status.connected and not status.parked:
        since = render.age(desk.session.loop.clock() - status.since_ms)
        return f"{NOTHING} here; the broker is not reachable since {since} ({status.reason}), so there may be more."
    return NOTHING if unread else "no messages"


async def _filtered(
    desk: Desk, filters: dict[str, str], unread: bool, limit: int, peek: bool
) -> tuple[str, int, int]:
    answer = await query(desk, "inbox", {**filters, "unread": unread, "limit": limit})
    found = [letter_of(value, body, desk.session.loop.clock()) for value, body in answer.rows]
    return await _show(desk, found, peek, not unread, limit if unread and not filters else 0)


async def _show(
    desk: Desk, found: Sequence[Letter], peek: bool, read_too: bool, unfiltered: int
) -> tuple[str, int, int]:
    """Render what was found: unread ones are offered first, those that were read are only shown again.

    The rest that is counted is that of `found`, or of everything where nothing was filtered; then `unfiltered` is how
    many were wanted.
    """

    def choose(link: Link, now: int) -> tuple[list[Letter], int, int]:
        ledger = link.book.ledger
        wanted = []
        for letter in found:
            line = ledger.get(letter.key)
            read = line is not None and line.state == "shown"
            if not desk.asks.reserved(letter) and (not read or read_too):
                wanted.append(letter)
        if unfiltered:
            # The broker told the oldest ones; a task that waits here behind many notes goes before the last of them.
            told = {letter.key for letter in wanted}
            wanted += [x for x in link.inbox.waiting() if x.wakes and x.key not in told and not desk.asks.reserved(x)]
            chosen = {x.key for x in sorted(wanted, key=lambda letter: not letter.wakes)[:unfiltered]}
            wanted = [letter for letter in wanted if letter.key in chosen]
        first = fitting(wanted, now, BUDGET)
        given = first if peek else desk.mail.offer(link, now, desk.call, first)
        keys = {letter.key: letter for letter in given}
        # What another path has in its hands is that path's to show.
        again = [x for x in first if x.key in keys or (x.key in ledger and ledger[x.key].state == "shown")]
        left = len(wanted) - len(first)
        if unfiltered:
            taken = 0 if not peek else len(first)
            left = sum(not desk.asks.reserved(x) for x in link.inbox.waiting()) + link.inbox.more - taken
        return [keys.get(x.key, x) for x in again], max(left, 0), now

    letters, left, now = await asyncio.wrap_future(desk.session.loop.call(choose))
    return render.render(plain(letters), now, BUDGET), len(letters), left


async def _one(desk: Desk, args: Args) -> str:
    """One message by id or the beginning of one, from `offset` on; also one that this session sent."""
    ident, offset = args.text("id").strip().lower(), args.number("offset", 0, 0, 1_000_000)
    value, body = (await query(desk, "message", {"id": ident})).rows[0]
    now = desk.session.loop.clock()
    letter = letter_of(value, body, now)
    own = await query(desk, "inbox", {"ids": [letter.msg.id]})
    mine = any(row.get("fid") == letter.msg.fid for row, _ in own.rows)
    if mine and not args.flag("peek"):

        def offer(link: Link, now: int) -> list[Letter]:
            return desk.mail.offer(link, now, desk.call, [letter])

        given = await asyncio.wrap_future(desk.session.loop.call(offer))
        letter = given[0] if given else letter
    return render.render(plain([letter]), now, BUDGET, offset=offset)


# -- ack, message_status ---------------------------------------------------------------------------------------------


async def ack(desk: Desk, args: Args) -> str:
    """Tell the senders that their messages were dealt with; a note goes to each of them as a reply."""
    idents = [message_id(text, "ids") for text in recipients(args, "ids")]
    if len(idents) > wire.RECEIPT_IDS:
        raise ToolError(f"{len(idents)} ids, {wire.RECEIPT_IDS} are allowed (ack the others next)")
    note = args.text("note").strip()
    found = await _senders(desk, idents, must=bool(note))

    def acknowledge(link: Link, now: int) -> int:
        waiting = [x for x in link.inbox.waiting() if x.msg.id in idents]
        given = link.inbox.offer(now, waiting, "tool")
        link.inbox.shown(now, [x.key for x in given], "acked")
        row, _ = link.submit(now, "receipt", {"moved": [["acked", "tool", 0, idents]]})
        return row

    loop = desk.session.loop
    row = await asyncio.wrap_future(loop.call(acknowledge))
    lines = []
    try:
        settled = await asyncio.wait_for(asyncio.wrap_future(loop.settled(row)), REPLY_S)
        if settled.code != Code.OK:
            raise ToolError(f"not acknowledged: {settled.text} (code {settled.code})")
        lines.append(f"acknowledged {len(idents)}")
    except TimeoutError:
        doubt = "" if found else ", and so far nobody could check the ids"
        lines.append(f"queued: {len(idents)} acknowledged on disk; goes out when this session is connected{doubt}")
    if note:
        lines += [await _note(desk, sender, ident, note) for sender, ident in (found or {}).items()]
    return "; ".join(lines)


async def _senders(desk: Desk, idents: Sequence[str], must: bool) -> dict[str, str] | None:
    """Sender -> the first of these that he sent. None where the broker cannot be asked and need not."""
    try:
        rows = (
            await query(desk, "inbox", {"ids": list(idents), "limit": len(idents)}, QUERY_S if must else REPLY_S)
        ).rows
    except ToolError as error:
        if must:
            raise ToolError(f"nothing was acknowledged, for the note cannot be addressed: {error}") from error
        return None
    unknown = set(idents) - {str(value.get("id")) for value, _ in rows}
    if unknown:
        raise ToolError(f"no message {', '.join(sorted(unknown))} in this session's mailbox (check the ids)")
    senders: dict[str, str] = {}
    for value, _ in rows:
        senders.setdefault(f"{value['from']}@{value['host']}", str(value["id"]))
    return senders


async def _note(desk: Desk, sender: str, ident: str, note: str) -> str:
    request = {"to": [sender], "kind": "note", "re": ident}
    sent, settled = await post(desk, "send", request, note.encode("utf-8", "replace"), REPLY_S)
    if settled is None:
        return f"note to {sender} queued (id {sent})"
    return f"note {not_sent(settled, sent)}{redacted('send', request, note.encode('utf-8', 'replace'))}"


async def message_status(desk: Desk, args: Args) -> str:
    """The ladder of each recipient as the broker knows it, else what this side's disk says."""
    ident = args.text("id").strip().lower()
    loop = desk.session.loop
    stored = await asyncio.wrap_future(loop.call(lambda _link, _now: loop.outbox.by_id(ident)))
    if stored is not None and stored.code is None:
        return f"{queued(desk, ident)} Written {render.age(loop.clock() - stored.at)}."
    try:
        answer = await query(desk, "why", {"id": ident})
    except ToolError as error:
        if stored is None or stored.code is None:
            raise
        known = not_sent(Settled(stored.row, stored.code, stored.result, stored.text), ident)
        return f"{known} (as of {render.age(loop.clock() - stored.settled_at)}; now: {error})"
    now = loop.clock()
    return "\n".join(_ladder(value, now) for value, _ in answer.rows) or f"nothing is known of {render.safe(ident)}"


def _ladder(value: dict[str, Any], now: int) -> str:
    steps = []
    for step in value.get("history", []):
        proof = f" ({render.safe(step['proof'])})" if step.get("proof") else ""
        steps.append(f"{step['status']} {render.age(now - step['ts'])}{proof}")
    why = f": {render.safe(str(value['text']))}" if value.get("text") else ""
    name = render.safe(f"{value.get('name', '?')}@{value.get('host', '')}").rstrip("@")
    return f"{value.get('id', '')} to {name}: {value.get('status', '?')}{why}; " + ", ".join(steps)
