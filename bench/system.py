"""What the systems under test have in common: a sender and a recipient, each a process, and the body between them.

A sender's worker answers "flow" (seconds, window) and "pace" (count, seconds between) with a Flow; a recipient's
answers "total" (count) with the time at which everything was settled and the delay of every message, in ns of the
monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]

from bench.workers import PATIENCE_S, Worker

BODY = 256
WINDOW = 64
_STAMP = 20


@dataclass(frozen=True, slots=True)
class Flow:
    """So many messages were sent; `began` is when the first was, `ended` when the sender knew all settled."""

    count: int
    began: int
    ended: int


@dataclass(frozen=True, slots=True)
class Pair:
    """One system, ready."""

    sender: Worker
    recipient: Worker
    broker: int

    def rate(self, seconds: float) -> tuple[float, float]:
        """Messages a second, sent, delivered and acknowledged, with WINDOW of them on their way; and the processor
        time that all three processes took for each, in microseconds.
        """
        before = self._processor()
        flow, settled, _ = self._do(seconds, "flow", seconds, WINDOW)
        spent = self._processor() - before
        return flow.count / ((max(flow.ended, settled) - flow.began) / 1e9), spent / flow.count * 1e6

    def delays(self, seconds: float, every: float = 0.025) -> list[float]:
        """One-way delays in microseconds, of one message at a time."""
        _, _, delays = self._do(seconds, "pace", max(1, int(seconds / every)), every)
        return [delay / 1e3 for delay in delays]

    def _processor(self) -> float:
        """Seconds of processor time so far."""
        return sum(sum(psutil.Process(p).cpu_times()[:2]) for p in (self.sender.pid, self.recipient.pid, self.broker))

    def _do(self, seconds: float, what: str, *args: float) -> tuple[Flow, int, list[int]]:
        self.sender.tell(what, *args)
        flow: Flow = self.sender.answer(what, PATIENCE_S + 3 * seconds)
        self.recipient.tell("total", flow.count)
        settled, delays = self.recipient.answer("total", PATIENCE_S + 3 * seconds)
        return flow, settled, delays


def body() -> bytes:
    """A text of BODY octets that tells when it was made."""
    return b"%0*d" % (_STAMP, time.monotonic_ns()) + b"x" * (BODY - _STAMP)


def sent_at(text: bytes) -> int:
    """When a body was made, in ns."""
    return int(text[:_STAMP])
