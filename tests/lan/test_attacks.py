"""Attackers as programs: each is refused and counted, and the honest one beside them is unharmed.

One hub with its honest session; the stranger's and the paired attacker's sockets are made on hosts of their own.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from bus import sockets, wire
from bus.client import View
from bus.invitations import Line, parse
from bus.sockets import Monitor
from bus.trust import KeyPair
from tests.lan.net import Host, Net, inside, pair
from tests.live.homes import DEADLINE, Peer, wait_for

pytestmark = pytest.mark.timeout(120)


def stranger() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


class Field:
    """A hub with an honest session, a paired machine and a stranger's."""

    def __init__(self, net: Net, root: Path, stack: ExitStack) -> None:
        self.stack = stack
        self.hub, self.far, self.out = (net.host(name, root) for name in ("hub", "far", "stranger"))
        pair(self.hub, self.far)
        self.port = self.hub.port
        self.honest = self.peer(self.hub, self.hub.keys)
        self.honest.hello("honest")
        self.sender = self.peer(self.hub, self.hub.keys)
        self.sender.hello("sender")

    def endpoint(self, offset: int = 0) -> str:
        return f"tcp://{self.hub.address}:{self.port + offset}"

    def peer(self, at: Host, keys: KeyPair, server_key: str = "") -> Peer:
        """A connection from a host."""
        with inside(at.namespace):
            made = Peer(self.endpoint(), server_key or self.hub.keys.public, keys)
        return self.stack.enter_context(made)

    def paired(self, name: str = "eve", **options: Any) -> Peer:
        peer = self.peer(self.far, self.far.keys)
        peer.hello(name, **options)
        return peer

    def counters(self) -> dict[str, int]:
        with self.view() as view:
            return dict(view.query("stats").rows[0][0]["counters"])

    @contextmanager
    def view(self) -> Iterator[View]:
        with inside(self.hub.namespace):
            view = View.open(self.hub.paths, self.hub.config, DEADLINE)
        with view:
            yield view

    def unharmed(self) -> None:
        """The honest session's mail goes through, to itself and back."""
        text = secrets.token_hex(4)
        self.sender.post("honest@hub", text)
        assert self.honest.hear(wire.Msg).body == text.encode()

    def tcp(self, at: Host, offset: int = 0, port: int = 0) -> socket.socket:
        with inside(at.namespace):
            made = socket.create_connection((self.hub.address, port or self.port + offset), 5)
        return self.stack.enter_context(made)


@pytest.fixture
def field(net: Net, root: Path, stack: ExitStack) -> Field:
    return Field(net, root, stack)


def plain(field: Field, at: Host, endpoint: str) -> str | None:
    """What becomes of a connection without CURVE."""
    with inside(at.namespace):
        ctx: sockets.Context = zmq.Context()
        dealer = ctx.socket(zmq.DEALER)
        dealer.setsockopt(zmq.RECONNECT_IVL, -1)
        monitor = Monitor(dealer)
        dealer.connect(endpoint)
    try:
        return monitor.news() if monitor.socket.poll(int(DEADLINE * 1000)) else None
    finally:
        sockets.close_all(ctx, [monitor])


# -- who is not let in -----------------------------------------------------------------------------------------------


def test_without_curve_with_a_wrong_server_key_and_with_an_unpaired_key(field: Field) -> None:
    assert plain(field, field.out, field.endpoint()) == "disconnected"
    assert plain(field, field.out, field.endpoint(1)) == "disconnected"
    assert field.peer(field.far, field.far.keys, server_key=stranger().public).news() == "disconnected"
    assert field.peer(field.out, field.out.keys).news() == "failed auth"
    with inside(field.out.namespace):
        ctx: sockets.Context = zmq.Context()
        sub = sockets.sub(ctx, field.out.keys, field.hub.keys.public)
        monitor = Monitor(sub)
        sub.setsockopt(zmq.SUBSCRIBE, b"")
        sub.connect(field.endpoint(1))
    try:
        assert monitor.socket.poll(int(DEADLINE * 1000)) and monitor.news() == "failed auth"
    finally:
        sockets.close_all(ctx, [monitor])
    assert field.counters().get("door refused", 0) >= 2
    field.unharmed()


