"""What in a client's settings keeps talkbus from working there: every file that counts, read and judged.

Claude Code reads settings from several files and drops or overrides parts of them without a word. This module says
which of our parts that hits, by which key of which file, and what to do about it. The rules were tried with the real
client. Nothing is changed and nothing is started. Must not know the command line, nor how our entries are written.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agent import settings_files
from agent.settings_client import config_folder, managed_elsewhere, managed_folder, managed_settings, places
from agent.settings_hooks import SERVER
from agent.settings_text import parse
from bus.errors import ConfigError

Part = Literal["settings", "hooks", "server", "tools"]
Scope = Literal["user", "project", "local", "managed"]

PLUGIN_SERVER = f"plugin:{SERVER}:{SERVER}"  # the client's name for the server that the plugin brings
# With these in its environment the client loads neither hooks nor MCP servers.
BARE = {"CLAUDE_CODE_SIMPLE": "bare mode", "CLAUDE_CODE_SAFE_MODE": "safe mode"}
# One bad entry under these events makes the client drop the whole file: such a hook may guard what the file permits.
_GUARDS = ("PreToolUse", "PermissionRequest")
_MODES = ("acceptEdits", "auto", "bypassPermissions", "default", "delegate", "dontAsk", "plan", "manual")
_OBJECTS = ("env", "permissions", "statusLine")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


@dataclass(frozen=True, slots=True)
class Block:
    """One setting that keeps a part of ours from working, or with `hard` off only limits it.

    `where` is a file, or "the environment"; `key` is "" where the whole file is meant.
    """

    part: Part
    where: str
    key: str
    text: str
    remedy: str
    hard: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {f'{self.key} ' if self.key else ''}{self.text} ({self.remedy})"


@dataclass(frozen=True, slots=True)
class Source:
    """A settings file that the client reads."""

    scope: Scope
    path: Path
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Server:
    """An MCP server as it is configured. `name` is what the client calls it."""

    scope: str
    path: Path
    entry: dict[str, Any]
    name: str = SERVER

    @property
    def prefix(self) -> str:
        """What the names of its tools begin with, without the last underscores."""
        return "mcp__" + re.sub(r"[^A-Za-z0-9_-]", "_", self.name)

    def command(self, environ: Mapping[str, str]) -> list[str]:
        """Its command line, with variables filled in as the client does; [] for a server of another kind."""
        command, args = self.entry.get("command"), self.entry.get("args", [])
        kind = self.entry.get("type", "stdio")
        if kind != "stdio" or not isinstance(command, str) or not command or not isinstance(args, list):
            return []
        return [expanded(str(word), environ) for word in (command, *args)]

    def variables(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The variables that its entry sets."""
        env = self.entry.get("env")
        return {k: expanded(str(v), environ) for k, v in env.items()} if isinstance(env, dict) else {}


