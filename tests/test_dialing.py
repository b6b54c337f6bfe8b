"""dialing: a key that is refused is told as not paired and tried again seldom; a new join is a new chance."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from agent.dialing import NOT_PAIRED, NOT_PAIRED_MS, Connection, Dialer
from bus.config import Home, home, load
from bus.joined import Joined, remember
from bus.private import private_dir
from bus.trust import ensure_keys
from tests.test_invitations import KEY


@pytest.fixture
def bus(tmp_path: Path) -> Home:
    made = home({"TALKBUS_HOME": str(tmp_path / "bus")})
    remember(made, Joined("127.0.0.1", 9, 10, KEY, "laptop", 1))
    return made


@pytest.fixture
def dialer(bus: Home) -> Iterator[Dialer]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = Dialer(bus, load(bus, {}), ensure_keys(bus), context, lambda: None, False)
    yield made
    made.close()
    context.destroy(0)


def attempt(dialer: Dialer, now: int) -> str | None:
    """Why there is no connection; None when one was made."""
    dialer.dial(now)
    dialer.work(now)
    found = dialer.take()
    if isinstance(found, Connection):
        found.close()
        return None
    return found


def test_a_refused_key_is_left_alone_longer_each_time(dialer: Dialer) -> None:
    now, tried = 0, []
    while now < 600_000:
        if attempt(dialer, now) is None:
            tried.append(now)
            dialer.refused(now, NOT_PAIRED)
        now += 1000
    waits = [b - a for a, b in itertools.pairwise(tried)]
    assert len(tried) < 20 and waits[0] >= NOT_PAIRED_MS[0] * 0.75 and max(waits) <= NOT_PAIRED_MS[1] * 1.25 + 1000
    assert waits[-1] > 40_000 and "not paired" in (attempt(dialer, tried[-1] + 1) or "")


def test_a_new_join_and_another_reason_are_new_chances(dialer: Dialer, bus: Home) -> None:
    assert attempt(dialer, 0) is None
    dialer.refused(0, NOT_PAIRED)
    assert attempt(dialer, 1) == NOT_PAIRED
    remember(bus, Joined("127.0.0.1", 9, 10, KEY, "laptop", 2))
    assert attempt(dialer, 2) is None
    dialer.refused(2, NOT_PAIRED)
    assert attempt(dialer, 3) == NOT_PAIRED
    dialer.refused(3, "the broker hung up")
    assert attempt(dialer, 4) is None


def test_a_broken_join_is_the_reason_and_no_crash(dialer: Dialer, bus: Home) -> None:
    private_dir(bus.state)
    (bus.state / "hub.json").write_text("{")
    assert "lan leave" in (attempt(dialer, 0) or "")


def test_an_address_that_is_none_is_the_reason_and_no_crash(dialer: Dialer, bus: Home) -> None:
    remember(bus, Joined("no such host", 9, 10, KEY, "laptop", 3))
    assert "cannot be reached" in (attempt(dialer, 0) or "")
