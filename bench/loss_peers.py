"""JetStream and a plain ZeroMQ pipe under the same killing as ours, for comparison.

Both are used as their own documentation recommends, by one sender and one recipient: JetStream with a message id for
its de-duplication window, publishing again what was not acknowledged, and an explicit acknowledgement after a message
was written down; the pipe as PUSH, a forwarder, and PULL. A sender that was killed goes on after the last number it
had written down as done: neither has an outbox.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import zmq

from bench import jetstream, servers
from bench.frame import Options, Row, left_out, say
from bench.workers import Worker

PIPE = "zmq-pipe"
PATIENCE_S = 60.0
QUIET_S = 5.0
_AT_ONCE = 32
_PACE_S = 0.005


def measure(options: Options) -> Iterator[Row]:
    """Lost, twice and reordered of both."""
    count, kills = options.count(30_000, 4000), options.count(12, 2)
    yield from _run(PIPE, _pipe, count, kills)
    missing = jetstream.SYSTEM.missing()
    if missing:
        left_out("loss of jetstream", missing)
    else:
        yield from _run(jetstream.NAME, _stream, count, kills)


class Party:
    """A worker that can be killed and started again."""

    def __init__(self, name: str, serve: Callable[..., None], *args: Any) -> None:
        self._made: Callable[[], Worker] = lambda: Worker(name, serve, *args)
        self._worker: Worker | None = None

    def start(self) -> None:
        self._worker = self._made()

    def kill(self) -> None:
        if self._worker is not None:
            self._worker.kill()

    def stop(self) -> None:
        self.kill()


def _run(
    name: str, make: Callable[[ExitStack, Path, int], tuple[Any, Party, Party]], count: int, kills: int
) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="talkbus-bench-") as made, ExitStack() as stack:
        folder = Path(made)
        broker, sender, recipient = make(stack, folder, count)
        for party in (recipient, sender):
            party.start()
            stack.callback(party.stop)
        rng = random.Random(time.monotonic())
        victims = [(("broker", broker), ("sender", sender), ("recipient", recipient))[i % 3] for i in range(kills)]
        rng.shuffle(victims)
        struck = {"broker": 0, "sender": 0, "recipient": 0}
        blows = sorted(rng.sample(range(count // 50, count - count // 20), kills))
        for at, (what, victim) in zip(blows, victims, strict=True):
            until = time.monotonic() + PATIENCE_S
            # A pipe may have lost so much that there is no more to wait for.
            while (so_far := len(numbers(folder / "sent"))) < at and time.monotonic() < until:
                time.sleep(0.02)
            say(f"{name}: {so_far:,} of {count:,} sent; blow: {what}")
            victim.kill()
            victim.start()
            struck[what] += 1
        _quiet(folder, count)
        sent, shown = numbers(folder / "sent"), numbers(folder / "shown")
    told = ", ".join(f"{what} {times}x" for what, times in struck.items())
    case = f"{count:,} messages, SIGKILL of {told}"
    lost, twice, reordered = compare(sent, shown)
    yield Row("loss", case, name, "lost", float(lost), "")
    yield Row("loss", case, name, "twice", float(twice), "")
    yield Row("loss", case, name, "reordered", float(reordered), "")


def compare(sent: Sequence[int], shown: Sequence[int]) -> tuple[int, int, int]:
    """Of the numbers that counted as sent: lost, shown again, and first shown after a higher one."""
    seen: set[int] = set()
    highest = reordered = 0
    for number in shown:
        if number not in seen:
            reordered += number < highest
            highest = max(highest, number)
        seen.add(number)
    return len(set(sent) - seen), len(shown) - len(seen), reordered


def numbers(path: Path) -> list[int]:
    """What was written down there, whole lines only."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return [int(line) for line in data[: data.rfind(b"\n") + 1].split()]


def _quiet(folder: Path, count: int) -> None:
    """Until everything was shown, or nothing more comes."""
    until = time.monotonic() + PATIENCE_S
    had, since = -1, time.monotonic()
    while time.monotonic() < until:
        sent, shown = len(set(numbers(folder / "sent"))), numbers(folder / "shown")
        if sent >= count and len(set(shown)) >= count:
            return
        if sent + len(shown) != had:
            had, since = sent + len(shown), time.monotonic()
        elif time.monotonic() - since > QUIET_S:
            return
        time.sleep(0.2)


