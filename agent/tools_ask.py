"""The tool `ask`: a question to one peer, whose answer is reserved for the call as long as that is open.

A call that ends gives its reservation back in the same step in which it looks a last time, so that an answer is shown
exactly once: by the call, or as an ordinary message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from agent import render
from agent.delivery.piggyback import BUDGET, plain
from agent.effects import Settled
from agent.inbox import Letter
from agent.link import Link
from agent.loop import new_row_id
from agent.tooling import Args, Desk, ToolError
from agent.tools_mail import AGAIN_S, check_recipients, not_sent, queued, recipients, redacted
from bus.errors import BusError

WAIT_S = 45
WAIT_MAX_S = 55
OFFLINE_S = 15  # a session that is only reconnecting is back by then
_MARGIN_S = 5


def longest(environ: Mapping[str, str]) -> int:
    """How long an ask may take at most, in s: the client gives up at MCP_TOOL_TIMEOUT (ms)."""
    text = environ.get("MCP_TOOL_TIMEOUT", "")
    limit = int(text) // 1000 - _MARGIN_S if text.isdecimal() and int(text) else WAIT_MAX_S
    return max(1, min(WAIT_MAX_S, limit))


async def ask(desk: Desk, args: Args) -> str:
    """Send a task to one peer and wait for what is sent in reply to it."""
    to, body = recipients(args, "to"), args.body()
    if len(to) != 1 or to[0] in ("*", "@all"):
        raise ToolError("ask has one recipient (to ask several: send_message, then check_messages)")
    check_recipients(to)
    wait = min(args.number("timeout_s", WAIT_S, 1, 600), desk.ask_max)
    given = args.has("timeout_s")
    loop, ident = desk.session.loop, new_row_id()

    await desk.session.asked_again(AGAIN_S)

    def begin(link: Link, now: int) -> int:
        loop.admit()
        row, _ = link.submit(now, "send", {"to": to, "ask": wait * 1000}, body.encode(), ident)
        desk.asks.open(ident, row)
        return row

    written = False
    try:
        row = await asyncio.wrap_future(loop.call(begin))
        written = True
        reply = asyncio.wrap_future(loop.settled(row))
        said = await _wait(desk, ident, reply, wait, given)

        def end(link: Link, now: int) -> tuple[list[Letter], int]:
            letter = desk.asks.close(link, ident)
            return (desk.mail.offer(link, now, desk.call, [letter]) if letter else []), now

        letters, now = await asyncio.wrap_future(loop.call(end))
    except ToolError:
        raise
    except BusError as error:
        if not written:
            raise
        raise ToolError(
            f"{error}. The question {ident} is on its way all the same. {_LATER.format(ident=ident)}"
        ) from error
    finally:
        loop.call(lambda link, _now: desk.asks.drop(link, ident))
    more = redacted("send", {}, body.encode())
    if letters:
        return f"answer to {ident}:\n\n" + render.render(plain(letters), now, BUDGET) + more
    if said is None:
        return f"waiting: no answer yet. {queued(desk, ident)} {_LATER.format(ident=ident)}{more}"
    return f"waiting (id {ident}): no answer in time; {said}. {_LATER.format(ident=ident)}{more}"


_LATER = "The answer will come as a message that says it is the answer to {ident}; do not ask again."


async def _wait(desk: Desk, ident: str, reply: asyncio.Future[Settled], wait: int, given: bool) -> str | None:
    """Until there is an answer, or the time is over. What became of the question; None while nobody knows."""
    clock = asyncio.get_running_loop().time
    end = clock() + wait
    said: str | None = None
    while not desk.asks.answered(ident) and clock() < end:
        beat = desk.session.pulse.arm()
        if desk.asks.answered(ident):
            break
        watched: list[asyncio.Future[object]] = [beat]  # type: ignore[list-item]
        if said is None:
            watched.append(reply)  # type: ignore[arg-type]
        await asyncio.wait(watched, timeout=end - clock(), return_when=asyncio.FIRST_COMPLETED)
        if said is None and reply.done():
            settled = reply.result()
            said = not_sent(settled, ident)
            rows = settled.result.get("to") or [{}]
            if "offline" in str(rows[0].get("text", "")) and not given:
                end = min(end, clock() + OFFLINE_S)
    return said
