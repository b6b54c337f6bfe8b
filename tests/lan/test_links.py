"""What happens to links between hosts: cut, slow, gone, moved. Nothing is lost, nothing comes twice, order is kept.

TALKBUS_LAN_FULL=1 makes the long run the full one: 10,000 messages, 20 cuts, the hub killed 5 times.
"""

from __future__ import annotations

import json
import os
import random
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lan.net import Host, Net, pair
from tests.live.homes import wait_for
from tests.live.worker import Worker, judge, wait_on

FULL = bool(os.environ.get("TALKBUS_LAN_FULL"))
PATIENCE = 900.0 if FULL else 60.0

pytestmark = pytest.mark.timeout(1200 if FULL else 120)


def worker(host: Host, folder: Path, role: str, name: str, **options: object) -> Worker:
    """A real agent's loop on this host."""
    return Worker(host.environ, folder, role, name, before=host.before, **options)


def recipient(stack: ExitStack, hub: Host, folder: Path) -> Worker:
    """bob at the hub, whose mailbox is there: else who is quicker opens a mailbox of that name with his own key."""
    bob = stack.enter_context(worker(hub, folder, "receive", "bob"))
    wait_for(lambda: "bob" in [row["name"] for row in hub.json("peers")], "bob on the bus", PATIENCE)
    return bob


def finished(sender: Worker, recipient: Worker, count: int) -> None:
    def done() -> bool:
        return len({line[0] for line in recipient.lines("shown")}) >= count and bool(sender.lines("done"))

    wait_on([sender, recipient], done, f"{count} messages shown", PATIENCE)


def test_cable_out_and_in_another_address_and_a_hub_that_moves(net: Net, root: Path, stack: ExitStack) -> None:
    hub, laptop = net.host("hub", root), net.host("laptop", root)
    pair(hub, laptop)
    count = 120
    bob = recipient(stack, hub, root / "w")
    alice = stack.enter_context(worker(laptop, root / "w", "send", "alice", to="bob", count=count, pace=0.05))
    for at, fault in ((10, "cable"), (40, "member moves"), (70, "hub moves")):
        shown = f"{at} shown, then: {fault}"
        wait_on([bob, alice], lambda at=at: len(bob.lines("shown")) >= at, shown, PATIENCE)  # type: ignore[misc]
        if fault == "cable":
            laptop.plug(False)
            before = len(alice.lines("accepted"))
            wait_for(lambda before=before: len(alice.lines("accepted")) > before + 3, "rows taken while it is out")  # type: ignore[misc]
            laptop.plug(True)
        elif fault == "member moves":
            laptop.move("10.77.0.77")
        else:
            hub.kill_broker()
            hub.move("10.77.0.99")
            hub.talkbus("up")
            assert laptop.talkbus("lan", "hub", "10.77.0.66", code=3)  # nobody there: nothing is changed
            laptop.talkbus("lan", "hub", hub.address)  # and the agent that runs finds it
    finished(alice, bob, count)
    verdict = judge([alice], bob)
    assert (verdict.accepted, verdict.shown, verdict.repeats) == (count, count, 0)


def test_a_hub_of_another_key_at_the_same_address_gets_nothing(net: Net, root: Path) -> None:
    hub, laptop, thief = (net.host(name, root) for name in ("hub", "laptop", "thief"))
    pair(hub, laptop)
    thief.talkbus("lan", "up", "--port", str(hub.port))
    assert "nobody answers" in laptop.talkbus("lan", "hub", thief.address, code=3)
    hub.plug(False)
    thief.move(hub.address)
    told = laptop.talkbus("send", "api@hub", "for the hub only", "--as", "web")
    assert "queued" in told
    assert thief.json("status")["waiting"] == 0
    assert [row["host"] for row in thief.json("lan", "peers")] == ["thief"]


def test_a_long_run_over_a_link_that_is_cut_and_a_hub_that_is_killed(net: Net, root: Path, stack: ExitStack) -> None:
    count, cuts, kills = (10_000, 20, 5) if FULL else (400, 6, 2)
    rng = random.Random(4)
    hub, laptop = net.host("hub", root), net.host("laptop", root)
    pair(hub, laptop)
    port = hub.port
    relay = stack.enter_context(net.relay(hub, port, delay=0.001))
    _through(laptop, net.RELAY, relay.port)
    bob = recipient(stack, hub, root / "w")
    pace, batch = (0.02, 8) if FULL else (0.02, 2)
    alice = stack.enter_context(
        worker(laptop, root / "w", "send", "alice", to="bob", count=count, pace=pace, batch=batch)
    )
    faults = ["cut"] * cuts + ["kill"] * kills
    rng.shuffle(faults)
    for number, fault in enumerate(faults):
        at = (number + 1) * count // (len(faults) + 2)
        wait_on([bob, alice], lambda at=at: len(bob.lines("shown")) >= at, f"{at} shown", PATIENCE)  # type: ignore[misc]
        if fault == "cut":
            before = relay.accepted
            wait_for(relay.reset, "a connection to cut")
            wait_for(lambda before=before: relay.accepted > before, "a new connection", 30)  # type: ignore[misc]
        else:
            hub.kill_broker()
            hub.talkbus("up")
            assert hub.port == port
    finished(alice, bob, count)
    verdict = judge([alice], bob)
    print(f"{count} messages, {cuts} cuts, {kills} kills: {verdict}")
    assert (verdict.accepted, verdict.shown, verdict.repeats) == (count, count, 0)
    assert relay.accepted > cuts


def _through(member: Host, address: str, port: int) -> None:
    """The hub by another way: a relay in between."""
    member.talkbus("lan", "hub", f"{address}:{port}")
    assert json.loads((member.paths.state / "hub.json").read_text())["host"] == address


def test_an_agent_that_runs_is_told_not_paired_and_comes_back_when_it_is(
    net: Net, root: Path, stack: ExitStack
) -> None:
    hub, laptop, desk = (net.host(name, root) for name in ("hub", "laptop", "desk"))
    pair(hub, laptop, desk)
    bob = recipient(stack, hub, root / "w")
    wait_for(bob.awake, "bob")
    honest = stack.enter_context(worker(desk, root / "w", "send", "honest", to="bob", count=150, pace=0.03))
    alice = stack.enter_context(worker(laptop, root / "w", "send", "alice", to="bob", count=400, pace=0.03))
    wait_for(lambda: len(bob.lines("shown")) >= 20, "traffic of both")

    def heard() -> int:
        """What the hub has done for the laptop, as its journal says."""
        return sum(row["who"] == "alice@laptop" for row in hub.json("log", "--limit", "500"))

    hub.talkbus("lan", "revoke", "laptop")
    taken = heard()
    assert taken >= 5
    wait_for(lambda: bool(honest.lines("done")), "the honest one unharmed", PATIENCE)
    assert heard() == taken, "a revoked machine was heard"
    assert "not paired" in laptop.tried("status").stderr
    laptop.talkbus("lan", "join", hub.talkbus("lan", "invite").strip())
    finished(alice, bob, 550)
    verdict = judge([alice, honest], bob)
    assert (verdict.shown, verdict.repeats) == (550, 0)
