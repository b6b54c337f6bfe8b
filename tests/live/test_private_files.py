"""What a whole bus leaves on a disk, whatever the umask; and a start that is refused, with the mend, where it must be."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bus.daemon import published
from tests.live.homes import ROOT, Home, wait_for

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")

_AGENT = (
    "import os, sys; sys.path.insert(0, {root!r}); os.umask(0); from agent.server import run; "
    "from bus.config import home, load; h = home(os.environ); sys.exit(run(h, load(h, os.environ), os.environ))"
)


def talkbus(home: Home, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", str(ROOT / "talkbus.py"), *args]
    return subprocess.run(command, env=home.environ, capture_output=True, text=True, timeout=60, umask=0)


def open_to_others(root: Path) -> list[str]:
    """Everything below a folder that anybody else could look into, and its mode."""
    found = []
    for folder, _, files in os.walk(root):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            try:
                mode = stat.S_IMODE(os.lstat(path).st_mode)
            except FileNotFoundError:
                continue  # a temporary file of a living process
            if mode & 0o077:
                found.append(f"{path.relative_to(root)} {mode:04o}")
    return found


def test_everything_is_private_from_the_first_byte_under_any_umask(tmp_path: Path) -> None:
    """The broker starts by itself, a command sends, an agent sits; nobody had a mask."""
    with Home(tmp_path / "bus") as home:
        home.root.mkdir(mode=0o755)
        try:
            assert talkbus(home, "send", "api", "hello", "--new").returncode == 0
            home.paths.config_file.write_text("")
            assert talkbus(home, "config", "set", "limits.rate", "100").returncode == 0
            agent = subprocess.Popen(
                [sys.executable, "-c", _AGENT.format(root=str(ROOT))],
                env=home.environ | {"TALKBUS_NAME": "api"},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                wait_for(lambda: "open" in talkbus(home, "peers", "--json").stdout, "the agent is there")
                assert len(list(home.paths.agents.glob("*/agent.db*"))) >= 4
                found = open_to_others(home.root)
                assert found == [". 0755"], "only the folder that was there before, which is its owner's"
            finally:
                assert agent.stdin is not None
                agent.stdin.close()
                agent.wait(15)
        finally:
            talkbus(home, "down")
        assert published(home.paths) is None
        assert open_to_others(home.root) == [". 0755"]


def test_what_stood_open_is_closed_at_the_next_start_and_said(home: Home) -> None:
    home.start()
    assert home.stop() == 0
    home.paths.bus_db.chmod(0o644)
    home.paths.state.chmod(0o755)
    home.start()
    assert open_to_others(home.paths.state) == []
    assert "bus.db stood open to others" in home.said()


def symlinked_state(home: Home) -> None:
    real = home.root / "elsewhere"
    real.mkdir(mode=0o700)
    home.paths.state.symlink_to(real)


def symlinked_database(home: Home) -> None:
    home.paths.state.mkdir(mode=0o700)
    (home.root / "real.db").touch(0o600)
    home.paths.bus_db.symlink_to(home.root / "real.db")


def open_parent(home: Home) -> None:
    home.root.chmod(0o777)


def open_key(home: Home) -> None:
    assert home.keys.public
    (home.paths.keys / "talkbus.key").chmod(0o644)


def symlinked_keys(home: Home) -> None:
    home.paths.config.mkdir(mode=0o700)
    (home.root / "k").mkdir(mode=0o700)
    home.paths.keys.symlink_to(home.root / "k")


def foreign_state(home: Home) -> None:
    home.paths.state.mkdir(mode=0o700)
    os.chown(home.paths.state, 12345, -1)


ROOT_ONLY = pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can give files away")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (symlinked_state, "state is a symlink (put the real thing there, or set TALKBUS_HOME)"),
        (symlinked_database, "bus.db is a symlink (put the real thing there"),
        (open_parent, "may be written by anybody, who could swap what is below it (chmod o-w"),
        (open_key, "talkbus.key is open to others, mode 0644 (chmod 600"),
        (symlinked_keys, "keys is a symlink (put the real thing there"),
        pytest.param(foreign_state, "state belongs to user 12345, not to you", marks=ROOT_ONLY),
    ],
)
def test_a_start_is_refused_with_the_mend(home: Home, fault: Callable[[Home], None], words: str) -> None:
    home.root.mkdir(mode=0o700)
    fault(home)
    process, pipe = home.spawn()
    try:
        assert process.wait(15) == 1
    finally:
        os.close(pipe)
    last = home.said().strip().splitlines()[-1]
    assert words in last and "Traceback" not in home.said()
