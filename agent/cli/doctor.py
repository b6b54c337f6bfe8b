"""`talkbus doctor`: uses everything that has to work, says the remedy for what does not, and changes nothing.

It never starts the broker, opens no mailbox and sends no message: the bus keeps both for ever. What it tries on the
client's side is in install_checks.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent import settings_hooks
from agent.cli import exits, show
from agent.cli.call import Call, as_json, pass_call
from agent.cli.doctor_probe import Unproven, agent_place, environment_of, found_by, knock
from agent.cli.install_checks import Check, Ways, client, installed
from agent.delivery import clientfile
from agent.delivery.maildir import Maildir
from agent.settings_block import Found, read
from agent.settings_client import claude_program
from bus.errors import BusError, ConfigError, Refused, Unreachable

if TYPE_CHECKING:
    from agent.seats import Live
    from bus.daemon import Record

SKEW_MS = 2_000  # durations travel, not times, so this is about what people read
ROOM = 200 * 1024 * 1024
_QUERY_S = 2.0
_WAKES = {
    "native": "its own inbox",
    "rewake": "a hook",
    "channel": "a channel notification",
    "terminal": "typing into its terminal",
    "notice": "a notice typed into its terminal",
}
_WAITS = {
    "": "when it next does something",
    "hooks": "at its next prompt or tool",
    "tools": "with the results of talkbus's own tools",
    "inbox": "with the command talkbus inbox",
}


@click.command(cls=exits.OneLine)
@as_json
@pass_call
def doctor(call: Call, as_json: bool) -> int:
    """Try every path, and say how to fix what does not work.

    It reads the client's settings for whatever switches talkbus off, runs the hooks and the MCP server as they are
    configured, asks the client, the broker and the open sessions, and changes nothing. A line "skip" says what could
    not be tried, and why.

    Exit code 1 when something does not work; a warning alone does not count.

    \b
    talkbus doctor
    talkbus doctor --json | jq '.checks[] | select(.state != "ok")'
    """
    progress = Progress()
    checks = list(examine(call, progress.tell))
    progress.clear()
    failed = sum(check.state == "fail" for check in checks)
    if as_json:
        show.document({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        _print(checks)
    return exits.REFUSED if failed else exits.DONE


class Progress:
    """What is being tried at the moment, on a terminal; elsewhere nothing."""

    def __init__(self) -> None:
        self._shown = 0

    def tell(self, text: str) -> None:
        """Show this in the place of what was there."""
        if _on_terminal():
            click.echo(f"\r{text} ...".ljust(self._shown), nl=False, err=True)
            self._shown = len(text) + 5

    def clear(self) -> None:
        """Leave the line as it was before."""
        if self._shown:
            click.echo(f"\r{'':{self._shown}}\r", nl=False, err=True)


def _on_terminal() -> bool:
    return sys.stderr.isatty()


def examine(call: Call, tell: Callable[[str], None] = lambda _: None) -> Iterator[Check]:
    """Every check, in the order in which they are shown."""
    ways = Ways()
    reached: dict[str, str] = {}
    yield from _runtime()
    yield from _directories(call)
    yield _room(call)
    usable = True
    try:
        unknown = call.config.unknown
    except ConfigError as error:
        usable = False
        yield _from_error("config", error)
    else:
        told = f"{', '.join(unknown)} in {call.home.config_file} means nothing" if unknown else "can be read"
        yield Check("config", "warn" if unknown else "ok", told, "remove it" if unknown else "")
    if usable:
        tell("asking the broker")
        yield from _broker(call, reached)
    yield from _without_agent(call)
    known = list(client(call.config.claude_bin if usable else ""))
    yield from known
    new = all(check.state == "ok" for check in known)
    program = claude_program(call.config.claude_bin if usable else "") if known[0].state != "fail" else None
    if exits.nowhere():
        yield Check(
            "folder", "warn", "the current one was removed, so no project is looked at", "cd to one that is there"
        )
        yield from installed(os.environ, Path.home(), program, ways, tell)
    else:
        yield from installed(os.environ, Path.cwd(), program, ways, tell)
    yield _delivery(ways, new and (not usable or call.config.delivery_native), reached)
    if usable and call.config.delivery_channel:
        yield _channel(read(os.environ, Path.home() if exits.nowhere() else Path.cwd()))


def _delivery(ways: Ways, inbox: bool, reached: dict[str, str]) -> Check:
    """What all of this means for mail to a new session; `inbox`: the client has one, and we are to use it."""
    if ways.server:
        tried = "" if "native" in reached.values() else " (no open session proves it)"
        waking = [f"its own inbox{tried}"] if inbox and ways.inbox else []
        waking += ["a hook"] if ways.waiter else []
        if waking:
            return Check("delivery", "ok", f"a session is woken by {', else by '.join(waking)}")
        how = "at its next prompt or tool" if ways.hooks else "with the results of talkbus's own tools only"
        text = f"nothing wakes a session; it gets mail {how}"
        return Check("delivery", "warn", text, "see the lines above; or start sessions with: talkbus claude")
    if ways.server is None:
        return Check("delivery", "skip", "whether mail reaches a new session was not tried", "see the lines above")
    if reached:
        text = f"only sessions that are open now are reached: {', '.join(reached)}"
        return Check("delivery", "warn", text, "see the lines above" if ways.configured else "talkbus install")
    remedy = "see the lines above" if ways.configured else "talkbus install"
    return Check(
        "delivery", "fail", "no mail would reach a new session of Claude Code", f"{remedy}; or use: talkbus claude"
    )


def _runtime() -> Iterator[Check]:
    from bus.sockets import library

    python = ".".join(map(str, sys.version_info[:3]))
    if sys.platform == "win32":
        yield Check("python", "warn", f"{python} on Windows: no hooks, no status line", "run it in WSL")
    else:
        yield Check("python", "ok", python)
    version, curve = library()
    if curve:
        yield Check("libzmq", "ok", f"{version} with CURVE")
    else:
        yield Check("libzmq", "fail", f"{version} has no CURVE", "pip install --force-reinstall pyzmq")


def _directories(call: Call) -> Iterator[Check]:
    from bus.private import check_private

    home = call.home
    found = 0
    faults = []
    keys = sorted(home.keys.iterdir()) if home.keys.is_dir() and os.access(home.keys, os.R_OK | os.X_OK) else []
    files = [home.bus_db, home.record, home.state / home.record.name]
    for path in (home.config, home.state, home.runtime, home.keys, home.agents, home.maildirs, *keys, *files):
        if not os.path.lexists(path):
            continue
        found += 1
        try:
            check_private(path)
        except ConfigError as error:
            faults.append(_from_error("directories", error))
    yield from faults
    if not faults:
        told = f"{found} files and folders are yours alone" if found else "not made yet; the first use makes them"
        yield Check("directories", "ok", told)


def _room(call: Call) -> Check:
    place = next(p for p in (call.home.state, *call.home.state.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < ROOM:
        return Check("disk", "fail", f"{show.octets(free)} free at {place}", "free some space, or: talkbus prune")
    return Check("disk", "ok", f"{show.octets(free)} free")


def _broker(call: Call, reached: dict[str, str]) -> Iterator[Check]:
    from bus.daemon import published, stopped

    try:
        hub = call.hub
    except ConfigError as error:
        yield _from_error("broker", error)
        return
    record = None if hub is not None else published(call.home)
    if hub is not None:
        where = f"the hub at {hub.host}:{hub.port}"
    elif record is not None:
        where = f"process {record.pid}, {record.router}"
    elif stopped(call.home):
        yield Check("broker", "warn", "stopped with 'talkbus down'; mail waits", "talkbus up")
        yield from _database(call)
        yield _unasked("talkbus up; talkbus doctor")
        return
    else:
        yield Check("broker", "ok", "does not run, so it was not asked anything; the next session or send starts it")
        yield from _database(call)
        yield _port(call)
        yield _unasked("talkbus up; talkbus doctor")
        return
    yield from _asked(call, record, where, reached)


def _unasked(remedy: str) -> Check:
    """What only a broker that answers can say."""
    return Check("sessions", "skip", "clock, version and how open sessions are reached were not asked", remedy)


def _database(call: Call) -> Iterator[Check]:
    """Whether a broker could open what the last one left."""
    if call.look is None or not os.path.lexists(call.home.bus_db):
        return
    try:
        call.look(call.home.bus_db)
    except BusError as error:
        yield _from_error("database", error)
    else:
        yield Check("database", "ok", "can be opened")


def _asked(call: Call, record: Record | None, where: str, reached: dict[str, str]) -> Iterator[Check]:
    """What the broker itself says."""
    try:
        with call.view(start=False) as view:
            stats: dict[str, Any] = next((value for value, _ in view.query("stats", {}, _QUERY_S).rows), {})
            now = show.now_ms()
            peers = [value for value, _ in view.query("peers", {}, _QUERY_S).rows]
            try:
                joined = next(iter(view.events(("none",), timeout=_QUERY_S)), None)
            except Unreachable:
                joined = None
            who = next((value for value, _ in view.query("whoami", {}, _QUERY_S).rows), {})
    except Refused:
        yield Check("broker", "fail", f"not paired with {where}", "ask its owner: talkbus lan invite; then join here")
        return
    except (BusError, TimeoutError) as error:
        mend = "talkbus down && talkbus up" if record else "look at the other machine, or: talkbus lan hub ADDRESS"
        yield Check("broker", "fail", f"{where} does not answer: {error}", mend)
        yield from _refused(call)
        yield _unasked("see the line above")
        return
    if stats.get("writable", True):
        yield Check("broker", "ok", f"runs: {where}; it answered (no message was sent, for it keeps every one)")
    else:
        yield Check("broker", "fail", f"{where} cannot write", "make room on its disk")
    if joined is None or joined.snapshot is None:
        remedy = "talkbus down && talkbus up" if record else "let its port of activity through, one above its own"
        yield Check("activity", "fail", f"{where} does not tell what happens", remedy)
    if who.get("role") == "observer":
        told = "this machine is an observer: it looks, and neither sends nor receives"
        yield Check("role", "warn", told, "ask the owner of the hub, if it is to send: talkbus lan role")
    if record is not None and call.version and record.version != call.version:
        told = f"{record.version} runs, and {call.version} is installed"
        yield Check("version", "warn", told, "talkbus down && talkbus up (nothing is lost)")
    elif record is not None:
        yield Check("version", "ok", record.version)
    yield _clock(stats, now)
    if stats.get("prune_doubt"):
        mend = "set the broker's clock, if that is wrong; else there is nothing to do"
        yield Check("pruning", "warn", str(stats["prune_doubt"]), mend)
    yield from _sessions(call, peers, reached)


def _refused(call: Call) -> Iterator[Check]:
    """What the hub said against this machine when it last answered."""
    from agent.refusals import recall

    known = recall(call.home, call.config)
    if known is not None:
        what, bracket, remedy = known.text.rpartition(" (")
        told = what if bracket else known.text
        yield Check("pairing", "fail", f"the hub last said: {told}", remedy.removesuffix(")") if bracket else "")


def _clock(stats: dict[str, Any], now: int) -> Check:
    theirs = stats.get("now")
    if type(theirs) is not int:
        return Check("clock", "warn", "the broker does not tell its time", "upgrade it")
    skew = now - theirs
    if abs(skew) > SKEW_MS:
        return Check("clock", "warn", f"{abs(skew) / 1000:.0f} s beside the broker's", "set the clocks (NTP)")
    return Check("clock", "ok", f"within {SKEW_MS // 1000} s of the broker's")


def _port(call: Call) -> Check:
    """Whether the broker could listen where it is told to. Asked only while it does not run."""
    config = call.config
    if not config.port:
        return Check("ports", "ok", "none is set; the broker takes two that are free when it starts")
    for port in (config.port, config.port + 1):
        try:
            with socket.create_connection((config.bind if config.bind != "*" else "127.0.0.1", port), 0.5):
                pass
        except OSError:
            continue
        return Check("ports", "fail", f"port {port} is in use by another program", "talkbus config set port 0")
    return Check("ports", "ok", f"{config.port} and {config.port + 1} are free")


def _sessions(call: Call, peers: list[dict[str, Any]], reached: dict[str, str]) -> Iterator[Check]:
    """How each living session of this machine is reached, as its agent says, and whether that is true."""
    from agent.seats import living

    here = living(call.home)
    if not here:
        yield Check("sessions", "ok", "none is open on this machine")
    for live in here:
        mine = (p for p in peers if (p.get("id") if live.mailbox else p.get("name")) == (live.mailbox or live.name))
        wake = next((str(p.get("wake") or "") for p in mine), None)
        name = f"session {live.name}"
        faults = list(_reaching(name, live, wake or ""))
        yield from faults
        if wake is None:
            yield Check(
                name, "warn", f"process {live.pid} is not on the bus", "wait, or see its log in the state folder"
            )
        elif wake in _WAITS:
            told = f"nothing wakes it; it sees mail {_WAITS[wake]}"
            yield Check(name, "warn", told, "run it there" if wake == "inbox" else "talkbus install")
        elif not faults:
            reached[live.name] = wake
            shown = ", which takes connections" if wake == "native" and live.client_pid else ""
            yield Check(name, "ok", f"is woken by {_WAKES.get(wake, wake)}{shown}")


def _reaching(name: str, live: Live, wake: str) -> Iterator[Check]:
    """What keeps a living session from getting what its agent sends, though the agent does not see it."""
    if not live.client_pid:
        return
    agent, client = environment_of(live.pid), environment_of(live.client_pid)
    if wake == "native":
        info = clientfile.read(live.client_pid, clientfile.config_dir(os.environ if client is None else client))
        refused = knock(info.socket) if info is not None and info.socket else "it has none"
        if refused:
            yield Check(name, "fail", f"its own inbox does not take anything: {refused}", "start that session again")
    if agent is None or client is None or wake in ("terminal", "notice", "inbox"):
        return  # typed into by its supervisor, or read by a person: it has no hooks of ours
    try:
        place = Maildir.place(agent_place(agent), live.client_pid, live.client_start)
        found = read(client, Path(live.cwd))
    except (Unproven, OSError):
        return
    scripts = [s for source in found.sources if found.trusts(source) for s in settings_hooks.scripts(source.data)]
    if not scripts or not place.is_dir() or not (scripts[0].parent / settings_hooks.SOURCED).is_file():
        return
    looked = found_by(scripts[0].parent, {**client, **found.variables()}, live.client_pid)
    if looked != str(place):
        text = f"its agent puts mail into {place}, and its hooks find {looked or 'no such folder'}"
        remedy = "set TALKBUS_HOME (or XDG_RUNTIME_DIR) alike for both before claude starts"
        yield Check(name, "fail", text, remedy)


def _without_agent(call: Call) -> Iterator[Check]:
    """Clients that live on without the agent that was to serve them."""
    from agent.seats import bereaved

    for live in bereaved(call.home):
        told = f"its agent, process {live.pid}, has died; the client, process {live.client_pid}, gets no mail"
        yield Check(
            f"session {live.name}", "fail", told, "in that session: /mcp, talkbus, Reconnect; or start it anew"
        )


def _channel(found: Found) -> Check:
    """What a user who switched it on has to do besides; whether a client listens shows only when a message goes."""
    environ = {**found.environ, **found.variables()}
    managed = [source for source in found.sources if source.scope == "managed"]
    allowed = found.managed("channelsEnabled")
    if managed and (allowed is None or allowed[1] is not True):
        text = f"{managed[-1].path}: channelsEnabled is not set to true, and the client then has no channels"
        return Check("channel", "warn", text, "ask the administrator of this machine to set it")
    off = [name for name in ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "DISABLE_TELEMETRY") if environ.get(name)]
    if off:
        return Check("channel", "warn", f"{', '.join(off)} is set, and the client then has no channels", "unset it")
    start = "claude --dangerously-load-development-channels server:talkbus"
    return Check("channel", "ok", f"on, for sessions that were started with: {start}")


def _from_error(name: str, error: BusError) -> Check:
    """An error's one line, `what (what to do)`, taken apart."""
    text, _, mend = str(error).rpartition(" (")
    return Check(name, "fail", text or str(error), mend.removesuffix(")") if text else "")


def _print(checks: Iterable[Check]) -> None:
    rows = list(checks)
    width = max(len(check.name) for check in rows)
    colours = {"ok": "32", "warn": "33", "fail": "31", "skip": "36"}
    for check in rows:
        word = f"\x1b[{colours[check.state]}m{check.state:<4}\x1b[0m" if show.colour() else f"{check.state:<4}"
        click.echo(f"{word}  {show.safe(check.name).ljust(width)}  {show.safe(check.text)}")
        if check.mend:
            click.echo(f"{'':4}  {'':{width}}  -> {show.safe(check.mend)}")
    count = {state: sum(check.state == state for check in rows) for state in colours}
    parts = [f"{count['fail']} fault{'s' * (count['fail'] != 1)}"] if count["fail"] else []
    parts += [f"{count['warn']} warning{'s' * (count['warn'] != 1)}"] if count["warn"] else []
    parts += [f"{count['skip']} not tried"] if count["skip"] else []
    click.echo(", ".join(parts) if parts else "all is well")
