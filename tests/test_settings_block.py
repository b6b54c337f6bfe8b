"""What in a client's settings keeps talkbus from working: each rule as it was seen in the real client."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent import settings_block
from agent.delivery.native import inbound
from agent.settings_block import (
    PLUGIN_SERVER,
    Block,
    Found,
    Server,
    approval,
    hook_blocks,
    server_blocks,
    tool_blocks,
)
from agent.settings_client import managed_settings

OURS = {"type": "stdio", "command": "/opt/talkbus", "args": ["mcp"], "env": {"TALKBUS_INSTALLED": "1"}}
TOOLS = ("ask", "send_message")
HOOK = {"type": "command", "command": "true"}


class World:
    """A home with our server in it, a project, and an administrator's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.home, self.project, self.managed = self.root / "home", self.root / "project", self.root / "managed"
        for folder in (self.home / ".claude", self.project / ".claude", self.managed / "managed-settings.d"):
            folder.mkdir(parents=True)
        self.user_settings = self.home / ".claude" / "settings.json"
        self.project_settings = self.project / ".claude" / "settings.json"
        self.local_settings = self.project / ".claude" / "settings.local.json"
        self.managed_settings = self.managed / "managed-settings.json"
        self.state = self.home / ".claude.json"
        self.mcp = self.project / ".mcp.json"
        self.environ: dict[str, str] = {"HOME": str(self.home)}
        self.write(self.state, {"mcpServers": {"talkbus": OURS}})

    @staticmethod
    def write(path: Path, value: Any) -> None:
        path.write_text(json.dumps(value))

    def remember(self, **project: Any) -> None:
        """What the client knows of the project."""
        self.write(self.state, {"mcpServers": {"talkbus": OURS}, "projects": {str(self.project): project}})

    def read(self, folder: Path | None = None) -> Found:
        return settings_block.read(self.environ, folder or self.project, self.managed)

    def server(self, folder: Path | None = None) -> list[Block]:
        """What keeps the server that wins from being started."""
        found = self.read(folder)
        return list(server_blocks(found, found.servers()[0]))

    def hooks(self) -> list[Block]:
        return list(hook_blocks(self.read(), {"user"}))

    def tools(self, prefix: str = "mcp__talkbus") -> list[Block]:
        return list(tool_blocks(self.read(), prefix, TOOLS))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def named(blocks: list[Block], path: Path, key: str) -> bool:
    """Whether exactly this file and key are blamed, with a remedy."""
    return [(b.where, b.key) for b in blocks] == [(str(path), key)] and all(b.remedy for b in blocks)


def test_nothing_blocks_where_nothing_is_set(world: World) -> None:
    assert not world.server() and not world.hooks() and not world.tools() and not world.read().refused


@pytest.mark.parametrize("settings", ["user_settings", "project_settings", "local_settings", "managed_settings"])
def test_hooks_can_be_switched_off_in_every_file(world: World, settings: str) -> None:
    path = getattr(world, settings)
    world.write(path, {"disableAllHooks": True})
    assert named(world.hooks(), path, "disableAllHooks")


def test_the_last_file_decides_about_hooks(world: World) -> None:
    world.write(world.user_settings, {"disableAllHooks": True})
    world.write(world.local_settings, {"disableAllHooks": False})
    assert not world.hooks()


def test_only_an_administrator_can_allow_managed_hooks_only(world: World) -> None:
    world.write(world.user_settings, {"allowManagedHooksOnly": True})
    assert not world.hooks()
    world.write(world.managed_settings, {"allowManagedHooksOnly": True})
    assert named(world.hooks(), world.managed_settings, "allowManagedHooksOnly")
    assert not list(hook_blocks(world.read(), {"managed"}))
    late = world.managed / "managed-settings.d" / "20.json"
    world.write(late, {"allowManagedHooksOnly": False})
    world.write(world.managed / "managed-settings.d" / "10.json", {"allowManagedHooksOnly": True})
    world.write(world.managed / "managed-settings.d" / ".99.json", {"allowManagedHooksOnly": True})
    assert not world.hooks()
    assert managed_settings(world.managed)[-1] == late


def test_hooks_of_a_plugin_that_the_administrator_enabled_run(world: World) -> None:
    world.write(world.user_settings, {"enabledPlugins": {"talkbus@x": True}})
    world.write(world.managed_settings, {"allowManagedHooksOnly": True})
    assert list(hook_blocks(world.read(), (), "talkbus@x"))
    enabled = {"allowManagedHooksOnly": True, "enabledPlugins": {"talkbus@x": True}}
    world.write(world.managed_settings, enabled)
    assert not list(hook_blocks(world.read(), (), "talkbus@x"))


