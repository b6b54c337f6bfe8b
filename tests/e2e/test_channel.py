"""The opt-in path by channel notification, in the real client: it wakes, it is offered and no more, it loses nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .api import FakeApi
from .buses import Bus, call
from .messages import tool_use
from .session import Home, Tui

pytestmark = pytest.mark.e2e

DEVELOPMENT = ("--dangerously-load-development-channels", "server:talkbus")


@pytest.fixture
def bus(home: Home) -> Iterator[Bus]:
    with Bus(home, native=False) as made:
        made.run("config", "set", "delivery.channel", "true")
        yield made


def listening(bus: Bus, name: str) -> Tui:
    """A session whose client takes channels: its vendor's switch is on, and its user said yes at the start."""
    home = bus.home
    home.state(cachedGrowthBookFeatures={"tengu_harbor": True})
    env = {**bus.env, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": None}
    tui = home.start(home.project(name), *bus.arguments, *DEVELOPMENT, env=env)
    tui.wait_screen("development")
    tui.submit()
    tui.wait_ready()
    bus.reachable(tui, "channel")
    return tui


def test_it_wakes_an_idle_session_and_is_only_offered_until_the_model_answered(
    api: FakeApi, home: Home, bus: Bus
) -> None:
    bob = listening(bus, "bob")
    turn = api.on("look at the tests", "I shall", hold=True)
    ident = bus.send("bob", "look at the tests")
    request = api.wait(ident)
    assert '<channel source="talkbus"' in request.new
    bus.wait_why(ident, "bob", "offered")
    assert [status for status, _ in bus.why(ident, "bob")] == ["stored", "offered"]
    turn.release()
    bus.shown_once(ident, "bob", "bob")
    bob.wait_idle()
    assert len(api.requests) == 1


def test_a_busy_session_gets_it_once_and_in_order(api: FakeApi, home: Home, bus: Bus) -> None:
    bob = listening(bus, "bob")
    tool = tool_use("Bash", command="echo heron | tr a-z A-Z", description="say it")
    turn = api.on("please say it", tool, hold=True)
    bob.submit("please say it")
    api.wait("please say it")
    idents = [bus.send("bob", f"number {n}") for n in range(5)]
    bus.wait_why(idents[0], "bob", "offered")
    turn.release()
    for ident in idents:
        bus.shown_once(ident, "bob", "bob")
    assert [ident for some in bus.ids("bob") for ident in some] == idents


def test_a_client_that_drops_it_loses_nothing(api: FakeApi, home: Home, bus: Bus) -> None:
    """Switched on here, and not in the client, which says nothing about it: the next tool result carries it."""
    bob = bus.tui(home.project("bob"), wake="channel")
    ident = bus.send("bob", "look at the tests")
    bus.wait_why(ident, "bob", "offered")
    bus.reachable(bob, "tools")
    api.on("please look", call("list_peers"))
    bob.submit("please look")
    request = bus.shown_once(ident, "bob", "bob")
    assert "possible repeat" in request.new and len(bus.showings(ident)) == 1
