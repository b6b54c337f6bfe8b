"""Where the items of a tap come from: a bus, a running demo or a recording; and that they are recorded.

Composes the library of agent.tap with what a call of the command knows. What becomes of the items is not its concern.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from agent.cli import show
from agent.cli.call import Call
from agent.tap.items import Item
from agent.tap.live import Bodies, live
from agent.tap.recording import Recorder, Recording
from agent.tap.rejoin import Rejoined

PULSE_S = 0.2
REFRESH_S = 2.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options that say where items come from. `refresh`: the peers are read anew, for the table."""

    record: Path | None
    replay: Path | None
    speed: float
    timeout: float | None
    bodies: bool
    demo: bool
    refresh: bool = False


def opened(
    stack: ExitStack, call: Call, wanted: Wanted, wait: Callable[[float], bool] | None = None, pulse: float = PULSE_S
) -> Iterator[Item | None]:
    """Items, and None now and then while there are none; closed with `stack`.

    `wait` sleeps for some seconds, and returns True to end a replay. Unreachable and Refused may come out of it later
    too. Everything is recorded that comes, whatever is shown of it.
    """
    if wanted.replay is not None:
        items: Iterator[Item | None] = _replayed(wanted, wait or threading.Event().wait)
    else:
        items = _of_a_bus(stack, call, wanted, pulse)
    if wanted.record is None:
        return items
    return _recorded(stack.enter_context(Recorder(wanted.record, show.now_ms())), items)


def _of_a_bus(stack: ExitStack, call: Call, wanted: Wanted, pulse: float) -> Iterator[Item | None]:
    if wanted.demo:
        from agent.cli.demo_find import view_of

        call, found = view_of(call, wanted.timeout)
        view = stack.enter_context(found)
    else:
        view = stack.enter_context(call.view(start=False))
    items = live(
        view,
        show.now_ms,
        timeout=wanted.timeout,
        bodies=Bodies(view) if wanted.bodies else None,
        refresh=REFRESH_S if wanted.refresh else 0.0,
        rejoined=Rejoined(view, wanted.bodies),
        pulse=pulse,
    )
    if not wanted.demo:
        return items
    from agent.cli.demo_find import until_it_ends

    return until_it_ends(items, call.home)


def _replayed(wanted: Wanted, wait: Callable[[float], bool]) -> Iterator[Item]:
    assert wanted.replay is not None
    recording = Recording(wanted.replay)
    until = time.monotonic() + wanted.timeout if wanted.timeout is not None else float("inf")

    def waited(seconds: float) -> bool:
        return wait(max(0.0, min(seconds, until - time.monotonic()))) or time.monotonic() >= until

    return recording.played(wanted.speed, waited)


def _recorded(recorder: Recorder, items: Iterator[Item | None]) -> Iterator[Item | None]:
    for item in items:
        if item is not None:
            recorder.write(item)
        yield item
