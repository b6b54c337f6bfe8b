"""A look at the database of a broker that does not run: could it be opened? Changes nothing, and makes no file.

Knows the schema's version; it must not know what the rows mean.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from bus import database
from bus.store_schema import APPLICATION, MIGRATIONS

_READ = ("SELECT count(*) FROM meta", "SELECT count(*) FROM mailboxes", "SELECT max(row) FROM messages")


def look(path: Path) -> None:
    """StoreError, with the mend, where a start would end with one. Nothing where there is no file."""
    if not path.exists():
        return
    # Without a log beside it SQLite would make one, and leave it there.
    aside = "" if path.with_name(path.name + "-wal").exists() else "&immutable=1"
    where = f"{path.resolve().as_uri()}?mode=ro{aside}"
    with database.told(str(path), "open the database"), closing(sqlite3.connect(where, uri=True)) as db:
        if database.version(db, str(path), APPLICATION, len(MIGRATIONS)):
            for statement in _READ:
                db.execute(statement).fetchone()
