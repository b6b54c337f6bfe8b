"""The journal of a real broker, tampered with in each way there is, and what `talkbus audit verify` says to it."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from bus import store_schema
from bus.effects import PutMeta
from bus.errors import StoreError
from bus.store import Store
from bus.store_audit import Head, verify
from tests.live.homes import ROOT, Home

OPS = 30


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A bus on which two commands have connected, early and late, with other work between; its broker is down."""
    with Home(tmp_path_factory.mktemp("audit") / "bus") as home:
        home.start()
        talkbus(home, "send", "api", "first", "--new", "--as", "early")
        with home.session("api") as api:
            for i in range(OPS):
                assert api.do("state.set", {"key": f"k{i}"}, b"1").code == 200
        talkbus(home, "send", "api", "last", "--as", "late")
        talkbus(home, "send", "api", "the very last", "--as", "late")
        assert home.stop() == 0
        yield home


@pytest.fixture
def copy(bus: Home, tmp_path: Path) -> Path:
    """The database, to be changed."""
    path = tmp_path / "bus.db"
    shutil.copy(bus.paths.bus_db, path)
    return path


def talkbus(home: Home, *args: str, expect: int = 0) -> str:
    """The output of a command, stderr after stdout."""
    command = [sys.executable, "-P", str(ROOT / "talkbus.py"), *args]
    done = subprocess.run(command, env=home.environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == expect, (done.stdout, done.stderr)
    return done.stdout + done.stderr


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def heads(bus: Home) -> list[Head]:
    """Every end of the journal there ever was, as an agent might have been told it."""
    with closing(sqlite3.connect(bus.paths.bus_db)) as db:
        store = db.execute("SELECT value FROM meta WHERE name = 'store'").fetchone()[0]
        return [Head("api", store, seq, chain.hex()) for seq, chain in db.execute("SELECT seq, chain FROM ops")]


def kinds(path: Path, known: list[Head] | None = None) -> set[str]:
    return {fault.kind for fault in verify(path, known or []).faults}


def test_an_honest_journal_is_found_whole(bus: Home, copy: Path) -> None:
    told = verify(copy, heads(bus))
    assert told.faults == [] and told.records == told.last >= OPS + 2
    assert told.heads == told.records and told.unknown == told.others == told.unproved == 0


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("at", "at + 1"), ("op", "'send'"), ("q", "q + 100000"), ("digest", "zeroblob(16)"), ("code", "403"),
        ("reply", "x'92800a'"), ("who", "'somebody@else'"), ("chain", "zeroblob(16)"),
        ("ob", "CASE substr(ob, 1, 1) WHEN 'f' THEN 'e' ELSE 'f' END || substr(ob, 2)"),
    ],
)  # fmt: skip
def test_a_changed_record(bus: Home, copy: Path, column: str, value: str) -> None:
    change(copy, f"UPDATE ops SET {column} = {value} WHERE seq = 12")
    assert "changed" in kinds(copy)
    assert any(f.kind == "changed" and f.seq in (12, 13) for f in verify(copy).faults)


def test_a_removed_record(copy: Path) -> None:
    change(copy, "DELETE FROM ops WHERE seq = 12")
    told = verify(copy)
    assert [(f.kind, f.seq) for f in told.faults if f.kind == "removed"] == [(("removed"), 12)]


def test_the_first_records_removed(copy: Path) -> None:
    change(copy, "DELETE FROM ops WHERE seq <= 5")
    assert next((f.kind, f.seq, f.text) for f in verify(copy).faults) == (
        "removed",
        1,
        "operations 1 to 5 are missing",
    )


def test_a_removal_covered_up_by_a_checkpoint(copy: Path) -> None:
    """With the right chain it looks as if it had been pruned; but nobody ordered a pruning."""
    change(
        copy,
        "INSERT INTO checkpoints (first, seq, chain, at, removed) SELECT 12, 12, chain, at, 1 FROM ops WHERE seq = 12",
        "DELETE FROM ops WHERE seq = 12",
    )
    assert "removed" in kinds(copy)


