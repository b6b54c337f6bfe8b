"""The screens of zmq-tap: the office, and the table of sessions by traffic. Each is imported when it is wanted."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from agent.cli import colours, exits, show
from agent.cli.call import Call
from agent.tap.items import Item
from agent.tap.recording import Recording

if TYPE_CHECKING:
    from agent.cli.tap_source import Wanted
    from agent.tap.cells import Segment
    from agent.tap.office import Office
    from agent.tap.top import Top

EVERY_MS = 1000  # between two printed tables
PLAYED = "the recording is over"
ENDED = "it has ended"


class Clock:
    """The time of the items: that of the wall, or of a recording that is played. ms since 1970."""

    def __init__(self, speed: float | None) -> None:
        """`speed` is that of a recording; None for what is live."""
        self._speed = speed
        self._item = 0
        self._since = time.monotonic()

    def came(self, item: Item) -> None:
        """An item was taken."""
        self._item, self._since = item.at, time.monotonic()

    def __call__(self) -> int:
        if self._speed is None:
            return max(show.now_ms(), self._item)
        return self._item + int((time.monotonic() - self._since) * 1000 * (self._speed or 1.0))


class OfficePicture:
    """The office on a screen."""

    def __init__(self, clock: Clock) -> None:
        from agent.tap.office import Office

        self.office: Office = Office()
        self._clock = clock
        self._ascii = colours.plain_only()

    def take(self, item: Item) -> None:
        self._clock.came(item)
        self.office.take(item)

    def over(self, remark: str) -> None:
        self.office.over(remark)

    def key(self, key: str) -> None:
        """There is nothing to choose here."""

    def moving(self) -> bool:
        return self.office.moving(self._clock())

    def draw(self, wide: int, high: int) -> list[list[Segment]]:
        from agent.tap.office_scene import draw

        return draw(self.office.scene(self._clock()), wide, high, hour, self._ascii)


def run_office(call: Call, wanted: Wanted) -> int:
    """The room, until somebody leaves it; the exit code."""
    return _on_screen(call, wanted, OfficePicture)


class TopPicture:
    """The table on a screen."""

    def __init__(self, clock: Clock) -> None:
        from agent.tap.top import Top

        self.top: Top = Top()
        self._clock = clock
        self._ascii = colours.plain_only()
        self._drawn_at = 0.0

    def take(self, item: Item) -> None:
        self._clock.came(item)
        self.top.take(item)

    def over(self, remark: str) -> None:
        self.top.over(remark)

    def key(self, key: str) -> None:
        """`s` sorts by another column."""
        if key == "s":
            self.top.next_sort()

    def moving(self) -> bool:
        """Rates fall by time alone: four times a second is enough."""
        return time.monotonic() - self._drawn_at > 0.25

    def draw(self, wide: int, high: int) -> list[list[Segment]]:
        from agent.tap.top import draw_top

        self._drawn_at = time.monotonic()
        return draw_top(self.top.table(self._clock()), self.top.sort, wide, high, self._ascii)


def run_top(call: Call, wanted: Wanted, as_json: bool, count: int | None) -> int:
    """The table on the screen until somebody leaves it; or printed, `count` times, one a second. The exit code."""
    if as_json or count is not None or not sys.stdout.isatty():
        return _printed(call, wanted, as_json, count if count is not None or as_json else 1)
    return _on_screen(call, wanted, TopPicture)


def _printed(call: Call, wanted: Wanted, as_json: bool, count: int | None) -> int:
    from agent.cli.tap_source import opened
    from agent.tap.top import Top

    top, clock = Top(), Clock(wanted.speed if wanted.replay is not None else None)
    told = 0
    due = 0
    with ExitStack() as stack:
        for item in opened(stack, call, wanted):
            if item is not None:
                clock.came(item)
                top.take(item)
                due = due or item.at + EVERY_MS
            if due and clock() >= due:
                due = max(due + EVERY_MS, clock())
                _print_table(top, clock(), as_json)
                told += 1
                if told == count:
                    return exits.DONE
    if wanted.replay is not None and due:
        _print_table(top, clock(), as_json)
    return exits.TIMED_OUT if wanted.timeout is not None and wanted.replay is None else exits.DONE


def _print_table(top: Top, now: int, as_json: bool) -> None:
    from agent.tap.top import draw_top

    table = top.table(now)
    if as_json:
        show.line({**asdict(table), "rows": [asdict(row) for row in table.rows]})
        return
    wide = shutil.get_terminal_size((120, 24)).columns
    for row in draw_top(table, top.sort, max(60, wide), 0, colours.plain_only())[:-1]:
        click.echo("".join(text for _, text in row).rstrip())


def _on_screen(call: Call, wanted: Wanted, picture: Callable[[Clock], Any]) -> int:
    _must_be_a_terminal()
    if wanted.replay is not None:
        Recording(wanted.replay)  # what is wrong with it is told before the screen is taken
    from agent.cli.tap_source import opened

    if wanted.demo:
        # Waiting for one is told on the screen as it is.
        from agent.cli.demo_find import at_demo

        call = at_demo(call, wanted.timeout)
    from agent.tap.screen import Source
    from agent.tap.screen import show as on_screen

    def items(wait: Callable[[float], bool]) -> Iterator[Item | None]:
        with ExitStack() as stack:
            yield from opened(stack, call, wanted, wait)

    clock = Clock(wanted.speed if wanted.replay is not None else None)
    over = PLAYED if wanted.replay is not None else ENDED if wanted.demo else ""
    code = on_screen(picture(clock), Source(items), over)
    return exits.TIMED_OUT if code == 0 and wanted.timeout is not None and not over else code


def _must_be_a_terminal() -> None:
    if not (sys.stdout.isatty() and sys.stdin.isatty()) or os.environ.get("TERM", "") == "dumb":
        raise click.UsageError("a screen needs a terminal (leave out --office, or use --top --count 1)")


def hour(ms: int) -> str:
    """A time of day."""
    try:
        return time.strftime("%H:%M:%S", time.localtime(ms / 1000))
    except (ValueError, OverflowError, OSError):
        return "--:--:--"
