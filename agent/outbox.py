"""agent.db: the rows of the outbox, their replies, and the ledger, in one SQLite file that gives the Book back.

The only importer of sqlite3 on the agent's side. A batch is taken whole or not at all, so `load()` equals the Book in
memory as of the last `apply()`, however the process ended. It must not know links, sockets, or when anything is due.
One thread at a time may use an Outbox, and one process at a time: whoever holds the seat.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, assert_never

from agent.book import LEDGER_KEPT, AddRow, Book, DropShown, PutBook, PutShown, SettleRow, Shown, Write
from bus import database, wire
from bus.errors import RemoteError, StoreError
from bus.private import check_private

APPLICATION = 0x54424147  # "TBAG", so that another program's database is not taken for ours
VERSION = 2
BUSY_MS = 1000  # a person looking into the file with another tool may hold us up no longer than this
CACHE_MAX = 8 << 20  # octets of rows just written, kept for the REQs that follow the commit
CACHE_ENTRY = 512  # what an entry costs beside its texts, about
KEPT_MS = 7 * 86_400_000  # how long a settled row can still be asked for
LEDGER_ON_DISK = 4 * LEDGER_KEPT
HEADS_KEPT = 64  # ends of the broker's journal, as WELCOMEs told them: an audit compares them with what is there
PLAIN_MAX = 2 * wire.BODY_MAX  # arguments and results come from a head or a body, so none of ours is larger

# A reply is a row of its own: an UPDATE beside a body of 256 KiB would write that body again.
_SCHEMA = """
CREATE TABLE book (one INTEGER PRIMARY KEY CHECK (one = 1), ob TEXT NOT NULL, base INTEGER NOT NULL,
  first INTEGER NOT NULL, last INTEGER NOT NULL, name TEXT NOT NULL, term INTEGER NOT NULL, store TEXT NOT NULL,
  seq INTEGER NOT NULL, chain TEXT NOT NULL);
CREATE TABLE rows (row INTEGER PRIMARY KEY, id TEXT NOT NULL, op TEXT NOT NULL, args BLOB NOT NULL,
  body BLOB NOT NULL, at INTEGER NOT NULL);
CREATE INDEX rows_id ON rows (id);
CREATE TABLE replies (row INTEGER PRIMARY KEY, code INTEGER NOT NULL, result BLOB NOT NULL, text TEXT NOT NULL,
  at INTEGER NOT NULL);
CREATE INDEX replies_at ON replies (at);
CREATE TABLE ledger (line INTEGER PRIMARY KEY, ident TEXT NOT NULL UNIQUE, state TEXT NOT NULL, path TEXT NOT NULL,
  proof TEXT NOT NULL, at INTEGER NOT NULL, told INTEGER NOT NULL);
CREATE INDEX ledger_untold ON ledger (line) WHERE told = 0;
INSERT INTO book VALUES (1, '', 0, 1, 0, '', 0, '', 0, '')
"""
_HEADS = """
CREATE TABLE heads (row INTEGER PRIMARY KEY, store TEXT NOT NULL, seq INTEGER NOT NULL, chain TEXT NOT NULL,
  UNIQUE (store, seq, chain));
INSERT INTO heads (store, seq, chain) SELECT store, seq, chain FROM book WHERE seq > 0
"""
_MIGRATIONS = (_SCHEMA, _HEADS)  # entry i brings a database of version i to version i + 1
_PUT_HEAD = "INSERT OR IGNORE INTO heads (store, seq, chain) VALUES (?, ?, ?)"
_OLD_HEADS = "DELETE FROM heads WHERE row <= (SELECT row FROM heads ORDER BY row DESC LIMIT 1 OFFSET ?)"

_ROWS = (
    "SELECT r.row, r.id, r.op, r.args, r.body, r.at, p.code, coalesce(p.result, x'80'), coalesce(p.text, ''), "
    "coalesce(p.at, 0) FROM rows r LEFT JOIN replies p ON p.row = r.row "
)
_ADD_ROW = "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)"
_SETTLE_ROW = "INSERT INTO replies VALUES (?, ?, ?, ?, ?)"
_DROP_SHOWN = "DELETE FROM ledger WHERE ident = ?"
_PUT_BOOK = "UPDATE book SET ob = ?, base = ?, name = ?, term = ?, store = ?, seq = ?, chain = ?"
_PUT_SHOWN = (
    "INSERT INTO ledger (ident, state, path, proof, at, told) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (ident) "
    "DO UPDATE SET state = excluded.state, path = excluded.path, proof = excluded.proof, at = excluded.at, "
    "told = excluded.told"
)
_LEDGER = "SELECT state, path, proof, at, told"
# The newest line that is not among the newest so-many; lines keep the order in which they were first written.
_BEYOND = "(SELECT coalesce((SELECT line FROM ledger ORDER BY line DESC LIMIT 1 OFFSET ?), 0))"


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row as it stands on disk, times in ms. Until it is settled `code` is None and `settled_at` 0."""

    row: int
    id: str
    op: str
    args: dict[str, Any]
    body: bytes
    at: int
    code: int | None = None
    result: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    settled_at: int = 0


