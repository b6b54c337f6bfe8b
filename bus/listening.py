"""Where the broker listens: a pair of ports, who may connect to them, and the proof that others may not.

Binds P for sessions and P+1 for activity, answers ZAP requests by the roll, and tries the door before it is used.
While an invitation is open it binds one port more, where any key may knock. It must not know frames of the protocol,
sessions or the store.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import zmq

from bus import sockets, trust
from bus.config import Home
from bus.errors import BusError, LocalError
from bus.private import write_private
from bus.roll import Roll
from bus.sockets import Context, Monitor, Socket

log = logging.getLogger("talkbus.broker")

FIRST_PORT = 7717
PAIRS = 500  # tried, from FIRST_PORT up
SELF_TEST_S = 5.0
ENROL_LINGER_MS = 2000
UNBIND_S = 1.0  # libzmq lets go of a port some ms after it was told to
KNOCKS_A_TURN = 32
KNOCK_FRAMES_MAX = 3
_ZAP_AT_ONCE = 64


class Door:
    """The bound sockets of one broker. `answer_zap()` whenever `zap` is readable, or nobody gets in."""

    def __init__(self, ctx: Context, keys: trust.KeyPair, roll: Roll, bind: str) -> None:
        """Nothing is bound yet but the ZAP handler. `bind` is an address, `*`, or the name of an interface."""
        ipv6 = self._ipv6 = sockets.needs_ipv6(bind)
        self.roll = roll
        self.port = 0
        self.refused = 0  # handshakes so far
        self.enrolment: Socket | None = None
        self.events_closed = False  # the port of activity could not be bound again; cut() tries
        self._ctx = ctx
        self._keys = keys
        self._host = f"[{bind}]" if ipv6 and not bind.startswith("[") else bind
        self.zap = sockets.zap(ctx)
        self.router = sockets.router(ctx, keys, ipv6=ipv6)
        self.xpub = sockets.xpub(ctx, keys, ipv6=ipv6)

    def open(self, fixed: int, last: int) -> None:
        """Bind the port `fixed` and the one after it; with 0 the pair from `last`, else the first free one.

        LocalError names the ports that are taken, or the address that cannot be bound.
        """
        for port in candidates(fixed, last):
            if self._bind_pair(port):
                self.port = port
                return
        if fixed:
            raise LocalError(f"port {fixed} or {fixed + 1} is taken (choose another: talkbus config set port PORT)")
        raise LocalError(f"no free pair of ports from {FIRST_PORT} up (close what holds them, or set 'port')")

    def endpoints(self) -> tuple[str, str]:
        """Of router and xpub, as somebody on this machine connects to them."""
        return _local(self.router), _local(self.xpub)

    def answer_zap(self) -> None:
        """Answer those who knock. Nothing leaves this but replies."""
        for _ in range(_ZAP_AT_ONCE):
            try:
                frames = self.zap.recv_multipart(zmq.NOBLOCK)
                inviting = self.enrolment is not None
                reply = trust.verdict(frames, self.roll, inviting)
                self.refused += reply[2] != b"200"
                self.zap.send_multipart(reply, zmq.NOBLOCK)
            except zmq.ZMQError:
                return

    def self_test(self) -> None:
        """Knock with a random key at both sockets. LocalError unless both refuse: such a broker must not serve."""
        public, secret = zmq.curve_keypair()
        stranger = trust.KeyPair(public.decode("ascii"), secret.decode("ascii"))
        router, xpub = self.endpoints()
        six = sockets.needs_ipv6(router)
        self._must_refuse(router, sockets.dealer(self._ctx, stranger, self._keys.public, ipv6=six))
        self._must_refuse(xpub, sockets.sub(self._ctx, stranger, self._keys.public, ipv6=six))
        self.refused = 0

    def admit(self) -> tuple[int, str]:
        """Bind the enrolment port: the one after the pair if it is free, else any. Returns it, or 0 and why not."""
        self.shut()
        socket = sockets.enrolment(self._ctx, self._keys, ipv6=self._ipv6)
        problem = ""
        for port in (str(self.port + 2), "*"):
            try:
                socket.bind(f"tcp://{self._host}:{port}")
            except zmq.ZMQError as error:
                problem = error.strerror or "it cannot be bound"
                continue
            self.enrolment = socket
            return int(_endpoint(socket).rpartition(":")[2]), ""
        socket.close(0)
        return 0, problem

    def shut(self) -> None:
        """Close the enrolment port; what was answered there may still be on its way."""
        socket, self.enrolment = self.enrolment, None
        if socket is not None:
            socket.close(ENROL_LINGER_MS)

    def knocks(self) -> Iterator[tuple[bytes, list[zmq.Frame]]]:
        """What came in at the enrolment port: route and the first frames, at most KNOCKS_A_TURN."""
        for _ in range(KNOCKS_A_TURN):
            socket = self.enrolment
            if socket is None:
                return
            try:
                route = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            frames = [socket.recv(copy=False)]
            while frames[-1].more:
                frame = socket.recv(copy=False)
                if len(frames) == KNOCK_FRAMES_MAX:
                    frames.pop()
                frames.append(frame)
            yield route, frames

    def greet(self, route: bytes, frames: list[bytes]) -> None:
        """Answer at the enrolment port, if the one who knocked is still there."""
        if self.enrolment is not None:
            with contextlib.suppress(zmq.ZMQError):
                self.enrolment.send_multipart([route, *frames], zmq.NOBLOCK)

    def cut(self) -> None:
        """End every connection that listens to activity: who still may comes back by himself.

        Nothing less makes libzmq let go of one of them. When the port cannot be bound at once `events_closed` is set.
        """
        if not self.events_closed:
            self._events = _endpoint(self.xpub)
            self.xpub.unbind(self._events)
        until = time.monotonic() + UNBIND_S
        self.events_closed = True
        while self.events_closed:
            try:
                self.xpub.bind(self._events)
                self.events_closed = False
            except zmq.ZMQError as error:
                if time.monotonic() >= until:
                    log.error("! activity cannot be published: %s: %s", self._events, error.strerror)
                    return
                time.sleep(0.002)

    def _must_refuse(self, endpoint: str, socket: Socket) -> None:
        with Monitor(socket) as monitor:
            socket.connect(endpoint)
            poller = zmq.Poller()
            poller.register(monitor.socket, zmq.POLLIN)
            poller.register(self.zap, zmq.POLLIN)
            until = time.monotonic() + SELF_TEST_S
            seen = None
            while seen is None and (left := until - time.monotonic()) > 0:
                poller.poll(int(left * 1000) + 1)
                self.answer_zap()
                seen = monitor.news()
        if seen != "failed auth":
            raise LocalError(
                f"{endpoint} did not refuse an unknown key ({seen or 'no answer'}); this broker does not serve "
                "(this is a fault in talkbus or in libzmq)"
            )

    def _bind_pair(self, port: int) -> bool:
        bound: list[Socket] = []
        for socket, number in ((self.router, port), (self.xpub, port + 1)):
            try:
                socket.bind(f"tcp://{self._host}:{number}")
            except zmq.ZMQError as error:
                for done in bound:
                    done.unbind(_endpoint(done))
                if error.errno in (zmq.EADDRINUSE, errno.EACCES):
                    return False
                raise LocalError(
                    f"cannot listen on {self._host}: {error.strerror} (talkbus config set bind ADDRESS)"
                ) from error
            bound.append(socket)
        return True


def last_port(home: Home) -> int:
    """The first port of the pair this home had last; 0 when it had none."""
    try:
        text = _port_file(home).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return 0
    return int(text) if text.isdecimal() and 0 < int(text) < 65535 else 0


def remember_port(home: Home, port: int) -> bool:
    """Keep the pair for the next start; False when the disk did not take it, which hurts nobody."""
    if last_port(home) == port:
        return True
    try:
        return write_private(_port_file(home), b"%d\n" % port)
    except BusError:
        return False


def _port_file(home: Home) -> Path:
    return home.state / "port"


def candidates(fixed: int, last: int) -> Iterator[int]:
    """First ports of the pairs to try, in order."""
    if fixed:
        yield fixed
        return
    if last:
        yield last
    yield from range(FIRST_PORT, FIRST_PORT + 2 * PAIRS, 2)


def _local(socket: Socket) -> str:
    return _endpoint(socket).replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _endpoint(socket: Socket) -> str:
    raw = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(raw, bytes)
    return raw.rstrip(b"\0").decode("ascii")
