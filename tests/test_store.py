"""The store as a file: made private, refused with the mend, whole batches or nothing, a full disk survived."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import sys
import threading
from pathlib import Path

import pytest

from bus import store_schema
from bus.effects import (
    AddDelivery,
    AddMessage,
    AddOp,
    Move,
    MoveById,
    PutMailbox,
    PutMeta,
    PutOutbox,
    Read,
    Release,
    Write,
)
from bus.errors import ConfigError, StoreError
from bus.store import CACHE_ENTRY, CACHE_MAX, Store
from bus.world import Mailbox, Outbox, Pending, Saved, World

ANN = Mailbox("a0000000", "ann-key", "desk", "ann", term=1, top=1)
BOB = Mailbox("b0000000", "bob-key", "lap", "bob", meta={"cwd": "/x", "ü": [1, None]})


def message(ident: str, body: bytes = b"hi", **more: object) -> AddMessage:
    fields = {"kind": "task", "tag": "", "re": "", "thread": "", "ts": 10, "expires": 0, "hops": 0, **more}
    return AddMessage(ident, ANN.id, "ann", "desk", "ann-key", body=body, **fields)  # type: ignore[arg-type]


def mail(ident: str, n: int, body: bytes = b"hi") -> list[Write]:
    return [message(ident, body), AddDelivery(BOB.id, n, ANN.id, ident, "bob", "stored", 10)]


def op(seq: int, q: int, at: int = 10) -> AddOp:
    return AddOp(seq, at, "ob1", q, "send", b"d" * 16, bytes([seq % 256]) * 16, 200, b"reply", "ann@desk")


def test_file_is_private_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "bus.db"
    store = Store.open(path)
    store.apply([PutMailbox(BOB), *mail("m1", 1)])
    if sys.platform != "win32":
        for file in tmp_path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    world = store.load()
    assert len(world.store) == 32 and int(world.store, 16) >= 0
    store.close()
    again = Store.open(path)
    assert again.load() == world
    assert again.message(ANN.id, "m1").body == b"hi"
    again.close()
    assert Store.memory().load().store != world.store


def test_a_crash_between_making_the_file_and_its_schema_is_mended(tmp_path: Path) -> None:
    (tmp_path / "bus.db").touch(0o600)
    store = Store.open(tmp_path / "bus.db")
    assert store.load() == World(store=store.load().store)
    store.close()


def test_an_uncommitted_batch_is_not_there_after_a_kill(tmp_path: Path) -> None:
    pid = os.fork() if hasattr(os, "fork") else pytest.skip("no fork")
    if pid == 0:
        store = Store.open(tmp_path / "bus.db")
        store.apply([PutMailbox(BOB), *mail("m1", 1)])
        store._db.execute("BEGIN IMMEDIATE")
        store._db.execute("DELETE FROM deliveries")
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    store = Store.open(tmp_path / "bus.db")
    assert list(store.load().mailboxes[BOB.id].pending) == [1]
    store.close()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"garbage " * 1000, "not a database"),
        ("PRAGMA user_version = 1; CREATE TABLE x (y)", "another program's"),
        ("CREATE TABLE x (y)", "another program's"),
        (f"PRAGMA application_id = {store_schema.APPLICATION}; PRAGMA user_version = 99", "schema 99"),
    ],
)
def test_what_is_not_ours_is_refused_with_file_and_mend(tmp_path: Path, content: bytes | str, says: str) -> None:
    path = tmp_path / "bus.db"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        db = sqlite3.connect(path)
        db.executescript(content)
        db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=says) as error:
        Store.open(path)
    assert str(path) in str(error.value) and "(" in str(error.value) and not error.value.full
    assert path.read_bytes() == before


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be made"):
        Store.open(tmp_path / "no" / "bus.db")
    with pytest.raises(ConfigError, match="is no file"):
        (tmp_path / "dir").mkdir()
        Store.open(tmp_path / "dir")


def test_a_dump_is_an_older_copy(tmp_path: Path) -> None:
    for store in (Store.memory(), Store.open(tmp_path / "bus.db")):
        store.apply([PutMailbox(BOB), *mail("m1", 1)])
        old, copy = store.load(), store.dump()
        store.apply([*mail("m2", 2), Move(BOB.id, 1, "injected", 5, "p", True)])
        restored = Store.from_dump(copy)
        assert restored.load() == old != store.load()
        restored.apply(mail("m3", 2))
        assert [p.msg for p in restored.load().mailboxes[BOB.id].pending.values()] == ["m1", "m3"]
        store.close()
        restored.close()
    with pytest.raises(StoreError):
        Store.from_dump(b"x" * 5000)


@pytest.mark.parametrize(
    "last",
    [
        op(1, 9),
        op(9, 1),
        AddDelivery(BOB.id, 1, ANN.id, "m1", "bob", "stored", 1),
        AddDelivery(BOB.id, 7, ANN.id, "nowhere", "bob", "stored", 1),
        AddDelivery(BOB.id, 7, ANN.id, "m1", "bob", "offered", 1),
        Move(BOB.id, 1, "lost", 1, "", True),
        MoveById(BOB.id, "m1", "lost", 1, ""),
        PutMailbox(Mailbox("c", "k", "h", "n", meta={"x": b"octets"})),
        PutMailbox(Mailbox("c", "k", "h", "n", top=2**70)),
        PutMailbox(Mailbox("c", "k", "h", "\ud800")),
        PutMeta("store", 1),
    ],
)
def test_a_write_that_cannot_be_undoes_the_whole_batch(last: Write) -> None:
    store = Store.memory()
    store.apply([PutMailbox(BOB), PutOutbox(Outbox("ob1", "k", 1, 1)), op(1, 1), *mail("m1", 1)])
    before, sizes = store.load(), store.sizes()
    with pytest.raises(StoreError) as error:
        store.apply([PutMeta("prune_before", 9), *mail("m2", 2), Move(BOB.id, 1, "injected", 1, "p", True), last])
    assert not error.value.full
    assert (store.load(), store.sizes()) == (before, sizes)
    store.apply(mail("m2", 2))
    assert store.message(ANN.id, "m2").body == b"hi"


def test_the_same_message_twice_is_one_and_the_first_stays() -> None:
    store = Store.memory()
    store.apply([PutMailbox(BOB), *mail("m1", 1, b"first")])
    store.apply([message("m1", b"second"), AddDelivery(BOB.id, 2, ANN.id, "m1", "bob", "stored", 11)])
    store.apply([message("m2", b"x"), message("m2", b"y"), AddDelivery(BOB.id, 3, ANN.id, "m2", "bob", "stored", 11)])
    other = AddMessage("m1", "c0000000", "cy", "far", "cy-key", "note", "", "", "", 1, 0, 0, b"other")
    store.apply([other, AddDelivery(BOB.id, 4, "c0000000", "m1", "bob", "stored", 12)])
    store._fresh.clear()
    assert [store.message(ANN.id, m).body for m in ("m1", "m2")] == [b"first", b"x"]
    assert store.message("c0000000", "m1") == other
    assert [(p.msg, p.sender) for p in store.load().mailboxes[BOB.id].pending.values()] == [
        ("m1", ANN.id),
        ("m1", ANN.id),
        ("m2", ANN.id),
        ("m1", "c0000000"),
    ]
    with pytest.raises(StoreError, match="no message"):
        store.message("c0000000", "m2")


def test_fresh_messages_are_kept_within_bounds() -> None:
    store = Store.memory()
    size = CACHE_MAX // 8
    for i in range(12):
        store.apply([message(f"m{i}", bytes(size))])
    assert store._fresh_octets <= CACHE_MAX
    assert store._fresh_octets == sum(len(m.body) + CACHE_ENTRY for m in store._fresh.values())
    assert store.message(ANN.id, "m0").body == bytes(size)


def test_recall_reads_the_journal() -> None:
    store = Store.memory()
    store.apply([PutOutbox(Outbox("ob1", "k", 2, 2)), op(1, 1), op(2, 2)])
    assert store.recall("ob1", 1) == Saved(b"d" * 16, 200, b"reply")
    assert store.recall("ob1", 3) is None and store.recall("ob2", 1) is None
    assert list(store.load().outboxes["ob1"].saved) == [2]
    assert (store.load().seq, store.load().chain) == (2, b"\x02" * 16)


def _settled(store: Store, first: int, count: int) -> None:
    for i in range(first, first + count):
        store.apply([*mail(f"m{i}", i, bytes(20000)), Move(BOB.id, i, "injected", 11, "p", True)])


def test_a_full_database_is_told_and_left_usable(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "bus.db")
    store.apply([PutMailbox(BOB)])
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 40}")
    before = store.load()
    with pytest.raises(StoreError) as error:
        _settled(store, 1, 100)
    assert error.value.full and str(tmp_path) in str(error.value)
    assert store.load() == before  # what was written is settled, what failed is not there
    store._db.execute("PRAGMA max_page_count = 1000000")
    count = store.sizes()["messages"]
    _settled(store, count + 1, 30)
    assert store.sizes()["messages"] == store.sizes()["deliveries"] == count + 30
    store.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file size there")
def test_a_disk_that_refuses_to_grow_files(tmp_path: Path) -> None:
    import resource

    store = Store.open(tmp_path / "bus.db")
    store.apply([PutMailbox(BOB), *mail("m1", 1)])
    before = store.load()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, old[1]))
    try:
        with pytest.raises(StoreError) as error:
            store.apply(mail("m2", 2, bytes(400_000)))
        assert error.value.full
        assert store.load() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    store.apply(mail("m2", 2, bytes(400_000)))
    store.close()
    again = Store.open(tmp_path / "bus.db")
    assert list(again.load().mailboxes[BOB.id].pending) == [1, 2]
    again.close()


def test_a_locked_file_is_cured_by_time(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "bus.db")
    other = sqlite3.connect(tmp_path / "bus.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError) as error:
        store.apply([PutMailbox(BOB)])
    assert error.value.full
    other.execute("ROLLBACK")
    store.apply([PutMailbox(BOB)])
    other.close()
    store.close()


def test_a_reader_in_another_thread_sees_commits_and_cannot_write(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "bus #1?.db")
    reader = store.reader()
    store.apply([PutMailbox(BOB), *mail("m1", 1)])
    got: list[object] = []

    def ask() -> None:
        got.extend(body for _, body in reader.read(Read(b"", 1, "inbox", {}, BOB.id, "bob-key", "member"), 0))
        try:
            reader.apply([PutMailbox(BOB)])
        except StoreError as error:
            got.append(error.full)
        reader.close()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert got == [b"hi", True]
    memory = Store.memory()
    memory.reader().close()
    memory.apply([PutMailbox(BOB)])
    store.close()


def test_pending_tells_its_status() -> None:
    store = Store.memory()
    store.apply([PutMailbox(BOB), *mail("m1", 1), *mail("m2", 2), message("m3", expires=9), message("m4")])
    store.apply([AddDelivery(BOB.id, n, ANN.id, f"m{n}", "bob", "held", 10) for n in (3, 4)])
    store.apply([AddDelivery(BOB.id, 5, ANN.id, "m4", "bob", "held", 10, "paused", True)])
    store.apply([Move(BOB.id, 2, "offered", 1, "", False), Release(BOB.id, 4, 6, 1, "")])
    mailbox = store.load().mailboxes[BOB.id]
    assert list(mailbox.pending.values()) == [
        Pending(1, "m1", ANN.id, "task", 2, 0, "stored", ts=10),
        Pending(2, "m2", ANN.id, "task", 2, 0, "offered", ts=10),
        Pending(6, "m4", ANN.id, "task", 2, 0, "stored", ts=10),
    ]
    assert list(mailbox.held.values()) == [
        Pending(3, "m3", ANN.id, "task", 2, 9, "held", ts=10),
        Pending(5, "m4", ANN.id, "task", 2, 0, "held", True, "paused", 10),
    ]


def test_sizes_and_meta_text() -> None:
    store = Store.memory()
    store.apply([PutMailbox(BOB), *mail("m1", 1)])
    sizes = store.sizes()
    assert (sizes["messages"], sizes["deliveries"]) == (1, 1) and sizes["octets"] > 4096
    assert json.loads(store._db.execute("SELECT meta FROM mailboxes").fetchone()[0]) == BOB.meta
    store.apply([])


def test_a_database_of_before_the_marks_is_brought_up_to_date() -> None:
    db = store_schema.connect(":memory:")
    for old in range(3):
        store_schema._migrate(db, "memory", old)
    columns = "id, key, host, name, term, inst, top, active, meta"
    db.execute(f"INSERT INTO mailboxes ({columns}) VALUES ('b', 'k', 'h', 'bob', 4, 'i', 7, 5, '{{}}')")
    (box,) = Store.from_dump(db.serialize()).load().mailboxes.values()
    assert box == Mailbox("b", "k", "h", "bob", 4, "i", 7, 5), "nothing is known to have been pushed"
    db.close()
