"""JSON-RPC lines over stdin and stdout, with word of every response: where it ended in the stream, and of every line
of the client: how far the client had read by then.

The descriptors were taken over (takeover.py), so nothing else in this process can write between the lines. Reading
and writing have a thread each and no buffer of Python's: a thread that blocks there holds no lock the interpreter
needs at its end. It must not know tools or messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import select
import stat
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import anyio
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError, JSONRPCResponse, jsonrpc_message_adapter

_READ = 65536
_UNBLOCKED = select.PIPE_BUF if hasattr(select, "PIPE_BUF") else 512  # a writable pipe takes as much without blocking

Fate = Literal["written", "unsure", "never"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a response that was written in full ended in our stream, and how much the client had sent before that."""

    end: int = 0
    sent: int = 0


Answered = Callable[[Any, Fate, Place], None]
Heard = Callable[[object, int, int], None]


class Reader:
    """Lines of stdin as messages; what is none comes as an exception, as the SDK expects it."""

    def __init__(
        self, descriptor: int, takes: Callable[[object], bool] | None = None, heard: Heard | None = None
    ) -> None:
        """`takes` looks at every message first, and keeps those for which it answers True. Before that `heard` is
        told each message, at which byte of the client's stream it began, and how much of ours the client had read
        when it arrived (-1 where that cannot be known).
        """
        self._descriptor = descriptor
        self._takes = takes
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[tuple[bytes, int, int] | None] = asyncio.Queue()
        self._lock = threading.Lock()  # held only for reads that do not block
        self._read_so_far = 0
        self.taken: Callable[[], int] = lambda: -1
        self.ended = threading.Event()
        threading.Thread(target=self._read, name="talkbus-stdin", daemon=True).start()

    def sent(self) -> int:
        """How many bytes the client has sent until now, also those that nobody has read yet."""
        with self._lock:
            return self._read_so_far + max(_pending(self._descriptor), 0)

    def _read(self) -> None:
        rest = b""
        begin = 0  # where `rest` begins in the stream
        with contextlib.suppress(RuntimeError):  # the event loop has ended, so nobody listens
            while True:
                data = self._some()
                taken = self.taken()
                if not data:
                    self.ended.set()
                    self._loop.call_soon_threadsafe(self._lines.put_nowait, None)
                    return
                head, newline, tail = data.rpartition(b"\n")
                if not newline:
                    rest += data
                    continue
                for line in (rest + head).split(b"\n"):
                    self._loop.call_soon_threadsafe(self._lines.put_nowait, (line, begin, taken))
                    begin += len(line) + 1
                rest = tail

    def _some(self) -> bytes:
        """The next bytes, b"" at the end."""
        try:
            if not hasattr(select, "poll"):
                return os.read(self._descriptor, _READ)
            poller = select.poll()
            poller.register(self._descriptor, select.POLLIN)
            poller.poll()
            with self._lock:
                data = os.read(self._descriptor, _READ)
                self._read_so_far += len(data)
            return data
        except OSError:
            return b""

    async def receive(self) -> SessionMessage | Exception:
        """The next message; EndOfStream when the client has gone."""
        while True:
            item = await self._lines.get()
            if item is None:
                self._lines.put_nowait(None)
                raise anyio.EndOfStream
            line, begin, taken = item
            if line.strip():
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError as error:
                    return error
                if self._heard is not None:
                    self._heard(message, begin, taken)
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
    """Messages to stdout, one after the other. `answered(id, fate, place)` is called for each response, in the event
    loop: "written" when it was written in full while stdin was open, which does not say that the client has read it;
    "never" when an error went out in its place.
    """

    def __init__(self, descriptor: int, reader: Reader, answered: Answered) -> None:
        self._descriptor = descriptor
        self._reader = reader
        self._answered = answered
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[tuple[bytes, Any, asyncio.Future[None]] | None] = queue.SimpleQueue()
        self._written = 0
        self._broken = False  # nobody reads any more
        # Held from when a chunk may reach the client until it is counted and, if it was the last of a response, told:
        # what a quick client sends next is then heard after that. Only for writes that do not block.
        self._lock = threading.Lock()
        self._pending: list[Any] = []  # ids of responses that are being written, or wait for that
        reader.taken = self.taken
        threading.Thread(target=self._write, name="talkbus-stdout", daemon=True).start()

    async def send(self, item: SessionMessage, /) -> None:
        """Write one message; returns when it was written, or cannot be. A cancelled call does not stop it."""
        line = item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
        written: asyncio.Future[None] = self._loop.create_future()
        if isinstance(item.message, JSONRPCResponse | JSONRPCError):
            self._pending.append(item.message.id)
        self._queue.put((line, item.message, written))
        await written

    def holds(self, request: Any) -> bool:
        """Whether a response to this request is still being written: a client that does not read holds it up."""
        return request in self._pending

    def taken(self) -> int:
        """How many bytes of ours the client has certainly read; -1 where the system does not tell."""
        with self._lock:
            left = _unread(self._descriptor)
            return -1 if left is None else max(self._written - left, 0)

    def _write(self) -> None:
        ready = select.poll() if sys.platform == "linux" else None  # where _unread tells something
        if ready is not None:
            ready.register(self._descriptor, select.POLLOUT)
        lock = self._lock if ready is not None else contextlib.nullcontext()
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            while (item := self._queue.get()) is not None:
                line, message, written = item
                while line:
                    if ready is not None and not self._broken:
                        ready.poll()
                    with lock:
                        line = self._write_some(line, _UNBLOCKED if ready else len(line), message, written)

    def _write_some(self, line: bytes, most: int, message: Any, written: asyncio.Future[None]) -> bytes:
        """Write at most so many octets of a line; what is left of it. With the last of it, or where nobody reads any
        more, it is told.
        """
        sent = self._reader.sent()  # before the write: a quick client answers while it returns
        try:
            count = 0 if self._broken else os.write(self._descriptor, line[:most])
        except OSError:
            self._broken = True
        else:
            self._written += count
            line = line[count:]
        if line and not self._broken:
            return line
        place = Place(self._written, sent)
        self._loop.call_soon_threadsafe(self._tell, message, not self._broken, place, written)
        return b""

    def _tell(self, message: Any, whole: bool, place: Place, written: asyncio.Future[None]) -> None:
        if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id in self._pending:
            self._pending.remove(message.id)
        if isinstance(message, JSONRPCResponse):
            self._answered(message.id, "written" if whole and not self._reader.ended.is_set() else "unsure", place)
        elif isinstance(message, JSONRPCError):
            self._answered(message.id, "never", place)
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


def _pending(descriptor: int) -> int:
    """How many bytes wait to be read here; -1 where the system does not tell."""
    return -1 if sys.platform == "win32" else _count(descriptor, "FIONREAD")


def _unread(descriptor: int) -> int | None:
    """How many bytes the other side of a pipe or socket has not read yet; None where that cannot be known.

    Only Linux tells it at the end that writes; of a socket only whether there are any, so any count as all.
    """
    if sys.platform != "linux":
        return None
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return None
    if stat.S_ISFIFO(mode):
        left = _count(descriptor, "FIONREAD")
        return None if left < 0 else left
    if stat.S_ISSOCK(mode):
        return 0 if _count(descriptor, "TIOCOUTQ") == 0 else sys.maxsize
    return None


def _count(descriptor: int, request: str) -> int:
    import fcntl
    import termios

    try:
        told = fcntl.ioctl(descriptor, getattr(termios, request), b"\0" * 4)
    except (OSError, AttributeError):
        return -1
    return int.from_bytes(told, sys.byteorder, signed=True)
