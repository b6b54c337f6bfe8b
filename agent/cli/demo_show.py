"""How the demonstration looks: a line that lives, what happened above it, and the table at its end.

Knows counts and times, not where they come from.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

import click

from agent.cli.demo_count import Tally

_EVERY_S = 1.0  # between lines, where a line cannot be rewritten
_BAR = 24


@dataclass(slots=True)
class Kill:
    """One process that was killed, and how long it took until things went on, in s; negative: not yet.

    `back_s` is until the process was there again, `recovered_s` until it stored a message or answered a call.
    """

    what: str
    at_s: float
    back_s: float = -1.0
    recovered_s: float = -1.0


@dataclass(slots=True)
class Screen:
    """Progress on a stream: one line rewritten on a terminal, else a line a second."""

    stream: TextIO
    total: int
    live: bool = False
    began: float = field(default_factory=time.monotonic)
    _told: float = 0.0

    def __post_init__(self) -> None:
        self.live = self.stream.isatty()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def progress(self, tally: Tally, stored: int, last: bool = False) -> None:
        """The line as it stands; call it often, and once more at the end."""
        now = time.monotonic()
        if not (self.live or last) and now - self._told < _EVERY_S:
            return
        self._told = now
        line = (
            f"{self.elapsed:5.1f} s  sent {tally.sent}  stored {stored}  shown {tally.shown}  of {self.total} copies"
        )
        if not self.live:
            self._line(line)
            return
        done = _BAR * tally.shown // max(1, self.total)
        self.stream.write(f"\r{line}  [{'#' * done}{'.' * (_BAR - done)}]\x1b[K")
        self.stream.flush()

    def event(self, text: str) -> None:
        """Something happened."""
        if self.live:
            self.stream.write("\r\x1b[K")
        self._line(f"{self.elapsed:5.1f} s  {text}")

    def end(self) -> None:
        """No more progress: the line stays as it is."""
        if self.live and self._told:
            self._line("")

    def _line(self, text: str) -> None:
        click.echo(text, file=self.stream)


def agents_table(tally: Tally) -> str:
    """What became of each agent's mail."""
    head = ("agent", "sent", "shown", "waiting", "possible repeats")
    lines: list[Sequence[str]] = [head]
    for name in tally.names:
        share = tally.share(name)
        lines.append((name, str(share.sent), str(share.shown), str(share.waiting), str(share.repeats)))
    return aligned(lines)


def kills_table(kills: Sequence[Kill]) -> str:
    """What was killed, when, and how long it took until the bus went on."""
    lines: list[Sequence[str]] = [("killed with SIGKILL", "at", "running again", "going on again")]
    lines += [(k.what, f"{k.at_s:.1f} s", _after(k.back_s), _after(k.recovered_s)) for k in kills]
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    made = []
    for line in lines:
        cells = [line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
        made.append("  ".join(cells).rstrip())
    return "\n".join(made)


def _after(seconds: float) -> str:
    return f"after {seconds:.2f} s" if seconds >= 0 else "never"
