"""Commands run inside a session act as that session: a stand-in for the client starts the agent and the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.test_cli import DONE, REFUSED, Bus, until

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(sys.platform == "win32", reason="POSIX")]

# Reads commands as JSON lists, runs each as a child of its own (through a shell, as a client's Bash tool does), and
# answers with code, stdout and stderr. The agent is its child too.
CLIENT = """
import json, os, shlex, subprocess, sys
agent = subprocess.Popen([sys.executable, "-m", "talkbus", "mcp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         stderr=open(os.devnull, "w"))
info = {"name": "stand-in", "version": "1"}
params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": info}
hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
agent.stdin.write(json.dumps(hello).encode() + b"\\n"); agent.stdin.flush(); agent.stdout.readline()
agent.stdin.write(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\\n'); agent.stdin.flush()
print("ready", flush=True)
for line in sys.stdin:
    command = shlex.join([sys.executable, "-m", "talkbus", *json.loads(line)])
    done = subprocess.run(["sh", "-c", command + "; exit $?"], capture_output=True, text=True)
    print(json.dumps([done.returncode, done.stdout, done.stderr]), flush=True)
agent.stdin.close()
agent.wait(20)
"""


class Session:
    """A client with one agent."""

    def __init__(self, bus: Bus, folder: str) -> None:
        cwd = bus.cwd / folder
        cwd.mkdir(parents=True)
        self.cwd = cwd
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            cwd=cwd,
            env=bus.env(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"
        until(lambda: self.run("whoami", "--json")[1].get("acts_as") == "session")

    def run(self, *args: str) -> tuple[int, Any, str]:
        """Exit code, JSON and stderr of a command inside the session."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(args) + "\n")
        self.process.stdin.flush()
        code, out, err = json.loads(self.process.stdout.readline())
        return code, json.loads(out) if out.strip() else {}, err

    def close(self) -> None:
        self.process.communicate(timeout=30)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    cwd = tmp_path / "projects"
    cwd.mkdir()
    made = Bus(tmp_path / "bus", cwd)
    made.ok("up")
    yield made
    made.run("down")


def test_commands_act_as_the_session_around_them(bus: Bus) -> None:
    api = Session(bus, "api")
    _, me, _ = api.run("whoami", "--json")
    assert (me["name"], me["presence"]) == ("api", "open")
    assert bus.ok("whoami", "--json").json["name"] != "api"
    # From a folder with the same name another session gets a name of its own; the commands' seats do not take any.
    assert [p["name"] for p in bus.ok("peers", "--json").json] == ["api"]
    code, sent, _ = api.run("send", "--new", "web", "from the session", "--json")
    assert (code, sent["status"]) == (DONE, "stored")
    assert bus.ok("inbox", "--as", "web", "--json").json[0]["from"] == "api"
    bus.ok("send", "--as", "web", "api", "for the session")
    code, mail, err = api.run("inbox", "--json")
    assert code == DONE and [m["body"] for m in mail] == ["for the session"] and "only looks" in err
    assert bus.ok("peers", "--json").json[0]["unread"] == 1
    api.run("busy", "5", "--json")
    api.run("summary", "moving house", "--json")
    (row,) = bus.ok("peers", "--json").json
    assert (row["activity"], row["summary"], row["cwd"]) == ("busy", "moving house", str(api.cwd))
    assert [p["name"] for p in api.run("peers", "--scope", "folder", "--json")[1]] == ["api"]
    assert bus.ok("peers", "--scope", "folder", "--json").json == []
    assert api.run("rename", "api-docs", "--json")[1] == {"name": "api-docs", "former": "api"}
    until(lambda: api.run("whoami", "--json")[1]["name"] == "api-docs")
    assert api.run("send", "--as", "ci", "api-docs", "as another", "--json")[0] == DONE
    api.close()
    assert bus.ok("peers", "--json").json == []


def test_take_over_a_name(bus: Bus) -> None:
    first, second = Session(bus, "first"), Session(bus, "second")
    assert bus.run("take", "first").code == REFUSED  # outside of a session
    bus.ok("send", "--as", "ci", "first", "old mail")
    code, told, err = second.run("take", "first", "--json")
    assert (code, told["name"], told["unread"]) == (DONE, "first", 1)
    assert "was held by a session in" in err and str(first.cwd) in err
    until(lambda: second.run("whoami", "--json")[1]["name"] == "first")
    third = Session(bus, "third")
    code, told, _ = third.run("take", "first", "--fresh", "--json")
    assert (code, told["unread"]) == (DONE, 0)
    names = [p["name"] for p in bus.ok("peers", "--all", "--json").json]
    assert any(name.startswith("first-stale-") for name in names)
    for session in (first, second, third):
        session.close()
