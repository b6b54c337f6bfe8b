"""`talkbus audit`: whether the journal is the one that was written, by its chain and by what agents remember of it.

The agents' side is here: the heads that stand in their databases. What is done with the broker's file is composed by
the entry point.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from agent.cli import exits, show
from agent.cli.call import Call, RememberedHead, as_json, fetch, pass_call


@click.group()
def audit() -> None:
    """Look whether the journal was tampered with.

    Every accepted operation is a record of the broker's journal, chained to the one before.

    \b
    talkbus audit verify
    """


@audit.command("verify")
@click.option("--file", "file", metavar="PATH", help="Another database: a backup, or one of a broker that is down.")
@as_json
@pass_call
def verify(call: Call, file: str | None, as_json: bool) -> int:
    """Find records that were changed, removed, inserted or cut off.

    Each record must follow from the one before; what was pruned must have its checkpoint; and the end of the journal
    must be at or behind every end that the agents of this machine were told when they connected. Works while the bus
    runs and while it is down. On a machine that uses another one's bus only those ends are compared.

    \b
    talkbus audit verify
    talkbus audit verify --file backup/bus.db --json
    """
    from bus.database import AWAY
    from bus.errors import LocalError, StoreError

    # Before the journal is read: what is told meanwhile may be newer than what is read.
    heads, unread = remembered(call)
    if call.config.hub and not file:
        told = _over_the_bus(call, heads)
    else:
        if call.audit is None:
            raise click.ClickException("the journal is read by the talkbus command only")
        try:
            told = call.audit(Path(file).expanduser() if file else call.home.bus_db, heads)
        except StoreError as error:
            if not file:
                raise
            what = str(error).removesuffix(AWAY).rstrip()
            raise LocalError(f"{what} (name the bus.db of a broker, or of its backup)") from error
    told = {"ok": not told["faults"], **told, "unread": unread}
    if as_json:
        show.document(told)
    else:
        _print(told)
    if told["faults"]:
        raise click.ClickException(
            f"the journal was tampered with, or restored from an older copy (faults: {len(told['faults'])}; "
            "compare with a backup: talkbus audit verify --file BACKUP)"
        )
    return exits.DONE


def remembered(call: Call) -> tuple[list[RememberedHead], int]:
    """Every end of a journal that a seat of this machine was told, and how many seats could not be read."""
    from agent.outbox import remembered as of_seat
    from agent.seats import every
    from bus.errors import StoreError

    heads: list[RememberedHead] = []
    unread = 0
    for seat in every(call.home):
        if not seat.database.exists():
            continue
        try:
            heads += [(seat.name.removesuffix(".cli"), *head) for head in of_seat(seat.database)]
        except StoreError as error:
            unread += 1
            show.note(f"not compared: {error}")
    return heads, unread


def _over_the_bus(call: Call, heads: list[RememberedHead]) -> dict[str, Any]:
    """What the hub says of its journal today, against what it said before."""
    told: dict[str, Any] = {"heads": 0, "unknown": 0, "others": 0, "faults": []}
    with call.view(start=False) as view:
        stats = fetch(view, "stats", {})[0][0]
        told |= {"store": stats["store"], "last": int(stats["seq"]), "chain": stats["chain"]}
        known: dict[int, str] = {}
        for who, store, seq, chain in heads:
            if store != told["store"]:
                told["others"] += 1
            elif seq > told["last"]:
                _fault(
                    told, "truncated", told["last"], f"{who} remembers operation {seq}, which is not there any more"
                )
            else:
                if seq not in known:
                    rows = [value for value, _ in fetch(view, "log", {"after": seq - 1, "limit": 1})]
                    known[seq] = str(rows[0]["chain"]) if rows and rows[0]["seq"] == seq else ""
                told["heads" if known[seq] else "unknown"] += 1
                if known[seq] not in ("", chain):
                    _fault(told, "rewritten", seq, f"{who} was told of another history up to here")
    return told


def _fault(told: dict[str, Any], kind: str, seq: int, text: str) -> None:
    told["faults"].append({"kind": kind, "seq": seq, "text": text})


def _print(told: dict[str, Any]) -> None:
    for fault in told["faults"]:
        at = f"#{fault['seq']}  " if fault["seq"] else ""
        click.echo(show.safe(f"{fault['kind'].ljust(9)}  {at}{fault['text']}"))
    rows: list[tuple[str, object]] = [
        ("journal", f"{told['records']} records, up to #{told['last']}" if "records" in told else f"#{told['last']}"),
        ("head", told["chain"]),
        ("pruned", f"{told['pruned']}, with checkpoints" if told.get("pruned") else ""),
        ("unproved", f"{told['unproved']} records stand alone (pruned around)" if told.get("unproved") else ""),
        ("compared", f"{told['heads']} ends that agents here remember"),
        ("pruned away", f"{told['unknown']} ends lie in what was pruned" if told["unknown"] else ""),
        (
            "of others",
            f"{told['others']} ends are of another database (replaced, or made anew)" if told["others"] else "",
        ),
    ]
    show.facts(rows)
    if not told["faults"]:
        click.echo("nothing is missing and nothing was changed")
