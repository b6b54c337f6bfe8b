"""The joining machine's end of an enrolment: one connection, one command, one answer.

Knows sockets and the two commands; it must not know invitations, files or sessions.
"""

from __future__ import annotations

import time

import zmq

from bus import sockets, wire
from bus.errors import Code, Refused, RemoteError, Unreachable
from bus.sockets import Context, Monitor
from bus.trust import KeyPair


def enroll(keys: KeyPair, endpoint: str, hub_key: str, token: str, label: str, timeout: float) -> None:
    """Be taken in by the hub at its enrolment port, within `timeout` s; returns when it said so.

    Refused when the hub refuses; Unreachable when nobody answers there, or who answers has not the key `hub_key`:
    then nothing was told him. After Unreachable the hub may all the same have taken this machine in.
    """
    ctx: Context = zmq.Context()
    monitor = None
    try:
        socket = sockets.dealer(ctx, keys, hub_key, ipv6=sockets.needs_ipv6(endpoint))
        monitor = Monitor(socket)
        socket.connect(endpoint)
        until = time.monotonic() + timeout
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(monitor.socket, zmq.POLLIN)
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise Unreachable(f"{endpoint} does not answer (is the invitation still open?)")
            ready = dict(poller.poll(int(left * 1000) + 1))
            # An answer that was given before the port was closed counts.
            if socket in ready:
                return _answer(socket.recv_multipart(), endpoint)
            match monitor.news():
                case "connected":
                    socket.send_multipart(wire.encode(wire.Enroll(token, label)))
                case "failed auth":
                    raise Refused(Code.FORBIDDEN, "no invitation is open there any more (ask for another)")
                case "disconnected":
                    raise Unreachable(
                        f"nobody with the hub's key answers at {endpoint} "
                        "(is the invitation still open, and the port reachable from here?)"
                    )
    except zmq.ZMQError as error:
        raise Unreachable(f"{endpoint} cannot be reached: {error.strerror} (check the address)") from error
    finally:
        sockets.close_all(ctx, [monitor])


def _answer(frames: list[bytes], endpoint: str) -> None:
    try:
        command = wire.decode(frames, "S")
    except RemoteError as error:
        raise Unreachable(f"what answers at {endpoint} is no hub of this version: {error}") from error
    match command:
        case wire.Bye():
            return
        case wire.Err(code=code, text=text):
            known = code in list(Code)
            raise Refused(Code(code) if known else Code.FORBIDDEN, wire.clip(text, 300) or f"refused with {code}")
    raise Unreachable(f"what answers at {endpoint} is no hub of this version")
