"""The frame of every benchmark: a registry of cases, rows of results with their ratios, and a table for people.

A case takes Options and gives Rows; it says on stderr what it is doing (`say`) and cleans up behind itself. The frame
knows nothing of what is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

OURS = "talkbus"


@dataclass(frozen=True, slots=True)
class Options:
    """`seconds` of measuring for each system of a case; `rounds` is over how many turns they are spread, so that what
    the machine does beside it hits all systems alike.
    """

    seconds: float = 6.0
    rounds: int = 3

    @property
    def turn(self) -> float:
        """Seconds of one turn."""
        return self.seconds / self.rounds


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


def bench(name: str) -> Callable[[Bench], Bench]:
    """Register a benchmark under a name of the command line."""

    def register(run: Bench) -> Bench:
        assert name not in BENCHES
        BENCHES[name] = run
        return run

    return register


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def ratios(rows: Sequence[Row]) -> Iterator[Row]:
    """What is ours over each other system's, for every figure that both have."""
    for row in rows:
        if row.system != OURS:
            ours = next((r for r in rows if _place(r) == _place(row) and r.system == OURS), None)
            if ours and row.value:
                yield Row(row.bench, row.case, f"{OURS}/{row.system}", row.metric, ours.value / row.value, "x")


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
    if value >= 100:
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
