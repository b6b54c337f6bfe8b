"""The broker's database: its schema and migrations, and how it is opened.

Knows SQLite and the file system. It must not know what a message is for, and reads or writes no row of mail.
"""

from __future__ import annotations

import secrets
import sqlite3
from pathlib import Path

from bus import database

APPLICATION = 0x54425553  # "TBUS", so that another program's database is not taken for ours
BUSY_MS = 250  # the broker is the only writer; whoever else locks the file may hold up the loop no longer than this
CACHE_KIB = 16384
CHECKPOINT_PAGES = 4000  # about 16 MiB of log: fewer, larger copies into the database
LOG_MAX = 64 << 20  # octets a log that once grew is cut back to

# The steps of a delivery. Order is what `status` may only climb; `expired` and `failed` stand on one rung.
LADDER = ("held", "stored", "offered", "expired", "failed", "injected", "acked", "answered")
STEP = {name: step for step, name in enumerate(LADDER)}
BELOW = {**STEP, "failed": STEP["expired"]}  # a step is climbed to from below this one

_V1 = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE mailboxes (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, key TEXT NOT NULL, host TEXT NOT NULL,
  name TEXT NOT NULL, term INTEGER NOT NULL, inst TEXT NOT NULL, top INTEGER NOT NULL, active INTEGER NOT NULL,
  meta TEXT NOT NULL);
CREATE INDEX mailboxes_key ON mailboxes (key);
CREATE TABLE outboxes (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, key TEXT NOT NULL, high INTEGER NOT NULL,
  floor INTEGER NOT NULL);
CREATE TABLE ops (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, ob TEXT NOT NULL, q INTEGER NOT NULL,
  op TEXT NOT NULL, digest BLOB NOT NULL, chain BLOB NOT NULL, code INTEGER NOT NULL, reply BLOB NOT NULL,
  who TEXT NOT NULL, UNIQUE (ob, q));
CREATE TABLE checkpoints (row INTEGER PRIMARY KEY, seq INTEGER NOT NULL, chain BLOB NOT NULL, at INTEGER NOT NULL,
  removed INTEGER NOT NULL);
CREATE TABLE messages (row INTEGER PRIMARY KEY, id TEXT NOT NULL, sender TEXT NOT NULL, name TEXT NOT NULL,
  host TEXT NOT NULL, key TEXT NOT NULL, kind TEXT NOT NULL, tag TEXT NOT NULL, re TEXT NOT NULL,
  thread TEXT NOT NULL, ts INTEGER NOT NULL, expires INTEGER NOT NULL, hops INTEGER NOT NULL,
  size INTEGER NOT NULL, body BLOB NOT NULL, UNIQUE (id, sender));
CREATE INDEX messages_ts ON messages (ts);
CREATE TABLE deliveries (mailbox TEXT NOT NULL, n INTEGER NOT NULL, msg INTEGER NOT NULL, name TEXT NOT NULL,
  step INTEGER NOT NULL, open INTEGER NOT NULL DEFAULT 1,
  held_at INTEGER, held_proof TEXT, stored_at INTEGER, stored_proof TEXT, offered_at INTEGER, offered_proof TEXT,
  expired_at INTEGER, expired_proof TEXT, failed_at INTEGER, failed_proof TEXT, injected_at INTEGER,
  injected_proof TEXT, acked_at INTEGER, acked_proof TEXT, answered_at INTEGER, answered_proof TEXT,
  PRIMARY KEY (mailbox, n)) WITHOUT ROWID;
CREATE INDEX deliveries_msg ON deliveries (msg);
CREATE INDEX deliveries_open ON deliveries (mailbox, n) WHERE open = 1;
CREATE TABLE refusals (row INTEGER PRIMARY KEY, sender TEXT NOT NULL, msg TEXT NOT NULL, name TEXT NOT NULL,
  host TEXT NOT NULL, code INTEGER NOT NULL, text TEXT NOT NULL, ts INTEGER NOT NULL);
