"""Where Claude Code keeps what we change, and the command by which it starts us. Must not know what is changed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bus.config import Home
from bus.errors import ConfigError

Scope = Literal["user", "project"]

# Environments that uvx and pipx make for one run and throw away when they like.
_PASSING = re.compile(r"/uv/(archive|environments|builds)-v\d+/|/pipx/\.cache/|/\.cache/pipx/")


@dataclass(frozen=True, slots=True)
class Places:
    """The two files of one scope: hooks, permissions and status line; and MCP servers."""

    scope: Scope
    settings: Path
    servers: Path


def places(scope: Scope, environ: Mapping[str, str], folder: Path) -> Places:
    """Of the user, or of the project in `folder`. Nothing is read but whether an old kind of file is there."""
    if scope == "project":
        return Places(scope, folder / ".claude" / "settings.json", folder / ".mcp.json")
    root = config_folder(environ)
    servers = (root if environ.get("CLAUDE_CONFIG_DIR") else _user(environ)) / ".claude.json"
    legacy = root / ".config.json"
    return Places(scope, root / "settings.json", legacy if _filled(legacy) and not _filled(servers) else servers)


def config_folder(environ: Mapping[str, str]) -> Path:
    """The client's own folder: CLAUDE_CONFIG_DIR, else ~/.claude."""
    named = environ.get("CLAUDE_CONFIG_DIR", "")
    return Path(os.path.abspath(named)) if named else _user(environ) / ".claude"


def managed_folder() -> Path:
    """Where an administrator puts settings that go before everybody's own."""
    if sys.platform == "darwin":
        return Path("/Library/Application Support/ClaudeCode")
    if sys.platform == "win32":
        return Path(os.environ.get("PROGRAMFILES", r"C:\Program Files")) / "ClaudeCode"
    return Path("/etc/claude-code")


def managed_settings(folder: Path) -> list[Path]:
    """The settings files in there, in the order in which the client applies them: the last one counts most."""
    drops = folder / "managed-settings.d"
    names = sorted(path for path in drops.glob("*.json") if not path.name.startswith(".")) if drops.is_dir() else []
    return [folder / "managed-settings.json", *names]


def managed_elsewhere(config: Path) -> list[tuple[str, bytes]]:
    """Managed settings that are in no such file, as far as there are any: by name, as JSON. `config` is the client's
    own folder, where it keeps what its organization's server told last.
    """
    found: list[tuple[str, bytes]] = []
    if sys.platform == "darwin":
        import json
        import plistlib

        name = "com.anthropic.claudecode.plist"
        preferences = Path("/Library/Managed Preferences")
        for path in (preferences / name, preferences / os.environ.get("USER", "") / name):
            with contextlib.suppress(OSError, ValueError, TypeError):
                found.append((str(path), json.dumps(plistlib.loads(path.read_bytes())).encode()))
    if sys.platform == "win32":
        import winreg

        for hive, label in ((winreg.HKEY_CURRENT_USER, "HKCU"), (winreg.HKEY_LOCAL_MACHINE, "HKLM")):
            with contextlib.suppress(OSError), winreg.OpenKey(hive, r"SOFTWARE\Policies\ClaudeCode") as key:
                text = winreg.QueryValueEx(key, "Settings")[0]
                found.append((rf"{label}\SOFTWARE\Policies\ClaudeCode\Settings", str(text).encode()))
    with contextlib.suppress(OSError):
        found.append((str(config / "remote-settings.json"), (config / "remote-settings.json").read_bytes()))
    return found


def server_entry(scope: Scope) -> dict[str, object]:
    """The MCP server as the client is to start it: from any folder, and after an upgrade too.

    A project's file is for everybody who works on it, so it names the command and no path of this machine.
    ConfigError when this talkbus runs from an environment that may be gone tomorrow.
    """
    if _PASSING.search(sys.prefix.replace(os.sep, "/") + "/"):
        raise ConfigError(
            "this talkbus runs from a cache that may be emptied (first: uv tool install talkbus, or pipx install it)"
        )
    command = ["talkbus", "mcp"] if scope == "project" else [*_command(), "mcp"]
    return {"type": "stdio", "command": command[0], "args": command[1:]}


def session_environment(home: Home) -> dict[str, str]:
    """The variables that every session needs to find this bus: none, unless it is not the usual one."""
    return {"TALKBUS_HOME": str(home.root)} if home.root else {}


def claude_program(configured: str) -> str | None:
    """The client: as configured, else on the path; None when it is not there."""
    return shutil.which(configured or "claude")


def _command() -> list[str]:
    """This very talkbus: by its name on the path where that leads here, which lasts longest."""
    own = Path(sys.executable).with_name("talkbus")
    named = shutil.which("talkbus")
    if named and own.exists() and os.path.realpath(named) == os.path.realpath(own):
        return [os.path.abspath(named)]
    if own.exists() and "site-packages" in __file__:
        return [str(own)]
    return [sys.executable, "-P", str(Path(__file__).resolve().parent.parent / "talkbus.py")]


def _user(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or os.path.expanduser("~"))


def _filled(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
