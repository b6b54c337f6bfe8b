"""Install, plugin, both together and the way back, in the real client.

Must not test what the hooks and the agent do with messages.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bus.config import home as home_of
from bus.daemon import published, stop_broker

from .api import FakeApi
from .messages import Request
from .session import Home, Tui
from .wait import until

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
SEND = "send_message"
INSTALLED, PLUGIN = f"mcp__talkbus__{SEND}", f"mcp__plugin_talkbus_talkbus__{SEND}"


class Bus:
    """The talkbus of this checkout as the user of a scratch home calls it, and its hooks made to leave a trace."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.folder = home.root / "bus"
        self.bin = home.root / "bin"
        self.bin.mkdir()
        command = self.bin / "talkbus"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P "{ROOT}/talkbus.py" "$@"\n')
        command.chmod(0o755)
        self.env = {"TALKBUS_HOME": str(self.folder), "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}

    def run(self, *arguments: str, cwd: Path | None = None) -> str:
        env = self.home.environment(self.home.root, "setup", self.env)
        command = [str(self.bin / "talkbus"), *arguments]
        done = subprocess.run(command, cwd=cwd or self.home.root, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def client(self, *arguments: str) -> str:
        env = self.home.environment(self.home.root, "setup", self.env)
        command = [str(self.home.binary), *arguments]
        done = subprocess.run(
            command,
            cwd=self.home.root,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def agents(self, tui: Tui) -> list[list[str]]:
        """The command lines of the MCP servers a session runs."""
        import psutil  # type: ignore[import-untyped]

        children = []
        for child in psutil.Process(tui.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # a hook that ends just now
                children.append(child.cmdline())
        return [line for line in children if "mcp" in line[-1:] or any(part.endswith("mcp.sh") for part in line)]


@pytest.fixture
def bus(home: Home) -> Iterator[Bus]:
    made = Bus(home)
    yield made
    found = home_of({"TALKBUS_HOME": str(made.folder)})
    if published(found):
        stop_broker(found)


@pytest.fixture
def checkout(home: Home) -> Path:
    """A copy of what the plugin consists of, whose hooks write down that they ran."""
    copy = home.root / "a checkout"
    for folder in (".claude-plugin", "hooks"):
        shutil.copytree(ROOT / folder, copy / folder)
    script = copy / "hooks" / "deliver.sh"
    script.write_text(f'echo "$1 $0" >>"{home.root}/hooks.log"\n')
    return copy


def offered(api: FakeApi, tui: Tui, tool: str, turns: int = 40) -> Request:
    """The first request that offers the tool; a server that is still connecting is waited for, turn by turn."""
    for turn in range(turns):
        tui.submit(f"are you there {turn}")
        request = api.wait(f"are you there {turn}")
        tui.wait_idle()
        if tool in request.tools:
            return request
    raise AssertionError(f"{tool} was never offered: {api.requests[-1].tools}\n{tui.terminal.screen}")


def ours(request: Request) -> list[str]:
    return sorted(tool for tool in request.tools if "talkbus" in tool)


def test_after_an_installation_the_tools_are_there_and_before_it_all_was_as_before(
    api: FakeApi, home: Home, bus: Bus
) -> None:
    folder = home.project("alice")
    settings = home.path / ".claude" / "settings.json"
    before = settings.read_bytes()
    bus.run("install")
    assert "nothing to do" in bus.run("install")
    tui = home.tui(folder, env={"PATH": bus.env["PATH"]})  # TALKBUS_HOME comes from the settings
    request = offered(api, tui, INSTALLED)
    assert ours(request) and all(tool.startswith("mcp__talkbus__") for tool in ours(request))
    assert len(bus.agents(tui)) == 1
    until(lambda: list((bus.folder / "state" / "agents").glob("*/seat.json")), "the seat in the bus of the settings")
    tui.exit()
    assert "mcp__talkbus" in settings.read_text()
    bus.run("uninstall")
    assert settings.read_bytes() == before
    state = json.loads((home.path / ".claude.json").read_text())
    assert "mcpServers" not in state and state["numStartups"] == 1  # the client wrote to it meanwhile


def test_the_installed_status_line_is_shown_behind_the_users_own(home: Home, bus: Bus) -> None:
    home.settings(statusLine={"type": "command", "command": "cat >/dev/null; echo heron", "refreshInterval": 1})
    bus.run("install")
    tui = home.tui(home.project("alice"), env={"PATH": bus.env["PATH"]})
    tui.wait_screen("heron")
    tui.wait_screen("heron · alice")  # the session's own line, from its own agent
    bus.run("down")
    tui.wait_screen("heron · bus down")


def test_an_empty_home_is_empty_again(home: Home, bus: Bus) -> None:
    empty = home.root / "empty"
    (empty / "work").mkdir(parents=True)
    bus.env["HOME"] = str(empty)
    bus.run("install")
    listed = bus.client("mcp", "list")
    assert "talkbus" in listed and "mcp" in listed
    bus.run("uninstall")
    assert "talkbus" not in (empty / ".claude.json").read_text()
    assert not (empty / ".claude" / "settings.json").exists()


def test_the_clients_other_config_folder_is_respected(home: Home, bus: Bus) -> None:
    other = home.root / "other config"
    bus.env["CLAUDE_CONFIG_DIR"] = str(other)
    bus.run("install")
    assert sorted(path.name for path in other.iterdir()) == [".claude.json", "settings.json"]
    assert "talkbus" in bus.client("mcp", "get", "talkbus")


def test_the_checkout_is_a_plugin(api: FakeApi, home: Home, bus: Bus, checkout: Path) -> None:
    tui = home.tui(home.project("alice"), "--plugin-dir", str(checkout), env=bus.env)
    request = offered(api, tui, PLUGIN)
    assert ours(request) and all(tool.startswith("mcp__plugin_talkbus_talkbus__") for tool in ours(request))
    log = until(lambda: _lines(home), "a hook that ran")
    assert f"SessionStart {checkout}/hooks/deliver.sh" in log


def test_plugin_and_installation_together_double_nothing(api: FakeApi, home: Home, bus: Bus, checkout: Path) -> None:
    bus.run("install")
    settings = home.path / ".claude" / "settings.json"
    installed = _traced(checkout / "hooks", home.root / "installed", settings)
    tui = home.tui(home.project("alice"), "--plugin-dir", str(checkout), env=bus.env)
    request = offered(api, tui, INSTALLED)
    assert all(tool.startswith("mcp__talkbus__") for tool in ours(request))
    until(lambda: "Stop" in " ".join(_lines(home)), "the end of a turn")
    log = _lines(home)
    assert {line.partition(" ")[2] for line in log} == {f"{installed}/deliver.sh"}
    assert [line.split()[0] for line in log].count("SessionStart") == 1
    turns = len(api.requests)
    until(lambda: [line.split()[0] for line in _lines(home)].count("Stop") == turns, "one Stop for each turn")
    agents = [line for line in bus.agents(tui) if not any(part.endswith("mcp.sh") for part in line)]
    assert len(agents) == 1
    tui.submit("/mcp")
    assert "failed" not in tui.wait_screen("talkbus")


def test_both_scopes_together_run_each_hook_once(home: Home, bus: Bus, checkout: Path) -> None:
    folder = home.project("alice")
    bus.run("install")
    bus.run("install", "--scope", "project", cwd=folder)
    for settings in (home.path / ".claude" / "settings.json", folder / ".claude" / "settings.json"):
        _traced(checkout / "hooks", home.root / "traced", settings)
    home.run_print(folder, "hello", env=bus.env)
    events = [line.split()[0] for line in _lines(home)]
    assert events.count("UserPromptSubmit") == events.count("Stop") == events.count("SessionStart") == 1


def test_the_marketplace_file_and_the_plugin_are_valid_and_install_offline(home: Home, bus: Bus) -> None:
    assert "Validation passed" in bus.client("plugin", "validate", str(ROOT))
    bus.client("plugin", "marketplace", "add", str(ROOT))
    bus.client("plugin", "install", "talkbus@talkbus")
    assert "talkbus@talkbus" in bus.client("plugin", "list")
    bus.client("plugin", "uninstall", "talkbus@talkbus")


def _traced(hooks: Path, place: Path, settings: Path) -> Path:
    """Let the installed form run the hooks that leave a trace, from a place of their own."""
    shutil.copytree(hooks, place, dirs_exist_ok=True)
    text = settings.read_text()
    assert f"{ROOT}/hooks/deliver.sh" in text
    settings.write_text(text.replace(f"{ROOT}/hooks/", f"{place}/"))
    return place


def _lines(home: Home) -> list[str]:
    log = home.root / "hooks.log"
    return log.read_text().splitlines() if log.exists() else []
