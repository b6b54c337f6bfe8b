"""What a tap is told, one item after the other, and how its fields are read. Pure.

Where an item comes from, the bus or a recording, makes no difference here. Its fields are somebody else's: they are
read through the getters below, which take any value for what it should be or for nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

WHATS = ("snapshot", "event", "missed", "learned", "lost", "peers")


class Item(NamedTuple):
    """One thing that is told. `at` is ms since 1970 by the clock of who taps, and never runs backwards.

    `what` says what `told` holds:
    snapshot  the whole picture: "peers", "state", "seq", "boot"; first, and again after each "missed"
    event     an event of PROTOCOL.md §12 with "class", "event", "seq", "boot", "ts"; "body" where it was fetched
    missed    events were missed before the snapshot that follows; "restarted" when the broker is another one
    learned   what was asked of one message after that: "id", "fid", "from", "from_host", and "to" with name, host,
              mailbox, status and history of each copy; of one that was missed as a whole also "kind", "tag", "re",
              "size", "sent", and "body" where it was fetched. "more" alone says that still others were missed
    lost      the connection has ended, "text" says why; it is tried again
    peers     "peers" read anew, as of event "seq"
    """

    at: int
    what: str
    told: dict[str, Any]


def as_line(item: Item) -> dict[str, Any]:
    """The item as it is printed for programs: an event as it came, all else with the class "tap"."""
    if item.what == "event":
        return item.told
    return {"class": "tap", "event": item.what, "ts": item.at, **item.told}


def text(told: dict[str, Any], key: str) -> str:
    """A field that is a text, else ""."""
    value = told.get(key)
    return value if isinstance(value, str) else ""


def num(told: dict[str, Any], key: str) -> int:
    """A field that is a whole number from 0 up, else 0."""
    value = told.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def rows(told: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """A field that is a list of maps; what is none is left out."""
    value = told.get(key)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def topic(told: dict[str, Any]) -> str:
    """Class and name of an event, as in "msg.stored"."""
    return f"{text(told, 'class')}.{text(told, 'event')}"


def full(name: str, host: str) -> str:
    """name@host, or the name alone where the host is not known."""
    return f"{name}@{host}" if host else name
