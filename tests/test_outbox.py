"""outbox: agent.db gives the Book back, takes batches whole or not at all, and refuses what is not its own."""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import outbox as module
from agent.book import AddRow, Book, DropShown, PutBook, PutShown, SettleRow, Shown, Write
from agent.outbox import CACHE_ENTRY, CACHE_MAX, KEPT_MS, Outbox
from bus import wire
from bus.errors import ConfigError, StoreError
from tests.pair import ledger_line


def add(row: int, body: bytes = b"hi", at: int = 5, **args: object) -> AddRow:
    return AddRow(row, f"id{row}", "send", wire.pack(args), body, at)


def settle(row: int, at: int = 9, **result: object) -> SettleRow:
    return SettleRow(row, 200, wire.pack(result), "done", at)


def never() -> str:
    raise AssertionError("the book was there")


def test_file_is_private_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    box = Outbox.open(path)
    book = box.load(lambda: "ob1")
    assert book == Book("ob1")
    book.name, book.term, book.store, book.seq, book.chain, book.base = "api", 3, "s", 9, "c", 2
    box.apply([PutBook(book), add(1, to=["bob"]), add(2)])
    if sys.platform != "win32":
        for file in tmp_path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert box._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert box._db.execute("PRAGMA synchronous").fetchone() == (2,)
    box.close()
    again = Outbox.open(path)
    book.last = 2
    assert again.load(never) == book
    assert again.row(1) == module.StoredRow(1, "id1", "send", {"to": ["bob"]}, b"hi", 5)
    again.close()


def test_a_kill_leaves_what_was_applied(tmp_path: Path) -> None:
    pid = os.fork() if hasattr(os, "fork") else pytest.skip("no fork")
    if pid == 0:
        box = Outbox.open(tmp_path / "agent.db")
        box.load(lambda: "ob1")
        box.apply([add(1), PutShown("h/m", Shown("offering", "native"))])
        box._db.execute("BEGIN IMMEDIATE")
        box._db.execute("DELETE FROM rows")
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    box = Outbox.open(tmp_path / "agent.db")
    assert box.load(never) == Book("ob1", last=1, ledger={"h/m": Shown("offering", "native")})
    assert box.row(1).body == b"hi"
    box.close()


def test_a_crash_before_the_schema_is_mended(tmp_path: Path) -> None:
    (tmp_path / "agent.db").touch(0o600)
    box = Outbox.open(tmp_path / "agent.db")
    assert box.load(lambda: "ob1").ob == "ob1"
    box.close()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"garbage " * 1000, "not a database"),
        ("PRAGMA user_version = 1; CREATE TABLE x (y)", "another program's"),
        ("CREATE TABLE x (y)", "another program's"),
        (f"PRAGMA application_id = {module.APPLICATION}; PRAGMA user_version = 99", "schema 99"),
    ],
)
def test_what_is_not_ours_is_refused_with_file_and_mend(tmp_path: Path, content: bytes | str, says: str) -> None:
    path = tmp_path / "agent.db"
    path.touch(0o600)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        db = sqlite3.connect(path)
        db.executescript(content)
        db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=says) as error:
        Outbox.open(path)
    assert str(path) in str(error.value) and "away" in str(error.value) and not error.value.full
    assert path.read_bytes() == before


def test_places_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be made"):
        Outbox.open(tmp_path / "no" / "agent.db")
    with pytest.raises(StoreError):
        Outbox.from_dump(b"x" * 5000)
    if sys.platform != "win32":
        (tmp_path / "open.db").touch(0o644)
        with pytest.raises(ConfigError, match="open to others"):
            Outbox.open(tmp_path / "open.db")


def test_a_schema_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MIGRATIONS", ("CREATE TABLE a (b);\nCREATE NONSENSE", ""))
    with pytest.raises(StoreError, match="cannot open"):
        Outbox.open(tmp_path / "agent.db")
    monkeypatch.undo()
    Outbox.open(tmp_path / "agent.db").close()


def test_a_dump_is_an_older_copy(tmp_path: Path) -> None:
    for box in (Outbox.memory(), Outbox.open(tmp_path / "agent.db")):
        box.load(lambda: "ob1")
        box.apply([add(1), add(2)])
        copy = box.dump()
        box.apply([settle(1), add(3)])
        assert (box.load(never).first, box.load(never).last) == (2, 3)
        old = Outbox.from_dump(copy)
        assert old.load(never) == Book("ob1", last=2)
        old.apply([add(3, b"another")])
        assert (old.row(3).body, box.row(3).body) == (b"another", b"hi")
        old.close()
        box.close()


