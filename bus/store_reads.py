"""The queries of PROTOCOL.md §11 that the disk answers: who may see what, and the value of every PART.

Values are made at once, texts are fetched one by one while they are taken, so an answer of many large messages is
never in memory as a whole. What was pruned in between is left out. Reads only; knows nothing of routes or frames.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bus.effects import Read
from bus.errors import Code, Refused
from bus.names import check_key
from bus.store_schema import LADDER
from bus.wire import ANSWER_MS, NUM_MAX, TEXT_MAX, clip

Part = tuple[dict[str, Any], bytes]

LIMIT = 20
LIMIT_MAX = 200
PREFIX_MIN = 4
TERMS_MAX = 32
SNIPPET_MAX = 400
# A PART's head has 4096 octets, a character up to four: what others wrote is cut so that eight steps always fit.
SHORT_MAX = 64
PROOF_MAX = 80

_HISTORY = ("held", "stored", "offered", "injected", "acked", "answered", "expired", "failed")
_COLUMNS = "m.row, m.id, m.name, m.host, m.sender, m.kind, m.tag, m.re, m.thread, m.ts, m.expires, m.key, m.ask"
_COPY = "EXISTS (SELECT 1 FROM deliveries d JOIN mailboxes b ON b.id = d.mailbox WHERE d.msg = m.row AND b.key = :key"
# What is held was received by nobody yet: its text is for a person (query `held`), not for whoever asks by its id.
_OWN = f"(m.key = :key OR {_COPY} AND d.stored_at IS NOT NULL))"
# The owner of the bus sees what others wrote to each other, but not what only waits for him, or was refused.
_OWNER = f"({_OWN} OR (EXISTS (SELECT 1 FROM deliveries d WHERE d.msg = m.row) AND NOT {_COPY})))"
_WITH_PEER = (
    "((m.name = :peer AND :host IN ('', m.host)) OR EXISTS (SELECT 1 FROM deliveries d JOIN mailboxes b "
    "ON b.id = d.mailbox WHERE d.msg = m.row AND d.name = :peer AND :host IN ('', b.host)))"
)
# Not settled, and offered or pushed: whoever had it may have shown it before they died. What is settled was shown.
_MAYBE_SHOWN = (
    "d.open = 1 AND (d.offered_at IS NOT NULL OR d.mailbox = ? AND "
    "d.n <= CASE WHEN m.kind = 'task' AND NOT d.quiet THEN ? ELSE ? END)"
)
_IDENT = "(m.id = ? AND ? IN ('', m.host) AND ? IN ('', m.sender))"
_QUESTION = (
    "SELECT q.ask, d.answered_proof FROM messages q CROSS JOIN deliveries d INDEXED BY deliveries_msg "
    "ON d.msg = q.row WHERE q.id = ? AND q.sender = ? AND q.ask > 0 AND d.mailbox = ? AND d.stored_at IS NOT NULL"
)
_STATE = "SELECT key, ver, by, project, ts, expires, value FROM state"


@dataclass(frozen=True, slots=True)
class Ask:
    """One query and what it is asked of; `now` in ms. The getters raise Refused 422 naming the argument."""

    db: sqlite3.Connection
    read: Read
    now: int

    def text(self, name: str) -> str:
        value = self.read.args.get(name, "")
        if type(value) is not str:
            raise Refused(Code.INVALID, f"{name} is no text")
        return value

    def num(self, name: str, default: int = 0) -> int:
        value = self.read.args.get(name, default)
        if type(value) is not int or not 0 <= value <= NUM_MAX:
            raise Refused(Code.INVALID, f"{name} is no number from 0 to 2^53")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.read.args.get(name, default)
        if type(value) is not bool:
            raise Refused(Code.INVALID, f"{name} is neither true nor false")
        return value

    def texts(self, name: str) -> list[str]:
        value = self.read.args.get(name, [])
        if type(value) is not list or len(value) > LIMIT_MAX or any(type(v) is not str for v in value):
            raise Refused(Code.INVALID, f"{name} is no list of at most {LIMIT_MAX} texts")
        return value

    def limit(self) -> int:
        return min(max(self.num("limit", LIMIT), 1), LIMIT_MAX)

    def visible(self) -> str:
        """The SQL condition for messages `m` whose text this key may see; of the owner's own, those not held."""
        return _OWNER if self.read.role == "owner" else _OWN

    def known(self) -> str:
        """The same for what became of a message, which tells no text."""
        return "TRUE" if self.read.role == "owner" else f"(m.key = :key OR {_COPY}))"

    def senders(self, count: int) -> list[str]:
        """`of`: the mailboxes that sent the `count` messages that are named; "" where that is not said."""
        given = self.texts("of")
        return [*given[:count], *[""] * (count - len(given))]


