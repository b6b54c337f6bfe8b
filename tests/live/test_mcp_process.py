"""The agent as a process: what it writes, when it leaves, what a dead client costs. No SDK on the client's side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.delivery import maildir
from bus.daemon import published, stop_broker
from bus.processes import start_time
from tests.live.test_mcp_bed import AGENT, ROOT, Bed, bed, bodies, environment, ids, until

pytestmark = [pytest.mark.timeout(60), pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")]


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bed]:
    with bed(tmp_path / "bus") as made:
        made.stop_mark()
        yield made


class Raw:
    """One agent and the two ends of its wire."""

    def __init__(self, on: Bed, name: str, command: list[str] | None = None, **more: str) -> None:
        folder = on.root / "projects" / name
        folder.mkdir(parents=True, exist_ok=True)
        env = environment(on.root, CLAUDE_PROJECT_DIR=str(folder), **more)
        self.process = subprocess.Popen(
            command or [sys.executable, "-c", AGENT],
            env=env,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(on.root / f"{name}.err").open("ab"),
        )
        self.last = 0

    def send(self, method: str, params: dict[str, Any] | None = None, **more: Any) -> None:
        """One line to the agent."""
        self.send_line(
            {"jsonrpc": "2.0", "method": method, **more} | ({"params": params} if params is not None else {})
        )

    def send_line(self, line: dict[str, Any]) -> None:
        """Anything to the agent."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(line).encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, method: str, params: dict[str, Any] | None = None) -> int:
        """A request; its id."""
        self.last += 1
        self.send(method, params, id=self.last)
        return self.last

    def line(self) -> dict[str, Any]:
        """The next line of the agent."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the agent has gone"
        made: dict[str, Any] = json.loads(line)
        return made

    def read(self) -> dict[str, Any]:
        """The next response of the agent; its pings are answered, as every client has to."""
        while (made := self.line()).get("method") == "ping":
            self.send_line({"jsonrpc": "2.0", "id": made["id"], "result": {}})
        return made

    def hello(self) -> Raw:
        """The handshake."""
        info = {"name": "raw", "version": "1"}
        self.ask("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info})
        assert self.read()["result"]["serverInfo"]["name"] == "talkbus"
        self.send("notifications/initialized")
        return self

    def call(self, tool: str, **given: Any) -> str:
        """The text of a tool call."""
        ident = self.ask("tools/call", {"name": tool, "arguments": given})
        answer = self.read()
        assert answer["id"] == ident
        (block,) = answer["result"]["content"]
        assert "structuredContent" not in answer["result"]
        return str(block["text"])

    def end(self) -> None:
        """Whatever state it is in."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@pytest.fixture
def raws() -> Iterator[list[Raw]]:
    made: list[Raw] = []
    yield made
    for raw in made:
        raw.end()


def start(raws: list[Raw], bus: Bed, name: str, **more: str) -> Raw:
    raws.append(Raw(bus, name, None, **more))
    return raws[-1].hello()


def _presence(raw: Raw, name: str) -> str:
    line = next((x for x in raw.call("list_peers", scope="all").splitlines() if x.startswith(f"{name}@")), "")
    return line.split(", ")[1].split()[0] if line else ""


def test_it_leaves_when_stdin_ends(bus: Bed, raws: list[Raw]) -> None:
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    bob.call("set_status")
    assert bob.process.stdin is not None
    bob.process.stdin.close()
    assert bob.process.wait(5) == 0
    assert _presence(alice, "bob") == "gone"  # it said goodbye


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_leaves_when_told_to(bus: Bed, raws: list[Raw], number: signal.Signals) -> None:
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    bob.call("set_status")
    bob.process.send_signal(number)
    assert bob.process.wait(5) == 0
    assert _presence(alice, "bob") == "gone"


def test_it_leaves_in_the_middle_of_a_call(bus: Bed, raws: list[Raw]) -> None:
    bob = start(raws, bus, "bob")
    bob.ask("tools/call", {"name": "check_messages", "arguments": {"wait_s": 30}})
    time.sleep(0.3)
    assert bob.process.stdin is not None
    bob.process.stdin.close()
    assert bob.process.wait(5) == 0


def test_it_leaves_when_told_so_during_its_start(bus: Bed, raws: list[Raw]) -> None:
    raws.append(Raw(bus, "bob"))
    time.sleep(0.5)
    raws[-1].process.send_signal(signal.SIGTERM)
    assert raws[-1].process.wait(5) in (0, -signal.SIGTERM)


def test_it_leaves_when_its_parent_dies_though_stdin_stays_open(bus: Bed, raws: list[Raw]) -> None:
    shim = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {AGENT!r}]); sys.exit(p.wait())"
    raw = Raw(bus, "bob", [sys.executable, "-c", shim])
    raws.append(raw)
    raw.hello().call("set_status")
    (live,) = (json.loads(file.read_text()) for file in bus.home.agents.glob("*/live.json"))
    raw.process.kill()
    raw.process.wait()
    until(lambda: start_time(live["pid"]) is None)


def test_stdout_carries_nothing_but_answers(bus: Bed, raws: list[Raw]) -> None:
    raw = start(raws, bus, "alice")
    raw.send("nonsense/notification")
    assert raw.process.stdin is not None
    raw.process.stdin.write(b"this is no JSON\n\n")
    raw.process.stdin.flush()
    assert "alice@" in raw.call("set_status")


