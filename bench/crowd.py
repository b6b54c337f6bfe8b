"""Many sessions in one process: DEALERs that hold a mailbox and acknowledge what comes, and subscribers of activity.

They speak the protocol and have no database of their own: with these the broker is measured, not a thousand agents.
A crowd's worker answers ("expect", n) with the time at which n messages had come and were acknowledged.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import zmq

from bench.frame import median
from bench.ours import home_of
from bus import sockets, wire
from bus.daemon import published
from bus.trust import ensure_keys

PATIENCE_S = 20.0
_POLL_MS = 50
_HB_MS = 60_000
_AT_ONCE = 100  # connections being made at the same time: the listen queue is finite


def raise_limit() -> None:
    """As many open files as this user may have."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(65_536, hard), hard))


def expecting(pipe: Connection, step: Callable[[], int]) -> None:
    """Serve a crowd whose `step()` waits a little and says how many messages came in it."""
    came, total, until = 0, -1, 0.0
    while True:
        count = step()
        came += count
        if total < 0 and pipe.poll():
            _, total = pipe.recv()
            until = time.monotonic() + PATIENCE_S
        if count:
            until = time.monotonic() + PATIENCE_S
        if came >= total >= 0:
            if came > total:
                raise RuntimeError(f"{came} came, {total} were expected")
            pipe.send(("expect", time.monotonic_ns()))
            came, total = 0, -1
        elif total >= 0 and time.monotonic() > until:
            raise RuntimeError(f"{came} of {total} came within {PATIENCE_S:g} s")


def sessions(pipe: Connection, folder: str, first: int, count: int) -> None:
    """So many sessions of ours, named crowd-<number>."""
    raise_limit()
    home = home_of(Path(folder))
    record = published(home)
    assert record is not None
    keys = ensure_keys(home)
    context: sockets.Context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 3 * count + 64)
    poller = zmq.Poller()
    dealers = []
    for start in range(0, count, _AT_ONCE):
        made = [_connected(context, keys, record) for _ in range(min(_AT_ONCE, count - start))]
        for number, dealer in enumerate(made, first + start):
            hello = wire.Hello("hold", secrets.token_hex(8), secrets.token_hex(16), 1, f"crowd-{number}", hb=_HB_MS)
            dealer.send_multipart(wire.encode(hello))
        for dealer in made:
            if not dealer.poll(20_000):
                raise RuntimeError("no WELCOME within 20 s")
            wire.decode(dealer.recv_multipart(), "S")
            poller.register(dealer, zmq.POLLIN)
        dealers += made
    pipe.send(("ready", None))

    def step() -> int:
        return sum(_take(dealer) for dealer, _ in poller.poll(_POLL_MS))

    try:
        expecting(pipe, step)
    finally:
        context.destroy(0)


def _connected(context: Any, keys: Any, record: Any) -> Any:
    dealer = sockets.dealer(context, keys, record.key)
    dealer.connect(record.router)
    return dealer


def _take(dealer: Any) -> int:
    """Everything that waits at this socket, acknowledged in one go."""
    numbers = []
    for frames in drain(dealer):
        command = wire.decode(frames, "S")
        if isinstance(command, wire.Msg):
            numbers.append(command.n)
    if numbers:
        dealer.send_multipart(wire.encode(wire.Ack(wire.ranges(numbers), "bench")))
    return len(numbers)


def drain(source: Any) -> Iterator[list[bytes]]:
    while True:
        try:
            yield source.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return


