"""`talkbus lan`: the commands of the hub, which opens its bus to other machines, invites them and takes them off it.

The machine that joins has its own in lan_join. What changes the roll is an ordinary request to the broker.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

import click

from agent.cli import exits, lan_join, show
from agent.cli.call import Call, as_json, pass_call
from agent.cli.finite import Finite
from agent.cli.lan_hub import (
    EVERYWHERE,
    HERE,
    by_whom,
    enrolment_port_of,
    loopback,
    machines,
    own_bus,
    port_of,
    reachable,
    rebound,
    way_here,
)

ROLES = ("owner", "member", "observer")


@click.group()
def lan() -> None:
    """Make several machines one bus.

    \b
    talkbus lan up              on the machine that is the hub
    talkbus lan invite          there too; prints one line, good once, for ten minutes
    talkbus lan join LINE       on the other machine
    """


lan.add_command(lan_join.join)
lan.add_command(lan_join.leave)
lan.add_command(lan_join.hub)
lan.add_command(lan_join.find)


@lan.command("up")
@click.option(
    "--bind", default=EVERYWHERE, show_default=True, metavar="ADDRESS", help="Listen here; '*': everywhere."
)
@click.option("--port", type=click.IntRange(1, 65534), metavar="P", help="First of two ports; else as it is now.")
@click.option("--announce/--no-announce", default=None, help="Let 'lan find' find it (mDNS); off until asked for.")
@as_json
@pass_call
def up(call: Call, bind: str, port: int | None, announce: bool | None, as_json: bool) -> None:
    """Open the bus to the network, for machines that were invited.

    It stays open over restarts, until 'talkbus lan down'. Every connection is encrypted, and who has not a key that
    was paired is refused before a word is heard. Sessions on this machine lose the broker for a moment, and no mail.

    \b
    talkbus lan up
    talkbus lan up --bind 192.168.1.20 --port 7717
    """
    from bus.daemon import clear_stop, ensure_broker
    from bus.errors import LocalError
    from bus.sockets import library
    from bus.trust import read_keys

    own_bus(call)
    if not library()[1]:
        raise LocalError("libzmq has no CURVE, so nothing can be encrypted (pip install --force-reinstall pyzmq)")
    clear_stop(call.home)
    record = ensure_broker(call.home)
    if read_keys(call.home).public != record.key:
        raise LocalError("the broker runs with another key than the one on disk (talkbus down && talkbus up)")
    wanted = {"bind": bind, "port": str(port or port_of(record))}
    if announce is not None:
        wanted["lan.announce"] = str(announce).lower()
    rebound(call, wanted)
    told = reachable(call)
    if as_json:
        show.document(told)
        return
    listed = ", ".join(told["addresses"]) or told["listens"]
    show.facts(
        [
            ("hub", told["host"]),
            ("address", listed),
            ("fingerprint", told["fingerprint"]),
            ("reachable", f"port {told['port']} (sessions) and {told['events']} (activity), nothing else"),
            ("by whom", by_whom(told["machines"])),
            ("next", "talkbus lan invite"),
        ]
    )


@lan.command("down")
@as_json
@pass_call
def down(call: Call, as_json: bool) -> None:
    """Close the bus to the network; sessions on this machine go on.

    Paired machines stay paired: after the next 'lan up' they come back by themselves.

    \b
    talkbus lan down
    """
    from bus.config import load, set_value
    from bus.daemon import published

    own_bus(call)
    was = load(call.home).bind
    if published(call.home) is not None:
        rebound(call, {"bind": HERE, "lan.announce": "false"})
    else:
        set_value(call.home, "bind", HERE)
        set_value(call.home, "lan.announce", "false")
    if as_json:
        show.document({"open": False, "was_open": not loopback(was)})
    else:
        click.echo("the bus listens on this machine only" + (" (it did before)" if loopback(was) else ""))


@lan.command("invite")
@click.option("--role", type=click.Choice(ROLES), default="member", show_default=True, help="What it may do.")
@click.option("--label", metavar="NAME", help="What it is called on the bus; else what it calls itself.")
@click.option("--host", metavar="HOST[:PORT]", help="Where it reaches this hub, if not at this machine's address.")
@click.option("--port", type=click.IntRange(1, 65535), metavar="P", help="The same for the port of sessions.")
@click.option("--events-port", type=click.IntRange(1, 65535), metavar="P", help="The same for activity.")
@click.option("--enrolment-port", type=click.IntRange(1, 65535), metavar="P", help="The same for this pairing.")
@click.option("--minutes", type=Finite(0.05, 10), default=10.0, show_default=True, help="How long.")
@click.option("--cancel", is_flag=True, help="Withdraw the invitation that is open.")
@click.option("--wait", is_flag=True, help="Stay until a machine has joined, and tell its fingerprint.")
@as_json
@pass_call
def invite(
    call: Call,
    role: str,
    label: str | None,
    host: str | None,
    port: int | None,
    events_port: int | None,
    enrolment_port: int | None,
    minutes: float,
    cancel: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Print one line that lets one machine join, once.

    The line holds the hub's address, its key and a secret: give it to the other machine by a way you trust. With
    --host and --port it names another way here, as through a tunnel or a router that forwards ports: all three ports
    (sessions, activity, pairing) must lead here. An HTTP tunnel cannot carry it.

    \b
    talkbus lan invite
    talkbus lan invite --role observer
    talkbus lan invite --host 0.tcp.ngrok.io --port 12345 --enrolment-port 12346
    """
    from bus.invitations import TOKEN_SIZE, Line, address, digest

    if cancel:
        call.person.do("lan.close", {})
        click.echo("no invitation is open any more")
        return exits.DONE
    given, given_port = address(host) if host else ("", 0)
    where, ports, key = way_here(call, given)
    token = secrets.token_hex(TOKEN_SIZE)
    args: dict[str, Any] = {"digest": digest(token).hex(), "role": role, "ttl": int(minutes * 60_000)}
    if label:
        args["label"] = label
    call.person.do("lan.invite", args)
    bound = enrolment_port_of(call)
    session = port or given_port or ports[0]
    events = events_port or (ports[1] if session == ports[0] else session + 1)
    line = Line(given or where, session, events, enrolment_port or bound, key, token).text()
    _print_invitation(call, line, key, minutes, bound, as_json)
    return _await_newcomer(call, minutes) if wait else exits.DONE


