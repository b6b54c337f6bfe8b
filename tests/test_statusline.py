"""The status line: the file an agent keeps, and the shell script that reads it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli.call import Call
from agent.cli.statusline import statusline
from agent.statusline import SCRIPT, StatusFile, text
from bus.config import Home
from bus.config import home as home_of
from bus.daemon import Record, publish
from bus.processes import start_time

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell script")

SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox") if shutil.which(shell)]
CLIENT = 4_000_001  # above every pid: no process, which is as good for a file's name


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_of({"TALKBUS_HOME": str(tmp_path / "with space")})


@pytest.fixture
def dead() -> Iterator[tuple[int, str]]:
    """Pid and start of a process that is gone."""
    process = subprocess.Popen(["sleep", "60"])
    start = start_time(process.pid)
    assert start
    process.send_signal(signal.SIGKILL)
    process.wait()
    yield process.pid, start


def show(home: Home, *options: str, shell: str = "sh", env: dict[str, str] | None = None, stdin: str = "{}") -> str:
    command = [shell, *(["sh"] if shell == "busybox" else []), str(SCRIPT), *options]
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "CLAUDE_PID": str(CLIENT)}
    environ |= {"TALKBUS_HOME": str(home.root)} if home.root else {}
    environ |= env or {}
    run = subprocess.run(
        command, env={k: v for k, v in environ.items() if v}, input=stdin, capture_output=True, text=True, timeout=20
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def broker(home: Home, pid: int | None = None, start: str | None = None) -> None:
    pid = pid or os.getpid()
    publish(home, Record(pid, start or start_time(pid) or "", "tcp://127.0.0.1:1", "tcp://127.0.0.1:2", "k", "0"))


def test_zeros_drop_out() -> None:
    assert text("api", 3, 2) == "api · 3 peers · ✉2"
    assert text("api", 1, 0) == "api · 1 peer"
    assert text("api", 0, 0, 4) == "api · 4 held"
    assert text("api", 0, 0) == "api"


@pytest.mark.parametrize("shell", SHELLS)
def test_a_session_shows_its_line(shell: str, home: Home) -> None:
    StatusFile(home, CLIENT).write("api", 3, 2)
    broker(home)
    assert show(home, shell=shell) == "api · 3 peers · ✉2\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_without_a_session(shell: str, home: Home) -> None:
    assert show(home, shell=shell) == "bus down\n"
    assert show(home, "--quiet", shell=shell) == ""
    broker(home)
    assert show(home, shell=shell) == "no session\n"
    assert show(home, "--quiet", shell=shell) == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_a_dead_broker_is_told(shell: str, home: Home, dead: tuple[int, str]) -> None:
    StatusFile(home, CLIENT).write("api", 3, 2)
    assert show(home, "--quiet", shell=shell) == "bus down\n"
    broker(home, *dead)
    assert show(home, "--quiet", shell=shell) == "bus down\n"
    if sys.platform == "linux":
        broker(home, os.getpid(), dead[1])  # its pid was given out again
        assert show(home, "--quiet", shell=shell) == "bus down\n"


def test_the_copy_of_the_record_in_the_state_folder_is_as_good(home: Home) -> None:
    StatusFile(home, CLIENT).write("api", 0, 1)
    broker(home)
    home.record.unlink()
    assert show(home) == "api · ✉1\n"


def test_the_broker_of_another_machine_is_not_looked_for(home: Home) -> None:
    StatusFile(home, CLIENT, hub=True).write("api", 1, 0)
    assert show(home) == "api · 1 peer\n"
    StatusFile(home, CLIENT, hub=True).clear()
    assert show(home) == "bus down\n"
    assert show(home, env={"TALKBUS_HUB": "far:1#key"}) == "no session\n"
    home.config.mkdir(parents=True)
    for line, says in (
        ('hub = ""', "bus down"),
        ('hub = "far:1#k"', "no session"),
        ("  hub='far:1#k'", "no session"),
    ):
        home.config_file.write_text(f"port = 1\n{line}\n")
        assert show(home) == f"{says}\n", line


def test_the_file_of_a_dead_agent_is_not_believed_and_swept(home: Home, dead: tuple[int, str]) -> None:
    broker(home)
    status = StatusFile(home, CLIENT)
    status.write("api", 3, 2)
    folder = home.runtime / "status"
    (folder / f"{CLIENT}.pid").write_text(f"{dead[0]} {dead[1]}\n")
    assert show(home) == "no session\n"
    for junk in ("", "x", "12", f"{os.getpid()} 00000000-1"):
        (folder / f"{CLIENT}.pid").write_text(junk)
        assert show(home) == "no session\n" or junk == "12"
    (folder / f"{CLIENT}.pid").write_text(f"{dead[0]} {dead[1]}\n")
    StatusFile(home, CLIENT + 1).write("web", 0, 0)
    assert sorted(path.name for path in folder.iterdir()) == [f"{CLIENT + 1}.line", f"{CLIENT + 1}.pid"]


def test_it_is_written_only_when_it_is_new_and_cleared_only_by_its_owner(home: Home) -> None:
    status = StatusFile(home, CLIENT)
    line = home.runtime / "status" / f"{CLIENT}.line"
    status.write("api", 1, 0)
    assert line.stat().st_mode & 0o777 == 0o600 and line.parent.stat().st_mode & 0o777 == 0o700
    first = line.stat().st_ino
    status.write("api", 1, 0)
    assert line.stat().st_ino == first
    status.write("api", 2, 0)
    assert line.stat().st_ino != first and line.read_text() == "api · 2 peers\n"
    line.unlink()  # by somebody who tidies up
    status.write("api", 2, 0)
    assert line.exists()
    line.with_suffix(".pid").write_text(f"1 {start_time(1)}\n")
    status.clear()
    assert line.exists()
    line.with_suffix(".pid").write_text(f"{os.getpid()} {start_time(os.getpid())}\n")
    status.clear()
    status.clear()
    assert list(line.parent.iterdir()) == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_session_is_found_by_ancestry_too(shell: str, home: Home) -> None:
    StatusFile(home, os.getpid()).write("api", 0, 0)
    broker(home)
    assert show(home, shell=shell, env={"CLAUDE_PID": ""}) == "api\n"
    nested = {"CLAUDE_PID": "", "INNER": f"{shell} {'sh ' * (shell == 'busybox')}'{SCRIPT}'"}
    assert show(home, "--after", 'sh -c "$INNER; :"', shell="sh", env=nested).startswith("api\x1b[0m · api")


def test_the_users_own_line_comes_first(home: Home) -> None:
    StatusFile(home, CLIENT).write("api", 0, 2)
    broker(home)
    assert show(home, "--after", "cat; echo", stdin='{"model": 1}') == '{"model": 1}\x1b[0m · api · ✉2\n'
    assert show(home, "--after", "printf 'one\\ntwo\\n'") == "one\ntwo\x1b[0m · api · ✉2\n"
    assert show(home, "--after", "exit 3") == "api · ✉2\n"
    assert (
        show(home, "--after", 'echo "it\'s" mine', env={"TALKBUS_HOME": "/none"}) == "it's mine\x1b[0m · bus down\n"
    )
    assert show(home, "--quiet", "--after", "echo mine", env={"TALKBUS_HOME": "/none"}) == "mine\n"
    assert show(home, "--after", "") == show(home, "--after") == "api · ✉2\n"


def test_the_platforms_own_folders_are_found(tmp_path: Path) -> None:
    for env, runtime, state in (
        ({"XDG_RUNTIME_DIR": str(tmp_path / "a")}, tmp_path / "a" / "talkbus", tmp_path / ".local/state/talkbus"),
        ({"XDG_STATE_HOME": str(tmp_path / "b")}, tmp_path / "b" / "talkbus" / "run", tmp_path / "b" / "talkbus"),
        ({"TMPDIR": str(tmp_path / "c")}, tmp_path / "c" / f"runtime-{os.getuid()}" / "talkbus", tmp_path / "c"),
        ({}, tmp_path / "Library/Caches/TemporaryItems/talkbus", tmp_path / "Library/Application Support/talkbus"),
    ):
        home = Home(tmp_path / "config", state, runtime)
        status = StatusFile(home, CLIENT)
        status.write("api", 0, 1)
        broker(home)
        assert show(home, env={"HOME": str(tmp_path), **env}) == "api · ✉1\n", env
        status.clear()
    under = home_of({"TALKBUS_HOME": str(tmp_path / "x")})
    StatusFile(under, CLIENT).write("api", 0, 1)
    broker(under)
    assert show(under, env={"HOME": str(tmp_path), "TALKBUS_HOME": "~/x"}) == "api · ✉1\n"


def test_it_answers_within_30_ms(home: Home) -> None:
    StatusFile(home, CLIENT).write("api", 3, 2)
    broker(home)
    times = []
    for _ in range(15):
        begin = time.perf_counter()
        show(home, "--quiet", stdin='{"session_id": "x", "cwd": "/y"}' * 100)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.03, times  # the least: whatever else this machine does is not of interest


def test_the_command_runs_the_same_script(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[object] = []
    monkeypatch.setattr(os, "execv", lambda *command: ran.append(command))
    result = CliRunner().invoke(statusline, ["--quiet", "--after", "x y"], obj=Call())
    assert result.exit_code == 0
    assert ran == [("/bin/sh", ["sh", str(SCRIPT), "--quiet", "--after", "x y"])]
