"""A store with a past, made by SQL in the broker's own file while no broker runs: what would take hours to send.

Every row is as if it had been sent, delivered and shown: message, delivery, operation with its place in the journal,
and entry of the search index. Only the digests and the chain of the journal are random. Where the store has the
mailboxes of a fleet already, the past is theirs: what is measured then is measured in a mailbox that has one.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from bench.system import RECIPIENT, sender_name
from bus import wire
from bus.store import Store
from bus.store_schema import STEP

_DAYS = 10
_COUNT = "WITH RECURSIVE n(i) AS (SELECT :first UNION ALL SELECT i + 1 FROM n WHERE i < :last) "
_MESSAGES = (
    _COUNT
    + "INSERT INTO messages (row, id, sender, name, host, key, kind, tag, re, thread, ts, expires, hops, size, "
    "body) SELECT i, lower(hex(randomblob(8))), :sender, 'past', 'old-host', 'key', "
    "'note', '', '', '', :since + i * :step, 0, 0, 120, CAST(printf("
    "'message %07d speaks of topic%d and of word%d; the rest of it is there to have a common length', "
    "i, i % 997, (i * 7919) % 20011) AS BLOB) FROM n"
)
_DELIVERIES = (
    _COUNT + "INSERT INTO deliveries (mailbox, n, msg, name, step, open, stored_at, injected_at, injected_proof) "
    f"SELECT :recipient, :n + i, i, 'later', {STEP['injected']}, 0, :since + i * :step, :since + i * :step, 'bench' "
    "FROM n"
)
_OPS = (
    _COUNT + "INSERT INTO ops SELECT i, :since + i * :step, :ob, i, 'send', randomblob(16), randomblob(16), 200, "
    ":reply, 'past@old-host' FROM n"
)
OB = "0" * 32


def fill(path: Path, count: int, *, indexed: bool = True) -> float:
    """Add `count` messages to the store at `path`, made when it is not there; returns how many seconds it took.

    With `indexed` off search does not know them yet, and the broker has that to do.
    """
    began = time.monotonic()
    Store.open(path).close()
    with sqlite3.connect(path, isolation_level=None) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -200000")
        first = int(db.execute("SELECT coalesce(max(row), 0) FROM messages").fetchone()[0]) + 1
        last = first + count - 1
        now = int(time.time() * 1000)
        span = _DAYS * 86_400_000
        reply = wire.pack([{"to": [{"name": "later", "host": "old-host", "status": "stored", "code": 200}]}, ""])
        values = {"first": first, "last": last, "since": now - span, "step": max(1, span // (last + 1))}
        db.execute("BEGIN")
        values["sender"] = _mailbox(db, sender_name(0), "aaaaaaaa", now - span)
        values["recipient"] = _mailbox(db, RECIPIENT, "bbbbbbbb", now - span)
        sql = "SELECT top FROM mailboxes WHERE id = ?"
        values["n"] = db.execute(sql, (values["recipient"],)).fetchone()[0] + 1 - first
        db.execute("UPDATE mailboxes SET top = top + ? WHERE id = ?", (count, values["recipient"]))
        db.execute(
            "INSERT OR REPLACE INTO outboxes (id, key, high, floor) VALUES (?, 'key', ?, ?)", (OB, last, last + 1)
        )
        for sql in (_MESSAGES, _DELIVERIES):
            db.execute(sql, values)
        top = int(db.execute("SELECT coalesce(max(seq), 0) FROM ops").fetchone()[0])
        ops = {**values, "first": top + 1, "last": top + count, "ob": OB, "reply": reply}
        db.execute(_OPS, ops)
        if indexed:
            db.execute(
                "INSERT INTO search (rowid, name, tag, body) SELECT row, name, tag, body FROM messages "
                "WHERE row >= ?",
                (first,),
            )
            db.execute("UPDATE meta SET value = ? WHERE name = 'indexed'", (last,))
            db.execute("INSERT INTO search (search) VALUES ('optimize')")  # as the broker's slices leave it in time
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    db.close()
    return time.monotonic() - began


def _mailbox(db: sqlite3.Connection, name: str, ident: str, active: int) -> str:
    """The id of the mailbox of this name; one of another time is made where there is none."""
    found = db.execute("SELECT id FROM mailboxes WHERE name = ?", (name,)).fetchone()
    if found:
        return str(found[0])
    sql = "INSERT INTO mailboxes (id, key, host, name, term, inst, top, active, meta) "
    row = (ident, "key", "old-host", name, 1, "", 0, active, "{}")
    db.execute(sql + "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    return ident
