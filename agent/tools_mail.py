"""The tools for mail: send_message, check_messages, ack, message_status. What they claim is what is on a disk.

They must not know the MCP SDK, nor how a result travels to the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from agent import render
from agent.asks import Answer
from agent.book import told_key
from agent.delivery.piggyback import BUDGET, counted, fitting, letter_of, plain
from agent.effects import Settled
from agent.inbox import Letter, named
from agent.link import Link, receipt
from agent.named import Typed, offered, whole
from agent.questions import TOLD_MAX as QUESTIONS_MAX
from agent.questions import Question, reached
from agent.redact import outgoing
from agent.tooling import Args, Desk, ToolError
from bus import names, wire
from bus.errors import BusError, Code, Refused

PROOF_S, PROOF_LOOK_S = 1.0, 0.05
REPLY_S = 0.3  # how long a result waits for the broker's word
TOLD_MAX = 20  # recipients of one message that a result lists
QUERY_S = 4.0
WAIT_MAX_S = 55
REFILL_S = 1.5
AGAIN_S = 3.0
RECONNECT_MS = 2000  # a connection that was lost just now is worth waiting for
LIMIT_MAX = 200
ACKS_AT_ONCE = 16  # of one request: its head has 4096 octets
NOTHING = "no unread messages"


async def send_message(desk: Desk, args: Args) -> str:
    """Write it down, then tell what the broker said of each recipient, or that it has not yet."""
    began = desk.session.loop.clock()
    to, body = recipients(args, "to"), args.body()
    request: dict[str, Any] = {"to": to}
    check_recipients(to)
    kind = args.text("kind", "task")
    if kind not in ("task", "note"):
        raise ToolError("'kind' must be task or note")
    request["kind"] = kind
    if args.has("tag"):
        request["tag"] = names.check_tag(args.text("tag"))
    if args.text("reply_to").strip():
        request["re"] = message_id(args.text("reply_to"), "reply_to")
    if args.has("exclude"):
        request["exclude"] = recipients(args, "exclude")
        check_recipients(request["exclude"])
    if args.has("ttl_s"):
        request["ttl"] = args.number("ttl_s", 0, 1, 10_000_000) * 1000
    matches = len(to) == 1 and to[0] not in ("*", "@all") and not args.has("kind", "reply_to")
    if matches:
        await _proofs(desk, to[0])
    likely: list[Question] = []

    def prepare(link: Link, now: int) -> None:
        if matches:
            open_ = link.inbox.questions.shown(now, began)
            likely.extend(x for x in open_ if x.may_be_of(to[0]))
            _one_at_most(likely)
            # Those that seem to be meant last, so that questions of others do not crowd them out.
            shown = ([x for x in open_ if x not in likely] + likely)[-QUESTIONS_MAX:]
            if shown:
                request["answers"] = [[x.fid, x.id] for x in shown]
        else:
            likely.extend(link.inbox.questions.by_id(request.get("re", "")))
        if request.get("re"):
            desk.mail.named(link, now, [request["re"]], "answered")

    ident, settled = await post(desk, "send", request, body.encode(), REPLY_S, prepare)
    more = redacted("send", request, body.encode())
    if settled is None:
        meant = f" It is meant as the answer to {likely[0].id}." if matches and likely else ""
        return queued(desk, ident) + meant + more
    told = not_sent(settled, ident)
    if matched := settled.result.get("re"):
        told += f"; sent as the answer to {matched}"
    elif likely and not matches and not any(reached(settled.result, x) for x in likely):
        told += f" ({likely[0].id} is a question of {render.safe(f'{likely[0].name}@{likely[0].host}')}, still open)"
    return told + more


async def _proofs(desk: Desk, to: str) -> None:
    """Give the client a moment to write down that a question was in the request which this call came from."""
    if desk.catch_up is None:
        return
    loop, end = desk.session.loop, time.monotonic() + PROOF_S
    known = await asyncio.wrap_future(loop.call(lambda link, now: link.inbox.questions.open(now)))
    while known and time.monotonic() < end:
        with contextlib.suppress(BusError, OSError):
            await desk.catch_up()
        known = await asyncio.wrap_future(loop.call(lambda link, now: link.inbox.questions.unproved(now)))
        known = [x for x in known if x.may_be_of(to)]
        if known:
            await asyncio.sleep(PROOF_LOOK_S)


def _one_at_most(likely: Sequence[Question]) -> None:
    """ToolError where a message could answer several questions. The broker would refuse it too, but perhaps later."""
    for question in likely:
        same = [x.id for x in likely if x.fid == question.fid]
        if len(same) > 1:
            raise ToolError(
                f"not sent: several questions of {render.safe(f'{question.name}@{question.host}')} are open: "
                f'{", ".join(same)} (say in reply_to which one this answers, or reply_to="" for none)'
            )


def redacted(op: str, args: dict[str, Any], body: bytes) -> str:
    """What the link takes out of a request before it writes it, as a sentence more; "" for nothing."""
    found = outgoing(op, args, body)[2]
    return f" (redacted before it left: {found}; there is no way around that for you)" if found else ""


async def post(
    desk: Desk,
    op: str,
    args: dict[str, Any],
    body: bytes,
    wait: float,
    prepare: Callable[[Link, int], None] | None = None,
) -> tuple[str, Settled | None]:
    """A request on the disk, with the broker's reply if that comes within `wait` s.

    `prepare` may still change the arguments, in the thread of the link. BusError when the request is not on the disk,
    as where the hub refuses this machine; never once it is.
    """
    loop = desk.session.loop
    await desk.session.asked_again(AGAIN_S)

    def write(link: Link, now: int) -> tuple[int, str]:
        loop.admit()
        if prepare is not None:
            prepare(link, now)
        return link.submit(now, op, args, body)

    row, ident = await asyncio.wrap_future(loop.call(write))
    return ident, await answered(desk, row, wait)


async def answered(desk: Desk, row: int, wait: float) -> Settled | None:
    """The reply to a row that is on the disk; None when it does not come within `wait` s, or the agent ends."""
    try:
        return await asyncio.wait_for(asyncio.wrap_future(desk.session.loop.settled(row)), wait)
    except (TimeoutError, BusError):
        return None


def queued(desk: Desk, ident: str) -> str:
    """What is true of a request the broker has not confirmed. ToolError where it does not go out by itself."""
    if refusal := blocked(desk, ident):
        raise ToolError(refusal)
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


def blocked(desk: Desk, ident: str) -> str:
    """What is true of a request on this disk while the hub takes nothing from this machine; "" while it does."""
    refused = desk.session.loop.status().refused
    if refused is None:
        return ""
    return (
        f"not confirmed (id {ident}): {refused.words()}. It stays on this disk, and goes out only when the hub takes "
        f"this machine's mail again; message_status(id={ident!r}) tells."
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
    await desk.session.asked_again(AGAIN_S)
    refused = desk.session.loop.status().refused
    if refused is not None:
        raise ToolError(refused.words())
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
    if status.refused is not None:
        return f"{NOTHING} here, and nothing comes in: {status.refused.words()}"
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
            line = link.inbox.line(letter)
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
        return [keys.get(x.key) or link.inbox.known(x) for x in again], max(left, 0), now

    letters, left, now = await asyncio.wrap_future(desk.session.loop.call(choose))
    return render.render(plain(letters), now, BUDGET), len(letters), left


async def _one(desk: Desk, args: Args) -> str:
    """One message by id or the beginning of one, from `offset` on; also one that this session sent."""
    ident, offset = args.text("id").strip().lower(), args.number("offset", 0, 0, 1_000_000)
    value, body = (await query(desk, "message", {"id": ident})).rows[0]
    now = desk.session.loop.clock()
    letter = letter_of(value, body, now)
    own = await query(desk, "inbox", {"ids": [letter.msg.id], "of": [letter.msg.fid]})
    mine = any(row.get("fid") == letter.msg.fid for row, _ in own.rows)
    mark = mine and not args.flag("peek")

    def offer(link: Link, now: int) -> Letter:
        given = desk.mail.offer(link, now, desk.call, [letter]) if mark else []
        return given[0] if given else link.inbox.known(letter)

    letter = await asyncio.wrap_future(desk.session.loop.call(offer))
    return render.render(plain([letter]), now, BUDGET, offset=offset)


# -- ack, message_status ---------------------------------------------------------------------------------------------


async def ack(desk: Desk, args: Args) -> str:
    """Tell the senders that their messages were dealt with; a note goes to each of them as a reply."""
    wanted = [message_name(part, "ids") for text in args.texts("ids") for part in text.split(",") if part.strip()]
    if not wanted:
        raise ToolError("'ids' is empty (the ids of messages, as shown after 'id')")
    if len(wanted) > wire.RECEIPT_IDS:
        raise ToolError(f"{len(wanted)} ids, {wire.RECEIPT_IDS} are allowed (ack the others next)")
    note = args.text("note").strip()
    found = await _meant(desk, wanted, must=bool(note))
    loop = desk.session.loop

    def acknowledge(link: Link, now: int) -> tuple[int, str]:
        loop.admit()
        return _acknowledge(link, now, found)

    row, request = await asyncio.wrap_future(loop.call(acknowledge))
    lines = []
    settled = await answered(desk, row, REPLY_S)
    if settled is None:
        if refusal := blocked(desk, request):
            raise ToolError(refusal)
        told = f"queued (id {request}): {len(found)} acknowledged on disk"
        lines.append(f"{told}; goes out when this session is connected")
    elif settled.code != Code.OK:
        raise ToolError(f"not acknowledged: {settled.text} (code {settled.code})")
    else:
        lines.append(f"acknowledged {len(found)}")
    senders: dict[str, str] = {}
    for value in found if note else ():
        senders.setdefault(f"{value['from']}@{value['host']}", str(value["id"]))
    for sender, ident in senders.items():
        try:
            lines.append(await _note(desk, sender, ident, note))
        except BusError as error:
            raise ToolError(f"{'; '.join(lines)}; but the note to {sender}: {error}") from error
    return "; ".join(lines)


def message_name(text: str, argument: str) -> Typed:
    """A whole message id, or HOST/ID or NAME@HOST/ID."""
    found = whole(text)
    if found is None:
        raise ToolError(f"{argument!r}: {text[:60]!r} is no message id (16 of a-z 2-7, as shown after 'id')")
    return found


async def _meant(desk: Desk, wanted: Sequence[Typed], must: bool) -> list[dict[str, Any]]:
    """The messages that are meant: each is one, and was offered to this session. ToolError when not. Where the broker
    cannot be asked, and need not (`must`), the ledger alone says so.
    """
    lines = await asyncio.wrap_future(desk.session.loop.call(lambda link, _now: _offered(link, wanted)))
    idents = sorted({each.ident for each in wanted})
    try:
        asked = {"ids": idents, "limit": LIMIT_MAX}
        rows = [value for value, _ in (await query(desk, "inbox", asked, QUERY_S if must else REPLY_S)).rows]
    except ToolError as error:
        if must:
            raise ToolError(f"nothing was acknowledged, for the note cannot be addressed: {error}") from error
        rows, checked = lines, False
    else:
        checked = True
        if len(rows) >= LIMIT_MAX:
            raise ToolError("too many messages have these ids; nothing was acknowledged (ack fewer at once)")
        known = {(line["host"], line["fid"], line["id"]) for line in lines}
        for row in rows:
            # What another session was offered and nobody has seen is not this one's to acknowledge.
            row["again"] = (row["host"], row["fid"], row["id"]) in known
            row["status"] = "" if row["status"] == "offered" else row["status"]
    found: dict[str, dict[str, Any]] = {}
    for each in wanted:
        try:
            value = offered(each, rows)
        except Refused as refused:
            hint = "check_messages shows it" if "shown" in str(refused) else "check the ids"
            text = str(refused) if refused.code == Code.CONFLICT else f"{refused} in this session's mailbox ({hint})"
            more = "" if checked else "; the broker cannot be asked just now"
            raise ToolError(f"{text}; nothing was acknowledged{more}") from refused
        found[told_key(value)] = value
    return list(found.values())


def _offered(link: Link, wanted: Sequence[Typed]) -> list[dict[str, Any]]:
    """What the ledger has of these ids: in the hands of a path, or shown."""
    idents = {each.ident for each in wanted}
    found = []
    for key in link.book.ledger:
        ident = key.rpartition("/")[2]
        if ident in idents:
            found.append(
                {"id": ident, "host": key.partition("/")[0], "fid": named(key)[1], "from": "", "again": True}
            )
    return found


def _acknowledge(link: Link, now: int, found: Sequence[dict[str, Any]]) -> tuple[int, str]:
    """Write it down: that these were shown, for who acknowledges has seen them, and the receipts. The broker may not
    have heard yet that they were offered, so it is told once more before. Row and id of the last receipt.
    """
    last, ledger = (0, ""), link.book.ledger
    keys = [told_key(value) for value in found]
    lines = {key: ledger.get(key) for key in keys}
    offers = {key: ("offered", line.way, max(0, now - line.at)) for key, line in lines.items() if line is not None}
    link.inbox.shown(now, keys, "acked")
    link.inbox.proven(now, keys, "acked")
    for start in range(0, len(keys), ACKS_AT_ONCE):
        part = keys[start : start + ACKS_AT_ONCE]
        rows: dict[tuple[str, str, int], list[str]] = {}
        for key in part:
            if key in offers:
                rows.setdefault(offers[key], []).append(key)
        last = link.submit(now, "receipt", receipt(rows | {("acked", "tool", 0): part}))
    return last


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
        await desk.session.asked_again(AGAIN_S)
        return f"{blocked(desk, ident) or queued(desk, ident)} Written {render.age(loop.clock() - stored.at)}."
    if stored is not None and stored.code is not None and stored.op != "send":
        became = "done" if stored.code < 300 else f"refused: {stored.text or 'no reason given'} (code {stored.code})"
        return f"{stored.op} {ident}: {became}, {render.age(loop.clock() - stored.settled_at)}"
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
