"""What was: why, history, search. It comes from the broker; `why` also knows what is still queued on this disk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from agent.cli import show
from agent.cli.call import Call, Rows, acting, as_json, fetch, pass_call
from agent.cli.letters import message, print_letters
from agent.cli.mail import BLOCKED

if TYPE_CHECKING:
    from agent.outbox import StoredRow
    from agent.refusals import Refusal

PAGE = 200


@click.command()
@click.argument("ident", metavar="ID")
@acting
@as_json
@pass_call
def why(call: Call, ident: str, as_json: bool) -> None:
    """Tell what became of a message, with proof.

    ID may be cut to its first characters. Where several messages have the id, yours counts first, and HOST/ID or
    NAME@HOST/ID says which is meant. Each recipient has steps of its own, the newest last.

    \b
    talkbus why k3v7h2qmx5azt4cd
    """
    from bus.errors import Code, Refused, Unreachable

    row = call.person.sent(ident)
    if row is not None and row.op != "send":
        call.person.drain()
        _tell_request(call, call.person.sent(row.id) or row, as_json)
        return
    local = False
    try:
        with call.view() as view:
            told = _ladders([value for value, _ in fetch(view, "why", {"id": row.id if row else ident})])
    except (Refused, Unreachable) as error:
        if row is None:
            raise
        if isinstance(error, Refused) and error.code == Code.CONFLICT:
            with call.person.asking() as asker:  # of several of this machine, the one that was sent from here
                return _tell(_ladders([value for value, _ in asker.ask("why", {"id": row.id}).rows]), as_json)
        row = call.person.sent(row.id) or row  # it may have gone out just now
        told, local = _local(row, call.person.name, call.person.refusal()), True
    _tell(told, as_json)
    if local and not as_json:
        show.note("as of then: the bus could not be asked, or has pruned it since")


def _tell(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show.document(told)
    else:
        _show_ladders(told)


def _ladders(rows: list[dict[str, Any]]) -> dict[str, Any]:
    first = rows[0] if rows else {}
    return {
        "id": first.get("id", ""),
        "from": first.get("from", ""),
        "to": [{key: row.get(key, "") for key in ("name", "status", "history")} for row in rows],
    }


def _steps(row: StoredRow, refusal: Refusal | None) -> list[dict[str, Any]]:
    """What this disk knows of a request without a reply. It is blocked where the hub takes nothing from here."""
    steps: list[dict[str, Any]] = [{"status": "queued", "ts": row.at, "proof": "on this disk"}]
    if refusal is not None:
        proof = f"it goes out only when the hub takes this machine's mail again: {refusal.text}"
        steps.append({"status": BLOCKED, "ts": max(refusal.at, row.at), "proof": proof})
    return steps


def _tell_request(call: Call, row: StoredRow, as_json: bool) -> None:
    """What became of a request that is not a message: only this disk knows."""
    if row.code is None:
        steps = _steps(row, call.person.refusal())
    else:
        status = "done" if row.code < 300 else "refused"
        steps = [{"status": status, "ts": row.settled_at, "proof": f"{row.code} {row.text}".strip()}]
    told = {"id": row.id, "from": call.person.name, "op": row.op, "status": steps[-1]["status"], "history": steps}
    if as_json:
        show.document({**told, "to": []})
        return
    click.echo(f"{show.safe(row.id)} {show.safe(row.op)} from {show.safe(call.person.name)}: {told['status']}")
    _show_steps(steps)


def _local(row: StoredRow, name: str, refusal: Refusal | None) -> dict[str, Any]:
    """What this disk knows of a message the broker does not have (any more)."""
    if row.code is None:
        steps = _steps(row, refusal)
        status = steps[-1]["status"]
        to = [{"name": str(entry), "status": status, "history": steps} for entry in row.args.get("to", [])]
        return {"id": row.id, "from": name, "to": to}
    answers = row.result.get("to") or [
        {"name": str(entry), "status": "refused", "code": row.code, "text": row.text}
        for entry in row.args.get("to", [])
    ]
    told = []
    for entry in answers:
        proof = f"{entry['code']} {entry.get('text', '')}".strip()
        step = {"status": entry["status"], "ts": row.settled_at, "proof": proof}
        told.append({"name": entry["name"], "status": entry["status"], "history": [step]})
    return {"id": row.id, "from": name, "to": told}


def _show_ladders(told: dict[str, Any]) -> None:
    click.echo(f"{show.safe(told['id'])} from {show.safe(told['from'])}")
    for recipient in told["to"]:
        click.echo(f"{show.safe(recipient['name'])}: {show.safe(recipient['status'])}")
        _show_steps(recipient["history"])


def _show_steps(steps: Iterable[dict[str, Any]]) -> None:
    for step in steps:
        proof = f"  {show.safe(step['proof'])}" if step.get("proof") else ""
        click.echo(f"  {show.clock(int(step['ts']))}  {str(step['status']).ljust(8)}{proof}")


@click.command()
@click.option("--peer", metavar="NAME", help="Only what NAME sent or received.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, metavar="N")
@as_json
@pass_call
def history(call: Call, peer: str | None, limit: int, as_json: bool) -> None:
    """List messages that were sent and received.

    The newest last.

    \b
    talkbus history --peer api --limit 50
    """
    found: Rows = []
    args: dict[str, Any] = {"peer": peer} if peer else {}
    with call.view() as view:
        while len(found) < limit:
            page = fetch(view, "history", {**args, "limit": min(PAGE, limit - len(found))})
            known = {(value["fid"], value["id"]) for value, _ in found}
            fresh = [row for row in page if (row[0]["fid"], row[0]["id"]) not in known]
            found += fresh
            if not fresh or len(page) < min(PAGE, limit):
                break
            # Several may be of one millisecond, so the last one is asked for again.
            args["before"] = int(page[-1][0]["ts"]) + 1
    found.reverse()
    if as_json:
        show.document([{**message(value, body), "status": value.get("status", "")} for value, body in found])
    else:
        print_letters(found, statuses=True)


@click.command()
@click.argument("query", nargs=-1, required=True, metavar="QUERY")
@click.option("--limit", type=click.IntRange(1, PAGE), default=20, show_default=True, metavar="N")
@as_json
@pass_call
def search(call: Call, query: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Search the text of all messages.

    The newest first. All words must be there; "a phrase" and begin* are understood.

    \b
    talkbus search migration
    talkbus search '"port 8080"' deploy*
    """
    with call.view() as view:
        rows = fetch(view, "search", {"query": " ".join(query), "limit": limit})
    if as_json:
        show.document([_hit(value) for value, _ in rows])
    elif rows:
        cells = [(v["id"], show.clock(v["ts"]), f"{v['from']} to {v['to']}", v["snippet"]) for v, _ in rows]
        show.table(("id", "when", "who", "text"), cells)
    else:
        show.note("nothing found")


def _hit(value: dict[str, Any]) -> dict[str, Any]:
    told = {**message(value, b""), "snippet": value.get("snippet", ""), "status": value.get("status", "")}
    del told["body"]
    return told
