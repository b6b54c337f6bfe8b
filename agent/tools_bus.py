"""The tools beside mail: list_peers, set_status, get_state, set_state.

They must not know the MCP SDK.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from agent import render
from agent.effects import Settled
from agent.tooling import Args, Desk, ToolError
from agent.tools_mail import REPLY_S, post, query, queued, redacted
from bus import names, wire
from bus.errors import BusError, Code

STATE_S = 3.0  # a compare-and-set is worth waiting for
KNOCK_S = 3.0
STATE_SHOWN = 40_000  # characters; clients cut results beyond 50,000
SUMMARY_MAX = 200


async def list_peers(desk: Desk, args: Args) -> str:
    """One line for each session."""
    scope = args.text("scope")
    if scope not in ("", "machine", "folder", "repo", "all"):
        raise ToolError("'scope' must be machine, folder, repo or all")
    request: dict[str, Any] = {"all": True} if scope == "all" else {"scope": scope} if scope else {}
    if args.has("active_within_min"):
        request["active"] = args.number("active_within_min", 0, 0, 1_000_000) * 60_000
    answer = await query(desk, "peers", request)
    own, now = desk.session.loop.status().id, desk.session.loop.clock()
    lines = [_peer(value, now) for value, _ in answer.rows if value.get("id") != own]
    you = next((_peer(value, now) for value, _ in answer.rows if value.get("id") == own), "")
    head = f"you: {you}" if you else f"you: {desk.session.loop.status().name}"
    return "\n".join([head, *(lines or ['no other session (list_peers(scope="all") also shows those gone)'])])


def _peer(value: dict[str, Any], now: int) -> str:
    parts = [f"{value.get('name', '?')}@{value.get('host', '?')} ({value.get('id', '')})"]
    presence, activity = str(value.get("presence", "")), str(value.get("activity", ""))
    parts.append(f"{presence} {activity}".strip())
    if value.get("kind", "session") != "session":
        parts.append(str(value["kind"]))
    if presence != "open":
        parts.append(f"active {render.age(now - int(value.get('last_active', now)))}")
    for key, word in (("cwd", ""), ("branch", "branch "), ("client", "")):
        if value.get(key):
            parts.append(f"{word}{value[key]}")
    if value.get("unread"):
        parts.append(f"{value['unread']} unread")
    if value.get("metadata"):
        parts.append(json.dumps(value["metadata"], ensure_ascii=False)[:200])
    if value.get("summary"):
        parts.append(f'says "{value["summary"]}"')
    return render.safe(", ".join(parts))


# -- set_status ------------------------------------------------------------------------------------------------------


async def set_status(desk: Desk, args: Args) -> str:
    """Name first, for the rest is said under it; without arguments what we are."""
    lines: list[str] = []
    if args.has("name"):
        lines.append(await _rename(desk, names.check_name(args.text("name")), args.flag("take")))
    elif args.flag("take"):
        raise ToolError("'take' goes with 'name'")
    request: dict[str, Any] = {}
    if args.has("summary"):
        request["summary"] = " ".join(args.text("summary").split())[:SUMMARY_MAX]
    if args.has("busy_min"):
        minutes = args.number("busy_min", 0, 0, 10_080)
        request |= {"activity": "busy", "busy": minutes * 60_000} if minutes else {"activity": "idle", "busy": 0}
    if args.has("metadata"):
        metadata = args.any("metadata")
        if not isinstance(metadata, dict):
            raise ToolError("'metadata' must be an object")
        request["metadata"] = metadata
    if request:
        try:
            ident, settled = await post(desk, "status", request, b"", REPLY_S)
            if settled is None:
                lines.append(queued(desk, ident))
            elif settled.code != Code.OK:
                raise ToolError(f"status not set: {settled.text} (code {settled.code})")
            else:
                lines.append("status set" + redacted("status", request, b""))
        except BusError as error:
            raise ToolError("; ".join([*lines, str(error)])) from error
    return "; ".join(lines) if lines else await _whoami(desk)


async def _whoami(desk: Desk) -> str:
    session = desk.session
    await session.known(2.0)
    status = session.loop.status()
    name = status.name or session.profile.name
    if not status.connected:
        since = render.age(session.loop.clock() - status.since_ms)
        return f"{name}@{session.host}: not connected since {since} ({status.reason}); project {_project(desk)}"
    value = (await query(desk, "whoami", {})).rows[0][0]
    now = session.loop.clock()
    told = _peer(value, now)
    since = render.age(now - status.since_ms)
    return f"{told}; role {value.get('role')}, project {_project(desk)}, connected since {since}"


def _project(desk: Desk) -> str:
    return render.safe(desk.session.who.place.project)


async def _rename(desk: Desk, name: str, take: bool) -> str:
    session = desk.session
    await session.asked_again(KNOCK_S)
    if not await session.known(2.0):
        if (refused := session.loop.status().refused) is not None:
            raise ToolError(f"the name stays: {refused.words()}")
        if session.loop.status().parked is None:
            raise ToolError(
                f"the broker is not reachable ({session.loop.status().reason}); the name stays. Try later"
            )
        return await _knock(desk, name, take)
    if session.loop.status().name == name:
        return f"this session is called {name!r} already"
    op = "take" if take else "rename"
    ident, settled = await post(desk, op, {"name": name}, b"", STATE_S)
    if take and settled is not None and settled.code == Code.CONFLICT and settled.result.get("term"):
        ident, settled = await post(desk, op, {"name": name, "term": settled.result["term"]}, b"", STATE_S)
    if settled is None:
        return f"the new name {name!r} is on its way: {queued(desk, ident)}"
    if settled.code != Code.OK:
        raise ToolError(f"still called {session.loop.status().name!r}: {settled.text}")
    await session.pulse.until(lambda: session.loop.status().name == name, KNOCK_S)
    more = f", {settled.result['unread']} unread" if settled.result.get("unread") else ""
    return f"this session is called {name!r} now{more}"


async def _knock(desk: Desk, name: str, take: bool) -> str:
    """Out of the parked state: under another name, or taking this one back from its present holder."""
    session = desk.session
    loop = session.loop
    parked = loop.status().parked
    term = parked.term if take and parked is not None and name == session.profile.name else 0
    for _ in range(2):
        before = loop.status().parked
        await asyncio.wrap_future(loop.call(lambda link, now, term=term: link.knock(now, name, term)))  # type: ignore[misc]
        await session.pulse.until(
            lambda before=before: loop.status().connected or loop.status().parked not in (None, before),  # type: ignore[misc]
            KNOCK_S,
        )
        status = loop.status()
        if status.connected:
            return f"this session is called {status.name!r} now"
        if not (take and status.parked is not None and status.parked.term > 0 and status.parked.term != term):
            break
        term = status.parked.term
    raise ToolError(f"not connected as {name!r}: {loop.status().reason} (choose another name, or take=true)")


# -- shared state ----------------------------------------------------------------------------------------------------


async def get_state(desk: Desk, args: Args) -> str:
    """Values as JSON, each with its version and who wrote it."""
    if args.has("key") == args.has("prefix"):
        raise ToolError("one of 'key' and 'prefix' is needed (prefix \"\" lists everything)")
    if args.has("key"):
        answer = await query(desk, "state.get", {"key": names.check_key(args.text("key"))})
    else:
        answer = await query(desk, "state.list", {"prefix": args.text("prefix")})
    now = desk.session.loop.clock()
    lines: list[str] = []
    room = STATE_SHOWN
    for value, body in answer.rows:
        line = _entry(value, body, now)
        room -= len(line)
        if room < 0 and lines:
            lines.append(f"({len(answer.rows) - len(lines)} more keys: use a longer prefix)")
            break
        lines.append(line)
    return "\n".join(lines) or "no such keys"


def _entry(value: dict[str, Any], body: bytes, now: int) -> str:
    ttl = f", expires in {value['ttl'] // 1000} s" if value.get("ttl") else ""
    by = render.safe(str(value.get("by", "")))
    text = render.safe(render.text_of(body))
    return f"{value['key']} = {text}  (version {value['ver']}, {by}, {render.age(now - value['ts'])}{ttl})"


async def set_state(desk: Desk, args: Args) -> str:
    """Write or delete one value; with if_version only where nobody was faster."""
    key = names.check_key(args.text("key"))
    request: dict[str, Any] = {"key": key}
    if args.has("if_version"):
        request["ver"] = args.number("if_version", 0, 0, wire.NUM_MAX)
    delete = args.flag("delete")
    body = b""
    if not delete:
        body = json.dumps(args.any("value"), ensure_ascii=False).encode("utf-8", "replace")
        if len(body) > wire.STATE_VALUE_MAX:
            raise ToolError(f"the value has {len(body)} octets, {wire.STATE_VALUE_MAX} are allowed")
        if args.has("ttl_s"):
            request["ttl"] = args.number("ttl_s", 0, 1, 10_000_000) * 1000
    ident, settled = await post(desk, "state.delete" if delete else "state.set", request, body, STATE_S)
    more = redacted("state.set", request, body)
    return (queued(desk, ident) if settled is None else _written(key, settled, delete)) + more


def _written(key: str, settled: Settled, delete: bool) -> str:
    if settled.code != Code.OK:
        raise ToolError(f"{key} unchanged: {settled.text} (code {settled.code})")
    return f"{key} deleted" if delete else f"{key} written, version {settled.result.get('ver')}"
