"""How SQLite finds what the broker's loop writes and reads: by an index, whatever has gathered in a store or a mailbox."""

from __future__ import annotations

from typing import Any

import pytest

from bus.effects import (
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
    Read,
    Release,
    Write,
)
from bus.errors import Code, Refused
from bus.reading import slow
from bus.store import Store
from bus.store_schema import STEP
from bus.world import Entry, Outbox, Rule
from tests.test_store_reads import ANN, BOB, op, sent

RULE = Rule("bob-key", "ann-key", "", "", "accept", 1)
WRITES: list[Write] = [
    *(PutMailbox(box) for box in (ANN, BOB)),
    *sent("aaaa", 1),
    *sent("bbbb", 2),
    op(1, 1, 1),
    PutOutbox(Outbox("ob", "ann-key", 1, 1)),
    *(Move("b0000000", 1, status, 5, "p", settled) for status in STEP for settled in (False, True)),
    *(MoveById("b0000000", "aaaa", status, 6, "p", host) for status in STEP for host in ("", "desk")),
    Release("b0000000", 2, 3, 7, "ok"),
    AddRefusal("a0000000", "aaaa", "cy", "far", 404, "no", 1),
    PutState(Entry("k", 1, "ann@desk", "", 1, 0, 1), b"v"),
    DropState("k"),
    PutRule(RULE),
    DropRule("bob-key", RULE.about),
    PutPause("bob-key", 1),
    PutPause("bob-key", 0),
    PutMeta("prune_before", 5),
]
READS: list[tuple[str, dict[str, Any]]] = [
    ("inbox", {}),
    ("inbox", {"tag": "t", "from": "ann", "kind": "task"}),
    ("inbox", {"ids": ["aaaa", "bbbb"]}),
    ("inbox", {"ids": ["aaaa"], "unread": True}),
    ("message", {"id": "aaaa"}),
    ("message", {"id": "caaa"}),  # several begin like this
    ("held", {}),
    ("state.get", {"key": "k"}),
    ("state.list", {"prefix": "k"}),
]


def looked_through(store: Store, statements: list[str]) -> list[str]:
    """Statements that look at more than they are about, with what SQLite says of it."""
    found = []
    for sql in dict.fromkeys(statements):
        if sql.split()[0] not in ("SELECT", "INSERT", "UPDATE", "DELETE") or "search" in sql:
            continue  # the index for search is a table of another kind
        for *_, plan in store._db.execute("EXPLAIN QUERY PLAN " + sql):
            scans = plan.startswith("SCAN") and "CONSTANT ROW" not in plan
            if scans or plan.endswith("USING PRIMARY KEY (mailbox=?)"):
                found.append(f"{plan}: {sql}")
    return found


def test_no_write_looks_through_a_table_or_a_mailbox() -> None:
    store = Store.memory()
    seen: list[str] = []
    store._db.set_trace_callback(seen.append)
    store.apply(WRITES)
    store.apply(sent("aaaa", 9))  # a message that is there already takes another way
    store._db.set_trace_callback(None)
    assert any(sql.startswith("UPDATE deliveries") for sql in seen)
    assert looked_through(store, seen) == []


@pytest.mark.parametrize("role", ["owner", "member"])
@pytest.mark.parametrize(("what", "args"), READS)
def test_no_read_in_the_loop_looks_through_a_table_or_a_mailbox(role: str, what: str, args: dict[str, Any]) -> None:
    store = Store.memory()
    store.apply([PutMailbox(ANN), PutMailbox(BOB), *sent("aaaa", 1), *sent("caaab", 2), *sent("caaac", 3)])
    store.apply([PutState(Entry("k", 1, "ann@desk", "", 1, 0, 1), b"v")])
    read = Read(b"", 1, what, args, BOB.id, BOB.key, role)
    assert not slow(read)
    seen: list[str] = []
    store._db.set_trace_callback(seen.append)
    try:
        list(store.read(read, 10))
    except Refused as refused:
        assert refused.code == Code.CONFLICT
    store._db.set_trace_callback(None)
    assert seen
    assert looked_through(store, seen) == []


@pytest.mark.parametrize("args", [{"unread": False}, {"unread": False, "re": "aaaa", "oldest": True}])
def test_what_looks_through_the_past_of_a_mailbox_is_read_beside_the_loop(args: dict[str, Any]) -> None:
    assert slow(Read(b"", 1, "inbox", args, BOB.id, BOB.key, "owner"))
