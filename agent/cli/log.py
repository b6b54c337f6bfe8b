"""`talkbus log`: the journal of what was done, then what happens."""

from __future__ import annotations

from typing import Any

import click

from agent.cli import exits, show
from agent.cli.call import Call, Rows, as_json, fetch, pass_call
from agent.cli.follow import following
from agent.cli.tap import CLASSES, print_event

PAGE = 200
TOPICS = tuple(f"{name}." for name in CLASSES)


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with live events, until Ctrl-C.")
@click.option("--limit", type=click.IntRange(0, 100_000), default=20, show_default=True, metavar="N")
@click.option("--after", type=click.IntRange(0), metavar="SEQ", help="The first N after this number, not the last N.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="With -f: end after N events.")
@as_json
@pass_call
def log(call: Call, follow: bool, limit: int, after: int | None, count: int | None, as_json: bool) -> int:
    """Show what the bus did, and what it does.

    The journal has one line for each accepted operation; its chain shows whether any was removed or changed.

    \b
    talkbus log --limit 100
    talkbus log -f
    """
    with call.view() as view:
        if not follow:
            rows = _journal(view, limit, after)
            if as_json:
                show.document(rows)
            else:
                _table(rows)
            return exits.DONE
        seen = 0
        told = False
        # The journal is read once the events are joined, so that nothing falls between them.
        for event in following(view, TOPICS, None):
            if event is None:
                if told:
                    show.note("events were missed here")
                else:
                    _lines(_journal(view, limit, after), as_json)
                told = True
                continue
            print_event(event, as_json)
            seen += 1
            if seen == count:
                break
    return exits.DONE


def _journal(view: Any, limit: int, after: int | None) -> list[dict[str, Any]]:
    """The last `limit` operations, or the first ones after a number; in pages."""
    if limit == 0:
        return []
    if after is None:
        found = _page(fetch(view, "log", {"limit": min(PAGE, limit)}))
        if limit <= PAGE or len(found) < PAGE:
            return found
        after = max(0, int(found[-1]["seq"]) - limit)
    rows: list[dict[str, Any]] = []
    while len(rows) < limit:
        page = _page(fetch(view, "log", {"after": after, "limit": min(PAGE, limit - len(rows))}))
        if not page:
            break
        rows += page
        after = int(page[-1]["seq"])
    return rows


def _page(rows: Rows) -> list[dict[str, Any]]:
    return [value for value, _ in rows]


def _table(rows: list[dict[str, Any]]) -> None:
    cells = [(row["seq"], show.clock(row["at"]), row["op"], row["code"], row["who"]) for row in rows]
    show.table(("seq", "when", "what", "code", "who"), cells)


def _lines(rows: list[dict[str, Any]], as_json: bool) -> None:
    for row in rows:
        if as_json:
            show.line(row)
        else:
            click.echo(show.safe(f"{show.clock(row['at'])}  #{row['seq']} {row['op']} {row['code']} {row['who']}"))