def test_only_what_was_opened_is_reachable(net: Net, root: Path) -> None:
    hub, out = net.host("hub", root), net.host("stranger", root)
    hub.talkbus("up")

    def reachable(port: int) -> bool:
        with inside(out.namespace), socket.socket() as tried:
            tried.settimeout(2)
            return tried.connect_ex((hub.address, port)) == 0

    port = hub.port
    assert not reachable(port) and not reachable(port + 1), "before 'lan up' nothing is"
    hub.talkbus("lan", "up")
    assert reachable(port) and reachable(port + 1) and not reachable(port + 2)
    enrolment = parse(hub.talkbus("lan", "invite")).enrolment
    assert reachable(enrolment)
    hub.talkbus("lan", "invite", "--cancel")
    wait_for(lambda: not reachable(enrolment), "the enrolment port closed")
    hub.kill_broker()
    hub.talkbus("up")
    assert reachable(port), "a broker that starts again still listens"
    hub.talkbus("lan", "down")
    assert not reachable(port) and not reachable(port + 1)
    assert hub.json("status")["running"]


# -- the enrolment port ----------------------------------------------------------------------------------------------


def test_the_enrolment_port_knows_one_command_and_five_tries(field: Field) -> None:
    line = parse(field.hub.talkbus("lan", "invite"))
    for noise in (
        wire.encode(wire.Hello("view", "i")),
        wire.encode(wire.Qry(1, "stats")),
        wire.encode(wire.Enroll(line.token))[:1],
        [b"GET / HTTP/1.1"],
        [wire.SIGNATURE, b"\xc1" * 200],
    ):
        with _knock(field, line) as peer:
            peer.send(noise)
            assert not peer.socket.poll(300), "noise is answered"
    with _knock(field, line) as peer:
        for _ in range(5):
            peer.say(wire.Enroll(secrets.token_hex(16), "evil"))
            assert peer.next().code == 403
    told = field.out.tried("lan", "join", line.text())
    assert told.returncode == 3, "after five tries the right token is no use either"
    assert [row["host"] for row in field.hub.json("lan", "peers")] == ["hub", "far"]
    counters = field.counters()
    assert counters["enrolment refused"] == 5 and counters["enrolment noise"] == 5
    field.unharmed()


@contextmanager
def _knock(field: Field, line: Line) -> Iterator[Peer]:
    with inside(field.out.namespace):
        peer = Peer(f"tcp://{field.hub.address}:{line.enrolment}", line.key, stranger())
    with peer:
        yield peer


def test_an_invitation_expires_and_its_token_is_in_no_file(field: Field) -> None:
    line = field.hub.talkbus("lan", "invite", "--minutes", "0.05").strip()
    token = parse(line).token
    wait_for(lambda: "invitation" not in str(field.hub.tried("lan", "peers").stderr), "it expired")
    assert field.out.tried("lan", "join", line).returncode in (1, 3)
    root = field.hub.paths.state.parent
    for path in (p for p in root.rglob("*") if p.is_file()):
        content = path.read_bytes()
        assert token.encode() not in content and bytes.fromhex(token) not in content, path
        if path.name != "talkbus.key":
            secret = field.hub.keys.secret.encode()
            assert secret not in content, path


# -- what a paired machine may not -----------------------------------------------------------------------------------


