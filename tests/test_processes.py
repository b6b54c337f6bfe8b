"""processes: tokens that name one process, and a lock that ends with its holder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bus import processes
from bus.errors import ConfigError
from bus.processes import FileLock, alive, ancestors, holder, start_time

ROOT = Path(__file__).resolve().parent.parent
HOLD = """
import sys
from pathlib import Path
from bus.processes import FileLock
lock = FileLock(Path(sys.argv[1]))
print(lock.acquire(), flush=True)
sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout
    return child.stdout.readline().strip()


def test_the_token_is_the_same_for_everybody() -> None:
    code = f"from bus.processes import start_time; print(start_time({os.getpid()}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    token = start_time(os.getpid())
    assert token and " " not in token
    assert done.stdout.strip() == token


def test_alive_needs_pid_and_start_to_agree() -> None:
    token = start_time(os.getpid())
    assert token and alive(os.getpid(), token)
    assert not alive(os.getpid(), token + "0")
    assert not alive(os.getpid(), "")
    parent = start_time(os.getppid())
    assert parent and not alive(os.getpid(), parent + "x")


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**70])
def test_no_such_process(pid: int) -> None:
    assert start_time(pid) is None
    assert not alive(pid, "x")
    assert ancestors(pid) == []


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    token = start_time(child.pid)
    assert token and alive(child.pid, token)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped
    assert not alive(child.pid, token)
    assert processes._facts_psutil(child.pid) is None
    child.wait()
    child.stdin.close()  # type: ignore[union-attr]
    assert start_time(child.pid) is None


def test_ancestors_start_with_the_parent() -> None:
    code = "import os; from bus.processes import ancestors; print(*ancestors(os.getpid()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [int(pid) for pid in done.stdout.split()] == [os.getpid(), *ancestors(os.getpid())]
    assert ancestors(os.getpid())[0] == os.getppid()


def test_a_hostile_process_name_confuses_nobody(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("/proc")
    code = "open('/proc/self/comm', 'w').write(') Z 1 2 (('); print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    line(child)
    assert start_time(child.pid)
    assert ancestors(child.pid)[0] == os.getpid()
    child.communicate("\n")


def test_psutil_tells_the_same_where_there_is_no_proc() -> None:
    facts = processes._facts_psutil(os.getpid())
    assert facts and facts.parent == os.getppid()
    assert facts.start.startswith("t")
    assert processes._facts_psutil(2**22 + 1) is None
    assert processes._facts_psutil(2**70) is None


def test_a_corrected_clock_kills_nobody() -> None:
    assert processes._same_clock("t1000.00", "t1001.50")
    assert not processes._same_clock("t1000.00", "t1010.00")
    assert not processes._same_clock("t1000.00", "tx")
    assert not processes._same_clock("abc-1", "abc-2")


def test_one_holder_within_a_process_too(tmp_path: Path) -> None:
    one, two = FileLock(tmp_path / "l"), FileLock(tmp_path / "l")
    assert one.acquire() and one.acquire()
    assert holder(tmp_path / "l") == (os.getpid(), start_time(os.getpid()))
    assert not two.acquire()
    one.release()
    one.release()
    assert holder(tmp_path / "l") is None
    assert two.acquire(blocking=True)
    two.release()


def test_the_lock_ends_with_its_holder_however_it_dies(tmp_path: Path) -> None:
    child = hold(tmp_path / "l")
    assert line(child) == "True"
    mine = FileLock(tmp_path / "l")
    assert not mine.acquire()
    assert (holder(tmp_path / "l") or (0, ""))[0] == child.pid
    child.kill()
    child.communicate()
    assert holder(tmp_path / "l") is None
    assert mine.acquire()
    mine.release()


def test_no_child_keeps_the_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "l")
    assert lock.acquire()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    lock.release()
    other = hold(tmp_path / "l")
    assert line(other) == "True"
    other.communicate()
    child.communicate(b"\n")


@pytest.mark.parametrize("text", ["", "x y", "1", "12 a b", "é 1", "-1 x"])
def test_garbage_names_no_holder(tmp_path: Path, text: str) -> None:
    (tmp_path / "l").write_text(text, "utf-8")
    assert holder(tmp_path / "l") is None


def test_an_impossible_place_is_named(tmp_path: Path) -> None:
    assert holder(tmp_path / "gone" / "l") is None
    with pytest.raises(ConfigError, match=r"cannot lock .*gone/l"):
        FileLock(tmp_path / "gone" / "l").acquire()