def raw(pipe: Connection, endpoint: str, key: bytes, first: int, count: int) -> None:
    """So many DEALERs of the raw broker."""
    raise_limit()
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 3 * count + 64)
    poller = zmq.Poller()
    public, secret = zmq.curve_keypair()
    for start in range(0, count, _AT_ONCE):
        made = []
        for number in range(first + start, first + min(start + _AT_ONCE, count)):
            dealer: Any = context.socket(zmq.DEALER)
            dealer.linger = 0
            dealer.curve_publickey, dealer.curve_secretkey, dealer.curve_serverkey = public, secret, key
            dealer.connect(endpoint)
            dealer.send_multipart([b"HELLO", b"crowd-%d" % number])
            made.append(dealer)
        for dealer in made:
            if not dealer.poll(20_000):
                raise RuntimeError("the raw broker does not answer")
            dealer.recv_multipart()
            poller.register(dealer, zmq.POLLIN)
    pipe.send(("ready", None))

    def step() -> int:
        count = 0
        for dealer, _ in poller.poll(_POLL_MS):
            for _ in drain(dealer):
                dealer.send(b"ACK")
                count += 1
        return count

    try:
        expecting(pipe, step)
    finally:
        context.destroy(0)


def plain(pipe: Connection, port: int, first: int, count: int, kind: str) -> None:
    """So many idle connections to another system's server, opened by hand: what a client library would add to this
    process is not of interest here.
    """
    raise_limit()
    opened = []
    for number in range(first, first + count):
        connection = socket.create_connection(("127.0.0.1", port), 10)
        connection.sendall(_GREETING[kind](number))
        said = b""
        while _ANSWER[kind] not in said:
            some = connection.recv(4096)
            if not some:
                raise RuntimeError(f"{kind} hung up on connection {number}: {said[:80]!r}")
            said += some
        opened.append(connection)
    pipe.send(("ready", None))
    pipe.recv()


def _mqtt(number: int) -> bytes:
    name = b"crowd-%d" % number
    connect = b"\x00\x04MQTT\x04\x02\x00\x00" + len(name).to_bytes(2, "big") + name
    topic = b"to/" + name
    subscribe = b"\x00\x01" + len(topic).to_bytes(2, "big") + topic + b"\x01"
    return b"\x10" + bytes([len(connect)]) + connect + b"\x82" + bytes([len(subscribe)]) + subscribe


_GREETING: dict[str, Callable[[int], bytes]] = {
    "jetstream": lambda n: b'CONNECT {"verbose":false}\r\nSUB to.crowd-%d 1\r\nPING\r\n' % n,
    "redis-streams": lambda n: b"CLIENT SETNAME crowd-%d\r\nPING\r\n" % n,
    "mosquitto": _mqtt,
}
_ANSWER = {"jetstream": b"PONG", "redis-streams": b"PONG", "mosquitto": b"\x90\x03"}


def taps(pipe: Connection, folder: str, count: int) -> None:
    """So many subscribers to all activity. ("told",) is answered with events that came and that were missed."""
    home = home_of(Path(folder))
    record = published(home)
    assert record is not None
    keys = ensure_keys(home)
    context: sockets.Context = zmq.Context()
    poller = zmq.Poller()
    seen: dict[Any, list[int]] = {}
    for _ in range(count):
        sub = sockets.sub(context, keys, record.key)
        sub.setsockopt(zmq.SUBSCRIBE, b"")
        sub.connect(record.xpub)
        poller.register(sub, zmq.POLLIN)
        seen[sub] = [0, 0, 0]  # came, first, last
    pipe.send(("ready", None))
    try:
        _serve_taps(pipe, poller, seen)
    finally:
        context.destroy(0)


def _serve_taps(pipe: Connection, poller: zmq.Poller, seen: dict[Any, list[int]]) -> None:
    quiet = 0
    while True:
        ready = poller.poll(_POLL_MS)
        quiet = 0 if ready else quiet + 1
        for sub, _ in ready:
            known = seen[sub]
            for frames in drain(sub):
                number = wire.unpack(frames[2])["seq"]
                known[0] += 1
                known[1] = known[1] or number
                known[2] = number
        if quiet > 4 and pipe.poll():
            what = pipe.recv()[0]
            missed = sum(last - first + 1 - came for came, first, last in seen.values() if came)
            pipe.send((what, (sum(known[0] for known in seen.values()), missed, _lowest(seen))))
            for known in seen.values():
                known[:] = [0, 0, 0]


def _lowest(seen: dict[Any, list[int]]) -> float:
    """How much came at the median subscriber."""
    return median([float(known[0]) for known in seen.values()])
