"""Answers that open calls of `ask` wait for: reserved while the call is open, ordinary mail when it has ended.

All of it lives in the thread of the link. It must not know tools.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from agent.asks import Answer
from agent.delivery.piggyback import letter_of
from agent.effects import Mail, News, Settled
from agent.inbox import Letter
from agent.link import Link
from agent.loop import Loop
from agent.questions import Asked
from agent.session import Session
from bus import wire

_QUERY_S = 5.0


@dataclass(slots=True)
class Open:
    """A question whose call is open. Until the broker's reply to request `row` nobody knows who was `asked`."""

    id: str
    row: int
    known: bool = False
    asked: Asked | None = None
    letter: Letter | None = None
    asking: bool = False
    again: bool = False

    def settled(self, result: dict[str, Any]) -> None:
        """The broker's reply came."""
        self.known, self.asked = True, Asked.of(result)

    def ends(self, msg: wire.Msg) -> bool:
        """Whether this is the answer: a reply of the mailbox that was asked. Anybody may write an id into `re`."""
        if msg.re != self.id:
            return False
        return msg.answer > 0 or (self.asked is not None and self.asked.sent(msg.fid, msg.from_, msg.host))

    def may_end(self, msg: wire.Msg) -> bool:
        """Whether ordinary delivery has to leave it alone: the answer, and what may turn out to be that."""
        return self.ends(msg) or (msg.re == self.id and not self.known)


class Reservations:
    """Answers that open calls wait for, by the id of the question."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._loop: Loop = session.loop
        self._open: dict[str, Open] = {}
        session.listeners.append(self._heard)

    def reserved(self, letter: Letter) -> bool:
        """Whether ordinary delivery has to leave this one: the answer that was found, or what may turn out to be it.

        Further answers are ordinary mail, else their sender could fill the window with what nothing shows.
        """
        entry = self._open.get(letter.msg.re)
        if entry is None or not entry.may_end(letter.msg):
            return False
        return entry.letter is None or entry.letter.key == letter.key

    def open(self, ident: str, row: int) -> None:
        """A question is about to be sent, by this request."""
        self._open[ident] = Open(ident, row)

    def answered(self, ident: str) -> bool:
        """Whether close() would find an answer."""
        found = self._open.get(ident)
        return found is not None and found.letter is not None

    def close(self, link: Link, ident: str) -> Letter | None:
        """The call takes the answer, or leaves it to ordinary delivery."""
        entry = self._open.pop(ident, None)
        if entry is None:
            return None
        link.inbox.over(ident)
        return next((x for x in link.inbox.waiting() if entry.ends(x.msg)), entry.letter)

    def drop(self, link: Link, ident: str) -> None:
        """The call has died; an answer that waits is news for the others."""
        if self.close(link, ident) is not None:
            link.batch.news.append(Mail(link.inbox.more))

    def _heard(self, news: News) -> None:
        if isinstance(news, Settled):
            for entry in self._open.values():
                if entry.row == news.row:
                    entry.settled(news.result)
                    self._loop.call(self._look)
        elif isinstance(news, Mail) and self._open:
            self._loop.call(self._look)

    def _look(self, link: Link, _now: int) -> None:
        for letter in link.inbox.waiting():
            entry = self._open.get(letter.msg.re)
            if entry is not None and entry.letter is None and entry.ends(letter.msg):
                entry.letter = letter
                self._session.pulse.beat()
        if link.inbox.more:
            for ident, entry in self._open.items():
                if entry.letter is None:
                    self._query(ident, entry)

    def _query(self, ident: str, entry: Open) -> None:
        """Behind a full window only the broker can see it. Who was asked is known by then, or this is done again."""
        entry.again = entry.asking
        if entry.asking or entry.asked is None:
            return
        entry.asking = True

        def done(future: Future[Answer]) -> None:
            entry.asking = False
            found = [letter_of(value, body, self._loop.clock()) for value, body in future.result().rows]
            answer = next((x for x in found if entry.ends(x.msg)), None)
            if answer is not None and entry.letter is None:
                entry.letter = answer
                self._session.pulse.beat()
            elif entry.again and ident in self._open:
                self._query(ident, entry)

        query = {"re": ident, "limit": 1, **entry.asked.query()}
        self._loop.asking("inbox", query, _QUERY_S).add_done_callback(done)
