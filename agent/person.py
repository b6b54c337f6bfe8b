"""The seat of whoever types: the session around a command, a name that was asked for, or the person at the keyboard.

Commands run side by side. What changes something goes through the seat's outbox, which is locked only while it is
used: on disk first, then up to a second for the broker, else it stays `queued` for a later call of the same seat.
What only asks needs no lock. No mailbox is held: reading is a query, and `settle` once the text was printed.

Every mailbox name has an outbox of its own here, so that what was queued under one name never leaves under another.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from agent.asks import Answer
from agent.effects import News, Parked, Settled, Welcomed
from agent.link import Profile
from agent.loop import Loop
from agent.outbox import Outbox, StoredRow
from agent.seats import Live, Seat, script_seat, session_of, wait_seat
from bus import joined, names
from bus.config import Config, Home
from bus.daemon import ensure_broker, published
from bus.errors import BusError, Code, LocalError, Refused, Unreachable
from bus.private import write_private
from bus.processes import FileLock, ancestors, holder

SEAT_S = 60.0  # calls of one seat take turns of some tens of ms
CONNECT_S = 1.0  # a broker that runs welcomes within this, or the request stays queued
HUB_S = 3.0  # the same over a network
REPLY_S = 5.0  # a broker that has welcomed answers within this
DRAIN_S = 0.2  # whoever has the seat longer than that drains it himself
OTHERS_S = 2.0  # for what calls under other names have left
_LEFT = "left"  # a file in a seat: it has something to be sent, and who it is


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request: `settled`, or still on disk since `at` (ms since 1970), and `reason` why."""

    id: str
    row: int
    at: int
    settled: Settled | None = None
    reason: str = ""

    @property
    def queued(self) -> bool:
        return self.settled is None


