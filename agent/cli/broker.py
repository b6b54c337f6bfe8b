"""The commands that concern the broker itself: up, down, status, config, version.

None of them needs a seat. `status`, `config`, `version` and `down` never start a broker.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from agent.cli import exits, show
from agent.cli.call import Call, acting, as_json, pass_call

if TYPE_CHECKING:
    from bus.daemon import Record


@click.command()
@click.option("--foreground", is_flag=True, help="Run the broker in this terminal until Ctrl-C.")
@as_json
@pass_call
def up(call: Call, as_json: bool, foreground: bool) -> int:
    """Start the bus.

    It starts by itself with the first session or command; 'up' is needed after 'down'.

    \b
    talkbus up
    talkbus up --foreground     for a service manager, or to watch it
    """
    from bus.daemon import clear_stop, ensure_broker, published, refuse_a_second, spawned

    if foreground:
        if call.serve is None:
            raise click.ClickException("the broker runs from the talkbus command only")
        if not spawned():
            refuse_a_second(call.home)
            clear_stop(call.home)
        return call.serve(call.home, call.config)
    if call.hub is not None:
        raise click.ClickException("this machine uses the broker of another one (talkbus lan leave gives it its own)")
    clear_stop(call.home)
    running = published(call.home)
    record = running or ensure_broker(call.home)
    call.person.drain()
    if as_json:
        show.document({**_where(record), "started": running is None})
    else:
        word = "runs" if running else "started"
        click.echo(f"the bus {word}: process {record.pid}, {record.router}")
    return exits.DONE


@click.command()
@click.option("--timeout", default=10.0, show_default=True, metavar="S", help="Seconds before it is killed.")
@as_json
@pass_call
def down(call: Call, as_json: bool, timeout: float) -> None:
    """Stop the bus, until 'talkbus up'.

    Nothing is lost: what is sent meanwhile waits on the senders' disks.

    \b
    talkbus down
    """
    from bus.daemon import stop_broker

    was_running = stop_broker(call.home, timeout)
    if as_json:
        show.document({"running": False, "stopped": was_running})
    else:
        click.echo("the bus is stopped" if was_running else "no bus was running; it stays stopped until 'talkbus up'")


@click.command()
@acting
@as_json
@pass_call
def status(call: Call, as_json: bool) -> int:
    """Tell whether the bus runs, and how it is. Never starts it.

    \b
    talkbus status
    talkbus status --json | jq .peers
    """
    from agent import refusals
    from bus.daemon import published, stopped
    from bus.errors import Refused, Unreachable

    hub = call.hub
    told: dict[str, Any] = {
        "running": False,
        "stopped": stopped(call.home),
        "hub": f"{hub.host}:{hub.port}" if hub is not None else "",
        "home": str(call.home.state.parent if call.home.root else call.home.state),
        "queued": call.person.queued(),
        "disk": _disk(call),
    }
    record = None if hub is not None else published(call.home)
    problem = ""
    if record is not None or hub is not None:
        if record is not None:
            told.update(_where(record))
        try:
            told.update(_counts(call), running=True)
        except (Unreachable, Refused) as error:
            problem = str(error)
            told["paired"] = not isinstance(error, Refused)
            known = refusals.recall(call.home, call.config)
            told["refused"] = problem if isinstance(error, Refused) else known.text if known else ""
    elif told["stopped"]:
        problem = "the bus was stopped with 'talkbus down' (start it with 'talkbus up')"
    else:
        problem = "no broker runs (the next session or send starts it; or 'talkbus up')"
    if as_json:
        show.document({**told, "problem": problem})
    else:
        _show_status(told)
    if problem:
        exits.told(problem)
    if told["running"]:
        return exits.DONE
    return exits.UNREACHABLE if told.get("paired", True) else exits.REFUSED


def _where(record: Record) -> dict[str, Any]:
    return {"pid": record.pid, "endpoint": record.router, "events": record.xpub, "version": record.version}


def _counts(call: Call) -> dict[str, Any]:
    """What the broker says of itself, and of the mailbox of whoever asks."""
    from agent import refusals

    with call.view(start=False) as view:
        stats = view.query("stats", {}, 2.0)
        peers = view.query("peers", {"all": True}, 2.0)
        who = next((value for value, _ in view.query("whoami", {}, 2.0).rows), {})
    host, role = who.get("host", ""), str(who.get("role", ""))
    if call.hub is not None and role in ("owner", "member"):
        refusals.forget(call.home)
    rows = [value for value, _ in peers.rows]
    counters: dict[str, Any] = next((value for value, _ in stats.rows), {})
    breakers = counters.get("breakers")
    mine = [row for row in rows if row.get("name") == call.person.name and row.get("host") == host]
    living = [row for row in rows if row.get("presence") != "gone" and row.get("kind") == "session"]
    return {
        "peers": len(living),
        "role": role,
        "refused": OBSERVER if role == "observer" else "",
        "name": call.person.name,
        "unread": sum(int(row.get("unread", 0)) for row in mine),
        "waiting": int(counters.get("unread", 0)),
        "held": int(counters.get("held", 0)),
        "paused": int(counters.get("paused", 0)),
        "breakers": breakers if isinstance(breakers, list) else [],
        "writable": bool(counters.get("writable", True)),
        "since": int(counters.get("started", 0)),
    }


def _disk(call: Call) -> dict[str, int]:
    database = call.home.bus_db
    parts = [database, *(database.with_name(database.name + end) for end in ("-wal", "-shm"))]
    used = sum(part.stat().st_size for part in parts if part.exists())
    place = next((p for p in (call.home.state, *call.home.state.parents) if p.exists()), None)
    return {"used": used, "free": shutil.disk_usage(place).free if place else 0}


def _state(told: dict[str, Any]) -> str:
    if not told.get("paired", True):
        return "not paired"
    if not told["running"]:
        return "not reachable" if told["hub"] else "down"
    return f"runs, process {told['pid']}" if "pid" in told else "runs on another machine"


def _show_status(told: dict[str, Any]) -> None:
    running = told["running"]
    queued = told["queued"]
    rows: list[tuple[str, object]] = [
        ("bus", _state(told)),
        ("version", told.get("version", "")),
        ("hub" if told["hub"] else "endpoint", told["hub"] or told.get("endpoint", "")),
        ("since", show.clock(told["since"]) if told.get("since") else ""),
        ("peers", told.get("peers", "")),
        ("unread", f"{told['unread']} for {told['name']}, {told['waiting']} on the bus" if running else ""),
        ("held", f"{told['held']} for you to decide (talkbus hold list)" if told.get("held") else ""),
        ("paused", f"since {show.clock(told['paused'])} (talkbus resume)" if told.get("paused") else ""),
        *(("limited", _breaker(known)) for known in told.get("breakers", [])),
        ("refused", told.get("refused", "")),
        ("queued", _queued(queued, bool(told.get("refused")))),
        ("disk", f"{show.octets(told['disk']['used'])} used, {show.octets(told['disk']['free'])} free"),
        ("home", told["home"]),
    ]
    if running and not told.get("writable", True):
        rows.append(("problem", "the broker cannot write (make room on its disk)"))
    show.facts(rows)


def _queued(queued: int | None, refused: bool) -> str:
    if queued is None:
        return "unknown, in use"
    if not queued:
        return ""
    return f"{queued} that cannot be sent" if refused else f"{queued} to be sent"


OBSERVER = "this machine is an observer: it looks, and neither sends nor receives (ask the owner for another role)"


def _breaker(known: dict[str, Any]) -> str:
    """A limit of the governor that is being hit."""
    from agent.tap.words import BREAKERS

    words = BREAKERS.get(str(known.get("what")), str(known.get("what")))
    until = show.clock(int(known.get("until", 0)))
    return f"{known.get('name')}@{known.get('host')} {words} ({known.get('count')} times, until {until})"


@click.group()
def config() -> None:
    """Show and change settings.

    The environment goes before config.toml, config.toml before the default.

    \b
    talkbus config show
    talkbus config set port 7800
    """


@config.command("show")
@as_json
@pass_call
def config_show(call: Call, as_json: bool) -> None:
    """List every setting, its value and where it comes from.

    \b
    talkbus config show --json
    """
    from bus.config import SETTINGS

    found = call.config
    rows = [(name, found.value(name), found.origin(name), s) for name, s in SETTINGS.items()]
    if as_json:
        settings = [
            {"name": name, "value": value, "origin": origin, "env": s.env, "help": s.help}
            for name, value, origin, s in rows
        ]
        show.document({"file": str(call.home.config_file), "settings": settings, "unknown": list(found.unknown)})
        return
    cells = [
        (name, _plain(value), f"{s.env} (environment)" if origin == "environment" else origin, s.help)
        for name, value, origin, s in rows
    ]
    show.table(("setting", "value", "from", "what it is"), cells)
    for name in found.unknown:
        show.note(f"{call.home.config_file}: {name} means nothing here")


@config.command("set")
@click.argument("name")
@click.argument("value")
@as_json
@pass_call
def config_set(call: Call, name: str, value: str, as_json: bool) -> None:
    """Write one setting to config.toml; every other line stays as it is.

    \b
    talkbus config set limits.rate 200
    """
    from bus.config import SETTINGS, set_value

    if name not in SETTINGS:
        raise click.UsageError(f"there is no setting {name[:80]!r} ({_meant(name, SETTINGS)})")
    written = set_value(call.home, name, value)
    if as_json:
        show.document({"name": name, "value": written, "file": str(call.home.config_file)})
    else:
        click.echo(f"{name} = {_plain(written)} in {call.home.config_file}")
    if SETTINGS[name].env and call.config.origin(name) == "environment":
        show.note(f"{SETTINGS[name].env} is set and goes before it")


def _meant(name: str, known: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near = near or [one for one in known if one.partition(".")[0] == name.partition(".")[0]]
    asked = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{asked}talkbus config show lists them all"


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@click.command()
@as_json
@pass_call
def version(call: Call, as_json: bool) -> None:
    """Print the version.

    \b
    talkbus version
    """
    if as_json:
        show.document({"version": call.version, "protocol": 1})
    else:
        click.echo(f"talkbus {call.version}")
