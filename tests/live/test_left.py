"""What a run without a user left unsent: sent by whoever is connected next, once, also when that is cut off."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import left
from agent.person import Person
from agent.seats import Seat, every
from agent.session import Session
from bus import wire
from bus.config import load
from bus.daemon import published
from bus.trust import ensure_keys
from tests.live.homes import Peer
from tests.live.test_mcp_bed import Bed, bed, bodies, environment, until
from tests.live.test_mcp_process import Raw

pytestmark = [pytest.mark.timeout(60), pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")]

RUN = {"CLAUDE_CODE_ENTRYPOINT": "sdk-cli"}


@pytest.fixture
def raws() -> Iterator[list[Raw]]:
    made: list[Raw] = []
    yield made
    for raw in made:
        raw.end()


def start(raws: list[Raw], bus: Bed, name: str, **more: str) -> Raw:
    raws.append(Raw(bus, name, None, **more))
    return raws[-1].hello()


def peer(bus: Bed, name: str) -> Peer:
    """Somebody who speaks as this mailbox, which is made if need be."""
    record = published(bus.home)
    assert record is not None
    made = Peer(record.router, record.key, ensure_keys(bus.home))
    made.hello(name, mode="send")
    return made


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bed]:
    """Alice was there once; then the broker was killed."""
    with bed(tmp_path / "bus") as made:
        made.stop_mark()
        peer(made, "alice").close()
        made.kill()
        yield made


def leave(raw: Raw) -> None:
    assert raw.process.stdin is not None
    raw.process.stdin.close()
    assert raw.process.wait(5) == 0


def seat_of_run(bus: Bed) -> Seat:
    (seat,) = [seat for seat in every(bus.home) if "-run-" in seat.name]
    return seat


def write_in_a_run(raws: list[Raw], bus: Bed, end: str = "orderly") -> Seat:
    """A run writes while the bus is down, and ends."""
    run = start(raws, bus, "job", **RUN)
    assert "queued" in run.call("send_message", to="alice", body="from the run")
    if end == "orderly":
        leave(run)
    else:
        run.process.kill()
        run.process.wait(5)
    return seat_of_run(bus)


def write_here(bus: Bed) -> Seat:
    """The same in this process."""
    run = Session(bus.home, load(bus.home, {}), {**RUN, "CLAUDE_PROJECT_DIR": str(bus.root)})
    run.start()
    run.loop.submit("send", {"to": ["alice"]}, b"from the run")
    run.stop(0.1)
    return seat_of_run(bus)


def sent(bus: Bed) -> list[tuple[str, str]]:
    """Every message the broker has: from whom, and the text."""
    with peer(bus, "looker") as looking:
        looking.say(wire.Qry(1, "history", {}))
        found = []
        while isinstance(part := looking.next(), wire.Part):
            found.append((str(part.value["from"]), part.body.decode()))
        return found


@pytest.mark.parametrize("end", ["orderly", "killed"])
def test_the_next_agent_sends_it(bus: Bed, raws: list[Raw], end: str) -> None:
    seat = write_in_a_run(raws, bus, end)
    assert left.unsettled(seat) == 1
    bus.up()
    reader = start(raws, bus, "alice")
    text = reader.call("check_messages", wait_s=10)
    assert bodies(text) == ["from the run"] and seat.name in text
    until(lambda: not list(left.marked(bus.home)))
    assert left.unsettled(seat) == 0
    assert sent(bus) == [(seat.name, "from the run")]


def test_an_agent_sends_it_that_lived_through_the_outage(bus: Bed, raws: list[Raw]) -> None:
    bus.up()
    reader = start(raws, bus, "alice")
    reader.call("set_status")
    bus.kill()
    write_in_a_run(raws, bus)
    bus.up()
    assert bodies(reader.call("check_messages", wait_s=10)) == ["from the run"]


def test_the_next_command_sends_it(bus: Bed) -> None:
    seat = write_here(bus)
    bus.up()
    command = [sys.executable, "-m", "talkbus", "peers", "--json"]
    subprocess.run(command, env=environment(bus.root), check=True, capture_output=True, timeout=30)
    assert sent(bus) == [(seat.name, "from the run")]
    assert not list(left.marked(bus.home))


def test_cut_off_anywhere_it_is_sent_once(bus: Bed, tmp_path: Path) -> None:
    """The broker did it, and whoever sent it died before he could write that down."""
    seat = write_here(bus)
    config = load(bus.home, {})
    assert not left.empty(bus.home, config, seat.folder), "there is no broker"
    assert [who.kind for _, who in left.marked(bus.home)] == [left.RUN]
    before = tmp_path / "before"
    shutil.copytree(seat.folder, before)
    bus.up()
    assert left.empty(bus.home, config, seat.folder)
    assert sent(bus) == [(seat.name, "from the run")]
    shutil.rmtree(seat.folder)
    shutil.copytree(before, seat.folder)
    assert left.unsettled(seat) == 1
    assert left.empty(bus.home, config, seat.folder)
    assert left.unsettled(seat) == 0 and not list(left.marked(bus.home))
    assert sent(bus) == [(seat.name, "from the run")]


def test_a_seat_in_use_is_left_alone(bus: Bed) -> None:
    seat = write_here(bus)
    bus.up()
    assert seat.lock.acquire()
    assert left.empty(bus.home, load(bus.home, {}), seat.folder), "the next seat may be looked at"
    assert left.unsettled(seat) == 1 and sent(bus) == []
    assert [who.kind for _, who in left.marked(bus.home)] == [left.RUN]
    seat.lock.release()


def test_what_was_answered_leaves_no_mark(bus: Bed, raws: list[Raw]) -> None:
    bus.up()
    run = start(raws, bus, "job", **RUN)
    assert "stored" in run.call("send_message", to="alice", body="from the run")
    assert [who.kind for _, who in left.marked(bus.home)] == [left.RUN], "a run that is killed must be found"
    leave(run)
    assert not list(left.marked(bus.home))


def test_the_seats_of_callers_are_theirs(bus: Bed) -> None:
    """A mark of a script is none of a run's."""
    config = load(bus.home, {})
    person = Person(bus.home, config, "ci", "script")
    assert person.submit("send", {"to": ["alice"], "new": True}, b"from a script").queued
    sweep = left.Sweep(bus.home, config)
    bus.up()
    sweep.begin()
    sweep.join(10)
    assert sent(bus) == []
    person.drain()
    assert sent(bus) == [("ci", "from a script")]
