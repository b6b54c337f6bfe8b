"""What an agent must remember: the outbox and the ledger, as plain data, and the writes that change them on disk.

`Book` is exactly what `outbox.load()` gives back after a crash. No I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bus.record import record

LEDGER_KEPT = 20_000


def ledger_key(host: str, fid: str, ident: str) -> str:
    """The name of a message in the ledger: an id is one message's only together with the mailbox that sent it."""
    return f"{host}/{fid}/{ident}"


def told_key(value: dict[str, Any]) -> str:
    """The same of a message as a query tells it."""
    return ledger_key(str(value.get("host", "")), str(value.get("fid", "")), str(value["id"]))


@dataclass(slots=True)
class Shown:
    """One message in the ledger: "offering" (a path has it), or "shown" with its proof.

    `path` is the path, and behind a blank the nonce of the text that carried it, if it had one. `told` is true once
    the broker is known to have it on disk.
    """

    state: str
    path: str
    proof: str = ""
    at: int = 0
    told: bool = False

    @property
    def way(self) -> str:
        """The path alone."""
        return self.path.partition(" ")[0]

    @property
    def nonce(self) -> str:
        """What proves in a transcript that the text was shown; "" where nothing can."""
        return self.path.partition(" ")[2]


@dataclass(slots=True)
class Book:
    """Rows `first`…`last` of the outbox are not settled; row r has number r − base within outbox `ob`."""

    ob: str
    base: int = 0
    first: int = 1
    last: int = 0
    name: str = ""
    term: int = 0
    store: str = ""
    seq: int = 0
    chain: str = ""
    ledger: dict[str, Shown] = field(default_factory=dict)  # by ledger_key()

    def number(self, row: int) -> int:
        """The `q` of a row."""
        return row - self.base

    def row(self, q: int) -> int:
        """The row of a `q`."""
        return q + self.base

    @property
    def unsettled(self) -> int:
        return self.last - self.first + 1


@record
class AddRow:
    """A request that is to be done; `args` as msgpack."""

    row: int
    id: str
    op: str
    args: bytes
    body: bytes
    at: int


@record
class SettleRow:
    """The broker's reply to a row; `result` as msgpack."""

    row: int
    code: int
    result: bytes
    text: str
    at: int


@record
class PutBook:
    """ob, base, name, term, store, seq and chain as the book has them now."""

    book: Book


@record
class PutShown:
    """A line of the ledger; `ident` is "host/fid/id", as in Book."""

    ident: str
    shown: Shown


@record
class DropShown:
    """An offer that certainly reached nobody."""

    ident: str


Write = AddRow | SettleRow | PutBook | PutShown | DropShown
