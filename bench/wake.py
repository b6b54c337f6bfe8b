"""From a tool call in one real Claude Code to the request body of another that was idle: how long a wake takes.

The client is the real one, run by the bed of tests/e2e against an API that says only what it is told; measured in a
checkout where that client is installed (`python -m tests.e2e.client`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.frame import OURS, Options, Row, bench, failed, left_out, median, number, say


@bench("wake")
def wake(options: Options) -> Iterator[Row]:
    """Tool call in one real Claude Code to the request of another, woken by it."""
    try:
        from tests.e2e.client import claude_binary
    except ImportError:
        left_out("wake", "tests/e2e is not here: run it in a checkout")
        return
    binary = claude_binary()
    if binary is None:
        left_out("wake", "Claude Code is not installed: python -m tests.e2e.client")
        return
    try:
        over, native = _measure(str(binary), options.count(3, 1))
    except (AssertionError, OSError, TimeoutError) as error:
        failed("wake", f"{type(error).__name__}: {error}"[:200])
        return
    case = "idle session, woken by a tool call of another"
    yield Row("wake", case, OURS, "tool call to the other's request", median(over), "ms")
    if native:
        case = "idle session, a line written to its inbox"
        yield Row("wake", case, "claude-code", "line to its request", median(native), "ms")


def _measure(binary: str, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds of the wakes by the bus, and of those by the client's own inbox alone."""
    from pathlib import Path

    from tests.e2e.api import FakeApi, says
    from tests.e2e.buses import Bus, call
    from tests.e2e.session import Home

    over: list[float] = []
    native: list[float] = []
    with FakeApi() as api, Home(api, Path(binary)) as home:
        folders = [home.project(name) for name in ("alice", "bob")]
        with Bus(home) as bus:
            alice = home.start(folders[0], *bus.arguments, env=bus.env)
            bob = home.start(folders[1], *bus.arguments, env=bus.env)
            for tui in (alice, bob):
                tui.wait_ready()
                bus.reachable(tui)
            for number_ in range(count):
                word = f"heron-{number_}"
                api.on(says(f"tell {word}", label="alice"), call("send_message", to="bob", body=f"look at {word}"))
                alice.submit(f"please tell {word}")
                asked = api.wait(says(f"tell {word}", label="alice"))
                request = api.wait(says(f"look at {word}", label="bob"))
                over.append((request.at - asked.at) * 1e3)
                say(f"wake {number_ + 1}: {number(over[-1])} ms")
                alice.wait_idle()
                bob.wait_idle()
                time.sleep(5.2)  # one line in five seconds is what the inbox is asked to take
            for number_ in range(count):
                began = time.monotonic()
                bob.post(f"stork-{number_} is a bird")
                request = api.wait(says(f"stork-{number_}", label="bob"))
                native.append((request.at - began) * 1e3)
                bob.wait_idle()
    return over, native
