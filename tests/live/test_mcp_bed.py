"""Two real agents over a real broker: what the tests of the MCP side share. Run as a script it is a broker."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from bus.config import Home, home
from bus.daemon import Record, published

ROOT = Path(__file__).resolve().parents[2]
AGENT = (
    "import os, sys; from agent.server import run; from bus.config import home, load; h = home(os.environ); "
    "sys.exit(run(h, load(h, os.environ), os.environ))"
)
WAIT_S = 15.0


def until(true: Callable[[], Any], timeout: float = WAIT_S) -> Any:
    """The first true value of a condition; fails when it does not come."""
    end = time.monotonic() + timeout
    while True:
        value = true()
        if value:
            return value
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def environment(root: Path, **more: str) -> dict[str, str]:
    """For a process of ours: nothing of the session the tests themselves may run in."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CLAUDE", "TALKBUS", "MCP", "ANTHROPIC"))}
    return kept | {"TALKBUS_HOME": str(root), "PYTHONPATH": str(ROOT)} | more


class Bed:
    """One bus under a directory of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home: Home = home({"TALKBUS_HOME": str(root)})
        self.broker: subprocess.Popen[bytes] | None = None

    def up(self) -> Record:
        """A broker, awaited."""
        log = (self.root / "broker.out").open("ab")
        command = [sys.executable, "-m", "tests.live.test_mcp_bed"]
        self.broker = subprocess.Popen(command, cwd=ROOT, env=environment(self.root), stdout=log, stderr=log)
        pid = self.broker.pid

        def ours() -> Record | None:
            assert self.broker is not None and self.broker.poll() is None, (self.root / "broker.out").read_text()
            record = published(self.home)
            return record if record is not None and record.pid == pid else None

        found: Record = until(ours)
        return found

    def kill(self) -> None:
        """As a crash would."""
        if self.broker is not None:
            self.broker.send_signal(signal.SIGKILL)
            self.broker.wait()
            self.broker = None

    def stop_mark(self) -> None:
        """No agent may start a broker of its own; `talkbus down` does the same."""
        self.home.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.home.stop_mark.touch()


@contextmanager
def bed(root: Path) -> Iterator[Bed]:
    """A bus with a running broker."""
    root.mkdir(mode=0o700, exist_ok=True)
    made = Bed(root)
    try:
        made.up()
        yield made
    finally:
        ended = made.broker is not None and made.broker.poll() is not None
        made.kill()
        assert not ended, f"the broker ended by itself: {(root / 'broker.out').read_text()[-2000:]}"


class Agent:
    """A client of one agent process, through the official SDK."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def result(self, tool: str, **given: Any) -> Any:
        """The whole result of a call."""
        if "from_" in given:
            given["from"] = given.pop("from_")
        result = await self.client.call_tool(tool, given)
        assert result.structured_content is None
        assert [block.type for block in result.content] == ["text"]
        return result

    async def call(self, tool: str, **given: Any) -> str:
        """The text of a call that must succeed."""
        result = await self.result(tool, **given)
        assert not result.is_error, result.content[0].text
        return str(result.content[0].text)

    async def fails(self, tool: str, **given: Any) -> str:
        """The text of a call that must be an error."""
        result = await self.result(tool, **given)
        assert result.is_error, result.content[0].text
        return str(result.content[0].text)

    async def eventually(self, tool: str, pattern: str, **given: Any) -> str:
        """Call until the text matches."""
        end = time.monotonic() + WAIT_S
        while True:
            result = await self.result(tool, **given)
            if re.search(pattern, result.content[0].text, re.S):
                return str(result.content[0].text)
            assert time.monotonic() < end, result.content[0].text
            await asyncio.sleep(0.05)


@asynccontextmanager
async def agent(on: Bed, name: str, *, mode: str = "legacy", **more: str) -> AsyncIterator[Agent]:
    """An agent with its client, in a project folder of that name."""
    from mcp.client.client import Client
    from mcp.client.stdio import StdioServerParameters, stdio_client

    folder = on.root / "projects" / name
    folder.mkdir(parents=True, exist_ok=True)
    env = environment(on.root, CLAUDE_PROJECT_DIR=str(folder), **more)
    parameters = StdioServerParameters(command=sys.executable, args=["-c", AGENT], env=env, cwd=str(ROOT))
    with (on.root / f"{name}.err").open("ab") as errors:
        async with Client(stdio_client(parameters, errlog=errors), mode=mode) as client:  # type: ignore[arg-type]
            yield Agent(client)


def ids(text: str) -> list[str]:
    """Message ids in a text."""
    return re.findall(r"\b[a-z2-7]{16}\b", text)


def bodies(text: str) -> list[str]:
    """What stands between the fences."""
    return re.findall(r"<peer-message [^>]*>\n(.*?)\n</peer-message>", text, re.S)


def serve_forever() -> int:
    """A broker until SIGTERM."""
    from bus.config import load
    from bus.server import serve

    place = home(os.environ)
    return serve(place, load(place, os.environ))


if __name__ == "__main__":
    sys.exit(serve_forever())
