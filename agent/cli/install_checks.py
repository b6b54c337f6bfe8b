"""What doctor looks at on the client's side: the program, its settings, our entries in them, and whether they work.

What keeps an entry from working is judged in agent/settings_block.py, proof by use is in doctor_probe. Changes
nothing. Must not know the broker.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agent import settings_files, settings_hooks
from agent.cli import doctor_probe
from agent.cli.doctor_probe import Hook, Served, ThrowAway, Unproven, agent_place, hooks_in, looked_in, run_hooks
from agent.delivery import native
from agent.settings_block import (
    PLUGIN_SERVER,
    Block,
    Found,
    Server,
    Source,
    approval,
    hook_blocks,
    read,
    server_blocks,
    tool_blocks,
)
from agent.settings_client import claude_program, config_folder
from agent.settings_entries import has_hooks
from agent.settings_text import parse
from bus.errors import BusError, ConfigError

State = Literal["ok", "warn", "fail", "skip"]  # skip: it could not be tried

NATIVE = (2, 1, 224)  # the first client with an inbox of its own
TESTED = (2, 1, 329)
_VERSION_S = 5.0

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
class Ways:
    """By which ways mail would reach a session of the client, as far as that was proved."""

    configured: bool = False  # anything of ours is in its settings
    server: bool | None = False  # its agent starts; without it nothing arrives. None: that was not tried
    inbox: bool = False  # the settings let messages into the session's own inbox, and the client has one
    hooks: bool = False
    waiter: bool = False  # a hook that wakes


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


def installed(
    environ: Mapping[str, str],
    folder: Path,
    program: str | None = None,
    ways: Ways | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Check]:
    """Our entries in the settings, what keeps them from working, and whether they work when they are used.

    `program` is the client, which is asked too; `tell` is told what takes a while.
    """
    ways = ways or Ways()
    found = read(environ, folder)
    plugins = found.plugins()
    ways.configured = bool(plugins or found.servers()) or any(
        has_hooks(s.data) for s in (*found.sources, *found.dropped)
    )
    server = _server(found, next(iter(plugins), ""))
    with ExitStack() as stack:
        try:
            away = stack.enter_context(doctor_probe.ThrowAway(found))
        except (BusError, OSError) as error:
            away = None
            yield Check(
                "probe", "skip", f"neither server nor client is tried: {error}", "set TMPDIR to a folder of yours"
            )
        pool = stack.enter_context(ThreadPoolExecutor(3))
        stack.push(lambda kind, *_: doctor_probe.stop() if kind else None)  # before the pool waits for its threads
        complaints = None
        asked: Future[tuple[str, str]] | str = ""
        served: Future[Served] | str = "see the line about the probe"
        if away is not None:
            # In a folder that is not trusted the client is asked from an empty one: it must not act on that folder.
            where = folder if found.trusted else away.empty
            if program:
                complaints = pool.submit(doctor_probe.ask_about_settings, program, environ, where, away)
            asked = _asking(pool, program, found, server, where, away)
            served = _serving(pool, found, server, away)
        hooks = list(_hooks(found, server, plugins, ways, tell))  # while the others start
        yield from _settings(found, complaints, tell)
        yield from hooks
        yield from _mcp(found, server, served, asked, plugins, ways, tell)
    yield _doubled(found, plugins)
    yield _status_line(found)
    yield _inbound(environ, folder, ways)


def _inbound(environ: Mapping[str, str], folder: Path, ways: Ways) -> Check:
    inbound = native.inbound(config_folder(environ), str(folder))
    known = inbound.answer if inbound.source else ""
    where = f"{inbound.source}: " if inbound.source else ""
    text = f"{where}crossSessionInbound is {INBOUND[known]}"
    if known in ("hold", "refuse"):
        return Check("inbound", "warn", text, "remove crossSessionInbound from it, if that is not what you want")
    ways.inbox = True
    return Check("inbound", "ok", text)


def _settings(
    found: Found, complaints: Future[list[tuple[str, str]]] | None, tell: Callable[[str], None]
) -> Iterator[Check]:
    """Whether the client takes its settings files, by our reading of them and by its own."""
    faults = [_check("settings", block) for block in found.refused]
    yield from faults
    if complaints is not None:
        tell("asking the client about its settings")
        known = {re.sub(r"(:\d+){1,2}$", "", block.where) for block in found.refused}
        try:
            for path, text in complaints.result():
                if path in known:
                    continue
                # Of these words the client says one where it takes the rest of the file.
                partly = re.search(r"\b(ignored|removed|skipped)\b", text) is not None
                told = f"{path}: {text}" if partly else f"{path}: the client takes nothing from it: {text}"
                faults.append(Check("settings", "warn" if partly else "fail", told, "correct that entry"))
                yield faults[-1]
        except Unproven as error:
            faults.append(Check("settings", "skip", str(error), "run 'claude doctor'"))
            yield faults[-1]
    if not faults:
        count = len(found.sources) + bool(found.state) + len(found.shared)
        by = ", and the client finds no fault in them" if complaints is not None else ""
        yield Check("settings", "ok", f"{count} file{'s' * (count != 1)} of the client can be read{by}")


def _server(found: Found, plugin: str) -> Server | None:
    """The MCP server that the client would start: of several called talkbus, the one that wins."""
    listed = found.servers()
    taken = [s for s in listed if s.scope != "project" or approval(found, s) == "approved"]
    if listed:
        return (taken or listed)[0]
    folder = _plugin_folder(found, plugin)
    if folder is None:
        return None
    path = folder / ".claude-plugin" / "plugin.json"
    servers = _json(path).get("mcpServers")
    entry = servers.get(settings_hooks.SERVER) if isinstance(servers, dict) else None
    return Server("plugin", path, entry, PLUGIN_SERVER) if isinstance(entry, dict) else None


def _mcp(
    found: Found,
    server: Server | None,
    served: Future[Served] | str,
    asked: Future[tuple[str, str]] | str,
    plugins: Mapping[str, Source],
    ways: Ways,
    tell: Callable[[str], None],
) -> Iterator[Check]:
    """Whether the client would start our server, and whether it works when it is started."""
    if server is None:
        if plugins:
            name = next(iter(plugins))
            text = f"the plugin {name} is enabled, and no server of it is found"
            yield Check("mcp", "fail", text, f"claude plugin install {name}")
        else:
            hooks = any(has_hooks(source.data) for source in (*found.sources, *found.dropped))
            beside = "" if hooks else "; only sessions of 'talkbus claude' join without it"
            yield Check("mcp", "fail" if hooks else "warn", f"no client starts the server{beside}", "talkbus install")
        return
    blocks = list(server_blocks(found, server))
    yield from (_check("mcp", block) for block in blocks)
    tools: list[str] = []
    works = False
    if isinstance(served, str):
        yield Check("mcp", "skip", f"{server.path}: the server was not started: {served}", "see the line above")
    else:
        tell("starting the MCP server as configured")
        try:
            answer = served.result()
        except Unproven as error:
            yield Check("mcp", "fail", f"{server.path}: the server {error}", _reinstall(server))
        else:
            tools = answer.tools
            check = _served(server, answer, found)
            works = check.state == "ok"
            yield check
    if asked != "":
        tell("asking the client about the MCP server")
        told = _told(server, asked, blocked=any(block.hard for block in blocks), works=works)
        works = works and told.state != "fail"
        if told.state != "warn" or not blocks:  # that it waits for an approval was said
            yield told
    if tools or not isinstance(served, str):
        denied = list(tool_blocks(found, server.prefix, tools or list(_tools())))
        yield from (_check("tools", block) for block in denied)
        if not denied and works:
            yield Check("tools", "ok", "no permission rule takes them away")
    if any(block.hard for block in blocks):
        works = False
    ways.server = works or (None if isinstance(served, str) and not any(block.hard for block in blocks) else False)


def _served(server: Server, answer: Served, found: Found) -> Check:
    """What its answers are worth."""
    others = [f"{s.scope} ({s.path})" for s in found.servers() if s is not server and s.scope != server.scope]
    if answer.name != settings_hooks.SERVER:
        text = f"{server.path}: the {server.scope} MCP server called talkbus is another program, {answer.name!r}"
        text += f", and goes before ours: {', '.join(others)}" if others else ""
        return Check("mcp", "fail", text, _rename(server))
    if not answer.tools:
        return Check("mcp", "fail", f"{server.path}: the server answers and has no tools", _reinstall(server))
    given = {**found.environ, **found.variables()}.get("MCP_TIMEOUT", "")
    limit = int(given) / 1000 if given.isdecimal() and int(given) else 30.0
    if answer.seconds > limit:
        text = f"the server answered after {answer.seconds:.1f} s, and the client waits {limit:.1f} s (MCP_TIMEOUT)"
        return Check("mcp", "fail", text, "set MCP_TIMEOUT to 30000, or unset it")
    text = f"{server.path}: started as configured, answered in {answer.seconds:.1f} s, {len(answer.tools)} tools"
    return Check("mcp", "ok", text)


def _told(server: Server, asked: Future[tuple[str, str]] | str, *, blocked: bool, works: bool) -> Check:
    """What the client itself says of the server."""
    if isinstance(asked, str):
        return Check("mcp", "skip", f"the client was not asked about the server: {asked}", "see /mcp in a session")
    try:
        status, scope = asked.result()
    except Unproven as error:
        return Check("mcp", "skip", str(error), "see /mcp in a session")
    remedy = "see the lines above" if blocked else "see /mcp in a session"
    if status == "absent":
        return Check("mcp", "fail", f"the client says: no MCP server {server.name}", remedy)
    if status != "connected":
        pending = "Pending approval" in status
        return Check("mcp", "warn" if pending else "fail", f"the client says of {server.name}: {status}", remedy)
    if scope and scope != server.scope and server.scope != "plugin":
        text = f"the client takes the server of scope {scope}, not the one in {server.path}"
        return Check("mcp", "warn" if works else "fail", text, f"claude mcp get {server.name}")
    return Check("mcp", "ok", f"the client itself starts {server.name}, and is connected")


def _hooks(
    found: Found,
    server: Server | None,
    plugins: Mapping[str, Source],
    ways: Ways,
    tell: Callable[[str], None],
) -> Iterator[Check]:
    """Whether the client would run our hooks, and whether they find the mail when they are run."""
    holders = [source for source in found.sources if has_hooks(source.data)]
    dropped = [str(source.path) for source in found.dropped if has_hooks(source.data)]
    plugin = "" if holders else next(iter(plugins), "")
    if dropped:
        text = f"the client takes none from {', '.join(dropped)}"
        yield Check("hooks", "fail", text, "correct what the line about that file says")
    if not holders and not plugin:
        if not dropped:
            yield Check("hooks", "warn", "no hooks: mail comes by the client's inbox alone", "talkbus install")
        return
    blocks = list(hook_blocks(found, {source.scope for source in holders}, plugin))
    broken = list(_scripts(holders))
    yield from (_check("hooks", block) for block in blocks)
    yield from broken
    if blocks or broken:
        return
    folder = _plugin_folder(found, plugin)
    if plugin and folder is None:
        text = f"the plugin {plugin} brings them; its folder is not found, so they were not run"
        yield Check("hooks", "skip", text, f"claude plugin install {plugin}")
        return
    base = {**found.environ, **found.variables()}
    if folder is not None:
        base["CLAUDE_PLUGIN_ROOT"] = str(folder)
    trusted = [source for source in holders if found.trusts(source)]
    untrusted = [str(source.path) for source in holders if source not in trusted]
    if untrusted:
        text = f"those in {', '.join(untrusted)} were not run: this folder is not trusted in the client yet"
        yield Check("hooks", "skip", text, "start claude here and trust the folder")
    if folder is not None:
        hooks = hooks_in(_json(folder / "hooks" / "hooks.json"))
        names = [str(folder / "hooks" / "hooks.json")]
    else:
        hooks = list(dict.fromkeys(hook for source in trusted for hook in hooks_in(source.data)))
        names = [str(source.path) for source in trusted]
    if hooks:
        tell("running the hooks")
        scripts = folder / "hooks" if folder is not None else _folder_of(trusted)
        yield from _ran(hooks, names, scripts, base, found.folder, server, ways)


def _ran(
    hooks: Sequence[Hook],
    names: Sequence[str],
    scripts: Path,
    base: Mapping[str, str],
    folder: Path,
    server: Server | None,
    ways: Ways,
) -> Iterator[Check]:
    """Run the hooks against a text where the agent would put it."""
    where = ", ".join(names)
    try:
        place = agent_place({**base, **(server.variables(base) if server is not None else {})})
        done = run_hooks(hooks, place, base, folder)
    except Unproven as error:
        yield Check("hooks", "fail", str(error), "make that folder writable for you")
        return
    missing = [row for row in settings_hooks.TABLE if not any(_is(row, hook) for hook in hooks)]
    ways.hooks, ways.waiter = done.delivered > 0, done.woke > 0
    lost = [fault for fault in done.faults if "did not find the mail" in fault]
    looked = looked_in(scripts, base) if lost else []
    if lost and str(place) not in looked:
        text = f"{where}: the agent puts mail into {place}, and the hooks look in {', '.join(looked) or 'no folder'}"
        remedy = "let both have the same environment: TALKBUS_HOME (or XDG_RUNTIME_DIR) set before claude starts"
        yield Check("hooks", "fail", text, remedy)
        done.faults = [fault for fault in done.faults if fault not in lost]
    for fault in done.faults:
        yield Check("hooks", "fail", f"{where}: {fault}", "talkbus install; see the file it names")
    if missing:
        events = ", ".join(dict.fromkeys(row.event for row in missing))
        yield Check("hooks", "warn", f"{where}: of another version, not all of ours at {events}", "talkbus install")
    if not done.faults and not lost:
        text = (
            f"{where}: ran all {done.ran} as configured; {done.delivered} delivered a probe, {done.woke} woke with it"
        )
        yield Check("hooks", "ok", f"{text}, {done.noted} noted what the session does")


def _scripts(holders: Sequence[Source]) -> Iterator[Check]:
    """Whether the scripts that the hooks name are there."""
    wanted = {settings_hooks.DELIVER, settings_hooks.REWAKE, settings_hooks.STATUSLINE} if holders else set()
    named = {script for source in holders for script in settings_hooks.scripts(source.data)}
    for script in sorted(named | {settings_hooks.FOLDER / name for name in wanted}):
        if not script.is_file() or not (script.parent / settings_hooks.SOURCED).is_file():
            mend = "talkbus install" if script.parent != settings_hooks.FOLDER else "install talkbus itself again"
            yield Check("hooks", "fail", f"{script} is not there, or not whole", mend)
        elif not script.stat().st_mode & 0o100 or not os.access(script, os.R_OK):
            yield Check("hooks", "fail", f"{script} is not executable", f"chmod u+rx '{script}'")


def _folder_of(holders: Sequence[Source]) -> Path:
    named = [script for source in holders for script in settings_hooks.scripts(source.data)]
    return named[0].parent if named else settings_hooks.FOLDER


def _is(row: settings_hooks.Row, hook: Hook) -> bool:
    return (row.event, row.rewake) == (hook.event, hook.waits)


def _asking(
    pool: ThreadPoolExecutor,
    program: str | None,
    found: Found,
    server: Server | None,
    where: Path,
    away: ThrowAway,
) -> Future[tuple[str, str]] | str:
    """Have the client asked about the server; why not, or "" where there is nothing to ask."""
    if program is None or server is None:
        return ""
    if server.scope == "project" and not found.trusted:
        return "this folder is not trusted in the client yet"
    administered = [
        s.path for s, env in found.holding("env") if s.scope == "managed" and isinstance(env, dict) and env
    ]
    if administered or set(away.bus) & set(server.variables(found.environ)):
        return f"it would start it on the bus that {(administered or [server.path])[0]} names"
    return pool.submit(doctor_probe.ask_about, program, server.name, found.environ, where, away)


def _serving(pool: ThreadPoolExecutor, found: Found, server: Server | None, away: ThrowAway) -> Future[Served] | str:
    """Have the server started; or why not."""
    if server is None:
        return "there is none"
    if server.scope == "project" and (not found.trusted or approval(found, server) != "approved"):
        return "you have not approved it yet, or not trusted this folder"
    base = {**found.environ, **found.variables()}
    if server.scope == "plugin":
        base["CLAUDE_PLUGIN_ROOT"] = str(server.path.parent.parent)
    return pool.submit(doctor_probe.serve, server, base, found.folder, away)


def _plugin_folder(found: Found, plugin: str) -> Path | None:
    """Where the client reads a plugin from: the folder of its marketplace, else its own copy."""
    if not plugin:
        return None
    root = config_folder(found.environ) / "plugins"
    market = _json(root / "known_marketplaces.json").get(plugin.rpartition("@")[2])
    kept = _json(root / "installed_plugins.json").get("plugins")
    copies = kept.get(plugin) if isinstance(kept, dict) else None
    candidates = [market.get("installLocation") if isinstance(market, dict) else None]
    candidates += [each.get("installPath") for each in copies or () if isinstance(each, dict)]
    for candidate in candidates:
        if isinstance(candidate, str) and (Path(candidate) / ".claude-plugin" / "plugin.json").is_file():
            return Path(candidate)
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        return parse(settings_files.read(path, writable=False).text, str(path))
    except ConfigError:
        return {}


def _tools() -> Sequence[str]:
    from agent.tools import table

    return list(table())


def _reinstall(server: Server) -> str:
    if server.scope == "plugin":
        return "install talkbus itself, for the plugin starts it: uv tool install talkbus, or pipx install talkbus"
    return "talkbus install" if server.scope == "user" else f"correct the entry in {server.path}"


def _rename(server: Server) -> str:
    if server.scope in ("local", "user"):
        return f"claude mcp remove talkbus -s {server.scope}; then: talkbus install"
    return f"give that one another name in {server.path}"


def _check(name: str, block: Block) -> Check:
    text = f"{block.where}: {f'{block.key} ' if block.key else ''}{block.text}"
    return Check(name, "fail" if block.hard else "warn", text, block.remedy)


def _doubled(found: Found, plugins: Mapping[str, Source]) -> Check:
    hooks = any(has_hooks(source.data) for source in found.sources)
    env = [value for _, value in found.holding("env") if isinstance(value, dict)]
    if hooks and not any(settings_hooks.INSTALLED in each for each in env):
        return Check("plugin", "warn", f"{settings_hooks.INSTALLED} is missing in env", "talkbus install")
    if hooks and plugins:
        name = next(iter(plugins))
        return Check("plugin", "warn", f"{name} is enabled too, and steps aside", f"claude plugin disable {name}")
    return Check("plugin", "ok", "nothing is there twice")


def _status_line(found: Found) -> Check:
    line = found.value("statusLine")
    if line and found.value("disableAllHooks") is True:
        return Check(
            "statusline", "warn", "disableAllHooks switches it off too", "see the line about disableAllHooks"
        )
    command = line.get("command", "") if isinstance(line, dict) else ""
    if settings_hooks.is_ours(line):
        theirs = settings_hooks.theirs_in(command)
        return Check("statusline", "ok", "yours, with ours behind it" if theirs else "ours")
    if isinstance(command, str) and "talkbus" in command:
        return Check("statusline", "ok", "yours, which calls ours")
    text = "yours alone" if line else "none"
    return Check("statusline", "warn", f"{text}: it does not show peers and mail", "talkbus install")