@dataclass(slots=True)
class Found:
    """Everything the client would read for a session in `folder`."""

    folder: Path
    root: Path  # of the git repository, else the folder: by it the client remembers a project
    environ: Mapping[str, str]
    sources: list[Source] = field(default_factory=list)  # the one that counts most is the last
    dropped: list[Source] = field(default_factory=list)  # those that the client does not take anything from
    refused: list[Block] = field(default_factory=list)
    state_path: Path = Path()
    state: dict[str, Any] = field(default_factory=dict)
    shared: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)  # .mcp.json, the nearest first
    exclusive: tuple[Path, dict[str, Any]] | None = None  # managed-mcp.json: no other servers are loaded

    def holding(self, key: str) -> list[tuple[Source, Any]]:
        """The files that have a key, with its value, the one that counts most last."""
        return [(source, source.data[key]) for source in self.sources if source.data.get(key) is not None]

    def value(self, key: str) -> Any:
        """What counts for a session here."""
        held = self.holding(key)
        return held[-1][1] if held else None

    def managed(self, key: str) -> tuple[Source, Any] | None:
        """A key that counts in managed settings only."""
        held = [(source, value) for source, value in self.holding(key) if source.scope == "managed"]
        return held[-1] if held else None

    @property
    def project(self) -> dict[str, Any]:
        """What the client's own state remembers of this project."""
        return _mapping(_mapping(self.state.get("projects")).get(str(self.root)))

    @property
    def trusted(self) -> bool:
        """Whether the user told the client to trust this folder, or one above it."""
        projects = _mapping(self.state.get("projects"))
        return any(
            _mapping(projects.get(str(above))).get("hasTrustDialogAccepted") is True
            for above in (self.root, self.folder, *self.folder.parents)
        )

    def trusts(self, source: Source) -> bool:
        """Whether what this file says to run may be run: a project's only after the user trusted the folder."""
        return source.scope in ("user", "managed") or self.trusted

    def variables(self) -> dict[str, str]:
        """What the settings add to the environment of a session."""
        found: dict[str, str] = {}
        for source, env in self.holding("env"):
            if isinstance(env, dict) and self.trusts(source):
                found |= {str(name): str(value) for name, value in env.items() if value is not None}
        return found

    def plugins(self) -> dict[str, Source]:
        """The plugins named talkbus that are enabled, each with the file that decides it."""
        found: dict[str, Source] = {}
        for source, listed in self.holding("enabledPlugins"):
            for name, on in listed.items() if isinstance(listed, dict) else ():
                if name.startswith(f"{SERVER}@"):
                    found.pop(name, None)
                    if on:
                        found[name] = source
        return found

    def servers(self) -> list[Server]:
        """Every MCP server called talkbus; of those that the client takes, the first one wins."""
        if self.exclusive is not None:
            path, data = self.exclusive
            return list(_listed("managed", path, data.get("mcpServers")))
        found = [
            s for source, value in self.holding("managedMcpServers") for s in _listed("managed", source.path, value)
        ]
        found += _listed("local", self.state_path, self.project.get("mcpServers"))
        found += [
            server for path, data in self.shared[:1] for server in _listed("project", path, data.get("mcpServers"))
        ]
        return [*found, *_listed("user", self.state_path, self.state.get("mcpServers"))]


def read(environ: Mapping[str, str], folder: Path, managed: Path | None = None) -> Found:
    """Read what counts for a session in `folder`. `managed` is the administrator's folder."""
    folder = Path(os.path.realpath(folder))
    root = _repository(folder)
    found = Found(folder, root, environ)
    user, project = places("user", environ, folder), places("project", environ, folder)
    local = dict.fromkeys(above / ".claude" / "settings.local.json" for above in (root, folder))
    _take(found, "user", user.settings)
    _take(found, "project", project.settings)
    for path in local:
        _take(found, "local", path)
    administered = managed_folder() if managed is None else managed
    for path in managed_settings(administered):
        _take(found, "managed", path)
    for name, told in managed_elsewhere(config_folder(environ)):
        with contextlib.suppress(ConfigError, UnicodeDecodeError):
            found.sources.append(Source("managed", Path(name), parse(told.decode("utf-8-sig"), name)))
    found.state_path = user.servers
    found.state = _parsed(found, user.servers) or {}
    # The nearest .mcp.json that lists the server is the one that counts.
    for above in (folder, *folder.parents):
        data = _parsed(found, above / ".mcp.json")
        if data is not None and SERVER in _mapping(data.get("mcpServers")):
            found.shared.append((above / ".mcp.json", data))
    exclusive = administered / "managed-mcp.json"
    if exclusive.is_file():
        found.exclusive = (exclusive, _parsed(found, exclusive) or {})
    return found


def refusal(data: Mapping[str, Any]) -> tuple[str, str] | None:
    """The key, and the fault in it, for which the client drops a whole settings file; None when it takes the file."""
    hooks = _mapping(data.get("hooks"))
    for event in _GUARDS:
        fault = _bad_guard(hooks[event], f"hooks.{event}") if event in hooks else None
        if fault:
            return fault
    for key in _OBJECTS:
        if key in data and not isinstance(data[key], dict):
            return key, "is not an object"
    permissions = _mapping(data.get("permissions"))
    for key in ("allow", "deny", "ask"):
        if key in permissions and not isinstance(permissions[key], list):
            return f"permissions.{key}", "is not a list"
    if "defaultMode" in permissions and permissions["defaultMode"] not in _MODES:
        return "permissions.defaultMode", "is not a mode that the client knows"
    if "disableAllHooks" in data and not isinstance(data["disableAllHooks"], bool):
        return "disableAllHooks", "is neither true nor false"
    if "model" in data and not isinstance(data["model"], str):
        return "model", "is not a text"
    return None


