"""What a tap was told of each message: its copies, and how far each has climbed. Pure.

A message is its sender's: another machine may use the same id. Not every event names the sender, and a copy may have
got another name since, so the rest is found by the id of the recipient's mailbox; where that leaves several, none of
them is meant.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from agent.tap.items import num, rows, text

# In the order in which a copy climbs, as the broker's disk has it; two of one rung are never both reached.
RUNGS = {
    "refused": 0,
    "held": 1,
    "stored": 2,
    "offered": 3,
    "expired": 4,
    "failed": 4,
    "injected": 5,
    "acked": 6,
    "answered": 7,
}
FIRST = ("refused", "held", "stored")  # the steps that name the message's sender, kind and tag
OPEN = ("held", "stored", "offered")  # a copy that is still to be shown
FINAL = ("refused", "answered")  # nothing follows
UNKNOWN = "unknown"
_SETTLING = frozenset({"injected", "expired", "failed"})  # with these a copy leaves the mailbox


@dataclass(slots=True)
class Copy:
    """One recipient's. `steps` were told, the highest is `step`; `doubt`: more may have happened unheard.

    `waiting` says whether it is counted among those that wait for the recipient; None where that is not known.
    """

    name: str
    host: str
    step: str = ""
    doubt: bool = False
    waiting: bool | None = None
    steps: set[str] = field(default_factory=set)

    @property
    def status(self) -> str:
        """What may be said of it without claiming too much."""
        return UNKNOWN if self.doubt and self.step in OPEN else self.step

    def waits(self, told: dict[str, Any]) -> int:
        """What a msg event changes in the number of those that wait for the recipient: 1, 0 or -1.

        Held mail does not wait for the recipient. A step of a copy that is settled already may be told late: then
        it was counted, and such an event does not name the sender. What was asked of a copy changes nothing here:
        the events that follow the picture do.
        """
        step, before = text(told, "event"), self.waiting
        if step == "stored" and step not in self.steps:
            self.waiting = True
            return 1
        if step in _SETTLING:
            self.waiting = False
            late = bool(self.steps & (_SETTLING - {step})) or not text(told, "from")
            return -int(before is True or (before is None and not late))
        if step == "held":
            self.waiting = False
        return 0

    def climb(self, step: str) -> bool:
        """Another step was told; False when it was told before."""
        self.doubt = False
        if RUNGS.get(step, -1) > RUNGS.get(self.step, -1):
            self.step = step
        if step in self.steps:
            return False
        self.steps.add(step)
        return True


@dataclass(slots=True)
class Message:
    """A message. `sender` is "" where nobody has said it. `counted` is for whoever counts them."""

    ident: str
    sender: str = ""
    sender_host: str = ""
    fid: str = ""  # the mailbox that sent it, where that was said
    kind: str = ""
    counted: bool = False
    copies: dict[str, Copy] = field(default_factory=dict)


About = tuple[Message, Copy]


class Mail:
    """The last `limit` messages that were told of. `clean` makes names harmless where they are kept for a screen."""

    def __init__(self, limit: int, clean: Callable[[str], str] = str) -> None:
        self._limit = limit
        self._clean = clean
        self._messages: deque[Message] = deque()  # the oldest first
        self._by_id: dict[str, list[Message]] = {}

    def __len__(self) -> int:
        return len(self._messages)

    def about(self, told: dict[str, Any]) -> About | None:
        """The copy a msg event is about, without learning from it; None for one that is not known for certain."""
        found = self.find(told)
        if found is not None and _place(told) in found.copies:
            return found, found.copies[_place(told)]
        likely = self._likely(told)
        return (likely[0], likely[0].copies[_place(told)]) if len(likely) == 1 else None

    def heard(self, told: dict[str, Any]) -> About | None:
        """Learn who a msg event is about, not what became of it; the copy, or None where several may be meant."""
        found = self.find(told)
        if found is None and not (text(told, "from") and text(told, "event") in FIRST):
            likely = self._likely(told)  # of a sender that was renamed, or is not told
            if len(likely) > 1:
                return None
            found = likely[0] if likely else None
        found = found or self._made(told)
        found.kind = text(told, "kind") or found.kind
        return found, self._copy(found, _place(told), told)

    def learned(self, told: dict[str, Any]) -> tuple[Message, list[tuple[Copy, dict[str, Any]]]] | None:
        """Find the message that was asked about, and its copies, each with what was answered; None without any."""
        if not text(told, "from") or not rows(told, "to"):
            return None
        found = self.find(told) or self._made(told)
        found.kind = text(told, "kind") or found.kind
        made = []
        for row in rows(told, "to"):
            copy = self._copy(found, _place({**row, "to": row.get("name")}), {**row, "to": row.get("name")})
            made.append((copy, row))
        return found, made

    def missed(self) -> None:
        """Something was not heard: of what is not settled nobody knows what became, until it is told."""
        for message in self._messages:
            for copy in message.copies.values():
                copy.doubt = True
                copy.waiting = None if copy.waiting else copy.waiting

    def unfinished(self) -> Iterator[Message]:
        """Messages of which more may be told, the oldest first."""
        for message in self._messages:
            if message.sender and any(copy.step not in FINAL for copy in message.copies.values()):
                yield message

    def find(self, told: dict[str, Any]) -> Message | None:
        """The message of this id that this sender sent: "id", "fid", "from" and "from_host" as in events."""
        fid, sender, host = text(told, "fid"), text(told, "from"), text(told, "from_host")
        listed = self._by_id.get(text(told, "id"), ())
        for message in listed:
            if fid and message.fid == fid:
                return message
        for message in listed:
            if sender and (message.sender, message.sender_host) == (sender, host) and "" in (fid, message.fid):
                message.fid = message.fid or fid
                return message
        return None

    def _likely(self, told: dict[str, Any]) -> list[Message]:
        """Those with that id whose copy is in that mailbox, and whose sender's machine is not another."""
        fid, host, place = text(told, "fid"), text(told, "from_host"), _place(told)
        return [
            message
            for message in self._by_id.get(text(told, "id"), ())
            if place in message.copies
            and (not host or message.sender_host in ("", host))
            and "" in (fid, message.fid)
        ]

    def _copy(self, message: Message, place: str, told: dict[str, Any]) -> Copy:
        copy = message.copies.get(place)
        if copy is None:
            copy = Copy(self._clean(text(told, "to")), self._clean(text(told, "host")))
            message.copies[place] = copy
        return copy

    def _made(self, told: dict[str, Any]) -> Message:
        made = Message(text(told, "id"), text(told, "from"), text(told, "from_host"), text(told, "fid"))
        self._messages.append(made)
        self._by_id.setdefault(made.ident, []).append(made)
        if len(self._messages) > self._limit:
            oldest = self._messages.popleft()
            left = [other for other in self._by_id[oldest.ident] if other is not oldest]
            if left:
                self._by_id[oldest.ident] = left
            else:
                del self._by_id[oldest.ident]
        return made


def settle(copy: Copy, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Have a copy stand where the answer says; the steps of it that were not told before, in the ladder's order."""
    history = [step for step in rows(row, "history") if text(step, "status") in RUNGS]
    history.sort(key=lambda step: (RUNGS[text(step, "status")], num(step, "ts")))
    fresh = [step for step in history if text(step, "status") not in copy.steps]
    copy.steps |= {text(step, "status") for step in history}
    if text(row, "status") in RUNGS:
        copy.step, copy.doubt = text(row, "status"), False
    return fresh


def _place(told: dict[str, Any]) -> str:
    """Where a copy is: a mailbox, whatever it is called; what was refused has none."""
    return text(told, "mailbox") or f"{text(told, 'to')}@{text(told, 'host')}"
