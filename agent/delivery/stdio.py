"""JSON-RPC lines over stdin and stdout, with word of every response: written to a living client, or not.

The descriptors were taken over (takeover.py), so nothing else in this process can write between the lines. Reading
and writing have a thread each and no buffer of Python's: a thread that blocks there holds no lock the interpreter
needs at its end. It must not know tools or messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self

import anyio
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError, JSONRPCResponse, jsonrpc_message_adapter

_READ = 65536

Fate = Literal["shown", "unsure", "never"]
Answered = Callable[[Any, Fate], None]


class Reader:
    """Lines of stdin as messages; what is none comes as an exception, as the SDK expects it."""

    def __init__(self, descriptor: int, takes: Callable[[object], bool] | None = None) -> None:
        """`takes` looks at every message first, and keeps those for which it answers True."""
        self._descriptor = descriptor
        self._takes = takes
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.ended = threading.Event()
        threading.Thread(target=self._read, name="talkbus-stdin", daemon=True).start()

    def _read(self) -> None:
        rest = b""
        with contextlib.suppress(RuntimeError):  # the event loop has ended, so nobody listens
            while True:
                try:
                    data = os.read(self._descriptor, _READ)
                except OSError:
                    data = b""
                if not data:
                    self.ended.set()
                    self._loop.call_soon_threadsafe(self._lines.put_nowait, None)
                    return
                head, newline, tail = data.rpartition(b"\n")
                if not newline:
                    rest += data
                    continue
                for line in (rest + head).split(b"\n"):
                    self._loop.call_soon_threadsafe(self._lines.put_nowait, line)
                rest = tail

    async def receive(self) -> SessionMessage | Exception:
        """The next message; EndOfStream when the client has gone."""
        while True:
            line = await self._lines.get()
            if line is None:
                self._lines.put_nowait(None)
                raise anyio.EndOfStream
            if line.strip():
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError as error:
                    return error
                if self._takes is None or not self._takes(message):
                    return SessionMessage(message)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        """Nothing more is read."""
        self._lines.put_nowait(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Writer:
    """Messages to stdout, one after the other. `answered(id, fate)` is called for each response, in the event loop:
    "shown" when it was written while stdin was open, "never" when an error went out in its place.
    """

    def __init__(self, descriptor: int, reader: Reader, answered: Answered) -> None:
        self._descriptor = descriptor
        self._reader = reader
        self._answered = answered
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[tuple[bytes, Any, asyncio.Future[None]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="talkbus-stdout", daemon=True).start()

    async def send(self, item: SessionMessage, /) -> None:
        """Write one message; returns when it was written, or cannot be. A cancelled call does not stop it."""
        line = item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
        written: asyncio.Future[None] = self._loop.create_future()
        self._queue.put((line, item.message, written))
        await written

    def _write(self) -> None:
        broken = False
        while True:
            item = self._queue.get()
            if item is None:
                return
            line, message, written = item
            try:
                while line and not broken:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:
                broken = True
            try:
                self._loop.call_soon_threadsafe(self._tell, message, not broken, written)
            except RuntimeError:
                return  # the event loop has ended

    def _tell(self, message: Any, whole: bool, written: asyncio.Future[None]) -> None:
        if isinstance(message, JSONRPCResponse):
            self._answered(message.id, "shown" if whole and not self._reader.ended.is_set() else "unsure")
        elif isinstance(message, JSONRPCError):
            self._answered(message.id, "never")
        if not written.done():
            written.set_result(None)

    async def aclose(self) -> None:
        """Nothing more is written."""
        self._queue.put(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
