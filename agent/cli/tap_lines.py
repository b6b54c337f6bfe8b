"""Items as lines on stdout: for a person with time and colours, or JSON for programs."""

from __future__ import annotations

from contextlib import suppress

import click

from agent.cli import colours, show
from agent.tap.choosing import Choice
from agent.tap.items import Item, as_line
from agent.tap.words import Teller


class Printer:
    """Prints items as lines. `seen` counts the events that were printed."""

    def __init__(self, choice: Choice, as_json: bool, bodies: bool) -> None:
        self.seen = 0
        self._choice, self._as_json, self._bodies = choice, as_json, bodies
        self._coloured = show.colour()
        self._ascii = colours.plain_only()
        self._teller = Teller(stamp, choice, "->" if self._ascii else "→", bodies)

    def show(self, item: Item) -> bool:
        """Print it, if it is wanted; True for an event that was. A step that is told twice is printed once."""
        if not self._choice.takes(item):
            return False
        printed = self._as_json
        if self._as_json:
            self._line(item)
        else:
            for line in self._teller.lines(item):
                text = colours.painted(line, self._coloured)
                click.echo(colours.ascii_only(text) if self._ascii else text, color=True)
                printed = True
        printed = printed and item.what == "event"
        self.seen += printed
        return printed

    def _line(self, item: Item) -> None:
        told = as_line(item)
        if item.what == "snapshot":
            told = self._choice.narrowed(told)
        if not self._bodies:
            told = {key: value for key, value in told.items() if key not in ("body", "no_body")}
        show.line(told)


def stamp(ms: int) -> str:
    """A time of today to the millisecond, another with its date."""
    with suppress(ValueError, OverflowError, OSError):
        text = show.clock(ms)
        return f"{text}.{ms % 1000:03d}" if text.count(":") == 2 else text
    return "?"
