"""Questions on both sides of an `ask`: those this session was shown and may answer, and who was asked by it.

Sans-IO. What was shown is the ledger's to say. A question of a former life of the agent, or of a conversation that
the user has cleared, is not known here, so nothing is taken for its answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from agent.book import Book, ledger_key
from bus import wire
from bus.record import record

KEPT = 256
TOLD_MAX = 32  # that a request names: its head has 4096 bytes
TRANSCRIPT = "transcript"  # the proof that names the request which carried a message
_ID_LEAST = 4


@record
class Asked:
    """Whom a question was put to, as the broker said; `mailbox` is "" from a broker that does not tell it."""

    name: str
    host: str
    mailbox: str

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Asked | None:
        """From the result of a `send`; None when nobody got the question."""
        rows = result.get("to")
        row = rows[0] if isinstance(rows, list) and len(rows) == 1 else None
        if not isinstance(row, dict) or row.get("status") == "refused":
            return None
        return cls(str(row.get("name", "")), str(row.get("host", "")), str(row.get("id", "")))

    def sent(self, fid: str, name: str, host: str) -> bool:
        """Whether a message came from there; mailbox, name and host as the broker stamped them."""
        return fid == self.mailbox if self.mailbox else (name, host) == (self.name, self.host)

    def query(self) -> dict[str, Any]:
        """The arguments of query `inbox` that look for messages from there."""
        return {"fid": self.mailbox} if self.mailbox else {"from": f"{self.name}@{self.host}"}


@record
class Question:
    """A question that was put to this session. `until` is when answers are no longer matched, in ms of the link."""

    id: str
    fid: str
    name: str
    host: str
    until: int

    @property
    def key(self) -> str:
        """Its name in the ledger."""
        return ledger_key(self.host, self.fid, self.id)

    def may_be_of(self, text: str) -> bool:
        """Whether an address seems to mean who asked; the broker decides."""
        text = text.strip().lower()
        return text in (self.name, f"{self.name}@{self.host}") or (
            len(text) >= _ID_LEAST and self.fid.startswith(text)
        )


class Questions:
    """The questions that were put to this session, until they are answered or too old."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._known: dict[str, Question] = {}
        self._answering: dict[int, tuple[bool, list[str]]] = {}  # row on its way -> is it certain; keys it may answer

    def offered(self, now: int, msg: wire.Msg, until: int) -> None:
        """A path has this message from now on."""
        if until <= now:
            return
        self._known = {key: x for key, x in self._known.items() if x.until > now}
        question = Question(msg.id, msg.fid, msg.from_, msg.host, until)
        self._known[question.key] = question
        while len(self._known) > KEPT:
            # The oldest of whoever asked most, so that nobody's questions crowd out those of others.
            most = Counter(x.fid for x in self._known.values()).most_common(1)[0][0]
            del self._known[next(key for key, x in self._known.items() if x.fid == most)]

    def inherit(self, former: Questions) -> None:
        """Go on from what this process knew before its book was read from the disk again."""
        self._known = former._known
        self._answering = {row: known for row, known in former._answering.items() if row <= self._book.last}

    def forget(self) -> None:
        """The model has them no longer, or the mailbox is another."""
        self._known.clear()

    def unproved(self, now: int) -> list[Question]:
        """What a path has, and nobody knows yet whether it was shown."""
        return [x for x in self.open(now) if self._book.ledger[x.key].state != "shown"]

    def shown(self, now: int, by: int) -> list[Question]:
        """Those that were in the model's context before a call that came at `by`, and have no answer yet.

        A transcript says which request carried a message, and the call is of no later one while it lasts. Any other
        proof counts only if it was there when the call came.
        """
        found = []
        for question in self.open(now):
            line = self._book.ledger[question.key]
            if line.state == "shown" and (line.proof == TRANSCRIPT or line.at <= by):
                found.append(question)
        return found

    def by_id(self, ident: str) -> list[Question]:
        """Those with this id: two senders may have used the same one."""
        return [x for x in self._known.values() if x.id == ident]

    def open(self, now: int) -> list[Question]:
        """Those that a path has or had, without an answer so far."""
        answering = {key for _, keys in self._answering.values() for key in keys}
        return [
            x for key, x in self._known.items() if x.until > now and key not in answering and key in self._book.ledger
        ]

    # -- answers ---------------------------------------------------------------------------------------------------

    def sent(self, row: int, args: Mapping[str, Any]) -> None:
        """A message was written: until the broker's reply comes, what it may answer is not open."""
        named = {(pair[0], pair[1]) for pair in args.get("answers", [])}
        if args.get("re"):
            self._answering[row] = True, [x.key for x in self.by_id(args["re"])]
        elif named:
            to = args["to"][0]
            known = self._known.items()
            self._answering[row] = False, [key for key, x in known if (x.fid, x.id) in named and x.may_be_of(to)]

    def settled(self, row: int, result: Mapping[str, Any]) -> None:
        """The broker's reply: what reached the mailbox that asked is answered, anything else is open again."""
        certain, keys = self._answering.pop(row, (False, []))
        if result.get("re"):
            certain, keys = True, [x.key for x in self.by_id(str(result["re"]))]
        for key in keys if certain else ():
            question = self._known.get(key)
            if question is not None and reached(result, question):
                del self._known[key]


def reached(result: Mapping[str, Any], question: Question) -> bool:
    """Whether a message came to the mailbox that asked, by the result of its `send`."""
    rows = result.get("to")
    got = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return any(row.get("status") in ("stored", "held") and row.get("id", question.fid) == question.fid for row in got)
