"""Benchmarks that really run, in their quick form: what they count must be there, and nothing stays behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from bench import ours, raw_zmq
from bench.many import _expected, _peers, _targets
from bench.system import System

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.timeout(110), pytest.mark.skipif(sys.platform == "win32", reason="POSIX")]


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=100,
    )


def rows(document: dict[str, Any], system: str) -> dict[tuple[str, str, str], float]:
    return {(r["bench"], r["case"], r["metric"]): r["value"] for r in document["rows"] if r["system"] == system}


def test_throughput_and_latency(tmp_path: Path) -> None:
    """Without the other servers, which this test must not need."""
    done = run(
        "throughput",
        "latency",
        "tokens",
        "--quick",
        "--json",
        TMPDIR=str(tmp_path),
        TALKBUS_PORT="1",
        PATH="/nowhere",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"machine", "notes", "rows"}
    assert any("limits.rate" in note for note in found["notes"])
    assert all(set(r) == {"bench", "case", "system", "metric", "value", "unit"} for r in found["rows"])
    mine, raw = rows(found, "talkbus"), rows(found, "raw-zmq")
    assert all(value > 0 for value in (*mine.values(), *raw.values()))
    ratios = rows(found, "talkbus/raw-zmq")
    measured = {key for key in mine if key[0] != "tokens"}
    assert set(raw) == measured and set(ratios) == measured
    place = ("throughput", "1 to 1, 256 B", "messages")
    assert ratios[place] == pytest.approx(mine[place] / raw[place])
    for what in ("one-way", "reply"):
        for load in ("idle", "half load"):
            p50, p99 = (mine["latency", f"256 B, {load}", f"{what} {p}"] for p in ("p50", "p99"))
            assert 50 < p50 <= p99
    assert ("tokens", "octets") in {(bench, metric) for bench, _, metric in mine}
    if not any(Path(place, "nats-server").exists() for place in ("/usr/sbin", "/usr/local/sbin")):
        assert any(note.startswith("left out: jetstream (apt-get install nats-server") for note in found["notes"])
    assert list(tmp_path.iterdir()) == []


def test_list_and_an_unknown_name() -> None:
    done = run("--list")
    assert done.returncode == 0 and len(done.stdout.splitlines()) >= 10
    assert run("nonsense").returncode == 2


def test_a_benchmark_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    code = (
        "from bench import __main__ as m\n"
        "from bench.frame import BENCHES\n"
        "def bad(options):\n    raise RuntimeError('as it was told')\n"
        "BENCHES['throughput'] = bad\n"
        "m.main(['throughput', 'tokens', '--json'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert "failed: throughput (RuntimeError: as it was told)" in found["notes"]
    assert {r["bench"] for r in found["rows"]} == {"tokens"}


def test_an_earlier_run_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    path.write_text(run("tokens", "--json").stdout)
    done = run("tokens", "--compare", str(path))
    assert done.returncode == 0 and "now/before" in done.stdout and "1.00x" in done.stdout
    path.write_text("{}")
    done = run("tokens", "--compare", str(path))
    assert done.returncode == 1 and "Traceback" not in done.stderr and "is no result" in done.stderr


def test_who_writes_to_whom_adds_up() -> None:
    targets = [_targets(peer, 12, 40) for peer in range(12)]
    assert all(peer not in listed and len(listed) == 40 for peer, listed in enumerate(targets))
    assert sum(_expected(peer, 12, 40) for peer in range(12)) == 12 * 40


@pytest.mark.parametrize("system", [ours.SYSTEM, raw_zmq.SYSTEM], ids=lambda system: system.name)
def test_peers_write_to_each_other(system: System) -> None:
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    with system.bus() as bus:
        found = {row.metric: row.value for row in _peers(system, bus, 8, 20)}
        broker = bus.pid
    assert (found["lost"], found["twice"]) == (0, 0) and found["messages"] > 0
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(broker).status() == psutil.STATUS_ZOMBIE
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            assert process.pid in before or "bench" not in " ".join(process.cmdline())