@pytest.mark.parametrize(
    ("last", "says"),
    [
        (add(2), "row 2 is out of order"),
        (add(4), "row 4 is out of order"),
        (settle(3), "reply to row 3 is out of order"),
        (settle(1), "reply to row 1 is out of order"),
        (AddRow(3, "\ud800", "send", b"\x80", b"", 1), "fault"),
        (AddRow(3, "x", "send", b"\x80", b"", 2**70), "fault"),
        (PutShown("x", Shown(None, "")), "NOT NULL"),  # type: ignore[arg-type]
    ],
)
def test_a_write_that_cannot_be_undoes_the_whole_batch(last: Write, says: str) -> None:
    box = Outbox.memory()
    book = box.load(lambda: "ob1")
    box.apply([add(1), add(2), settle(1), PutShown("h/a", Shown("offering", "x"))])
    before, rows = box.load(never), box.recent(9)
    writes = [PutBook(Book("ob2")), DropShown("h/a"), last]
    with pytest.raises(StoreError, match=says) as error:
        box.apply(writes)
    assert not error.value.full
    assert (box.load(never), box.recent(9)) == (before, rows)
    assert book.ob == "ob1"
    box.apply([add(3, b"good")])
    assert box.row(3).body == b"good"


def test_nothing_to_settle() -> None:
    box = Outbox.memory()
    with pytest.raises(StoreError, match="out of order"):
        box.apply([settle(1)])
    box.apply([])


def test_a_full_disk_is_told_and_what_failed_is_not_found(tmp_path: Path) -> None:
    box = Outbox.open(tmp_path / "agent.db")
    box.load(lambda: "ob1")
    pages = box._db.execute("PRAGMA page_count").fetchone()[0]
    box._db.execute(f"PRAGMA max_page_count = {pages + 10}")
    big = [add(1), add(2, bytes(200_000))]
    with pytest.raises(StoreError, match=r"agent\.db") as error:
        box.apply(big)
    assert error.value.full
    assert box.load(never) == Book("ob1")
    with pytest.raises(StoreError, match="no row 1"):
        box.row(1)
    box._db.execute("PRAGMA max_page_count = 1000000")
    box.apply(big)
    box._db.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError) as error:
        box.apply([settle(1)])
    assert error.value.full and box.row(1).code is None
    box._db.execute("PRAGMA query_only = OFF")
    box.apply([settle(1)])
    box.close()


def test_a_full_disk_for_the_first_book_is_told_and_tried_again() -> None:
    box = Outbox.memory()
    box._db.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError) as error:
        box.load(lambda: "ob1")
    assert error.value.full
    box._db.execute("PRAGMA query_only = OFF")
    assert box.load(lambda: "ob2").ob == "ob2"


def test_a_row_with_its_reply() -> None:
    box = Outbox.memory()
    large = {"to": [{"name": "x" * 60, "text": "y" * 200}] * 100}
    box.apply([add(1, to=["a"]), add(2), SettleRow(1, 409, wire.pack(large), "no", 77)])
    row = box.row(1)
    assert (row.code, row.result, row.text, row.settled_at) == (409, large, "no", 77)
    assert len(wire.pack(large)) > wire.HEAD_MAX
    assert box.by_id("id1") == row and box.by_id("id9") is None
    assert [r.row for r in box.recent(9)] == [2, 1] and [r.row for r in box.recent(1)] == [2]
    assert box.by_id("id2") == box.row(2)
    box._db.execute("UPDATE rows SET args = x'c1' WHERE row = 1")
    with pytest.raises(StoreError, match="row 1 is damaged"):
        box.row(1)


def test_fresh_rows_are_kept_within_bounds() -> None:
    box = Outbox.memory()
    size = CACHE_MAX // 8
    for n in range(1, 13):
        box.apply([add(n, bytes(size))])
    assert box._fresh_octets <= CACHE_MAX
    assert box._fresh_octets == sum(len(r.body) + len(r.args) + CACHE_ENTRY for r in box._fresh.values())
    assert 12 in box._fresh and 1 not in box._fresh
    box._db.set_trace_callback(lambda sql: pytest.fail(f"read back: {sql}"))
    assert box.row(12).body == bytes(size)
    box._db.set_trace_callback(None)
    assert box.row(1).body == bytes(size)
    box.apply([settle(n) for n in range(1, 13)])
    assert box._fresh_octets == 0 and box.row(12).code == 200


def test_the_ledger_is_limited_and_what_was_not_told_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEDGER_KEPT", 3)
    monkeypatch.setattr(module, "LEDGER_ON_DISK", 6)
    box = Outbox.memory()
    box.load(lambda: "ob1")
    for n in range(12):
        box.apply([PutShown(f"h/{n}", Shown("shown", "p", "t", n, told=n not in (1, 7)))])
    assert list(box.load(never).ledger) == ["h/1", "h/7", "h/9", "h/10", "h/11"]
    assert ledger_line(box, "h/0") == Shown("shown", "p", "t", 0, True)
    assert box.tidy(0, 3)
    assert not box.tidy(0, 3)
    kept = [n for n in range(12) if ledger_line(box, f"h/{n}")]
    assert kept == [1, *range(6, 12)]
    # A change keeps the place, as in a dict; dropped and written again it is the newest.
    box.apply([PutShown("h/9", Shown("shown", "p", "t2", 99, True)), DropShown("h/10")])
    box.apply([PutShown("h/10", Shown("offering", "p"))])
    assert list(box.load(never).ledger) == ["h/1", "h/7", "h/9", "h/11", "h/10"]
    assert ledger_line(box, "h/9") == Shown("shown", "p", "t2", 99, True)
    assert ledger_line(box, "h/none") is None


