"""trust: one pair for all processes, secrets that stay secret, and a verdict nothing can break."""

from __future__ import annotations

import stat
import sys
import threading
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from bus.config import Home, home
from bus.errors import ConfigError
from bus.roll import Principal, Roll, fingerprint
from bus.trust import (
    ZAP_DOMAIN,
    KeyPair,
    ensure_keys,
    host_label,
    key_file,
    load_roll,
    read_keys,
    roll_file,
    verdict,
)

# The pair of RFC 26's test vectors as libzmq prints it.
PUBLIC = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
SECRET = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"
RAW = bytes.fromhex("bb88471d65e2659b30c55a5321cebb5aab2b70a398645c26dca2b2fcb43fc518")
ROLL = Roll({PUBLIC: Principal("box", "owner")})
GOOD = [b"1.0", b"7", ZAP_DOMAIN, b"127.0.0.1", b"", b"CURVE", RAW]


@pytest.fixture
def bus(tmp_path: Path) -> Home:
    return home({"TALKBUS_HOME": str(tmp_path / "bus")})


def test_keys_are_made_once_and_private(bus: Home) -> None:
    pair = ensure_keys(bus)
    assert ensure_keys(bus) == read_keys(bus) == pair
    assert zmq.curve_public(pair.secret.encode()).decode() == pair.public
    assert key_file(bus).read_text() == f"public {pair.public}\nsecret {pair.secret}\n"
    if sys.platform != "win32":
        assert stat.S_IMODE(key_file(bus).stat().st_mode) == 0o600
        assert stat.S_IMODE(bus.keys.stat().st_mode) == 0o700


def test_the_secret_shows_nowhere() -> None:
    pair = KeyPair(PUBLIC, SECRET)
    assert SECRET not in f"{pair} {pair!r} {[pair]}"
    assert PUBLIC in repr(pair)


def test_many_processes_get_one_pair(bus: Home) -> None:
    with get_context("spawn").Pool(4) as pool:
        pairs = pool.map(ensure_keys, [bus] * 8, chunksize=1)
    assert len(set(pairs)) == 1
    assert [path.name for path in bus.keys.iterdir()] == ["talkbus.key"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "junk",
        f"public {PUBLIC}\n",
        f"public {PUBLIC}\nsecret {SECRET}",
        f"secret {SECRET}\npublic {PUBLIC}\n",
        f"public {PUBLIC}\nsecret {SECRET[:-1]}\n",
        f"public {PUBLIC}\nsecret {PUBLIC}\n",
        f"public {PUBLIC}\nsecret {'#' * 40}\n",
        f"public {PUBLIC} x\nsecret {SECRET}\n",
        f"public {PUBLIC}\nsecret {SECRET}é\n",
    ],
)
def test_a_broken_file_is_named_and_never_replaced(bus: Home, text: str) -> None:
    ensure_keys(bus)
    key_file(bus).write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"talkbus\.key .*restore it from a backup") as caught:
        ensure_keys(bus)
    assert SECRET not in str(caught.value)
    assert key_file(bus).read_text("utf-8") == text


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_an_open_key_is_refused(bus: Home) -> None:
    ensure_keys(bus)
    key_file(bus).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        ensure_keys(bus)


def test_missing_keys_are_said(bus: Home) -> None:
    with pytest.raises(ConfigError, match=r"talkbus\.key"):
        read_keys(bus)


def test_fingerprint_is_short_and_stable() -> None:
    text = fingerprint(PUBLIC)
    assert text == fingerprint(PUBLIC) != fingerprint(SECRET)
    assert [len(group) for group in text.split("-")] == [4] * 5


def test_a_known_key_is_let_in() -> None:
    assert verdict(GOOD, ROLL) == [b"1.0", b"7", b"200", b"OK", PUBLIC.encode(), b""]


