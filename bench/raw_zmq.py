"""The yardstick: ZeroMQ alone. A ROUTER that forwards between two DEALERs, CURVE on, nothing durable.

Same processes, same body and same window as ours: one sender, one recipient that acknowledges every message back to
the sender, one broker that drains its socket with NOBLOCK. What this leaves out is what a bus is for: it shows what
those things cost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import zmq

from bench.system import Flow, Pair, body, sent_at
from bench.workers import Worker

NAME = "raw-zmq"
_DRAIN = 128
Keys = tuple[bytes, bytes]


@contextmanager
def pair() -> Iterator[Pair]:
    """Broker, sender and recipient, connected."""
    keys: Keys = zmq.curve_keypair()
    with Worker("raw-broker", _broker, keys) as broker:
        endpoint = broker.answer("ready")
        with Worker("raw-recipient", _recipient, endpoint, keys[0]) as recipient:
            recipient.answer("ready")
            with Worker("raw-sender", _sender, endpoint, keys[0]) as sender:
                sender.answer("ready")
                yield Pair(sender, recipient, broker.pid)


def _broker(pipe: Connection, keys: Keys) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.router_mandatory = 1
        router.curve_publickey, router.curve_secretkey = keys
        router.curve_server = True
        port = router.bind_to_random_port("tcp://127.0.0.1")
        routes: dict[bytes, bytes] = {}
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(pipe.fileno(), zmq.POLLIN)
        pipe.send(("ready", f"tcp://127.0.0.1:{port}"))
        while True:
            ready = dict(poller.poll())
            if pipe.fileno() in ready:
                return
            for route, *frames in _drain(router):
                if frames[0] == b"HELLO":
                    routes[frames[1]] = route
                    router.send_multipart([route, b"WELCOME"])
                else:
                    router.send_multipart([routes[frames[0]], *frames[1:]])


def _drain(socket: Any) -> Iterator[list[bytes]]:
    for _ in range(_DRAIN):
        try:
            yield socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return


@contextmanager
def _dealer(endpoint: str, server: bytes, name: bytes) -> Iterator[Any]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
        dealer.curve_serverkey = server
        dealer.connect(endpoint)
        dealer.send_multipart([b"HELLO", name])
        if not dealer.poll(5000):
            raise RuntimeError("the raw broker does not answer")
        dealer.recv_multipart()
        yield dealer


def _sender(pipe: Connection, endpoint: str, server: bytes) -> None:
    with _dealer(endpoint, server, b"sender") as dealer:
        pipe.send(("ready", None))
        while True:
            what, *args = pipe.recv()
            pipe.send((what, _flow(dealer, *args) if what == "flow" else _pace(dealer, *args)))


def _flow(dealer: Any, seconds: float, window: int) -> Flow:
    began = time.monotonic_ns()
    end = began + int(seconds * 1e9)
    count, unacknowledged = 0, 0
    while unacknowledged or time.monotonic_ns() < end:
        while unacknowledged < window and time.monotonic_ns() < end:
            dealer.send_multipart([b"recipient", body()])
            count += 1
            unacknowledged += 1
        if unacknowledged and dealer.poll(1000):
            unacknowledged -= sum(1 for _ in _drain(dealer))
    return Flow(count, began, time.monotonic_ns())


def _pace(dealer: Any, count: int, every: float) -> Flow:
    began = time.monotonic_ns()
    for _ in range(count):
        time.sleep(every)
        dealer.send_multipart([b"recipient", body()])
        dealer.poll(1000)
        for _acknowledgement in _drain(dealer):
            pass
    return Flow(count, began, time.monotonic_ns())


def _recipient(pipe: Connection, endpoint: str, server: bytes) -> None:
    with _dealer(endpoint, server, b"recipient") as dealer:
        pipe.send(("ready", None))
        poller = zmq.Poller()
        poller.register(dealer, zmq.POLLIN)
        poller.register(pipe.fileno(), zmq.POLLIN)
        delays: list[int] = []
        total = -1
        while True:
            ready = dict(poller.poll())
            if dealer in ready:
                for (text,) in _drain(dealer):
                    delays.append(time.monotonic_ns() - sent_at(text))
                    dealer.send_multipart([b"sender", b""])
            if pipe.fileno() in ready:
                _, total = pipe.recv()
            if len(delays) == total:
                pipe.send(("total", (time.monotonic_ns(), delays)))
                delays, total = [], -1
