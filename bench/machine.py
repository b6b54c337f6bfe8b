"""On what something was measured: processor, versions, and the file system that the databases stood on."""

from __future__ import annotations

import os
import platform
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import zmq

from bench.frame import median

_SYNCS = 50


def describe() -> dict[str, Any]:
    """The machine as plain data."""
    folder = Path(tempfile.gettempdir()).resolve()
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libzmq": zmq.zmq_version(),
        "pyzmq": zmq.__version__,
        "sqlite": sqlite3.sqlite_version,
        "file_system": _file_system(folder),
        "folder": str(folder),
        "fdatasync_us": _sync_us(folder),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def sentence(machine: dict[str, Any]) -> str:
    """The same on one line."""
    return (
        "{cores} cores of {cpu}, {memory_gib} GiB, {system}, Python {python}, libzmq {libzmq} (pyzmq {pyzmq}), "
        "SQLite {sqlite}, {folder} on {file_system}, fdatasync {fdatasync_us} µs, load before {load_before}"
    ).format(**machine)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _sync_us(folder: Path) -> int:
    """How long the disk takes for what every durable message waits for: the median of some, in µs."""
    taken = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(_SYNCS):
            file.write(bytes(4096))
            began = time.perf_counter()
            getattr(os, "fdatasync", os.fsync)(file.fileno())
            taken.append(time.perf_counter() - began)
    return round(median(taken) * 1e6)


def _file_system(folder: Path) -> str:
    """The type of the file system of a folder: that of the longest mount point above it."""
    best, kind = "", "unknown"
    for part in psutil.disk_partitions(all=True):
        if folder.is_relative_to(part.mountpoint) and len(part.mountpoint) >= len(best):
            best, kind = part.mountpoint, part.fstype
    return kind
