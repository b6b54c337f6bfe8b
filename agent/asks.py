"""Queries in flight: each is a future that outlives a lost connection, for as long as its asker cares to wait.

Used in the thread of the link only. It must not know what is asked, nor tools.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent.effects import Finished, Parted
from agent.link import Link
from bus.errors import Code

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query came to: `code` as in PROTOCOL.md §11, 503 also when no broker could be reached in time."""

    rows: list[tuple[dict[str, Any], bytes]]
    code: int
    seq: int = 0
    text: str = ""


@dataclass(slots=True)
class Query:
    """One question; `deadline` in ms of the loop's clock."""

    what: str
    args: dict[str, Any]
    deadline: int
    future: Future[Answer]
    rows: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)


def resolve(future: Future[T], value: T) -> None:
    """Give a future its value, unless it has one or was cancelled. Only one thread may call this for it."""
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_result(value)


def fail(future: Future[Any], error: BaseException) -> None:
    """Give a future an error, under the conditions of resolve()."""
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)


class Queries:
    """Asked ones by their number, and those that wait for a connection."""

    def __init__(self) -> None:
        self._asked: dict[int, Query] = {}
        self._queued: list[Query] = []

    def ask(self, link: Link, query: Query, reason: str) -> None:
        """Send it now, or with the next WELCOME; at once 503 with `reason` where the link is parked."""
        if link.state == "open":
            query.rows.clear()
            self._asked[link.ask(query.what, query.args)] = query
        elif link.state == "parked":
            resolve(query.future, Answer([], Code.BUSY, text=reason))
        else:
            self._queued.append(query)

    def welcomed(self, link: Link) -> None:
        """The link is open."""
        queued, self._queued = self._queued, []
        for query in queued:
            self.ask(link, query, "")

    def parted(self, news: Parted) -> None:
        """A row of an answer."""
        if news.r in self._asked:
            self._asked[news.r].rows.append((news.value, news.body))

    def finished(self, link: Link, news: Finished, reason: str) -> None:
        """The end of an answer; what a lost connection ended is asked again."""
        query = self._asked.pop(news.r, None)
        if query is None:
            return
        if news.code == Code.BUSY and link.state != "open":
            self.ask(link, query, reason)
        else:
            resolve(query.future, Answer(query.rows, news.code, news.seq, news.text))

    def forgotten(self) -> None:
        """The link is made anew and knows none of them."""
        self._queued += self._asked.values()
        self._asked.clear()

    def expire(self, now: int, text: str) -> None:
        """Answer 503 with `text` to those whose time is over."""
        for query in [q for q in self._all() if q.deadline <= now]:
            resolve(query.future, Answer([], Code.BUSY, text=text))
        self._queued = [q for q in self._queued if q.deadline > now]
        self._asked = {r: q for r, q in self._asked.items() if q.deadline > now}

    def deadline(self) -> int | None:
        """When expire() is wanted, in ms."""
        return min((q.deadline for q in self._all()), default=None)

    def close(self, text: str) -> None:
        """Nobody will answer any more."""
        for query in self._all():
            resolve(query.future, Answer([], Code.BUSY, text=text))
        self._asked.clear()
        self._queued.clear()

    def _all(self) -> list[Query]:
        return [*self._queued, *self._asked.values()]