def test_a_paired_key_forges_senders_acks_receipts_names_and_terms(field: Field) -> None:
    eve = field.paired()
    ident = field.sender.post("honest@hub", "mine")
    msg = field.honest.hear(wire.Msg)
    # The sender is stamped, whatever a frame says.
    head = {"c": "REQ", "q": eve.q + 1, "floor": 1, "op": "send", "id": "a" * 16, "from": "honest", "host": "hub"}
    eve.q += 1
    args = {"to": ["honest@hub"], "from": "honest", "host": "hub", "fid": msg.fid}
    eve.send([wire.SIGNATURE, wire.pack({**head, "args": args}), b"I am the hub"])
    assert eve.hear(wire.Rep).code == 200
    forged = field.honest.hear(wire.Msg)
    assert (forged.from_, forged.host) == ("eve", "far") and forged.fid != msg.fid
    # Acks, receipts and settlements of somebody else's mail.
    eve.say(wire.Ack([[1, 9]], "lie"))
    for of in ("", msg.fid):
        eve.do("receipt", {"moved": [["injected", "lie", 0, [ident, f"hub/{ident}"]]], "of": [of, of]})
        eve.do("settle", {"ids": [f"hub/{ident}"], "of": [of], "proof": "lie"})
    assert field.far.tried("inbox", "--as", "honest").returncode == 0  # its own mailbox of that name: empty
    (row,) = [r for r in field.hub.json("peers", "--all") if (r["name"], r["host"]) == ("honest", "hub")]
    assert row["unread"] == 2, "mail was settled by one who does not own it"
    # Another's outbox, another's name at another's term.
    thief = field.peer(field.far, field.far.keys)
    thief.say(wire.Hello("hold", "x", field.sender.ob, name="honest"))
    assert thief.next().code == 403
    taker = field.peer(field.far, field.far.keys)
    welcome = taker.hello("honest", take=1, term=1)
    assert welcome.id != row["id"], "a name is its key's"
    assert eve.do("take", {"name": "honest", "term": 1}).code in (200, 409)
    for op, args in (
        ("lan.revoke", {"host": "hub"}),
        ("lan.role", {"host": "far", "role": "owner"}),
        ("prune", {"before": 1}),
    ):
        assert eve.do(op, args).code == 403
    field.unharmed()


def test_a_routing_id_of_somebody_else_gives_nothing(field: Field) -> None:
    """A client that sets a routing id of its own, even one that is in use, is not taken for another."""
    with inside(field.far.namespace):
        ctx: sockets.Context = zmq.Context()
        dealer = sockets.dealer(ctx, field.far.keys, field.hub.keys.public)
        dealer.setsockopt(zmq.ROUTING_ID, b"honest")
        dealer.connect(field.endpoint())
    try:
        dealer.send_multipart(wire.encode(wire.Ping(1)))
        assert dealer.poll(5000) and wire.decode(dealer.recv_multipart(), "S").code == 401
    finally:
        dealer.close(0)
        ctx.term()
    field.unharmed()


def test_recorded_octets_played_again_do_nothing(field: Field, net: Net) -> None:
    """What a member once sent, replayed octet by octet on a connection of one's own."""
    recorded: list[bytes] = []
    with inside(net.switch):
        listener = field.stack.enter_context(socket.create_server((net.RELAY, 0)))
    port = listener.getsockname()[1]

    def tap() -> None:
        near, _ = listener.accept()
        with inside(net.switch):
            far = socket.create_connection((field.hub.address, field.port), 5)
        pump = threading.Thread(target=_pump, args=(far, near, None), daemon=True)
        pump.start()
        _pump(near, far, recorded)

    thread = threading.Thread(target=tap, daemon=True)
    thread.start()
    with inside(field.far.namespace):
        victim = Peer(f"tcp://{net.RELAY}:{port}", field.hub.keys.public, field.far.keys)
    victim.hello("victim")
    victim.post("honest@hub", "once")
    assert field.honest.hear(wire.Msg).body == b"once"
    victim.close()
    thread.join(5)
    before = field.hub.json("log", "--limit", "1")
    again = field.tcp(field.out)
    again.settimeout(4)
    assert recorded
    try:
        for piece in recorded:
            again.sendall(piece)
        while again.recv(65536):
            pass
    except ConnectionError:
        pass  # the hub's end of it, like an orderly one; a time-out would be none, and fails the test
    assert field.hub.json("log", "--limit", "1") == before, "the replay was done"
    field.unharmed()


