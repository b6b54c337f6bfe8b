"""A mailbox that is full, and a paired key that sends nonsense."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest

from bus import wire
from bus.errors import LocalError, RemoteError
from tests.live.homes import Home, Peer
from tests.live.test_cli import DONE, REFUSED, Bus

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(sys.platform == "win32", reason="POSIX")]

BAD_FRAMES = 20_000
CHUNK = 250
GROWTH_MAX = 30 << 20  # octets
NO_LIMIT = "[limits]\nrate = 1000000\nburst = 1000000\n"


# -- full ------------------------------------------------------------------------------------------------------------


def _fill(peer: Peer, body: bytes, count: int) -> None:
    """`count` messages to bob, many on their way at once; all are stored."""
    args = {"to": ["bob"], "new": True}
    for sent in range(count):
        peer.request("send", args, body)
        if sent >= wire.OPEN_REQUESTS:
            assert peer.hear(wire.Rep).code == 200
    for _ in range(min(count, wire.OPEN_REQUESTS)):
        assert peer.hear(wire.Rep).code == 200


@pytest.mark.parametrize(
    ("size", "count"),
    [(20, wire.MAILBOX_MESSAGES), (wire.BODY_MAX, wire.MAILBOX_BYTES // wire.BODY_MAX)],
    ids=["messages", "octets"],
)
def test_a_full_mailbox_refuses_with_the_reason_until_it_was_read(
    home: Home, stack: ExitStack, tmp_path: Path, size: int, count: int
) -> None:
    home.settings(NO_LIMIT)
    home.start()
    alice = stack.enter_context(home.session("alice"))
    _fill(alice, b"x" * size, count)
    one = alice.do("send", {"to": ["bob"]}, b"one too many")
    assert one.code == 507
    (told,) = one.result["to"]
    assert (told["name"], told["status"], told["code"]) == ("bob", "refused", 507)
    assert f"full ({count} unread)" in told["text"]
    # Nobody else suffers, and one that is full does not take the others with it.
    both = alice.do("send", {"to": ["bob", "dave"], "new": True}, b"to two").result["to"]
    assert {x["name"]: x["code"] for x in both} == {"bob": 507, "dave": 200}
    bus = Bus(home.root, tmp_path)
    ran = bus.run("send", "--as", "carol", "bob", "by hand")
    assert ran.code == REFUSED and "full" in ran.err and len(ran.err.splitlines()) == 1, ran

    bob = stack.enter_context(home.session("bob"))
    for _ in range(wire.WINDOW):
        last = bob.hear(wire.Msg)
    bob.say(wire.Ack([[1, last.n]], "test"))
    msg = bob.hear(wire.Msg)  # pushed because those before it are settled: there is room now
    later = alice.post("bob", "there is room")
    ran = bus.run("send", "--as", "carol", "bob", "by hand, later")
    assert ran.code == DONE, ran
    # What was refused did not slip in, and what was stored comes in order.
    seen = {msg.n: msg for msg in (last, msg)}
    while msg.n < count + 2:
        bob.say(wire.Ack([[msg.n, msg.n]], "test"))
        msg = bob.hear(wire.Msg)
        assert msg.prev == msg.n - 1
        seen[msg.n] = msg
    bob.say(wire.Ack([[msg.n, msg.n]], "test"))
    assert seen[count].body == b"x" * size and seen[count + 1].id == later
    assert [seen[count + n].body for n in (1, 2)] == [b"there is room", b"by hand, later"]
    bob.say(wire.Ping(2))
    assert bob.hear(wire.Pong).open == []


# -- nonsense --------------------------------------------------------------------------------------------------------

NUMBERS: list[Any] = [-1, 2**53 + 1, 2**63, 2**64 - 1, -(2**63), 1.5, float("nan"), float("inf"), True, None, "7"]
OTHERS: list[Any] = [
    None,
    7,
    -7,
    "text",
    b"octets",
    [],
    {},
    [[]],
    {"a": 1},
    True,
    3.14,
    "x" * 600,
    [[2, 1]],
    [[1, 2, 3]],
]


def _deep(levels: int, rng: random.Random) -> bytes:
    """msgpack nested as deep as asked, written by hand: no library would."""
    return (b"\x91" if rng.random() < 0.5 else b"\x81\xa1k") * levels + b"\x01"


def _head(rng: random.Random) -> dict[str, Any]:
    """A head that is right."""
    return {
        "HELLO": {"c": "HELLO", "mode": "hold", "inst": "i", "name": "x", "meta": {}},
        "REQ": {"c": "REQ", "q": 1, "floor": 1, "op": "send", "id": "a" * 16, "args": {"to": ["bob"]}},
        "ACK": {"c": "ACK", "ranges": [[1, 2]], "proof": "p"},
        "QRY": {"c": "QRY", "r": 1, "what": "peers", "args": {}},
        "PING": {"c": "PING", "k": 1},
        "BYE": {"c": "BYE", "leave": False},
    }[rng.choice(("HELLO", "REQ", "ACK", "QRY", "PING", "BYE"))]


def _bad(rng: random.Random) -> list[bytes]:
    """Frames with something wrong, most of the time."""
    head = _head(rng)
    packed = msgpack.packb(head)
    sign = wire.SIGNATURE
    match rng.randrange(14):
        case 0:
            return [rng.randbytes(rng.randrange(0, 60)) for _ in range(rng.randrange(1, 5))]
        case 1:
            return [sign, rng.randbytes(rng.randrange(0, 300))]
        case 2:
            return [sign, packed[: rng.randrange(0, len(packed))]]
        case 3:
            head[rng.choice([k for k in head if k != "c"])] = rng.choice(OTHERS)
            return [sign, msgpack.packb(head)]
        case 4:
            number = rng.choice(["q", "floor", "r", "k", "term", "hb"])
            return [sign, msgpack.packb(head | {number: rng.choice(NUMBERS)})]
        case 5:
            return [sign, _deep(rng.choice((10, 500, 1500, wire.HEAD_MAX // 3)), rng)]
        case 6:
            inner = _deep(rng.choice((100, 1100, 1200)), rng)
            return [sign, b"\x82\xa1c\xa3REQ\xa4args" + inner]
        case 7:
            return [sign, packed, *(b"" for _ in range(rng.randrange(2, 100)))]
        case 8:
            return [sign]
        case 9:
            return [sign, msgpack.packb(head | {"c": rng.choice(["WELCOME", "NO", "", 7, None, "req", "x" * 2000])})]
        case 10:
            return [sign, msgpack.packb({"c": rng.choice(["ACK", "PING", "BYE", "QRY", "HELLO"])} | head), b"a body"]
        case 11:
            return (
                [sign, packed, b"x" * rng.choice((wire.BODY_MAX + 1, wire.BODY_MAX + 1000))]
                if rng.random() < 0.05
                else [b"TB\x02", packed]
            )
        case 12:
            return [
                sign,
                msgpack.packb({i if rng.random() < 0.5 else str(i): i for i in range(rng.randrange(1, 80))}),
            ]
        case _:
            flipped = bytearray(packed)
            for _ in range(rng.randrange(1, 6)):
                flipped[rng.randrange(len(flipped))] = rng.randrange(256)
            return [sign, bytes(flipped)]


def _nonsense(rng: random.Random) -> Iterator[tuple[list[bytes], bool]]:
    """Malformed frames for ever, and whether each claims to be of the protocol (then it is answered)."""
    while True:
        frames = _bad(rng)
        if not wire.signed(frames):
            yield frames, False
            continue
        try:
            wire.decode(frames, "C")
        except RemoteError:
            yield frames, True


def _chunk(peer: Peer, some: Iterator[tuple[list[bytes], bool]], known: bool) -> tuple[int, int]:
    """Send CHUNK of them and read what they are answered: how many were signed and unsigned."""
    signed = 0
    for _ in range(CHUNK):
        frames, claims = next(some)
        signed += claims
        peer.send(frames)
    peer.say(wire.Ping(77))  # a PONG, or ERR 401 where no HELLO was said: everything before it is answered by then
    answers = []
    while True:
        answer = peer.next()
        if isinstance(answer, wire.Pong) or (isinstance(answer, wire.Err) and answer.code == 401):
            assert isinstance(answer, wire.Pong) is known
            break
        answers.append(answer)
    assert all(isinstance(x, wire.Err) and x.code in (400, 405, 413) and x.text for x in answers)
    assert len(answers) == signed
    return signed, CHUNK - signed


def _rss(home: Home) -> int:
    assert home.process is not None
    return int(psutil.Process(home.process.pid).memory_info().rss)


def test_twenty_thousand_malformed_frames(home: Home, stack: ExitStack) -> None:
    home.settings(NO_LIMIT)
    home.start()
    rng = random.Random(20_000)
    some = _nonsense(rng)
    view = stack.enter_context(home.view())

    def counters() -> dict[str, int]:
        return dict(view.query("stats").rows[0][0]["counters"])

    alice, bob = stack.enter_context(home.session("alice")), stack.enter_context(home.session("bob"))
    mallory = stack.enter_context(home.session("mallory"))
    nobody = stack.enter_context(home.peer())
    signed = unsigned = 0
    start = _rss(home)
    for turn in range(BAD_FRAMES // CHUNK):
        known = turn % 2 == 0
        more, less = _chunk(mallory if known else nobody, some, known)
        signed, unsigned = signed + more, unsigned + less
        sent = alice.post("bob", f"honest {turn}")
        msg = bob.hear(wire.Msg)
        assert (msg.id, msg.body) == (sent, f"honest {turn}".encode())
        bob.say(wire.Ack([[msg.n, msg.n]], "test"))
        if turn == 7:
            start = _rss(home)  # what every connection and cache needs is there by now
    assert _rss(home) - start < GROWTH_MAX
    told = counters()
    assert (told["malformed"], told["unsigned"]) == (signed, unsigned) and signed + unsigned == BAD_FRAMES
    assert signed > BAD_FRAMES // 2 and "Traceback" not in home.said()


def test_well_formed_nonsense_is_answered_too(home: Home, stack: ExitStack) -> None:
    home.settings(NO_LIMIT)
    home.start()
    rng = random.Random(3)
    alice, bob = stack.enter_context(home.session("alice")), stack.enter_context(home.session("bob"))
    mallory = stack.enter_context(home.session("mallory"))
    ops = [
        "send",
        "receipt",
        "settle",
        "rename",
        "take",
        "status",
        "state.set",
        "state.delete",
        "prune",
        "",
        "x" * 500,
    ]
    whats = [
        "whoami",
        "peers",
        "inbox",
        "message",
        "why",
        "history",
        "search",
        "state.get",
        "state.list",
        "log",
        "snapshot",
        "stats",
        "prune",
        "",
        "no",
    ]
    keys = [
        "to",
        "exclude",
        "moved",
        "ids",
        "proof",
        "name",
        "term",
        "fresh",
        "summary",
        "metadata",
        "key",
        "ver",
        "ttl",
        "before",
        "id",
        "query",
        "limit",
        "after",
        "prefix",
        "re",
        "tag",
        "kind",
        "hops",
        "nonce",
    ]
    values: list[Any] = [
        *OTHERS,
        *NUMBERS,
        ["bob"],
        ["*"] * 16,
        ["\x00", 7, None],
        "mallory",
        "*",
        "@pool",
        "é" * 100,
        [["offered", "p", -1, ["x"]]],
        [["a"]],
    ]
    asked = 0
    for turn in range(1500):
        args = {key: rng.choice(values) for key in rng.sample(keys, rng.randrange(0, 6))}
        args = {k: v for k, v in args.items() if not (isinstance(v, int) and abs(v) >= 2**64)}
        body = rng.choice([b"", b"{", b"\xff\xfe", b"text", b"1"])
        if rng.random() < 0.6:
            q = rng.choice([mallory.q + 1, mallory.q + 1, 0, mallory.q + 2, wire.NUM_MAX])
            command: Any = wire.Req(
                q,
                mallory.q + 1 if q == mallory.q + 1 else rng.choice([0, 1, wire.NUM_MAX]),
                rng.choice(ops),
                rng.choice(["a" * 16, "", "../x", "é"]),
                args,
                body,
            )
            kinds: Any = (wire.Rep, wire.Err)
        else:
            q = 0
            command, kinds = wire.Qry(turn, rng.choice(whats), args), (wire.Done, wire.Err)
        try:
            frames = wire.encode(command)
        except LocalError:
            continue
        asked += 1
        mallory.send(frames)
        if rng.random() < 0.3:
            mallory.say(wire.Ack(rng.choice([[[0, wire.NUM_MAX]], [], [[5, 9]]]), "p" * 500, rng.choice(["", "x"])))
        while True:
            answer = mallory.next()
            if isinstance(answer, kinds):
                break
            assert isinstance(answer, wire.Msg | wire.Part | wire.Pong | wire.Welcome), (command, answer)
        if isinstance(answer, wire.Rep) and answer.q == mallory.q + 1:
            mallory.q += 1
            assert 200 <= answer.code <= 507
    assert asked > 1000
    sent = alice.post("bob", "still here")
    while bob.hear(wire.Msg).id != sent:
        bob.say(wire.Ack([[0, wire.NUM_MAX]], "test"))
    assert home.process is not None and home.process.poll() is None and "Traceback" not in home.said()
