"""What the bus costs a session that says nothing: the hook with nothing waiting, the agent's start and memory, and
the processor time of agent and broker that only wait.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from agent.delivery.maildir import Maildir
from bench import ours
from bench.frame import OURS, Options, Row, bench, left_out, median, number, quantile, say
from bench.stdio import BARE, ROOT, McpServer, agent, environment
from bus.processes import start_time

SHELL = "sh -c :"
BARE_SDK = "bare-mcp-sdk"


@bench("agent")
def agents(options: Options) -> Iterator[Row]:
    """Hook with nothing waiting, start and memory of the agent, idle processor time of agent and broker."""
    with tempfile.TemporaryDirectory(prefix="talkbus-bench-") as folder:
        root = Path(folder)
        with ours.broker(root) as pid, agent(root, "idle") as idle:
            time.sleep(1.0)  # until everything that happens once after a start is over
            processes = {"broker": psutil.Process(pid), "agent": psutil.Process(idle.process.pid)}
            began = time.monotonic()
            before = {name: sum(p.cpu_times()[:2]) for name, p in processes.items()}
            yield from _hook(options, root)
            yield from _start(options, root)
            left = options.pick(60, 3) - (time.monotonic() - began)
            say(f"the rest of an idle time, {max(0, left):.0f} s")
            time.sleep(max(0.0, left))
            span = time.monotonic() - began
            for name, process in processes.items():
                spent = sum(process.cpu_times()[:2]) - before[name]
                yield Row(
                    "agent", f"idle for {span:.0f} s", OURS, f"processor of the {name}", spent / span * 100, "%"
                )


def _hook(options: Options, root: Path) -> Iterator[Row]:
    """A session that is known and has nothing waiting, as it is at nearly every call of a hook."""
    if sys.platform == "win32":
        left_out("the hook", "there are no hooks on Windows")
        return
    # This process plays the client: its maildir is there, as an agent makes it.
    box = Maildir.open(root / "run" / "maildirs", os.getpid(), start_time(os.getpid()) or "")
    environ = environment(root, CLAUDE_PID=str(os.getpid()))
    payload = b'{"session_id":"bench","hook_event_name":"PostToolUse"}'
    runs = {
        OURS: ["/bin/sh", str(ROOT / "hooks" / "deliver.sh"), "PostToolUse"],
        SHELL: ["/bin/sh", "-c", ":"],
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.count(300, 20)):
        for name, command in runs.items():
            began = time.perf_counter()
            done = subprocess.run(command, input=payload, env=environ, stdout=subprocess.PIPE, timeout=20)
            taken[name].append((time.perf_counter() - began) * 1e6)
            if done.stdout or done.returncode:
                raise RuntimeError(f"{name} said {done.stdout[:100]!r} and ended with {done.returncode}")
    if not box.activity():
        raise RuntimeError("the hook did not find its folder, so it was not measured")
    for name, found in taken.items():
        say(f"hook: {name} p50 {number(median(found))} µs")
        yield Row("agent", "hook, nothing waiting", name, "p50", median(found), "us")
        yield Row("agent", "hook, nothing waiting", name, "p99", quantile(found, 0.99), "us")


def _start(options: Options, root: Path) -> Iterator[Row]:
    """Taking turns, so that what the machine does beside it hits both alike."""
    bare = root / "bare"
    bare.mkdir()
    started: dict[str, list[float]] = {OURS: [], BARE_SDK: []}
    memory: dict[str, list[float]] = {OURS: [], BARE_SDK: []}
    for turn in range(options.count(7, 2) + 1):
        for name in started:
            made = (
                agent(root, f"start-{turn}")
                if name == OURS
                else McpServer([sys.executable, "-c", BARE], environment(root), bare)
            )
            with made:
                made.ask("tools/list")
                time.sleep(0.2)
                if turn:  # the first one of each fills the caches of the disk
                    started[name].append(made.started * 1e3)
                    memory[name].append(_resident(made.process.pid))
        say(f"agent's start {turn}: {', '.join(f'{n} {_last(v)} ms' for n, v in started.items())}")
    for name in started:
        yield Row("agent", "start to the answer to initialize", name, "p50", median(started[name]), "ms")
        yield Row("agent", "after its start", name, "memory", median(memory[name]), "MB")


def _last(values: Sequence[float]) -> str:
    return number(values[-1]) if values else "-"


def _resident(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss / 1e6)
