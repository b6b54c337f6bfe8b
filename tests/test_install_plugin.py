"""The table of hooks in both its forms, and the plugin: its manifests and the server it starts."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent import settings_hooks
from agent.settings_client import server_entry

ROOT = Path(__file__).resolve().parents[1]

# --- the table of hooks


def test_the_plugins_hooks_are_what_the_table_says() -> None:
    assert json.loads((ROOT / "hooks" / "hooks.json").read_text()) == settings_hooks.plugin()


def test_both_forms_are_one_table() -> None:
    plugin = json.dumps(settings_hooks.plugin()["hooks"])
    plugin = plugin.replace('[ -z \\"$TALKBUS_INSTALLED\\" ] || exit 0; ', "")
    installed = json.dumps(settings_hooks.installed(Path("/x")))
    for script in (settings_hooks.DELIVER, settings_hooks.REWAKE):
        plugin = plugin.replace(f'\\"${{CLAUDE_PLUGIN_ROOT}}\\"/hooks/{script}', f"/x/{script}")
    assert plugin == installed


@pytest.mark.parametrize("folder", ["plain", "with space", "it's", 'quo"te', "$HOME", "a;b", "ünï", "back\\slash"])
def test_a_folder_of_any_name_is_quoted(folder: str, tmp_path: Path) -> None:
    place = tmp_path / folder
    place.mkdir()
    for name in (settings_hooks.DELIVER, settings_hooks.REWAKE):
        (place / name).write_text('printf "%s" "$1"\n')
    for event, groups in settings_hooks.installed(place).items():
        for hook in groups[0]["hooks"]:
            run = subprocess.run(["sh", "-c", hook["command"]], capture_output=True, text=True, check=True)
            assert (run.stdout, run.stderr) == ("" if "asyncRewake" in hook else event, "")
    settings = {
        "hooks": settings_hooks.installed(place),
        "statusLine": {"command": settings_hooks.statusline("x", place)},
    }
    assert [path.parent for path in settings_hooks.scripts(settings)] == [place] * 3


def test_hooks_of_a_talkbus_that_is_gone_do_nothing(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    commands = [h["command"] for groups in settings_hooks.installed(gone).values() for h in groups[0]["hooks"]]
    for command, said in [*((c, "") for c in commands), (settings_hooks.statusline("", gone), ""),
                          (settings_hooks.statusline("echo mine", gone), "mine\n")]:  # fmt: skip
        run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
        assert (run.stdout, run.stderr) == (said, "")


def test_the_plugins_hooks_step_aside_for_the_installed_ones(tmp_path: Path) -> None:
    (tmp_path / "hooks").mkdir()
    for name in (settings_hooks.DELIVER, settings_hooks.REWAKE):
        (tmp_path / "hooks" / name).write_text("echo ran\n")
    env = {"PATH": os.environ["PATH"], "CLAUDE_PLUGIN_ROOT": str(tmp_path)}
    for groups in settings_hooks.plugin()["hooks"].values():
        for hook in groups[0]["hooks"]:
            command = ["sh", "-c", hook["command"]]
            aside = subprocess.run(command, env={**env, "TALKBUS_INSTALLED": "1"}, capture_output=True)
            assert (aside.returncode, aside.stdout, aside.stderr) == (0, b"", b"")
            assert subprocess.run(command, env=env, capture_output=True).stdout == b"ran\n"
            # A script that is not there must not be exit code 2, which blocks a prompt.
            gone = subprocess.run(command, env={**env, "CLAUDE_PLUGIN_ROOT": "/nowhere"}, capture_output=True)
            assert (gone.returncode, gone.stdout, gone.stderr) == (0, b"", b"")


# --- the plugin's server


def ask_server(env: dict[str, str], *lines: dict[str, Any]) -> list[dict[str, Any]]:
    command = ["/bin/sh", str(ROOT / ".claude-plugin" / "mcp.sh"), str(ROOT)]
    asked = "".join(json.dumps({"jsonrpc": "2.0", **line}) + "\n" for line in lines)
    run = subprocess.run(command, input=asked, env=env, capture_output=True, text=True, check=True, timeout=20)
    return [json.loads(line) for line in run.stdout.splitlines()]


HELLO = {"id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25", "capabilities": {}}}


def test_the_plugins_server_is_silent_where_one_is_installed() -> None:
    env = {"PATH": os.environ["PATH"], "TALKBUS_INSTALLED": "1"}
    hello, listed, odd = ask_server(
        env,
        HELLO,
        {"method": "notifications/initialized"},
        {"id": "t-1", "method": "tools/list"},
        {"id": 7, "method": "server/discover"},
    )
    assert hello["id"] == 0 and hello["result"]["protocolVersion"] == "2025-11-25"
    assert "instructions" not in hello["result"]
    assert (listed["id"], listed["result"]) == ("t-1", {"tools": []})
    assert odd["error"]["code"] == -32601


def test_the_plugins_server_takes_the_first_talkbus_there_is(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sed", "sh", "printf"):
        found = subprocess.run(["sh", "-c", f"command -v {name}"], capture_output=True, text=True).stdout.strip()
        if found.startswith("/"):
            (tools / name).symlink_to(found)
    env = {"PATH": str(tools)}
    [hello] = ask_server(env, HELLO)
    assert "uv tool install talkbus" in hello["result"]["instructions"]

    def fake(name: str) -> None:
        (tools / name).write_text(f'#!/bin/sh\n[ "$2" != -c ] || exit 0\nprintf \'{{"ran": "%s"}}\\n\' "{name} $*"\n')
        (tools / name).chmod(0o755)

    for name, said in (
        ("python3", f"python3 -P {ROOT}/talkbus.py mcp"),
        ("uvx", f"uvx --quiet --from {ROOT} talkbus mcp"),
        ("talkbus", "talkbus mcp"),
    ):
        fake(name)
        assert ask_server(env, HELLO) == [{"ran": said}]


def test_the_manifests_agree_with_the_package() -> None:
    import talkbus

    plugin = json.loads((ROOT / ".claude-plugin" / "plugin.json").read_text())
    market = json.loads((ROOT / ".claude-plugin" / "marketplace.json").read_text())
    assert plugin["version"] == talkbus.__version__
    assert [p["name"] for p in market["plugins"]] == [plugin["name"]] == ["talkbus"]
    example = json.loads((ROOT / ".mcp.json.example").read_text())["mcpServers"]["talkbus"]
    assert example == server_entry("project")
    assert shlex.join(plugin["mcpServers"]["talkbus"]["args"]).count("CLAUDE_PLUGIN_ROOT") == 2
