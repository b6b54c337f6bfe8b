"""The broker's durable state as plain data: the working set, without bodies and without history.

`World` is exactly what `store.load()` gives back after any crash; a test compares them. What a restart may forget
(routes, windows, presence) is not here but in the broker. Imports the names of nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Pending:
    """A delivery that is not settled yet. `expires` is 0 for no end, `quiet` says that it starts nothing, `why` it is
    held, `ts` when it came.
    """

    n: int
    msg: str
    sender: str  # mailbox id of the sender
    kind: str
    size: int
    expires: int
    status: str = "stored"  # "stored" | "offered" | "held"
    quiet: bool = False
    why: str = ""
    ts: int = 0

    @property
    def wakes(self) -> bool:
        """Whether it may start something; what may not waits until something else is shown."""
        return self.kind == "task" and not self.quiet


@dataclass(slots=True)
class Mailbox:
    """One mailbox: who owns it, who holds it, what waits in it, and what is held back from it.

    `pushed` is the highest number that was pushed of what wakes, `pushed_quiet` of the rest: each of the two kinds is
    pushed in order. `life` is the process of the client that it went to, `former` and `former_quiet` are the marks as
    they were at the start of that process.
    """

    id: str
    key: str
    host: str
    name: str
    term: int = 0
    inst: str = ""
    top: int = 0
    active: int = 0  # last heard from, ms since 1970
    meta: dict[str, Any] = field(default_factory=dict)
    life: str = ""
    pushed: int = 0
    pushed_quiet: int = 0
    former: int = 0
    former_quiet: int = 0
    pending: dict[int, Pending] = field(default_factory=dict)
    held: dict[int, Pending] = field(default_factory=dict)


@dataclass(slots=True)
class Saved:
    """The reply of a request that is done, and what it was."""

    digest: bytes
    code: int
    reply: bytes  # msgpack [result, text]


@dataclass(slots=True)
class Outbox:
    """One outbox of a client: `high` is the last number done, `saved` the replies of floor…high."""

    id: str
    key: str
    high: int = 0
    floor: int = 1
    saved: dict[int, Saved] = field(default_factory=dict)


@dataclass(slots=True)
class Entry:
    """One key of shared state, without its value."""

    key: str
    ver: int
    by: str  # name@host of the writer, as it was
    project: str
    ts: int
    expires: int
    size: int


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of mail to the mailboxes of `key`. `machine` is the sender's key; "" means any."""

    key: str
    machine: str
    name: str
    kind: str
    action: str  # "accept" | "hold" | "refuse"
    ts: int

    @property
    def about(self) -> tuple[str, str, str]:
        """Whose mail it is about; one rule of a key has this."""
        return self.machine, self.name, self.kind


@dataclass(slots=True)
class World:
    """Everything a broker must know to go on."""

    store: str
    seq: int = 0
    chain: bytes = bytes(16)
    prune_before: int = 0
    mailboxes: dict[str, Mailbox] = field(default_factory=dict)
    outboxes: dict[str, Outbox] = field(default_factory=dict)
    state: dict[str, Entry] = field(default_factory=dict)
    policy: dict[str, dict[tuple[str, str, str], Rule]] = field(default_factory=dict)  # owner's key -> about -> rule
    paused: dict[str, int] = field(default_factory=dict)  # owner's key -> since when
