"""`talkbus inbox` and `talkbus ack`: reading is a query; before a message is printed the broker is told that it is
offered, and mail is marked only after its text has left this process.

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

from agent.book import told_key
from agent.cli import exits, show
from agent.cli.call import Call, Rows, acting, as_json, pass_call
from agent.cli.finite import Finite
from agent.cli.follow import following
from agent.cli.letters import message, print_letters
from agent.named import offered, on_the_wire, typed
from bus.errors import BusError, Code, LocalError, Refused, Unreachable

if TYPE_CHECKING:
    from agent.asks import Answer
    from agent.delivery.terminal import Terminal
    from agent.person import Asker, Person

PAGE = 200
SETTLED_AT_ONCE = 32  # ids of one request: its head has 4096 octets
READER_S = 10.0
UNREAD = ("stored", "offered")
PROOF = "printed"


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
        memory. When a later page does not come, what was printed is whole, and the last of it stays unread. A call
        that is killed between the printing and the marking leaves it offered: it comes again as a possible repeat.
        """
        count, printed, before = 0, Rows(), 0
        with nullcontext() if self.peek else self.person.reading(self.asker.id, READER_S):
            earlier = Earlier() if self.peek else Earlier.of(self.person, self.asker)
            terminal = None if self.peek else hosted(self.person)
            listing = show.Listing()
            try:
                for page in self._pages():
                    rows = earlier.without(page)
                    before += len(page) - len(rows)
                    if not rows:
                        continue
                    if not self.peek:
                        what = "nothing more" if count else "nothing"
                        rows, gone = offer(self.person, self.asker, rows, terminal, what)
                        if gone:
                            show.note(f"{gone} more are shown by a session, or were meanwhile (--all lists them)")
                        if not rows:
                            continue
                    if self.as_json:
                        listing.add(message(value, body) for value, body in rows)
                    else:
                        print_letters(rows, more=count > 0)
                    left_this_process()
                    self._mark(printed, terminal)
                    count, printed = count + len(rows), rows
            finally:
                listing.end()
            left_this_process()
            self._mark(printed, terminal)
        if before:
            show.note(f"{before} more were shown before; the broker could not mark them yet")
        return count

    def _mark(self, rows: Rows, terminal: Terminal | None) -> None:
        if rows and not self.peek:
            mark(self.person, rows, terminal)

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

    It is marked after it was printed: what a broken pipe swallowed stays unread, and comes again as a possible
    repeat. Nothing is printed before the broker has confirmed that it is about to be.

    \b
    talkbus inbox
    talkbus inbox --wait 60 --tag handoff
    talkbus inbox --json --peek --from api
    """
    person = call.person
    args: dict[str, Any] = {"unread": not everything}
    args.update({key: text for key, text in (("tag", tag), ("from", sender)) if text})
    with person.asking() as asker:
        if not peek and _held(asker) and hosted(person) is None:
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
            if not reader.peek and _held(reader.asker) and hosted(reader.person) is None:
                show.note(f"{reader.asker.name} is a living session by now: this only looks")
                reader = replace(reader, peek=True)
            if count := reader.show():
                return count
    return 0


@dataclass(frozen=True, slots=True)
class Earlier:
    """What earlier calls have printed for this mailbox, as far as only this disk knows: the broker could not write.

    By "host/id" and the sender's mailbox: `shown` was printed and is to be marked, `offered` was about to be printed.
    """

    shown: frozenset[tuple[str, str]] = frozenset()
    offered: frozenset[tuple[str, str]] = frozenset()

    @classmethod
    def of(cls, person: Person, asker: Asker) -> Earlier:
        """What waits in the outboxes of the seats that read this mailbox."""
        shown: set[tuple[str, str]] = set()
        offered: set[tuple[str, str]] = set()
        for row in person.unsent(asker.id, asker.name):
            senders = row.args.get("of", [])
            if row.op == "settle":
                shown.update(zip(row.args.get("ids", []), senders, strict=False))
            elif row.op == "receipt":
                told = [(status, key) for status, *_, keys in row.args.get("moved", []) for key in keys]
                offered.update(
                    (key, sender) for (status, key), sender in zip(told, senders, strict=False) if status == "offered"
                )
        return cls(frozenset(shown), frozenset(offered))

    def without(self, rows: Rows) -> Rows:
        """These rows but for what was shown, and with the mark of a possible repeat where it has to be."""
        kept = [(value, body) for value, body in rows if not (unread(value) and _key(value) in self.shown)]
        return [
            ({**value, "again": True}, body) if unread(value) and _key(value) in self.offered else (value, body)
            for value, body in kept
        ]


def unread(value: dict[str, Any]) -> bool:
    """Whether a message of a listing is not marked as shown."""
    return value.get("status") in UNREAD


def _key(value: dict[str, Any]) -> tuple[str, str]:
    return f"{value.get('host', '')}/{value['id']}", str(value.get("fid", ""))


def offer(
    person: Person,
    asker: Asker,
    rows: Rows,
    terminal: Terminal | None,
    what: str = "nothing",
    hint: str = "try again; --peek shows without marking",
) -> tuple[Rows, int]:
    """Have the broker write down that these are about to be printed, and the agent of the supervisor `terminal` that
    serves this session. Returns those that may be printed, and how many others a session has shown since they were
    listed.

    StoreError, Refused or Unreachable when it is not certain to be written down: a session that joins would show them
    unmarked, so they may not be printed. Only a broker whose disk is full lets no session join: then it is on this
    disk, from where the next call of this seat tells it. Refused (409) as well where a session has joined meanwhile.
    """
    somebody_reads()
    unsure = f"{what} was shown: the broker did not confirm that it is about to be ({hint})"
    fresh = [value for value, _ in rows if value.get("status") == "stored"]
    for start in range(0, len(fresh), SETTLED_AT_ONCE):
        names = on_the_wire(fresh[start : start + SETTLED_AT_ONCE])
        settled = person.submit(
            "receipt", {"moved": [["offered", PROOF, 0, names["ids"]]], "of": names["of"]}, by_itself=True
        ).settled
        if settled is not None and settled.code >= 300:
            raise Refused(Code.CONFLICT, f"cannot be marked, so {what} was shown: {settled.text} ({hint})")
        if settled is None and not _disk_full(asker):
            raise Unreachable(unsure)
    try:
        left = _still_unread(asker, [value for value, _ in rows if unread(value)])
        joined = terminal is None and _held(asker)
    except Unreachable as error:
        raise Unreachable(unsure) from error
    if joined:
        # It came after the rows were listed. What it is given from now on comes to it as a possible repeat.
        now = f"{asker.name} is a living session by now, which shows its own mail"
        raise Refused(Code.CONFLICT, f"{what} was shown: {now} ({hint})")
    kept = [(value, body) for value, body in rows if not unread(value) or _key(value) in left]
    if terminal is not None:
        kept = _lent(terminal, kept, f"{what} was shown: the session's agent did not answer ({hint})")
    return kept, len(rows) - len(kept)


def _lent(terminal: Terminal, rows: Rows, unsure: str) -> Rows:
    """Those that the supervisor's agent leaves to this command, marked as it knows them. It may be typing others."""
    wanted = [told_key(value) for value, _ in rows if unread(value)]
    given = terminal.lend(wanted) if wanted else {}
    if given is None:
        raise Unreachable(unsure)
    kept = Rows()
    for value, body in rows:
        key = told_key(value)
        if not unread(value):
            kept.append((value, body))
        elif key in given:
            again = given[key]
            kept.append((value if again is None else {**value, "again": again}, body))
    return kept


