"""Seats in which something was left to be sent: the mark that says so, and how a run's are emptied.

A run without a user has a seat of its own, which no later session takes. It is marked before the run can write
anything and until nothing is left, so that a run that was killed is found as well. Whoever empties such a seat holds
its lock, and sends its rows from its own outbox under their own numbers: cut off anywhere they are done once, and the
mark stays. It must not know who sits where now.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.link import Profile
from agent.outbox import Outbox
from agent.seats import Seat, seat_in
from agent.visit import visit
from bus.config import Config, Home
from bus.errors import BusError
from bus.private import write_private

RUN = "run"  # the kind of a mark in the seat of a run; the others are those of agent.person
_MARK = "left"

log = logging.getLogger("talkbus.agent")


@dataclass(frozen=True, slots=True)
class Left:
    """Who left something: the name and kind of the caller and, for one inside a session, the mailbox it acts for."""

    name: str
    kind: str
    mailbox: str = ""
    store: str = ""


def mark(seat: Seat, left: Left) -> None:
    """Remember that this seat may have something to be sent. Best effort: the rows are on disk without it."""
    with suppress(BusError):
        write_private(seat.folder / _MARK, json.dumps(asdict(left)).encode())


def unmark(seat: Seat) -> None:
    """Nothing is left in this seat, whose lock is held."""
    with suppress(OSError):
        (seat.folder / _MARK).unlink(missing_ok=True)


def marked(home: Home) -> Iterator[tuple[Path, Left]]:
    """The folders of marked seats, with who left something there."""
    for file in home.agents.glob(f"*/{_MARK}"):
        try:
            kept = json.loads(file.read_bytes())
            told = [kept[name] for name in ("name", "kind")] + [kept.get(name, "") for name in ("mailbox", "store")]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if all(isinstance(value, str) for value in told):
            yield file.parent, Left(*told)


def unsettled(seat: Seat) -> int:
    """How many rows of this seat, whose lock is held, wait for a reply. StoreError when it cannot be read."""
    outbox = Outbox.open(seat.database)
    try:
        return outbox.load(_new_ob).unsettled
    finally:
        outbox.close()


def waiting(home: Home) -> int:
    """How many rows wait for a reply in the marked seats; one in use is passed over."""
    count = 0
    for folder, _ in marked(home):
        seat = seat_in(folder)
        if seat is not None and seat.lock.acquire():
            try:
                count += unsettled(seat)
            finally:
                seat.lock.release()
    return count


def finish(seat: Seat) -> None:
    """The run that sits here has ended: what it leaves is for somebody else."""
    with suppress(BusError):
        if not unsettled(seat):
            unmark(seat)


def empty(home: Home, config: Config, folder: Path, ended: Future[None] | None = None) -> bool:
    """Send what a run that is over has left. False when the broker could not be asked; a seat in use is passed over,
    and so is one whose rows the broker refuses, which stay.

    BusError when the seat cannot be used.
    """
    seat = seat_in(folder)
    if seat is None or not seat.lock.acquire():
        return True
    try:
        if not unsettled(seat):
            unmark(seat)
            return True
        # Nobody holds the mailbox; one that has to be made is, like those of runs that are over, no address.
        inst = f"left-{os.getpid()}-{secrets.token_hex(4)}"
        profile = Profile("send", inst, seat.name, meta={"once": True}, mailbox=seat.mailbox, store=seat.store)
        outbox = Outbox.open(seat.database)
        with visit(home, config, outbox, profile, ended) as link:
            last = link.loop.call(lambda of, _now: of.book.last).result()
            settled, why = link.reply(last)
            refusal = link.refusal()
        if settled is None:
            log.info("what %s left is not sent yet: %s", seat.name, why)
            return bool(refusal)
        unmark(seat)
        return True
    finally:
        seat.leave()


class Sweep:
    """Empties the seats of runs that are over, beside a session, in a thread of its own."""

    def __init__(self, home: Home, config: Config) -> None:
        self._home, self._config = home, config
        self._ended: Future[None] = Future()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """The broker is there. One at a time; from the thread of the link."""
        if not self._ended.done() and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, name="talkbus-left", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Do not wait for anything any more."""
        if not self._ended.done():
            self._ended.set_result(None)

    def join(self, timeout: float) -> None:
        """Wait up to `timeout` s for what runs; what is cut off stays marked."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        for folder, who in marked(self._home):
            if self._ended.done():
                return
            try:
                if who.kind == RUN and not empty(self._home, self._config, folder, self._ended):
                    return
            except (BusError, OSError) as error:
                log.warning("what %s left cannot be sent: %s", who.name, error)


def _new_ob() -> str:
    return secrets.token_hex(16)
