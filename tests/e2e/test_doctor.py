"""What doctor says, and what the real client then does: where all is well a message arrives, else it does not."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bus.config import home as home_of
from bus.daemon import published, stop_broker

from .api import FakeApi
from .session import Home
from .test_install import Bus
from .wait import until

pytestmark = pytest.mark.e2e


class Doctor(Bus):
    """An installation as a user has it, and its doctor."""

    def look(self, folder: Path) -> dict[str, list[str]]:
        """What is not well in a project: name of the check -> state, text and remedy."""
        told = self.checks(folder)
        return {
            name: [f"{c['state']}: {c['text']} -> {c['mend']}" for c in told if c["name"] == name]
            for name in {c["name"] for c in told if c["state"] != "ok"}
        }

    def checks(self, folder: Path) -> list[dict[str, Any]]:
        command = [str(self.bin / "talkbus"), "doctor", "--json"]
        env = self.home.environment(folder, "setup", self.env)
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
        assert done.stderr == "" and done.returncode in (0, 1)
        told = json.loads(done.stdout)
        assert told["ok"] is (done.returncode == 0)
        return list(told["checks"])


@pytest.fixture
def bus(home: Home) -> Iterator[Doctor]:
    made = Doctor(home)
    (made.bin / "claude").symlink_to(home.binary)
    made.run("install")
    yield made
    found = home_of({"TALKBUS_HOME": str(made.folder)})
    if published(found):
        stop_broker(found)


def wake(bus: Doctor, name: str) -> str:
    rows = json.loads(bus.run("peers", "--json"))
    return next((str(row["wake"]) for row in rows if row["name"] == name and row["client"]), "")


def test_where_all_is_well_a_message_arrives(api: FakeApi, home: Home, bus: Doctor) -> None:
    folder = home.project("alice")
    before = {str(p): p.stat().st_mtime_ns for p in home.root.rglob("*") if p.is_file()}
    assert list(bus.look(folder)) == ["sessions"], "no broker runs yet to be asked"
    assert {str(p): p.stat().st_mtime_ns for p in home.root.rglob("*") if p.is_file()} == before
    tui = home.tui(folder, env={"PATH": bus.env["PATH"]})
    until(lambda: wake(bus, "alice") == "native", "a session on the bus", 15.0)
    told = {check["name"]: check["text"] for check in bus.checks(folder)}
    assert told["session alice"] == "is woken by its own inbox, which takes connections"
    assert told["delivery"].startswith("a session is woken by its own inbox, else by a hook")
    assert [row["name"] for row in json.loads(bus.run("peers", "--json", "--all"))] == ["alice"], "no other mailbox"
    assert api.requests == [] and tui.status == "idle", "to try a path wakes nobody"
    bus.run("send", "alice", "look at the heron")
    assert "look at the heron" in api.wait("look at the heron").new


@pytest.mark.parametrize("blocked", ["server", "file"])
def test_what_doctor_names_keeps_a_message_away(api: FakeApi, home: Home, bus: Doctor, blocked: str) -> None:
    folder = home.project("alice")
    tui = home.tui(folder, env={"PATH": bus.env["PATH"]})
    until(lambda: wake(bus, "alice"), "a session on the bus", 15.0)  # now the bus knows the name
    tui.exit()
    settings = home.path / ".claude" / "settings.json"
    if blocked == "server":
        state = json.loads((home.path / ".claude.json").read_text())
        state["projects"][str(folder)]["disabledMcpServers"] = ["talkbus"]
        home.state(projects=state["projects"])
        found = bus.look(folder)
        assert f'{home.path}/.claude.json: projects["{folder}"].disabledMcpServers names talkbus' in found["mcp"][0]
        assert any("the client says of talkbus: ⊘ Disabled" in line for line in found["mcp"])
        assert found["delivery"][0].startswith("fail: no mail would reach a new session")
    else:
        # The user's own inbox is closed, so mail would come by hooks; an old entry drops them all.
        told = json.loads(settings.read_text())
        old = {"matcher": {"tools": ["Bash"]}, "hooks": [{"type": "command", "command": "true"}]}
        hooks = {**told["hooks"], "PreToolUse": [*told["hooks"]["PreToolUse"], old]}
        home.settings(hooks=hooks)
        folder_settings = folder / ".claude" / "settings.json"
        folder_settings.parent.mkdir()
        folder_settings.write_text(json.dumps({"crossSessionInbound": "refuse"}))
        found = bus.look(folder)
        assert f"fail: {settings}: hooks.PreToolUse[1].matcher is not a text" in found["settings"][0]
        assert f"fail: the client takes none from {settings}" in found["hooks"][0]
        assert found["inbound"][0].startswith(f"warn: {folder_settings}: crossSessionInbound is refuse")
    sent = json.loads(bus.run("send", "alice", "look at the heron", "--json"))["id"]
    tui = home.start(folder, env={"PATH": bus.env["PATH"], "TALKBUS_HOME": str(bus.folder)})
    if blocked == "file":
        tui.wait_screen("Continue without these settings")
        tui.type("3")
    tui.wait_ready()
    tui.submit("are you there")
    request = api.wait("are you there")
    assert "heron" not in json.dumps(request.body)
    (to,) = json.loads(bus.run("why", sent, "--json"))["to"]
    assert to["status"] == "stored", to
