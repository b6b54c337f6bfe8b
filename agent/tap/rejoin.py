"""After a gap: what became of the messages that were told of, and which were sent meanwhile, by asking the broker.

The picture a stream is joined with tells who waits for how much, not what became of a message. That is asked for, one
by one, for as long at a time as leaves the stream alone; what a role may not see stays unknown.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

from agent.tap.items import Item, num, text
from agent.tap.mail import Mail
from bus.errors import Code, Unreachable

KEPT = 1000  # messages that are asked about, and that are looked for, after a gap
PAGE = 20  # of the past: an answer has texts, which may be long
PATIENCE_S = 2.0  # for one answer
_TEXTS = ("kind", "tag", "re")


class Asking(Protocol):
    """What is needed of bus.client.View."""

    def query(self, what: str, args: dict[str, Any], timeout: float) -> Any: ...


class Rejoined:
    """Tell it every event, and every picture; `learned` yields what the broker says of the messages in doubt."""

    def __init__(self, view: Asking, bodies: bool = False) -> None:
        self._view = view
        self._bodies = bodies
        self._mail = Mail(KEPT)
        self._heard_to = 0  # by the broker's clock, in ms: everything before was heard or asked for
        self._until = 0  # how far the past is still to be looked through; 0 = not
        self._asked: deque[dict[str, Any]] = deque()  # messages, as an item tells them, without what became of them

    @property
    def pending(self) -> bool:
        """Whether there is anything left to ask."""
        return bool(self._until or self._asked)

    def heard(self, event: dict[str, Any]) -> None:
        """One event of the stream."""
        if not self._until:
            self._heard_to = max(self._heard_to, num(event, "ts"))
        if text(event, "class") == "msg":
            about = self._mail.heard(event)
            if about is not None:
                about[1].climb(text(event, "event"))

    def joined(self, snapshot: dict[str, Any], gap: bool) -> None:
        """A picture: the stream goes on from here. After a gap everything that is not finished is in doubt."""
        if gap:
            self._until = num(snapshot, "ts")
            left = [about for about in self._asked if self._mail.find(about) is None]
            self._asked = deque(
                {"id": m.ident, "fid": m.fid, "from": m.sender, "from_host": m.sender_host}
                for m in self._mail.unfinished()
            )
            self._asked.extend(left)  # what a gap before left unasked
        else:
            self._heard_to = num(snapshot, "ts")

    def learned(self, now: int, seconds: float) -> Iterator[Item]:
        """What the broker answers, for about so many seconds; the rest the next time."""
        end = time.monotonic() + seconds
        try:
            if self._until and not self._look_back():
                yield Item(now, "learned", {"more": True})
            while self._asked and time.monotonic() < end:
                told = self._ask(self._asked[0])
                self._asked.popleft()
                if told is not None:
                    yield Item(now, "learned", told)
        except Unreachable:
            return  # the stream will tell, and what is left is asked then

    def _look_back(self) -> bool:
        """Find what was sent while nothing was heard; False when that was too much."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        before, whole = self._until + 1, True
        while True:
            answer = self._view.query("history", {"before": before, "limit": PAGE}, PATIENCE_S)
            if answer.code == Code.BUSY:
                raise Unreachable(answer.text)
            fresh = 0
            for value, body in answer.rows:
                key = (text(value, "id"), text(value, "fid"))
                if key in found or num(value, "ts") < self._heard_to:
                    continue
                fresh += 1
                said = {name: value[name] for name in _TEXTS if text(value, name)}
                said |= {"id": key[0], "fid": key[1], "from": text(value, "from"), "from_host": text(value, "host")}
                said |= {"size": len(body), "sent": num(value, "ts")}
                found[key] = said | ({"body": body.decode("utf-8", "replace")} if self._bodies else {})
            if not fresh or len(answer.rows) < PAGE:
                break
            if len(found) >= KEPT:
                whole = False
                break
            before = min(num(value, "ts") for value, _ in answer.rows) + 1
        waiting = {(text(about, "id"), text(about, "fid")) for about in self._asked}
        news = [about for key, about in reversed(found.items()) if key not in waiting]
        self._asked.extend(about for about in news if self._mail.find(about) is None)
        self._heard_to, self._until = max(self._heard_to, self._until), 0
        return whole

    def _ask(self, about: dict[str, Any]) -> dict[str, Any] | None:
        """What the broker knows of one message; None where it does not say, or speaks of another one."""
        known = self._mail.find(about)
        of = text(about, "fid") or (known.fid if known else "")
        answer = self._view.query("why", {"id": about["id"], "of": of}, PATIENCE_S)
        if answer.code == Code.BUSY:
            raise Unreachable(answer.text)
        to = [value for value, _ in answer.rows]
        keys = ("id", "from", "from_host", *(["fid"] if of else []))
        meant = {**about, "fid": of}
        if not to or any(text(row, key) != text(meant, key) for row in to for key in keys):
            return None
        kept = ("name", "host", "mailbox", "status", "history", "code", "text")
        told = {**meant, "to": [{name: row[name] for name in kept if name in row} for row in to]}
        self._mail.learned(told)
        return told