def answer(db: sqlite3.Connection, read: Read, now: int) -> Iterator[Part]:
    """The PARTs of a query; none means 204. Refused with the code of DONE; sqlite3.Error as it comes."""
    query = QUERIES.get(read.what)
    if query is None:
        raise Refused(Code.INVALID, f"no query {read.what[:40]!r} (one of {', '.join(sorted(QUERIES))})")
    return query(Ask(db, read, now))


def marks(
    db: sqlite3.Connection, ident: str, ask: int, re_: str, sender: str, mailbox: str, now: int
) -> tuple[int, int]:
    """`ask` and `answer` of one copy (PROTOCOL.md §7): what replies to a question of this mailbox, and comes from the
    mailbox that the question was put to, is an answer. `re` alone says nothing, since anybody may write any id there.
    Nobody waits for a second one.
    """
    matched = max(ask + ANSWER_MS - now, 0) if ask else 0
    question = db.execute(_QUESTION, (re_, mailbox, sender)).fetchone() if re_ else None
    if question is None:
        return matched, 0
    return matched, max(question[0] - now, 1) if question[1] in (None, ident) else 1


def _value(row: Any, now: int, to: str, step: int | None, again: bool) -> dict[str, Any]:
    _, ident, name, host, sender, kind, tag, re_, thread, ts, expires, _, _ = row
    value: dict[str, Any] = {
        "id": ident,
        "from": clip(name, SHORT_MAX),
        "host": clip(host, SHORT_MAX),
        "fid": sender,
        "to": clip(to, TEXT_MAX),
        "kind": clip(kind, SHORT_MAX),
        "tag": clip(tag, SHORT_MAX),
        "re": clip(re_, SHORT_MAX),
        "thread": clip(thread, SHORT_MAX),
        "ts": ts,
        "status": "refused" if step is None else LADDER[step],
        "again": again,
    }
    if expires:
        value["ttl"] = max(expires - now, 1)
    return value


def _seen(ask: Ask, row: Any, again: bool = False) -> dict[str, Any]:
    """A message as the asker sees it: their own copy, or for its sender (and the owner) all copies, the worst first.

    With `again` it is told of the asker's own copy whether it may have been shown before.
    """
    copies = ask.db.execute(
        f"SELECT d.step, d.name, {_MAYBE_SHOWN}, d.mailbox, b.key FROM messages m JOIN deliveries d ON d.msg = m.row "
        "LEFT JOIN mailboxes b ON b.id = d.mailbox WHERE m.row = ? ORDER BY d.step, d.name",
        (*_asker(ask), row[0]),
    ).fetchall()
    mine = [c for c in copies if c[3] == ask.read.mailbox]
    if not mine and row[11] != ask.read.key:
        mine = [c for c in copies if c[4] == ask.read.key]
    if mine:
        value = _value(row, ask.now, mine[0][1], mine[0][0], again and bool(mine[0][2]))
        return _marked(ask, value, row, mine[0][3])
    names = ", ".join(c[1] for c in copies) or _refused_to(ask, row)
    return _value(row, ask.now, names, copies[0][0] if copies else None, False)


