"""`talkbus state`: values that all sessions share, with versions, compare-and-set and time-to-live."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from agent.cli import exits, show
from agent.cli.call import Call, acting, as_json, fetch, pass_call
from agent.cli.finite import Finite
from agent.cli.follow import following

if TYPE_CHECKING:
    from bus.client import View


@click.group()
def state() -> None:
    """Read and write values that all sessions share.

    A value is any JSON. Each write gives it a new version, which never repeats.

    \b
    talkbus state set api:port 8080
    talkbus state get api:port
    talkbus state set lock:deploy '"me"' --if-version 0 --ttl 600
    """


@state.command("get")
@click.argument("key")
@as_json
@pass_call
def get(call: Call, key: str, as_json: bool) -> None:
    """Print a value as JSON; with --json also its version, who wrote it and when.

    \b
    talkbus state get api:port
    """
    from bus.names import check_key

    with call.view() as view:
        value, body = fetch(view, "state.get", {"key": check_key(key)})[0]
    told = entry(value, body)
    if as_json:
        show.document(told)
    else:
        click.echo(json.dumps(told["value"], indent=2))


@state.command("set")
@click.argument("key")
@click.argument("value", metavar="JSON|-")
@click.option("--string", is_flag=True, help="The value is a plain text, not JSON.")
@click.option(
    "--if-version", type=click.IntRange(0), metavar="N", help="Only if it is at version N; 0: if it is new."
)
@click.option("--ttl", type=Finite(0.001), metavar="S", help="Forget it after S seconds.")
@acting
@as_json
@pass_call
def set_(
    call: Call, key: str, value: str, string: bool, if_version: int | None, ttl: float | None, as_json: bool
) -> None:
    """Write a value.

    What looks like a key, token or password is redacted first: every session can read it.

    \b
    talkbus state set api:port 8080
    talkbus state set motto "all is well" --string
    talkbus state set lock '"me"' --if-version 0 --ttl 60
    """
    from agent.redact import outgoing
    from bus.names import check_key

    args: dict[str, Any] = {"key": check_key(key)}
    if if_version is not None:
        args["ver"] = if_version
    if ttl is not None:
        args["ttl"] = int(ttl * 1000)
    body = _value(value, string)
    found = outgoing("state.set", args, body)[2]
    result = call.person.do("state.set", args, body)
    if found:
        show.note(f"redacted before it was written: {found} (every session can read a state value)")
    if as_json:
        show.document({"key": key, "version": result["ver"]})
    else:
        click.echo(f"{key} is at version {result['ver']}")


def _value(text: str, string: bool) -> bytes:
    from bus.errors import LocalError
    from bus.wire import STATE_VALUE_MAX

    if text == "-":
        raw = sys.stdin.buffer.read(STATE_VALUE_MAX + 1)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise LocalError(f"stdin is not UTF-8 text (octet {error.start})") from error
    if string:
        data = json.dumps(text, ensure_ascii=False)
    else:
        data = text.strip()  # as it was written: a number too long for us is not for us to round
        try:
            json.loads(data, parse_constant=_no_constant, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            raise LocalError(f"{text[:40]!r} is not JSON (with --string it is taken as a text)") from error
    made = data.encode("utf-8", "surrogatepass")
    if len(made) > STATE_VALUE_MAX:
        raise LocalError(f"the value has {len(made)} octets, {STATE_VALUE_MAX} are allowed (share a path instead)")
    try:
        made.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LocalError("the value is not UTF-8 text (write it with \\u escapes)") from error
    return made


def _finite(text: str) -> float:
    """A number of JSON; ValueError for one that is too large for any reader, such as 1e400."""
    number = float(text)
    if number - number != 0:
        raise ValueError(f"{text[:20]} is too large a number")
    return number


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@state.command("delete")
@click.argument("key")
@click.option("--if-version", type=click.IntRange(1), metavar="N", help="Only if it is at version N.")
@acting
@as_json
@pass_call
def delete(call: Call, key: str, if_version: int | None, as_json: bool) -> None:
    """Remove a value.

    \b
    talkbus state delete api:port
    """
    from bus.names import check_key

    args: dict[str, Any] = {"key": check_key(key)}
    if if_version is not None:
        args["ver"] = if_version
    result = call.person.do("state.delete", args)
    if as_json:
        show.document({"key": key, "deleted": True, "version": result.get("ver", 0)})
    else:
        click.echo(f"{key} is gone")


@state.command("list")
@click.argument("prefix", default="")
@click.option("--project", metavar="P", help="Only keys written from the project P (its path or git remote).")
@as_json
@pass_call
def list_(call: Call, prefix: str, project: str | None, as_json: bool) -> None:
    """List keys with their values, all or those that begin with PREFIX.

    \b
    talkbus state list api:
    """
    args = {key: text for key, text in (("prefix", prefix), ("project", project)) if text}
    with call.view() as view:
        rows = [entry(value, body) for value, body in fetch(view, "state.list", args)]
    if as_json:
        show.document(rows)
    elif rows:
        cells = [
            (row["key"], _short(row["value"]), row["version"], row["by"], show.clock(row["ts"]), _left(row))
            for row in rows
        ]
        show.table(("key", "value", "version", "by", "when", "lives"), cells)
    else:
        show.note("there are no such keys")


@state.command("watch")
@click.argument("prefix", default="")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N changes.")
@click.option("--timeout", type=Finite(0), metavar="S", help="End after S seconds, with exit code 4.")
@as_json
@pass_call
def watch(call: Call, prefix: str, count: int | None, timeout: float | None, as_json: bool) -> int:
    """Follow the changes of all keys, or of those that begin with PREFIX.

    With --json one line for each change.

    \b
    talkbus state watch api:
    """
    seen = 0
    with call.view() as view:
        for event in following(view, ("state.",), timeout):
            if event is None or not str(event.get("key", "")).startswith(prefix):
                continue
            _print_change(_change(view, event), as_json)
            seen += 1
            if seen == count:
                return exits.DONE
    return exits.TIMED_OUT


def _change(view: View, event: dict[str, Any]) -> dict[str, Any]:
    """A change with the value as it is by now; an event itself carries none."""
    told = {"event": event["event"], "key": event["key"], "by": event.get("by", ""), "ts": event.get("ts", 0)}
    if event["event"] == "delete":
        return told
    told["version"] = event.get("ver", 0)
    answer = view.query("state.get", {"key": event["key"]}, 5.0)
    if answer.rows:
        present = entry(*answer.rows[0])
        told.update(value=present["value"], version=present["version"], by=present["by"], ts=present["ts"])
    return told


def _print_change(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show.line(told)
    elif told["event"] == "delete":
        click.echo(show.safe(f"{show.clock(told['ts'])}  {told['key']} is gone  {told['by']}"))
    else:
        value = _short(told["value"]) if "value" in told else "(gone by now)"
        click.echo(show.safe(f"{show.clock(told['ts'])}  {told['key']} = {value}  {told['by']}"))


def entry(value: dict[str, Any], body: bytes) -> dict[str, Any]:
    """One key as the JSON listings give it. A value that is no JSON, written by another client, is given as text."""
    text = body.decode("utf-8", "replace")
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        read = text
    return {
        "key": value["key"],
        "value": read,
        "version": value.get("ver", 0),
        "by": value.get("by", ""),
        "project": value.get("project", ""),
        "ts": value.get("ts", 0),
        "ttl": value.get("ttl"),
    }


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _left(row: dict[str, Any]) -> str:
    return "" if row["ttl"] is None else f"{max(0, row['ttl']) // 1000} s"