def _pump(source: socket.socket, sink: socket.socket, kept: list[bytes] | None) -> None:
    try:
        while data := source.recv(65536):
            if kept is not None:
                kept.append(data)
            sink.sendall(data)
    except OSError:
        pass
    finally:
        sink.close()


def test_a_request_said_again_is_answered_again_and_not_done_again(field: Field) -> None:
    eve = field.paired()
    req = eve.request("send", {"to": ["honest@hub"]}, b"once")
    first = eve.hear(wire.Rep)
    for _ in range(5):
        eve.say(req)
        assert eve.hear(wire.Rep) == first
    eve.say(wire.Ping(1))
    eve.hear(wire.Pong)
    assert field.honest.hear(wire.Msg).body == b"once"
    field.honest.say(wire.Ping(2))
    assert field.honest.hear(wire.Pong).open == [[1, 1]]


# -- floods ----------------------------------------------------------------------------------------------------------


def test_a_flood_of_requests_meets_the_rate_and_the_honest_one_does_not_wait(field: Field) -> None:
    eve = field.paired()
    eve.socket.setsockopt(zmq.SNDHWM, 0)
    for _ in range(3000):
        eve.request("status", {"summary": "x"})
    codes = [eve.next() for _ in range(3000)]
    late = [c for c in codes if isinstance(c, wire.Err) and c.code == 429]
    assert late and all(c.retry > 0 for c in late)
    field.unharmed()
    assert field.counters()["rate"] >= 1
    assert sum(isinstance(c, wire.Rep) for c in codes) < 1000, "what is beyond burst and rate is not done"


def test_frames_beyond_the_limits_end_the_connection_or_are_refused(field: Field) -> None:
    eve = field.paired()
    eve.send([wire.SIGNATURE, wire.pack({"c": "PING"}), b"x" * (wire.BODY_MAX + 1)])
    assert eve.next().code == 413
    eve.send([wire.SIGNATURE, b"\x80" * 5000])
    assert eve.next().code == 413
    eve.send([wire.SIGNATURE, wire.pack({"c": "PING"}), *[b"x" * 1000] * 300])
    assert eve.next().code == 400
    eve.send([wire.SIGNATURE, wire.pack({f"k{i}": i for i in range(40)} | {"c": "PING"})])
    assert eve.next().code == 400
    assert eve.news() == "connected"
    eve.send([wire.SIGNATURE, b"x" * (2 << 20)])
    assert eve.news() == "disconnected", "a frame of 2 MiB ends the connection"
    assert field.counters()["malformed"] >= 4
    field.unharmed()


