"""The same crowds for the other systems: so many recipients of one message in one process, each acknowledging."""

from __future__ import annotations

import asyncio
import selectors
import socket
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from bench.crowd import expecting, raise_limit
from bench.jetstream import close, open_stream
from bench.redis_streams import connect

_READ = 64
_GROUPS_AT_ONCE = 50


def jetstream(pipe: Connection, port: int, first: int, count: int) -> None:
    """Durable push consumers of one subject, over one connection."""
    loop = asyncio.new_event_loop()
    something = asyncio.Event()
    came = 0

    async def heard(message: Any) -> None:
        nonlocal came
        await message.ack()
        came += 1
        something.set()

    async def wait() -> None:
        something.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(something.wait(), 0.05)

    async def subscribe() -> Any:
        from nats.js.api import AckPolicy, ConsumerConfig

        connection, stream = await open_stream(port)
        for number in range(first, first + count):
            config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, max_ack_pending=1024)
            await stream.subscribe("to.all", durable=f"crowd-{number}", cb=heard, manual_ack=True, config=config)
        return connection

    def step() -> int:
        nonlocal came
        came = 0
        loop.run_until_complete(wait())
        return came

    connection = loop.run_until_complete(subscribe())
    pipe.send(("ready", None))
    try:
        expecting(pipe, step)
    finally:
        close(loop, connection)


def redis_streams(pipe: Connection, port: int, first: int, count: int) -> None:
    """Consumer groups of one stream, read and acknowledged in pipelines over one connection."""
    db = connect(port)
    groups = [f"crowd-{number}" for number in range(first, first + count)]
    for group in groups:
        db.xgroup_create("all", group, id="$", mkstream=True)
    pipe.send(("ready", None))

    def step() -> int:
        came = 0
        for start in range(0, count, _GROUPS_AT_ONCE):
            some = groups[start : start + _GROUPS_AT_ONCE]
            reads, acks = db.pipeline(transaction=False), db.pipeline(transaction=False)
            for group in some:
                reads.xreadgroup(group, "one", {"all": ">"}, count=_READ)
            for group, found in zip(some, reads.execute(), strict=True):
                listed = next(iter(found.values()))[0] if isinstance(found, dict) and found else found and found[0][1]
                if listed:
                    came += len(listed)
                    acks.xack("all", group, *(ident for ident, _ in listed))
            acks.execute()
        if not came:
            time.sleep(0.005)
        return came

    expecting(pipe, step)


def mosquitto(pipe: Connection, port: int, first: int, count: int) -> None:
    """Clients subscribed to one topic with QoS 1."""
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    raise_limit()
    selector = selectors.DefaultSelector()
    came = 0

    def heard(_client: Any, _data: Any, _message: Any) -> None:
        nonlocal came
        came += 1

    def turn() -> None:
        """What client.loop() does, for all of them: that has select(), which takes no descriptor from 1024 up."""
        for key, _ in selector.select(0.05):
            key.data.loop_read()
            if key.data.want_write():
                key.data.loop_write()

    for number in range(first, first + count):
        client: Any = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"crowd-{number}", clean_session=False)
        client.on_message = heard
        ready: list[bool] = []
        client.on_subscribe = lambda *_, ready=ready: ready.append(True)
        client.connect("127.0.0.1", port, keepalive=600)
        # Else every step of a thousand greetings waits for the delayed acknowledgement of the last.
        client.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        until = time.monotonic() + 10
        selector.register(client.socket(), selectors.EVENT_READ, client)
        while not client.is_connected() and time.monotonic() < until:
            turn()
        client.subscribe("to/all", qos=1)
        while not ready and time.monotonic() < until:
            turn()
        if not ready:
            raise RuntimeError(f"mosquitto does not answer client {number}")
    pipe.send(("ready", None))

    def step() -> int:
        nonlocal came
        came = 0
        turn()
        return came

    expecting(pipe, step)
