"""client: a view finds its broker, asks, follows the events without a hole, and says why when it cannot."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq

from bus import client, config, wire
from bus.client import News, View, _Stream
from bus.errors import Code, Refused, Unreachable
from bus.private import private_dir, write_private
from bus.trust import roll_file
from tests.live.homes import DEADLINE, Home

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes")]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(tmp_path / "bus") as made:
        yield made


def hub_of(home: Home) -> str:
    return f"{home.record.router.removeprefix('tcp://')}#{home.record.key}"


def guest(tmp_path: Path, hub: str) -> Home:
    return Home(tmp_path / "guest", TALKBUS_HUB=hub)


# -- finding a broker ------------------------------------------------------------------------------------------------


def test_no_broker_is_said_at_once_and_none_is_started(home: Home) -> None:
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"no broker is running \(start it with 'talkbus up'\)"):
        View.open(home.paths, home.config)
    assert time.monotonic() - began < 2 and not home.paths.lock.exists()


def test_a_bus_that_was_stopped_is_said_to_be(home: Home) -> None:
    private_dir(home.paths.state)
    write_private(home.paths.stop_mark, b"")
    with pytest.raises(Unreachable, match="talkbus down"):
        View.open(home.paths, home.config)


def test_a_record_that_leads_nowhere_is_unreachable(home: Home) -> None:
    home.start()
    gone = replace(home.config, hub=f"127.0.0.1:1#{home.record.key}")
    with pytest.raises(Unreachable, match=r"nobody answers at tcp://127\.0\.0\.1:1 "):
        View.open(home.paths, gone)


def test_a_broker_with_another_key_is_not_talked_to(home: Home) -> None:
    home.start()
    public, _ = zmq.curve_keypair()
    other = replace(home.config, hub=f"{home.record.router.removeprefix('tcp://')}#{public.decode()}")
    with pytest.raises(Unreachable, match="its key is another"):
        View.open(home.paths, other)


def test_a_key_that_is_not_paired_is_refused(home: Home, tmp_path: Path) -> None:
    home.start()
    far = guest(tmp_path, hub_of(home))
    with pytest.raises(Refused, match="not paired") as raised:
        View.open(far.paths, far.config, DEADLINE)
    assert raised.value.code == Code.FORBIDDEN


def test_a_paired_machine_looks_at_the_hub(home: Home, tmp_path: Path, stack: ExitStack) -> None:
    far = guest(tmp_path, "")
    entry = f'[[key]]\npublic = "{far.keys.public}"\nlabel = "far"\nrole = "member"\n'
    assert home.keys
    write_private(roll_file(home.paths), entry.encode())
    home.start()
    far = guest(tmp_path, hub_of(home))
    view = stack.enter_context(View.open(far.paths, far.config, DEADLINE))
    assert view.query("whoami").rows == [({"name": "", "host": "far", "role": "member"}, b"")]
    assert next(view.events(timeout=DEADLINE)).snapshot is not None


def test_a_broker_that_is_mute_is_given_up_in_time(home: Home) -> None:
    home.start("from bus.server import Shell; Shell._drain = lambda self: None")
    began = time.monotonic()
    with pytest.raises(Unreachable, match="does not answer"):
        View.open(home.paths, home.config, timeout=0.3)
    assert 0.25 < time.monotonic() - began < 5


# -- queries ---------------------------------------------------------------------------------------------------------


def test_an_answer_has_rows_code_and_number(home: Home, stack: ExitStack) -> None:
    home.start()
    view = stack.enter_context(home.view())
    answer = view.query("peers", {"all": True})
    assert (answer.rows, answer.code, answer.text) == ([], 200, "") and answer.seq >= 1
    refused = view.query("state.get", {"key": "nothing"})
    assert (refused.rows, refused.code) == ([], 404) and "nothing" in refused.text
    assert view.query("nonsense").code == 422


def test_a_query_survives_a_restart_of_the_broker(home: Home, stack: ExitStack) -> None:
    home.start()
    view = stack.enter_context(home.view())
    assert view.query("whoami").code == 200
    home.kill()
    with pytest.raises(Unreachable):
        view.query("whoami", timeout=0.2)
    home.start()
    assert view.query("whoami", timeout=DEADLINE).code == 200


def test_a_session_the_broker_forgot_is_opened_again(home: Home, stack: ExitStack) -> None:
    home.start()
    view = stack.enter_context(home.view())
    assert view._line is not None
    view._line._send(wire.Bye())
    assert view.query("whoami", timeout=DEADLINE).code == 200


def test_close_can_be_called_twice(home: Home) -> None:
    home.start()
    with home.view() as view:
        view.close()
    assert view._ctx.closed


# -- events ----------------------------------------------------------------------------------------------------------


def test_events_follow_the_snapshot(home: Home, stack: ExitStack) -> None:
    home.start()
    alice = stack.enter_context(home.session("alice"))
    view = stack.enter_context(home.view())
    events = view.events(timeout=DEADLINE)
    joined = next(events)
    assert joined.snapshot is not None and not joined.gap and not joined.events
    assert [p["name"] for p in joined.snapshot["peers"]] == ["alice"]
    sent = alice.post("bob", "x")
    told = next(events).events
    while told[-1]["event"] != "stored":
        told += next(events).events
    assert [e["seq"] for e in told] == list(range(joined.snapshot["seq"] + 1, told[-1]["seq"] + 1))
    assert {e["boot"] for e in told} == {joined.snapshot["boot"]}
    last = told[-1]
    assert (last["class"], last["id"], last["from"], last["to"], last["size"]) == ("msg", sent, "alice", "bob", 1)


def test_topics_choose_and_time_ends(home: Home, stack: ExitStack) -> None:
    home.start()
    alice = stack.enter_context(home.session("alice"))
    view = stack.enter_context(home.view())
    events = view.events(["state.set"], timeout=1.0)
    next(events)
    alice.post("bob", "x")
    alice.do("state.set", {"key": "a"}, b"1")
    alice.do("state.delete", {"key": "a"})
    rest = list(events)
    assert [(e["class"], e["event"]) for news in rest for e in news.events] == [("state", "set")]


def test_a_view_may_ask_between_two_events(home: Home, stack: ExitStack) -> None:
    home.start()
    alice = stack.enter_context(home.session("alice"))
    view = stack.enter_context(home.view())
    events = view.events(["state."], timeout=DEADLINE)
    next(events)
    for value in (b"1", b"2"):
        alice.do("state.set", {"key": "k"}, value)
        assert next(events).events[0]["key"] == "k"
        assert view.query("state.get", {"key": "k"}).rows[0][1] == value


def test_joining_while_events_stream_leaves_no_hole(home: Home, stack: ExitStack) -> None:
    home.start()
    home.settings("")
    writer = stack.enter_context(home.session("writer"))
    done = threading.Event()
    last: list[int] = []

    def write() -> None:
        while not done.is_set():
            rep = writer.do("state.set", {"key": f"k{writer.q % 7}"}, b"1")
            last[:] = [rep.result["ver"]]

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(8):
            with home.view() as view:
                _no_hole(view.events(timeout=DEADLINE), 40)
    finally:
        done.set()
        thread.join(DEADLINE)
    with home.view() as view:
        snapshot = next(view.events(timeout=DEADLINE)).snapshot
        assert snapshot is not None and max(s["ver"] for s in snapshot["state"]) == last[0]


def _no_hole(events: Iterator[News], count: int) -> None:
    joined = next(events)
    assert joined.snapshot is not None
    seq = joined.snapshot["seq"]
    # A version is the number of the operation, and nothing but state.set happens: each is one more than the last.
    ver = max((s["ver"] for s in joined.snapshot["state"]), default=0)
    seen = 0
    for news in events:
        assert not news.gap and news.snapshot is None
        for event in news.events:
            assert event["seq"] > seq
            seq = event["seq"]
            if event["class"] == "state":
                assert ver == 0 or event["ver"] == ver + 1
                ver = event["ver"]
                seen += 1
        if seen >= count:
            return
    raise AssertionError(f"only {seen} events came")


def test_a_restart_is_a_gap_and_is_joined_anew(home: Home, stack: ExitStack) -> None:
    home.start()
    view = stack.enter_context(home.view())
    events = view.events(["state."], timeout=3 * DEADLINE)
    first = next(events)
    home.kill()
    home.start()
    alice = stack.enter_context(home.session("alice"))
    again = next(events)
    assert again.gap and again.snapshot is not None and first.snapshot is not None
    assert again.snapshot["boot"] != first.snapshot["boot"]
    alice.do("state.set", {"key": "k"}, b"1")
    assert next(events).events[0]["key"] == "k"


def test_a_missing_event_is_a_gap(home: Home, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    home.start()
    alice = stack.enter_context(home.session("alice"))
    view = stack.enter_context(home.view())
    lost: list[dict[str, Any]] = []
    real = _Stream._next

    def lossy(stream: _Stream) -> dict[str, Any] | None:
        event = real(stream)
        if event is not None and event["class"] == "state" and not lost:
            lost.append(event)
            return real(stream)
        return event

    events = view.events(["state."], timeout=DEADLINE)
    next(events)
    monkeypatch.setattr(_Stream, "_next", lossy)
    for key in ("a", "b"):
        alice.do("state.set", {"key": key}, b"1")
    news = next(events)
    assert lost and news.gap and news.snapshot is not None
    assert {s["key"] for s in news.snapshot["state"]} == {"a", "b"}


def test_the_last_event_missing_is_found_by_asking(
    home: Home, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.start()
    monkeypatch.setattr(client, "IDLE_S", 0.1)
    monkeypatch.setattr(client, "LATE_S", 0.1)
    alice = stack.enter_context(home.session("alice"))
    view = stack.enter_context(home.view())
    events = view.events(["state."], timeout=DEADLINE)
    next(events)
    real, deaf = _Stream._next, [True]

    def lossy(stream: _Stream) -> dict[str, Any] | None:
        event = real(stream)
        if event is not None and event["class"] == "state" and deaf:
            deaf.clear()
            return real(stream)
        return event

    monkeypatch.setattr(_Stream, "_next", lossy)
    alice.do("state.set", {"key": "a"}, b"1")
    news = next(events)
    assert news.gap and news.snapshot is not None and [s["key"] for s in news.snapshot["state"]] == ["a"]


def test_events_of_no_broker_are_unreachable(home: Home, stack: ExitStack) -> None:
    home.start()
    view = stack.enter_context(home.view())
    view._timeout = 0.2
    home.kill()
    with pytest.raises(Unreachable):
        next(view.events())


def test_what_is_no_event_is_passed_over(home: Home, stack: ExitStack) -> None:
    ctx: zmq.Context[Any] = stack.enter_context(zmq.Context())
    pub, sub = ctx.socket(zmq.PAIR), ctx.socket(zmq.PAIR)
    stack.callback(sub.close, 0)
    stack.callback(pub.close, 0)
    pub.bind("inproc://events")
    sub.connect("inproc://events")
    stream = _Stream()
    stream._socket = sub
    good = wire.pack({"seq": 3, "boot": "b"})
    for frames in (
        [b"msg.stored", wire.SIGNATURE],
        [b"msg.stored", b"TB\x02", good],
        [b"msg.stored", wire.SIGNATURE, b"\xc1"],
        [b"msg.stored", wire.SIGNATURE, wire.pack({"seq": "3", "boot": "b"})],
        [b"\xff\xff", wire.SIGNATURE, good],
        [b"msg.stored", wire.SIGNATURE, good],
    ):
        pub.send_multipart(frames)
    assert stream._next() == {"seq": 3, "boot": "b", "class": "msg", "event": "stored"}
    assert stream._next() is None


def test_the_hub_of_a_view_has_its_activity_one_port_above(home: Home) -> None:
    far = replace(home.config, hub="[::1]:7800#" + "0" * 40)
    view = View(home.paths, far, 1.0)
    try:
        assert view._find()[1:3] == ("tcp://[::1]:7800", "tcp://[::1]:7801")
        assert config.parse_hub(far.hub).port == 7800
    finally:
        view.close()
