"""An MCP client of a few lines, for servers over stdio: started, greeted, called, surely ended. No SDK on this side,
so that what is measured is the server.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 30.0

# The least a server of the SDK can be: one tool that says a word.
BARE = """
import asyncio
import mcp.types as t
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

async def list_tools(ctx, params):
    return t.ListToolsResult(tools=[t.Tool(name="say", description="Says ok.", input_schema={"type": "object"})])

async def call_tool(ctx, params):
    return t.CallToolResult(content=[t.TextContent(type="text", text="ok")])

async def main():
    server = Server("bare", on_list_tools=list_tools, on_call_tool=call_tool)
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())

asyncio.run(main())
"""


class Silent(RuntimeError):
    """The server ended, or said nothing in time."""


class McpServer:
    """A server process with its pipe. `started` tells how long it took from the start to its answer to initialize."""

    def __init__(self, command: Sequence[str], environ: dict[str, str], folder: Path) -> None:
        self._log = (folder / "mcp-stderr.log").open("ab")
        began = time.monotonic()
        self.process = subprocess.Popen(
            list(command), env=environ, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
        )
        self._last = 0
        self._rest = b""
        info = {"name": "bench", "version": "1"}
        try:
            self.ask("initialize", {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": info})
        except BaseException:
            self.close()
            raise
        self.started = time.monotonic() - began
        self._write({"method": "notifications/initialized"})

    def ask(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """The result of one request. Silent when none comes."""
        self._last += 1
        self._write({"method": method, "id": self._last, "params": params or {}})
        until = time.monotonic() + PATIENCE_S
        while True:
            line = self._line(until)
            if line.get("id") == self._last:
                if "result" not in line:
                    raise Silent(f"{method}: {line.get('error')}")
                return dict(line["result"])

    def call(self, tool: str, **given: Any) -> str:
        """The text of a tool's result."""
        result = self.ask("tools/call", {"name": tool, "arguments": given})
        text = "\n".join(str(block.get("text", "")) for block in result["content"])
        if result.get("isError"):
            raise Silent(f"{tool}: {text}")
        return text

    def _write(self, line: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **line}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Silent(f"the server has ended ({self.process.poll()})") from error

    def _line(self, until: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            left = until - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, left))
            some = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not some:
                raise Silent("the server has ended" if ready else f"no answer within {PATIENCE_S:g} s")
            self._rest += some
        line, _, self._rest = self._rest.partition(b"\n")
        return dict(json.loads(line))

    def close(self) -> None:
        """End of input, as a client that goes; by force when that is not heard."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def environment(root: Path, **more: str) -> dict[str, str]:
    """For an agent on the bus under `root`, served to no client that can be found."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TALKBUS_", "CLAUDE"))}
    return {**kept, "TALKBUS_HOME": str(root), **more}


def agent(root: Path, name: str) -> McpServer:
    """`talkbus mcp` of this checkout, under this name."""
    folder = root / "projects" / name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "talkbus.py"), "mcp"]
    return McpServer(command, environment(root, TALKBUS_NAME=name, CLAUDE_PROJECT_DIR=str(folder)), folder)
