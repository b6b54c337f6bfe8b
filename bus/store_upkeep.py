"""What goes on behind the mail, in small pieces: indexing texts for search, and pruning.

Each piece is one short transaction, so that the broker's loop is never held up for long. Knows the tables, and
decides nothing: what may go is said by `prune_before`, what is to be indexed by what was committed.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Sequence

PIECE_OCTETS = 1 << 18  # of texts taken into the index or out of it in one piece, some 20 ms
MERGE_PAGES = 16  # of the index written in one piece, some 5 ms

_NOT_INDEXED = "SELECT row, size FROM messages WHERE row > ? ORDER BY row LIMIT ?"
_INDEX = (
    "INSERT INTO search (rowid, name, tag, body) SELECT row, name, tag, body FROM messages WHERE row > ? AND row <= ?"
)
_UNINDEX = (
    "INSERT INTO search (search, rowid, name, tag, body) "
    "SELECT 'delete', row, name, tag, body FROM messages WHERE row = ? AND row <= ?"
)
_OLD = (
    "SELECT m.ts, m.row, m.id, m.sender, m.size, "
    "EXISTS (SELECT 1 FROM deliveries d WHERE d.msg = m.row AND d.open = 1) "
    "FROM messages m WHERE (m.ts, m.row) > (?, ?) AND m.ts < ? ORDER BY m.ts, m.row LIMIT ?"
)
_OLD_OPS = (
    "SELECT o.seq, o.at, o.chain, b.id IS NULL OR o.q < b.floor FROM ops o LEFT JOIN outboxes b ON b.id = o.ob "
    "WHERE o.seq > ? AND o.seq < (SELECT max(seq) FROM ops) ORDER BY o.seq LIMIT ?"
)


_CHECKPOINT = "INSERT INTO checkpoints (first, seq, chain, at, removed) VALUES (?, ?, ?, ?, ?)"


def runs(gone: Sequence[tuple[int, bytes, int]]) -> list[tuple[int, int, bytes, int, int]]:
    """Operations that go, by number, as (first, last, chain and time of the last, how many) of each unbroken run."""
    made: list[tuple[int, int, bytes, int, int]] = []
    for seq, chain, at in gone:
        if made and made[-1][1] == seq - 1:
            first, _, _, _, count = made.pop()
            made.append((first, seq, chain, at, count + 1))
        else:
            made.append((seq, seq, chain, at, 1))
    return made


def meta(db: sqlite3.Connection, name: str) -> int:
    """A number of the meta table."""
    return int(db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0])


def index_some(db: sqlite3.Connection, limit: int) -> int:
    """Index the next messages, at most `limit`; returns how many. Runs inside the caller's transaction."""
    start = last = meta(db, "indexed")
    count = octets = 0
    for row, size in db.execute(_NOT_INDEXED, (start, limit)).fetchall():
        octets += size
        if count and octets > PIECE_OCTETS:
            break
        count, last = count + 1, row
    if count:
        db.execute(_INDEX, (start, last))
        db.execute("UPDATE meta SET value = ? WHERE name = 'indexed'", (last,))
    return count


def merge_some(db: sqlite3.Connection) -> bool:
    """Merge parts of the index for search, at most MERGE_PAGES; False when there are too few parts to be worth it."""
    before = db.total_changes
    db.execute("INSERT INTO search (search, rank) VALUES ('merge', ?)", (MERGE_PAGES,))
    return db.total_changes - before >= 2  # the statement itself counts as one (SQLite FTS5, "The 'merge' Command")


class Pruner:
    """Where the pruning stands: first the mail, then the journal. A restart forgets it and looks again."""

    def __init__(self) -> None:
        self._begin(0)

    def _begin(self, before: int) -> None:
        self._before = before
        self._at = (-1, 0)
        self._seq = 0
        self._mail_done = False

    def piece(self, db: sqlite3.Connection, limit: int, reach: int) -> bool:
        """One piece inside the caller's transaction; False when all was looked at, and the next call begins anew."""
        before = min(meta(db, "prune_before"), reach)
        if before != self._before:
            self._begin(before)
        if before == 0:
            return False
        if not self._mail_done:
            self._mail_done = not self._mail(db, limit)
            return True
        if self._journal(db, limit):
            return True
        self._begin(before)
        return False

    def _mail(self, db: sqlite3.Connection, limit: int) -> bool:
        """Settled copies of old messages, and the messages of which none is left. False at the end."""
        rows: list[tuple[int, int, str, str, int, int]] = []
        octets = 0
        for row in db.execute(_OLD, (*self._at, self._before, limit)).fetchall():
            octets += row[4]
            if rows and octets > PIECE_OCTETS:
                break
            rows.append(row)
        db.executemany("DELETE FROM deliveries WHERE msg = ? AND open = 0", [(r[1],) for r in rows])
        gone = [(row, ident, sender) for _, row, ident, sender, _, is_open in rows if not is_open]
        indexed = meta(db, "indexed")
        db.executemany(_UNINDEX, [(row, indexed) for row, *_ in gone])
        db.executemany("DELETE FROM refusals WHERE msg = ? AND sender = ?", [pair for _, *pair in gone])
        db.executemany("DELETE FROM messages WHERE row = ?", [(row,) for row, *_ in gone])
        if rows:
            self._at = (rows[-1][0], rows[-1][1])
            return True
        db.execute(
            "DELETE FROM refusals WHERE ts < ? AND NOT EXISTS "
            "(SELECT 1 FROM messages WHERE id = msg AND sender = refusals.sender)",
            (self._before,),
        )
        return False

    def _journal(self, db: sqlite3.Connection, limit: int) -> bool:
        """Operations up to the first that is not old, but the newest and those whose reply may be asked for."""
        rows = db.execute(_OLD_OPS, (self._seq, limit)).fetchall()
        old = list(itertools.takewhile(lambda row: row[1] < self._before, rows))
        gone = [(seq, chain, at) for seq, at, chain, free in old if free]
        if gone:
            # What is cut off stays provable: for each run the chain up to its last, on which the next record stands.
            db.executemany(_CHECKPOINT, runs(gone))
            db.executemany("DELETE FROM ops WHERE seq = ?", [(seq,) for seq, _, _ in gone])
        if old:
            self._seq = old[-1][0]
        return bool(old)