def _asker(ask: Ask) -> tuple[str, int, int]:
    """The values in `_MAYBE_SHOWN`."""
    return ask.read.mailbox, *ask.read.seen


def _marked(ask: Ask, value: dict[str, Any], row: Any, mailbox: str) -> dict[str, Any]:
    """With what the copy in this mailbox has to do with questions."""
    for name, left in zip(
        ("ask", "answer"), marks(ask.db, row[1], row[12], row[7], row[4], mailbox, ask.now), strict=True
    ):
        if left:
            value[name] = left
    return value


def _refused_to(ask: Ask, row: Any) -> str:
    """Whom a message was meant for that nobody was given."""
    sql = "SELECT name FROM refusals WHERE msg = ? AND sender = ? ORDER BY row"
    return ", ".join(name for (name,) in ask.db.execute(sql, (row[1], row[4])))


def _with_bodies(db: sqlite3.Connection, values: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[Part]:
    for row, value in values:
        found = db.execute("SELECT body FROM messages WHERE row = ?", (row,)).fetchone()
        if found:
            yield value, found[0]


def _inbox(ask: Ask) -> Iterator[Part]:
    if not ask.read.mailbox:
        raise Refused(Code.FORBIDDEN, "this session has no mailbox")
    ids = ask.texts("ids")
    unread = ask.flag("unread", not ids)
    # Held mail waits for a person: it is not in the inbox before it is released, nor ever when it is dropped.
    where = ["d.mailbox = ?", "d.stored_at IS NOT NULL"]
    values: list[Any] = [ask.read.mailbox]
    if unread:
        where.append("d.open = 1")
    if "after" in ask.read.args:
        where.append("d.n > ?")
        values.append(ask.num("after"))
    if "before" in ask.read.args:
        where.append("d.n < ?")
        values.append(ask.num("before"))
    if ids:
        names = [text.rpartition("/") for text in ids]
        where.append(f"m.id IN ({', '.join('?' * len(names))})")
        values += [ident for _, _, ident in names]
        senders = ask.senders(len(ids))
        if any(senders) or any(host for host, _, _ in names):
            where.append(f"({' OR '.join([_IDENT] * len(names))})")
            for (host, _, ident), sender in zip(names, senders, strict=True):
                values += [ident, host, sender]
    for name, column in (("tag", "tag"), ("re", "re"), ("kind", "kind"), ("fid", "sender")):
        if ask.text(name):
            where.append(f"m.{column} = ?")
            values.append(ask.text(name))
    if ask.text("from"):
        name, at, host = ask.text("from").strip().lower().partition("@")
        where.append("m.name = ?" + (" AND m.host = ?" if at else ""))
        values += [name, host] if at else [name]
    oldest = unread or ask.flag("oldest")
    # By itself SQLite would look through the whole mailbox, also for ids.
    source = "deliveries d JOIN messages m ON m.row = d.msg"
    if unread:
        source = "deliveries d INDEXED BY deliveries_open JOIN messages m ON m.row = d.msg"
    elif ids:
        source = "messages m CROSS JOIN deliveries d INDEXED BY deliveries_msg ON d.msg = m.row"
    rows = ask.db.execute(
        f"SELECT {_COLUMNS}, d.n, d.name, d.step, {_MAYBE_SHOWN} FROM {source} "
        f"WHERE {' AND '.join(where)} ORDER BY d.n {'ASC' if oldest else 'DESC'} LIMIT ?",
        (*_asker(ask), *values, ask.limit()),
    ).fetchall()
    rows.sort(key=lambda r: r[13])
    values = [(r, {**_value(r[:13], ask.now, r[14], r[15], bool(r[16])), "n": r[13]}) for r in rows]
    return _with_bodies(ask.db, [(r[0], _marked(ask, value, r, ask.read.mailbox)) for r, value in values])


# Whose message it is to whoever asks: of this mailbox, of this key, received here, received by this key, others'.
_NEAR = (
    "CASE WHEN m.sender = :mailbox THEN 0 WHEN m.key = :key THEN 1 "
    "WHEN EXISTS (SELECT 1 FROM deliveries d WHERE d.msg = m.row AND d.mailbox = :mailbox) THEN 2 "
    f"WHEN {_COPY}) THEN 3 ELSE 4 END"
)
# What is asked for before the slash: the sender's host, or name@host; and `of`, the sender's mailbox.
_SENT_BY = ":host IN ('', m.host) AND :name IN ('', m.name) AND :of IN ('', m.sender)"


def _find(ask: Ask, visible: str) -> Any:
    """The message that is asked for by id or by the beginning of one. Refused 403, 404, 409 or 422.

    An id is chosen by its sender. Where it is that of several messages the asker's own counts; what then is still
    several is told as such, and never decided for somebody else's.
    """
    whose, _, ident = ask.text("id").strip().rpartition("/")
    name, _, host = whose.lower().rpartition("@")
    key = {
        "key": ask.read.key,
        "mailbox": ask.read.mailbox,
        "id": ident,
        "low": ident.lower(),
        "end": ident.lower() + "\U0010ffff",
        "host": host,
        "name": name,
        "of": ask.text("of"),
    }
    where = f"FROM messages m WHERE m.id = :id AND {_SENT_BY}"
    sql = f"SELECT {_COLUMNS}, {_NEAR} AS near {where} AND {visible} ORDER BY near, m.row LIMIT {LIMIT_MAX}"
    exact = ask.db.execute(sql, key).fetchall()
    if not exact and ask.db.execute(f"SELECT 1 {where} LIMIT 1", key).fetchone():
        raise Refused(Code.FORBIDDEN, f"message {ident} was neither sent nor received by this key (or is held)")
    if not exact:
        if len(ident) < PREFIX_MIN:
            raise Refused(
                Code.INVALID, f"id is no message id and no beginning of one (at least {PREFIX_MIN} characters)"
            )
        # Only what the asker may see counts, or a prefix would tell what exists.
        begun = (
            f"SELECT DISTINCT m.id FROM messages m WHERE m.id >= :low AND m.id < :end AND {_SENT_BY} AND {visible}"
        )
        idents = [row[0] for row in ask.db.execute(begun + " LIMIT 5", key)]
        if not idents:
            raise Refused(Code.NOT_FOUND, f"no message {ident[:20]} (it may have been pruned)")
        if len(idents) > 1:
            raise Refused(Code.CONFLICT, f"several messages begin with {ident[:20]}: {', '.join(idents)}")
        exact = ask.db.execute(sql, {**key, "id": idents[0]}).fetchall()
    found = [row[:13] for row in exact if row[13] == exact[0][13]]
    if len(found) > 1:
        forms = [f"{clip(row[2], SHORT_MAX)}@{clip(row[3], SHORT_MAX)}/{row[1]}" for row in found[:5]]
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise Refused(
            Code.CONFLICT, f"{len(found)} messages have the id {found[0][1]} (say which: {', '.join(forms)}{more})"
        )
    return found[0]


def _message(ask: Ask) -> Iterator[Part]:
    row = _find(ask, ask.visible())
    return _with_bodies(ask.db, [(row[0], _seen(ask, row, again=True))])


def _why(ask: Ask) -> Iterator[Part]:
    row = _find(ask, ask.known())
    steps = ", ".join(f"d.{s}_at, d.{s}_proof" for s in _HISTORY)
    copies = ask.db.execute(
        f"SELECT d.name, coalesce(b.host, ''), d.step, d.mailbox, {steps} FROM deliveries d "
        "LEFT JOIN mailboxes b ON b.id = d.mailbox WHERE d.msg = ? ORDER BY d.name, d.mailbox",
        (row[0],),
    ).fetchall()
    refused = ask.db.execute(
        "SELECT name, host, code, text, ts FROM refusals WHERE msg = ? AND sender = ? ORDER BY row", (row[1], row[4])
    )
    base = {"id": row[1], "fid": row[4], "from": clip(row[2], SHORT_MAX), "from_host": clip(row[3], SHORT_MAX)}
    made: list[Part] = []
    for name, host, step, mailbox, *times in copies:
        history = [
            {"status": status, "ts": times[2 * i], "proof": clip(times[2 * i + 1] or "", PROOF_MAX)}
            for i, status in enumerate(_HISTORY)
            if times[2 * i] is not None
        ]
        head = {**base, "name": clip(name, SHORT_MAX), "host": clip(host, SHORT_MAX), "mailbox": mailbox}
        made.append(({**head, "status": LADDER[step], "history": history}, b""))
    for name, host, code, text, ts in refused:
        history = [{"status": "refused", "ts": ts, "proof": f"{code} {clip(text, PROOF_MAX)}"}]
        head = {**base, "name": clip(name, SHORT_MAX), "host": clip(host, SHORT_MAX)}
        told = {"status": "refused", "code": code, "text": clip(text, SNIPPET_MAX), "history": history}
        made.append(({**head, **told}, b""))
    return iter(made)


def _held(ask: Ask) -> Iterator[Part]:
    """What waits for the person of this key: one row a message with all its copies, `at` to go on from in `after`."""
    rows = ask.db.execute(
        f"SELECT {_COLUMNS}, group_concat(d.name, ', '), min(d.held_at), coalesce(min(d.held_proof), ''), m.size "
        "FROM deliveries d INDEXED BY deliveries_open JOIN messages m ON m.row = d.msg "
        "JOIN mailboxes b ON b.id = d.mailbox WHERE d.open = 1 AND d.stored_at IS NULL AND b.key = ? AND m.row > ? "
        "GROUP BY m.row ORDER BY m.row LIMIT ?",
        (ask.read.key, ask.num("after"), ask.limit()),
    ).fetchall()
    made = []
    for row in rows:
        to, since, why, size = row[13:]
        value = _value(row[:13], ask.now, to, LADDER.index("held"), False)
        made.append((row[0], {**value, "since": since, "why": clip(why, PROOF_MAX), "size": size, "at": row[0]}))
    return _with_bodies(ask.db, made)


def _history(ask: Ask) -> Iterator[Part]:
    where = [ask.visible()]
    peer, _, host = ask.text("peer").strip().lower().partition("@")
    if peer:
        where.append(_WITH_PEER)
    before = ask.num("before")
    if before:
        where.append("m.ts < :before")
    rows = ask.db.execute(
        f"SELECT {_COLUMNS} FROM messages m WHERE {' AND '.join(where)} ORDER BY m.ts DESC, m.row DESC LIMIT :limit",
        {"key": ask.read.key, "peer": peer, "host": host, "before": before, "limit": ask.limit()},
    ).fetchall()
    return _with_bodies(ask.db, [(row[0], _seen(ask, row)) for row in rows])


def match(text: str) -> str:
    """What people type as an FTS5 query that cannot fail: quoted terms, all of them, `"a phrase"` and `begin*` kept.

    Empty when nothing in it is a word.
    """
    terms = []
    for phrase, word in re.findall(r'"([^"]*)"|([^\s"]+)', re.sub(r"[\x00-\x1f]", " ", text)):
        term = phrase or word
        if any(c.isalnum() for c in term):
            terms.append(f'"{term}"' + (" *" if word.endswith("*") else ""))
    return " ".join(terms[:TERMS_MAX])


def _search(ask: Ask) -> Iterator[Part]:
    query = match(ask.text("query"))
    if not query:
        return iter(())
    # A body need not be UTF-8, so the snippet is taken as octets. Newest first: nothing has to be scored.
    rows = ask.db.execute(
        f"SELECT {_COLUMNS}, CAST(snippet(search, 2, '[', ']', '…', 24) AS BLOB) FROM search "
        f"JOIN messages m ON m.row = search.rowid WHERE search MATCH :query AND {ask.visible()} "
        "ORDER BY search.rowid DESC LIMIT :limit",
        {"query": query, "key": ask.read.key, "limit": ask.limit()},
    ).fetchall()
    found = ((_seen(ask, r[:13]), (r[13] or b"").decode("utf-8", "replace")) for r in rows)
    return iter([({**value, "snippet": clip(" ".join(text.split()), SNIPPET_MAX)}, b"") for value, text in found])


def _entry(row: Any, now: int) -> Part:
    key, ver, by, project, ts, expires, value = row
    head = {"key": key, "ver": ver, "by": clip(by, 2 * SHORT_MAX), "host": clip(by.rpartition("@")[2], SHORT_MAX)}
    head.update({"project": clip(project, TEXT_MAX), "ts": ts})
    if expires:
        head["ttl"] = expires - now
    return head, value


def _state_get(ask: Ask) -> Iterator[Part]:
    key = check_key(ask.text("key"))
    row = ask.db.execute(_STATE + " WHERE key = ?", (key,)).fetchone()
    if row is None or 0 < row[5] <= ask.now:
        raise Refused(Code.NOT_FOUND, f"no state {key}")
    return iter([_entry(row, ask.now)])


def _state_list(ask: Ask) -> Iterator[Part]:
    prefix, project = ask.text("prefix"), ask.text("project")
    keys = ask.db.execute(
        "SELECT key FROM state WHERE key >= ? AND key < ? AND ? IN ('', project) AND (expires = 0 OR expires > ?) "
        "ORDER BY key",
        (prefix, prefix + "\U0010ffff", project, ask.now),
    ).fetchall()
    rows = (ask.db.execute(_STATE + " WHERE key = ?", key).fetchone() for key in keys)
    return (_entry(row, ask.now) for row in rows if row)


def _log(ask: Ask) -> Iterator[Part]:
    newest = "after" not in ask.read.args
    rows = ask.db.execute(
        "SELECT seq, at, ob, q, op, digest, chain, code, who FROM ops WHERE seq > ? "
        f"ORDER BY seq {'DESC' if newest else 'ASC'} LIMIT ?",
        (ask.num("after"), ask.limit()),
    ).fetchall()
    names = ("seq", "at", "ob", "q", "op", "digest", "chain", "code", "who")
    values = [dict(zip(names, row, strict=True)) for row in sorted(rows)]
    texts = {"digest", "chain"}
    return iter([({k: v.hex() if k in texts else v for k, v in value.items()}, b"") for value in values])


def _prune(ask: Ask) -> Iterator[Part]:
    ordered = int(ask.db.execute("SELECT value FROM meta WHERE name = 'prune_before'").fetchone()[0])
    messages, octets = _prunable(ask.db, ask.num("before") or ordered)
    left = int(ordered > 0 and _prunable(ask.db, ordered)[0] > 0)
    return iter([({"messages": messages, "octets": octets, "orders_left": left}, b"")])


def _prunable(db: sqlite3.Connection, before: int) -> tuple[int, int]:
    count, octets = db.execute(
        "SELECT count(*), coalesce(sum(size), 0) FROM messages m WHERE m.ts < ? AND NOT EXISTS "
        "(SELECT 1 FROM deliveries d WHERE d.msg = m.row AND d.open = 1)",
        (before,),
    ).fetchone()
    return count, octets


QUERIES: dict[str, Callable[[Ask], Iterator[Part]]] = {
    "inbox": _inbox,
    "message": _message,
    "why": _why,
    "held": _held,
    "history": _history,
    "search": _search,
    "state.get": _state_get,
    "state.list": _state_list,
    "log": _log,
    "prune": _prune,
}
