"""Answers that open calls of `ask` wait for: reserved while the call is open, ordinary mail when it has ended.

All of it lives in the thread of the link. It must not know tools.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from agent.asks import Answer
from agent.delivery.piggyback import letter_of
from agent.effects import Mail, News
from agent.inbox import Letter
from agent.link import Link
from agent.loop import Loop
from agent.session import Session

_QUERY_S = 5.0


@dataclass(slots=True)
class _Open:
    letter: Letter | None = None
    asking: bool = False
    again: bool = False


class Reservations:
    """Answers that open calls wait for, by the id of the question."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._loop: Loop = session.loop
        self._open: dict[str, _Open] = {}
        session.listeners.append(self._heard)

    def reserved(self, letter: Letter) -> bool:
        """Whether ordinary delivery has to leave this one: the answer that was found, or the one to be found next.

        Further answers are ordinary mail, else anybody could fill the window with what nothing shows.
        """
        entry = self._open.get(letter.msg.re)
        return entry is not None and (entry.letter is None or entry.letter.key == letter.key)

    def open(self, ident: str) -> None:
        """A question is about to be sent."""
        self._open[ident] = _Open()

    def answered(self, ident: str) -> bool:
        """Whether close() would find an answer."""
        found = self._open.get(ident)
        return found is not None and found.letter is not None

    def close(self, link: Link, ident: str) -> Letter | None:
        """The call takes the answer, or leaves it to ordinary delivery."""
        entry = self._open.pop(ident, None)
        if entry is None:
            return None
        return next((x for x in link.inbox.waiting() if x.msg.re == ident), entry.letter)

    def drop(self, link: Link, ident: str) -> None:
        """The call has died; an answer that waits is news for the others."""
        if self.close(link, ident) is not None:
            link.batch.news.append(Mail(link.inbox.more))

    def _heard(self, news: News) -> None:
        if isinstance(news, Mail) and self._open:
            self._loop.call(self._look)

    def _look(self, link: Link, _now: int) -> None:
        for letter in link.inbox.waiting():
            entry = self._open.get(letter.msg.re)
            if entry is not None and entry.letter is None:
                entry.letter = letter
                self._session.pulse.beat()
        if link.inbox.more:
            for ident, entry in self._open.items():
                if entry.letter is None:
                    self._query(ident, entry)

    def _query(self, ident: str, entry: _Open) -> None:
        """Behind a full window only the broker can see it."""
        entry.again = entry.asking
        if entry.asking:
            return
        entry.asking = True

        def done(future: Future[Answer]) -> None:
            entry.asking = False
            rows = future.result().rows
            if rows and entry.letter is None:
                entry.letter = letter_of(*rows[0], self._loop.clock())
                self._session.pulse.beat()
            elif entry.again and ident in self._open:
                self._query(ident, entry)

        self._loop.asking("inbox", {"re": ident, "limit": 1}, _QUERY_S).add_done_callback(done)
