"""private: modes from the first byte, and what is refused rather than mended."""

from __future__ import annotations

import os
import stat
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

from bus.errors import ConfigError
from bus.private import check_private, private_dir, private_file, write_private

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")


def mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_makes_every_missing_level_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        assert private_dir(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    finally:
        os.umask(old)
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o700


@pytest.mark.parametrize("wrong", [0o755, 0o777, 0o500, 0o000])
def test_mends_the_mode_of_our_own_directory(tmp_path: Path, wrong: int) -> None:
    path = tmp_path / "d"
    path.mkdir()
    path.chmod(wrong)
    private_dir(path)
    assert mode(path) == 0o700


def test_refuses_a_symlink_even_to_a_good_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="is a symlink"):
        private_dir(tmp_path / "link")


def test_refuses_a_dangling_symlink_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is a symlink"):
        private_dir(tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="not a directory"):
        private_dir(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot make the directory"):
        private_dir(tmp_path / "file" / "below")


def test_refuses_a_parent_anybody_may_write_but_takes_a_sticky_one(tmp_path: Path) -> None:
    parent = tmp_path / "open"
    parent.mkdir()
    parent.chmod(0o777)
    with pytest.raises(ConfigError, match="chmod o-w"):
        private_dir(parent / "d")
    parent.chmod(0o1777)
    private_dir(parent / "d")


def test_refuses_any_directory_above_that_anybody_may_write(tmp_path: Path) -> None:
    """Who may rename the parent may swap what is below it."""
    deep = tmp_path / "open" / "mine" / "d"
    private_dir(deep)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match=r"open may be written by anybody.*chmod o-w '.*open'"):
        private_dir(deep)
    (tmp_path / "link").symlink_to(tmp_path / "open" / "mine")
    with pytest.raises(ConfigError, match="may be written by anybody"):
        private_dir(tmp_path / "link" / "d")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can give files away")
def test_refuses_a_parent_that_a_stranger_owns(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    private_dir(tmp_path / "theirs" / "d")
    os.chown(tmp_path / "theirs", 12345, -1)
    with pytest.raises(ConfigError, match=r"theirs belongs to user 12345, who could swap d"):
        private_dir(tmp_path / "theirs" / "d")


@pytest.mark.parametrize("wrong", [0o644, 0o660, 0o777])
def test_a_file_that_stood_open_is_closed(tmp_path: Path, wrong: int) -> None:
    path = tmp_path / "bus.db"
    path.touch()
    path.chmod(wrong)
    assert private_file(path)
    assert mode(path) == 0o600
    assert not private_file(path), "it is well by now"


def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").touch(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="is a symlink"):
        private_file(tmp_path / "link")
    with pytest.raises(ConfigError, match="is no file"):
        private_file(tmp_path)
    if os.geteuid() == 0:
        os.chown(tmp_path / "real", 12345, -1)
        with pytest.raises(ConfigError, match="belongs to user 12345"):
            private_file(tmp_path / "real")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can give files away")
def test_refuses_a_foreign_owner(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    os.chown(tmp_path / "d", 12345, -1)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        private_dir(tmp_path / "d")
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        check_private(tmp_path / "d")


def test_writes_0600_whatever_umask_and_former_mode(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    path.chmod(0o666)
    old = os.umask(0)
    try:
        assert write_private(path, b"new")
    finally:
        os.umask(old)
    assert path.read_bytes() == b"new"
    assert mode(path) == 0o600
    assert os.listdir(tmp_path) == ["f"]
    check_private(path)


def test_exclusive_keeps_the_first(tmp_path: Path) -> None:
    path = tmp_path / "f"
    assert write_private(path, b"one", exclusive=True)
    assert not write_private(path, b"two", exclusive=True)
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["f"]


def test_a_failed_write_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*gone/f"):
        write_private(tmp_path / "gone" / "f", b"")
    (tmp_path / "d").mkdir()
    with pytest.raises(ConfigError, match="cannot write"):
        write_private(tmp_path / "d", b"")
    assert os.listdir(tmp_path) == ["d"]


@pytest.mark.parametrize("wrong", [0o640, 0o604, 0o660])
def test_check_refuses_what_others_may_open(tmp_path: Path, wrong: int) -> None:
    path = tmp_path / "key"
    path.touch()
    path.chmod(wrong)
    with pytest.raises(ConfigError, match="chmod 600"):
        check_private(path)
    assert mode(path) == wrong


def test_check_refuses_links_and_absence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does it exist"):
        check_private(tmp_path / "none")
    write_private(tmp_path / "real", b"")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="is a symlink"):
        check_private(tmp_path / "link")


def test_many_processes_make_one_tree(tmp_path: Path) -> None:
    with get_context("spawn").Pool(3) as pool:
        pool.map(private_dir, [tmp_path / "a" / "b" / "c"] * 12)
    assert mode(tmp_path / "a" / "b" / "c") == 0o700
