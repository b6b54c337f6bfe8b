"""`talkbus log`: the journal of what was done, then what happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from agent.cli import exits, show
from agent.cli.call import Call, Rows, as_json, fetch, pass_call
from agent.tap.choosing import CLASSES
from agent.tap.items import Item, num, text

PAGE = 200


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with live events, until Ctrl-C.")
@click.option("--limit", type=click.IntRange(0, 100_000), default=20, show_default=True, metavar="N")
@click.option("--after", type=click.IntRange(0), metavar="SEQ", help="The first N after this number, not the last N.")
@click.option("--peer", "peers", multiple=True, metavar="NAME", help="Only about this peer; may be repeated.")
@click.option(
    "--class", "classes", multiple=True, type=click.Choice(CLASSES), help="With -f: only events of this class."
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="With -f: end after N events.")
@as_json
@pass_call
def log(
    call: Call,
    follow: bool,
    limit: int,
    after: int | None,
    peers: Sequence[str],
    classes: Sequence[str],
    count: int | None,
    as_json: bool,
) -> int:
    """Show what the bus did, and what it does.

    The journal has one line for each accepted operation; its chain shows whether any was removed or changed. When
    events were missed while it follows, the journal tells what was done meanwhile.

    \b
    talkbus log --limit 100
    talkbus log -f --peer api
    """
    if not follow and (classes or count is not None):
        raise click.UsageError("--class and --count are for --follow")
    with call.view() as view:
        if not follow:
            rows = [row for row in _journal(view, limit, after) if _wanted(row, peers)]
            if as_json:
                show.document(rows)
            else:
                _table(rows)
            return exits.DONE
        return _follow(view, limit, after, _Sieve(peers, classes), count, as_json)


class _Sieve:
    """What of the journal and of the events is wanted, and where in the journal the last look ended."""

    def __init__(self, peers: Sequence[str], classes: Sequence[str]) -> None:
        self.peers, self.classes = peers, classes
        self.last_at = 0


def _follow(view: Any, limit: int, after: int | None, sieve: _Sieve, count: int | None, as_json: bool) -> int:
    from agent.cli.tap_lines import Printer
    from agent.tap.choosing import Choice
    from agent.tap.live import live

    printer = Printer(Choice(sieve.classes, sieve.peers), as_json, bodies=False)
    for item in live(view, show.now_ms):
        if item is None:
            continue
        if item.what == "snapshot":
            # The journal is read once the events are joined, so that nothing falls between them.
            rows = _since(view, sieve.last_at) if sieve.last_at else _journal(view, limit, after)
            _lines([row for row in rows if _wanted(row, sieve.peers)], as_json)
            sieve.last_at = sieve.last_at or max((num(row, "at") for row in rows), default=1)
        elif printer.show(item) and printer.seen == count:
            return exits.DONE
        sieve.last_at = max(sieve.last_at, _time(item))
    return exits.DONE


def _time(item: Item) -> int:
    """The broker's time of an event; 0 for what is none."""
    return num(item.told, "ts") if item.what == "event" else 0


def _since(view: Any, at: int) -> list[dict[str, Any]]:
    """What was done from that time on, by the broker's clock. What is of its very millisecond may be told again."""
    rows = _page(fetch(view, "log", {"limit": PAGE}))
    if len(rows) == PAGE and num(rows[0], "at") > at:
        show.note(f"more was done meanwhile than is shown here: talkbus log --after SEQ, below {rows[0]['seq']}")
    return [row for row in rows if num(row, "at") >= at]


def _wanted(row: dict[str, Any], peers: Sequence[str]) -> bool:
    """Whether an operation is by one of these; of any, when none is named."""
    who = text(row, "who").lower()
    return not peers or any(peer.lower() in (who, who.rpartition("@")[0]) for peer in peers)


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
