"""What the broker wants done: writes, sends, reads and events, collected in one Batch.

The shell commits the writes, then sends, then answers reads, then publishes. Nothing here does anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bus.record import record
from bus.roll import Roll
from bus.wire import Command
from bus.world import Entry, Mailbox, Outbox, Rule


@record
class PutMailbox:
    """Insert or replace the row of a mailbox (everything but `pending`)."""

    mailbox: Mailbox


@record
class PutOutbox:
    """Insert or replace `high` and `floor` of an outbox; replies below the floor may be forgotten by load()."""

    outbox: Outbox


@record
class AddOp:
    """One operation of the journal, with the reply it was given."""

    seq: int
    at: int
    ob: str
    q: int
    op: str
    digest: bytes
    chain: bytes
    code: int
    reply: bytes
    who: str  # name@host of the sender, as it was


@record
class AddMessage:
    """A message. It is identified by (sender, id): a key cannot clash with another key's ids, nor read their text
    by naming one. The same pair again is the same message: the first stays. `ask` is when the sender stops waiting
    for the answer, in ms since 1970; 0 when the message is not a question.
    """

    id: str
    sender: str  # mailbox id
    name: str  # the sender's name and host as they were
    host: str
    key: str
    kind: str
    tag: str
    re: str
    thread: str
    ts: int
    expires: int
    hops: int
    body: bytes
    ask: int = 0


@record
class AddDelivery:
    """One copy of message (sender, msg) in one mailbox. `name` is the recipient's as it was."""

    mailbox: str
    n: int
    sender: str
    msg: str
    name: str
    status: str  # "stored" or "held"
    ts: int
    proof: str = ""  # why it is held
    quiet: bool = False


@record
class AddRefusal:
    """A recipient that got no copy, and why; `talkbus why` tells it."""

    sender: str
    msg: str
    name: str
    host: str
    code: int
    text: str
    ts: int


@record
class Release:
    """A held delivery goes on as stored, under a new number: it comes after what came meanwhile."""

    mailbox: str
    n: int
    to: int
    ts: int
    proof: str


@record
class Move:
    """A step of a delivery. A step that has a time keeps it. `settled` says that it leaves the working set."""

    mailbox: str
    n: int
    status: str  # "offered" | "injected" | "expired" | "failed"
    ts: int
    proof: str
    settled: bool


@record
class MoveById:
    """A step of a delivery that is named by message id: acked, answered, or one that is told late.

    `sender` is the mailbox that sent it, which is exact; `host` is the sender's host; "" for any. Whether the name
    fits one message, and which, is decided by the disk (Resolved). It never settles, and never touches what is held.
    """

    mailbox: str
    msg: str
    status: str
    ts: int
    proof: str
    host: str = ""
    sender: str = ""


@record
class Resolved:
    """What the disk made of a MoveById: the copies in `fresh` got the step just now, and `name`, `host`, `kind` and
    `sender` are those of their message. `why` is "" unless nothing fit: "unknown", "ambiguous" or "not offered".
    """

    write: MoveById
    why: str = ""
    fresh: tuple[int, ...] = ()
    sender: str = ""
    name: str = ""
    host: str = ""
    kind: str = ""


@record
class PutState:
    """Write a value of shared state."""

    entry: Entry
    value: bytes


@record
class DropState:
    """Remove a key of shared state."""

    key: str


@record
class PutRule:
    """Write a rule of the policy; one about the same goes."""

    rule: Rule


@record
class DropRule:
    """Remove a rule of the policy."""

    key: str
    about: tuple[str, str, str]


@record
class PutPause:
    """All mail to the mailboxes of `key` is held since then; 0 ends it."""

    key: str
    since: int


@record
class PutMeta:
    """A single value of the database: `prune_before`. (store, seq and chain follow from AddOp and creation.)"""

    name: str
    value: int


Write = (
    PutMailbox
    | PutOutbox
    | AddOp
    | AddMessage
    | AddDelivery
    | AddRefusal
    | Release
    | Move
    | MoveById
    | PutState
    | DropState
    | PutRule
    | DropRule
    | PutPause
    | PutMeta
)


@record
class Send:
    """One command for one route."""

    route: bytes
    command: Command


@record
class Push:
    """A MSG for one route. The shell takes what is not here (name, text, tag, …) from `store.message(sender, id)`,
    which keeps fresh ones at hand, and `ask` and `answer` from `store.marks()`. `mailbox` is the recipient's.
    """

    route: bytes
    n: int
    prev: int
    sender: str
    id: str
    to: str
    ttl: int
    again: bool
    quiet: bool = False
    mailbox: str = ""


@record
class Read:
    """A query the disk answers, after the commit: PARTs and a DONE for `r`."""

    route: bytes
    r: int
    what: str
    args: dict[str, Any]
    mailbox: str  # of who asks; "" for a view session
    key: str
    role: str
    seen: tuple[int, int] = (0, 0)  # `deliveries.maybe_seen` of that mailbox


@record
class Recall:
    """A request below the floor: the journal tells its reply (REP), or that it was another one (ERR 409)."""

    route: bytes
    ob: str
    q: int
    digest: bytes


@record
class Event:
    """One event of activity; `seq` is given by the core, the boot nonce by the shell."""

    seq: int
    topic: str
    ts: int
    fields: dict[str, Any]


@record
class Admit:
    """Listen at the enrolment port, until told otherwise; and tell `broker.enrolling(port)` where that is."""


@record
class Shut:
    """Listen at the enrolment port no more."""


@record
class Greet:
    """An answer at the enrolment port."""

    route: bytes
    command: Command


@record
class Cut:
    """A machine is not on the roll any more, or may do less: whoever listens to activity must prove his key again."""


@dataclass(slots=True)
class Batch:
    """Everything that came of what was fed in since the last take().

    `roll`, if any, is to be on the disk before the writes; `former` is what it was, for the case that it cannot be.
    """

    roll: Roll | None = None
    former: Roll | None = None
    writes: list[Write] = field(default_factory=list)
    doors: list[Admit | Shut | Greet | Cut] = field(default_factory=list)  # in order, before the sends
    sends: list[Send | Push | Read | Recall] = field(default_factory=list)  # in order, after the commit
    events: list[Event] = field(default_factory=list)
