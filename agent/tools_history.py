"""The tool read_history: what was said in another session on this machine.

It must not know the MCP SDK.
"""

from __future__ import annotations

import asyncio
import os

from agent.peer_history import END, NOTICE, told, turns
from agent.tooling import Args, Desk


async def read_history(desk: Desk, args: Args) -> str:
    """The latest turns of a peer, a search over them, or one of them."""
    peer, query = args.text("peer"), args.text("query")
    turn = args.number("turn", 0, 0, 10_000_000)
    offset, before = args.number("offset", 0, 0, 10**9), args.number("before", 0, 0, 10_000_000)
    limit, regex = args.number("limit", 20, 1, 100), args.flag("regex")
    home, config = desk.session.home, desk.session.config
    found = await asyncio.to_thread(turns, home, config, os.environ, peer, False)
    text = await asyncio.to_thread(told, found, query, regex, turn, offset, before, limit)
    return f"{NOTICE}\n{text}\n{END}"