@pytest.mark.parametrize(
    ("surface", "hooks", "server"), [(["hooks"], 1, 0), (["mcp"], 0, 1), (True, 1, 1), ([], 0, 0)]
)
def test_plugins_only(world: World, surface: object, hooks: int, server: int) -> None:
    world.write(world.managed_settings, {"strictPluginOnlyCustomization": surface})
    assert (len(world.hooks()), len(world.server())) == (hooks, server)
    plugin = Server("plugin", world.root, OURS, PLUGIN_SERVER)
    assert not list(server_blocks(world.read(), plugin)) and not list(hook_blocks(world.read(), ()))


@pytest.mark.parametrize("name", ["CLAUDE_CODE_SIMPLE", "CLAUDE_CODE_SAFE_MODE"])
def test_variables_that_switch_everything_off(world: World, name: str) -> None:
    world.environ[name] = "1"
    assert [b.where for b in (*world.hooks(), *world.server())] == ["the environment"] * 2
    world.environ[name] = "0"
    assert not world.hooks()
    world.write(world.user_settings, {"env": {name: "true"}})
    assert named(world.hooks(), world.user_settings, f"env.{name}") and world.server()


def test_a_server_that_was_disabled_in_this_project(world: World) -> None:
    world.remember(disabledMcpServers=["talkbus"])
    key = f'projects["{world.project}"].disabledMcpServers'
    assert named(world.server(), world.state, key)


def test_a_project_is_remembered_by_its_repository(world: World) -> None:
    inside = world.project / "a" / "b"
    inside.mkdir(parents=True)
    world.remember(disabledMcpServers=["talkbus"])
    assert not world.server(inside)
    git = ["git", "-c", "user.email=a@b", "-c", "user.name=x"]
    subprocess.run([*git, "init", "-q", str(world.project)], check=True)
    assert world.server(inside)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True, cwd=world.project)
    tree = world.root / "tree"
    subprocess.run([*git, "worktree", "add", "-q", str(tree)], check=True, cwd=world.project, capture_output=True)
    assert world.read(tree).root == world.project
    world.write(world.local_settings, {"disableAllHooks": True})
    assert list(hook_blocks(world.read(tree), {"user"}))
    link = world.root / "link"
    link.symlink_to(world.project)
    assert world.read(link).root == world.project


@pytest.mark.parametrize("settings", ["user_settings", "project_settings", "local_settings", "managed_settings"])
@pytest.mark.parametrize("entry", [{"serverName": "talkbus"}, {"serverCommand": ["/opt/talkbus", "mcp"]}])
def test_a_denied_server(world: World, settings: str, entry: object) -> None:
    path = getattr(world, settings)
    world.write(path, {"deniedMcpServers": [{"serverName": "other"}, entry]})
    assert named(world.server(), path, "deniedMcpServers")
    world.write(path, {"deniedMcpServers": [{"serverName": PLUGIN_SERVER}]})
    assert not world.server()


def test_a_server_that_is_not_on_the_list(world: World) -> None:
    world.write(world.user_settings, {"allowedMcpServers": [{"serverName": "other"}]})
    assert named(world.server(), world.user_settings, "allowedMcpServers")
    world.write(world.local_settings, {"allowedMcpServers": [{"serverName": "talkbus"}]})
    assert not world.server()
    # Where commands are listed, a name does not suffice.
    world.write(world.local_settings, {"allowedMcpServers": [{"serverName": "talkbus"}, {"serverCommand": ["x"]}]})
    assert "/opt/talkbus" in world.server()[0].remedy
    world.write(world.local_settings, {"allowedMcpServers": [{"serverCommand": ["/opt/talkbus", "mcp"]}]})
    assert not world.server()
    world.write(world.managed_settings, {"allowManagedMcpServersOnly": True})
    assert not world.server()
    world.write(world.managed_settings, {"allowManagedMcpServersOnly": True, "allowedMcpServers": []})
    assert named(world.server(), world.managed_settings, "allowedMcpServers")
    assert "administrator" in world.server()[0].remedy


