"""The seat of whoever types: the session around a command, a name that was asked for, or the person at the keyboard.

Commands run side by side. What changes something goes through the seat's outbox, which is locked only while it is
used. Once the broker has welcomed, or has not within a second, the request goes to the disk; without a reply it stays
`queued` there for a later call of the same seat. A machine that the hub refuses writes nothing. What only asks needs
no lock. No mailbox is held: reading is a query, and `settle` once the text was printed.

Every mailbox has an outbox of its own here. That of a session is found by its id, so that what was queued inside it
leaves as the session, however that is called by then; those of scripts by the name they were given. A person is
remembered by id as well: a rename whose reply was not heard is one for the next call.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from agent import left, refusals
from agent.asks import Answer
from agent.effects import Settled
from agent.link import Profile
from agent.loop import Loop, new_row_id
from agent.outbox import Outbox, StoredRow
from agent.refusals import Refusal, with_remedy
from agent.seats import Kind, Live, Seat, script_seat, session_of, wait_seat
from agent.visit import CONNECT_S, HUB_S, REPLY_S, Visit, visit
from bus import joined, names
from bus.config import Config, Home
from bus.daemon import ensure_broker, published
from bus.errors import BusError, Code, LocalError, Refused, Unreachable
from bus.private import private_dir
from bus.processes import FileLock, ancestors, holder

SEAT_S = 60.0  # calls of one seat take turns of some tens of ms
DRAIN_S = 0.2  # whoever has the seat longer than that drains it himself
OTHERS_S = 2.0  # for what calls under other names have left
_INSIDE = ".session"  # in the name of a seat only, behind the id of a mailbox


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request: `settled`, or still on disk since `at` (ms since 1970), and `reason` why.

    `refused`: the hub has said meanwhile that it takes nothing from this machine, so it does not go out by itself.
    """

    id: str
    row: int
    at: int
    settled: Settled | None = None
    reason: str = ""
    refused: bool = False

    @property
    def queued(self) -> bool:
        return self.settled is None


class Interrupted(KeyboardInterrupt):
    """Ctrl-C when a request may be on the disk already. The text names it; `outcome` is what is known of it."""

    def __init__(self, text: str, outcome: Outcome | None = None) -> None:
        super().__init__(text)
        self.outcome = outcome


@dataclass(slots=True)
class _Pending:
    """A request on its way to the disk and to the broker. `begun`: it may be on the disk; with a `row` it is."""

    id: str
    op: str
    begun: bool = False
    row: int = 0
    at: int = 0
    settled: Settled | None = None
    reason: str = ""
    refused: bool = False

    def outcome(self) -> Outcome | None:
        """What is known of it; None when it is not certain to be on the disk."""
        if not self.row:
            return None
        return Outcome(self.id, self.row, self.at, self.settled, self.reason, self.refused)

    def told(self) -> str:
        """What is known of it, for an error that comes before its result is told; "" when nothing was written."""
        what, where = "message" if self.op == "send" else self.op, f"(talkbus why {self.id})"
        if self.settled is not None:
            done = "sent" if self.op == "send" else "done"
            return f"{what} {self.id} was {done if self.settled.code < 300 else 'refused'} {where}"
        if self.row:
            return f"{what} {self.id} is {'' if self.refused else 'queued '}on this disk {where}"
        return f"{what} {self.id} is on this disk, or was never taken {where}" if self.begun else ""

    def interrupted(self) -> Interrupted:
        """What Ctrl-C leaves."""
        if self.settled is not None:
            text = f"interrupted after {self.op} {self.id} was answered"
        elif self.row:
            text = f"interrupted: {self.op} {self.id} is on this disk, and is sent with the next call"
        else:
            text = f"interrupted while {self.op} {self.id} was being written: it is on this disk, or was never taken"
        return Interrupted(f"{text} (talkbus why {self.id})", self.outcome())


def find(home: Home, config: Config, asked: str = "", environment: str = "") -> Person:
    """Who acts: `asked` (--as) if given, else the session this process runs in, else `environment` (TALKBUS_NAME),
    else the person. Refused (422) for a name that is none.
    """
    if asked:
        return Person(home, config, names.check_name(asked), "script")
    live = session_of(home, ancestors(os.getpid()))
    if live is not None:
        return Person(home, config, live.name, "session", live, live.mailbox, live.store)
    if environment:
        return Person(home, config, names.check_name(environment), "script")
    return Person(home, config, names.canonical(_login()), "human")


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "user"


