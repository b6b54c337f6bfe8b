"""What doctor looks at on the client's side: the program, its settings, our entries in them. Changes nothing.

One function per fault that a person can mend. Must not know the broker.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agent import settings_files, settings_hooks
from agent.settings_client import claude_program, places
from agent.settings_entries import has_hooks, has_server
from agent.settings_text import parse
from bus.errors import ConfigError

State = Literal["ok", "warn", "fail"]

NATIVE = (2, 1, 224)  # the first client with an inbox of its own
TESTED = (2, 1, 329)
_VERSION_S = 5.0
_PLUGIN = re.compile(r"^talkbus@")

INBOUND = {
    "": "unset: messages arrive; where a session bypasses permissions they arrive from its own agent only",
    "accept": "accept: messages arrive in every session",
    "hold": "hold: the client parks what reaches its inbox until you approve it",
    "refuse": "refuse: the client takes nothing into its inbox; mail comes by hooks instead",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at; `mend` says in one line what to do about it, "" where nothing is wrong."""

    name: str
    state: State
    text: str
    mend: str = ""


@dataclass(slots=True)
class Settings:
    """The client's settings as far as they can be read, the one that counts last."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: list[Check] = field(default_factory=list)

    def value(self, key: str) -> Any:
        """What counts for a session in this folder."""
        return next((v[key] for v in reversed(self.files.values()) if key in v), None)


def read_settings(environ: Mapping[str, str], folder: Path) -> tuple[Settings, Settings]:
    """The files with hooks and status line; the files with MCP servers."""
    user, project = places("user", environ, folder), places("project", environ, folder)
    local = folder / ".claude" / "settings.local.json"
    return _read(user.settings, project.settings, local), _read(user.servers, project.servers)


def client(configured: str) -> Iterator[Check]:
    """The program, and whether its version has what we use."""
    program = claude_program(configured)
    if program is None:
        yield Check(
            "client", "warn", "claude is not on the path", "install it, or: talkbus config set claude_bin PATH"
        )
        return
    try:
        said = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_S,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Check("client", "fail", f"{program} does not run: {error}", "install Claude Code again")
        return
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", said)
    if not found:
        yield Check("client", "warn", f"{program} does not tell its version", "see 'claude --version'")
        return
    version = tuple(map(int, found.groups()))
    if version < NATIVE:
        yield Check("client", "warn", f"{found[0]} has no inbox for messages; hooks deliver instead", "claude update")
    else:
        beyond = "" if version <= TESTED else f", newer than {'.'.join(map(str, TESTED))} with which this was tested"
        yield Check("client", "ok", f"{found[0]}{beyond}")


def installed(environ: Mapping[str, str], folder: Path) -> Iterator[Check]:
    """Our entries in the settings, and what keeps them from working."""
    settings, servers = read_settings(environ, folder)
    faults = settings.broken + servers.broken
    yield from faults
    if not faults:
        count = len(settings.files) + len(servers.files)
        yield Check("settings", "ok", f"{count} file{'s' * (count != 1)} of the client can be read")
    hooks = [name for name, value in settings.files.items() if has_hooks(value)]
    listed = [name for name, value in servers.files.items() if has_server(value)]
    plugins = _plugins(settings)
    yield _server(listed, bool(hooks), plugins)
    yield from _hooks(settings, hooks, plugins)
    yield _doubled(settings, hooks, plugins)
    yield _status_line(settings)
    inbound = settings.value("crossSessionInbound")
    known = inbound if isinstance(inbound, str) and inbound in INBOUND else ""
    yield Check(
        "inbound",
        "warn" if known in ("hold", "refuse") else "ok",
        f"crossSessionInbound is {INBOUND[known]}",
        "remove crossSessionInbound from the settings, if that is not what you want"
        if known in ("hold", "refuse")
        else "",
    )


def _read(*paths: Path) -> Settings:
    found = Settings()
    for path in paths:
        try:
            file = settings_files.read(path, writable=False)
            if file.data is not None:
                found.files[str(path)] = parse(file.text, str(path))
        except ConfigError as error:
            text, _, mend = str(error).rpartition(" (")
            found.broken.append(Check("settings", "fail", text, mend.removesuffix(")")))
    return found


def _plugins(settings: Settings) -> list[str]:
    enabled = settings.value("enabledPlugins")
    return [n for n, on in enabled.items() if on and _PLUGIN.match(n)] if isinstance(enabled, dict) else []


def _server(listed: list[str], hooks: bool, plugins: list[str]) -> Check:
    if listed:
        return Check("mcp", "ok", f"the server is listed in {', '.join(listed)}")
    if plugins and not hooks:
        return Check("mcp", "ok", f"the plugin {plugins[0]} brings the server")
    beside = "" if hooks else "; only sessions of 'talkbus claude' join without it"
    return Check("mcp", "fail" if hooks else "warn", f"no client starts the server{beside}", "talkbus install")


def _hooks(settings: Settings, hooks: list[str], plugins: list[str]) -> Iterator[Check]:
    if not hooks:
        if not plugins:
            yield Check("hooks", "warn", "no hooks: mail comes by the client's inbox alone", "talkbus install")
        else:
            yield Check("hooks", "ok", f"the plugin {plugins[0]} brings the hooks")
        return
    faults = 0
    wanted = {settings_hooks.DELIVER, settings_hooks.REWAKE, settings_hooks.STATUSLINE}
    scripts = {s for name in hooks for s in settings_hooks.scripts(settings.files[name])}
    for script in sorted(scripts | {settings_hooks.FOLDER / name for name in wanted}):
        if not script.is_file() or not (script.parent / settings_hooks.SOURCED).is_file():
            faults += 1
            mend = "talkbus install" if script.parent != settings_hooks.FOLDER else "install talkbus itself again"
            yield Check("hooks", "fail", f"{script} is not there, or not whole", mend)
        elif not script.stat().st_mode & 0o100 or not os.access(script, os.R_OK):
            faults += 1
            yield Check("hooks", "fail", f"{script} is not executable", f"chmod u+rx '{script}'")
    if settings.value("disableAllHooks"):
        faults += 1
        yield Check("hooks", "warn", "disableAllHooks is set, so none runs", "remove it from the settings")
    if not faults:
        yield Check("hooks", "ok", f"in {', '.join(hooks)}")


def _doubled(settings: Settings, hooks: list[str], plugins: list[str]) -> Check:
    env = [v["env"] for v in settings.files.values() if isinstance(v.get("env"), dict)]
    if hooks and not any(settings_hooks.INSTALLED in each for each in env):
        return Check("plugin", "warn", f"{settings_hooks.INSTALLED} is missing in env", "talkbus install")
    if hooks and plugins:
        return Check(
            "plugin", "warn", f"{plugins[0]} is enabled too, and steps aside", f"claude plugin disable {plugins[0]}"
        )
    return Check("plugin", "ok", "nothing is there twice")


def _status_line(settings: Settings) -> Check:
    line = settings.value("statusLine")
    command = line.get("command", "") if isinstance(line, dict) else ""
    if settings_hooks.is_ours(line):
        theirs = settings_hooks.theirs_in(command)
        return Check("statusline", "ok", "yours, with ours behind it" if theirs else "ours")
    if isinstance(command, str) and "talkbus" in command:
        return Check("statusline", "ok", "yours, which calls ours")
    text = "yours alone" if line else "none"
    return Check("statusline", "warn", f"{text}: it does not show peers and mail", "talkbus install")
