"""Many at once: 100 peers that write to each other, and thousands of connected sessions.

The peers are real nodes of their system (ours with the agent's databases), 25 in a process. The sessions are
connections without a node behind them, so that it is the broker whose memory and latency are told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import psutil  # type: ignore[import-untyped]

from bench import crowd, ours, raw_zmq
from bench.frame import Options, Row, bench, failed, number, quantiles, say
from bench.system import WINDOW, Bus, Node, System, fleet_of
from bench.systems import present
from bench.workers import Worker

PROCESSES = 4
PATIENCE_S = 150.0
SIZE = 256
_STUCK_S = 30.0


@bench("peers")
def peers(options: Options) -> Iterator[Row]:
    """100 peers that send 1,000 messages each to one another: all delivered, none twice."""
    count, messages = options.count(100, 12), options.count(1000, 40)
    for system in present():
        try:
            with system.bus() as bus:
                yield from _peers(system, bus, count, messages)
        except RuntimeError as error:
            failed(f"{count} peers of {system.name}", error)


def _peers(system: System, bus: Bus, count: int, messages: int) -> Iterator[Row]:
    case = f"{count} peers x {messages} messages"
    each = count // PROCESSES
    with ExitStack() as stack:
        say(f"{case}: {system.name} starts")
        crews = [
            stack.enter_context(Worker(f"crew-{i}", _crew, bus.make, bus.args, i * each, each, each * PROCESSES))
            for i in range(PROCESSES)
        ]
        for crew in crews:
            crew.answer("ready", PATIENCE_S)
        began = time.monotonic()
        for crew in crews:
            crew.tell("go", messages)
        told = [crew.answer("done", PATIENCE_S) for crew in crews]
        taken = time.monotonic() - began
    came = sum(one["came"] for one in told)
    distinct = sum(one["distinct"] for one in told)
    sent = each * PROCESSES * messages
    say(f"{case}: {system.name} {taken:.1f} s")
    yield Row("peers", case, system.name, "all delivered in", taken, "s")
    yield Row("peers", case, system.name, "messages", sent / taken, "1/s")
    yield Row("peers", case, system.name, "lost", float(sent - distinct), "")
    yield Row("peers", case, system.name, "twice", float(came - distinct), "")


def _crew(
    pipe: Connection, make: Callable[..., Node], args: tuple[Any, ...], first: int, count: int, all_: int
) -> None:
    """`count` peers in one thread, each with its window of messages to the others on their way."""
    nodes = [make(f"peer-{first + i}", *args) for i in range(count)]
    pipe.send(("ready", None))
    _, messages = pipe.recv()
    try:
        pipe.send(("done", _converse(nodes, first, all_, messages)))
        pipe.poll(_STUCK_S)  # the others may still need what these acknowledge
    finally:
        for node in nodes:
            node.close()


def _converse(nodes: Sequence[Node], first: int, all_: int, messages: int) -> dict[str, int]:
    sent, base = [0] * len(nodes), [node.settled for node in nodes]
    seen: list[set[bytes]] = [set() for _ in nodes]
    plan = [_targets(first + i, all_, messages) for i in range(len(nodes))]
    expected = [_expected(first + i, all_, messages) for i in range(len(nodes))]
    came = 0
    until = time.monotonic() + _STUCK_S
    while True:
        moved = False
        for i, node in enumerate(nodes):
            texts = node.take()
            came += len(texts)
            seen[i].update(texts)
            settled = node.settled - base[i]
            room = min(WINDOW - (sent[i] - settled), messages - sent[i])
            if room >= min(WINDOW // 2, messages - sent[i]) and room > 0:
                # Mail to one recipient goes in one call, as many recipients as there are.
                target = plan[i][sent[i]]
                some = 1
                while some < room and plan[i][sent[i] + some] == target:
                    some += 1
                node.send(f"peer-{target}", [_text(first + i, sent[i] + k) for k in range(some)])
                sent[i] += some
                moved = True
            elif not texts:
                node.wait(0.0005)
            moved = moved or bool(texts)
        done = all(sent[i] == messages and node.settled - base[i] >= messages for i, node in enumerate(nodes))
        if done and all(len(s) >= e for s, e in zip(seen, expected, strict=True)):
            break
        if moved:
            until = time.monotonic() + _STUCK_S
        elif time.monotonic() > until:
            break  # what did not come is counted as lost
    for node in nodes:
        node.flush()
        late = node.take()
        came += len(late)
    return {"came": came, "distinct": sum(map(len, seen))}


def _targets(peer: int, all_: int, messages: int) -> list[int]:
    """To whom a peer's messages go: runs of ten to each of the others in turn."""
    return [(peer + 1 + (k // 10) % (all_ - 1)) % all_ for k in range(messages)]


def _expected(peer: int, all_: int, messages: int) -> int:
    return sum(_targets(other, all_, messages).count(peer) for other in range(all_) if other != peer)


def _text(peer: int, number_: int) -> bytes:
    return b"%08d-%08d-" % (peer, number_) + b"x" * (SIZE - 18)


@bench("sessions")
def sessions(options: Options) -> Iterator[Row]:
    """1,000 to 5,000 connected sessions: the broker's memory and latency."""
    crowd.raise_limit()
    steps = (1000, 5000) if not options.quick else (50, 100)
    for system in present():
        try:
            with system.bus() as bus, ExitStack() as stack:
                yield from _connected(options, system, bus, stack, steps)
        except RuntimeError as error:
            failed(f"sessions of {system.name}", error)


def _connected(options: Options, system: System, bus: Bus, stack: ExitStack, steps: Sequence[int]) -> Iterator[Row]:
    fleet = stack.enter_context(fleet_of(bus, 1))
    fleet.rate(0.3, SIZE)
    have = 0
    for total in (0, *steps):
        began = time.monotonic()
        each, rest = divmod(total - have, PROCESSES)
        shares = [each + (i < rest) for i in range(PROCESSES)]
        made = []
        for share in shares:
            if share:
                made.append(stack.enter_context(_sessions_worker(system, bus, have, share)))
                have += share
        for one in made:
            one.answer("ready", PATIENCE_S)
        taken = time.monotonic() - began
        case = f"{total} sessions"
        memory = psutil.Process(bus.pid).memory_info().rss / 1e6
        say(f"{case}: {system.name} {number(memory)} MB")
        if total:
            yield Row("sessions", case, system.name, "connected in", taken, "s")
        yield Row("sessions", case, system.name, "memory of the broker", memory, "MB")
        delays = fleet.delays(options.pick(1.5, 0.3), SIZE, every=0.01)
        yield from quantiles("sessions", case, system.name, "one-way", delays)


def _sessions_worker(system: System, bus: Bus, first: int, count: int) -> Worker:
    if system.name == ours.NAME:
        return Worker(f"crowd-{first}", crowd.sessions, *bus.args, first, count)
    if system.name == raw_zmq.NAME:
        return Worker(f"crowd-{first}", crowd.raw, *bus.args, first, count)
    return Worker(f"crowd-{first}", crowd.plain, *bus.args, first, count, system.name)