@dataclass
class Person:
    """Whoever acts. `name` is the mailbox, `kind` "session", "script" or "human", `live` the session it runs in.

    `mailbox` is the id the broker of database `store` gave to what is called `name`, "" where the name alone counts.
    A person who renamed himself has another `name` from the first use of the seat on.
    """

    home: Home
    config: Config
    name: str
    kind: str
    live: Live | None = None
    mailbox: str = ""
    store: str = ""
    # What is asked for in this call, from before it can be on the disk: nothing that comes later may hide it.
    _begun: list[_Pending] = field(default_factory=list, init=False, repr=False)
    _login: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        self._login = self.name

    @property
    def requests(self) -> list[tuple[str, str]]:
        """The requests of this call that may be on the disk: the id of each, and what is known of it, in words."""
        return [(pending.id, text) for pending in self._begun if (text := pending.told())]

    # -- what changes something -----------------------------------------------------------------------------------

    def submit(
        self,
        op: str,
        args: dict[str, Any],
        body: bytes = b"",
        queue: bool = True,
        raw: bool = False,
        by_itself: bool = False,
    ) -> Outcome:
        """Write a request to disk and wait for its reply as long as the broker deserves it. Secrets in it are
        redacted before it is written, but for `raw`, which is for a person who insists. What nobody asked for, as a
        mark of what was printed, is `by_itself`, and not among `requests`.

        Refused when the hub refuses this machine; without `queue` Unreachable when there is no broker. LocalError
        when it cannot be sent at all, StoreError when the disk refuses. In none of these cases anything was written:
        once it is on the disk there is an Outcome, whatever fails after that, or Interrupted.
        """
        reason = self._wake()
        if reason and not queue:
            raise Unreachable(reason)
        pending = _Pending(new_row_id(), op, reason=reason)
        if not by_itself:
            self._begun.append(pending)
        try:
            with self._acting(SEAT_S) as seat:
                try:
                    self._post(seat, pending, args, body, queue, raw)
                finally:
                    if pending.begun:
                        self._mark(seat, pending.settled is None)
            if pending.settled is not None:
                self._drain_others()
        except KeyboardInterrupt as error:
            if pending.begun:
                raise pending.interrupted() from error
            raise
        except (BusError, OSError) as error:
            if not pending.row:
                raise
            pending.reason = pending.reason or str(error)
        outcome = pending.outcome()
        assert outcome is not None
        return outcome

    def _post(self, seat: Seat, pending: _Pending, args: dict[str, Any], body: bytes, queue: bool, raw: bool) -> None:
        """Ask the broker whether it welcomes this session, write the request down, and wait for the reply."""
        with self._link(Outbox.open(seat.database), raw) as link:
            pending.reason = pending.reason or link.unwelcome()
            if refusal := link.refusal():
                raise Refused(Code.FORBIDDEN, refusal)
            if pending.reason and not queue:
                raise Unreachable(with_remedy(pending.reason, "nothing was written; talkbus status tells more"))
            pending.begun = True
            try:
                pending.row, _ = link.loop.submit(pending.op, args, body, pending.id)
            except BusError:
                pending.begun = False
                raise
            pending.at = link.loop.clock()
            pending.settled, why = link.reply(pending.row, bool(pending.reason))
            pending.reason = pending.reason or why
            pending.refused = pending.settled is None and bool(link.refusal())
        settled = pending.settled
        renamed = settled is not None and pending.op == "rename" and settled.code < 300
        self._known(seat, link, str(settled.result.get("name", "")) if settled is not None and renamed else "")

    def do(self, op: str, args: dict[str, Any], body: bytes = b"") -> dict[str, Any]:
        """A request whose result is wanted now. Refused with the broker's words.

        Unreachable, and nothing done, when there is no broker. One that goes away in that very moment leaves the
        request on the disk, and the error says so, with its id.
        """
        outcome = self.submit(op, args, body, queue=False)
        if outcome.settled is None:
            told = f"{op} is on this disk as {outcome.id}, and the broker has not confirmed it: {outcome.reason}"
            if outcome.refused:
                raise Refused(Code.FORBIDDEN, with_remedy(told, f"see whether it was done: talkbus why {outcome.id}"))
            more = f"the next call of {self.name} goes on with it; talkbus why {outcome.id}"
            raise Unreachable(with_remedy(told, more))
        settled = outcome.settled
        if settled.code >= 300:
            text = settled.text or f"the broker refused it with {settled.code}"
            raise Refused(_code(settled.code), text, **settled.result)
        return settled.result

    def drain(self, timeout: float = DRAIN_S) -> None:
        """Send what earlier calls of this user left behind, if the broker runs; best effort, it never raises.

        For the own seat it waits up to `timeout` s, those of others are left alone while they are in use.
        """
        if self._has_hub() or published(self.home) is not None:
            self._drain(timeout)
            self._drain_others()

    def _drain(self, timeout: float) -> None:
        with suppress(BusError), self._acting(timeout) as seat:
            outbox = Outbox.open(seat.database)
            book = outbox.load(_new_ob)
            if not book.unsettled:
                outbox.close()
                self._mark(seat, False)
                return
            with self._link(outbox) as link:
                settled, _ = link.reply(book.last)
            self._known(seat, link)
            self._mark(seat, settled is None)

    def _drain_others(self) -> None:
        """The seats in which a call or a run has left something, as it marked them."""
        end = time.monotonic() + OTHERS_S
        for folder, who in left.marked(self.home):
            with suppress(BusError, OSError):
                if who.kind == left.RUN:
                    left.empty(self.home, self.config, folder)
                elif (other := self._other(who)).seated != self.seated:
                    other._drain(0.0)
            if time.monotonic() >= end:
                return

    def _other(self, who: left.Left) -> Person:
        return Person(self.home, self.config, who.name, who.kind, None, who.mailbox, who.store)

    def _mark(self, seat: Seat, waits: bool) -> None:
        """Remember, or forget, that this seat has something to be sent."""
        if waits:
            inside = (self.mailbox, self.store) if self.kind == "session" else ()
            left.mark(seat, left.Left(self._login, self.kind, *inside))
        else:
            left.unmark(seat)

    # -- what only asks -------------------------------------------------------------------------------------------

    @contextmanager
    def asking(self) -> Iterator[Asker]:
        """A session that queries as this mailbox; nothing is locked. Unreachable when there is no broker, Refused
        when it refuses this machine.
        """
        reason = self._wake()
        if reason:
            raise Unreachable(reason)
        self.drain(SEAT_S)
        with self._link(Outbox.memory()) as link:
            if not link.opened(HUB_S if self._has_hub() else REPLY_S):
                if refusal := link.refusal():
                    raise Refused(Code.FORBIDDEN, refusal)
                raise Unreachable(f"{link.reason()} (talkbus status tells more)")
            yield Asker(link.loop)

    @contextmanager
    def reading(self, mailbox: str, timeout: float) -> Iterator[None]:
        """The right to show mail of the mailbox with this id and to mark it; one reader at a time on this machine,
        whatever seat it acts from.

        Refused (503) when another one still has it after `timeout` seconds.
        """
        # The id comes from a broker: it is no name of a file.
        name = hashlib.blake2b(mailbox.encode(), digest_size=8).hexdigest()
        lock = FileLock(private_dir(self.home.agents / "reading") / name)
        end = time.monotonic() + timeout
        while not lock.acquire():
            if time.monotonic() >= end:
                who = holder(lock.path)
                raise Refused(
                    Code.BUSY,
                    f"process {who[0] if who else '?'} is reading the mail of {self.name} (end it, or use --peek)",
                )
            time.sleep(0.02)
        try:
            yield
        finally:
            lock.release()

    # -- what is on this disk -------------------------------------------------------------------------------------

    def refusal(self) -> Refusal | None:
        """What the hub last said against this machine."""
        return refusals.recall(self.home, self.config)

    def queued(self) -> int | None:
        """How many requests wait in this seat's outbox; None while another call uses it."""
        if not self.home.agents.is_dir():
            return 0
        try:
            with self._acting(CONNECT_S) as seat:
                outbox = Outbox.open(seat.database)
                try:
                    return outbox.load(_new_ob).unsettled
                finally:
                    outbox.close()
        except Refused:
            return None

    def unsent(self, mailbox: str, name: str) -> list[StoredRow]:
        """The requests that the broker has not done yet, in order, of this seat and of those others that act for the
        mailbox with this id and name. Refused (503) when a seat that may do so is in use for long.
        """
        rows = self._unsent()
        for _, who in left.marked(self.home):
            if who.kind == left.RUN or (other := self._other(who)).seated == self.seated:
                continue
            if who.mailbox == mailbox or (not who.mailbox and (who.kind == "human" or who.name == name)):
                found = other._unsent()  # it knows by then which mailbox it is
                if other.mailbox == mailbox or (not other.mailbox and other.name == name):
                    rows += found
        return rows

    def _unsent(self) -> list[StoredRow]:
        with self._acting(SEAT_S) as seat:
            outbox = Outbox.open(seat.database)
            try:
                book = outbox.load(_new_ob)
                return [outbox.row(row) for row in range(book.first, book.last + 1)]
            finally:
                outbox.close()

    def sent(self, ident: str) -> StoredRow | None:
        """The request of this seat with this id, or the only one whose id begins so; None when there is none."""
        if not self.home.agents.is_dir():
            return None
        with self._acting(SEAT_S) as seat:
            outbox = Outbox.open(seat.database)
            try:
                exact = outbox.by_id(ident)
                if exact is not None or len(ident) < 4:
                    return exact
                found = [row for row in outbox.recent(200) if row.id.startswith(ident.lower())]
                return found[0] if len(found) == 1 else None
            finally:
                outbox.close()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _has_hub(self) -> bool:
        return joined.hub(self.home, self.config) is not None

    def _wake(self) -> str:
        """Have the broker run; "" or why it does not."""
        if self._has_hub():
            return ""
        try:
            ensure_broker(self.home)
        except Unreachable as error:
            return str(error)
        return ""

    @contextmanager
    def _acting(self, timeout: float) -> Iterator[Seat]:
        """The seat, locked. Refused (503) when others use it for longer than `timeout` s."""
        seat = wait_seat(self.home, *self.seated, timeout)
        if self.kind == "human":
            self.name, self.mailbox, self.store = seat.name, seat.mailbox, seat.store
        try:
            yield seat
        finally:
            seat.leave()

    @property
    def seated(self) -> tuple[str, Kind]:
        """Which seat is used: what it is found by, and its kind."""
        if self.kind == "human":
            return self._login, "human"
        if self.kind == "session" and self.mailbox:
            return self.mailbox + _INSIDE, "script"
        return script_seat(self.name), "script"

    def _known(self, seat: Seat, link: Visit, renamed: str = "") -> None:
        """What the broker calls a person; it may be an earlier call that renamed him. After the visit."""
        told = link.loop.profile
        if self.kind != "human" or not told.mailbox:
            return
        if renamed:
            seat.asked = seat.asked or seat.name
        with suppress(BusError):  # the id it has finds the mailbox under any name
            seat.renamed(renamed or told.name, told.mailbox, told.store)
        self.name, self.mailbox, self.store = seat.name, seat.mailbox, seat.store

    @contextmanager
    def _link(self, outbox: Outbox, raw: bool = False) -> Iterator[Visit]:
        # No folder and no project: mail for a folder is for the sessions that work there, and a session that comes
        # later may take this name.
        meta = {} if self.kind == "session" else {"kind": self.kind}
        inst = f"cli-{os.getpid()}-{secrets.token_hex(4)}"
        profile = Profile("send", inst, self.name, meta=meta, raw=raw, mailbox=self.mailbox, store=self.store)
        with visit(self.home, self.config, outbox, profile) as link:
            yield link


