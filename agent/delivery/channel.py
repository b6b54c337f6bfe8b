"""The path by a channel notification, which a user has to switch on here and in the client.

The client answers nothing, shows nothing where its own switch is off, and drops what comes before it listens. So a
notification that was written proves nothing: it is offered, and what became of it is read from the transcript. A
client takes notifications only on a connection that began with `initialize`, so while this path is on
`server/discover` is declined. It knows the client's two methods; nothing of the ledger or of rendering.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError, JSONRPCNotification, JSONRPCRequest

CAPABILITIES: dict[str, dict[str, Any]] = {"claude/channel": {}}
LISTENS_AFTER_MS = 500  # after it asked for the tools; 20 ms were seen
REST_MS, REST_MAX_MS = 60_000, 3_600_000  # after a notification without a trace: doubling, up to the latter
_METHOD = "notifications/claude/channel"
_NOT_FOUND = -32601  # of JSON-RPC 2.0

Send = Callable[[SessionMessage], Coroutine[Any, Any, None]]


class Channel:
    """The notifications of one connection. For the event loop that serves it."""

    def __init__(self) -> None:
        self._send: Send | None = None
        self._opens_at: int | None = None
        self._rest = REST_MS
        self._declined: set[asyncio.Task[None]] = set()

    def attach(self, send: Send) -> None:
        """Where messages to the client go."""
        self._send = send

    def takes(self, message: object) -> bool:
        """Look at a message of the client; True when it is answered here, and is nobody else's."""
        if not isinstance(message, JSONRPCRequest):
            return False
        if message.method == "server/discover" and self._send is not None:
            error = {"code": _NOT_FOUND, "message": "Method not found"}
            answer = JSONRPCError.model_validate({"jsonrpc": "2.0", "id": message.id, "error": error})
            task = asyncio.get_running_loop().create_task(self._send(SessionMessage(answer)))
            self._declined.add(task)
            task.add_done_callback(self._declined.discard)
            return True
        if message.method == "tools/list" and self._opens_at is None:
            self._opens_at = _now() + LISTENS_AFTER_MS
        return False

    def open(self) -> bool:
        """Whether a notification may be written now."""
        return self._send is not None and self._opens_at is not None and _now() >= self._opens_at

    def failed(self) -> None:
        """The last one left no trace: it is not tried again for a while, which doubles."""
        self._opens_at = _now() + self._rest
        self._rest = min(2 * self._rest, REST_MAX_MS)

    def worked(self) -> None:
        """One was seen to reach the model."""
        self._rest = REST_MS

    async def push(self, text: str) -> None:
        """Write one notification; returns when it was written, or cannot be."""
        assert self._send is not None
        params = {"content": text, "meta": {"kind": "mail"}}
        await self._send(SessionMessage(JSONRPCNotification(jsonrpc="2.0", method=_METHOD, params=params)))


def _now() -> int:
    return time.monotonic_ns() // 1_000_000