def test_an_administrators_servers_are_the_only_ones(world: World) -> None:
    path = world.managed / "managed-mcp.json"
    ours = Server("user", world.state, OURS)
    for content in ({"mcpServers": {}}, {"x": 1}):
        world.write(path, content)
        assert named(list(server_blocks(world.read(), ours)), path, "") and not world.read().servers()
    world.write(path, {"mcpServers": {"talkbus": OURS}})
    assert [s.scope for s in world.read().servers()] == ["managed"] and not world.server()


def test_which_of_several_servers_wins(world: World) -> None:
    world.write(world.mcp, {"mcpServers": {"talkbus": OURS}})
    world.remember(mcpServers={"talkbus": OURS})
    assert [s.scope for s in world.read().servers()] == ["local", "project", "user"]
    below = world.project / "below"
    below.mkdir()
    assert [s.path for s in world.read(below).servers() if s.scope == "project"] == [world.mcp]
    world.write(world.managed_settings, {"managedMcpServers": {"talkbus": OURS}})
    assert world.read().servers()[0].scope == "managed"


def test_a_shared_server_needs_approval(world: World) -> None:
    world.write(world.state, {})
    world.write(world.mcp, {"mcpServers": {"talkbus": OURS}})
    (block,) = world.server()
    assert (block.where, block.hard) == (str(world.mcp), False)
    world.write(world.local_settings, {"enabledMcpjsonServers": ["talkbus"]})
    assert world.server(), "the folder is not trusted"
    world.write(world.state, {"projects": {str(world.project): {"hasTrustDialogAccepted": True}}})
    assert not world.server()
    world.write(world.local_settings, {})
    world.write(world.user_settings, {"enableAllProjectMcpServers": True})
    assert approval(world.read(), world.read().servers()[0]) == "approved"
    for path in (world.user_settings, world.project_settings, world.local_settings, world.managed_settings):
        world.write(path, {"disabledMcpjsonServers": ["talkbus"]})
        assert named(world.server(), path, "disabledMcpjsonServers")
        path.unlink()
    project = {"disabledMcpjsonServers": ["talkbus"], "hasTrustDialogAccepted": True}
    world.write(world.state, {"projects": {str(world.project): project}})
    assert named(world.server(), world.state, f'projects["{world.project}"].disabledMcpjsonServers')


def test_a_users_own_server_needs_none(world: World) -> None:
    world.write(world.user_settings, {"disabledMcpjsonServers": ["talkbus"]})
    assert not world.server()


@pytest.mark.parametrize("settings", ["user_settings", "project_settings", "local_settings", "managed_settings"])
@pytest.mark.parametrize("rule", ["mcp__talkbus", "mcp__talkbus__*", "mcp__*", "*", "mcp__talk*"])
def test_tools_that_are_denied(world: World, settings: str, rule: str) -> None:
    path = getattr(world, settings)
    world.write(path, {"permissions": {"deny": ["Bash", rule]}})
    assert named(world.tools(), path, "permissions.deny") and world.tools()[0].hard


@pytest.mark.parametrize("rule", ["mcp__talkbus__ask", "mcp__talkbus__a*"])
def test_a_single_tool_that_is_denied(world: World, rule: str) -> None:
    world.write(world.user_settings, {"permissions": {"deny": [rule]}})
    (block,) = world.tools()
    assert not block.hard and "does not get ask" in block.text


@pytest.mark.parametrize(
    "rule", ["mcp__talkbus(*)", "mcp__other", "mcp__talkbuses", "mcp__plugin_talkbus_talkbus", "Bash"]
)
def test_rules_that_mean_others(world: World, rule: str) -> None:
    world.write(world.user_settings, {"permissions": {"deny": [rule]}})
    assert not world.tools()


def test_the_plugins_tools_have_other_names(world: World) -> None:
    prefix = Server("plugin", world.root, OURS, PLUGIN_SERVER).prefix
    assert prefix == "mcp__plugin_talkbus_talkbus"
    world.write(world.user_settings, {"permissions": {"deny": [prefix]}})
    assert world.tools(prefix) and not world.tools()


def test_an_administrator_who_alone_sets_permissions(world: World) -> None:
    world.write(world.user_settings, {"permissions": {"deny": ["mcp__talkbus"]}})
    world.write(world.managed_settings, {"allowManagedPermissionRulesOnly": True})
    (block,) = world.tools()
    assert (block.key, block.hard) == ("allowManagedPermissionRulesOnly", False)


