"""sockets: the options that must stand, what a monitor tells, and closing that never hangs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq

from bus import sockets
from bus.sockets import Context, Monitor, Socket
from bus.trust import ZAP_DOMAIN, KeyPair

pytestmark = pytest.mark.timeout(30)
WAIT_MS = 10_000
COUNT = 40
ROOT = Path(__file__).resolve().parents[1]


def pair() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


@pytest.fixture
def ctx() -> Iterator[Context]:
    made: Context = zmq.Context()
    yield made
    made.destroy(0)


def news(monitor: Monitor) -> str | None:
    return monitor.news() if monitor.socket.poll(WAIT_MS) else None


def answer(zap: Socket, code: bytes) -> None:
    assert zap.poll(WAIT_MS)
    frames = zap.recv_multipart()
    zap.send_multipart([frames[0], frames[1], code, b"", b"somebody" if code == b"200" else b"", b""])


def test_every_socket_has_the_options_of_the_protocol(ctx: Context) -> None:
    keys = pair()
    made = {
        "router": sockets.router(ctx, keys),
        "xpub": sockets.xpub(ctx, keys),
        "dealer": sockets.dealer(ctx, keys, pair().public),
        "sub": sockets.sub(ctx, keys, pair().public),
    }
    for name, socket in made.items():
        assert socket.getsockopt(zmq.LINGER) == 0, name
        assert socket.getsockopt(zmq.MAXMSGSIZE) == 1 << 20, name
        assert socket.getsockopt(zmq.HANDSHAKE_IVL) == 2000, name
        assert socket.getsockopt(zmq.HEARTBEAT_IVL) == 2000, name
        assert socket.getsockopt(zmq.HEARTBEAT_TIMEOUT) == 6000, name
        assert socket.getsockopt(zmq.MECHANISM) == zmq.CURVE, name
        assert socket.getsockopt(zmq.ROUTING_ID if name == "dealer" else zmq.IDENTITY) == b"", name
        assert socket.getsockopt(zmq.IPV6) == 0, name
    for name in ("router", "xpub"):
        assert made[name].getsockopt(zmq.CURVE_SERVER) == 1
        assert made[name].getsockopt(zmq.ZAP_DOMAIN).rstrip(b"\0") == ZAP_DOMAIN  # type: ignore[union-attr]
        assert made[name].getsockopt(zmq.ZAP_ENFORCE_DOMAIN) == 1
    for name in ("dealer", "sub"):
        assert made[name].getsockopt(zmq.CONNECT_TIMEOUT) == 2000
    assert made["dealer"].getsockopt(zmq.IMMEDIATE) == 0
    assert made["dealer"].getsockopt(zmq.RECONNECT_IVL) == 86_400_000


def test_router_refuses_to_drop_in_silence(ctx: Context) -> None:
    router = sockets.router(ctx, pair())
    with pytest.raises(zmq.ZMQError) as raised:
        router.send_multipart([b"nobody", b"x"], zmq.NOBLOCK)
    assert raised.value.errno == zmq.EHOSTUNREACH


@pytest.mark.parametrize("code, told", [(b"200", "connected"), (b"400", "failed auth")])
def test_monitor_tells_how_a_handshake_ended(ctx: Context, code: bytes, told: str) -> None:
    keys = pair()
    zap = sockets.zap(ctx)
    router = sockets.router(ctx, keys)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    with Monitor(sockets.dealer(ctx, pair(), keys.public)) as monitor:
        monitor._watched.connect(f"tcp://127.0.0.1:{port}")
        answer(zap, code)
        assert news(monitor) == told
        if code == b"400":
            assert news(monitor) == "disconnected"
    assert monitor.socket.closed and monitor._watched.closed


def test_monitor_tells_a_wrong_server_key_and_a_dead_port_as_disconnected(ctx: Context) -> None:
    sockets.zap(ctx)
    router = sockets.router(ctx, pair())
    port = router.bind_to_random_port("tcp://127.0.0.1")
    with Monitor(sockets.dealer(ctx, pair(), pair().public)) as monitor:
        monitor._watched.connect(f"tcp://127.0.0.1:{port}")
        assert news(monitor) == "disconnected"
    with Monitor(sockets.sub(ctx, pair(), pair().public)) as monitor:
        assert monitor.news() is None
        monitor._watched.connect("tcp://127.0.0.1:1")
        assert news(monitor) == "disconnected"


def test_a_server_without_a_handler_lets_nobody_in(ctx: Context) -> None:
    keys = pair()
    router = sockets.router(ctx, keys)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    with Monitor(sockets.dealer(ctx, pair(), keys.public)) as monitor:
        monitor._watched.connect(f"tcp://127.0.0.1:{port}")
        assert news(monitor) == "disconnected"


def test_closing_a_monitor_leaves_the_others_alive(ctx: Context) -> None:
    keys = pair()
    zap = sockets.zap(ctx)
    router = sockets.router(ctx, keys)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    for _ in range(20):
        monitor = Monitor(sockets.dealer(ctx, pair(), keys.public))
        monitor._watched.connect(f"tcp://127.0.0.1:{port}")
        monitor.close()
        monitor.close()
    with Monitor(sockets.dealer(ctx, pair(), keys.public)) as last:
        last._watched.connect(f"tcp://127.0.0.1:{port}")
        poller = zmq.Poller()
        poller.register(zap, zmq.POLLIN)
        poller.register(last.socket, zmq.POLLIN)
        # Some of the twenty may have come as far as asking, too.
        while last.socket not in (ready := dict(poller.poll(WAIT_MS))):
            assert ready
            answer(zap, b"200")
        assert news(last) == "connected"


def test_close_all_ends_a_context_with_monitors_and_forgotten_sockets() -> None:
    ctx: Context = zmq.Context()
    monitor = Monitor(sockets.dealer(ctx, pair(), pair().public))
    forgotten = sockets.sub(ctx, pair(), pair().public)
    router = sockets.router(ctx, pair())
    sockets.close_all(ctx, [router, None, monitor], linger=10)
    assert ctx.closed and forgotten.closed and router.closed


def read_after_the_end(kind: str) -> None:
    """Print what a reader of this kind gets of messages that came before its connection ended.

    For a process of its own. libzmq looks for commands at each hundredth receive; were one among them that ends the
    pipe, it would abort the process when that receive is in the middle of a message: the hundredth frame is the last of
    a message of four.
    """

    def told(monitor: Monitor, wanted: str) -> None:
        while not monitor.socket.poll(10):
            zap.poll(0)  # a connection that ends also waits for the one who was asked about it
        assert monitor.news() == wanted

    keys = pair()
    servers: Context = zmq.Context()
    clients: Context = zmq.Context()
    zap = sockets.zap(servers)
    server = (sockets.xpub if kind == "sub" else sockets.router)(servers, keys)
    client = (sockets.sub if kind == "sub" else sockets.dealer)(clients, pair(), keys.public)
    reader, writer = (server, client) if kind == "router" else (client, server)
    monitor = Monitor(reader)
    port = server.bind_to_random_port("tcp://127.0.0.1")
    client.connect(f"tcp://127.0.0.1:{port}")
    answer(zap, b"200")
    told(monitor, "connected")
    before: list[bytes] = []
    after = [b"", b"", b""]
    if kind == "dealer":
        client.send(b"here")
        before = [server.recv_multipart()[0]]
    elif kind == "sub":
        client.setsockopt(zmq.SUBSCRIBE, b"")
        server.recv()
    else:
        after = [b"", b""]  # the route is in front of what is read
    for number in range(COUNT):
        writer.send_multipart([*before, b"%d" % number, *after])
    writer.close(WAIT_MS)  # ends the connection when everything was sent
    told(monitor, "disconnected")
    # The thread of the sockets told of the end before it acted on it: when it has made another connection, it has.
    other = sockets.router(servers, keys)
    port = other.bind_to_random_port("tcp://127.0.0.1")
    with Monitor(sockets.dealer(clients, pair(), keys.public)) as later:
        later._watched.connect(f"tcp://127.0.0.1:{port}")
        answer(zap, b"200")
        told(later, "connected")
    got = []
    with suppress(zmq.Again):
        while True:
            frames = reader.recv_multipart(zmq.NOBLOCK)
            got.append(int(frames[kind == "router"]))
            assert len(frames) == 4
    print(got == list(range(COUNT)), len(got))
    sockets.close_all(reader.context, [monitor])
    sockets.close_all(servers, [zap, other])
    sockets.close_all(clients, [])


@pytest.mark.parametrize("kind", ["dealer", "sub", "router"])
def test_what_came_before_the_end_of_a_connection_can_be_read_after_it(kind: str) -> None:
    code = "import sys; from tests.test_sockets import read_after_the_end; read_after_the_end(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, kind], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "True 40\n"), done.stderr


@pytest.mark.parametrize(
    "host, six",
    [
        ("127.0.0.1", False),
        ("tcp://127.0.0.1:7717", False),
        ("tcp://host:7717", False),
        ("*", False),
        ("::", True),
        ("fe80::1", True),
        ("tcp://[::1]:7717", True),
    ],
)
def test_ipv6_is_for_those_who_need_it(host: str, six: bool) -> None:
    assert sockets.needs_ipv6(host) is six


def test_ipv6_sockets_speak_it(ctx: Context) -> None:
    assert sockets.router(ctx, pair(), ipv6=True).getsockopt(zmq.IPV6) == 1
    assert sockets.dealer(ctx, pair(), pair().public, ipv6=True).getsockopt(zmq.IPV6) == 1
