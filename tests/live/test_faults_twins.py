"""Two at once: brokers on one home, agents on one seat."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from bus import config
from bus.daemon import published
from bus.processes import alive
from tests.live.homes import DEADLINE, Home
from tests.live.test_cli import DONE, Bus
from tests.live.test_mcp_bed import Agent, Bed, bed, bodies, environment

pytestmark = [pytest.mark.timeout(90), pytest.mark.skipif(sys.platform == "win32", reason="pipes and signals")]


# -- two brokers -----------------------------------------------------------------------------------------------------


def test_of_two_brokers_started_at_once_one_serves(home: Home, stack: ExitStack) -> None:
    started = [home.spawn() for _ in range(2)]
    try:
        readable, _, _ = select.select([pipe for _, pipe in started], [], [], DEADLINE)
        assert readable, home.said()
        # The one that ended closes its pipe without a word; the other's record comes.
        said: dict[int, bytes] = {}
        while not any(said.values()):
            ready, _, _ = select.select([p for _, p in started if p not in said], [], [], DEADLINE)
            assert ready, home.said()
            said |= {pipe: os.read(pipe, 65536) for pipe in ready}
        (winner,) = [process for process, pipe in started if said.get(pipe)]
        (loser,) = [process for process, _ in started if process is not winner]
        assert loser.wait(DEADLINE) == 1 and winner.poll() is None
        assert "the bus runs already" in home.said()
        assert home.record.pid == winner.pid and alive(winner.pid, home.record.start)
        alice, bob = stack.enter_context(home.session("alice")), stack.enter_context(home.session("bob"))
        alice.post("bob", "both callers are here")
        assert bob.next().body == b"both callers are here"
        assert "Traceback" not in home.said()
    finally:
        for process, pipe in started:
            os.close(pipe)
            process.kill()
            process.wait(DEADLINE)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    (tmp_path / "somewhere").mkdir()
    made = Bus(tmp_path / "bus", tmp_path / "somewhere")
    yield made
    made.run("down")


def test_callers_that_need_a_broker_at_once_find_the_same(bus: Bus) -> None:
    calls = [bus.start("up", "--json"), bus.start("up", "--json")]
    calls += [bus.start("send", "--as", name, "--new", "box", name, "--json") for name in ("a", "b")]
    told = [(process, *process.communicate(timeout=60)) for process in calls]
    assert [process.returncode for process, _, _ in told] == [DONE] * 4, [err for _, _, err in told]
    status = bus.ok("status", "--json").json
    record = published(config.home({"TALKBUS_HOME": str(bus.root)}))
    assert record is not None and status["pid"] == record.pid
    got = bus.ok("inbox", "--as", "box", "--json").json
    assert sorted(m["body"] for m in got) == ["a", "b"]
    logs = bus.root / "state" / "logs"
    log = (logs / "broker.jsonl").read_text()
    assert log.count("serving on") == 1 and "Traceback" not in log + (logs / "broker.log").read_text()


# -- two agents ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _session(on: Bed, label: str) -> AsyncIterator[Agent]:
    """`talkbus mcp` as an MCP client starts it; every one of them asks to be called `api`."""
    from mcp.client.client import Client
    from mcp.client.stdio import StdioServerParameters, stdio_client

    folder = on.root / "projects" / "same"
    folder.mkdir(parents=True, exist_ok=True)
    env = environment(on.root, CLAUDE_PROJECT_DIR=str(folder), TALKBUS_NAME="api")
    parameters = StdioServerParameters(
        command=sys.executable, args=["-m", "talkbus", "mcp"], env=env, cwd=str(folder)
    )
    with (on.root / f"{label}.err").open("ab") as errors:
        async with Client(stdio_client(parameters, errlog=errors), mode="legacy") as client:  # type: ignore[arg-type]
            yield Agent(client)


async def _twins(on: Bed) -> None:
    async with _session(on, "first") as first, _session(on, "second") as second:
        assert "api@" in await first.eventually("set_status", "api@")
        told = await second.eventually("set_status", "called 'api-2'")
        assert "'api' is in use by another living session" in told and 'set_status(name="api", take=true)' in told
        assert "called 'api-2'" not in await second.call("set_status")  # said once
        sent = await first.call("send_message", to="api-2", body="who are you?")
        assert "stored" in sent
        assert bodies(await second.eventually("check_messages", "who are you", wait_s=5)) == ["who are you?"]

        assert "called 'api' now" in await second.call("set_status", name="api", take=True)
        displaced = await first.eventually("list_peers", "held by another session now")
        assert "'api'" in displaced and 'set_status(name="api", take=true)' in displaced
        # Who was displaced chooses another name, and both are there again.
        await first.eventually("set_status", "api-old", name="api-old")
        await first.call("send_message", to="api", body="it is yours")
        assert bodies(await second.eventually("check_messages", "it is yours", wait_s=5)) == ["it is yours"]


def test_a_second_agent_on_a_live_seat(tmp_path: Path) -> None:
    with bed(tmp_path / "bus") as on:
        on.stop_mark()
        asyncio.run(_twins(on))
        for label in ("first", "second"):
            assert "Traceback" not in (on.root / f"{label}.err").read_text()


def test_a_name_whose_holder_was_killed_is_free_at_once(bus: Bus) -> None:
    """No lease is waited for when the newcomer can see that the holder's process is dead."""
    bus.ok("up")
    folder = bus.cwd
    env = bus.env(TALKBUS_NAME="api", CLAUDE_PROJECT_DIR=str(folder))
    hello = (
        b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},'
        b'"clientInfo":{"name":"raw","version":"1"}}}\n{"jsonrpc":"2.0","method":"notifications/initialized"}\n'
        b'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"set_status","arguments":{}}}\n'
    )
    for _ in range(2):
        agent = subprocess.Popen(
            [sys.executable, "-m", "talkbus", "mcp"],
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert agent.stdin is not None and agent.stdout is not None
            agent.stdin.write(hello)
            agent.stdin.flush()
            assert b"talkbus" in agent.stdout.readline()
            answer = agent.stdout.readline()
            assert b"api@" in answer and b"api-2" not in answer, answer
        finally:
            agent.kill()
            agent.wait(DEADLINE)
            for end in (agent.stdin, agent.stdout):
                if end is not None:
                    end.close()
