"""bench/RESULTS.md, made of the document of a run: machine, command, aims, what each system promises, tables, plots.

What profiling found stands in FINDINGS.md beside it, written by hand, and is taken in. Knows documents, not how they
were made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import machine, plots
from bench.aims import AIMS
from bench.frame import OURS, Row, number

PLOT_MAX = 150_000  # octets; a larger one does not go beside the results
COMMAND = "python -m bench --output bench-out --write-results"


def write(found: dict[str, Any], rows: Sequence[Row], folder: Path) -> None:
    """Write RESULTS.md and its plots into `folder`."""
    pictures = folder / "plots"
    pictures.mkdir(exist_ok=True)
    made = []
    for path in plots.draw(rows, pictures):
        if path.stat().st_size > PLOT_MAX:
            path.unlink()
        else:
            made.append(path)
    findings = folder / "FINDINGS.md"
    text = "\n".join(_lines(found, rows, made))
    if findings.exists():
        text += "\n" + findings.read_text("utf-8")
    (folder / "RESULTS.md").write_text(text + "\n" if not text.endswith("\n") else text, "utf-8")


def _lines(found: dict[str, Any], rows: Sequence[Row], pictures: Sequence[Path]) -> Iterator[str]:
    yield "# What was measured"
    yield ""
    yield f"Made by `{COMMAND}`; do not edit, run it again. The machine: {machine.sentence(found['machine'])}."
    yield ""
    yield "All systems run on loopback, in the same run, with the same body, window and number of processes."
    yield ""
    for note in found["notes"]:
        yield f"* {note}"
    yield ""
    yield "## Aims"
    yield ""
    yield "| aim | bound | this run | |"
    yield "|---|---|---|---|"
    for aim in AIMS:
        value = aim.found(rows)
        bound = f"{'≥' if aim.sign == '>=' else '≤'} {number(aim.bound)}"
        told = ("not measured", "") if value is None else (number(value), "met" if aim.met(value) else "**not met**")
        yield f"| {aim.text} | {bound} | {told[0]} | {told[1]} |"
    yield ""
    for picture in pictures:
        yield f"![{picture.stem}](plots/{picture.name})"
        yield ""
    for name in dict.fromkeys(row.bench for row in rows):
        yield f"## {name}"
        yield ""
        yield from _tables([row for row in rows if row.bench == name])


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each case and metric, a column for each system, and in small what ours is over it."""
    systems = [s for s in dict.fromkeys(row.system for row in rows) if "/" not in s]
    values = {(row.case, row.metric, row.system): row for row in rows}
    yield "| case | metric | " + " | ".join(systems) + " |"
    yield "|---|---|" + "---:|" * len(systems)
    for case, metric in dict.fromkeys((row.case, row.metric) for row in rows):
        cells = []
        for system in systems:
            row = values.get((case, metric, system))
            ratio = values.get((case, metric, f"{OURS}/{system}"))
            cell = f"{number(row.value)} {row.unit}".strip() if row else ""
            cells.append(f"{cell} ({number(ratio.value)}x)" if row and ratio else cell)
        yield f"| {case} | {metric} | " + " | ".join(cells) + " |"
    yield ""
    if len(systems) > 1:
        yield f"In brackets: the figure of {OURS} over that one."
        yield ""
