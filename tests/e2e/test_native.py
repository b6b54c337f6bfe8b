"""The path through the session's own inbox with the real client: it arrives, is proven, and respects the user.

The poster is a grandchild of the client, as an agent behind `uvx` is. Needs no broker.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agent.delivery import clientfile, history, native
from agent.delivery.transcript import Follower, Parser, Seen, scan

from .api import FakeApi
from .messages import tool_results, tool_use
from .session import Home, Tui
from .wait import until

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
POSTER = """
import json, os, sys
from agent.delivery import clientfile, native
pid = clientfile.find_client()
with open("poster.json", "w") as out:
    found = clientfile.read(pid, clientfile.config_dir()) if pid else None
    json.dump({"pid": pid, "parent": os.getppid(), "session": found and found.id}, out)
os.rename("poster.json", "poster")
token = os.environ.get("CLAUDE_CODE_MESSAGING_TOKEN", "")
while True:
    with open("orders") as orders:
        for text in map(json.loads, orders):
            native.post(os.environ["CLAUDE_CODE_MESSAGING_SOCKET"], text, token)
"""


class Bus:
    """A session with a poster below it, and its transcript followed."""

    def __init__(self, home: Home, *arguments: str, **settings: Any) -> None:
        self.folder = home.project()
        os.mkfifo(self.folder / "orders")
        (self.folder / "poster.py").write_text(POSTER)
        line = f"PYTHONPATH='{ROOT}' '{sys.executable}' poster.py; exit 0"
        hook = {"type": "command", "command": line, "async": True}
        home.settings(hooks={"SessionStart": [{"hooks": [hook], "matcher": "startup"}]}, **settings)
        self.config = home.path / ".claude"
        self.tui: Tui = home.tui(self.folder, *arguments)
        self.parser, self.follower = Parser(), Follower()
        self.look()
        self.poster = json.loads(until(lambda: self.read("poster"), "the poster"))

    def read(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def post(self, words: str) -> None:
        self.parser.watch(words, words, native=True)
        with open(self.folder / "orders", "w") as orders:
            orders.write(json.dumps(words) + "\n")

    def look(self) -> None:
        session = clientfile.read(self.tui.pid, self.config)
        now = time.monotonic_ns() // 1_000_000
        assert session is not None
        self.follower.follow(now, clientfile.transcript_path(self.config, session.id, session.cwd))
        self.parser.feed(self.follower.poll(now))

    def seen(self, words: str) -> Seen:
        self.look()
        return self.parser.seen(words)

    def wait(self, words: str, wanted: Seen) -> None:
        until(lambda: self.seen(words) is wanted, f"{words} {wanted.name}")


MODES = ["default", "plan", "acceptEdits", "bypassPermissions"]


@pytest.mark.parametrize("mode", MODES)
def test_it_wakes_an_idle_session_and_is_proven(api: FakeApi, home: Home, mode: str) -> None:
    bus = Bus(home, "--permission-mode", mode)
    assert bus.poster["pid"] == bus.tui.pid != bus.poster["parent"]
    assert bus.poster["session"] == bus.tui.session
    for words in ("id-aaaa first", "id-bbbb second"):
        bus.post(words)
        request = api.wait(words)
        assert "(talkbus delivery " in request.new
        bus.wait(words, Seen.INJECTED)
        bus.tui.wait_idle()
    assert len(api.requests) == 2
    path = bus.follower.path
    assert path is not None
    found, _ = scan(path, ["id-aaaa first", "id-cccc never"])
    assert (found.seen("id-aaaa first"), found.seen("id-cccc never")) == (Seen.INJECTED, Seen.NOTHING)
    assert [turn.role for turn in history.read(path)] == ["peer", "assistant"] * 2


@pytest.mark.parametrize("mode", ["default", "bypassPermissions"])
def test_to_a_busy_session_it_comes_at_the_tool_boundary(api: FakeApi, home: Home, mode: str) -> None:
    bus = Bus(home, "--permission-mode", mode)
    call = tool_use("Bash", command="echo heron | tr a-z A-Z", description="say it")
    turn = api.on("please say it", call, hold=True)
    bus.tui.submit("please say it")
    api.wait("please say it")
    bus.post("id-aaaa in the middle")
    bus.wait("id-aaaa in the middle", Seen.ENQUEUED)
    assert len(api.requests) == 1
    turn.release()
    request = api.wait("id-aaaa in the middle")
    assert tool_results(request) == {call["id"]: "HERON"}
    bus.wait("id-aaaa in the middle", Seen.INJECTED)
    bus.tui.wait_idle()
    assert len(api.requests) == 2


def test_the_proof_is_found_over_clear(api: FakeApi, home: Home) -> None:
    bus = Bus(home)
    bus.post("id-aaaa before")
    api.wait("id-aaaa before")
    bus.wait("id-aaaa before", Seen.INJECTED)
    bus.tui.wait_idle()
    before = bus.tui.session
    bus.tui.submit("/clear")
    until(lambda: bus.tui.session not in ("", before), "a new session id")
    bus.post("id-bbbb after")
    assert api.wait("id-bbbb after").session == bus.tui.session
    bus.wait("id-bbbb after", Seen.INJECTED)


def test_a_flood_is_dropped_and_seen_to_be(api: FakeApi, home: Home) -> None:
    bus = Bus(home)
    turn = api.on("please wait", "done", hold=True)
    bus.tui.submit("please wait")
    api.wait("please wait")
    words = [f"id-{n:04} flood" for n in range(40)]
    for one in words:
        bus.post(one)
    bus.wait(words[-1], Seen.DROPPED)
    assert [bus.seen(one) for one in words[:25]] == [Seen.ENQUEUED] * 25
    turn.release()
    bus.wait(words[0], Seen.INJECTED)


@pytest.mark.parametrize(("answer", "seen"), [("hold", Seen.HELD), ("refuse", Seen.NOTHING)])
def test_the_users_setting_decides(api: FakeApi, home: Home, answer: str, seen: Seen) -> None:
    bus = Bus(home, crossSessionInbound=answer)
    inbound = native.inbound(bus.config, str(bus.folder), managed=[])
    assert (inbound.answer, inbound.open) == (answer, False)
    bus.post("id-aaaa not wanted")
    if seen is Seen.HELD:
        bus.wait("id-aaaa not wanted", seen)
    bus.tui.submit("something else")
    api.wait("something else")
    bus.tui.wait_idle()
    assert bus.seen("id-aaaa not wanted") is seen
    assert not any("id-aaaa" in request.text for request in api.requests)
