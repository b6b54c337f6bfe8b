"""logs: JSON lines in a file of bounded size that is nobody else's to read; a full disk stops nothing."""

from __future__ import annotations

import json
import logging
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import logs

log = logging.getLogger("talkbus.broker")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    root = logging.getLogger("talkbus")
    before, level = list(root.handlers), root.level
    yield
    for handler in list(root.handlers):
        if handler not in before:
            logs.close(handler)
    root.setLevel(level)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_a_line_is_json(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    handler = logs.to_file(path, "info")
    log.info("%% serving on %s", "tcp://x\x1b[2J\n\u202e")
    log.debug("not wanted")
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("it failed")
    logs.close(handler)
    log.info("after the end")
    first, second = lines(path)
    assert (first["level"], first["logger"], first["text"]) == (
        "info",
        "broker",
        "% serving on tcp://x\x1b[2J\n\u202e",
    )
    assert str(first["ts"]).endswith("Z") and isinstance(first["pid"], int)
    assert second["level"] == "error" and "ValueError: boom" in str(second["error"])
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    logs.to_file(path, "info", octets=2000, kept=2)
    for number in range(200):
        log.info("line %d", number)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ["x.jsonl", "x.jsonl.1", "x.jsonl.2"]
    assert all(p.stat().st_size <= 2000 for p in tmp_path.iterdir())
    assert lines(path)[-1]["text"] == "line 199"
    kept = [entry["text"] for name in ("x.jsonl.2", "x.jsonl.1", "x.jsonl") for entry in lines(tmp_path / name)]
    assert kept == [f"line {n}" for n in range(200 - len(kept), 200)], "none is lost in between"
    if sys.platform != "win32":
        assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in tmp_path.iterdir())


def test_no_log_is_no_reason_to_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert logs.to_file(tmp_path / "no" / "x.jsonl", "info") is None
    logs.close(None)
    assert "no log is kept" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_loses_lines_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import resource
    import signal

    path = tmp_path / "x.jsonl"
    logs.to_file(path, "info")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, former[1]))
        for number in range(50):
            log.info("line %d", number)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.stat().st_size <= 1000 and "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="symlinks of POSIX")
def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "victim"
    (tmp_path / "x.jsonl").symlink_to(target)
    assert logs.to_file(tmp_path / "x.jsonl", "info") is None and not target.exists()