def hook_blocks(found: Found, scopes: Collection[str], plugin: str = "") -> Iterator[Block]:
    """What keeps our hooks from running: those in the settings of these scopes, or those of a plugin."""
    yield from _bare(found, "hooks")
    off = found.holding("disableAllHooks")
    if off and off[-1][1] is True:
        source = off[-1][0]
        yield Block(
            "hooks",
            str(source.path),
            "disableAllHooks",
            "is set, so no hook runs",
            _without(source, "disableAllHooks"),
        )
    elsewhere = set(scopes) - {"managed"}
    only = found.managed("allowManagedHooksOnly")
    if only and only[1] is True:
        by_admin = plugin and found.plugins()[plugin].scope == "managed"
        if elsewhere or (plugin and not by_admin):
            text = "is set, so only hooks of managed settings run"
            yield Block(
                "hooks", str(only[0].path), "allowManagedHooksOnly", text, _admin("allow the hooks of talkbus")
            )
    yield from _plugins_only(found, "hooks", bool(elsewhere), "so hooks in settings files do not run")


def server_blocks(found: Found, server: Server) -> Iterator[Block]:
    """What keeps the client from starting this server, were it the one that wins."""
    yield from _bare(found, "server")
    if found.exclusive is not None and server.scope != "managed":
        text = f"is there and does not list {server.name}; the client then loads no other MCP server"
        yield Block("server", str(found.exclusive[0]), "", text, _admin(f"add {server.name} to it"))
    yield from _plugins_only(
        found, "mcp", server.scope not in ("managed", "plugin"), "so MCP servers of settings files are not started"
    )
    if server.name in _strings(found.project.get("disabledMcpServers")):
        text = f"names {server.name}, so the client does not start it in this project"
        key = f'projects["{found.root}"].disabledMcpServers'
        remedy = f"in a session here: /mcp, {server.name}, Enable; or remove it from the list"
        yield Block("server", str(found.state_path), key, text, remedy)
    for source, listed in found.holding("deniedMcpServers"):
        if _matches(listed, server, found.environ, strict=False):
            text = f"names {server.name}, so the client does not start it"
            yield Block("server", str(source.path), "deniedMcpServers", text, _without(source, "that entry"))
    yield from _not_allowed(found, server)
    if server.scope == "project":
        yield from _not_approved(found, server)


def tool_blocks(found: Found, prefix: str, tools: Sequence[str]) -> Iterator[Block]:
    """What takes our tools away from the model, or makes the client ask for each use."""
    only = found.managed("allowManagedPermissionRulesOnly")
    managed_only = only is not None and only[1] is True
    for source, permissions in found.holding("permissions"):
        if managed_only and source.scope != "managed":
            continue
        for rule in _strings(_mapping(permissions).get("deny")):
            denied = [tool for tool in tools if _denies(rule, prefix, tool)]
            if not denied:
                continue
            whole = len(denied) == len(tools)
            text = f"has {rule}, so the model does not get {'any tool of talkbus' if whole else ', '.join(denied)}"
            yield Block(
                "tools", str(source.path), "permissions.deny", text, _without(source, "that rule"), hard=whole
            )
    if managed_only and only is not None:
        text = (
            "is set, so the permission that 'talkbus install' gave does not count and the client asks for each call"
        )
        remedy = _admin(f"allow {prefix} there")
        yield Block("tools", str(only[0].path), "allowManagedPermissionRulesOnly", text, remedy, hard=False)