def test_half_open_handshakes_and_garbage_are_dropped(field: Field) -> None:
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE".ljust(23, b"\0") + bytes(32)
    mute = [field.tcp(field.out) for _ in range(40)]
    half = [field.tcp(field.out) for _ in range(40)]
    noise = [field.tcp(field.out, 1) for _ in range(40)]
    for made in half:
        made.sendall(greeting)
    for made in noise:
        made.sendall(b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n" + secrets.token_bytes(200))
    field.unharmed()
    for made in (*mute, *half, *noise):
        made.settimeout(DEADLINE)
        try:
            while made.recv(4096):
                pass
        except ConnectionError:
            pass  # a reset is an end, too; a time-out is none, and fails the test
    field.unharmed()


def test_five_hundred_connections_of_strangers_and_of_a_member(field: Field) -> None:
    began = time.monotonic()
    held = [field.tcp(field.out) for _ in range(250)]
    with inside(field.far.namespace):
        ctx: sockets.Context = zmq.Context()
        ctx.set(zmq.MAX_SOCKETS, 2000)
        dealers = []
        for _ in range(250):
            dealer = sockets.dealer(ctx, field.far.keys, field.hub.keys.public)
            dealer.connect(field.endpoint())
            dealers.append(dealer)
    try:
        field.unharmed()
        for number, dealer in enumerate(dealers):
            dealer.send_multipart(wire.encode(wire.Hello("view", f"i{number}")))
        for dealer in dealers:
            assert dealer.poll(int(DEADLINE * 1000))
            assert isinstance(wire.decode(dealer.recv_multipart(), "S"), wire.Welcome)
        field.unharmed()
        assert len(held) == 250 and time.monotonic() - began < 60
    finally:
        ctx.destroy(0)


# -- revocation ------------------------------------------------------------------------------------------------------


def test_revocation_ends_living_connections_of_both_ports_and_no_other(field: Field, net: Net) -> None:
    desk = net.host("desk", field.hub.paths.state.parent.parent)
    desk.talkbus("lan", "join", field.hub.talkbus("lan", "invite").strip())
    eve, other = field.paired(), field.peer(desk, desk.keys)
    other.hello("other")
    spy = _subscriber(field, field.far)
    friend = _subscriber(field, desk)
    field.sender.post("honest@hub", "seen by both")
    assert spy.poll(int(DEADLINE * 1000)) and friend.poll(int(DEADLINE * 1000))
    with field.view():
        field.sender.do("lan.revoke", {"host": "far"})
    revoked = time.monotonic()
    assert eve.next().code == 401, "the session is told so"
    while spy.poll(200):
        spy.recv_multipart()
    assert time.monotonic() - revoked < 5
    # From here on: nothing is heard of it and nothing is told to it, on the connections it still has.
    seq = field.hub.json("log", "--limit", "1")
    for _ in range(3):
        eve.q += 1
        eve.say(wire.Req(eve.q, 1, "send", "a" * 16, {"to": ["honest@hub"]}, b"ghost"))
        eve.say(wire.Hello("hold", "eve", eve.ob, name="eve"))
        eve.say(wire.Ping(1))
    field.sender.post("eve@far", "not for its eyes")
    field.sender.post("honest@hub", "nor is this event")
    wait_for(lambda: field.counters().get("revoked", 0) >= 9, "its frames counted")
    assert not eve.socket.poll(300), "a revoked connection was answered"
    assert not spy.poll(300), "a revoked subscriber still gets events"
    assert field.peer(field.far, field.far.keys).news() == "failed auth"
    assert seq != field.hub.json("log", "--limit", "1")
    other.post("honest@hub", "the others stay")

    def tells() -> bool:
        field.sender.post("honest@hub", "tick")
        return bool(friend.poll(100))

    wait_for(tells, "an honest subscriber back by itself")


def _subscriber(field: Field, at: Host) -> sockets.Socket:
    with inside(at.namespace):
        ctx: sockets.Context = zmq.Context()
        sub = sockets.sub(ctx, at.keys, field.hub.keys.public)
        sub.setsockopt(zmq.SUBSCRIBE, b"msg.")
        sub.connect(field.endpoint(1))
    field.stack.callback(ctx.destroy, 0)

    def heard() -> bool:
        field.sender.post("honest@hub", "are you there")
        return bool(sub.poll(100))

    wait_for(heard, "a subscription")
    while sub.poll(100):
        sub.recv_multipart()
    return sub


def test_an_observer_only_looks(field: Field, net: Net, root: Path) -> None:
    watcher = net.host("watcher", root)
    watcher.talkbus("lan", "join", field.hub.talkbus("lan", "invite", "--role", "observer").strip())
    assert [row["role"] for row in watcher.json("lan", "peers")] == ["owner", "member", "observer"]
    told = watcher.tried("send", "honest@hub", "x", "--as", "w")
    assert "observer" in told.stdout + told.stderr
    with inside(watcher.namespace), View.open(watcher.paths, watcher.config, DEADLINE) as view:
        assert view.query("search", {"query": "x"}).code == 403
        assert view.query("peers").code in (200, 204)
