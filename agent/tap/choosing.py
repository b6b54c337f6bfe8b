"""Which events somebody wants to see: by class, peer and kind. Pure.

Not every event names everybody it is about: that a message was shown does not say of which kind it was. What was told
before of the same message is remembered, for the last KNOWN_MAX of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from agent.tap.items import Item, full, rows, text

CLASSES = ("msg", "peer", "state", "bus")
KINDS = ("task", "note")
KNOWN_MAX = 20_000  # messages

# Fields that name somebody, and the field with the host.
_NAMED = (("from", "from_host"), ("to", "host"), ("name", "host"), ("former", "host"))


@dataclass(slots=True)
class Known:
    """What is known of one message: who sent it, and what it is."""

    sender: str = ""
    sender_host: str = ""
    kind: str = ""


@dataclass(slots=True)
class Choice:
    """Call `takes` for every item, in order: it also learns."""

    classes: Collection[str] = ()
    peers: Collection[str] = ()
    kinds: Collection[str] = ()
    # By id and sender. Under the id alone stands what is known of it as long as one sender has used it.
    _known: OrderedDict[tuple[str, str], Known] = field(default_factory=OrderedDict)

    def takes(self, item: Item) -> bool:
        """Whether it is wanted. What the tap says of itself always is, except a picture of nothing that is wanted."""
        if item.what == "snapshot":
            return not self.classes or bool({"peer", "state"} & set(self.classes))
        if item.what != "event":
            return item.what != "peers"
        told = item.told
        kind = text(told, "class")
        known = self._learn(told) if kind == "msg" else None
        if kind not in (self.classes or CLASSES):
            return False
        if self.kinds and (known is None or known.kind not in self.kinds):
            return False
        return not self.peers or any(self._is_about(told, known, peer.lower()) for peer in self.peers)

    def known(self, told: dict[str, Any]) -> Known:
        """What is known of the message an event is about; empty where nothing is."""
        return self._known.get(_key(told)) or Known()

    def narrowed(self, told: dict[str, Any]) -> dict[str, Any]:
        """A picture with those peers only that are wanted, and without the state where that is not."""
        wanted = [row for row in rows(told, "peers") if self._row_wanted(row)]
        state = rows(told, "state") if not self.classes or "state" in self.classes else []
        return {**told, "peers": wanted, "state": state}

    def _row_wanted(self, row: dict[str, Any]) -> bool:
        if self.classes and "peer" not in self.classes:
            return False
        return not self.peers or any(self._is_about(row, None, peer.lower()) for peer in self.peers)

    def _learn(self, told: dict[str, Any]) -> Known:
        key = _key(told)
        known = self._known.pop(key, None) or Known()
        if text(told, "from"):
            known.sender, known.sender_host = text(told, "from"), text(told, "from_host")
        known.kind = text(told, "kind") or known.kind
        self._known[key] = known
        if key[1]:
            alone = (key[0], "")
            other = self._known.pop(alone, known)
            self._known[alone] = known if other is known else Known()
        while len(self._known) > 2 * KNOWN_MAX:
            self._known.popitem(last=False)
        return known

    def _is_about(self, told: dict[str, Any], known: Known | None, peer: str) -> bool:
        named = [(text(told, name), text(told, host)) for name, host in _NAMED]
        if known is not None:
            named.append((known.sender, known.sender_host))
        name, _, host = text(told, "by").rpartition("@")
        named.append((name, host))
        return any(peer in (name.lower(), full(name, host).lower()) for name, host in named if name)


def _key(told: dict[str, Any]) -> tuple[str, str]:
    """Which message an event is about. Two senders may use one id; older brokers do not always say whose it is."""
    return text(told, "id"), text(told, "fid") or full(text(told, "from"), text(told, "from_host"))