def approval(found: Found, server: Server) -> str:
    """Whether the user let this server of a shared .mcp.json start: "approved", "rejected" or "pending"."""
    if any(server.name in _strings(names) for _, names in found.holding("disabledMcpjsonServers")):
        return "rejected"
    if server.name in _strings(found.project.get("disabledMcpjsonServers")):
        return "rejected"
    ok = any(
        server.name in _strings(names)
        for source, names in found.holding("enabledMcpjsonServers")
        if found.trusts(source)
    )
    ok = ok or server.name in _strings(found.project.get("enabledMcpjsonServers"))
    every = [value for source, value in found.holding("enableAllProjectMcpServers") if found.trusts(source)]
    return "approved" if ok or (every and every[-1] is True) else "pending"


def expanded(text: str, environ: Mapping[str, str]) -> str:
    """A text of an MCP entry with ${NAME} and ${NAME:-default} filled in."""
    return _VARIABLE.sub(lambda m: environ.get(m[1]) or (m[2] if m[2] is not None else environ.get(m[1], m[0])), text)


def truthy(value: object) -> bool:
    """As the client reads a variable that switches something on."""
    return str(value or "").strip().lower() in ("1", "true", "yes", "on")


def _repository(folder: Path) -> Path:
    """By what the client remembers a project: its repository, for a worktree the one it belongs to."""
    for above in (folder, *folder.parents):
        git = above / ".git"
        if git.is_dir():
            return above
        if git.is_file():
            with contextlib.suppress(OSError, ValueError):
                own = above / git.read_text("utf-8").removeprefix("gitdir:").strip()
                common = Path(os.path.realpath(own / (own / "commondir").read_text("utf-8").strip()))
                if common.name == ".git":
                    return common.parent
            return above
    return folder


def _take(found: Found, scope: Scope, path: Path) -> None:
    if any(source.path == path for source in (*found.sources, *found.dropped)):
        return  # the home folder is a project too
    data = _parsed(found, path, "settings")
    if data is None:
        return
    source = Source(scope, path, data)
    # Of managed settings the client ignores only the field that is wrong.
    fault = refusal(data) if scope != "managed" else None
    if fault is None:
        found.sources.append(source)
        return
    found.dropped.append(source)
    text = f"{fault[1]}, so the client takes nothing from this file: no hooks, no permissions, no environment"
    found.refused.append(Block("settings", str(path), fault[0], text, "correct or remove that entry"))


def _parsed(found: Found, path: Path, part: Part = "server") -> dict[str, Any] | None:
    try:
        file = settings_files.read(path, writable=False)
        return None if file.data is None else parse(file.text, str(path))
    except ConfigError as error:
        text, _, remedy = str(error).rpartition(" (")
        at = re.match(r"(:\d+(?::\d+)?)?:? ?", text.removeprefix(str(path)))
        assert at is not None
        text = text.removeprefix(str(path))[at.end() :]
        where = f"{path}{at[1] or ''}"
        found.refused.append(Block(part, where, "", f"{text}; the client takes nothing from it", remedy[:-1]))
        return None


def _bad_guard(groups: object, key: str) -> tuple[str, str] | None:
    """The first entry of such an event that the client cannot read."""
    if not isinstance(groups, list):
        return key, "is not a list"
    for number, group in enumerate(groups):
        here = f"{key}[{number}]"
        if not isinstance(group, dict):
            return here, "is not an object"
        if "matcher" in group and not isinstance(group["matcher"], str):
            return f"{here}.matcher", "is not a text (an old form)"
        if not isinstance(group.get("hooks"), list):
            return here, "has no list of hooks (an old form)"
        for index, hook in enumerate(group["hooks"]):
            if not isinstance(hook, dict) or not isinstance(hook.get("type"), str):
                return f"{here}.hooks[{index}]", "has no type"
            if hook["type"] == "command" and not isinstance(hook.get("command"), str):
                return f"{here}.hooks[{index}]", "has no command"
            if "timeout" in hook and (
                isinstance(hook["timeout"], bool) or not isinstance(hook["timeout"], int | float)
            ):
                return f"{here}.hooks[{index}].timeout", "is not a number"
    return None


def _bare(found: Found, part: Part) -> Iterator[Block]:
    for name, mode in BARE.items():
        text = f"starts the client in {mode}, which loads neither hooks nor MCP servers"
        for source, env in found.holding("env"):
            if truthy(_mapping(env).get(name)):
                yield Block(part, str(source.path), f"env.{name}", text, _without(source, name))
        if truthy(found.environ.get(name)):
            yield Block(part, "the environment", name, text, f"unset {name}")


