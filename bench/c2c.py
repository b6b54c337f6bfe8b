"""claude-c2c beside ours, through MCP: one session sends, the other looks into its inbox and marks what it read.

claude-c2c needs mcp < 2, so it lives in an environment of its own, made once beside the caches of this user.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from bench import ours
from bench.frame import OURS, Options, Row, bench, failed, left_out, median, number, quantile, say
from bench.stdio import McpServer, Silent, agent, environment

NAME = "claude-c2c"
PACKAGES = ("claude-c2c==0.1.0", "mcp>=1.9,<2")
INSTALL_S = 120.0
NOTE = (
    "claude-c2c: one SQLite file written by every session, synchronous=NORMAL (acknowledged messages may be lost "
    "with the machine); it has no delivery, so a message counts as delivered when the recipient's inbox tool told it"
)
_ID = re.compile(r'<peer-message id="([a-z0-9]{16})"')


@bench("claude-c2c")
def claude_c2c(options: Options) -> Iterator[Row]:
    """Send and inbox through MCP, beside claude-c2c."""
    count = options.count(150, 8)
    text = "x" * 200
    with tempfile.TemporaryDirectory(prefix="talkbus-bench-") as folder:
        yield from _measure(OURS, _ours, Path(folder), count, text)
    program = _installed()
    if program is not None:
        with tempfile.TemporaryDirectory(prefix="talkbus-bench-") as folder:

            def theirs(stack: ExitStack, root: Path) -> tuple[Callable[[str], object], Callable[[], int]]:
                return _theirs(stack, root, program)

            yield from _measure(NAME, theirs, Path(folder), count, text)


Pair = tuple[Callable[[str], object], Callable[[], int]]


def _measure(
    name: str, make: Callable[[ExitStack, Path], Pair], folder: Path, count: int, text: str
) -> Iterator[Row]:
    with ExitStack() as stack:
        try:
            send, inbox = make(stack, folder)
            sends, reads = [], []
            for _ in range(count):
                began = time.perf_counter()
                send(text)
                sent = time.perf_counter()
                until = time.monotonic() + 10
                while not inbox():
                    if time.monotonic() > until:
                        raise Silent("the message did not come within 10 s")
                sends.append((sent - began) * 1e6)
                reads.append((time.perf_counter() - sent) * 1e6)
        except Silent as error:
            failed(name, error)
            return
    say(f"{name}: send p50 {number(median(sends))} µs, inbox p50 {number(median(reads))} µs")
    case = "through MCP, 200 B"
    for metric, found in (("send", sends), ("inbox", reads)):
        yield Row("claude-c2c", case, name, f"{metric} p50", median(found), "us")
        yield Row("claude-c2c", case, name, f"{metric} p99", quantile(found, 0.99), "us")


def _ours(stack: ExitStack, root: Path) -> Pair:
    stack.enter_context(ours.broker(root))
    one = stack.enter_context(agent(root, "one"))
    two = stack.enter_context(agent(root, "two"))
    until = time.monotonic() + 20
    while "two" not in one.call("list_peers") and time.monotonic() < until:
        time.sleep(0.1)

    def send(text: str) -> object:
        return one.call("send_message", to="two", body=text, kind="note")

    def inbox() -> int:
        return len(_ID.findall(two.call("check_messages")))

    return send, inbox


def _theirs(stack: ExitStack, root: Path, program: Path) -> Pair:
    environ = environment(root, CLAUDE_C2C_DB=str(root / "c2c.db"))
    one = stack.enter_context(McpServer([str(program)], environ, root))
    two = stack.enter_context(McpServer([str(program)], environ, root))
    one.call("register_session", name="one")
    two.call("register_session", name="two")

    def send(text: str) -> object:
        return one.call("send_message", to="two", body=text)

    def inbox() -> int:
        told = two.call("inbox")
        rows = [json.loads(part) for part in _documents(told)]
        ids = [row["id"] for row in rows]
        if ids:
            two.call("mark_read", message_ids=ids)
        return len(ids)

    return send, inbox


def _documents(text: str) -> list[str]:
    """A list of its results comes as one JSON object after the other."""
    decoder, at, found = json.JSONDecoder(), 0, []
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        _, end = decoder.raw_decode(text, at)
        found.append(text[at:end])
        at = end
    return found


def _installed() -> Path | None:
    """The program, installed by pip into an environment of its own when it is not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = cache / "talkbus-bench" / "claude-c2c-0.1.0"
    scripts = place / ("Scripts" if sys.platform == "win32" else "bin")
    program = scripts / ("claude-c2c.exe" if sys.platform == "win32" else "claude-c2c")
    if program.exists():
        return program
    say(f"{NAME} is installed into {place}")
    try:
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, capture_output=True, timeout=INSTALL_S)
        subprocess.run(
            [str(scripts / "python"), "-m", "pip", "install", "--quiet", *PACKAGES],
            check=True,
            capture_output=True,
            timeout=INSTALL_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        left_out(NAME, f"pip install {' '.join(PACKAGES)} failed: {type(error).__name__}")
        return None
    return program if program.exists() else None
