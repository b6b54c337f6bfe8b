"""`talkbus doctor`: looks at everything that has to be right, says the mend for what is not, and changes nothing.

It never starts the broker, and opens no mailbox. What it looks at on the client's side is in install_checks.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli import exits, show
from agent.cli.call import Call, as_json, pass_call
from agent.cli.install_checks import Check, client, installed
from bus.errors import BusError, ConfigError, Refused

if TYPE_CHECKING:
    from bus.daemon import Record

SKEW_MS = 2_000  # durations travel, not times, so this is about what people read
ROOM = 200 * 1024 * 1024
_QUERY_S = 2.0


@click.command(cls=exits.OneLine)
@as_json
@pass_call
def doctor(call: Call, as_json: bool) -> int:
    """Look for faults, and say how to mend each.

    Exit code 1 when something has to be mended; a warning alone does not count.

    \b
    talkbus doctor
    talkbus doctor --json | jq '.checks[] | select(.state != "ok")'
    """
    checks = list(examine(call))
    failed = sum(check.state == "fail" for check in checks)
    if as_json:
        show.document({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        _print(checks)
    return exits.REFUSED if failed else exits.DONE


def examine(call: Call) -> Iterator[Check]:
    """Every check, in the order in which they are shown."""
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
        yield from _broker(call)
    yield from _without_agent(call)
    yield from client(call.config.claude_bin if usable else "")
    if exits.nowhere():
        yield Check(
            "folder", "warn", "the current one was removed, so no project is looked at", "cd to one that is there"
        )
        yield from installed(os.environ, Path.home())
    else:
        yield from installed(os.environ, Path.cwd())
    if usable and call.config.delivery_channel:
        yield _channel()


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


def _broker(call: Call) -> Iterator[Check]:
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
        return
    else:
        yield Check("broker", "ok", "does not run; the next session or send starts it")
        yield from _database(call)
        yield _port(call)
        return
    yield from _asked(call, record, where)


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


def _asked(call: Call, record: Record | None, where: str) -> Iterator[Check]:
    """What the broker itself says."""
    try:
        with call.view(start=False) as view:
            stats: dict[str, Any] = next((value for value, _ in view.query("stats", {}, _QUERY_S).rows), {})
            now = show.now_ms()
            peers = [value for value, _ in view.query("peers", {}, _QUERY_S).rows]
            who = next((value for value, _ in view.query("whoami", {}, _QUERY_S).rows), {})
    except Refused:
        yield Check("broker", "fail", f"not paired with {where}", "ask its owner: talkbus lan invite; then join here")
        return
    except (BusError, TimeoutError) as error:
        mend = "talkbus down && talkbus up" if record else "look at the other machine, or: talkbus lan hub ADDRESS"
        yield Check("broker", "fail", f"{where} does not answer: {error}", mend)
        yield from _refused(call)
        return
    if stats.get("writable", True):
        yield Check("broker", "ok", f"runs: {where}")
    else:
        yield Check("broker", "fail", f"{where} cannot write", "make room on its disk")
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
    yield from _sessions(call, peers)


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
        return Check("ports", "ok", "a free pair is taken")
    for port in (config.port, config.port + 1):
        try:
            with socket.create_connection((config.bind if config.bind != "*" else "127.0.0.1", port), 0.5):
                pass
        except OSError:
            continue
        return Check("ports", "fail", f"port {port} is taken by another program", "talkbus config set port 0")
    return Check("ports", "ok", f"{config.port} and {config.port + 1} are free")


def _sessions(call: Call, peers: list[dict[str, Any]]) -> Iterator[Check]:
    """How each living session of this machine would be reached."""
    from agent.seats import living

    here = living(call.home)
    if not here:
        yield Check("sessions", "ok", "none is open on this machine")
    for live in here:
        wake = next((str(p.get("wake") or "") for p in peers if p.get("name") == live.name), None)
        name = f"session {live.name}"
        if wake is None:
            yield Check(
                name, "warn", f"process {live.pid} is not on the bus", "wait, or see its log in the state folder"
            )
        elif wake:
            yield Check(name, "ok", f"is woken by {wake}")
        else:
            yield Check(name, "warn", "nothing wakes it; it sees mail when it next does something", "talkbus install")


def _without_agent(call: Call) -> Iterator[Check]:
    """Clients that live on without the agent that was to serve them."""
    from agent.seats import bereaved

    for live in bereaved(call.home):
        told = f"its agent, process {live.pid}, has died; the client, process {live.client_pid}, gets no mail"
        yield Check(
            f"session {live.name}", "fail", told, "in that session: /mcp, talkbus, Reconnect; or start it anew"
        )


def _channel() -> Check:
    """What a user who switched it on has to do besides; whether a client listens shows only when a message goes."""
    off = [name for name in ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "DISABLE_TELEMETRY") if os.environ.get(name)]
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
    colours = {"ok": "32", "warn": "33", "fail": "31"}
    for check in rows:
        word = f"\x1b[{colours[check.state]}m{check.state:<4}\x1b[0m" if show.colour() else f"{check.state:<4}"
        click.echo(f"{word}  {show.safe(check.name).ljust(width)}  {show.safe(check.text)}")
        if check.mend:
            click.echo(f"{'':4}  {'':{width}}  -> {show.safe(check.mend)}")
    bad = [sum(check.state == state for check in rows) for state in ("fail", "warn")]
    click.echo(f"{bad[0]} to be mended, {bad[1]} to be looked at" if any(bad) else "all is well")
