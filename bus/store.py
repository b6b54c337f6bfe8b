"""The broker's disk: one SQLite file that takes a batch whole or not at all and gives the World back after any crash.

With its parts (store_schema, store_writes, store_reads, store_upkeep) the only importer of sqlite3 in the broker. It
must not know routes, windows, roles beyond `Read.role`, or when anything is due: the core decides, the shell calls.
One thread at a time may use a Store; another thread takes a reader().
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from bus.database import create, refusal, told, transaction
from bus.effects import AddMessage, MoveById, Read, Resolved, Write
from bus.errors import StoreError
from bus.private import private_file
from bus.store_reads import answer, marks
from bus.store_schema import STEP, connect, prepare
from bus.store_upkeep import Pruner, index_some, merge_some, meta
from bus.store_writes import BY_ID, MOVE, Plan
from bus.world import Entry, Mailbox, Outbox, Pending, Rule, Saved, World

log = logging.getLogger("talkbus.broker")

EVER = 1 << 53  # later than any time
CACHE_MAX = 32 << 20  # octets of fresh texts kept for the pushes that follow a commit
CACHE_ENTRY = 1024  # what an entry costs beside its text, about

_PENDING = (
    "SELECT d.mailbox, d.n, m.id, m.sender, m.kind, m.size, m.expires, "
    "CASE WHEN d.offered_at IS NOT NULL THEN 'offered' WHEN d.stored_at IS NULL THEN 'held' ELSE 'stored' END, "
    "d.quiet, CASE WHEN d.stored_at IS NULL THEN coalesce(d.held_proof, '') ELSE '' END, "
    "coalesce(d.held_at, d.stored_at), m.re "
    "FROM deliveries d INDEXED BY deliveries_open JOIN messages m ON m.row = d.msg WHERE d.open = 1 "
    "ORDER BY d.mailbox, d.n"
)
_SAVED = (
    "SELECT b.id, o.q, o.digest, o.code, o.reply FROM outboxes b "
    "JOIN ops o ON o.ob = b.id AND o.q BETWEEN b.floor AND b.high ORDER BY b.row, o.q"
)

_NAMED = {
    # By itself SQLite would look through the whole mailbox for it.
    status: f"SELECT m.row, m.sender, m.name, m.host, m.kind, d.n, d.{status}_at IS NULL, "
    "d.offered_at IS NOT NULL OR d.injected_at IS NOT NULL "
    "FROM messages m CROSS JOIN deliveries d INDEXED BY deliveries_msg ON d.msg = m.row "
    "WHERE m.id = ? AND ? IN ('', m.host) AND ? IN ('', m.sender) AND d.mailbox = ? "
    # Nobody can have been shown what is held, or was dropped while it was; an agent that says so speaks of a copy
    # that the disk no longer knows.
    "AND d.stored_at IS NOT NULL"
    for status in STEP
}
_ONLY_OFFERED = ("acked", "failed")


class Store:
    """One database. Made by open(), memory() or from_dump(); any method raises StoreError for what the disk says."""

    def __init__(self, db: sqlite3.Connection, path: Path | None, *, owner: bool = True) -> None:
        self._db = db
        self._path = path
        self._where = str(path) if path else "memory"
        self._owner = owner
        self._fresh: OrderedDict[tuple[str, str], AddMessage] = OrderedDict()
        self._fresh_octets = 0
        self._pruner = Pruner()
        with self._told("read"):
            # Rows of messages are never used twice, or the index would take a new one for an old one.
            top = db.execute("SELECT coalesce(max(row), 0) FROM messages").fetchone()[0]
            self._row = max(int(top), meta(db, "indexed")) + 1

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the file, made 0600 with the present schema when it is not there.

        StoreError, with the mend, for what is no database, another program's, or of a newer talkbus; ConfigError for
        a symlink, or somebody else's file. One that stands open to others is closed, and the log says so.
        """
        create(path)
        for file in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
            if os.path.lexists(file) and private_file(file):
                log.warning("! %s stood open to others; it is closed now, but may have been read", file)
        db: sqlite3.Connection | None = None
        try:
            db = connect(str(path))
            prepare(db, str(path))
            return cls(db, path)
        except sqlite3.Error as error:
            if db:
                db.close()
            raise refusal(error, str(path), "open the database") from error
        except StoreError:
            if db:
                db.close()
            raise

    @classmethod
    def memory(cls) -> Self:
        """A store that is gone when it is closed, for tests and simulation."""
        db = connect(":memory:")
        prepare(db, "memory")
        return cls(db, None)

    @classmethod
    def from_dump(cls, data: bytes) -> Self:
        """A memory store with the content of a dump()."""
        db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            db.deserialize(data)
            prepare(db, "dump")
        except sqlite3.Error as error:
            db.close()
            raise refusal(error, "dump", "read it") from error
        return cls(db, None)

    def dump(self) -> bytes:
        """The whole database as octets, for from_dump()."""
        with self._told("copy"):
            data = self._db.serialize()
        # A database in memory cannot have a write-ahead log: octets 18 and 19 of the header say which kind it is.
        return data[:18] + b"\x01\x01" + data[20:]

    def reader(self) -> Store:
        """A second connection, which only reads, for slow queries in another thread; to be closed there.

        A memory store gives itself over, in the same thread.
        """
        if self._path is None:
            return Store(self._db, None, owner=False)
        try:
            return Store(connect(str(self._path), readonly=True), self._path)
        except sqlite3.Error as error:
            raise refusal(error, self._where, "open a reader") from error

    def close(self) -> None:
        """Close the connection; what was applied is on the disk already."""
        if self._owner:
            self._db.close()

    def apply(self, writes: Sequence[Write]) -> list[Resolved]:
        """Commit a batch: everything in the order given, or nothing. When it returns it is on the disk.

        What became of each MoveById is told, in their order.

        StoreError when nothing of it was done; with `full` the same batch may be tried again. The store stays usable.
        """
        if not writes:
            return []
        try:
            return self._apply(writes, careful=False)
        except StoreError as error:
            # Likely a message that is there already: then the first stays, which takes a look at every one.
            if not isinstance(error.__cause__, sqlite3.IntegrityError):
                raise
            return self._apply(writes, careful=True)

    def _apply(self, writes: Sequence[Write], careful: bool) -> list[Resolved]:
        resolved: list[Resolved] = []
        with self._transaction("write"):
            plan = Plan(self._row, self._row_of, careful=careful)
            plan.add(writes)
            for sql, rows in plan.runs():
                if sql is BY_ID:
                    resolved += [_resolve(self._db, move) for (move,) in rows]
                elif len(rows) == 1:
                    self._db.execute(sql, rows[0])
                else:
                    self._db.executemany(sql, rows)
        self._row = plan.row
        for message in plan.fresh:
            self._keep(message)
        return resolved

    def load(self) -> World:
        """The working set as it was at the last commit: pending deliveries by number, replies of floor…high."""
        with self._told("read"):
            row = self._db.execute("SELECT value FROM meta WHERE name = 'store'").fetchone()
            world = World(store=row[0], prune_before=meta(self._db, "prune_before"))
            head = self._db.execute("SELECT seq, chain FROM ops ORDER BY seq DESC LIMIT 1").fetchone()
            if head:
                world.seq, world.chain = head
            columns = "id, key, host, name, term, inst, top, active, meta"
            lives = "life, pushed, pushed_quiet, former, former_quiet"
            for row in self._db.execute(f"SELECT {columns}, {lives} FROM mailboxes ORDER BY row"):
                mailbox = world.mailboxes[row[0]] = Mailbox(*row[:8])
                mailbox.meta = json.loads(row[8])
                mailbox.life, mailbox.pushed, mailbox.pushed_quiet, mailbox.former, mailbox.former_quiet = row[9:]
            for box, n, msg, sender, kind, size, expires, status, quiet, why, ts, re in self._db.execute(_PENDING):
                pending = Pending(n, msg, sender, kind, size, expires, status, bool(quiet), why, ts, re)
                mailbox = world.mailboxes[box]
                (mailbox.held if pending.status == "held" else mailbox.pending)[pending.n] = pending
            for fields in self._db.execute("SELECT id, key, high, floor FROM outboxes ORDER BY row"):
                world.outboxes[fields[0]] = Outbox(*fields)
            for ob, q, digest, code, reply in self._db.execute(_SAVED):
                world.outboxes[ob].saved[q] = Saved(digest, code, reply)
            columns = "key, ver, by, project, ts, expires, size"
            for fields in self._db.execute(f"SELECT {columns} FROM state ORDER BY row"):
                world.state[fields[0]] = Entry(*fields)
            for fields in self._db.execute("SELECT key, machine, name, kind, action, ts FROM policy ORDER BY row"):
                rule = Rule(*fields)
                world.policy.setdefault(rule.key, {})[rule.about] = rule
            world.paused = dict(self._db.execute("SELECT key, since FROM paused"))
        return world

    def message(self, sender: str, msg_id: str) -> AddMessage:
        """A message as it was written; fresh ones are at hand. StoreError when it was pruned, or never was."""
        fresh = self._fresh.get((sender, msg_id))
        if fresh is not None:
            return fresh
        columns = "id, sender, name, host, key, kind, tag, re, thread, ts, expires, hops, body, ask"
        with self._told("read"):
            sql = f"SELECT {columns} FROM messages WHERE id = ? AND sender = ?"
            row = self._db.execute(sql, (msg_id, sender)).fetchone()
        if row is None:
            raise StoreError(f"{self._where}: no message {msg_id} of {sender}")
        return AddMessage(*row)

    def marks(self, message: AddMessage, mailbox: str, now: int) -> tuple[int, int]:
        """`ask` and `answer` of the copy of a message in a mailbox (PROTOCOL.md §7), as of `now` in ms since 1970."""
        with self._told("read"):
            return marks(self._db, message.id, message.ask, message.re, message.sender, mailbox, now)

    def recall(self, ob: str, q: int) -> Saved | None:
        """The reply of a request done long ago, from the journal; None when it was pruned or never done."""
        with self._told("read"):
            sql = "SELECT digest, code, reply FROM ops WHERE ob = ? AND q = ?"
            row = self._db.execute(sql, (ob, q)).fetchone()
        return Saved(*row) if row else None

    def read(self, read: Read, now: int) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Values and bodies of the PARTs that answer a query (PROTOCOL §11); `now` in ms since 1970.

        Refused (403, 404, 409, 422) comes from this call, not while the answer is taken. None at all means 204.
        """
        with self._told("read"):
            parts = answer(self._db, read, now)
        return self._taken(parts)

    def indexed(self) -> tuple[int, int]:
        """How many messages search knows, of how many there are."""
        with self._told("read"):
            total = self._db.execute("SELECT count(*) FROM messages").fetchone()[0]
            sql = "SELECT count(*) FROM messages WHERE row > (SELECT value FROM meta WHERE name = 'indexed')"
            left = self._db.execute(sql).fetchone()[0]
        return total - left, total

    def index_piece(self, limit: int = 200) -> int:
        """Let search know the next messages, at most `limit` or about 256 KiB of text; returns how many."""
        if not self._owed("SELECT 1 FROM messages WHERE row > (SELECT value FROM meta WHERE name = 'indexed')"):
            return 0
        with self._transaction("index"):
            return index_some(self._db, limit)

    def merge_piece(self) -> bool:
        """Merge some of what index_piece() and prune_piece() wrote for search; True when there is more."""
        with self._transaction("index"):
            return merge_some(self._db)

    def newest(self, before: int) -> int:
        """When the newest message not newer than `before` was written, ms since 1970; 0 where there is none."""
        with self._told("read"):
            row = self._db.execute("SELECT coalesce(max(ts), 0) FROM messages WHERE ts <= ?", (before,)).fetchone()
            return int(row[0])

    def prune_piece(self, limit: int = 100, reach: int = EVER) -> bool:
        """Look at the next `limit` messages (or 256 KiB) or operations older than `prune_before` and `reach`; what
        may go goes.

        True when there is more; after False the next call begins anew. Unsettled mail and replies at or above an
        outbox's floor stay, whatever their age.
        """
        if not self._owed("SELECT 1 FROM meta WHERE name = 'prune_before' AND value > 0"):
            return False
        try:
            with self._transaction("prune"):
                return self._pruner.piece(self._db, limit, reach)
        except StoreError:
            self._pruner = Pruner()
            raise

    def sizes(self) -> dict[str, int]:
        """Counts of messages and deliveries, and the octets of the file with its log."""
        with self._told("read"):
            messages = self._db.execute("SELECT count(*) FROM messages").fetchone()[0]
            deliveries = self._db.execute("SELECT count(*) FROM deliveries").fetchone()[0]
            pages = self._db.execute("PRAGMA page_count").fetchone()[0]
            octets = pages * self._db.execute("PRAGMA page_size").fetchone()[0]
        if self._path:
            files = (self._path, self._path.with_name(self._path.name + "-wal"))
            octets = sum(file.stat().st_size for file in files if file.exists())
        return {"messages": messages, "deliveries": deliveries, "octets": octets}

    def checkpoints(self) -> list[dict[str, Any]]:
        """What was cut off the journal, oldest first: the last operation that went, its chain and time, how many."""
        with self._told("read"):
            rows = self._db.execute("SELECT seq, chain, at, removed FROM checkpoints ORDER BY row").fetchall()
        return [dict(zip(("seq", "chain", "at", "removed"), row, strict=True)) for row in rows]

    def _row_of(self, sender: str, msg_id: str) -> int | None:
        sql = "SELECT row FROM messages WHERE id = ? AND sender = ?"
        row = self._db.execute(sql, (msg_id, sender)).fetchone()
        return int(row[0]) if row else None

    def _owed(self, sql: str) -> bool:
        with self._told("read"):
            return self._db.execute(sql + " LIMIT 1").fetchone() is not None

    def _keep(self, message: AddMessage) -> None:
        former = self._fresh.pop((message.sender, message.id), None)
        if former is not None:
            self._fresh_octets -= len(former.body) + CACHE_ENTRY
        self._fresh[message.sender, message.id] = message
        self._fresh_octets += len(message.body) + CACHE_ENTRY
        while self._fresh_octets > CACHE_MAX:
            _, old = self._fresh.popitem(last=False)
            self._fresh_octets -= len(old.body) + CACHE_ENTRY

    def _taken(self, parts: Iterator[tuple[dict[str, Any], bytes]]) -> Iterator[tuple[dict[str, Any], bytes]]:
        with self._told("read"):
            yield from parts

    def _told(self, doing: str) -> AbstractContextManager[None]:
        return told(self._where, doing)

    def _transaction(self, doing: str) -> AbstractContextManager[None]:
        return transaction(self._db, self._where, doing)


def _resolve(db: sqlite3.Connection, w: MoveById) -> Resolved:
    """Carry out a step that is told by the id of a message, which is the sender's choice: it counts where it names
    exactly one message of this mailbox, whatever was offered. A restored database may not know which of several was.
    """
    found = db.execute(_NAMED[w.status], (w.msg, w.host, w.sender, w.mailbox)).fetchall()
    if not found:
        return Resolved(w, "unknown")
    if len({row[0] for row in found}) != 1:
        return Resolved(w, "ambiguous")
    if w.status != "offered":
        offered = [row for row in found if row[7]]
        if not offered and w.status in _ONLY_OFFERED:
            return Resolved(w, "not offered")
        found = offered or found
    fresh = tuple(row[5] for row in found if row[6])
    db.executemany(MOVE[w.status, False], [(w.proof, w.ts, w.mailbox, n) for n in fresh])
    return Resolved(w, "", fresh, *found[0][1:5])
