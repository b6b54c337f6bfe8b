"""A visit to the broker: one link for a few requests or questions, and how long each is worth waiting for.

It must not know whose seat it is, nor when somebody has to be visited.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from typing import Any

from agent.effects import News, Parked, Settled, Welcomed
from agent.link import Profile
from agent.loop import Loop
from agent.outbox import Outbox
from bus import joined
from bus.config import Config, Home
from bus.errors import BusError

CONNECT_S = 1.0  # a broker that runs welcomes within this, or the request stays queued
HUB_S = 3.0  # the same over a network
REPLY_S = 5.0  # a broker that has welcomed answers within this
_STOP_S = 0.2


class Visit:
    """A loop, and when it is worth waiting for. Made by `visit`."""

    def __init__(self, home: Home, config: Config, outbox: Outbox, profile: Profile, ended: Future[None]) -> None:
        self._hub = joined.hub(home, config) is not None
        self._known: Future[None] = Future()
        self._against: Future[None] = Future()  # the hub refuses; another one after each WELCOME
        self._ended = ended
        self._parked: Parked | None = None
        self.loop = Loop(home, config, outbox, profile, autostart=False, on_news=self._heard)

    def _heard(self, news: News) -> None:
        if isinstance(news, Welcomed):
            self._parked = None
            if self._against.done():
                self._against = Future()
        elif isinstance(news, Parked):
            self._parked = news
        refused = self.loop.status().refused
        against = isinstance(news, Parked) or (refused is not None and refused.heard)
        if against and not self._against.done():
            self._against.set_result(None)
        if (against or isinstance(news, Welcomed)) and not self._known.done():
            self._known.set_result(None)

    def opened(self, timeout: float) -> bool:
        """Whether the broker welcomes within so many seconds."""
        wait((self._known, self._ended), timeout, FIRST_COMPLETED)
        return self._known.done() and not self.refusal()

    def unwelcome(self) -> str:
        """Why the broker does not welcome within the time that it deserves; "" when it does."""
        return "" if self.opened(HUB_S if self._hub else CONNECT_S) else self.reason()

    def refusal(self) -> str:
        """What the broker has against this session, now or when it could last be asked; "" for nothing."""
        if self._parked is not None:
            return self._parked.text
        refused = self.loop.status().refused
        return refused.words() if refused is not None else ""

    def reason(self) -> str:
        """Why there is no connection."""
        return self.refusal() or self.loop.status().reason or "the broker does not answer"

    def reply(self, row: int, hopeless: bool = False) -> tuple[Settled | None, str]:
        """The reply to a row, or why there is none yet."""
        why = self.reason() if hopeless else self.unwelcome()
        if why:
            return None, why
        future: Future[Settled] = self.loop.settled(row)
        either: set[Future[Any]] = {future, self._ended, self._against}
        wait(either, REPLY_S, FIRST_COMPLETED)
        if not future.done():
            status = self.loop.status()
            return None, self.refusal() or (
                not status.connected and status.reason
            ) or "the broker has not answered yet"
        with suppress(BusError):
            return future.result(), ""
        return None, self.reason()


@contextmanager
def visit(
    home: Home, config: Config, outbox: Outbox, profile: Profile, ended: Future[None] | None = None
) -> Iterator[Visit]:
    """Connect, and hang up at the end; the outbox is closed then. What waits gives up when `ended` is set.

    `profile` says afterwards how the broker knows the mailbox. StoreError or ConfigError when it cannot begin.
    """
    made = Visit(home, config, outbox, profile, ended or Future())
    try:
        made.loop.start()
    except BusError:
        outbox.close()
        raise
    try:
        yield made
    finally:
        made.loop.stop(False, _STOP_S)