def _note(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


# -- a plain pipe ----------------------------------------------------------------------------------------------------


def _pipe(stack: ExitStack, folder: Path, count: int) -> tuple[Party, Party, Party]:
    ports = servers.free_port(), servers.free_port()
    broker = Party("pipe-broker", _forward, *ports)
    broker.start()
    stack.callback(broker.stop)
    sender = Party("pipe-sender", _push, ports[0], str(folder / "sent"), count)
    return broker, sender, Party("pipe-recipient", _pull, ports[1], str(folder / "shown"))


def _forward(_pipe_: Connection, front: int, back: int) -> None:
    context = zmq.Context()
    pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    pull.bind(f"tcp://127.0.0.1:{front}")
    push.bind(f"tcp://127.0.0.1:{back}")
    zmq.proxy(pull, push)


def _push(_pipe_: Connection, port: int, path: str, count: int) -> None:
    done = max(numbers(Path(path)), default=0)
    out = _note(path)
    push = zmq.Context().socket(zmq.PUSH)
    push.connect(f"tcp://127.0.0.1:{port}")
    for number in range(done + 1, count + 1):
        push.send(b"%d" % number)
        os.write(out, b"%d\n" % number)
        if number % _AT_ONCE == 0:
            time.sleep(_PACE_S)
    time.sleep(PATIENCE_S)


def _pull(_pipe_: Connection, port: int, path: str) -> None:
    out = _note(path)
    pull = zmq.Context().socket(zmq.PULL)
    pull.connect(f"tcp://127.0.0.1:{port}")
    while True:
        os.write(out, pull.recv() + b"\n")


# -- JetStream -------------------------------------------------------------------------------------------------------


def _stream(stack: ExitStack, folder: Path, count: int) -> tuple[servers.Server, Party, Party]:
    store = folder / "store"
    store.mkdir()
    server = stack.enter_context(jetstream.server(store))
    sender = Party("js-sender", _publish, server.port, str(folder / "sent"), count)
    return server, sender, Party("js-recipient", _consume, server.port, str(folder / "shown"))


def _publish(_pipe_: Connection, port: int, path: str, count: int) -> None:
    async def run() -> None:
        out = _note(path)
        _, stream = await _opened(port)
        done = max(numbers(Path(path)), default=0)
        while done < count:
            batch = range(done + 1, min(done + _AT_ONCE, count) + 1)
            await asyncio.gather(*(_until_acknowledged(stream, number) for number in batch))
            os.write(out, b"".join(b"%d\n" % number for number in batch))
            done = batch[-1]
            await asyncio.sleep(_PACE_S)
        await asyncio.sleep(PATIENCE_S)

    asyncio.run(run())


async def _opened(port: int) -> tuple[Any, Any]:
    """Until the server takes it."""
    while True:
        with suppress(Exception):
            return await jetstream.open_stream(port)
        await asyncio.sleep(0.1)


async def _until_acknowledged(stream: Any, number: int) -> None:
    while True:
        with suppress(Exception):
            await stream.publish("to.one", b"%d" % number, timeout=1, headers={"Nats-Msg-Id": f"one-{number}"})
            return
        await asyncio.sleep(0.05)


def _consume(_pipe_: Connection, port: int, path: str) -> None:
    async def run() -> None:
        from nats.js.api import AckPolicy, ConsumerConfig

        out = _note(path)
        _, stream = await _opened(port)
        config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, ack_wait=2, max_ack_pending=1024)
        while True:
            with suppress(Exception):
                pull = await stream.pull_subscribe("to.one", durable="one", config=config)
                break
            await asyncio.sleep(0.1)
        while True:
            with suppress(Exception):
                for message in await pull.fetch(_AT_ONCE, timeout=0.5):
                    os.write(out, message.data + b"\n")
                    await message.ack()

    asyncio.run(run())
