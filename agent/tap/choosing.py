"""Which events somebody wants to see: by class, peer and kind. Pure.

Not every event names everybody it is about: that a message was shown does not say of which kind it was. What was told
before of the same message is remembered, for the last KNOWN_MAX of them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from agent.tap.items import Item, full, rows, text
from agent.tap.mail import About, Mail, Message

CLASSES = ("msg", "peer", "state", "bus", "lan")
KINDS = ("task", "note")
KNOWN_MAX = 20_000  # messages

# Fields that name somebody, and the field with the host.
_NAMED = (("from", "from_host"), ("to", "host"), ("name", "host"), ("former", "host"))


@dataclass(slots=True)
class Choice:
    """Call `takes` for every item, in order: it also learns. `mail` is what it has learned of messages."""

    classes: Collection[str] = ()
    peers: Collection[str] = ()
    kinds: Collection[str] = ()
    mail: Mail = field(default_factory=lambda: Mail(KNOWN_MAX))

    def takes(self, item: Item) -> bool:
        """Whether it is wanted. What the tap says of itself always is, except a picture of nothing that is wanted."""
        if item.what == "snapshot":
            return not self.classes or bool({"peer", "state"} & set(self.classes))
        if item.what == "learned":
            return self._wants_learned(item.told)
        if item.what != "event":
            return item.what != "peers"
        told = item.told
        kind = text(told, "class")
        about = self.mail.heard(told) if kind == "msg" else None
        known = about[0] if about else None
        if self.classes and kind not in self.classes:
            return False
        if self.kinds and (text(told, "kind") or (known.kind if known else "")) not in self.kinds:
            return False
        return not self.peers or any(self._is_about(told, known, peer.lower()) for peer in self.peers)

    def known(self, told: dict[str, Any]) -> About | None:
        """The message an event is about, and which copy of it; None where that is not certain."""
        return self.mail.about(told)

    def narrowed(self, told: dict[str, Any]) -> dict[str, Any]:
        """A picture with those peers only that are wanted, and without the state where that is not."""
        wanted = [row for row in rows(told, "peers") if self._row_wanted(row)]
        state = rows(told, "state") if not self.classes or "state" in self.classes else []
        return {**told, "peers": wanted, "state": state}

    def _row_wanted(self, row: dict[str, Any]) -> bool:
        if self.classes and "peer" not in self.classes:
            return False
        return not self.peers or any(self._is_about(row, None, peer.lower()) for peer in self.peers)

    def _wants_learned(self, told: dict[str, Any]) -> bool:
        """What was asked of a message, as any of its events would be wanted."""
        if self.classes and "msg" not in self.classes:
            return False
        found = self.mail.learned(told)
        if found is None:
            return not (self.peers or self.kinds)
        message, copies = found
        if self.kinds and message.kind not in self.kinds:
            return False
        rows_ = [row for _, row in copies]
        return not self.peers or any(self._is_about(row, message, p.lower()) for row in rows_ for p in self.peers)

    def _is_about(self, told: dict[str, Any], known: Message | None, peer: str) -> bool:
        named = [(text(told, name), text(told, host)) for name, host in _NAMED]
        if known is not None:
            named.append((known.sender, known.sender_host))
        name, _, host = text(told, "by").rpartition("@")
        named.append((name, host))
        return any(peer in (name.lower(), full(name, host).lower()) for name, host in named if name)