REFUSED: dict[str, Any] = {
    "hooks.PreToolUse": {"hooks": {"PreToolUse": {"hooks": [HOOK]}}},
    "hooks.PreToolUse[0]": {"hooks": {"PreToolUse": ["true"]}},
    "hooks.PreToolUse[1]": {"hooks": {"PreToolUse": [{"hooks": []}, {"matcher": "Bash", "command": "true"}]}},
    "hooks.PreToolUse[0].matcher": {"hooks": {"PreToolUse": [{"matcher": {"tools": ["Bash"]}, "hooks": [HOOK]}]}},
    "hooks.PermissionRequest[0].matcher": {"hooks": {"PermissionRequest": [{"matcher": None, "hooks": [HOOK]}]}},
    "hooks.PreToolUse[0].hooks[0]": {"hooks": {"PreToolUse": [{"hooks": [{"type": "command"}]}]}},
    "hooks.PreToolUse[0].hooks[1]": {"hooks": {"PreToolUse": [{"hooks": [HOOK, {"command": "x"}]}]}},
    "hooks.PreToolUse[0].hooks[0].timeout": {"hooks": {"PreToolUse": [{"hooks": [{**HOOK, "timeout": "5"}]}]}},
    "env": {"env": []},
    "permissions": {"permissions": []},
    "permissions.deny": {"permissions": {"deny": "mcp__x"}},
    "permissions.defaultMode": {"permissions": {"defaultMode": "nope"}},
    "statusLine": {"statusLine": "x"},
    "disableAllHooks": {"disableAllHooks": "true"},
    "model": {"model": 3},
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_file_that_the_client_drops_as_a_whole(world: World, key: str) -> None:
    world.write(world.user_settings, REFUSED[key] | {"deniedMcpServers": [{"serverName": "talkbus"}]})
    found = world.read()
    assert named(found.refused, world.user_settings, key)
    assert [s.path for s in found.dropped] == [world.user_settings] and not world.server()


@pytest.mark.parametrize(
    "settings",
    [
        {"hooks": {"PostToolUse": [{"matcher": {"tools": ["Bash"]}, "hooks": [HOOK]}]}},
        {"hooks": {"Notification": {"hooks": [HOOK]}, "NoSuchEvent": 3}},
        {"hooks": []},
        {"env": {"A": 1}},
        {"permissions": {"allow": [1]}, "fooBar": 1, "crossSessionInbound": "maybe", "deniedMcpServers": "talkbus"},
    ],
)
def test_a_file_of_which_the_client_takes_the_rest(world: World, settings: Any) -> None:
    world.write(world.user_settings, settings)
    assert not world.read().refused
    world.write(world.managed_settings, {"disableAllHooks": "true"})
    assert not world.read().refused, "of managed settings only the field is dropped"


@pytest.mark.parametrize("text", ['{"hooks": ', "// hi\n{}", '{"a": NaN}', '{"a": 1,}', "[]", "\xff"])
def test_a_file_that_is_not_json(world: World, text: str) -> None:
    world.user_settings.write_bytes(text.encode("latin-1"))
    (block,) = world.read().refused
    assert block.where.startswith(str(world.user_settings)) and block.remedy and "takes nothing" in block.text


def test_an_untrusted_folder_adds_nothing_to_the_environment(world: World) -> None:
    world.write(world.user_settings, {"env": {"A": "user", "B": 1}})
    world.write(world.project_settings, {"env": {"A": "project"}})
    assert world.read().variables() == {"A": "user", "B": "1"}
    world.remember(hasTrustDialogAccepted=True)
    assert world.read().variables()["A"] == "project"


def test_a_home_that_is_a_project_too_is_read_once(world: World) -> None:
    world.write(world.user_settings, {"disableAllHooks": True})
    assert [s.scope for s in world.read(world.home).sources] == ["user"]


def test_variables_in_an_entry(world: World) -> None:
    entry = {"command": "${BIN}/talkbus", "args": ["${A:-mcp}", "${NO}"], "env": {"X": "${BIN}"}}
    server = Server("user", world.state, entry)
    assert server.command({"BIN": "/b"}) == ["/b/talkbus", "mcp", "${NO}"]
    assert server.variables({"BIN": "/b"}) == {"X": "/b"}
    assert Server("user", world.state, {"type": "http", "url": "https://x"}).command({}) == []


def test_the_agent_reads_the_same_managed_files(world: World) -> None:
    world.write(world.managed / "managed-settings.d" / "10.json", {"crossSessionInbound": "refuse"})
    files = managed_settings(world.managed)[::-1]
    assert inbound(world.home / ".claude", "", files).answer == "refuse"
