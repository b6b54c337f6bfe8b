"""Processes killed, links cut, ports swapped: nothing lost, nothing shown twice without cause, order kept."""

from __future__ import annotations

import random
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from bus.client import View
from tests.live.homes import Home, Peer, free_pair, wait_for
from tests.live.relay import Relay
from tests.live.worker import Worker, judge, wait_on

pytestmark = [pytest.mark.timeout(150), pytest.mark.skipif(sys.platform == "win32", reason="signals and resets")]

PATIENCE = 60.0  # seconds, for a whole run on a loaded machine


def _until_shown(home: Home, recipient: Worker, senders: list[Worker], count: int) -> None:
    """Every sender has its answers, everything was shown, and the broker knows it."""

    def done() -> bool:
        shown = {line[0] for line in recipient.lines("shown")}
        return len(shown) >= count and all(sender.lines("done") for sender in senders)

    wait_on([recipient, *senders], done, f"{count} messages shown", PATIENCE)
    with home.view() as view:

        def unread() -> list[int]:
            rows = view.query("peers", {"all": True}).rows
            return [peer["unread"] for peer, _ in rows if peer["name"] == recipient.name]

        wait_for(lambda: unread() == [0], "the mailbox empty", PATIENCE)


# -- kill ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_broker_senders_and_recipient_killed_at_random(
    home: Home, stack: ExitStack, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    count = 150
    home.start()
    senders = [
        stack.enter_context(Worker(home.environ, tmp_path, "send", name, to="bob", count=count, pace=0.02))
        for name in ("alice", "carol")
    ]
    bob = stack.enter_context(Worker(home.environ, tmp_path, "receive", "bob", seed=seed, pace=0.005))
    # Each kill waits for so much progress of its own kind, so it strikes in the middle of the work.
    kills = [(at, "broker") for at in rng.sample(range(10, 280), 4)]
    kills += [(at, "bob") for at in rng.sample(range(10, 280), 5)]
    kills += [(at, name) for name in ("alice", "carol") for at in rng.sample(range(10, 280), 3)]
    for at, victim in sorted(kills):
        shown = f"{at} shown, to kill {victim}"
        wait_on([bob, *senders], lambda at=at: len(bob.lines("shown")) >= at, shown, PATIENCE)  # type: ignore[misc]
        if victim == "broker":
            home.kill()
            home.start()
        else:
            worker = {"bob": bob, "alice": senders[0], "carol": senders[1]}[victim]
            wait_for(worker.awake, f"{victim} at work")
            worker.kill()
            worker.start()
    _until_shown(home, bob, senders, 2 * count)
    verdict = judge(senders, bob)
    assert verdict.shown == 2 * count and bob.lives == 6 and bob.awake()
    assert "Traceback" not in home.said()


# -- cut -------------------------------------------------------------------------------------------------------------


def test_a_link_cut_ten_times_in_the_middle_of_traffic(home: Home, stack: ExitStack, tmp_path: Path) -> None:
    rng = random.Random(7)
    count, cuts = 400, 10
    record = home.start()
    port = int(record.router.rsplit(":", 1)[1])
    relays = [stack.enter_context(Relay(("127.0.0.1", port))) for _ in range(2)]
    hubs = [{**home.environ, "TALKBUS_HUB": f"127.0.0.1:{relay.port}#{record.key}"} for relay in relays]
    alice = stack.enter_context(Worker(hubs[0], tmp_path, "send", "alice", to="bob", count=count, pace=0.03))
    bob = stack.enter_context(Worker(hubs[1], tmp_path, "receive", "bob"))
    for turn in range(cuts):
        at = (turn + 1) * count // (cuts + 2) + rng.randrange(-8, 8)
        wait_on([bob, alice], lambda at=at: len(bob.lines("shown")) >= at, f"{at} shown", PATIENCE)  # type: ignore[misc]
        if turn in (3, 7):
            # Both ends in one go, for it takes the heartbeat some seconds to find out. The sender may be through by
            # now, for nothing holds it up while the recipient's link is stalled.
            before = [relay.accepted for relay in relays]
            relays[0].stall(up=True, down=turn == 3)
            wait_for(lambda turn=turn: relays[1].stall(up=turn == 3, down=True), "a connection to stall")  # type: ignore[misc]
            for relay, had in zip(relays, before, strict=True):
                wait_for(
                    lambda relay=relay, had=had: relay.accepted > had or (relay is relays[0] and alice.lines("done")),  # type: ignore[misc]
                    "a new connection",
                    30,
                )
        else:
            wait_for(lambda turn=turn: relays[turn % 2].reset() or relays[1].reset(), "a connection to cut")  # type: ignore[misc]
    _until_shown(home, bob, [alice], count)
    verdict = judge([alice], bob)
    assert (verdict.accepted, verdict.shown, verdict.repeats) == (count, count, 0)
    assert all(relay.accepted >= 5 for relay in relays)