def _plugins_only(found: Found, surface: str, hit: bool, effect: str) -> Iterator[Block]:
    held = found.managed("strictPluginOnlyCustomization")
    if hit and held and (held[1] is True or surface in _strings(held[1])):
        part: Part = "hooks" if surface == "hooks" else "server"
        text = f"allows plugins only, {effect}"
        remedy = _admin("enable the plugin talkbus")
        yield Block(part, str(held[0].path), "strictPluginOnlyCustomization", text, remedy)


def _not_allowed(found: Found, server: Server) -> Iterator[Block]:
    """Lists of several files count as one, unless an administrator keeps it to the managed ones."""
    only = found.managed("allowManagedMcpServersOnly")
    lists = [(s, v) for s, v in found.holding("allowedMcpServers") if isinstance(v, list)]
    if only and only[1] is True:
        lists = [(source, value) for source, value in lists if source.scope == "managed"]
    if server.scope == "managed" or not lists:
        return
    entries = [entry for _, value in lists for entry in value]
    if _matches(entries, server, found.environ, strict=True):
        return
    source = lists[-1][0]
    by_command = any("serverCommand" in _mapping(entry) for entry in entries) and server.command(found.environ)
    wanted = (
        f"its serverCommand {server.command(found.environ)}" if by_command else f'{{"serverName": "{server.name}"}}'
    )
    more = " (allowManagedMcpServersOnly: lists of other files do not count)" if only and only[1] is True else ""
    text = f"does not list {server.name}, so the client does not start it{more}"
    remedy = _admin(f"add {wanted}") if source.scope == "managed" else f"add {wanted} to it, or remove the list"
    yield Block("server", str(source.path), "allowedMcpServers", text, remedy)


def _not_approved(found: Found, server: Server) -> Iterator[Block]:
    state = approval(found, server)
    if state == "rejected":
        text = f"names {server.name}, so the client does not start the server of {server.path}"
        for source, names in found.holding("disabledMcpjsonServers"):
            if server.name in _strings(names):
                remedy = _without(source, server.name)
                yield Block("server", str(source.path), "disabledMcpjsonServers", text, remedy)
        if server.name in _strings(found.project.get("disabledMcpjsonServers")):
            key = f'projects["{found.root}"].disabledMcpjsonServers'
            yield Block("server", str(found.state_path), key, text, f"remove {server.name} from it")
    elif state == "pending":
        text = f"lists {server.name}, and you have not approved it yet; until then sessions here do not start it"
        remedy = "start claude here and approve it"
        yield Block("server", str(server.path), f"mcpServers.{server.name}", text, remedy, hard=False)


def _matches(listed: object, server: Server, environ: Mapping[str, str], *, strict: bool) -> bool:
    """Whether a list of servers names this one. With `strict`, where commands are listed a name does not suffice."""
    entries = [_mapping(entry) for entry in listed] if isinstance(listed, list) else []
    command = server.command(environ)
    by_command = [entry["serverCommand"] for entry in entries if isinstance(entry.get("serverCommand"), list)]
    if command and any([expanded(str(w), environ) for w in words] == command for words in by_command):
        return True
    if strict and command and by_command:
        return False
    return any(entry.get("serverName") == server.name for entry in entries)


def _denies(rule: str, prefix: str, tool: str) -> bool:
    """Whether a permission rule names this tool, or all of its server; * in it means any text."""
    pattern = re.compile(".*".join(map(re.escape, rule.split("*"))), re.DOTALL)
    return pattern.fullmatch(prefix) is not None or pattern.fullmatch(f"{prefix}__{tool}") is not None


def _listed(scope: str, path: Path, servers: object) -> Iterator[Server]:
    entry = _mapping(servers).get(SERVER)
    if isinstance(entry, dict):
        yield Server(scope, path, entry)


def _without(source: Source, what: str) -> str:
    return _admin(f"remove {what}") if source.scope == "managed" else f"remove {what} from it"


def _admin(what: str) -> str:
    return f"ask the administrator of this machine to {what}"


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _strings(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