def _disk_full(asker: Asker) -> bool:
    """Whether the broker answers, and says that it cannot write."""
    try:
        told = asker.ask("stats", {}).rows
    except BusError:
        return False
    return bool(told) and told[0][0].get("writable") is False


def _still_unread(asker: Asker, values: Sequence[dict[str, Any]]) -> set[tuple[str, str]]:
    """Which of these nobody has settled since they were listed."""
    left: set[tuple[str, str]] = set()
    for start in range(0, len(values), SETTLED_AT_ONCE):
        part = values[start : start + SETTLED_AT_ONCE]
        args: dict[str, Any] = {**on_the_wire(part), "unread": True, "limit": PAGE}
        while True:
            answer = asker.ask("inbox", args, 10.0)
            left.update(_key(value) for value, _ in answer.rows)
            if not (answer.text and answer.rows):
                break
            args["after"] = int(answer.rows[-1][0]["n"])  # it was cut for its size
    return left


def left_this_process() -> None:
    """Flush stdout, and see that somebody still reads it. OSError when not: then nothing counts as shown."""
    if sys.stdout is None:
        raise BrokenPipeError("there is no stdout")
    sys.stdout.flush()
    somebody_reads()


def somebody_reads() -> None:
    """OSError when nobody reads stdout any more, as far as the system tells."""
    if sys.stdout is None:
        raise BrokenPipeError("there is no stdout")
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return  # a stand-in of a test
    if hasattr(select, "poll"):
        poller = select.poll()
        poller.register(descriptor, 0)  # errors are told without being asked for
        if any(event & (select.POLLERR | select.POLLNVAL) for _, event in poller.poll(0)):
            raise BrokenPipeError("nobody reads stdout")


