"""What senders and recipients do, the same for every system: flow, pace, steady load, ask and answer.

Runs in the workers; knows only the Node. Everything that waits gives up with an error when nothing happens for
STUCK_S, so that a system that stops is reported and holds up nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from bench.system import ANSWER, ASK, LOAD, PROBE, RECIPIENT, WINDOW, Flow, Node, body, mark_of, sender_name, sent_at

STUCK_S = 15.0
Make = Callable[..., Node]


class Stuck(RuntimeError):
    """Nothing was acknowledged or delivered for STUCK_S."""


def sender(pipe: Connection, make: Make, args: tuple[Any, ...], number: int) -> None:
    """A worker that sends when it is told to, as described at the functions below."""
    node = make(sender_name(number), *args)
    try:
        pipe.send(("ready", None))
        while True:
            what, *given = pipe.recv()
            pipe.send((what, _DO[what](node, *given)))
    finally:
        node.close()


def flow(node: Node, to: str, seconds: float, window: int, size: int) -> Flow:
    """As many as go out in this time. All there is room for goes in with one call, as an application does it that has
    so much to say.
    """
    began = time.monotonic_ns()
    end = began + int(seconds * 1e9)
    base, count = node.settled, 0
    while time.monotonic_ns() < end:
        room = window - (count - (node.settled - base))
        if room < max(1, window // 2):  # half a window at a time: all of them carry a batch more cheaply than singles
            _progress(node, base + count - window // 2)
            continue
        node.send(to, [body(size, LOAD) for _ in range(room)])
        count += room
    _progress(node, base + count)
    return Flow(count, began, time.monotonic_ns())


def count(node: Node, to: str, messages: int, size: int) -> Flow:
    """Exactly so many, no more than the window on their way."""
    base, sent = node.settled, 0
    began = time.monotonic_ns()
    while sent < messages:
        some = min(WINDOW, messages - sent)
        node.send(to, [body(size, LOAD) for _ in range(some)])
        sent += some
        _progress(node, base + sent - WINDOW // 2)
    _progress(node, base + sent)
    return Flow(sent, began, time.monotonic_ns())


def pace(node: Node, to: str, count: int, every: float, size: int) -> Flow:
    """One at a time, so far apart; the recipient tells how long each took."""
    base = node.settled
    began = time.monotonic_ns()
    for number in range(1, count + 1):
        time.sleep(every)
        node.send(to, [body(size, PROBE)])
        _progress(node, base + number)
    return Flow(count, began, time.monotonic_ns())


def steady(node: Node, to: str, seconds: float, rate: float, size: int) -> Flow:
    """`rate` messages a second in small batches, never more than the window on their way."""
    base, count = node.settled, 0
    began = time.monotonic_ns()
    while (passed := (time.monotonic_ns() - began) / 1e9) < seconds:
        due = min(int(rate * passed) - count, 64 - (count - (node.settled - base)))
        if due > 0:
            node.send(to, [body(size, LOAD) for _ in range(due)])
            count += due
        node.wait(0.005)
        time.sleep(0.005)
    _progress(node, base + count)
    return Flow(count, began, time.monotonic_ns())


def ask(node: Node, to: str, count: int, every: float, size: int) -> list[int]:
    """One at a time, each answered by the recipient with a message of its own; how long each took, in ns."""
    taken = []
    for _ in range(count):
        time.sleep(every)
        node.send(to, [body(size, ASK)])
        until = time.monotonic() + STUCK_S
        while not (found := [text for text in node.take() if mark_of(text) == ANSWER]):
            node.wait(0.05)
            if time.monotonic() > until:
                raise Stuck(f"no answer within {STUCK_S:g} s")
        taken.append(time.monotonic_ns() - sent_at(found[0]))
    node.flush()
    return taken


def recipient(pipe: Connection, make: Make, args: tuple[Any, ...]) -> None:
    """Takes what comes and acknowledges it. ("total", n) is answered when n came and are acknowledged, with the time
    and the delays of the probes, in ns.
    """
    node = make(RECIPIENT, *args)
    try:
        pipe.send(("ready", None))
        count, total, delays = 0, -1, []
        until = 0.0
        while True:
            texts = node.take()
            got = time.monotonic_ns()
            for text in texts:
                mark = mark_of(text)
                if mark == PROBE:
                    delays.append(got - sent_at(text))
                elif mark == ASK:
                    node.send(sender_name(0), [text[:-1] + ANSWER])
            count += len(texts)
            if total < 0 and pipe.poll():
                _, total = pipe.recv()
                until = time.monotonic() + STUCK_S
            if texts:
                until = time.monotonic() + STUCK_S
            elif count < total and time.monotonic() > until:
                raise Stuck(f"{count} of {total} messages came")
            if count >= total >= 0:
                node.flush()
                if count > total:
                    raise Stuck(f"{count} messages came, {total} were sent")
                pipe.send(("total", (time.monotonic_ns(), delays)))
                count, total, delays = 0, -1, []
            elif not texts:
                node.wait(0.02)
    finally:
        node.close()


def _progress(node: Node, least: int) -> None:
    """Wait until so many are settled."""
    had, until = node.settled, time.monotonic() + STUCK_S
    while (have := node.settled) < least:
        if have > had:
            had, until = have, time.monotonic() + STUCK_S
        if time.monotonic() > until:
            raise Stuck(f"{least - have} sends were not acknowledged for {STUCK_S:g} s")
        node.wait(0.05)


_DO: dict[str, Callable[..., Any]] = {"flow": flow, "count": count, "pace": pace, "steady": steady, "ask": ask}
