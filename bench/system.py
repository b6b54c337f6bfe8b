"""What every system under test has in common: its nodes, the body between them, and a fleet of their processes.

A `Node` is one session of one system, blocking and for one thread. What drives it is the same code for all systems
(drive.py), so that a figure differs by the system and by nothing else. Knows no system.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]

from bench.workers import PATIENCE_S, Worker

WINDOW = 64  # messages of one sender that are not acknowledged yet
IN_FLIGHT = 32 << 20  # octets of all senders that are not acknowledged yet: a mailbox of ours takes 64 MiB
RECIPIENT = "recipient"
LOAD, PROBE, ASK, ANSWER = b"x", b"p", b"q", b"a"
_STAMP = 20
_SAID = (
    b"the parser fails on an empty header, see test_reader: line %d expects two fields and gets one. I moved the "
    b"check into read_header() and will run the suite when your branch is merged; please leave bus.py alone so long\n"
)
_WORDS = b"".join(_SAID % number for number in range(300))


def sender_name(number: int) -> str:
    """Name of the sender with this number."""
    return f"sender-{number}"


class Node(ABC):
    """One session. Every method but wait() returns at once, or when the system's own call does."""

    @abstractmethod
    def send(self, to: str, bodies: Sequence[bytes]) -> None:
        """Send these, in order; `settled` counts those that the broker has taken responsibility for."""

    @property
    @abstractmethod
    def settled(self) -> int:
        """How many were acknowledged since this node was made."""

    @abstractmethod
    def wait(self, seconds: float) -> None:
        """Until something was acknowledged or came in, at most so long."""

    @abstractmethod
    def take(self) -> list[bytes]:
        """What came in; it is acknowledged at the latest with the next call of take or flush."""

    @abstractmethod
    def flush(self) -> None:
        """Return when the broker has the acknowledgement of everything taken."""

    @abstractmethod
    def close(self) -> None:
        """Leave."""


@dataclass(frozen=True, slots=True)
class Flow:
    """So many messages were sent; `began` is when the first was, `ended` when the sender knew all settled."""

    count: int
    began: int
    ended: int


@dataclass(frozen=True, slots=True)
class Bus:
    """A broker that runs: its process, and how a worker makes a node of it, as `make(name, *args)`."""

    pid: int
    make: Callable[..., Node]
    args: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class System:
    """A system that can be measured. `bus()` starts its broker and ends it surely; `missing` says in a word why it
    cannot be measured here, "" when it can.
    """

    name: str
    note: str  # what it promises on disk, which acknowledgement counts, which limits were raised
    bus: Callable[[], AbstractContextManager[Bus]]
    missing: Callable[[], str]

    @contextmanager
    def fleet(self, senders: int) -> Iterator[Fleet]:
        """A broker, a recipient and so many senders, connected."""
        with self.bus() as bus, fleet_of(bus, senders) as made:
            yield made


@dataclass(frozen=True, slots=True)
class Fleet:
    """One system, running: its broker, one recipient, and senders, each a process."""

    senders: Sequence[Worker]
    recipient: Worker
    broker: int

    def rate(self, seconds: float, size: int, senders: int = 1) -> tuple[float, float]:
        """Messages a second, sent, delivered and acknowledged, with WINDOW of each sender on their way, or as many as
        make IN_FLIGHT; and the processor time that all processes took for each, in microseconds.
        """
        used = self.senders[:senders]
        window = max(1, min(WINDOW, IN_FLIGHT // (len(used) * size)))
        before = self._processor(used)
        for sender in used:
            sender.tell("flow", RECIPIENT, seconds, window, size)
        flows: list[Flow] = [sender.answer("flow", PATIENCE_S + 3 * seconds) for sender in used]
        count = sum(flow.count for flow in flows)
        settled, _ = self._settled(count, seconds)
        spent = self._processor(used) - before
        taken = (max(settled, *(f.ended for f in flows)) - min(f.began for f in flows)) / 1e9
        return count / taken, spent / max(1, count) * 1e6

    def delays(self, seconds: float, size: int, load: float = 0.0, every: float = 0.02) -> list[float]:
        """One-way delays in microseconds, of one message at a time; meanwhile the second sender sends `load`
        messages a second, if any.
        """
        loader = self.senders[1] if load else None
        if loader:
            loader.tell("steady", RECIPIENT, seconds + 0.3, load, size)
            time.sleep(0.2)
        probe = self.senders[0]
        probe.tell("pace", RECIPIENT, max(1, int(seconds / every)), every, size)
        count = probe.answer("pace", PATIENCE_S + 3 * seconds).count
        if loader:
            count += loader.answer("steady", PATIENCE_S + 3 * seconds).count
        _, delays = self._settled(count, seconds)
        return [delay / 1e3 for delay in delays]

    def replies(self, seconds: float, size: int, load: float = 0.0, every: float = 0.02) -> list[float]:
        """The same for a message and the answer to it, both durable: from one call to the other, in microseconds."""
        loader = self.senders[1] if load else None
        if loader:
            loader.tell("steady", RECIPIENT, seconds + 0.3, load, size)
            time.sleep(0.2)
        probe = self.senders[0]
        probe.tell("ask", RECIPIENT, max(1, int(seconds / every)), every, size)
        taken: list[int] = probe.answer("ask", PATIENCE_S + 3 * seconds)
        count = len(taken)
        if loader:
            count += loader.answer("steady", PATIENCE_S + 3 * seconds).count
        self._settled(count, seconds)
        return [one / 1e3 for one in taken]

    def broker_seconds(self) -> float:
        """Processor time of the broker so far."""
        return float(sum(psutil.Process(self.broker).cpu_times()[:2]))

    def _settled(self, count: int, seconds: float) -> tuple[int, list[int]]:
        self.recipient.tell("total", count)
        settled, delays = self.recipient.answer("total", PATIENCE_S + 3 * seconds)
        return settled, delays

    def _processor(self, senders: Sequence[Worker]) -> float:
        """Seconds of processor time so far."""
        pids = [self.recipient.pid, self.broker, *(s.pid for s in senders)]
        return float(sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids))


@contextmanager
def fleet_of(bus: Bus, senders: int) -> Iterator[Fleet]:
    """A recipient and senders, connected, for a broker that runs already."""
    from bench.drive import recipient, sender  # which knows the Node of this file

    with ExitStack() as stack:
        first = stack.enter_context(Worker(RECIPIENT, recipient, bus.make, bus.args))
        crew = [stack.enter_context(Worker(sender_name(i), sender, bus.make, bus.args, i)) for i in range(senders)]
        for one in (first, *crew):
            one.answer("ready", 2 * PATIENCE_S)
        yield Fleet(crew, first, bus.pid)


def body(size: int, mark: bytes = LOAD) -> bytes:
    """A text of `size` octets that tells when it was made, then words as sessions write them, then what it is for."""
    return b"%0*d " % (_STAMP, time.monotonic_ns()) + _WORDS[: size - _STAMP - 2] + mark


def sent_at(text: bytes) -> int:
    """When a body was made, in ns."""
    return int(text[:_STAMP])


def mark_of(text: bytes) -> bytes:
    """What a body is for."""
    return text[-1:]
