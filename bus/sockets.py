"""The ZeroMQ sockets of the protocol, made with the options of PROTOCOL.md §2, watched and closed in one safe order.

One place for what is easy to get wrong: no client sets a routing id, no DEALER lives to reconnect, nothing lingers,
and a server socket without the ZAP domain enforced cannot be made. Knows keys and endpoints; it must not know frames,
commands or who may connect.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from types import TracebackType

import zmq

from bus.trust import ENROL_DOMAIN, ZAP_DOMAIN, KeyPair

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]

ZAP_ENDPOINT = "inproc://zeromq.zap.01"  # ZeroMQ RFC 27

FRAME_MAX = 1 << 20  # octets; who sends more in one frame is disconnected
HANDSHAKE_MS = 2000
HEARTBEAT_MS = 2000
HEARTBEAT_TIMEOUT_MS = 6000
CONNECT_MS = 2000
RECONNECT_MS = 1000
NEVER_MS = 86_400_000  # of a socket that is closed at its first disconnect
# A snapshot is one PART for every mailbox and state key, and all of it is handed over at once.
ROUTER_QUEUE = 8192  # messages waiting for one peer; beyond it the peer counts as lost
EVENT_QUEUE = 16_384  # events waiting for one subscriber; beyond it some are left out, which it sees in `seq`
BACKLOG = 512
ENROL_FRAME_MAX = 1024  # octets; ENROLL is far smaller

_WATCHED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
)
_NEWS = {int(zmq.EVENT_HANDSHAKE_SUCCEEDED): "connected", int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "failed auth"}


def library() -> tuple[str, bool]:
    """The version of libzmq, and whether it has CURVE."""
    return zmq.zmq_version(), bool(zmq.has("curve"))


def router(ctx: Context, keys: KeyPair, *, ipv6: bool = False) -> Socket:
    """The broker's socket for sessions. Not bound yet; a ZAP handler must stand before it is."""
    socket = _server(ctx, zmq.ROUTER, keys, ipv6)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.SNDHWM, ROUTER_QUEUE)
    return socket


def xpub(ctx: Context, keys: KeyPair, *, ipv6: bool = False) -> Socket:
    """The broker's socket for activity. It tells of each topic's first subscriber and of the last one's end."""
    socket = _server(ctx, zmq.XPUB, keys, ipv6)
    socket.setsockopt(zmq.SNDHWM, EVENT_QUEUE)
    return socket


def enrolment(ctx: Context, keys: KeyPair, *, ipv6: bool = False) -> Socket:
    """The broker's socket for machines that have an invitation. Any key may connect while the ZAP handler lets it."""
    socket = _server(ctx, zmq.ROUTER, keys, ipv6)
    socket.setsockopt(zmq.ZAP_DOMAIN, ENROL_DOMAIN)
    socket.setsockopt(zmq.MAXMSGSIZE, ENROL_FRAME_MAX)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    return socket


def zap(ctx: Context) -> Socket:
    """The socket that is asked about every connection to this context's server sockets; bound."""
    socket = ctx.socket(zmq.REP)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(ZAP_ENDPOINT)
    return socket


def dealer(ctx: Context, keys: KeyPair, server_key: str, *, ipv6: bool = False) -> Socket:
    """A client's socket for one connection: connect it once, and make another when that connection ended.

    What came in before the end can still be read. It takes frames before it is connected, and after the end.
    """
    # A socket that reconnects by itself hands over frames of its former connection, so it is closed long before that.
    return _client(ctx, zmq.DEALER, keys, server_key, NEVER_MS, ipv6)


def sub(ctx: Context, keys: KeyPair, server_key: str, *, ipv6: bool = False) -> Socket:
    """A subscriber's socket for one connection, subscribed to nothing yet: make another when that connection ended.

    What came in before the end can still be read.
    """
    socket = _client(ctx, zmq.SUB, keys, server_key, RECONNECT_MS, ipv6)
    socket.setsockopt(zmq.RCVHWM, EVENT_QUEUE)
    return socket


def needs_ipv6(host: str) -> bool:
    """Whether sockets for this host, as it stands in an endpoint or in `bind`, must speak IPv6 too."""
    bare = host.removeprefix("tcp://")
    return "[" in bare or bare.count(":") > 1


class Monitor:
    """Tells what becomes of a socket's connection: "connected", "failed auth" or "disconnected".

    Made before connect(). `socket` may stand in a poller, for POLLIN only. After "failed auth" comes "disconnected".
    """

    def __init__(self, watched: Socket) -> None:
        self._watched = watched
        self.socket: Socket = watched.get_monitor_socket(_WATCHED)

    def news(self) -> str | None:
        """What happened next; None when nothing did. Never waits."""
        try:
            event, *_ = self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        number, _ = struct.unpack("=HI", event)
        return _NEWS.get(number, "disconnected")

    def close(self) -> None:
        """End the watch and close the watched socket too: in another order libzmq hangs or falls silent."""
        if not self._watched.closed:
            self._watched.disable_monitor()
        self.socket.close(0)
        self._watched.close(0)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def close_all(ctx: Context, held: Iterable[Socket | Monitor | None], linger: int = 0) -> None:
    """Close monitors, then sockets, then the context; what waits to be sent gets `linger` ms.

    A socket that has a monitor is named by its monitor alone. What is not named is closed too: else this would hang.
    """
    listed = [one for one in held if one is not None]
    for one in listed:
        if isinstance(one, Monitor):
            one.close()
    for one in listed:
        if not isinstance(one, Monitor):
            one.close(linger)
    ctx.destroy(linger)


def _server(ctx: Context, kind: int, keys: KeyPair, ipv6: bool) -> Socket:
    socket = ctx.socket(kind)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    _curve(socket, keys)
    # Without a domain that is enforced, a CURVE server that has no handler lets everybody in.
    socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    socket.setsockopt(zmq.BACKLOG, BACKLOG)
    _common(socket, ipv6)
    return socket


def _client(ctx: Context, kind: int, keys: KeyPair, server_key: str, reconnect: int, ipv6: bool) -> Socket:
    socket = ctx.socket(kind)
    socket.setsockopt(zmq.CURVE_SERVERKEY, server_key.encode("ascii"))
    _curve(socket, keys)
    # To forbid it (-1), or IMMEDIATE=1, is no way: libzmq 4.3.5 then throws away what was not read yet at a
    # disconnect, and when it does so between two frames of a message it aborts the process (fq.cpp, "!_more").
    socket.setsockopt(zmq.RECONNECT_IVL, reconnect)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)
    _common(socket, ipv6)
    return socket


def _curve(socket: Socket, keys: KeyPair) -> None:
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode("ascii"))
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode("ascii"))


def _common(socket: Socket, ipv6: bool) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, FRAME_MAX)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    if ipv6:
        socket.setsockopt(zmq.IPV6, 1)
