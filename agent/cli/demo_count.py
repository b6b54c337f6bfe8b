"""What the demonstration counts by itself: which message was sent to whom, and which ids came out of tool results.

The truth of `talkbus demo` comes from here and from nowhere else, so this file knows neither the bus nor its
database: only ids of sends that were accepted, and texts that reached a client. Pure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

# A message as render.py shows it: the header, the line how to reply, the fence. In a body no such line can stand,
# because there the "<" of our tag is escaped.
_SHOWN = re.compile(r'^(?P<head>.*)\nTo reply: .*\n<peer-message id="(?P<id>[^"]*)" from="[^"]*">$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sight:
    """One message in the text of a result; `repeat` when it was marked as a possible repeat."""

    id: str
    repeat: bool


def sights(text: str) -> list[Sight]:
    """The messages that a tool result shows, in order."""
    return [Sight(found["id"], found["head"].endswith(", possible repeat")) for found in _SHOWN.finditer(text)]


@dataclass(frozen=True, slots=True)
class Share:
    """What became of one agent's mail. `waiting` was sent to it and not seen by its client."""

    sent: int
    shown: int
    waiting: int
    twice: int
    repeats: int
    strangers: int


@dataclass(slots=True)
class Tally:
    """Copies sent and copies seen, one per message and recipient."""

    names: tuple[str, ...]
    _sent: dict[tuple[str, str], str] = field(default_factory=dict)  # (id, recipient) -> sender
    _seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    _shown: int = 0  # of _sent, seen at least once
    repeats: Counter[str] = field(default_factory=Counter)  # copies that were marked, by recipient

    def sending(self, ident: str, sender: str, recipients: Iterable[str]) -> None:
        """A result said that this message was taken, stored or queued."""
        for name in recipients:
            copy = (ident, name)
            if copy not in self._sent:
                self._shown += copy in self._seen
            self._sent[copy] = sender

    def saw(self, name: str, text: str) -> list[Sight]:
        """A result reached the client of `name`; returns the messages it showed."""
        found = sights(text)
        for sight in found:
            copy = (sight.id, name)
            self._shown += copy in self._sent and copy not in self._seen
            self._seen[copy] += 1
            self.repeats[name] += sight.repeat
        return found

    @property
    def sent(self) -> int:
        """Copies that were sent: a message to several counts once for each."""
        return len(self._sent)

    @property
    def messages(self) -> int:
        """The messages they are copies of, as the office counts them."""
        return len({ident for ident, _ in self._sent})

    @property
    def shown(self) -> int:
        """Of those, the ones a client has seen."""
        return self._shown

    @property
    def lost(self) -> int:
        return self.sent - self.shown

    @property
    def twice(self) -> int:
        """Every sight of a copy beyond its first."""
        return self._seen.total() - len(self._seen)

    @property
    def strangers(self) -> int:
        """Copies seen that nobody is known to have sent to that agent."""
        return sum(copy not in self._sent for copy in self._seen)

    def missing(self, name: str) -> list[str]:
        """Ids that `name` was sent and has not seen."""
        return [ident for (ident, to) in self._sent if to == name and (ident, to) not in self._seen]

    def sender(self, ident: str, name: str) -> str:
        """Who sent this to `name`; "" when nobody did."""
        return self._sent.get((ident, name), "")

    def share(self, name: str) -> Share:
        """The line of one agent."""
        seen = {copy: count for copy, count in self._seen.items() if copy[1] == name}
        return Share(
            sent=sum(sender == name for sender in self._sent.values()),
            shown=sum(copy in self._sent for copy in seen),
            waiting=len(self.missing(name)),
            twice=sum(seen.values()) - len(seen),
            repeats=self.repeats[name],
            strangers=sum(copy not in self._sent for copy in seen),
        )

    @property
    def verdict(self) -> str:
        """The last line of the demonstration."""
        return f"sent {self.sent}, shown {self.shown}, lost {self.lost}, twice {self.twice}"

    @property
    def good(self) -> bool:
        """Whether everything arrived, once, and nothing else did."""
        return self.sent == self.shown and not (self.lost or self.twice or self.strangers)