def test_tidy_removes_old_settled_rows_in_pieces_and_no_number_is_used_twice() -> None:
    box = Outbox.memory()
    box.load(lambda: "ob1")
    box.apply([add(n) for n in range(1, 8)])
    box.apply([settle(n, at=n) for n in range(1, 7)])
    assert not box.tidy(KEPT_MS + 1, 2)
    assert box.tidy(KEPT_MS + 6, 2) and box.tidy(KEPT_MS + 6, 2)
    assert [r.row for r in box.recent(9)] == [7, 6, 5]
    assert not box.tidy(KEPT_MS + 6, 2)
    assert [r.row for r in box.recent(9)] == [7, 6]
    box.apply([settle(7, at=7)])
    assert not box.tidy(9 * KEPT_MS, 9) and not box.tidy(9 * KEPT_MS, 9)
    assert box.recent(9) == []
    book = box.load(never)
    assert (book.first, book.last) == (8, 7)
    box.apply([add(8)])
    assert box.row(8).row == 8


def test_an_unsettled_row_has_no_age() -> None:
    box = Outbox.memory()
    box.apply([add(1, at=0)])
    assert not box.tidy(99 * KEPT_MS, 9)
    assert box.row(1).id == "id1"


TEXT = st.text(max_size=8)
SMALL = st.integers(0, 6)
STEP = st.one_of(
    st.tuples(
        st.just("add"), st.dictionaries(TEXT, st.integers(0, 2**60) | TEXT, max_size=3), st.binary(max_size=40)
    ),
    st.tuples(st.just("settle"), st.integers(200, 507), TEXT),
    st.tuples(st.just("book"), TEXT, SMALL),
    st.tuples(st.just("shown"), SMALL, st.booleans()),
    st.tuples(st.just("change"), SMALL, TEXT),
    st.tuples(st.just("drop"), SMALL, st.none()),
)


def play(book: Book, step: tuple[str, object, object]) -> list[Write]:
    """One step of an agent: the book changes as its owner changes it, and the writes say so."""
    what, one, two = step
    if what == "add":
        book.last += 1
        return [AddRow(book.last, f"id{book.last}", "send", wire.pack(one), two, book.last)]  # type: ignore[arg-type]
    if what == "settle" and book.unsettled:
        book.first += 1
        return [SettleRow(book.first - 1, one, wire.pack({"t": two}), two, 7)]  # type: ignore[arg-type]
    if what == "book":
        book.ob, book.base, book.seq, book.chain = f"ob{one}", book.first - 1, two, one  # type: ignore[assignment]
        book.name, book.term, book.store = one, two, one  # type: ignore[assignment]
        return [PutBook(book)]
    key = f"h/{one}"
    if what == "shown":
        book.ledger[key] = Shown("offering", "native", at=3, told=two)  # type: ignore[arg-type]
        return [PutShown(key, book.ledger[key])]
    if what == "change" and key in book.ledger:
        line = book.ledger[key]
        line.state, line.proof = "shown", two  # type: ignore[assignment]
        return [PutShown(key, line)]
    if what == "drop":
        book.ledger.pop(key, None)
        return [DropShown(key)]
    return []


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.lists(STEP, max_size=6), st.booleans()), max_size=12))
def test_load_equals_the_book_in_memory(batches: list[tuple[list[tuple[str, object, object]], bool]]) -> None:
    box = Outbox.memory()
    book = box.load(lambda: "ob")
    rows: list[AddRow] = []
    for steps, fails in batches:
        ahead = deepcopy(book)
        writes = [write for step in steps for write in play(ahead, step)]
        if fails:
            with pytest.raises(StoreError):
                box.apply([*writes, AddRow(ahead.last + 2, "x", "x", b"", b"", 0)])
        else:
            box.apply(writes)
            book = ahead
            rows += [write for write in writes if isinstance(write, AddRow)]
        again = Outbox.from_dump(box.dump())
        loaded = again.load(never)
        assert loaded == book
        assert list(loaded.ledger) == list(book.ledger)
        for row in rows:
            assert box.row(row.row) == again.row(row.row)
            assert (again.row(row.row).code is None) == (row.row >= book.first)
            assert again.row(row.row).args == wire.unpack(row.args)
        again.close()
    box.close()
