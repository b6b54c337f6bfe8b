"""The frame of the benchmarks, and the shape of what they print. No figure is asserted: machines differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.frame import BENCHES, Options, Row, bench, document, median, number, quantile, ratios, table
from bench.machine import describe, sentence
from bench.workers import Worker, WorkerFailed

ROOT = Path(__file__).resolve().parent.parent


def row(system: str, value: float, metric: str = "m") -> Row:
    return Row("b", "c", system, metric, value, "1/s")


def test_a_ratio_is_ours_over_theirs() -> None:
    rows = [row("talkbus", 50), row("raw-zmq", 100), row("other", 25), row("raw-zmq", 7, "theirs alone")]
    assert list(ratios(rows)) == [
        Row("b", "c", "talkbus/raw-zmq", "m", 0.5, "x"),
        Row("b", "c", "talkbus/other", "m", 2.0, "x"),
    ]


def test_a_ratio_to_nothing_is_left_out() -> None:
    assert list(ratios([row("talkbus", 50), row("raw-zmq", 0)])) == []


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([1.0], 0.99, 1.0),
        ([4, 1, 3, 2], 0.5, 2),
        (range(1, 101), 0.99, 99),
        (range(1, 101), 1.0, 100),
        ([1, 2], 0.0, 1),
    ],
)
def test_quantile(values: list[float], share: float, expected: float) -> None:
    assert quantile(list(values), share) == expected


def test_median() -> None:
    assert (median([3, 1, 2]), median([4, 1, 2, 3])) == (2, 2.5)


def test_numbers_for_people() -> None:
    assert [number(x) for x in (12345.6, 99.94, 12.34, 1.234)] == ["12,346", "99.9", "12.3", "1.23"]


def test_the_table_is_aligned() -> None:
    lines = table([row("talkbus", 12345.6), row("raw-zmq", 1)]).splitlines()
    assert lines[1].index("12,346") + 6 == lines[2].index("1.00") + 4


def test_the_document_is_plain() -> None:
    made = document({"cores": 2}, ["a note"], [row("talkbus", 1.5)])
    assert json.loads(json.dumps(made))["rows"] == [
        {"bench": "b", "case": "c", "system": "talkbus", "metric": "m", "value": 1.5, "unit": "1/s"}
    ]


def test_a_name_is_registered_once() -> None:
    def run(_options: Options) -> list[Row]:
        return []

    try:
        bench("only-here")(run)
        with pytest.raises(AssertionError):
            bench("only-here")(run)
    finally:
        BENCHES.pop("only-here", None)


def test_the_machine_is_described() -> None:
    found = describe()
    assert {"cores", "cpu", "python", "libzmq", "sqlite", "file_system", "fdatasync_us"} <= found.keys()
    assert found["python"] in sentence(found)


def raises(_pipe: object) -> None:
    raise ValueError("as it was told")


def test_a_worker_that_fails_is_heard() -> None:
    with Worker("bad", raises) as worker, pytest.raises(WorkerFailed, match="as it was told"):
        worker.answer("ready", 20)


def test_the_whole_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--json", "--seconds", "0.3", "--rounds", "1"]
    environ = os.environ | {"TMPDIR": str(tmp_path), "TALKBUS_PORT": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"machine", "notes", "rows"}
    assert any("limits.rate" in note for note in found["notes"])
    assert all(set(r) == {"bench", "case", "system", "metric", "value", "unit"} for r in found["rows"])
    assert all(r["value"] > 0 for r in found["rows"])
    told = {(r["bench"], r["metric"], r["system"]) for r in found["rows"]}
    systems = ("talkbus", "raw-zmq", "talkbus/raw-zmq")
    metrics = (
        ("throughput", "messages"),
        ("throughput", "processor per message"),
        ("latency", "one-way p50"),
        ("latency", "one-way p99"),
    )
    assert {row for row in told if row[0] != "tokens"} == {
        (*metric, system) for metric in metrics for system in systems
    }
    assert ("tokens", "octets", "talkbus") in told
    assert list(tmp_path.iterdir()) == []
