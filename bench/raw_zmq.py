"""The yardstick: ZeroMQ alone. A ROUTER that forwards between two DEALERs, CURVE on, nothing durable.

The same processes, body and window as ours, and as many acknowledgements: the broker acknowledges each message to its
sender, the recipient acknowledges each to the broker. What this leaves out is what a bus is for: it shows what those
things cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import zmq

from bench.system import Bus, Node, System
from bench.workers import Worker

NAME = "raw-zmq"
NOTE = (
    "raw-zmq: pyzmq ROUTER that forwards, CURVE; nothing on disk; every message is acknowledged by the broker to its "
    "sender and by the recipient to the broker"
)
EVERYBODY = b"*"
_DRAIN = 128
_MORE = zmq.NOBLOCK | zmq.SNDMORE
Keys = tuple[bytes, bytes]


@contextmanager
def _bus() -> Iterator[Bus]:
    keys: Keys = zmq.curve_keypair()
    with Worker("raw-broker", _broker, keys) as worker:
        yield Bus(worker.pid, RawNode, (worker.answer("ready"), keys[0]))


SYSTEM = System(NAME, NOTE, _bus, lambda: "")


def _broker(pipe: Connection, keys: Keys) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.sndhwm = router.rcvhwm = 0
        router.curve_publickey, router.curve_secretkey = keys
        router.curve_server = True
        port = router.bind_to_random_port("tcp://127.0.0.1")
        routes: dict[bytes, bytes] = {}
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(pipe.fileno(), zmq.POLLIN)
        pipe.send(("ready", f"tcp://127.0.0.1:{port}"))
        send = router.send
        while True:
            ready = dict(poller.poll())
            if pipe.fileno() in ready:
                return
            for route, *frames in _drain(router):
                if frames[0] == b"HELLO":
                    routes[frames[1]] = route
                    router.send_multipart([route, b"WELCOME"])
                elif frames[0] == EVERYBODY:
                    for other in routes.values():
                        if other != route:
                            send(other, _MORE)
                            send(frames[1])
                    send(route, _MORE)
                    send(b"ACK")
                elif frames[0] != b"ACK":
                    send(routes[frames[0]], _MORE)
                    send(frames[1])
                    send(route, _MORE)
                    send(b"ACK")


def _drain(socket: Any) -> Iterator[list[bytes]]:
    for _ in range(_DRAIN):
        try:
            yield socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return


class RawNode(Node):
    """One DEALER."""

    def __init__(self, name: str, endpoint: str, server: bytes) -> None:
        self._context = zmq.Context()
        self._socket: Any = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.curve_publickey, self._socket.curve_secretkey = zmq.curve_keypair()
        self._socket.curve_serverkey = server
        self._socket.connect(endpoint)
        self._socket.send_multipart([b"HELLO", name.encode()])
        if not self._socket.poll(5000):
            raise RuntimeError("the raw broker does not answer")
        self._socket.recv_multipart()
        self._settled = 0
        self._came: list[bytes] = []

    def send(self, to: str, bodies: Sequence[bytes]) -> None:
        send, name = self._socket.send, to.encode()
        for text in bodies:
            send(name, _MORE)
            send(text)

    @property
    def settled(self) -> int:
        self._read()
        return self._settled

    def wait(self, seconds: float) -> None:
        if not self._came:
            self._socket.poll(int(seconds * 1000))

    def take(self) -> list[bytes]:
        self._read()
        came, self._came = self._came, []
        for _ in came:
            self._socket.send(b"ACK")
        return came

    def _read(self) -> None:
        for (text,) in _drain(self._socket):
            if text == b"ACK":
                self._settled += 1
            else:
                self._came.append(text)

    def flush(self) -> None:
        """An acknowledgement that was handed over is all this one knows."""

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()
