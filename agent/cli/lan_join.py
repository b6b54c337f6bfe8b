"""`talkbus lan`: the commands of a machine that uses another one's bus: join, leave, hub, find."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from agent.cli import show
from agent.cli.call import Call, as_json, fetch, pass_call
from agent.cli.finite import Finite

if TYPE_CHECKING:
    from bus.config import Hub
    from bus.invitations import Line
    from bus.trust import KeyPair

ENROL_S = 15.0
CONNECT_S = 10.0


@click.command()
@click.argument("line", metavar="LINE|-")
@click.option("--leave-mail", is_flag=True, help="Leave unread mail of this machine's own bus where it is.")
@as_json
@pass_call
def join(call: Call, line: str, leave_mail: bool, as_json: bool) -> None:
    """Join the bus of another machine, by the line that 'talkbus lan invite' printed there.

    From then on this machine starts no broker of its own: its sessions, those that run included, use the hub, and
    keep what they send on disk while it is out of reach. Unread mail moves along. '-' reads the line from stdin.

    \b
    talkbus lan join talkbus:192.168.1.20:7717,7718,7719:aGVsbG8...
    """
    from bus.errors import LocalError
    from bus.invitations import parse
    from bus.joined import Joined, remember
    from bus.roll import fingerprint
    from bus.trust import ensure_keys, host_label, load_roll

    given = parse(sys.stdin.readline() if line == "-" else line)
    keys = ensure_keys(call.home)
    _may_join(call, given, keys, len(load_roll(call.home, keys.public)) - 1)
    if not as_json:
        rows = [("the hub's fingerprint", fingerprint(given.key)), ("this machine's", fingerprint(keys.public))]
        show.facts(rows)
    _enroll(call, given, keys, call.config.label or host_label())
    far = _hub(given)
    label, hub_label = _introduced(call, far)
    with _at_rest(call):
        letters = _letters(call)
        held = sum(letter["held"] for letter in letters)
        if held:
            raise LocalError(f"{held} held messages wait in this machine's bus (talkbus hold list, and then again)")
        if letters and not leave_mail:
            _move(call, far, label, letters)
        remember(call.home, Joined(given.host, given.port, given.events, given.key, label, show.now_ms()))
    call.person.drain()
    told = {"hub": hub_label, "address": f"{far.host}:{far.port}", "label": label}
    told |= {"fingerprint": fingerprint(keys.public), "hub_fingerprint": fingerprint(given.key)}
    if as_json:
        show.document({**told, "moved": 0 if leave_mail else len(letters), "left": len(letters) if leave_mail else 0})
        return
    click.echo(show.safe(f"joined: this machine is {label} on the bus of {hub_label}, at {far.host}:{far.port}"))
    if letters:
        what = "stay in this machine's own bus until 'talkbus lan leave'" if leave_mail else "were moved to the hub"
        show.note(f"{len(letters)} unread message{'s' * (len(letters) != 1)} {what}")


@click.command()
@click.option("--anyway", is_flag=True, help="Also when something waits for the hub: this machine's own bus gets it.")
@as_json
@pass_call
def leave(call: Call, anyway: bool, as_json: bool) -> None:
    """Use a bus of this machine's own again.

    Sessions that run stay with the hub until they end or lose it. The hub still knows this machine: 'talkbus lan
    revoke' there takes it off. What commands have queued for the hub is to go out first.

    \b
    talkbus lan leave
    """
    from agent.left import waiting
    from bus.errors import LocalError
    from bus.joined import forget, joined

    if call.config.hub and call.config.origin("hub") != "default":
        raise LocalError("the hub is set in config.toml or TALKBUS_HUB (talkbus config set hub '')")
    if not anyway and joined(call.home) is not None and (count := waiting(call.home)):
        raise LocalError(
            f"{count} request{'s wait' if count != 1 else ' waits'} on this disk for the hub, and would go to this "
            "machine's own bus (have the hub take it first: talkbus peers; or: talkbus lan leave --anyway)"
        )
    left = forget(call.home)
    if not left:
        raise LocalError("this machine has not joined another one's bus (talkbus lan join LINE)")
    if as_json:
        show.document({"left": True})
    else:
        click.echo("this machine has a bus of its own again")


@click.command()
@click.argument("address", required=False, metavar="[HOST[:PORT]]")
@as_json
@pass_call
def hub(call: Call, address: str | None, as_json: bool) -> None:
    """Tell which hub this machine uses; with an address: say where it has moved.

    Whoever answers there must prove the key that was paired.

    \b
    talkbus lan hub
    talkbus lan hub 192.168.1.77
    """
    from bus.errors import LocalError
    from bus.invitations import address as parsed
    from bus.joined import joined, remember
    from bus.roll import fingerprint

    found = joined(call.home)
    if found is None:
        raise LocalError("this machine has not joined another one's bus (talkbus lan join LINE)")
    if address:
        host, port = parsed(address)
        port = port or found.port
        found = replace(found, host=host, port=port, events=found.events - found.port + port, since=show.now_ms())
        _introduced(call, found.hub)
        remember(call.home, found)
    told = {"address": found.where, "label": found.label, "fingerprint": fingerprint(found.key)}
    if as_json:
        show.document(told)
    else:
        names = {"address": "hub", "label": "this machine is", "fingerprint": "the hub's fingerprint"}
        show.facts([(names[key], value) for key, value in told.items()])


@click.command()
@click.option("--seconds", type=Finite(0.5, 30), default=3.0, show_default=True, help="How long to look.")
@as_json
@pass_call
def find(call: Call, seconds: float, as_json: bool) -> None:
    """Look for hubs on this network that announce themselves ('talkbus lan up --announce').

    To join one an invitation is needed all the same; its fingerprint must be the one shown here.

    \b
    talkbus lan find
    """
    from bus.discovery import browse

    found = [hub.told() for hub in browse(seconds)]
    if as_json:
        show.document(found)
    elif found:
        cells = [(row["host"], f"{row['address']}:{row['port']}", row["fingerprint"]) for row in found]
        show.table(("hub", "address", "fingerprint"), cells)
    else:
        show.note("no hub announces itself here (on the hub: talkbus lan up --announce)")


# -- the steps of a join ---------------------------------------------------------------------------------------------


def _hub(line: Line) -> Hub:
    from bus.config import Hub
    from bus.joined import bracketed

    return Hub(bracketed(line.host), line.port, line.key, line.events)


def _may_join(call: Call, line: Line, keys: KeyPair, paired: int) -> None:
    """LocalError where a join would make no sense, before anybody is asked."""
    from bus.errors import LocalError
    from bus.joined import joined

    if line.key == keys.public:
        raise LocalError("this machine is that hub itself (run the join on another one)")
    if call.config.hub:
        raise LocalError("the hub is set in config.toml or TALKBUS_HUB (talkbus config set hub '', then join)")
    found = joined(call.home)
    if found is not None and found.key != line.key:
        raise LocalError(f"this machine uses the hub at {found.where} already (talkbus lan leave, then join)")
    if paired:
        raise LocalError(f"{paired} machines use this one's bus (talkbus lan revoke each, then join)")


def _enroll(call: Call, line: Line, keys: KeyPair, label: str) -> None:
    """Be taken onto the hub's roll; or see that this machine is on it already, as after an answer that was lost."""
    from bus.client import View
    from bus.enrolling import enroll
    from bus.errors import BusError, Refused, Unreachable
    from bus.joined import bracketed

    endpoint = f"tcp://{bracketed(line.host)}:{line.enrolment}"
    try:
        enroll(keys, endpoint, line.key, line.token, label, ENROL_S)
    except (Unreachable, Refused) as error:
        try:
            View.open(call.home, _using(call, _hub(line)), CONNECT_S / 5).close()
        except BusError:
            raise error from None


