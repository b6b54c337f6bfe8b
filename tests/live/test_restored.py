"""Databases that are replaced by older copies, and mail behind a window full of notes: with real processes."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from agent.delivery import maildir
from tests.live.homes import Home
from tests.live.test_faults import _until_shown
from tests.live.test_mcp_bed import Bed, bed, bodies, until
from tests.live.test_mcp_process import Raw, start
from tests.live.worker import Worker, wait_on

pytestmark = [pytest.mark.timeout(150), pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")]

PATIENCE = 60.0


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bed]:
    with bed(tmp_path / "bus") as made:
        made.stop_mark()
        yield made


@pytest.fixture
def raws() -> Iterator[list[Raw]]:
    made: list[Raw] = []
    yield made
    for raw in made:
        raw.end()


def copy(database: Path, to: Path) -> None:
    """As a backup would: consistent, while others write."""
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)
    to.chmod(0o600)


def replace(database: Path, by: Path) -> None:
    """Nobody has it open any more."""
    for end in ("-wal", "-shm"):
        database.with_name(database.name + end).unlink(missing_ok=True)
    shutil.copy2(by, database)


# -- the broker's --------------------------------------------------------------------------------------------------


def test_a_session_that_began_after_the_copy_goes_on_by_itself(bus: Bed, raws: list[Raw], tmp_path: Path) -> None:
    """In the copy its mailbox belongs to an earlier session, which will never come back."""
    alice, first = start(raws, bus, "alice"), start(raws, bus, "bob")
    until(lambda: "bob@" in first.call("set_status") and "role owner" in first.call("set_status"))
    copy(bus.home.bus_db, tmp_path / "copy.db")
    first.end()
    bob = start(raws, bus, "bob")
    until(lambda: "role owner" in bob.call("set_status"))
    bus.kill()
    replace(bus.home.bus_db, tmp_path / "copy.db")
    bus.up()
    until(lambda: "role owner" in alice.call("set_status"))
    assert "stored" in alice.call("send_message", to="bob", body="to whoever is bob")
    told = bob.call("send_message", to="alice", body="from after the copy")
    assert "queued" in told and "goes out by itself" in told
    assert "kept for" in bob.call("set_status") and "living" not in bob.call("set_status")
    # What was queued goes out, and what waits comes in, with nobody doing anything about it.
    until(lambda: "from after the copy" in alice.call("check_messages", wait_s=5), PATIENCE)
    seen: list[str] = []
    until(lambda: seen.extend(bodies(bob.call("check_messages", wait_s=5))) or seen, PATIENCE)
    assert seen == ["to whoever is bob"]
    assert bob.call("set_status").startswith("bob@")


def test_a_session_whose_name_the_copy_gives_to_another_takes_another_name(
    bus: Bed, raws: list[Raw], tmp_path: Path
) -> None:
    """Nobody took the name from it, so it does not wait for a decision: its mail would wait as well."""
    alice = start(raws, bus, "alice")
    older = start(raws, bus, "bob")
    until(lambda: "role owner" in older.call("set_status"))
    copy(bus.home.bus_db, tmp_path / "copy.db")
    assert "'docs' now" in older.call("set_status", name="docs")
    newer = start(raws, bus, "bob", TALKBUS_NAME="bob")
    until(lambda: newer.call("set_status").startswith("bob@"))
    bus.kill()
    replace(bus.home.bus_db, tmp_path / "copy.db")
    bus.up()
    said = [newer.call("send_message", to="alice", body="from whoever was bob")]
    until(lambda: "from whoever was bob" in alice.call("check_messages", wait_s=5), PATIENCE)
    assert older.call("set_status").startswith("bob@")
    until(lambda: said.append(newer.call("set_status")) or said[-1].startswith("bob-2@"))
    told = [text for text in said if "its database was restored" in text]
    assert len(told) == 1 and "'bob-2' now" in told[0] and "'bob' belongs to another session" in told[0]


# -- the agent's ---------------------------------------------------------------------------------------------------


def test_what_was_shown_before_the_copy_came_back_is_marked(home: Home, stack: ExitStack, tmp_path: Path) -> None:
    """The agent is killed in the moment after it began to show, and its database is the first copy each time."""
    count = 300
    home.start()

    def through() -> bool:
        return len({ident for ident, *_ in bob.lines("shown")}) >= count

    bob = stack.enter_context(Worker(home.environ, tmp_path, "receive", "bob", pace=0.005))
    wait_on([bob], bob.awake, "an agent", PATIENCE)
    bob.kill()
    database = tmp_path / "bob" / "agent.db"
    copy(database, tmp_path / "copy.db")
    alice = stack.enter_context(Worker(home.environ, tmp_path, "send", "alice", to="bob", count=count))
    for turn in range(6):
        replace(database, tmp_path / "copy.db")
        had = len(bob.lines("shown"))
        bob.start()

        def began(had: int = had) -> bool:
            return through() or len(bob.lines("shown")) > had

        wait_on([alice, bob], began, f"the work of life {turn}", PATIENCE)
        bob.kill()
    replace(database, tmp_path / "copy.db")
    bob.start()
    _until_shown(home, bob, [alice], count)
    seen: set[str] = set()
    repeats = 0
    for ident, number, _, repeat in bob.lines("shown"):
        assert repeat or ident not in seen, f"{number} was shown again without a mark"
        repeats += ident in seen
        seen.add(ident)
    assert repeats, "no life ended in time: nothing was tried"


# -- more notes than a window holds ----------------------------------------------------------------------------------


def test_a_task_comes_past_a_hundred_notes(bus: Bed, raws: list[Raw]) -> None:
    """A session with hooks is shown no note before a task or a prompt; the task rings, and is in the first text."""
    alice = start(raws, bus, "alice")
    environ = {"CLAUDE_PID": str(os.getpid()), "CLAUDE_CONFIG_DIR": str(bus.root / "claude")}
    bob = start(raws, bus, "bob", **environ)
    until(lambda: "role owner" in bob.call("set_status"))
    (folder,) = until(lambda: list((bus.root / "run" / "maildirs").glob(f"{os.getpid()}-*")))
    (folder / "activity").touch()  # a hook was heard from
    box = maildir.Box(folder)
    for number in range(100):
        alice.call("send_message", to="bob", kind="note", body=f"note {number} " + "x" * 2000)
    until(lambda: any("note 0 " in box.text(name) for name in box.waiting()))
    alice.call("send_message", to="bob", body="the task")

    def rung() -> list[str]:
        """The text for which the session is woken."""
        texts = [box.text(name) for name in box.waiting() if "task" in name]
        return [text for text in texts if "the task" in text]

    (text,) = until(rung)
    assert "note 0 " in text and len(text) < 10_000, "the oldest notes ride along, as far as there is room"


def test_a_tool_result_has_the_task_before_the_notes(bus: Bed, raws: list[Raw]) -> None:
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    until(lambda: "role owner" in bob.call("set_status"))
    for number in range(100):
        alice.call("send_message", to="bob", kind="note", body=f"note {number}")
    alice.call("send_message", to="bob", body="the task")
    seen = bodies(bob.call("check_messages", limit=5))
    assert seen == [f"note {number}" for number in range(4)] + ["the task"]
    seen += bodies(bob.call("set_status"))
    while len(seen) < 101:
        seen += bodies(bob.call("check_messages", wait_s=5))
    assert [text for text in seen if text != "the task"] == [f"note {number}" for number in range(100)]
