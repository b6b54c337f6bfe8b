"""Turns the writes of a batch into statements: rows of one kind that follow each other become one executemany.

Only the order within a table is kept (and steps come after all deliveries of the batch): that is what makes long
runs out of interleaved writes. Knows the rows, and nothing of connections or transactions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from bus.effects import (
    AddDelivery,
    AddMessage,
    AddOp,
    AddRefusal,
    DropRule,
    DropState,
    Move,
    MoveById,
    PutMailbox,
    PutMeta,
    PutOutbox,
    PutPause,
    PutRule,
    PutState,
    Release,
    Write,
)
from bus.errors import StoreError
from bus.store_schema import BELOW, STEP

Row = tuple[Any, ...]

_OP = "INSERT INTO ops VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_MESSAGE = "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DELIVERY = {
    status: f"INSERT INTO deliveries (mailbox, n, msg, name, step, {status}_at, {status}_proof, quiet) "
    f"VALUES (?, ?, ?, ?, {STEP[status]}, ?, nullif(?, ''), ?)"
    for status in ("stored", "held")
}
_RELEASE = (
    f"UPDATE deliveries SET n = ?, step = {STEP['stored']}, stored_at = ?, stored_proof = ? "
    "WHERE mailbox = ? AND n = ?"
)
_RULE = (
    "INSERT INTO policy (key, machine, name, kind, action, ts) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (key, machine, name, kind) DO UPDATE SET action = excluded.action, ts = excluded.ts"
)
_DROP_RULE = "DELETE FROM policy WHERE key = ? AND machine = ? AND name = ? AND kind = ?"
_PAUSE = "INSERT INTO paused VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET since = excluded.since"
_RESUME = "DELETE FROM paused WHERE key = ?"
_REFUSAL = "INSERT INTO refusals (sender, msg, name, host, code, text, ts) VALUES (?, ?, ?, ?, ?, ?, ?)"
_MAILBOX = (
    "INSERT INTO mailboxes (id, key, host, name, term, inst, top, active, meta, "
    "life, pushed, pushed_quiet, former, former_quiet) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (id) DO UPDATE SET key = excluded.key, host = excluded.host, name = excluded.name, "
    "term = excluded.term, inst = excluded.inst, top = excluded.top, active = excluded.active, meta = excluded.meta, "
    "life = excluded.life, pushed = excluded.pushed, pushed_quiet = excluded.pushed_quiet, "
    "former = excluded.former, former_quiet = excluded.former_quiet"
)
_OUTBOX = (
    "INSERT INTO outboxes (id, key, high, floor) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
    "key = excluded.key, high = excluded.high, floor = excluded.floor"
)
_STATE = (
    "INSERT INTO state (key, ver, by, project, ts, expires, size, value) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET ver = excluded.ver, by = excluded.by, project = excluded.project, "
    "ts = excluded.ts, expires = excluded.expires, size = excluded.size, value = excluded.value"
)
_DROP = "DELETE FROM state WHERE key = ?"
_META = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
_OUR_META = frozenset({"store", "indexed", "audited"})


def _step(status: str, by: str) -> str:
    """A step that has a time keeps it; the status only climbs. `by` is the index that finds the delivery."""
    return (
        f"UPDATE deliveries{by} SET {status}_proof = CASE WHEN {status}_at IS NULL THEN ? ELSE {status}_proof END, "
        f"{status}_at = coalesce({status}_at, ?), "
        f"step = CASE WHEN step < {BELOW[status]} THEN {STEP[status]} ELSE step END%s WHERE mailbox = ? AND "
    )


_MOVE = {
    (status, settled): _step(status, "") % (", open = 0" if settled else "") + "n = ?"
    for status in STEP
    for settled in (False, True)
}
_MOVE_BY_ID = {
    # By itself SQLite would look through the whole mailbox for it.
    status: _step(status, " INDEXED BY deliveries_msg") % ""
    + "msg IN (SELECT row FROM messages WHERE id = ? AND host = coalesce(nullif(?, ''), host)) "
    # Nobody can have been shown what is held; an agent that says so speaks of a copy the disk no longer knows.
    + "AND NOT (open = 1 AND stored_at IS NULL)"
    for status in STEP
}


class Plan:
    """The statements of one batch. `row` is the number the next message gets, `row_of` finds a message of old.

    A message that may be there already has to be looked for; with `careful` off that is left to the constraint.

    add() raises StoreError for a write that cannot be: a delivery of no message, a step that is none.
    """

    def __init__(self, row: int, row_of: Callable[[str, str], int | None], *, careful: bool) -> None:
        self.row = row
        self.fresh: list[AddMessage] = []
        self._row_of = row_of
        self._careful = careful
        self._rows: dict[tuple[str, str], int] = {}
        self._tables: dict[str, list[tuple[str, list[Row]]]] = {name: [] for name in _TABLES}

    def add(self, writes: Sequence[Write]) -> None:
        """Take the writes in, in their order."""
        for write in writes:
            _TAKE[type(write)](self, write)

    def runs(self) -> list[tuple[str, list[Row]]]:
        """Statements and their rows, in an order that gives what the writes give one by one."""
        return [run for table in self._tables.values() for run in table]

    def _put(self, table: str, sql: str, row: Row) -> None:
        runs = self._tables[table]
        if runs and runs[-1][0] is sql:
            runs[-1][1].append(row)
        else:
            runs.append((sql, [row]))

    def _find(self, sender: str, ident: str) -> int | None:
        row = self._rows.get((sender, ident))
        return row if row is not None else self._row_of(sender, ident)

    def _op(self, w: AddOp) -> None:
        self._put("ops", _OP, (w.seq, w.at, w.ob, w.q, w.op, w.digest, w.chain, w.code, w.reply, w.who))

    def _message(self, w: AddMessage) -> None:
        if self._careful and self._find(w.sender, w.id) is not None:
            return
        row = self._rows[w.sender, w.id] = self.row
        self.row += 1
        self.fresh.append(w)
        head = (row, w.id, w.sender, w.name, w.host, w.key, w.kind, w.tag, w.re, w.thread)
        self._put("messages", _MESSAGE, (*head, w.ts, w.expires, w.hops, len(w.body), w.body))

    def _delivery(self, w: AddDelivery) -> None:
        row = self._find(w.sender, w.msg)
        if row is None or w.status not in _DELIVERY:
            raise StoreError(f"delivery {w.n} in {w.mailbox} has no message {w.msg} or no status {w.status!r}")
        self._put("deliveries", _DELIVERY[w.status], (w.mailbox, w.n, row, w.name, w.ts, w.proof, w.quiet))

    def _refusal(self, w: AddRefusal) -> None:
        self._put("refusals", _REFUSAL, (w.sender, w.msg, w.name, w.host, w.code, w.text, w.ts))

    def _release(self, w: Release) -> None:
        self._put("steps", _RELEASE, (w.to, w.ts, w.proof, w.mailbox, w.n))

    def _move(self, w: Move) -> None:
        if w.status not in STEP:
            raise StoreError(f"{w.status!r} is no step of a delivery")
        self._put("steps", _MOVE[w.status, w.settled], (w.proof, w.ts, w.mailbox, w.n))

    def _move_by_id(self, w: MoveById) -> None:
        if w.status not in STEP:
            raise StoreError(f"{w.status!r} is no step of a delivery")
        self._put("steps", _MOVE_BY_ID[w.status], (w.proof, w.ts, w.mailbox, w.msg, w.host))

    def _mailbox(self, w: PutMailbox) -> None:
        m = w.mailbox
        try:
            meta = json.dumps(m.meta, ensure_ascii=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            raise StoreError(f"meta of mailbox {m.id} is no plain data: {error}") from error
        marks = (m.life, m.pushed, m.pushed_quiet, m.former, m.former_quiet)
        self._put("mailboxes", _MAILBOX, (m.id, m.key, m.host, m.name, m.term, m.inst, m.top, m.active, meta, *marks))

    def _outbox(self, w: PutOutbox) -> None:
        self._put("outboxes", _OUTBOX, (w.outbox.id, w.outbox.key, w.outbox.high, w.outbox.floor))

    def _state(self, w: PutState) -> None:
        e = w.entry
        self._put("state", _STATE, (e.key, e.ver, e.by, e.project, e.ts, e.expires, e.size, w.value))

    def _drop(self, w: DropState) -> None:
        self._put("state", _DROP, (w.key,))

    def _rule(self, w: PutRule) -> None:
        r = w.rule
        self._put("policy", _RULE, (r.key, r.machine, r.name, r.kind, r.action, r.ts))

    def _drop_rule(self, w: DropRule) -> None:
        self._put("policy", _DROP_RULE, (w.key, *w.about))

    def _pause(self, w: PutPause) -> None:
        if w.since:
            self._put("paused", _PAUSE, (w.key, w.since))
        else:
            self._put("paused", _RESUME, (w.key,))

    def _meta(self, w: PutMeta) -> None:
        if w.name in _OUR_META:
            raise StoreError(f"{w.name!r} is the store's own")
        self._put("meta", _META, (w.name, w.value))


# Steps stand apart from the deliveries they follow: acknowledgements come mixed with new mail, and would cut runs.
_TABLES = (
    "ops",
    "messages",
    "deliveries",
    "steps",
    "refusals",
    "mailboxes",
    "outboxes",
    "state",
    "policy",
    "paused",
    "meta",
)
_TAKE: dict[type[Any], Callable[[Plan, Any], None]] = {
    AddOp: Plan._op,
    AddMessage: Plan._message,
    AddDelivery: Plan._delivery,
    AddRefusal: Plan._refusal,
    Release: Plan._release,
    Move: Plan._move,
    MoveById: Plan._move_by_id,
    PutMailbox: Plan._mailbox,
    PutOutbox: Plan._outbox,
    PutState: Plan._state,
    DropState: Plan._drop,
    PutRule: Plan._rule,
    DropRule: Plan._drop_rule,
    PutPause: Plan._pause,
    PutMeta: Plan._meta,
}
