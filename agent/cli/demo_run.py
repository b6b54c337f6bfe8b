"""The course of the demonstration: everybody joins, sends and reads, and is killed in the middle of it.

Broker and agents are real processes; what is killed is killed with SIGKILL. Nothing here counts messages.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio

from agent.cli.demo_agents import Agent, DemoFailed, Stage
from agent.cli.demo_plan import Step
from agent.cli.demo_show import Kill, Screen
from bus.daemon import ensure_broker, published

BROKER_DIES = (0.25, 0.7)  # shares of what is to be sent
AGENT_DIES = 0.45
QUIET_S = 15.0  # nothing new for so long: what is missing will not come
_LOOK_S = 0.01
_SHOW_S = 0.1


@dataclass(slots=True)
class Show:
    """One demonstration, to be run once."""

    stage: Stage
    screen: Screen
    plan: dict[str, list[Step]]
    kills: list[Kill] = field(default_factory=list)
    _agents: dict[str, Agent] = field(default_factory=dict)
    _joined: int = 0
    _reading: int = 0
    _everybody: anyio.Event = field(default_factory=anyio.Event)
    _finished: anyio.Event = field(default_factory=anyio.Event)

    async def run(self) -> None:
        """From the first process to the last result. DemoFailed, alone or in a group, when it cannot go on."""
        stage = self.stage
        stage.sending = self._reading = len(self.plan)
        stage.stored_at = self._stored
        await anyio.to_thread.run_sync(ensure_broker, stage.home)
        self.screen.event("broker started")
        victim = list(self.plan)[1]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            for share in BROKER_DIES:
                tasks.start_soon(self._kill_broker, share)
            for name, steps in self.plan.items():
                agent = self._agents[name] = Agent(stage, name, steps)
                tasks.start_soon(self._victim if name == victim else self._survivor, agent)

    # -- agents ----------------------------------------------------------------------------------------------------

    async def _survivor(self, agent: Agent) -> None:
        async with agent.alive():
            await self._all_there()
            await agent.work()
            await self._read(agent)

    async def _victim(self, agent: Agent) -> None:
        async with agent.alive():
            await self._all_there()
            await agent.work(until=lambda: self._progress() >= AGENT_DIES)
            await self._proof_of_last(agent)
            kill = self._kill(f"agent {agent.name}", agent.pid)
        async with agent.alive():
            kill.back_s = kill.recovered_s = self.screen.elapsed - kill.at_s
            self.screen.event(f"another agent took the seat of {agent.name} after {kill.back_s:.1f} s")
            await agent.work()
            await self._read(agent)

    async def _all_there(self) -> None:
        self._joined += 1
        if self._joined == len(self.plan):
            self.screen.event(f"agents joined: {', '.join(self.plan)}")
            self._everybody.set()
        await self._everybody.wait()

    async def _proof_of_last(self, agent: Agent) -> None:
        """Between two calls means: what the last result showed is written down. The bus itself tells when."""
        if not agent.last_seen:
            return

        async def proved() -> bool:
            # A message may be shown before its sender has read that it was stored.
            sender = self._agents.get(self.stage.tally.sender(agent.last_seen, agent.name))
            return sender is not None and await sender.proved(agent.last_seen, agent.name)

        await _soon("the proof of a message", proved)

    async def _read(self, agent: Agent) -> None:
        """Everything there is, then the counter, then a last look, when all others have seen everything too."""
        self.stage.sending -= 1
        await agent.read_all(QUIET_S)
        self._reading -= 1
        if self._reading == 0:
            self._finished.set()
        await self._finished.wait()
        counter = self.stage.counter
        value, _ = await agent.counter()
        counter.value = value if counter.value in (-1, value) else -2
        await agent.call("check_messages", {})

    # -- kills -----------------------------------------------------------------------------------------------------

    def _progress(self) -> float:
        return self.stage.tally.sent / max(1, self.screen.total)

    def _kill(self, what: str, pid: int) -> Kill:
        import psutil  # type: ignore[import-untyped]

        psutil.Process(pid).kill()
        kill = Kill(what, self.screen.elapsed)
        self.kills.append(kill)
        self.screen.event(f"{what} killed (process {pid})")
        return kill

    async def _kill_broker(self, share: float) -> None:
        home = self.stage.home
        while self._progress() < share:
            await anyio.sleep(_LOOK_S)
        before = published(home)
        if before is None:
            raise DemoFailed("there is no broker to kill")
        kill = self._kill("broker", before.pid)

        async def back() -> bool:
            now = published(home)
            return now is not None and now.pid != before.pid

        await _soon("a new broker", back)
        kill.back_s = self.screen.elapsed - kill.at_s
        self.screen.event(f"broker back after {kill.back_s:.1f} s")

        async def going_on() -> bool:
            # When nobody sends any more, nobody can be told that something was stored.
            if kill.recovered_s < 0 and self.stage.sending == 0 and (await self._anybody().counter())[0] >= 0:
                kill.recovered_s = self.screen.elapsed - kill.at_s
            return kill.recovered_s >= 0

        await _soon("a message stored by the new broker", going_on)

    def _anybody(self) -> Agent:
        return next(iter(self._agents.values()))

    def _stored(self, began: float) -> None:
        """A call that began then was told that its message is stored."""
        for kill in self.kills:
            if kill.what == "broker" and kill.recovered_s < 0 and began > self.screen.began + kill.at_s:
                kill.recovered_s = self.screen.elapsed - kill.at_s

    async def _watch(self) -> None:
        while not self._finished.is_set():
            self.screen.progress(self.stage.tally, self.stage.copies_stored())
            await anyio.sleep(_SHOW_S)
        self.screen.progress(self.stage.tally, self.stage.copies_stored(), last=True)


async def _soon(what: str, true: Callable[[], Awaitable[bool]], patience_s: float = 30.0) -> None:
    end = time.monotonic() + patience_s
    while not await true():
        if time.monotonic() > end:
            raise DemoFailed(f"{what} did not come within {patience_s:g} s")
        await anyio.sleep(_LOOK_S)