# -- ports -----------------------------------------------------------------------------------------------------------


def test_two_homes_that_swap_ports_never_meet(tmp_path: Path, stack: ExitStack) -> None:
    ports = [free_pair()]
    while (other := free_pair()) in ports:
        continue
    ports.append(other)
    homes = [stack.enter_context(Home(tmp_path / f"home{i}", TALKBUS_PORT=str(port))) for i, port in enumerate(ports)]
    count = 120
    records = [home.start() for home in homes]
    crews = [
        (
            stack.enter_context(
                Worker(home.environ, tmp_path / f"crew{i}", "send", "alice", to="bob", count=count, pace=0.02)
            ),
            stack.enter_context(Worker(home.environ, tmp_path / f"crew{i}", "receive", "bob")),
        )
        for i, home in enumerate(homes)
    ]
    wait_for(lambda: all(len(bob.lines("shown")) >= 20 for _, bob in crews), "traffic on both", PATIENCE)
    for home in homes:
        home.kill()
    homes[0].environ["TALKBUS_PORT"], homes[1].environ["TALKBUS_PORT"] = str(ports[1]), str(ports[0])
    again = [home.start() for home in homes]
    assert [r.router for r in again] == [r.router for r in reversed(records)]
    for i, home in enumerate(homes):
        # What still believes the former record finds a stranger there, and says nothing to him.
        stale = stack.enter_context(home.peer())
        assert stale.news() == "connected"
        lost = stack.enter_context(Peer(records[i].router, records[i].key, home.keys))
        assert lost.news() != "connected"
    for home, (alice, bob) in zip(homes, crews, strict=True):
        _until_shown(home, bob, [alice], count)
        verdict = judge([alice], bob)
        assert (verdict.accepted, verdict.shown, verdict.repeats) == (count, count, 0)
    told = [{ident for ident, _ in alice.lines("accepted")} for alice, _ in crews]
    shown = [{line[0] for line in bob.lines("shown")} for _, bob in crews]
    assert told == shown and not told[0] & told[1]


# -- a long absence --------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_five_thousand_queued_while_the_broker_was_away_drain_at_the_default_rate(
    home: Home, stack: ExitStack, tmp_path: Path
) -> None:
    count = 5000
    home.start()
    assert home.stop() == 0
    alice = stack.enter_context(Worker(home.environ, tmp_path, "send", "alice", to="bob", count=count, batch=100))
    wait_for(lambda: len(alice.lines("accepted")) == count, "all queued on disk", PATIENCE)
    assert not alice.lines("settled")
    home.start()
    bob = stack.enter_context(Worker(home.environ, tmp_path, "receive", "bob"))
    wait_for(lambda: len(bob.lines("proved")) >= count, "all shown", 200)
    wait_for(lambda: alice.lines("done"), "the sender's end")
    verdict = judge([alice], bob)
    assert (verdict.accepted, verdict.shown, verdict.repeats) == (count, count, 0)
    view: View = stack.enter_context(home.view())
    counters = view.query("stats").rows[0][0]["counters"]
    # 4,400 beyond the burst in pauses that make room for 32 are about 140.
    assert 50 <= counters["rate"] <= 600, counters