@lan.command("peers")
@as_json
@pass_call
def peers(call: Call, as_json: bool) -> None:
    """List the machines of this bus, with their roles and fingerprints.

    \b
    talkbus lan peers
    talkbus lan peers --json
    """
    rows = machines(call)
    listed = [row for row in rows if "host" in row]
    if as_json:
        show.document(listed)
        return
    cells = [
        (
            row["host"] + (" (hub)" if row["hub"] else "") + (" (this machine)" if row["you"] else ""),
            row["role"],
            row["sessions"],
            show.clock(row["last_active"]) if row["last_active"] else "",
            show.clock(row["since"]) if row["since"] else "",
            row["fingerprint"],
        )
        for row in listed
    ]
    show.table(("machine", "role", "sessions", "last active", "paired", "fingerprint"), cells)
    for row in rows:
        if "invitation" in row:
            open_until = show.clock(row["invitation"]["until"])
            show.note(f"an invitation for one {row['invitation']['role']} is open until {open_until}")


@lan.command("revoke")
@click.argument("host")
@as_json
@pass_call
def revoke(call: Call, host: str, as_json: bool) -> None:
    """Take a machine off the bus, at once.

    Its connections are heard no more, and it gets nothing. Its mailboxes stay, with their mail.

    \b
    talkbus lan revoke laptop
    """
    result = call.person.do("lan.revoke", {"host": host})
    if as_json:
        show.document({"host": result["host"], "revoked": True})
    else:
        click.echo(show.safe(f"{result['host']} is off the bus"))


@lan.command("role")
@click.argument("host")
@click.argument("role", type=click.Choice(ROLES))
@as_json
@pass_call
def role(call: Call, host: str, role: str, as_json: bool) -> None:
    """Change what a machine may do; it counts at once.

    An owner may do everything: invite, revoke, prune, read all mail. A member sends and receives. An observer sees
    who is there and what happens, and reads no messages.

    \b
    talkbus lan role laptop observer
    """
    result = call.person.do("lan.role", {"host": host, "role": role})
    if as_json:
        show.document({"host": result["host"], "role": result["role"]})
    else:
        click.echo(show.safe(f"{result['host']} is {result['role']} now"))


def _print_invitation(call: Call, line: str, key: str, minutes: float, port: int, as_json: bool) -> None:
    from bus.roll import fingerprint

    until = show.now_ms() + int(minutes * 60_000)
    if as_json:
        show.document({"line": line, "fingerprint": fingerprint(key), "until": until, "enrolment_port": port})
        return
    click.echo(line)
    show.note(f"good once, until {show.clock(until)}; on the other machine: talkbus lan join LINE")
    show.note(f"this hub's fingerprint is {fingerprint(key)}; it is paired at port {port}, which closes then")


def _await_newcomer(call: Call, minutes: float) -> int:
    """Until the invitation was used, or is over."""
    known = {(row["fingerprint"], row["since"]) for row in machines(call) if "host" in row}
    end = time.monotonic() + minutes * 60 + 1
    while time.monotonic() < end:
        rows = machines(call)
        for row in rows:
            if "host" in row and (row["fingerprint"], row["since"]) not in known:
                click.echo(show.safe(f"{row['host']} has joined as {row['role']}, fingerprint {row['fingerprint']}"))
                return exits.DONE
        if not any("invitation" in row for row in rows):
            break
        time.sleep(0.25)
    exits.told("nobody new has joined, and the invitation is closed (talkbus lan invite opens another)")
    return exits.TIMED_OUT