def hosted(person: Person) -> Terminal | None:
    """The supervisor that serves this session itself: such a session has no tools, and reads its mail here."""
    from agent.delivery.maildir import Maildir
    from agent.delivery.terminal import Terminal

    if person.live is None:
        return None
    found = Terminal(Maildir.place(person.home.maildirs, person.live.pid, person.live.start))
    return found if found.hosting and found.supervised else None


def mark(person: Person, rows: Rows, terminal: Terminal | None = None) -> None:
    """Mark messages as shown. What cannot be told now is on this disk and told with the next call.

    `terminal` is the supervisor whose agent holds the mailbox, and marks them in its ledger.
    """
    shown = [value for value, _ in rows if unread(value)]
    if terminal is not None:
        keys = [told_key(value) for value in shown]
        if keys and not terminal.printed(keys):
            show.note("not marked yet, so it may be shown again (is the program that 'talkbus run' started ending?)")
        return
    for start in range(0, len(shown), SETTLED_AT_ONCE):
        part = on_the_wire(shown[start : start + SETTLED_AT_ONCE])
        outcome = person.submit("settle", {**part, "proof": PROOF}, by_itself=True)
        if outcome.settled is None:
            show.note("not marked as read yet: the broker has not answered (the next call that reaches it does so)")
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

    Their senders see it (talkbus why). A message has to be shown before, by 'talkbus inbox' or to the session. Where
    several have one id, HOST/ID or NAME@HOST/ID says which.

    \b
    talkbus ack k3v7h2qmx5azt4cd
    talkbus ack laptop/k3v7h2qmx5azt4cd
    """
    person = call.person
    wanted = [typed(part) for part in dict.fromkeys(idents)]
    with person.asking() as asker:
        rows: Rows = []
        for start in range(0, len(wanted), SETTLED_AT_ONCE):
            part = [each.ident for each in wanted[start : start + SETTLED_AT_ONCE]]
            page = asker.ask("inbox", {"ids": part, "unread": False, "limit": PAGE}).rows
            if len(page) >= PAGE:
                raise Refused(
                    Code.CONFLICT, "too many messages have these ids (nothing was acknowledged; name fewer at once)"
                )
            rows += page
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for each in wanted:
        try:
            value = offered(each, [value for value, _ in rows if value["id"] == each.ident])
        except Refused as refused:
            where = f" to {person.name}" if "shown" in str(refused) else f" for {person.name}"
            hint = " (talkbus inbox shows it)" if "shown" in str(refused) else ""
            text = str(refused) if refused.code == Code.CONFLICT else f"{refused}{where}{hint}"
            raise Refused(refused.code, f"{text}; nothing was acknowledged") from refused
        found[str(value.get("fid", "")), str(value["id"])] = value
    chosen = list(found.values())
    for start in range(0, len(chosen), SETTLED_AT_ONCE):
        names = on_the_wire(chosen[start : start + SETTLED_AT_ONCE])
        try:
            person.do("receipt", {"moved": [["acked", "talkbus ack", 0, names["ids"]]], "of": names["of"]})
        except BusError as error:
            if start:
                error.args = (f"{start} of {len(chosen)} were acknowledged, then: {error}",)
            raise
    told = [{"id": value["id"], "from": value.get("from", ""), "status": "acked"} for value in chosen]
    if as_json:
        show.document(told)
    else:
        for row in told:
            click.echo(f"{row['id']}  acked  from {show.safe(row['from'])}")
