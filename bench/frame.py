"""The frame of every benchmark: a registry of cases, rows of results with their ratios, and a table for people.

A case takes Options and gives Rows; it says on stderr what it is doing (`say`) and cleans up behind itself. The frame
knows nothing of what is measured.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

OURS = "talkbus"


@dataclass(frozen=True, slots=True)
class Options:
    """`quick` measures everything with a fraction of the time and the numbers; `rounds` is over how many turns a
    system's time is spread, so that what the machine does beside it hits all systems alike.
    """

    quick: bool = False
    rounds: int = 3

    def pick(self, full: float, quick: float) -> float:
        """A duration or a number, by what was asked for."""
        return quick if self.quick else full

    def count(self, full: int, quick: int) -> int:
        """The same for what is counted."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. A ratio is a row too: its system is "ours/theirs", its unit "x"."""

    bench: str
    case: str
    system: str
    metric: str
    value: float
    unit: str


Bench = Callable[[Options], Iterable[Row]]
BENCHES: dict[str, Bench] = {}
NOTES: list[str] = []  # what was left out in this run, and why


def bench(name: str) -> Callable[[Bench], Bench]:
    """Register a benchmark under a name of the command line; the first line of its docstring is shown by --list."""

    def register(run: Bench) -> Bench:
        assert name not in BENCHES
        BENCHES[name] = run
        return run

    return register


class Progress:
    """A bar on stderr: how many of the benches are done, the present one and what it is at."""

    WIDTH = 20

    def __init__(self) -> None:
        self.done, self.total, self.name = 0, 1, ""
        self._began = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        """Tell what is being done."""
        full = self.WIDTH * self.done // max(1, self.total)
        passed = int(time.monotonic() - self._began)
        bar = "#" * full + "." * (self.WIDTH - full)
        line = f"[{bar}] {passed // 60}:{passed % 60:02} {self.name}: {text}"
        if self._terminal:
            print(f"\r\x1b[K{line[:110]}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Leave the terminal at the beginning of a line."""
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


say = Progress()


def left_out(what: str, why: str) -> None:
    """Something is not measured in this run; told at once, and again beside the results."""
    note = f"left out: {what} ({why})"
    if note not in NOTES:
        NOTES.append(note)
        say(note)


FAILURES: list[str] = []


def failed(what: str, why: object) -> None:
    """Something that was to be measured was not, for a fault; the run goes on and ends with 1."""
    FAILURES.append(f"failed: {what} ({' '.join(str(why).split())[-300:]})")
    say(FAILURES[-1])


def ratios(rows: Sequence[Row]) -> Iterator[Row]:
    """What is ours over each other system's, for every figure that both have."""
    ours = {_place(r): r for r in rows if r.system == OURS}
    for row in rows:
        mine = ours.get(_place(row))
        if row.system != OURS and mine and row.value and "/" not in row.system:
            yield Row(row.bench, row.case, f"{OURS}/{row.system}", row.metric, mine.value / row.value, "x")


def quantiles(bench_: str, case: str, system: str, what: str, found: Sequence[float]) -> Iterator[Row]:
    """p50, p99 and p99.9 of delays in microseconds."""
    for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
        yield Row(bench_, case, system, f"{what} {name}", quantile(found, share), "us")


def document(machine: dict[str, Any], notes: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    """Everything as one document for a program."""
    return {"machine": machine, "notes": list(notes), "rows": [asdict(row) for row in rows]}


def table(rows: Sequence[Row]) -> str:
    """The same for a person: a line for each figure, columns aligned."""
    cells = [("bench", "case", "metric", "system", "value", "unit")]
    cells += [(r.bench, r.case, r.metric, r.system, number(r.value), r.unit) for r in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = []
    for line in cells:
        parts = [c.rjust(w) if i == 4 else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits that matter, thousands set apart."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def median(values: Sequence[float]) -> float:
    """The middle one; the mean of two where there is no middle."""
    ordered = sorted(values)
    half, odd = divmod(len(ordered), 2)
    return ordered[half] if odd else (ordered[half - 1] + ordered[half]) / 2


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def _place(row: Row) -> tuple[str, str, str]:
    return row.bench, row.case, row.metric
