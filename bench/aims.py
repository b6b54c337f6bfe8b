"""What the bus aims at, as ratios within one run, and how far a run came. Knows rows only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.frame import OURS, Row


@dataclass(frozen=True, slots=True)
class Aim:
    """One figure of a run and its bound: at least (">=") or at most ("<=")."""

    text: str
    bench: str
    case: str  # what the case begins with
    system: str
    metric: str
    sign: str
    bound: float

    def found(self, rows: Sequence[Row]) -> float | None:
        """The figure; None when the run does not have it."""
        for row in rows:
            place = (row.bench, row.system, row.metric)
            if place == (self.bench, self.system, self.metric) and row.case.startswith(self.case):
                return row.value
        return None

    def met(self, value: float) -> bool:
        """Whether a figure keeps the bound."""
        return value >= self.bound if self.sign == ">=" else value <= self.bound


def _ratio(text: str, case: str, system: str, metric: str, sign: str, bound: float, bench: str = "throughput") -> Aim:
    return Aim(text, bench, case, f"{OURS}/{system}", metric, sign, bound)


_ONE = "1 to 1, 256 B"
_START = "start to the answer to initialize"

AIMS = (
    _ratio("throughput, 256 B, one to one, over JetStream", _ONE, "jetstream", "messages", ">=", 2.0),
    _ratio("throughput, 256 B, one to one, over Redis Streams", _ONE, "redis-streams", "messages", ">=", 1.0),
    _ratio("throughput, 256 B, one to one, over a raw forward", _ONE, "raw-zmq", "messages", ">=", 0.7),
    _ratio("one-way p50, idle, over JetStream's", "256 B, idle", "jetstream", "one-way p50", "<=", 1.2, "latency"),
    Aim("100 peers x 1,000 messages, s", "peers", "100 peers", OURS, "all delivered in", "<=", 60),
    Aim("memory of the broker with 5,000 sessions, MB", "sessions", "5000 ", OURS, "memory of the broker", "<=", 300),
    Aim(
        "cost of a message, 10^6 over 10^3 stored",
        "growth",
        "1,000,000",
        OURS,
        "processor per message, growth",
        "<=",
        1.15,
    ),
    _ratio("start of the agent over a bare SDK server's", _START, "bare-mcp-sdk", "p50", "<=", 1.15, "agent"),
    _ratio("memory of the agent over a bare SDK server's", "after", "bare-mcp-sdk", "memory", "<=", 1.15, "agent"),
    *(
        Aim(f"{metric} under SIGKILL and cut links", "loss", "", OURS, metric, "<=", 0)
        for metric in ("lost", "twice", "reordered")
    ),
)