def _using(call: Call, far: Hub) -> Any:
    return replace(call.config, hub=f"{far.host}:{far.port}#{far.key}")


def _introduced(call: Call, far: Hub) -> tuple[str, str]:
    """This machine's label at the hub and the hub's own, as the hub itself says once the key was let in."""
    from bus.client import View
    from bus.errors import BusError, Unreachable

    try:
        with View.open(call.home, _using(call, far), CONNECT_S) as view:
            rows = [value for value, _ in fetch(view, "machines", {})]
    except Unreachable as error:
        raise Unreachable(
            f"the hub cannot be used: {error}; nothing was changed here (make its port {far.port} reachable, "
            "and use the same line again)"
        ) from error
    except BusError:
        raise
    mine = next((str(row["host"]) for row in rows if row.get("you")), "")
    return mine, next((str(row["host"]) for row in rows if row.get("hub")), "")


@contextmanager
def _at_rest(call: Call) -> Iterator[None]:
    """This machine's own bus, stopped, so that nobody writes mail into it or starts it meanwhile."""
    from bus.daemon import clear_stop, stop_broker, stopped
    from bus.errors import LocalError
    from bus.private import private_dir
    from bus.processes import FileLock

    was_stopped = stopped(call.home)
    private_dir(call.home.state)
    lock = FileLock(call.home.lock)
    try:
        stop_broker(call.home)
        if not lock.acquire():
            raise LocalError("another broker came up at this very moment (try again)")
        yield
    except BaseException:
        if not was_stopped:
            clear_stop(call.home)
        raise
    finally:
        lock.release()
    clear_stop(call.home)  # what keeps a broker from starting here is the join from now on


def _letters(call: Call) -> list[dict[str, Any]]:
    from bus.errors import LocalError

    if call.unread is None:
        raise LocalError("a join needs the talkbus command (run: talkbus lan join LINE)")
    return call.unread(call.home)


def _move(call: Call, far: Hub, label: str, letters: list[dict[str, Any]]) -> None:
    """Unread mail goes to the hub as its senders would have sent it; then it is settled here.

    Unreachable or Refused when not all of it got there: what did is settled here, what did not stays.
    """
    from agent.cli.lan_move import Mover

    arrived: list[dict[str, Any]] = []
    try:
        with Mover(call.home, _using(call, far), label) as mover:
            for letter in letters:
                mover.move(letter)
                arrived.append(letter)
    finally:
        if arrived and call.moved is not None:
            call.moved(call.home, arrived)