def find(home: Home, config: Config, asked: str = "", environment: str = "") -> Person:
    """Who acts: `asked` (--as) if given, else the session this process runs in, else `environment` (TALKBUS_NAME),
    else the person. Refused (422) for a name that is none.
    """
    if asked:
        return Person(home, config, names.check_name(asked), "script")
    live = session_of(home, ancestors(os.getpid()))
    if live is not None:
        return Person(home, config, live.name, "session", live)
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

    A person who renamed himself has another `name` from the first use of the seat on.
    """

    home: Home
    config: Config
    name: str
    kind: str
    live: Live | None = None
    _login: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        self._login = self.name

    # -- what changes something -----------------------------------------------------------------------------------

    def submit(
        self, op: str, args: dict[str, Any], body: bytes = b"", queue: bool = True, raw: bool = False
    ) -> Outcome:
        """Write a request to disk and wait for its reply as long as the broker deserves it. Secrets in it are
        redacted before it is written, but for `raw`, which is for a person who insists.

        Without `queue` nothing is written when there is no broker: Unreachable. LocalError when it cannot be sent at
        all, StoreError when the disk refuses: then it is not queued either.
        """
        reason = self._wake()
        if reason and not queue:
            raise Unreachable(reason)
        with self._acting(SEAT_S) as seat:
            outbox = Outbox.open(seat.database)
            with self._link(outbox, raw) as link:
                row, ident = link.loop.submit(op, args, body)
                at = link.loop.clock()
                settled, why = link.reply(row, bool(reason))
                if settled is not None and op == "rename" and settled.code < 300 and self.kind == "human":
                    seat.asked = seat.asked or seat.name
                    seat.renamed(str(settled.result.get("name", seat.name)))
            self._mark(seat, settled is None)
        if settled is not None:
            self._drain_others()
        return Outcome(ident, row, at, settled, reason or why)

    def do(self, op: str, args: dict[str, Any], body: bytes = b"") -> dict[str, Any]:
        """A request whose result is wanted now. Refused with the broker's words.

        Unreachable, and nothing done, when there is no broker. One that goes away in that very moment leaves the
        request queued, and the error says so.
        """
        outcome = self.submit(op, args, body, queue=False)
        if outcome.settled is None:
            raise Unreachable(f"queued, not done yet: {outcome.reason} (the next call of {self.name} does it)")
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
                settled, _ = link.reply(book.last, False)
            self._mark(seat, settled is None)

    def _drain_others(self) -> None:
        """The seats in which a call has left something, as it marked them."""
        end = time.monotonic() + OTHERS_S
        for mark in self.home.agents.glob(f"*/{_LEFT}"):
            try:
                kept = json.loads(mark.read_bytes())
                other = Person(self.home, self.config, str(kept["name"]), str(kept["kind"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if (other.name, other.kind) != (self._login, self.kind):
                other._drain(0.0)
            if time.monotonic() >= end:
                return

    def _mark(self, seat: Seat, left: bool) -> None:
        """Remember, or forget, that this seat has something to be sent."""
        mark = seat.folder / _LEFT
        with suppress(BusError, OSError):
            if left:
                write_private(mark, json.dumps({"name": self._login, "kind": self.kind}).encode())
            else:
                mark.unlink(missing_ok=True)

    # -- what only asks -------------------------------------------------------------------------------------------

    @contextmanager
    def asking(self) -> Iterator[Asker]:
        """A session that queries as this mailbox; nothing is locked. Unreachable when there is no broker."""
        reason = self._wake()
        if reason:
            raise Unreachable(reason)
        self.drain(SEAT_S)
        with self._link(Outbox.memory()) as link:
            if not link.opened(HUB_S if self._has_hub() else REPLY_S):
                raise Unreachable(f"{link.reason()} (talkbus status tells more)")
            yield Asker(link.loop)

    @contextmanager
    def reading(self, timeout: float) -> Iterator[None]:
        """The right to show mail of this mailbox and to mark it; one reader at a time.

        Refused (503) when another one still has it after `timeout` seconds.
        """
        with self._acting(SEAT_S) as seat:
            lock = FileLock(seat.folder / "reading")
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
        if self.kind == "human":
            seat = wait_seat(self.home, self._login, "human", timeout)
            self.name = seat.name
        else:
            seat = wait_seat(self.home, script_seat(self.name), "script", timeout)
        try:
            yield seat
        finally:
            seat.leave()

    @contextmanager
    def _link(self, outbox: Outbox, raw: bool = False) -> Iterator[_Linked]:
        # No folder and no project: mail for a folder is for the sessions that work there, and a session that comes
        # later may take this name.
        meta = {} if self.kind == "session" else {"kind": self.kind}
        profile = Profile("send", f"cli-{os.getpid()}-{secrets.token_hex(4)}", self.name, meta=meta, raw=raw)
        link = _Linked(self, outbox, profile)
        try:
            link.loop.start()
        except BusError:
            outbox.close()
            raise
        try:
            yield link
        finally:
            link.loop.stop(False, 0.2)


class _Linked:
    """A loop, and when it is worth waiting for."""

    def __init__(self, person: Person, outbox: Outbox, profile: Profile) -> None:
        self._hub = joined.hub(person.home, person.config) is not None
        self._known = threading.Event()
        self._parked: Parked | None = None
        self.loop = Loop(person.home, person.config, outbox, profile, autostart=False, on_news=self._heard)

    def _heard(self, news: News) -> None:
        if isinstance(news, Parked):
            self._parked = news
        if isinstance(news, Parked | Welcomed):
            self._known.set()

    def opened(self, timeout: float) -> bool:
        """Whether the broker welcomes within so many seconds."""
        return self._known.wait(timeout) and self._parked is None

    def reason(self) -> str:
        """Why there is no connection."""
        if self._parked is not None:
            return self._parked.text
        return self.loop.status().reason or "the broker does not answer"

    def reply(self, row: int, hopeless: bool) -> tuple[Settled | None, str]:
        """The reply to a row, or why there is none yet."""
        if hopeless or not self.opened(HUB_S if self._hub else CONNECT_S):
            return None, self.reason()
        future: Future[Settled] = self.loop.settled(row)
        try:
            return future.result(REPLY_S), ""
        except TimeoutError:
            return None, "the broker has not answered yet"
        except Unreachable as error:
            return None, str(error)


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