CREATE INDEX refusals_msg ON refusals (msg, sender);
CREATE TABLE state (row INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, ver INTEGER NOT NULL, by TEXT NOT NULL,
  project TEXT NOT NULL, ts INTEGER NOT NULL, expires INTEGER NOT NULL, size INTEGER NOT NULL, value BLOB NOT NULL);
CREATE VIRTUAL TABLE search USING fts5 (name, tag, body, content='messages', content_rowid='row',
  tokenize='unicode61 remove_diacritics 2')
"""

# Trust: the policy, the pause, deliveries that start nothing. A checkpoint names the first operation it covers (0: of
# an older talkbus, anything up to `seq`). `audited` is the operation after which the chain covers the whole record.
_V2 = """
CREATE TABLE policy (row INTEGER PRIMARY KEY, key TEXT NOT NULL, machine TEXT NOT NULL, name TEXT NOT NULL,
  kind TEXT NOT NULL, action TEXT NOT NULL, ts INTEGER NOT NULL, UNIQUE (key, machine, name, kind));
CREATE TABLE paused (key TEXT PRIMARY KEY, since INTEGER NOT NULL) WITHOUT ROWID;
ALTER TABLE deliveries ADD COLUMN quiet INTEGER NOT NULL DEFAULT 0;
ALTER TABLE checkpoints ADD COLUMN first INTEGER NOT NULL DEFAULT 0;
INSERT INTO meta VALUES ('audited', (SELECT coalesce(max(seq), 0) FROM ops))
"""

# By itself the index for search merges its parts whenever one is written, up to half a second at a time in a large
# store: it is told not to, and is merged in slices (store_upkeep).
_V3 = """
INSERT INTO search (search, rank) VALUES ('automerge', 0);
INSERT INTO search (search, rank) VALUES ('crisismerge', 1000);
INSERT INTO search (search, rank) VALUES ('usermerge', 8)
"""

# What was pushed, so that what a former process of an agent may have shown is marked as that, after a restart too.
_V4 = """
ALTER TABLE mailboxes ADD COLUMN life TEXT NOT NULL DEFAULT '';
ALTER TABLE mailboxes ADD COLUMN pushed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE mailboxes ADD COLUMN pushed_quiet INTEGER NOT NULL DEFAULT 0;
ALTER TABLE mailboxes ADD COLUMN former INTEGER NOT NULL DEFAULT 0;
ALTER TABLE mailboxes ADD COLUMN former_quiet INTEGER NOT NULL DEFAULT 0
"""

MIGRATIONS = (
    _V1,
    _V2,
    _V3,
    _V4,
)  # entry i brings a database of version i to version i + 1; an entry that was released stays as is


def connect(where: str, *, readonly: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode; a transaction begins where BEGIN is written. sqlite3.Error as it comes."""
    if readonly:
        uri = f"{Path(where).resolve().as_uri()}?mode=ro"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    else:
        db = sqlite3.connect(where, isolation_level=None, check_same_thread=False)
    db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    return db


def prepare(db: sqlite3.Connection, where: str) -> None:
    """Bring an open database to the present schema. StoreError when it is another program's or too new."""
    version = database.version(db, where, APPLICATION, len(MIGRATIONS))
    # A log of 4 KiB pages synced at every commit: what was answered after the commit is on the disk.
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = OFF")
    db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    db.execute(f"PRAGMA journal_size_limit = {LOG_MAX}")
    for old in range(version, len(MIGRATIONS)):
        _migrate(db, where, old)


def _migrate(db: sqlite3.Connection, where: str, old: int) -> None:
    with database.transaction(db, where, "open the database"):
        for statement in MIGRATIONS[old].split(";\n"):
            db.execute(statement)
        if old == 0:
            db.execute("INSERT INTO meta VALUES ('store', ?)", (secrets.token_hex(16),))
            db.executemany("INSERT INTO meta VALUES (?, 0)", [("prune_before",), ("indexed",)])
            db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute(f"PRAGMA user_version = {old + 1}")