class Outbox:
    """One agent.db. Made by open(), memory() or from_dump(); any method raises StoreError for what the disk says."""

    def __init__(self, db: sqlite3.Connection, where: str) -> None:
        self._db = db
        self._where = where
        self._fresh: OrderedDict[int, AddRow] = OrderedDict()
        self._fresh_octets = 0

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the file, made 0600 with the present schema when it is not there.

        StoreError, with the mend, for what is no database, another program's, or of a newer talkbus; ConfigError for
        a file that is open to others, somebody else's, or a symlink.
        """
        database.create(path)
        check_private(path)
        return cls._prepared(sqlite3.connect(path, isolation_level=None, check_same_thread=False), str(path))

    @classmethod
    def memory(cls) -> Self:
        """An outbox that is gone when it is closed, for tests and simulation."""
        return cls._prepared(sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False), "memory")

    @classmethod
    def from_dump(cls, data: bytes) -> Self:
        """A memory outbox with the content of a dump()."""
        db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            db.deserialize(data)
        except sqlite3.Error as error:
            db.close()
            raise database.refusal(error, "dump", "read it") from error
        return cls._prepared(db, "dump")

    @classmethod
    def _prepared(cls, db: sqlite3.Connection, where: str) -> Self:
        try:
            db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            _prepare(db, where)
        except sqlite3.Error as error:
            db.close()
            raise database.refusal(error, where, "open the database") from error
        except StoreError:
            db.close()
            raise
        return cls(db, where)

    def dump(self) -> bytes:
        """The whole database as octets, for from_dump()."""
        with self._told("copy"):
            data = self._db.serialize()
        # A database in memory cannot have a write-ahead log: octets 18 and 19 of the header say which kind it is.
        return data[:18] + b"\x01\x01" + data[20:]

    def close(self) -> None:
        """Close the connection; what was applied is on the disk already."""
        self._db.close()

    def apply(self, writes: Sequence[Write]) -> None:
        """Commit a batch: everything in the order given, or nothing. When it returns it is on the disk.

        StoreError when nothing of it was done; with `full` the same batch may be tried again. A row that is not the
        next one, or a reply to another row than the lowest unsettled one, is refused: memory would not be the disk.
        """
        if not writes:
            return
        with self._transaction("write"):
            first, last = self._db.execute("SELECT first, last FROM book").fetchone()
            runs = _Runs()
            for write in writes:
                match write:
                    case AddRow():
                        last += 1
                        self._expect("row", write.row, last)
                        runs.add(_ADD_ROW, (write.row, write.id, write.op, write.args, write.body, write.at))
                    case SettleRow():
                        self._expect("reply to row", write.row, first if first <= last else -1)
                        first += 1
                        runs.add(_SETTLE_ROW, (write.row, write.code, write.result, write.text, write.at))
                    case PutBook(book):
                        kept = (book.ob, book.base, book.name, book.term, book.store, book.seq, book.chain)
                        runs.add(_PUT_BOOK, kept)
                        if book.seq and self._db.execute(_PUT_HEAD, (book.store, book.seq, book.chain)).rowcount:
                            self._db.execute(_OLD_HEADS, (HEADS_KEPT,))
                    case PutShown(ident, shown):
                        runs.add(_PUT_SHOWN, (ident, shown.state, shown.path, shown.proof, shown.at, shown.told))
                    case DropShown(ident):
                        runs.add(_DROP_SHOWN, (ident,))
                    case _:
                        assert_never(write)
            for sql, rows in runs:
                self._db.executemany(sql, rows)
            self._db.execute("UPDATE book SET first = ?, last = ?", (first, last))
        self._remember(writes)

    def load(self, new_ob: Callable[[], str]) -> Book:
        """The Book as of the last apply(). The first time it is made, with an outbox id from `new_ob`.

        Of the ledger come the newest LEDGER_KEPT lines and every older one the broker was not told, oldest first.
        """
        sql = "SELECT ob, base, first, last, name, term, store, seq, chain FROM book"
        with self._told("read"):
            book = Book(*self._db.execute(sql).fetchone())
        if not book.ob:
            book.ob = new_ob()
            self.apply([PutBook(book)])
        with self._told("read"):
            sql = f"{_LEDGER}, ident FROM ledger WHERE line > {_BEYOND} OR told = 0 ORDER BY line"
            for *line, ident in self._db.execute(sql, (LEDGER_KEPT,)):
                book.ledger[ident] = _shown(*line)
        return book

    def row(self, row: int) -> StoredRow:
        """One row; from memory while it is fresh. StoreError when it is not there (any more)."""
        fresh = self._fresh.get(row)
        if fresh is not None:
            return self._stored((row, fresh.id, fresh.op, fresh.args, fresh.body, fresh.at, None, b"\x80", "", 0))
        found = self._find("WHERE r.row = ?", row)
        if not found:
            raise StoreError(f"{self._where}: has no row {row}")
        return found[0]

    def find(self, row: int) -> StoredRow | None:
        """As row(), but None when it is not kept any more."""
        found = self._find("WHERE r.row = ?", row)
        return found[0] if found else None

    def by_id(self, message_id: str) -> StoredRow | None:
        """The row with this id; None when it was never ours, or settled longer than seven days ago."""
        found = self._find("WHERE r.id = ? ORDER BY r.row DESC LIMIT 1", message_id)
        return found[0] if found else None

    def recent(self, limit: int) -> list[StoredRow]:
        """The newest rows, newest first, at most `limit`."""
        return self._find("ORDER BY r.row DESC LIMIT ?", limit)

    def tidy(self, now: int, limit: int = 200) -> bool:
        """Remove at most `limit` rows that were settled more than seven days before `now` (ms since 1970), and as
        many lines of the ledger beyond 4 × LEDGER_KEPT, of which those the broker was not told stay.

        True when there is more. Unsettled rows stay whatever their age. Without anything to do nothing is written.
        """
        with self._told("read"):
            sql = "SELECT row FROM replies WHERE at < ? ORDER BY at LIMIT ?"
            rows = self._db.execute(sql, (now - KEPT_MS, limit)).fetchall()
            sql = f"SELECT line FROM ledger WHERE line <= {_BEYOND} AND told = 1 ORDER BY line LIMIT ?"
            lines = self._db.execute(sql, (LEDGER_ON_DISK, limit)).fetchall()
        if rows or lines:
            with self._transaction("tidy"):
                self._db.executemany("DELETE FROM rows WHERE row = ?", rows)
                self._db.executemany("DELETE FROM replies WHERE row = ?", rows)
                self._db.executemany("DELETE FROM ledger WHERE line = ?", lines)
        return limit in (len(rows), len(lines))

    def _find(self, where: str, value: int | str) -> list[StoredRow]:
        with self._told("read"):
            found = self._db.execute(_ROWS + where, (value,)).fetchall()
        return [self._stored(row) for row in found]

    def _stored(self, row: tuple[Any, ...]) -> StoredRow:
        number, ident, op, args, body, at, code, result, text, settled_at = row
        try:
            plain = [wire.unpack(packed, PLAIN_MAX) for packed in (args, result)]
        except RemoteError as error:
            raise StoreError(f"{self._where}: row {number} is damaged: {error} {database.AWAY}") from error
        return StoredRow(number, ident, op, plain[0], body, at, code, plain[1], text, settled_at)

    def _expect(self, what: str, number: int, expected: int) -> None:
        if number != expected:
            raise StoreError(f"{self._where}: {what} {number} is out of order (this is a fault in talkbus)")

    def _remember(self, writes: Sequence[Write]) -> None:
        """Only after the commit: what failed must not be found."""
        for write in writes:
            if isinstance(write, AddRow):
                self._fresh[write.row] = write
                self._fresh_octets += _octets(write)
            elif isinstance(write, SettleRow):
                self._forget(write.row)
        while self._fresh_octets > CACHE_MAX:
            self._forget(next(iter(self._fresh)))

    def _forget(self, row: int) -> None:
        old = self._fresh.pop(row, None)
        if old is not None:
            self._fresh_octets -= _octets(old)

    def _told(self, doing: str) -> AbstractContextManager[None]:
        return database.told(self._where, doing)

    def _transaction(self, doing: str) -> AbstractContextManager[None]:
        return database.transaction(self._db, self._where, doing)


def remembered(path: Path) -> list[tuple[str, int, str]]:
    """The ends of journals that an agent.db remembers, oldest first: store, number and chain. Reads only, also while
    an agent has it. StoreError when it cannot be read.
    """
    where = str(path)
    with database.told(where, "read"):
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            version = database.version(db, where, APPLICATION, VERSION)
            table = "heads ORDER BY row" if version > 1 else "book WHERE seq > 0"
            return [tuple(row) for row in db.execute(f"SELECT store, seq, chain FROM {table}")] if version else []
        finally:
            db.close()


class _Runs(list[tuple[str, list[tuple[Any, ...]]]]):
    """Statements in order, those of one kind that follow each other as one: a batch is mostly rows of one kind."""

    def add(self, sql: str, row: tuple[Any, ...]) -> None:
        """One more."""
        if self and self[-1][0] is sql:
            self[-1][1].append(row)
        else:
            self.append((sql, [row]))


def _shown(state: str, path: str, proof: str, at: int, told: int) -> Shown:
    return Shown(state, path, proof, at, bool(told))


def _octets(row: AddRow) -> int:
    return len(row.args) + len(row.body) + CACHE_ENTRY


def _prepare(db: sqlite3.Connection, where: str) -> None:
    """Bring an open database to the present schema, or refuse it, untouched."""
    version = database.version(db, where, APPLICATION, VERSION)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")  # what was told after the commit is on the disk
    if version == VERSION:
        return
    with database.transaction(db, where, "open the database"):
        for statements in _MIGRATIONS[version:]:
            for statement in statements.split(";\n"):
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute(f"PRAGMA user_version = {VERSION}")