def test_what_was_never_read_comes_again_marked(bus: Bed, raws: list[Raw]) -> None:
    """The client dies with a result in its pipe: whether it was read nobody knows, unless the pipe was gone first."""
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    bob.call("set_status")
    bob.ask("tools/call", {"name": "check_messages", "arguments": {"wait_s": 30}})
    time.sleep(0.3)
    assert bob.process.stdout is not None
    bob.process.stdout.close()
    alice.call("send_message", to="bob", body="precious")
    time.sleep(0.5)
    bob.end()
    again = start(raws, bus, "bob")
    texts: list[str] = []
    while not texts or not bodies(texts[-1]):
        texts.append(again.call("check_messages", wait_s=5))
    assert bodies(texts[-1]) == ["precious"] and "possible repeat" in texts[-1]


def test_what_waits_for_a_hook_is_taken_back_in_time(bus: Bed, raws: list[Raw]) -> None:
    """And its sender hears that it expired, while what came with it waits on."""
    alice = start(raws, bus, "alice")
    config = str(bus.root / "claude")
    bob = start(raws, bus, "bob", CLAUDE_PID=str(os.getpid()), CLAUDE_CONFIG_DIR=config)
    bob.call("set_status")
    (folder,) = until(lambda: list((bus.root / "run" / "maildirs").glob(f"{os.getpid()}-*")))
    (folder / "activity").touch()  # a hook was heard from

    def waiting(words: str) -> bool:
        return any(
            words in text for name in maildir.Box(folder).waiting() if (text := maildir.Box(folder).text(name))
        )

    alice.call("send_message", to="bob", kind="note", body="for ever")
    until(lambda: waiting("for ever"))
    short = ids(alice.call("send_message", to="bob", body="for a while", ttl_s=3))[0]
    until(lambda: waiting("for a while"))
    until(lambda: "expired" in alice.call("message_status", id=short))
    assert not waiting("for a while")
    until(lambda: waiting("for ever"))


def test_an_agent_that_was_killed_finds_its_name_and_mail_at_once(bus: Bed, raws: list[Raw]) -> None:
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    bob.call("set_status")
    bob.process.kill()
    bob.process.wait()
    alice.call("send_message", to="bob", body="while you were dead")
    begun = time.monotonic()
    again = start(raws, bus, "bob")
    assert bodies(again.call("check_messages", wait_s=5)) == ["while you were dead"]
    assert "bob@" in again.call("set_status") and time.monotonic() - begun < 10  # the lease is 15 s


def test_the_same_session_id_resumes(bus: Bed, raws: list[Raw]) -> None:
    first = start(raws, bus, "bob", CLAUDE_CODE_SESSION_ID="s-1")
    first.call("set_status")
    first.process.kill()
    first.process.wait()
    assert "bob@" in start(raws, bus, "bob", CLAUDE_CODE_SESSION_ID="s-1").call("set_status")


def test_a_full_disk_is_an_error_and_nothing_is_claimed(bus: Bed, raws: list[Raw]) -> None:
    """The database of the agent becomes read-only by its own limit on pages."""
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    bob.call("set_status")
    seat = next(json_file.parent for json_file in bus.home.agents.glob("*/seat.json") if _named(json_file, "bob"))
    lock = subprocess.Popen(
        [sys.executable, "-c", _LOCKER, str(seat / "agent.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert lock.stdout is not None and lock.stdin is not None and lock.stdout.readline()
    alice.call("send_message", to="bob", body="kept back")
    text = bob.call("send_message", to="alice", body="cannot be written")
    assert text.startswith("error: ") and "agent.db" in text and not bodies(text)
    lock.communicate(b"\n")
    until(lambda: "stored" in bob.call("send_message", to="alice", body="now it can") or None)
    seen = bodies(alice.call("check_messages", wait_s=5))
    assert set(seen) == {"now it can"}


_LOCKER = (
    "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); db.execute('BEGIN IMMEDIATE'); "
    "print('locked', flush=True); sys.stdin.readline(); db.execute('ROLLBACK')"
)


def _named(file: Path, name: str) -> bool:
    return bool(json.loads(file.read_text())["name"] == name)


def test_an_agent_starts_the_broker_that_is_missing_and_again_when_it_was_killed(
    tmp_path: Path, raws: list[Raw]
) -> None:
    root = tmp_path / "auto"
    root.mkdir(mode=0o700)
    on = Bed(root)
    try:
        raw = start(raws, on, "alice")
        until(lambda: "role owner" in raw.call("set_status"))
        first = published(on.home)
        assert first is not None
        os.kill(first.pid, signal.SIGKILL)
        until(lambda: (published(on.home) or first).pid != first.pid)
        until(lambda: "role owner" in raw.call("set_status"))
    finally:
        stop_broker(on.home)


def test_an_idle_agent_costs_nothing(bus: Bed, raws: list[Raw]) -> None:
    raw = start(raws, bus, "alice")
    raw.call("set_status")
    time.sleep(0.5)
    before = _cpu(raw.process.pid)
    time.sleep(3)
    assert _cpu(raw.process.pid) - before <= 0.03


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