class Asker:
    """Queries of one mailbox, from Person.asking()."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    @property
    def id(self) -> str:
        """The id of the mailbox."""
        return self._loop.status().id

    @property
    def name(self) -> str:
        """Its name at the broker."""
        return self._loop.status().name

    def ask(self, what: str, args: dict[str, Any], timeout: float = REPLY_S) -> Answer:
        """The answer to a query. Refused with the broker's words, Unreachable when none came in time."""
        return checked(self._loop.ask(what, args, timeout))


class Answered(Protocol):
    """What links and views answer to a query."""

    @property
    def code(self) -> int: ...

    @property
    def text(self) -> str: ...


A = TypeVar("A", bound=Answered)


def checked(answer: A) -> A:
    """An answer that is one. Refused for 4xx, Unreachable for 503."""
    if answer.code == Code.BUSY:
        raise Unreachable(f"{answer.text or 'the broker does not answer'} (talkbus status tells more)")
    if answer.code >= 300:
        raise Refused(_code(answer.code), answer.text or f"the broker refused it with {answer.code}")
    return answer


def _code(number: int) -> Code:
    try:
        return Code(number)
    except ValueError as error:
        raise LocalError(
            f"the broker answered with {number}, which this talkbus does not know (upgrade it)"
        ) from error


def _new_ob() -> str:
    return secrets.token_hex(16)
