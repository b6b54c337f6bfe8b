"""`talkbus inbox` and `talkbus ack`: reading is a query; mail is marked only after its text has left this process.

Knows the seat of whoever reads. A living session shows and marks its own mail; then this only looks.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from agent.cli import exits, show
from agent.cli.call import Call, Rows, acting, as_json, pass_call
from agent.cli.finite import Finite
from agent.cli.follow import following
from agent.cli.letters import message, print_letters
from bus.errors import BusError, LocalError

if TYPE_CHECKING:
    from agent.asks import Answer
    from agent.person import Asker, Person

PAGE = 200
SETTLED_AT_ONCE = 32  # ids of one request: its head has 4096 octets
READER_S = 10.0
UNREAD = ("stored", "offered")


@dataclass(frozen=True, slots=True)
class Reader:
    """What is to be shown, and how. `peek` leaves it unread."""

    person: Person
    asker: Asker
    args: dict[str, Any]
    limit: int
    peek: bool
    as_json: bool

    def show(self) -> int:
        """Show what is there, then mark it; returns how many. Nothing is printed when there is nothing.

        Two readers of one mailbox take turns, so that none shows what the other one does. At most two pages are in
        memory. When a later page does not come, what was printed is whole, and the last of it stays unread.
        """
        count, printed = 0, Rows()
        with nullcontext() if self.peek else self.person.reading(READER_S):
            listing = show.Listing()
            try:
                for rows in self._pages():
                    if self.as_json:
                        listing.add(message(value, body) for value, body in rows)
                    else:
                        print_letters(rows, more=count > 0)
                    left_this_process()
                    self._mark(printed)
                    count, printed = count + len(rows), rows
            finally:
                listing.end()
            left_this_process()
            self._mark(printed)
        return count

    def _mark(self, rows: Rows) -> None:
        if rows and not self.peek:
            mark(self.person, rows)

    def _pages(self) -> Iterator[Rows]:
        """In order, the oldest unread ones or else the newest of all."""
        args, left = dict(self.args), self.limit
        if not args["unread"]:
            if left <= PAGE:
                answer = self._ask(args, left)
                if not answer.text:
                    yield answer.rows
                    return
            args |= {"after": self._before_the_newest(), "oldest": True}
        while left:
            size = min(PAGE, left)
            answer = self._ask(args, size)
            if answer.rows:
                yield answer.rows
                left -= len(answer.rows)
                args |= {"after": int(answer.rows[-1][0]["n"]), "oldest": True}
            if len(answer.rows) < size and not (answer.text and answer.rows):
                return  # nor was it cut for its size

    def _before_the_newest(self) -> int:
        """The number after which the newest ones begin, as many as are to be shown."""
        args, left, size = dict(self.args), self.limit, PAGE
        while left:
            asked = min(size, left)
            answer = self._ask(args, asked)
            if answer.text and asked > 1:
                size = asked // 2  # cut for its size, it lacks the newest ones
                continue
            if not answer.rows:
                break
            first = int(answer.rows[0][0]["n"])
            if first >= args.get("before", first + 1):
                raise LocalError(
                    f"this broker tells {PAGE} of all messages at once only (upgrade it, or --limit {PAGE})"
                )
            left -= len(answer.rows)
            args["before"] = first
        return int(args.get("before", 1)) - 1

    def _ask(self, args: dict[str, Any], limit: int) -> Answer:
        return self.asker.ask("inbox", {**args, "limit": limit}, 10.0)


@click.command()
@click.option("--peek", is_flag=True, help="Leave it unread.")
@click.option("--all", "everything", is_flag=True, help="Also what was read before.")
@click.option("--wait", type=Finite(0), metavar="S", help="Wait up to S seconds for something to come.")
@click.option("--tag", metavar="T", help="Only messages with this tag.")
@click.option("--from", "sender", metavar="NAME", help="Only messages of this sender.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, metavar="N")
@acting
@as_json
@pass_call
def inbox(
    call: Call,
    peek: bool,
    everything: bool,
    wait: float | None,
    tag: str | None,
    sender: str | None,
    limit: int,
    as_json: bool,
) -> int:
    """Show unread mail, and mark it as shown.

    It is marked after it was printed: what a broken pipe swallowed stays unread.

    \b
    talkbus inbox
    talkbus inbox --wait 60 --tag handoff
    talkbus inbox --json --peek --from api
    """
    person = call.person
    args: dict[str, Any] = {"unread": not everything}
    args.update({key: text for key, text in (("tag", tag), ("from", sender)) if text})
    with person.asking() as asker:
        if not peek and _held(asker):
            show.note(f"{asker.name} is a living session: it shows and marks its own mail; this only looks")
            peek = True
        reader = Reader(person, asker, args, limit, peek, as_json)
        count = reader.show() if wait is None else _wait(call, reader, wait)
        waiting = _kept_back(asker) if person.kind == "human" and not as_json else 0
    if waiting:
        show.note(f"{waiting} held for {person.name} (talkbus hold list)")
    if count:
        return exits.DONE
    if as_json:
        show.document([])
    if wait is not None:
        raise exits.TimedOut(f"nothing came for {person.name} within {wait:g} s (wait longer, or look again later)")
    if not as_json:
        show.note(f"no {'' if everything else 'unread '}mail for {person.name}")
    return exits.DONE


def _own_row(asker: Asker) -> dict[str, Any]:
    rows = asker.ask("whoami", {}).rows
    return rows[0][0] if rows else {}


def _held(asker: Asker) -> bool:
    return _own_row(asker).get("presence") == "open"


def _kept_back(asker: Asker) -> int:
    """How many messages to this mailbox wait for a person."""
    return int(_own_row(asker).get("held", 0))


def _wait(call: Call, reader: Reader, timeout: float) -> int:
    """Join the events first and look then, so that nothing comes between."""
    with call.view() as view:
        for event in following(view, ("msg.stored",), timeout):
            if event is not None and event.get("mailbox") != reader.asker.id:
                continue
            if not reader.peek and _held(reader.asker):
                show.note(f"{reader.asker.name} is a living session by now: this only looks")
                reader = replace(reader, peek=True)
            if count := reader.show():
                return count
    return 0


def left_this_process() -> None:
    """Flush stdout, and see that somebody still reads it. OSError when not: then nothing counts as shown."""
    if sys.stdout is None:
        raise BrokenPipeError("there is no stdout")
    sys.stdout.flush()
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return  # a stand-in of a test
    if hasattr(select, "poll"):
        poller = select.poll()
        poller.register(descriptor, 0)  # errors are told without being asked for
        if any(event & (select.POLLERR | select.POLLNVAL) for _, event in poller.poll(0)):
            raise BrokenPipeError("nobody reads stdout")


def mark(person: Person, rows: Rows) -> None:
    """Mark messages as shown. What cannot be told now is on this disk and told with the next call."""
    idents = [f"{value.get('host', '')}/{value['id']}" for value, _ in rows if value.get("status") in UNREAD]
    for start in range(0, len(idents), SETTLED_AT_ONCE):
        part = idents[start : start + SETTLED_AT_ONCE]
        outcome = person.submit("settle", {"ids": part, "proof": "printed"})
        if outcome.settled is None:
            show.note(
                "not marked yet, so it may be shown again: that is told with the next call that reaches the bus"
            )
        elif outcome.settled.code >= 300:
            show.note(f"not marked: {outcome.settled.text}")
            return


@click.command()
@click.argument("idents", metavar="ID...", nargs=-1, required=True)
@acting
@as_json
@pass_call
def ack(call: Call, idents: Sequence[str], as_json: bool) -> None:
    """Say that messages were dealt with.

    Their senders see it (talkbus why).

    \b
    talkbus ack k3v7h2qmx5azt4cd
    """
    from bus.errors import Code, Refused

    person = call.person
    wanted = list(dict.fromkeys(part.strip().lower() for part in idents))
    with person.asking() as asker:
        found: Rows = []
        for start in range(0, len(wanted), SETTLED_AT_ONCE):
            part = wanted[start : start + SETTLED_AT_ONCE]
            found += asker.ask("inbox", {"ids": part, "unread": False, "limit": PAGE}).rows
    missing = [ident for ident in wanted if ident not in {value["id"] for value, _ in found}]
    if missing:
        raise Refused(
            Code.NOT_FOUND, f"{person.name} has no message {', '.join(missing)[:200]} (nothing was acknowledged)"
        )
    keys = [f"{value.get('host', '')}/{value['id']}" for value, _ in found]
    for start in range(0, len(keys), SETTLED_AT_ONCE):
        try:
            person.do("receipt", {"moved": [["acked", "talkbus ack", 0, keys[start : start + SETTLED_AT_ONCE]]]})
        except BusError as error:
            if start:
                error.args = (f"{start} of {len(keys)} were acknowledged, then: {error}",)
            raise
    told = [{"id": value["id"], "from": value.get("from", ""), "status": "acked"} for value, _ in found]
    if as_json:
        show.document(told)
    else:
        for row in told:
            click.echo(f"{row['id']}  acked  from {show.safe(row['from'])}")
