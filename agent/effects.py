"""What a link wants done: writes to agent.db, commands to send, news for the application.

The shell commits the writes, then sends, then tells the news. Nothing here does anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from agent.book import Write
from bus import wire
from bus.record import record


@record
class SendRow:
    """REQ of an outbox row: the shell takes op, args, id and body from agent.db (or its cache of fresh rows)."""

    row: int
    q: int
    floor: int


@record
class Settled:
    """A row has its reply, and the reply is on disk."""

    row: int
    code: int
    result: dict[str, Any]
    text: str


@record
class Parted:
    """One PART of a query."""

    r: int
    value: dict[str, Any]
    body: bytes


@record
class Finished:
    """A query is answered, or will not be: `code` 503 when the connection died over it."""

    r: int
    code: int
    seq: int
    text: str


@record
class Welcomed:
    """The broker knows this session now, under this name."""

    name: str
    id: str
    term: int


@record
class Parked:
    """The link has stopped until `knock` is called: the name is held by another. What is no conflict (this key may
    not) is tried again, seldom.
    """

    code: int
    term: int
    by: dict[str, Any]
    text: str


@record
class Mail:
    """There is something to offer, or `more` waits beyond the window."""

    more: int = 0


@record
class Lost:
    """The connection is gone; the link dials again by itself."""

    text: str


@record
class Ended:
    """The broker has said goodbye."""


News = Settled | Parted | Finished | Welcomed | Parked | Mail | Lost | Ended


@dataclass(slots=True)
class Batch:
    """Everything that came of what was fed in since the last take(). `connect` is "open", "close" or ""."""

    writes: list[Write] = field(default_factory=list)
    sends: list[wire.Command | SendRow] = field(default_factory=list)
    news: list[News] = field(default_factory=list)
    connect: str = ""
