"""Random SIGKILL of broker, senders and recipients, and links cut with a reset, under traffic: what is lost, shown
twice or out of order, and how long until mail flows again.

Senders and recipients are the workers of the fault tests: real agents' loops that write down what they were told and
what they showed. A message shown again after a crash, with the mark "possible repeat", is what the bus promises where
no proof can be had; it is told apart.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import loss_peers
from bench.frame import OURS, Options, Row, bench, left_out, median, say

if TYPE_CHECKING:
    from tests.live.homes import Home
    from tests.live.relay import Relay
    from tests.live.worker import Worker

PAIRS = 4
BATCH = 32
PACE_S = 0.035  # between batches of a sender, so that no mailbox fills while its recipient is dead
STUCK_S = 60.0
PATIENCE_S = 200.0
# A port of its own: while its broker is dead, another one on this machine could take the usual one.
SETTINGS = "port = {port}\n[limits]\nrate = 1000000\nburst = 1000000\n"


@dataclass(slots=True)
class Verdict:
    """What a run came to. `marked` were shown again after a crash and said so."""

    sent: int = 0
    lost: int = 0
    twice: int = 0
    reordered: int = 0
    marked: int = 0


@bench("loss")
def loss(options: Options) -> Iterator[Row]:
    """Random SIGKILL of broker, senders, recipients and cut links: lost, twice, reordered."""
    try:
        import tests.live.worker  # noqa: F401
    except ImportError:
        left_out("loss", "tests/live is not here: run it in a checkout")
    else:
        with tempfile.TemporaryDirectory(prefix="talkbus-bench-") as folder, ExitStack() as stack:
            yield from _ours(Path(folder), stack, options.count(100_000, 8000), options.count(30, 4))
    yield from loss_peers.measure(options)


def _ours(folder: Path, stack: ExitStack, count: int, kills: int) -> Iterator[Row]:
    from tests.live.homes import Home, free_pair
    from tests.live.relay import Relay
    from tests.live.worker import Worker

    home = stack.enter_context(Home(folder / "bus"))
    home.settings(SETTINGS.format(port=free_pair()))
    record = home.start()
    port = int(record.router.rsplit(":", 1)[1])
    relays = [stack.enter_context(Relay(("127.0.0.1", port))) for _ in range(2)]
    environs = [{**home.environ, "TALKBUS_HUB": f"127.0.0.1:{r.port}#{record.key}"} for r in relays]
    each = count // PAIRS
    recipients = [stack.enter_context(Worker(environs[1], folder, "receive", f"to-{i}")) for i in range(PAIRS)]
    senders = [
        stack.enter_context(
            Worker(environs[0], folder, "send", f"from-{i}", to=f"to-{i}", count=each, batch=BATCH, pace=PACE_S)
        )
        for i in range(PAIRS)
    ]
    began = time.monotonic()
    run = _Run(home, relays, senders, recipients, random.Random(began))
    run.kill_at_random(kills, each * PAIRS)
    whole = run.until_shown(each * PAIRS, began + PATIENCE_S)
    taken = time.monotonic() - began
    verdict = judge([s.all() for s in senders], [r.all() for r in recipients], each * PAIRS)
    if not whole:
        say(f"not everything came within {PATIENCE_S:g} s")
    case = f"{each * PAIRS:,} messages, {run.told}"
    yield from rows(case, OURS, verdict)
    yield Row("loss", case, OURS, "shown again after a crash, marked", float(verdict.marked), "")
    yield Row("loss", case, OURS, "took", taken, "s")
    for what, found in run.recovered.items():
        if found:
            yield Row("loss", case, OURS, f"mail flows again after {what}, p50", median(found), "s")
            yield Row("loss", case, OURS, f"mail flows again after {what}, longest", max(found), "s")


def rows(case: str, system: str, verdict: Verdict) -> Iterator[Row]:
    """The three figures that ought to be 0."""
    for metric in ("lost", "twice", "reordered"):
        yield Row("loss", case, system, metric, float(getattr(verdict, metric)), "")


class _Run:
    """The traffic and what is done to it."""

    def __init__(
        self,
        home: Home,
        relays: Sequence[Relay],
        senders: Sequence[Worker],
        recipients: Sequence[Worker],
        rng: random.Random,
    ) -> None:
        self._home, self._relays, self._senders, self._recipients = home, relays, senders, recipients
        self._rng = rng
        self._counts = {"broker": 0, "sender": 0, "recipient": 0, "link": 0}
        self.recovered: dict[str, list[float]] = {"a kill of the broker": [], "a cut of all links": []}

    @property
    def told(self) -> str:
        """What was done."""
        counts = self._counts
        return (
            f"SIGKILL of the broker {counts['broker']}x, of senders {counts['sender']}x, of recipients "
            f"{counts['recipient']}x, links cut {counts['link']}x"
        )

    def shown(self) -> int:
        """How many were shown so far."""
        return sum(len(r.lines("shown")) for r in self._recipients)

    def kill_at_random(self, kills: int, count: int) -> None:
        """Each blow when so much was shown, at random, so it strikes in the middle of the traffic."""
        victims = [("broker", "sender", "recipient", "link")[i % 4] for i in range(kills)]
        self._rng.shuffle(victims)
        blows = sorted(self._rng.sample(range(count // 50, count - count // 20), kills))
        for number, (at, victim) in enumerate(zip(blows, victims, strict=True)):
            until = time.monotonic() + STUCK_S
            while (shown := self.shown()) < at:
                if time.monotonic() > until:
                    raise RuntimeError(f"{shown:,} of {count:,} were shown, and nothing more for {STUCK_S:g} s")
                time.sleep(0.02)
            say(f"{shown:,} of {count:,} shown; blow {number + 1} of {kills}: {victim}")
            self._strike(victim)
            self._counts[victim] += 1

    def _strike(self, victim: str) -> None:
        if victim == "broker":
            struck = time.monotonic()
            self._home.kill()
            self._home.start()
            self._flows("a kill of the broker", struck)
        elif victim == "link":
            struck = time.monotonic()
            for relay in self._relays:
                relay.reset()
            self._flows("a cut of all links", struck)
        else:
            crew = self._senders if victim == "sender" else self._recipients
            living = [w for w in crew if victim == "recipient" or not w.lines("done")]
            if living:
                worker = self._rng.choice(living)
                worker.kill()
                worker.start()

    def _flows(self, what: str, since: float) -> None:
        """Until something is shown again, and how long that took; at most 20 s."""
        before = self.shown()
        while self.shown() == before and time.monotonic() < since + 20:
            if all(s.lines("done") for s in self._senders):
                return
            time.sleep(0.01)
        self.recovered[what].append(time.monotonic() - since)

    def until_shown(self, count: int, until: float) -> bool:
        """Whether every sender is through and everything was shown in time."""
        while time.monotonic() < until:
            done = all(s.lines("done") for s in self._senders)
            seen = self.shown()
            if done and seen >= count and self._distinct() >= count:
                return True
            say(f"{seen:,} of {count:,} shown")
            time.sleep(0.5)
        return False

    def _distinct(self) -> int:
        return sum(len({line[0] for line in r.lines("shown")}) for r in self._recipients)


def judge(senders: Sequence[Sequence[list[Any]]], recipients: Sequence[Sequence[list[Any]]], count: int) -> Verdict:
    """Compare what senders were promised with what recipients showed: lines as the workers told them.

    A message counts as twice when it was shown again without the mark, after its proof, or in one life of its
    recipient; as reordered when its first showing came after one of a later message of the same sender.
    """
    verdict = Verdict(sent=count)
    seen: set[str] = set()
    pairs = 0  # (sender, number) that were shown: a sender killed before it said so has accepted more than it told
    for lines in recipients:
        lives: dict[str, int] = {}
        proved: set[str] = set()
        last: dict[str, int] = {}
        numbered: set[tuple[str, int]] = set()
        life = 0
        for kind, *line in lines:
            if kind == "life":
                life += 1
            elif kind == "proved":
                proved.add(line[0])
            elif kind == "shown":
                ident, number, sender, repeat = line
                numbered.add((sender, number))
                if ident not in lives:
                    verdict.reordered += number < last.get(sender, 0)
                    last[sender] = max(last.get(sender, 0), number)
                elif not repeat or ident in proved or lives[ident] == life:
                    verdict.twice += 1
                else:
                    verdict.marked += 1
                lives[ident] = life
        seen |= lives.keys()
        pairs += len(numbered)
    accepted = {line[1] for lines in senders for line in lines if line[0] == "accepted"}
    verdict.lost = max(len(accepted - seen), count - pairs)
    return verdict
