"""SQLite files of ours: how one is made and recognised, what its errors mean, a transaction that is whole or nothing.

Knows SQLite and the file system; it must not know any table.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bus.errors import StoreError

AWAY = "(move the file away; a new one is made at the next start)"

# What room or time cures. A write that fails for another reason than ENOSPC (a quota, a limit on file size, a device
# that went away for a moment) comes as one of the IOERR codes.
_CURABLE = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_CURABLE_WRITES = frozenset(
    {
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_FSYNC,
        sqlite3.SQLITE_IOERR_SHMSIZE,
        sqlite3.SQLITE_IOERR_TRUNCATE,
    }
)
_BROKEN = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT})


def refusal(error: sqlite3.Error, where: str, doing: str) -> StoreError:
    """The StoreError for what SQLite said: one line with the file and the mend, `full` when time or room cures it."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code & 0xFF in _CURABLE or code in _CURABLE_WRITES:
        return StoreError(f"{where}: cannot {doing}: {error} (free some disk space, make it writable)", full=True)
    if code & 0xFF in _BROKEN:
        return StoreError(f"{where}: cannot {doing}: {error} {AWAY}")
    return StoreError(f"{where}: cannot {doing}: {error} (check the disk and the file's permissions)")


def create(path: Path) -> None:
    """Make the file, empty and 0600 from its first byte, unless it is there. StoreError when that cannot be."""
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    try:
        os.close(os.open(path, flags, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None), errno.EROFS)
        raise StoreError(f"{path}: cannot be made: {error.strerror} (check '{path.parent}')", full=full) from error


def version(db: sqlite3.Connection, where: str, application: int, newest: int) -> int:
    """The schema of an open database, 0 for an empty one; StoreError for another program's, or beyond `newest`."""
    found = int(db.execute("PRAGMA user_version").fetchone()[0])
    owner = int(db.execute("PRAGMA application_id").fetchone()[0])
    used = db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None
    if owner != application and (used or owner or found):
        raise StoreError(f"{where}: is another program's database {AWAY}")
    if found > newest:
        raise StoreError(
            f"{where}: has schema {found}, this talkbus knows up to {newest} (upgrade talkbus, or move the file away)"
        )
    return found


@contextmanager
def told(where: str, doing: str) -> Iterator[None]:
    """Whatever SQLite raises in here becomes a StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        raise refusal(error, where, doing) from error


@contextmanager
def transaction(db: sqlite3.Connection, where: str, doing: str) -> Iterator[None]:
    """What is written in here is on the disk afterwards, or nothing of it is and StoreError says why."""
    with told(where, doing):
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except (OverflowError, UnicodeEncodeError) as error:
            raise StoreError(f"{where}: cannot {doing}: {error} (this is a fault in talkbus)") from error
        finally:
            # After a full disk SQLite may have rolled back by itself.
            if db.in_transaction:
                db.execute("ROLLBACK")