@pytest.mark.parametrize(
    ("at", "frame"),
    [(0, b"2.0"), (2, b""), (2, b"global"), (5, b"NULL"), (5, b"PLAIN"), (6, b""), (6, RAW[:-1]), (6, bytes(32))],
)
def test_everything_else_is_not(at: int, frame: bytes) -> None:
    reply = verdict([*GOOD[:at], frame, *GOOD[at + 1 :]], ROLL)
    assert (reply[:3], reply[4:]) == ([b"1.0", b"7", b"400"], [b"", b""])


def test_the_number_of_frames_counts() -> None:
    assert verdict([], ROLL)[1:3] == [b"", b"400"]
    assert verdict(GOOD[:-1], ROLL)[1:3] == [b"7", b"400"]
    assert verdict([*GOOD, b""], ROLL)[1:3] == [b"7", b"400"]
    assert verdict(GOOD, Roll({}))[2] == b"400"


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(GOOD)), max_size=9))
def test_nothing_raises_and_only_the_good_pass(frames: list[bytes]) -> None:
    reply = verdict(frames, ROLL)
    assert len(reply) == 6
    known = len(frames) == 7 and [frames[i] for i in (0, 2, 5, 6)] == [GOOD[i] for i in (0, 2, 5, 6)]
    assert (reply[2] == b"200") == known


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


def test_libzmq_takes_the_verdict(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    zap = context.socket(zmq.REP)
    zap.bind("inproc://zeromq.zap.01")

    def answer() -> None:
        for _ in range(2):
            if zap.poll(5000):
                zap.send_multipart(verdict(zap.recv_multipart(), ROLL))
        zap.close(0)

    thread = threading.Thread(target=answer)
    thread.start()
    server = context.socket(zmq.ROUTER)
    server.curve_server = True
    server.curve_secretkey = SECRET.encode()
    server.zap_domain = ZAP_DOMAIN
    server.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    port = server.bind_to_random_port("tcp://127.0.0.1")

    stranger = dial(context, port, *zmq.curve_keypair())
    watch = stranger.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    assert watch.poll(5000), "a stranger was not refused"
    stranger.disable_monitor()
    watch.close(0)
    friend = dial(context, port, PUBLIC.encode(), SECRET.encode())
    friend.send(b"hello")
    assert server.poll(5000)
    frame = server.recv_multipart(copy=False)[1]
    assert (frame.bytes, frame.get("User-Id")) == (b"hello", PUBLIC)
    thread.join(5)


def dial(context: zmq.Context[zmq.Socket[bytes]], port: int, public: bytes, secret: bytes) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = public, secret, PUBLIC.encode()
    socket.connect(f"tcp://127.0.0.1:{port}")
    return socket


def test_the_roll_holds_the_own_key_and_those_of_the_file(bus: Home) -> None:
    own = ensure_keys(bus).public
    assert dict(load_roll(bus, own)) == {own: Principal(host_label(), "owner")}
    entry = f'[[key]]\npublic = "{PUBLIC}"\nlabel = "laptop"\nrole = "member"\n'
    roll_file(bus).write_text(entry)
    roll_file(bus).chmod(0o600)
    roll = load_roll(bus, own)
    assert len(roll) == 2
    assert roll.find(PUBLIC) == Principal("laptop", "member")
    assert roll.find("x") is None


@pytest.mark.parametrize(
    "text",
    [
        "[[key]]\n",
        "key = 5\n",
        f'[[key]]\npublic = "{PUBLIC}"\nlabel = "x"\nrole = "king"\n',
        f'[[key]]\npublic = "{PUBLIC}"\nlabel = "x"\nrole = ["owner"]\n',
        '[[key]]\npublic = "short"\nlabel = "x"\nrole = "owner"\n',
        "key = [",
    ],
)
def test_a_wrong_roll_is_named(bus: Home, text: str) -> None:
    own = ensure_keys(bus).public
    roll_file(bus).write_text(text)
    roll_file(bus).chmod(0o600)
    with pytest.raises(ConfigError, match=r"roll\.toml"):
        load_roll(bus, own)