def test_an_inserted_record_at_the_end(bus: Home, copy: Path) -> None:
    """Chained as it should be, as only a program can: its outbox never did it."""
    from bus.journal import chain

    with closing(sqlite3.connect(copy)) as db:
        seq, head, ob, q = db.execute("SELECT seq, chain, ob, q FROM ops ORDER BY seq DESC LIMIT 1").fetchone()
        record = (seq + 1, 5, ob, q + 1, "send", bytes(16), 200, b"\x92\x80\xa0", "api@alpha")
        link = chain(head, *record)
        db.execute("INSERT INTO ops VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*record[:6], link, *record[6:]))
        db.commit()
    assert kinds(copy) == {"inserted"}
    change(copy, "UPDATE ops SET ob = 'a stranger' WHERE seq = (SELECT max(seq) FROM ops)")
    assert {"inserted", "changed"} <= kinds(copy)


def test_a_truncated_journal(bus: Home, copy: Path) -> None:
    last = verify(copy).last
    change(copy, f"DELETE FROM ops WHERE seq > {last - 3}")
    assert kinds(copy) == {"removed"}, "the outboxes tell"
    change(copy, "UPDATE outboxes SET high = coalesce((SELECT max(q) FROM ops WHERE ob = id), 0), floor = 1")
    assert kinds(copy) == set(), "a careful cut leaves no trace in the file itself"
    told = verify(copy, heads(bus))
    assert {f.kind for f in told.faults} == {"truncated"} and len(told.faults) == 3


def test_a_rewritten_history(bus: Home, copy: Path) -> None:
    """Every link made anew from a changed record on: only who remembers the old one can tell."""
    from bus.journal import chain

    with closing(sqlite3.connect(copy)) as db:
        rows = db.execute("SELECT seq, at, ob, q, op, digest, code, reply, who FROM ops ORDER BY seq").fetchall()
        link = bytes(16)
        for row in rows:
            row = (*row[:6], 403, *row[7:]) if row[0] == 12 else row
            link = chain(link, *row)
            db.execute("UPDATE ops SET code = ?, chain = ? WHERE seq = ?", (row[6], link, row[0]))
        db.commit()
    assert kinds(copy) == set()
    told = verify(copy, heads(bus))
    assert {f.kind for f in told.faults} == {"rewritten"} and min(f.seq for f in told.faults) == 12


def test_another_database_is_named(bus: Home, copy: Path) -> None:
    change(copy, "UPDATE meta SET value = 'another' WHERE name = 'store'")
    told = verify(copy, heads(bus))
    assert told.others == told.last and told.heads == 0


def test_what_was_pruned_is_proved_by_its_checkpoints(bus: Home, copy: Path) -> None:
    """Records whose reply may still be asked for stay as islands: each hangs on the checkpoint before it."""
    change(copy, "UPDATE outboxes SET floor = high - 1 WHERE high > 10")
    store = Store.open(copy)
    store.apply([PutMeta("prune_before", time.time_ns() // 1_000_000 + 1)])
    while store.prune_piece(4):
        pass
    store.close()
    told = verify(copy, heads(bus))
    assert told.faults == [] and told.pruned > 10 and told.unproved == 0
    assert told.records + told.pruned == told.last and told.unknown > 0 and told.heads > 0
    with closing(sqlite3.connect(copy)) as db:
        first, last = db.execute("SELECT first, seq FROM checkpoints ORDER BY row DESC LIMIT 1").fetchone()
    for tamper in (
        f"UPDATE checkpoints SET chain = zeroblob(16) WHERE seq = {last}",
        "DELETE FROM checkpoints WHERE row = 1",
        f"DELETE FROM ops WHERE seq = {last + 1}",
        f"INSERT INTO ops SELECT {first}, at, ob, 77, op, digest, chain, code, reply, who FROM ops WHERE seq = {last + 1}",
        f"UPDATE checkpoints SET first = 1, seq = {told.last + 5} WHERE seq = {last}",
        "UPDATE meta SET value = 1 WHERE name = 'prune_before'",
    ):
        other = copy.with_name("other.db")
        shutil.copy(copy, other)
        change(other, tamper)
        assert verify(other).faults, tamper


def test_a_database_of_the_first_schema_is_migrated_and_proved(tmp_path: Path) -> None:
    """Its records are chained without code, reply and who; those that come after are chained with them."""
    from bus.effects import AddOp, PutOutbox
    from bus.journal import chain, early_chain
    from bus.world import Outbox

    path = tmp_path / "bus.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in store_schema.MIGRATIONS[0].split(";\n"):
            db.execute(statement)
        db.execute("INSERT INTO meta VALUES ('store', 'old'), ('prune_before', 0), ('indexed', 0)")
        db.execute("INSERT INTO outboxes (id, key, high, floor) VALUES ('ob', 'k', 3, 1)")
        link = bytes(16)
        for seq in (1, 2, 3):
            link = early_chain(link, seq, 5, "ob", seq, "status", bytes(16))
            row = (seq, 5, "ob", seq, "status", bytes(16), link, 200, b"", "a@b")
            db.execute("INSERT INTO ops VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        db.execute(f"PRAGMA application_id = {store_schema.APPLICATION}")
        db.execute("PRAGMA user_version = 1")
    path.chmod(0o600)
    with pytest.raises(StoreError, match="older talkbus"):
        verify(path)
    store = Store.open(path)
    world = store.load()
    assert (world.seq, world.policy, world.paused) == (3, {}, {})
    link = chain(world.chain, 4, 6, "ob", 4, "status", bytes(16), 200, b"", "a@b")
    store.apply([AddOp(4, 6, "ob", 4, "status", bytes(16), link, 200, b"", "a@b"), PutOutbox(Outbox("ob", "k", 4))])
    store.close()
    told = verify(path)
    assert (told.records, told.faults, told.unproved) == (4, [], 0)
    change(path, "UPDATE ops SET digest = x'01' WHERE seq = 2")
    assert kinds(path) == {"changed"}


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_compares_what_agents_remember(bus: Home, tmp_path: Path) -> None:
    told = json.loads(talkbus(bus, "audit", "verify", "--json"))
    assert told["ok"] and told["heads"] >= 2 and told["faults"] == [] and told["unread"] == 0
    assert "nothing is missing" in talkbus(bus, "audit", "verify")
    cut = tmp_path / "bus.db"
    shutil.copy(bus.paths.bus_db, cut)
    change(
        cut,
        f"DELETE FROM ops WHERE seq > {told['last'] - 2}",
        "UPDATE outboxes SET high = coalesce((SELECT max(q) FROM ops WHERE ob = id), 0), floor = 1",
    )
    said = talkbus(bus, "audit", "verify", "--file", str(cut), expect=1)
    assert "truncated" in said and "late remembers" in said and "error: the journal was tampered with" in said
    failed = talkbus(bus, "audit", "verify", "--json", "--file", str(cut), expect=1)
    assert json.loads(failed[: failed.rindex("}") + 1])["ok"] is False
    assert "does not exist" in talkbus(bus, "audit", "verify", "--file", str(tmp_path / "none"), expect=1)


def test_the_command_beside_a_running_broker_and_over_the_bus(home: Home, stack: ExitStack) -> None:
    record = home.start()
    api = stack.enter_context(home.session("api"))
    for i in range(5):
        api.do("state.set", {"key": f"k{i}"}, b"1")
    talkbus(home, "send", "api", "hello", "--as", "me")
    assert json.loads(talkbus(home, "audit", "verify", "--json"))["heads"] >= 1
    home.environ["TALKBUS_HUB"] = f"{record.router.removeprefix('tcp://')}#{record.key}"
    over: dict[str, Any] = json.loads(talkbus(home, "audit", "verify", "--json"))
    assert over["ok"] and over["heads"] >= 1 and "records" not in over
    seat = next(
        path for path in home.paths.agents.glob("*/agent.db") if b"me" in (path.parent / "seat.json").read_bytes()
    )
    change(seat, "UPDATE heads SET chain = 'ff'")
    assert "rewritten" in talkbus(home, "audit", "verify", expect=1)
    change(seat, "UPDATE heads SET seq = 999")
    assert "truncated" in talkbus(home, "audit", "verify", expect=1)
