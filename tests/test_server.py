"""server: the broker as a process, over real sockets, killed and starved. Every wait has a deadline."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zmq

from bus import listening, reading, sockets, surroundings, wire
from bus.client import View
from bus.daemon import published
from bus.effects import Read
from bus.errors import StoreError
from bus.private import private_dir, write_private
from bus.processes import alive
from bus.reading import Reader, Telling
from bus.server import MESSAGES_A_TURN
from bus.store import Store
from bus.trust import KeyPair, host_label, roll_file
from tests.live.homes import DEADLINE, Home, wait_for

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes")]

ACCEPT_ALL = (
    "import bus.trust; bus.trust.verdict = lambda f, roll, inviting=False: [b'1.0', f[1], b'200', b'OK', b'x', b'']"
)
DEAF_DOOR = "import bus.listening; bus.listening.SELF_TEST_S = 0.5; bus.listening.Door.answer_zap = lambda self: None"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(tmp_path / "bus") as made:
        yield made


def stranger() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def stats(view: View) -> dict[str, Any]:
    return view.query("stats").rows[0][0]


# -- start and stop --------------------------------------------------------------------------------------------------


def test_a_message_goes_through_and_is_settled(home: Home, stack: ExitStack) -> None:
    home.start()
    alice, bob = stack.enter_context(home.session("alice")), stack.enter_context(home.session("bob"))
    sent = alice.post("bob", "hello", tag="t/1", thread="a" * 16, ttl=60_000)
    msg = bob.hear(wire.Msg)
    assert (msg.id, msg.from_, msg.to, msg.body, msg.tag) == (sent, "alice", "bob", b"hello", "t/1")
    assert (msg.n, msg.prev, msg.again, msg.host) == (1, 0, False, host_label())
    assert 0 < msg.ttl <= 60_000 and msg.thread == "a" * 16
    bob.say(wire.Ack([[1, 1]], "test"))
    bob.say(wire.Ping(7))
    assert bob.hear(wire.Pong).more == 0


def test_sigterm_takes_the_record_back_and_says_so(home: Home, stack: ExitStack) -> None:
    record = home.start()
    assert published(home.paths) == record and record.version == "test"
    view = stack.enter_context(home.view())
    events = view.events(["bus."], timeout=DEADLINE)
    assert next(events).snapshot is not None
    began = time.monotonic()
    assert home.stop() == 0
    assert time.monotonic() - began < 5
    assert [e["event"] for e in next(events).events] == ["stop"]
    assert published(home.paths) is None and not home.paths.record.exists()
    assert "stopped" in home.said()


def test_sigint_stops_it_too(home: Home) -> None:
    home.start()
    assert home.process is not None
    home.process.send_signal(signal.SIGINT)
    assert home.process.wait(DEADLINE) == 0


def test_one_broker_for_one_home(home: Home, stack: ExitStack) -> None:
    record = home.start()
    second, pipe = home.spawn()
    os.close(pipe)
    assert second.wait(DEADLINE) == 1 and f"already, as process {record.pid}" in home.said()
    home.environ["TALKBUS_SPAWNED"] = "1"  # of two that are started at once, one finds itself the second
    third, pipe = home.spawn()
    os.close(pipe)
    assert third.wait(DEADLINE) == 0
    assert home.record == record and alive(record.pid, record.start)
    stack.enter_context(home.session("alice")).post("bob", "still there")


def test_one_that_was_started_by_itself_obeys_the_stop_mark(tmp_path: Path) -> None:
    with Home(tmp_path / "bus", TALKBUS_SPAWNED="1") as home:
        private_dir(home.paths.state)
        write_private(home.paths.stop_mark, b"")
        process, pipe = home.spawn()
        os.close(pipe)
        assert process.wait(DEADLINE) == 0
        assert published(home.paths) is None


def test_two_homes_at_once_get_pairs_of_their_own(tmp_path: Path, stack: ExitStack) -> None:
    homes = [stack.enter_context(Home(tmp_path / str(i))) for i in range(3)]
    records = [home.start() for home in homes]
    ports = {int(e.rsplit(":", 1)[1]) for r in records for e in (r.router, r.xpub)}
    assert len(ports) == 6
    for home in homes:
        stack.enter_context(home.session("alice")).post("bob", "x")


def test_the_pair_is_remembered_and_tried_first(home: Home) -> None:
    port = int(home.start().router.rsplit(":", 1)[1])
    assert home.stop() == 0
    # Whether it is free still is for the whole machine to say, so the order is looked at, not the next start.
    assert listening.last_port(home.paths) == port
    assert list(listening.candidates(0, 7747))[:3] == [7747, 7717, 7719]
    assert list(listening.candidates(0, 0))[:2] == [7717, 7719]
    assert list(listening.candidates(7800, 7747)) == [7800]
    for text in (b"x", b"\xff", b"70000", b""):
        write_private(home.paths.state / "port", text)
        assert listening.last_port(home.paths) == 0


def test_a_fixed_port_that_is_taken_is_named(home: Home, tmp_path: Path) -> None:
    port = int(home.start().router.rsplit(":", 1)[1])
    for fixed in (port, port - 1):
        with Home(tmp_path / str(fixed), TALKBUS_PORT=str(fixed)) as other:
            process, pipe = other.spawn()
            os.close(pipe)
            assert process.wait(DEADLINE) == 1
            assert f"port {fixed} or {fixed + 1} is taken" in other.said().splitlines()[-1]
            assert "Traceback" not in other.said()


def test_an_address_that_is_not_ours_is_named(tmp_path: Path) -> None:
    with Home(tmp_path / "bus", TALKBUS_BIND="203.0.113.9") as home:
        process, pipe = home.spawn()
        os.close(pipe)
        assert process.wait(DEADLINE) == 1
        assert "cannot listen on 203.0.113.9" in home.said().splitlines()[-1]


def test_sigkill_and_restart_keep_mail_and_state(home: Home, stack: ExitStack) -> None:
    home.start()
    with home.session("alice") as alice:
        alice.post("bob", "before the cut")
        assert alice.do("state.set", {"key": "k"}, b"1").code == 200
        high = alice.q
        ob = alice.ob
        home.kill()
    home.start()
    bob = stack.enter_context(home.session("bob"))
    assert bob.hear(wire.Msg).body == b"before the cut"
    alice = stack.enter_context(home.peer())
    assert alice.hello("alice", ob=ob).high == high
    alice.say(wire.Qry(1, "state.get", {"key": "k"}))
    assert alice.hear(wire.Part).body == b"1"


def test_an_idle_broker_sleeps(home: Home, stack: ExitStack) -> None:
    home.start()
    stack.enter_context(home.session("alice")).post("bob", "x")
    view = stack.enter_context(home.view())
    wait_for(lambda: "disk messages" in stats(view)["counters"], "the first chores done")
    assert home.process is not None
    stat = Path(f"/proc/{home.process.pid}/stat")
    if not stat.exists():
        pytest.skip("no /proc")
    ticks = [sum(map(int, stat.read_text().rsplit(")", 1)[1].split()[11:13])) for _ in _apart(1.0)]
    assert ticks[1] - ticks[0] <= 5  # of the hundred that a busy loop would take


def _apart(seconds: float) -> Iterator[None]:
    yield
    threading.Event().wait(seconds)
    yield


# -- who may connect -------------------------------------------------------------------------------------------------


def test_a_random_key_is_refused(home: Home, stack: ExitStack) -> None:
    home.start()
    peer = stack.enter_context(home.peer(keys=stranger()))
    assert peer.news() == "failed auth"
    stack.enter_context(home.session("alice")).post("bob", "others go on")


def test_without_curve_nobody_is_heard(home: Home) -> None:
    record = home.start()
    ctx: sockets.Context = zmq.Context()
    plain = ctx.socket(zmq.DEALER)
    plain.setsockopt(zmq.RECONNECT_IVL, -1)
    monitor = sockets.Monitor(plain)
    try:
        plain.connect(record.router)
        assert monitor.socket.poll(int(DEADLINE * 1000)) and monitor.news() == "disconnected"
    finally:
        sockets.close_all(ctx, [monitor])


@pytest.mark.parametrize("fault", [ACCEPT_ALL, DEAF_DOOR], ids=["lets everybody in", "answers nobody"])
def test_a_door_that_does_not_refuse_is_not_opened(home: Home, fault: str) -> None:
    process, pipe = home.spawn(fault)
    os.close(pipe)
    assert process.wait(DEADLINE) == 1
    assert "did not refuse an unknown key" in home.said().splitlines()[-1]
    assert published(home.paths) is None


def test_keys_on_the_roll_come_in_with_their_role(home: Home, stack: ExitStack) -> None:
    keys = stranger()
    assert home.keys.public != keys.public
    write_private(
        roll_file(home.paths), f'[[key]]\npublic = "{keys.public}"\nlabel = "far"\nrole = "observer"\n'.encode()
    )
    home.start()
    peer = stack.enter_context(home.peer(keys=keys))
    peer.say(wire.Hello("hold", "i", peer.ob, name="spy"))
    told = peer.next()
    assert isinstance(told, wire.Err) and told.code == 403
    peer.say(wire.Hello("view", "i"))
    assert isinstance(peer.next(), wire.Welcome)
    peer.say(wire.Qry(1, "whoami"))
    assert peer.hear(wire.Part).value == {"name": "", "host": "far", "role": "observer"}


# -- what comes in ---------------------------------------------------------------------------------------------------


def test_malformed_frames_are_answered_counted_and_survived(home: Home, stack: ExitStack) -> None:
    home.start()
    peer = stack.enter_context(home.session("alice"))
    head = wire.encode(wire.Ping(1))[1]
    for frames, code in (
        ([wire.SIGNATURE, head, b"x", b"y"], 400),
        ([wire.SIGNATURE, head] + [b""] * 60, 400),
        ([wire.SIGNATURE], 400),
        ([wire.SIGNATURE, head, b"x" * (wire.BODY_MAX + 1)], 413),
        ([wire.SIGNATURE, b"\x80" * (wire.HEAD_MAX + 1)], 413),
        ([wire.SIGNATURE, b"x" * 900_000, b"y" * 900_000, b"z"], 413),
        ([wire.SIGNATURE, b"\xc1"], 400),
    ):
        peer.send(frames)
        told = peer.next()
        assert isinstance(told, wire.Err) and told.code == code, (len(frames), told)
    peer.send([b"TB\x02", head])
    peer.send([b""])
    peer.say(wire.Ping(9))
    assert peer.hear(wire.Pong).k == 9
    counters = stats(stack.enter_context(home.view()))["counters"]
    assert counters["malformed"] == 7 and counters["unsigned"] == 2


def test_a_frame_beyond_the_limit_costs_only_its_sender(home: Home, stack: ExitStack) -> None:
    home.start()
    other = stack.enter_context(home.session("bob"))
    peer = stack.enter_context(home.session("alice"))
    assert peer.news() == "connected"
    peer.send([wire.SIGNATURE, b"x" * (sockets.FRAME_MAX + 1)])
    assert peer.news() == "disconnected"
    other.say(wire.Ping(1))
    assert other.hear(wire.Pong).k == 1


def test_who_has_not_said_hello_is_told_so(home: Home, stack: ExitStack) -> None:
    home.start()
    peer = stack.enter_context(home.peer())
    peer.say(wire.Qry(5, "peers"))
    told = peer.next()
    assert isinstance(told, wire.Err) and (told.code, told.of, told.ref) == (401, "QRY", 5)


def test_a_peer_that_never_reads_holds_up_nobody(home: Home, stack: ExitStack) -> None:
    home.start()
    stuck = stack.enter_context(home.session("stuck"))
    alice, bob = stack.enter_context(home.session("alice")), stack.enter_context(home.session("bob"))
    for i in range(wire.WINDOW + 4):
        alice.post("stuck", f"{i}" * 1000)
    # More answers than the broker's queue and both of the system's take.
    for r in range(1, 3 * sockets.ROUTER_QUEUE):
        try:
            stuck.socket.send_multipart(wire.encode(wire.Qry(r, "stats")), zmq.NOBLOCK)
        except zmq.Again:
            break
    began = time.monotonic()
    alice.post("bob", "on its way")
    assert bob.hear(wire.Msg).body == b"on its way"
    assert time.monotonic() - began < 10


def test_a_turn_takes_many_messages_and_loses_none(home: Home, stack: ExitStack) -> None:
    home.start()
    alice = stack.enter_context(home.session("alice"))
    many = 3 * MESSAGES_A_TURN
    for _ in range(many):
        alice.request("state.set", {"key": "k"}, b"1")
    replies = [alice.hear(wire.Rep) for _ in range(many)]
    assert [r.q for r in replies] == list(range(1, many + 1)) and {r.code for r in replies} == {200}


def test_a_request_below_the_floor_is_answered_from_the_journal(home: Home, stack: ExitStack) -> None:
    home.start()
    alice = stack.enter_context(home.session("alice"))
    first = alice.request("send", {"to": ["bob"], "new": True}, b"once")
    reply = alice.hear(wire.Rep)
    alice.q += 1
    alice.say(wire.Req(alice.q, alice.q, "state.set", "a" * 16, {"key": "k"}, b"1"))
    alice.hear(wire.Rep)
    alice.say(first)
    assert alice.hear(wire.Rep) == reply
    alice.say(wire.Req(1, 2, "send", first.id, {"to": ["bob"]}, b"another"))
    told = alice.next()
    assert isinstance(told, wire.Err) and (told.code, told.ref) == (409, 1)


# -- queries ---------------------------------------------------------------------------------------------------------


def test_slow_and_quick_queries_are_answered(home: Home, stack: ExitStack) -> None:
    home.start()
    alice = stack.enter_context(home.session("alice"))
    ident = alice.post("bob", "the needle in the hay")
    view = stack.enter_context(home.view())
    for what, args, rows in (
        ("why", {"id": ident}, 1),
        ("history", {}, 1),
        ("history", {"peer": "nobody"}, 0),
        ("log", {}, 1),
        ("prune", {"before": 1}, 1),
        ("message", {"id": ident}, 1),
        ("state.list", {}, 0),
    ):
        answer = view.query(what, args, DEADLINE)
        assert (answer.code, len(answer.rows)) == (200 if rows else 204, rows), (what, answer)
        assert answer.seq > 0
    assert view.query("message", {"id": ident}).rows[0][1] == b"the needle in the hay"
    assert view.query("why", {"id": "z" * 16}).code == 404
    assert view.query("inbox").code == 403
    found = wait_for(lambda: view.query("search", {"query": "needle"}).rows, "the message indexed")
    assert found[0][0]["id"] == ident


def test_the_reader_takes_only_so_many_questions(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "bus.db")
    ctx: sockets.Context = zmq.Context()
    gate, entered = threading.Event(), threading.Event()

    class Slow:
        def reader(self) -> Store:
            entered.set()
            assert gate.wait(DEADLINE)
            raise StoreError("no reader today")

    reader = Reader(ctx, Slow())  # type: ignore[arg-type]
    read = Read(b"route", 1, "history", {}, "", "k", "owner")
    try:
        assert reader.ask(read, 1) and entered.wait(DEADLINE)
        assert all(reader.ask(read, 1) for _ in range(reading.WAITING_MAX))
        assert not reader.ask(read, 1)
        reader.measure()
        gate.set()
        assert reader.socket.poll(int(DEADLINE * 1000))
        assert reader.take() == [b"route", b"1", b"503", b"no reader today"]
    finally:
        gate.set()
        reader.close()
        sockets.close_all(ctx, [])
        store.close()
    assert reader.socket.closed


def test_an_answer_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def read(self, read: Read, now: int) -> Iterator[tuple[dict[str, Any], bytes]]:
            yield {"i": 0}, b"x" * 60
            yield {"big": "y" * 5000}, b""
            yield {"i": 1}, b"x" * 60
            yield {"i": 2}, b"x" * 60

    monkeypatch.setattr(reading, "ANSWER_MAX", 120)
    telling = Telling(Full(), Read(b"r", 3, "history", {}, "", "k", "owner"), 1)  # type: ignore[arg-type]
    frames = list(telling.frames())
    assert [wire.decode(f, "S").value for f in frames] == [{"i": 0}, {"i": 1}]
    assert telling.code == 200 and telling.text == "the answer is cut after 2 (ask for fewer at once)"


def test_what_is_old_is_pruned_in_the_background(home: Home, stack: ExitStack) -> None:
    home.start()
    alice, bob = stack.enter_context(home.session("alice")), stack.enter_context(home.session("bob"))
    for _ in range(5):
        alice.post("bob", "old")
        n = bob.hear(wire.Msg).n
        bob.say(wire.Ack([[n, n]], "test"))
    bob.say(wire.Ping(1))
    bob.hear(wire.Pong)
    view = stack.enter_context(home.view())
    assert len(view.query("history").rows) == 5
    now = stats(view)["now"]
    wait_for(lambda: stats(view)["now"] > now + 1, "the next millisecond")
    assert alice.do("prune", {"before": now + 1}).code == 200
    wait_for(lambda: view.query("history").code == 204, "the messages pruned")


AHEAD = "import time; real = time.time_ns; time.time_ns = lambda: real() + 400 * 86_400_000_000_000"


def read_mail(home: Home, stack: ExitStack, count: int) -> None:
    """Messages that were shown."""
    with home.session("alice") as alice, home.session("bob") as bob:
        for _ in range(count):
            alice.post("bob", "old")
            n = bob.hear(wire.Msg).n
            bob.say(wire.Ack([[n, n]], "test"))
        bob.say(wire.Ping(1))
        bob.hear(wire.Pong)


def changed_by_hand(home: Home, *statements: str) -> None:
    with sqlite3.connect(home.paths.bus_db) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def test_a_clock_that_is_far_ahead_prunes_nothing_and_is_told(home: Home, stack: ExitStack) -> None:
    home.start()
    read_mail(home, stack, 3)
    home.stop()
    home.start(before=AHEAD)
    with home.view() as view:
        assert "400 days ahead" in stats(view)["prune_doubt"]
    home.stop()
    assert "400 days ahead" in home.said()
    with sqlite3.connect(home.paths.bus_db) as db:
        (ordered,) = db.execute("SELECT value FROM meta WHERE name = 'prune_before'").fetchone()
    db.close()
    assert ordered < time.time() * 1000
    home.start()
    with home.view() as view:
        assert stats(view)["prune_doubt"] == "" and len(view.query("history").rows) == 3


def test_an_order_of_a_clock_that_was_ahead_does_not_take_todays_mail(home: Home, stack: ExitStack) -> None:
    home.start()
    read_mail(home, stack, 3)
    home.stop()
    day, ahead = 86_400_000, int(time.time() * 1000) + 300 * 86_400_000
    changed_by_hand(
        home,
        f"UPDATE meta SET value = {ahead} WHERE name = 'prune_before'",
        f"UPDATE messages SET ts = ts - {40 * day} WHERE row = 1",
        f"UPDATE messages SET ts = ts - {2 * day} WHERE row = 2",
    )
    home.start()
    view = stack.enter_context(home.view())
    assert "ahead ordered" in stats(view)["prune_doubt"]
    wait_for(lambda: len(view.query("history").rows) < 3, "what is old to be pruned")
    assert len(view.query("history").rows) == 2
    alice = stack.enter_context(home.session("alice"))
    refused = alice.do("prune", {"before": stats(view)["now"]})
    assert refused.code == 409 and "clock" in refused.text


# -- the disk --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit")
def test_a_full_disk_refuses_writes_goes_on_reading_and_recovers(home: Home, stack: ExitStack) -> None:
    home.start()
    assert home.process is not None
    pid = home.process.pid
    alice = stack.enter_context(home.session("alice"))
    kept = alice.post("bob", "kept")
    view = stack.enter_context(home.view())
    events = view.events(["bus.full"], timeout=4 * DEADLINE)
    assert next(events).snapshot is not None
    biggest = max(p.stat().st_size for p in home.paths.state.iterdir())
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (biggest + 65536, resource.RLIM_INFINITY))
    req = told = None
    for _ in range(200):
        req = alice.request("send", {"to": ["bob"]}, b"x" * 20_000)
        told = alice.next()
        if isinstance(told, wire.Err):
            break
    assert isinstance(told, wire.Err) and told.code == 503 and told.retry > 0 and req is not None
    assert told.ref == req.q
    assert view.query("message", {"id": kept}).rows[0][1] == b"kept"
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert any(e.get("over") for news in _until_over(events) for e in news)
    alice.say(req)
    assert alice.hear(wire.Rep).code == 200
    assert stats(view)["counters"]["undone"] >= 1 and "Traceback" not in home.said()
    high = alice.q
    home.kill()
    home.start()
    again = stack.enter_context(home.peer())
    assert again.hello("alice", ob=alice.ob).high == high


def _until_over(events: Iterator[Any]) -> Iterator[list[dict[str, Any]]]:
    """What was undone had numbers, so a gap comes first."""
    for news in events:
        yield news.events
        if any(e.get("over") for e in news.events):
            return


def test_a_broken_disk_ends_the_broker_with_one_line(home: Home, stack: ExitStack) -> None:
    fault = (
        "from bus.store import Store; from bus.errors import StoreError; real = Store.apply\n"
        "def apply(self, writes):\n"
        "    if any(type(w).__name__ == 'PutState' for w in writes): raise StoreError('the disk is on fire')\n"
        "    return real(self, writes)\n"
        "Store.apply = apply"
    )
    home.start(fault)
    alice = stack.enter_context(home.session("alice"))
    alice.request("state.set", {"key": "k"}, b"1")
    assert home.process is not None and home.process.wait(DEADLINE) == 1
    assert home.said().splitlines()[-1].endswith("! the disk is on fire")
    assert published(home.paths) is None


# -- parts -----------------------------------------------------------------------------------------------------------


def test_the_clock_never_runs_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, mono = [10_000_000_000], [0]
    monkeypatch.setattr(time, "time_ns", lambda: wall[0])
    monkeypatch.setattr(time, "monotonic_ns", lambda: mono[0])
    clock = surroundings.Clock()
    assert clock() == 10_000
    wall[0] -= 5_000_000_000
    mono[0] += 100_000_000
    held = clock()
    assert 10_000 <= held <= 10_100
    mono[0] += 1_000_000_000
    assert held + 900 <= clock() <= held + 1000  # time goes on, whatever the wall says
    wall[0] = 50_000_000_000
    assert clock() == 50_000


def test_the_log_tells_ids_and_never_texts(tmp_path: Path, stack: ExitStack) -> None:
    home = stack.enter_context(Home(tmp_path / "bus", TALKBUS_LOG="debug"))
    home.start()
    alice, bob = stack.enter_context(home.session("alice")), stack.enter_context(home.session("bob"))
    alice.post("bob", "a secret that nobody logs")
    bob.hear(wire.Msg)
    home.stop()
    said = home.said()
    assert {line.split()[2] for line in said.splitlines()} >= {"<", ">", "=", "%"}
    assert "secret" not in said and home.keys.secret not in said


def test_files_are_private_from_the_first_byte(home: Home, stack: ExitStack) -> None:
    home.start()
    stack.enter_context(home.session("alice")).post("bob", "x")
    for path in (*home.paths.state.iterdir(), *home.paths.runtime.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path
