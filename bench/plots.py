"""Small PNG plots of a run. matplotlib is an optional extra; without it there are none, with a word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.frame import Row, left_out

Points = dict[str, dict[str, float]]  # system -> label on the axis -> value


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """The plots for which there are rows; their files."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        left_out("plots", "pip install matplotlib, or 'talkbus[bench]'")
        return []
    made = []
    for name, title, unit, choose in _PLOTS:
        points = choose([row for row in rows if "/" not in row.system])
        if points:
            made.append(_bars(pyplot, points, title, unit, folder / f"{name}.png"))
    return made


def _bars(pyplot: Any, points: Points, title: str, unit: str, path: Path) -> Path:
    """A group of bars for each label, one for each system, on a logarithmic axis."""
    labels = list(dict.fromkeys(label for values in points.values() for label in values))
    figure, axes = pyplot.subplots(figsize=(7, 3.2), dpi=90)
    width = 0.8 / len(points)
    for number, (system, values) in enumerate(points.items()):
        places = [i + number * width for i, label in enumerate(labels) if label in values]
        axes.bar(places, [values[label] for label in labels if label in values], width, label=system)
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(labels))], labels, fontsize=8)
    axes.set_yscale("log")
    axes.set_ylabel(unit)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return path


def _chosen(bench: str, metric: str, case: Callable[[str], str]) -> Callable[[Sequence[Row]], Points]:
    """Rows of one bench and metric; `case` gives the label of a case, "" leaves it out."""

    def choose(rows: Sequence[Row]) -> Points:
        points: Points = {}
        for row in rows:
            label = case(row.case) if row.bench == bench and row.metric == metric else ""
            if label and row.value > 0:
                points.setdefault(row.system, {})[label] = row.value
        return points

    return choose


def _latencies(rows: Sequence[Row]) -> Points:
    points: Points = {}
    for row in rows:
        if row.bench == "latency" and row.metric.endswith((" p50", " p99")):
            label = f"{row.metric}\n{row.case.split(', ')[1]}"
            points.setdefault(row.system, {})[label] = row.value
    return points


_PLOTS: tuple[tuple[str, str, str, Callable[[Sequence[Row]], Points]], ...] = (
    (
        "throughput-size",
        "Throughput, one sender, one recipient, acknowledged",
        "messages/s",
        _chosen("throughput", "messages", lambda case: case[8:] if case.startswith("1 to 1, ") else ""),
    ),
    (
        "throughput-senders",
        "Throughput, 256 B",
        "messages/s",
        _chosen("throughput", "messages", lambda case: case.split(",")[0] if case.endswith(" 256 B") else ""),
    ),
    ("latency", "Latency, 256 B", "µs", _latencies),
    (
        "fan-out",
        "One message to many mailboxes",
        "deliveries/s",
        _chosen("fan-out", "deliveries", lambda case: case.split(",")[0]),
    ),
    (
        "growth",
        "Processor time per message by what is stored",
        "µs",
        _chosen("growth", "processor per message", lambda case: case.removesuffix(" stored")),
    ),
    (
        "sessions",
        "Memory of the broker by connected sessions",
        "MB",
        _chosen("sessions", "memory of the broker", lambda case: case.removesuffix(" sessions")),
    ),
)
