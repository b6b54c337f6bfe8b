"""NATS JetStream under test: one stream on file storage, a subject and a durable push consumer for each mailbox."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from bench import servers
from bench.system import Bus, Node, System

NAME = "jetstream"
NOTE = (
    "jetstream: nats-server, file storage, which this server syncs every two minutes by default (acknowledged "
    "messages are lost with the machine, not with the process); a message counts as acknowledged with the PubAck "
    "and with the consumer's explicit ack; max_ack_pending is 1024 (default 1000 or more)"
)
STREAM = "bench"
T = TypeVar("T")


@contextmanager
def server(folder: Path) -> Iterator[servers.Server]:
    """A server with a store of its own."""

    def line(port: int) -> list[str]:
        return [servers.program("nats-server") or "", "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder)]

    with servers.running(line, folder) as made:
        yield made


@contextmanager
def _bus() -> Iterator[Bus]:
    with tempfile.TemporaryDirectory(prefix="talkbus-bench-") as folder, server(Path(folder)) as made:
        yield Bus(made.pid, JetStreamNode, (made.port,))


SYSTEM = System(NAME, NOTE, _bus, lambda: servers.missing("nats-server", "nats-server", "nats", "nats-py"))


async def open_stream(port: int) -> tuple[Any, Any]:
    """Connection and JetStream context; the stream is made when it is not there."""
    import nats
    from nats.js.api import StorageType, StreamConfig

    connection = await nats.connect(
        f"nats://127.0.0.1:{port}", max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=_quiet
    )
    stream = connection.jetstream(timeout=10)
    await stream.add_stream(StreamConfig(name=STREAM, subjects=["to.*"], storage=StorageType.FILE))
    return connection, stream


async def _quiet(_error: Exception) -> None:
    """Reconnects are what some of this is about."""


def close(loop: asyncio.AbstractEventLoop, connection: Any) -> None:
    """Close the connection, then everything that still runs in this loop: else each task complains of its end."""
    with suppress(Exception):
        loop.run_until_complete(asyncio.wait_for(connection.close(), 3))
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()


FILL_S = 60.0
_BODY = (
    b"message %07d speaks of topic%d; the rest of it is there to have the common length of all these messages here"
)


def fill(port: int, count: int) -> None:
    """Put so many messages into the stream, without waiting for each; RuntimeError when it takes too long."""
    loop = asyncio.new_event_loop()

    async def publish() -> Any:
        connection, stream = await open_stream(port)
        for number in range(count):
            await connection.publish("to.past", _BODY % (number, number % 997))
            if number % 5000 == 4999:
                await connection.flush(timeout=10)
        until = loop.time() + FILL_S
        while (await stream.stream_info(STREAM)).state.messages < count:
            if loop.time() > until:
                raise RuntimeError(f"not filled within {FILL_S:g} s")
            await asyncio.sleep(0.1)
        return connection

    close(loop, loop.run_until_complete(publish()))


def messages(port: int) -> int:
    """How many the stream has, asked until the server answers."""
    loop = asyncio.new_event_loop()

    async def look() -> tuple[Any, int]:
        connection, stream = await open_stream(port)
        return connection, (await stream.stream_info(STREAM)).state.messages

    connection, found = loop.run_until_complete(look())
    close(loop, connection)
    return int(found)


class JetStreamNode(Node):
    """A connection whose asyncio loop runs while this node waits."""

    def __init__(self, name: str, port: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._something = asyncio.Event()
        self._settled = 0
        self._failed: BaseException | None = None
        self._came: list[bytes] = []
        self._do(self._open(name, port))

    def _do(self, what: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(what)

    async def _open(self, name: str, port: int) -> None:
        from nats.js.api import AckPolicy, ConsumerConfig

        self._connection, self._stream = await open_stream(port)
        config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, max_ack_pending=1024)
        await self._stream.subscribe(f"to.{name}", durable=name, cb=self._heard, manual_ack=True, config=config)

    async def _heard(self, message: Any) -> None:
        self._came.append(message.data)
        await message.ack()
        self._something.set()

    def send(self, to: str, bodies: Sequence[bytes]) -> None:
        self._do(self._publish(f"to.{to}", bodies))

    async def _publish(self, subject: str, bodies: Sequence[bytes]) -> None:
        for text in bodies:
            future = await self._stream.publish_async(subject, text, stream=STREAM)
            future.add_done_callback(self._acknowledged)

    def _acknowledged(self, future: asyncio.Future[Any]) -> None:
        self._failed = self._failed or future.exception()
        self._settled += 1
        self._something.set()

    @property
    def settled(self) -> int:
        if self._failed:
            raise self._failed
        return self._settled

    def wait(self, seconds: float) -> None:
        if not self._came:
            self._do(self._wait(seconds))

    async def _wait(self, seconds: float) -> None:
        self._something.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._something.wait(), seconds)

    def take(self) -> list[bytes]:
        came, self._came = self._came, []
        return came

    def flush(self) -> None:
        self._do(self._connection.flush())

    def close(self) -> None:
        close(self._loop, self._connection)
