"""The maildir from the agent's side; tests/test_hooks.py has the other side."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.delivery import maildir as module
from agent.delivery.maildir import Box, Fate, Maildir, sweep
from bus import processes
from bus.errors import ConfigError

NOW = 1_763_700_000_000


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box").make()


def own() -> str:
    start = processes.start_time(os.getpid())
    assert start
    return start


def gone() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["task", "note"])), max_size=20))
def test_names_sort_in_the_order_of_put(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[int, str]]
) -> None:
    box = Box(tmp_path_factory.mktemp("m") / "box").make()
    names = [box.put("x", "task" if kind == "task" else "note", NOW + late) for late, kind in puts]
    assert box.waiting() == names == sorted(names)


def test_a_text_is_whole_and_private(box: Box) -> None:
    name = box.put("é\n\ud800 😀\x00", "note", NOW)
    path = box.path / "new" / name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(box.path.stat().st_mode) == 0o700
    first = path.read_bytes().partition(b"\n")[0]
    assert first.isascii() and str(len(first)) == name.split(".")[2]
    assert box.text(name) == "é\n? 😀\x00"
    assert os.listdir(box.path / "tmp") == []


def test_too_long_a_text_is_refused(box: Box) -> None:
    box.put("😀" * 4500, "task", NOW)
    with pytest.raises(ValueError, match="at most 9000"):
        box.put("😀" * 4500 + "x", "task", NOW)


def test_withdrawn_or_claimed_never_both(box: Box) -> None:
    first, second = box.put("one", "task", NOW), box.put("two", "task", NOW)
    assert box.fate(first) is Fate.WAITING
    assert box.withdraw(first) and box.fate(first) is Fate.GONE and not box.withdraw(first)
    claim = box.claim(second)
    assert claim is not None and box.claim(second) is None and not box.withdraw(second)
    assert box.fate(second) is Fate.CLAIMED and box.text(second) == "two"
    box.finish(claim)
    assert box.fate(second) is Fate.PRINTED and box.names() == [second]
    box.forget(second)
    assert box.fate(second) is Fate.GONE and box.names() == []


def test_a_notice_is_not_the_text(box: Box) -> None:
    name = box.put("one", "task", NOW)
    claim = box.claim(name)
    assert claim is not None
    box.finish(claim, shown=False)
    assert box.fate(name) is Fate.NOTICED and box.text(name) == "one"
    box.forget(name)
    assert box.names() == []


def test_one_who_died_over_it_leaves_a_doubt(box: Box) -> None:
    name = box.put("one", "task", NOW)
    claim = box.claim(name)
    assert claim is not None
    dead = claim.with_name(f"{name}.{gone()}")
    claim.rename(dead)
    assert box.fate(name) is Fate.LOST
    (box.path / "done" / f"{name}.123").touch()
    assert box.fate(name) is Fate.PRINTED
    box.forget(name)
    assert box.fate(name) is Fate.GONE


def test_a_text_that_ends_says_so_in_its_name(box: Box) -> None:
    name = box.put("one", "task", NOW, NOW + 1999)
    assert f".{NOW // 1000 + 1}." in name and box.waiting() == [name]
    claim = box.claim(name)
    assert claim is not None and box.fate(name) is Fate.CLAIMED and box.text(name) == "one"
    box.finish(claim)
    assert box.fate(name) is Fate.PRINTED and box.names() == [name]
    box.forget(name)
    assert box.names() == []


def test_names_of_others_are_not_ours(box: Box) -> None:
    for folder in ("new", "cur", "done"):
        (box.path / folder / "README").touch()
        (box.path / folder / "1.task.2.x").touch()
    assert box.names() == box.waiting() == []
    assert box.fate("../../etc/passwd") is Fate.GONE and box.text("README") == ""


def test_the_folder_of_a_client(tmp_path: Path) -> None:
    maildirs = tmp_path / "run" / "maildirs"
    left = maildirs / f"{os.getpid()}-older-1" / "new"
    left.mkdir(parents=True)
    made = Maildir.open(maildirs, os.getpid(), own())
    assert made.path.parent == maildirs and not left.exists()
    assert (made.path / "agent").read_text() == f"{os.getpid()}\n"
    name = made.put("x", "task", NOW)
    made.close(remove=False)
    again = Maildir.open(maildirs, os.getpid(), own())  # an agent that comes back finds what it had put
    assert again.box.names() == [name] and not again.hooked() and not again.waiter
    again.close()
    assert not again.path.exists()
    again.close()


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    place = Maildir.place(tmp_path, os.getpid(), own())
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="symlink"):
        Maildir.open(tmp_path, os.getpid(), own())


def test_what_dead_sessions_left_is_swept(tmp_path: Path) -> None:
    made = Maildir.open(tmp_path / "m", os.getpid(), own())
    for name in (f"{gone()}-x", f"{os.getpid()}-other-2", "1-t0.00"):
        (tmp_path / "m" / name / "new").mkdir(parents=True)
    (tmp_path / "m" / "not ours").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "m" / f"{gone()}-link").symlink_to(tmp_path / "kept")
    assert sweep(tmp_path / "m") == 4
    assert sorted(os.listdir(tmp_path / "m")) == sorted([made.path.name, "not ours"]) and (tmp_path / "kept").exists()
    assert sweep(tmp_path / "none") == 0
    made.close()


@pytest.mark.parametrize("text", ["", "\n", "dancing", "busy", "asking Notification  \n", "\xff"])
def test_activity_is_read_with_tolerance(tmp_path: Path, text: str) -> None:
    made = Maildir(tmp_path)
    assert made.activity() is None
    (tmp_path / "activity").write_text(text, "latin-1")
    seen = made.activity()
    assert (seen.doing if seen else "") == (text.split() or [""])[0] * (text[:4] in ("busy", "aski"))


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFO")
def test_the_bell_never_blocks(tmp_path: Path) -> None:
    made = Maildir.open(tmp_path / "m", os.getpid(), own())
    for _ in range(70_000):
        made.ring()
    made.close()
    made.ring()


def test_a_file_of_somebody_else_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello")
    with pytest.raises(ValueError, match="no text of ours"):
        module.body(tmp_path / "x")
