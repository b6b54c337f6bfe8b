"""A run beside an earlier one: what both have, and how it changed. Knows rows only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.frame import Row, number

_FIELDS = ("bench", "case", "system", "metric", "value", "unit")


def read(path: str) -> dict[str, Any]:
    """A document of `--json`. ValueError, fit for a user, when it is none."""
    try:
        found = json.loads(Path(path).read_text("utf-8"))
        rows = found["rows"]
        fit = all(set(row) == set(_FIELDS) and isinstance(row["value"], int | float) for row in rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of 'python -m bench --json' ({type(error).__name__})") from None
    if not fit or not isinstance(found.get("machine"), dict) or not isinstance(found.get("notes"), list):
        raise ValueError(f"{path} is no result of 'python -m bench --json' (make one with this version)")
    return dict(found)


def compare(former: dict[str, Any], rows: Sequence[Row]) -> str:
    """A table of the figures that both runs have: before, now, now over before; and how many are in one only."""
    old = {(r["bench"], r["case"], r["system"], r["metric"]): float(r["value"]) for r in former["rows"]}
    lines = [("bench", "case", "metric", "system", "before", "now", "now/before")]
    for row in rows:
        before = old.pop((row.bench, row.case, row.system, row.metric), None)
        if before is not None:
            change = f"{row.value / before:.2f}x" if before else ("=" if row.value == before else "was 0")
            lines.append((row.bench, row.case, row.metric, row.system, number(before), number(row.value), change))
    if len(lines) == 1:
        return "nothing of the earlier run was measured in this one"
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    told = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    shared = len(lines) - 1
    told.append(
        f"{shared} figures in both, {len(rows) - shared} only in this run, {len(old)} only in the earlier one"
    )
    return "\n".join(told)
