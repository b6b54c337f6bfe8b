"""Output: JSON for programs, tables and lines for people. What peers wrote is made harmless before it is printed.

Knows nothing of the bus; what is printed was fetched before.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click


def document(value: Any) -> None:
    """One JSON document. ASCII only, so that nothing in it can reach a terminal's controls."""
    click.echo(json.dumps(value, indent=2))


class Listing:
    """A JSON list that is printed as it comes, as `document` prints a whole one. `end` it when anything was added."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, values: Iterable[Any]) -> None:
        """Print further items."""
        for value in values:
            click.echo(",\n" if self._count else "[\n", nl=False)
            click.echo(textwrap.indent(json.dumps(value, indent=2), "  "), nl=False)
            self._count += 1

    def end(self) -> None:
        """Close the list; without items nothing is printed."""
        if self._count:
            click.echo("\n]")


def line(value: Any) -> None:
    """One JSON document on one line, flushed: for output that follows."""
    click.echo(json.dumps(value, separators=(",", ":")))


def note(text: str) -> None:
    """A remark beside the output, on stderr."""
    click.echo(safe(text), err=True)


def safe(text: object) -> str:
    """Somebody else's text on one line, with nothing invisible in it."""
    from agent.render import safe as rendered

    return rendered(str(text))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as they must be; the last one is not padded. Every cell is made safe."""
    cells = [[safe(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (list(head), *cells)) for i in range(len(head))]
    for number, row in enumerate((list(head), *cells)):
        text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(dim(text) if number == 0 else text)


def facts(pairs: Sequence[tuple[str, object]]) -> None:
    """Name and value, one pair a line; empty values are left out."""
    shown = [(name, safe(value)) for name, value in pairs if value not in ("", None)]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{name.ljust(width)}  {value}")


def colour() -> bool:
    """Whether stdout is a terminal whose owner wants colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def dim(text: str) -> str:
    """A heading, where there are colours."""
    return f"\x1b[2m{text}\x1b[0m" if colour() else text


def clock(ms: int) -> str:
    """A time in ms since 1970 as local date and time; only the time for what is of today."""
    then, now = time.localtime(ms / 1000), time.localtime()
    same = then[:3] == now[:3]
    return time.strftime("%H:%M:%S" if same else "%Y-%m-%d %H:%M", then)


def octets(number: int) -> str:
    """A size for people."""
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def now_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000
