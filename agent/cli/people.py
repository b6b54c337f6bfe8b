"""Who is there, and what they see of this session: peers, whoami, rename, take, busy, ready, summary."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from agent.cli import show
from agent.cli.call import Call, acting, as_json, fetch, pass_call
from agent.cli.finite import Finite

if TYPE_CHECKING:
    from bus.client import View

FIELDS = (
    "name",
    "id",
    "host",
    "cwd",
    "branch",
    "client",
    "summary",
    "presence",
    "activity",
    "last_active",
    "unread",
    "wake",
)


@click.command()
@click.option("--active-within", type=Finite(0), metavar="MIN", help="Only those heard from since.")
@click.option("--scope", type=click.Choice(["machine", "folder", "repo"]), help="Only those near this folder.")
@click.option("--all", "everyone", is_flag=True, help="Also those who are gone, people, services and old mailboxes.")
@as_json
@pass_call
def peers(call: Call, as_json: bool, active_within: float | None, scope: str | None, everyone: bool) -> None:
    """List who is there.

    \b
    talkbus peers
    talkbus peers --active-within 10 --scope repo
    """
    args: dict[str, Any] = {"all": everyone}
    if active_within is not None:
        args["active"] = int(active_within * 60_000)
    with call.view() as view:
        rows = [value for value, _ in fetch(view, "peers", args)]
        host = _host(view)
    if scope:
        rows = [row for row in rows if row.get("host") == host and _near(call, row, scope)]
    if as_json:
        show.document([{name: row.get(name, "") for name in FIELDS} for row in rows])
        return
    if not rows:
        show.note("nobody is there (talkbus peers --all lists those who were)")
        return
    me = call.person.live.name if call.person.live else ""
    show.table(
        ("name", "is", "unread", "last active", "reached by", "folder", "works on"),
        [_cells(row, host, me) for row in rows],
    )


def _host(view: View) -> str:
    """What the bus calls this machine."""
    return next((str(value.get("host", "")) for value, _ in fetch(view, "whoami", {})), "")


def _cells(row: dict[str, Any], host: str, me: str) -> tuple[object, ...]:
    from agent.paths import PATHS
    from agent.render import age

    name = str(row["name"]) if row.get("host") == host else f"{row['name']}@{row.get('host')}"
    doing = str(row.get("activity") or row.get("presence", ""))
    if row.get("presence") != "open":
        doing = str(row.get("presence", ""))
    elif row.get("until"):
        doing += f" until {show.clock(int(row['until']))}"
    branch = f" ({row['branch']})" if row.get("branch") else ""
    kind = "" if row.get("kind") == "session" else f"[{row.get('kind')}] "
    return (
        f"{name} (you)" if me and name == me else name,
        doing,
        row.get("unread") or "",
        "now" if row.get("presence") == "open" else age(show.now_ms() - int(row.get("last_active") or 0)),
        PATHS.get(wake, (wake,))[0] if (wake := str(row.get("wake") or "")) else "",
        f"{row.get('cwd', '')}{branch}",
        f"{kind}{row.get('summary', '')}",
    )


def _near(call: Call, row: dict[str, Any], scope: str) -> bool:
    from bus.wire import clip

    if scope == "machine":
        return True
    folder = call.person.live.cwd if call.person.live else os.getcwd()
    if scope == "folder":
        return bool(row.get("cwd") == clip(folder, 200))
    from pathlib import Path

    from agent.session import find_place

    return bool(row.get("project")) and row.get("project") == clip(find_place(Path(folder)).project, 200)


@click.command()
@acting
@as_json
@pass_call
def whoami(call: Call, as_json: bool) -> None:
    """Tell who acts here: name, id, unread mail.

    Inside a session that is the session; with --as or TALKBUS_NAME a seat of that name; else you.

    \b
    talkbus whoami
    """
    person = call.person
    with person.asking() as asker:
        row = next((value for value, _ in asker.ask("whoami", {}).rows), {})
    names = ("name", "id", "host", "role", "unread", "term", "presence", "activity", "summary", "metadata")
    told = {name: row.get(name, "") for name in names} | {"acts_as": person.kind}
    if as_json:
        show.document(told)
        return
    what = {"session": "the session around this command", "script": "a seat of its own", "human": "you"}
    show.facts(
        [
            ("name", f"{told['name']}@{told['host']}"),
            ("id", told["id"]),
            ("acts as", what[person.kind]),
            ("role", told["role"]),
            ("unread", str(told["unread"])),
            ("presence", told["presence"] if person.kind == "session" else ""),
            ("summary", told["summary"]),
        ]
    )


@click.command()
@click.argument("name")
@acting
@as_json
@pass_call
def rename(call: Call, name: str, as_json: bool) -> None:
    """Give this mailbox another name.

    Its mail follows.

    \b
    talkbus rename api-docs
    """
    former = call.person.name
    result = call.person.do("rename", {"name": name})
    _told(
        as_json, {"name": result.get("name", name), "former": former}, f"{former} is {result.get('name', name)} now"
    )


@click.command()
@click.argument("name")
@click.option(
    "--fresh", is_flag=True, help="Set the old mail aside, as NAME-stale-TIME, and begin with an empty one."
)
@acting
@as_json
@pass_call
def take(call: Call, name: str, fresh: bool, as_json: bool) -> None:
    """Take over a name for this session.

    Whoever holds it is told, and gets no more mail under it. Run it inside a session.

    \b
    talkbus take api
    talkbus take api --fresh
    """
    from bus.names import check_name

    wanted = check_name(name)
    with call.view() as view:
        host = _host(view)
        rows = [value for value, _ in fetch(view, "peers", {"all": True})]
    held = next((row for row in rows if row["name"] == wanted and row["host"] == host), None)
    args: dict[str, Any] = {"name": wanted}
    if fresh:
        args["fresh"] = True
    if held is not None:
        args["term"] = held["term"]
        if held["presence"] != "gone":
            where = f" in {held['cwd']}" if held.get("cwd") else ""
            show.note(f"{wanted} was held by a session{where}, id {held['id']}, term {held['term']}")
    result = call.person.do("take", args)
    told = {"name": result.get("name", wanted), "term": result.get("term", 0), "unread": result.get("unread", 0)}
    _told(as_json, told, f"this session is {told['name']} now, {told['unread']} unread")


@click.command()
@click.argument("minutes", type=Finite(0.01, 10_080), metavar="MIN")
@acting
@as_json
@pass_call
def busy(call: Call, minutes: float, as_json: bool) -> None:
    """Tell the others that this session is busy.

    For so many minutes; it lapses by itself.

    \b
    talkbus busy 20
    """
    lasts = int(minutes * 60_000)
    call.person.do("status", {"activity": "busy", "busy": lasts})
    until = show.now_ms() + lasts
    _told(as_json, {"name": call.person.name, "activity": "busy", "until": until}, f"busy until {show.clock(until)}")


@click.command()
@acting
@as_json
@pass_call
def ready(call: Call, as_json: bool) -> None:
    """Tell the others that this session is free.

    \b
    talkbus ready
    """
    call.person.do("status", {"activity": "idle"})
    _told(as_json, {"name": call.person.name, "activity": "idle"}, "ready")


@click.command()
@click.argument("text")
@acting
@as_json
@pass_call
def summary(call: Call, text: str, as_json: bool) -> None:
    """Tell the others what this session works on.

    They see the first 200 characters.

    \b
    talkbus summary "moving the login to OAuth"
    """
    from agent.redact import Found, redact

    found = Found()
    text = redact(text, found)
    call.person.do("status", {"summary": text})
    if found:
        show.note(f"redacted before it was told: {found}")
    _told(as_json, {"name": call.person.name, "summary": text[:200]}, f"{call.person.name}: {text[:200]}")


def _told(as_json: bool, told: dict[str, Any], words: str) -> None:
    if as_json:
        show.document(told)
    else:
        click.echo(show.safe(words))
