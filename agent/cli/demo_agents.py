"""The agents of the demonstration: real processes (`talkbus mcp`), each driven by the official MCP client.

What an agent's client sees is handed to the tally, and nothing else counts as shown. Must not know the broker's
inside, nor agent.db.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import anyio

from agent.cli.demo_count import Tally
from agent.cli.demo_plan import Step
from agent.seats import living
from bus.config import Home
from bus.daemon import broker_command

if TYPE_CHECKING:
    from mcp.client.session import ClientSession

PATIENCE_S = 20.0
CHECK_EVERY = 4  # sends
COUNT_EVERY = 8
COUNTER = "demo/counter"
_PAUSE_S = 0.05

_SENT = re.compile(r"id ([a-z2-7]{16}); (.*)")
_QUEUED = re.compile(r"queued \(id ([a-z2-7]{16})\)")
_VALUE = re.compile(rf"{re.escape(COUNTER)} = (\d+)  \(version (\d+), ")


class DemoFailed(Exception):
    """The demonstration cannot go on; the text says why."""


@dataclass(slots=True)
class Counter:
    """A number in shared state that all agents raise by compare-and-set, and what they know they did to it."""

    raised: int = 0
    conflicts: int = 0
    unsure: int = 0  # written while the broker was away; done or refused later
    value: int = -1  # at the end, as every agent reads it; negative when they differ

    @property
    def good(self) -> bool:
        """Whether no write was lost and none counted twice."""
        return self.raised <= self.value <= self.raised + self.unsure


@dataclass(slots=True)
class Stage:
    """What all agents share. `stored` are the copies that a result called stored."""

    home: Home
    tally: Tally
    errlog: TextIO
    counter: Counter = field(default_factory=Counter)
    stored: set[tuple[str, str]] = field(default_factory=set)
    stored_at: Callable[[float], None] = lambda began: None
    sending: int = 0  # agents that have not sent everything yet
    pause_s: float = 0.0  # of each agent after a message, so that a person can follow

    def copies_stored(self) -> int:
        """Stored, by what the senders were told; what was shown was stored before."""
        return max(len(self.stored), self.tally.shown)


class Agent:
    """One agent: at most one process at a time, which another one may replace."""

    def __init__(self, stage: Stage, name: str, steps: list[Step]) -> None:
        self.name = name
        self._stage = stage
        self._steps = steps
        self._next = 0
        self._session: ClientSession | None = None
        self.last_seen = ""  # the id that its client saw last

    @property
    def pid(self) -> int:
        """Its process; DemoFailed when it has not said who it is."""
        found = [live.pid for live in living(self._stage.home) if live.name == self.name]
        if not found:
            raise DemoFailed(f"{self.name} has no process")
        return found[0]

    # -- a life ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        """A process for this agent, until the block ends; it is known to the bus when the block begins."""
        from mcp.client.session import ClientSession
        from mcp.client.stdio import StdioServerParameters, stdio_client

        home = self._stage.home
        assert home.root is not None
        folder = Path(home.root) / "work" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        command = [*broker_command()[:-2], "mcp"]
        environ = {"TALKBUS_HOME": str(home.root), "TALKBUS_NAME": self.name}
        server = StdioServerParameters(command=command[0], args=command[1:], env=environ, cwd=folder)
        async with stdio_client(server, self._stage.errlog) as streams, ClientSession(*streams) as session:
            with anyio.fail_after(PATIENCE_S):
                await session.initialize()
                self._session = session
                await self._join()
            try:
                yield
            finally:
                self._session = None

    async def _join(self) -> None:
        while True:
            text = await self.call("set_status", {})
            if text.startswith(f"{self.name}@") and "not connected" not in text:
                return
            if not text.startswith(f"{self.name}@"):
                raise DemoFailed(f"{self.name} is somebody else: {text[:200]}")
            await anyio.sleep(_PAUSE_S)

    async def call(self, tool: str, arguments: dict[str, Any]) -> str:
        """One tool call; what its result shows is counted before anything else happens."""
        if self._session is None:
            raise DemoFailed(f"{self.name} is not running")
        result = await self._session.call_tool(tool, arguments, read_timeout_seconds=60)
        text = "\n".join(part.text for part in result.content if part.type == "text")
        seen = self._stage.tally.saw(self.name, text)
        if seen:
            self.last_seen = seen[-1].id
        return text

    # -- what it does ----------------------------------------------------------------------------------------------

    async def work(self, until: Callable[[], bool] = lambda: False) -> bool:
        """Send what is left to send, look at the mail in between; False when `until` came true first."""
        while self._next < len(self._steps):
            if until():
                return False
            await self._send(self._steps[self._next])
            self._next += 1
            if self._stage.pause_s:
                await anyio.sleep(self._stage.pause_s)
            if self._next % CHECK_EVERY == 0:
                await self.call("check_messages", {})
            if self._next % COUNT_EVERY == 0:
                await self._count()
        return True

    async def read_all(self, quiet_s: float) -> None:
        """Look at the mail until everybody has sent and all of it was seen; give up when nothing comes any more."""
        tally = self._stage.tally
        heard = time.monotonic()
        while self._stage.sending or tally.missing(self.name):
            before = tally.shown
            await self.call("check_messages", {})
            if tally.shown != before or self._stage.sending:
                heard = time.monotonic()
            if tally.shown == before:
                await anyio.sleep(_PAUSE_S)
            if time.monotonic() - heard > quiet_s:
                return

    async def _send(self, step: Step) -> None:
        stage, began = self._stage, time.monotonic()
        to: str | list[str] = step.to[0] if len(step.to) == 1 else list(step.to)
        text = await self.call("send_message", {"to": to, "body": step.body, "kind": step.kind})
        sent, queued = _SENT.match(text), _QUEUED.match(text)
        if queued:
            stage.tally.sending(queued[1], self.name, step.recipients)
        elif sent:
            stage.tally.sending(sent[1], self.name, step.recipients)
            told = {part.partition("@")[0] for part in sent[2].split("\n")[0].split("; ") if ": stored" in part}
            if told != set(step.recipients):
                raise DemoFailed(f"{self.name} sent to {', '.join(step.recipients)}: {text[:300]}")
            stage.stored.update((sent[1], name) for name in told)
            stage.stored_at(began)
        else:
            raise DemoFailed(f"{self.name} could not send: {text[:300]}")

    async def _count(self) -> None:
        """Raise the counter by one, unless somebody was faster or the broker is away."""
        value, version = await self.counter()
        if value < 0:
            return
        arguments = {"key": COUNTER, "value": value + 1, "if_version": version}
        text = await self.call("set_state", arguments)
        counter = self._stage.counter
        if text.startswith(f"{COUNTER} written"):
            counter.raised += 1
        elif _QUEUED.match(text):
            counter.unsure += 1
        elif "(code 409)" in text.partition("\n")[0]:
            counter.conflicts += 1
        else:
            raise DemoFailed(f"{self.name} could not write state: {text[:300]}")

    async def counter(self) -> tuple[int, int]:
        """Value and version of the counter; negative while the broker is away."""
        text = await self.call("get_state", {"key": COUNTER})
        found = _VALUE.match(text)
        if found:
            return int(found[1]), int(found[2])
        return (0, 0) if "(code 404)" in text.partition("\n")[0] else (-1, -1)

    async def proved(self, ident: str, name: str) -> bool:
        """Whether the bus has it on its disk that this message of ours was shown to `name`."""
        text = await self.call("message_status", {"id": ident})
        return any(f"to {name}@" in line and ": injected" in line for line in text.splitlines())
