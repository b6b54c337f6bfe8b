"""daemon: one broker for any number of callers, started from anywhere, stopped for good.

The broker here is a stand-in that keeps the promises of the real one: lock, record, stop mark, SIGTERM.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bus import daemon
from bus.config import Home, home
from bus.daemon import Record, clear_stop, publish, published, stop_broker, stopped, unpublish
from bus.errors import Unreachable
from bus.private import private_dir
from bus.processes import FileLock, alive, holder, start_time

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = """
import json, os, signal, sys
from bus.config import home
from bus.daemon import Record, publish, spawned, stopped, unpublish
from bus.processes import FileLock, start_time

assert sys.argv[1:] == ["up", "--foreground"], sys.argv
here = home()
mode = os.environ.get("TALKBUS_TEST", "")
with open(here.state / "starts", "a") as file:
    print(os.getpid(), file=file)
if mode == "crash":
    sys.exit("Traceback\\nOSError: no \\x1bport")
lock = FileLock(here.lock)
if not lock.acquire() or (spawned() and stopped(here)):
    sys.exit(0)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
if mode != "mute":
    facts = {
        "cwd": os.getcwd(),
        "path": sys.path,
        "sid": os.getsid(0),
        "env": dict(os.environ),
        "fds": [n for n in range(3, 256) if os.path.exists(f"/proc/self/fd/{n}")],
        "umask": os.umask(0o077),
    }
    (here.state / "facts").write_text(json.dumps(facts))
    record = Record(os.getpid(), start_time(os.getpid()), "tcp://r", "tcp://x", "k" * 40, "1")
    publish(here, record)
while signal.sigwait({signal.SIGTERM}):
    if mode != "deaf":
        break
if mode != "mute":
    unpublish(here, record)
"""


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Home]:
    found = home({"TALKBUS_HOME": str(tmp_path / "bus")})
    private_dir(found.state)
    yield found
    stop_broker(found, 0.5)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The real command line, over a checkout whose talkbus.py is the stand-in."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "talkbus.py").write_text(STAND_IN)
    (checkout / "bus").symlink_to(ROOT / "bus")
    monkeypatch.delenv("TALKBUS_TEST", raising=False)
    return daemon.broker_command(checkout)


def mine(router: str = "tcp://127.0.0.1:7717") -> Record:
    start = start_time(os.getpid())
    assert start
    return Record(os.getpid(), start, router, "tcp://127.0.0.1:7718", "k" * 40, "1.0")


def starts(bus: Home) -> list[int]:
    return [int(line) for line in (bus.state / "starts").read_text().split()]


def until(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while not (result := what()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return result


# -- the record -------------------------------------------------------------------------------------------


def test_published_and_taken_back(bus: Home) -> None:
    assert published(bus) is None
    publish(bus, mine())
    assert published(bus) == mine()
    unpublish(bus, mine("tcp://another"))
    assert published(bus) == mine()
    unpublish(bus, mine())
    assert published(bus) is None
    unpublish(bus, mine())


def test_a_record_of_the_dead_is_none(bus: Home) -> None:
    publish(bus, replace(mine(), start="before"))
    assert published(bus) is None
    unpublish(bus, replace(mine(), start="before"))


def test_a_runtime_directory_that_vanished_hides_nothing(bus: Home) -> None:
    publish(bus, mine())
    bus.record.unlink()
    bus.runtime.rmdir()
    assert published(bus) == mine()
    unpublish(bus, mine())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": "1"}', "\xff", '{"pid": true, "start": "x"}'])
def test_garbage_is_none(bus: Home, text: str) -> None:
    private_dir(bus.runtime)
    bus.record.write_bytes(text.encode("latin-1"))
    assert published(bus) is None


# -- start ------------------------------------------------------------------------------------------------


def test_started_once_and_then_found(bus: Home, command: list[str]) -> None:
    record = daemon._ensure(bus, 20, command)
    assert published(bus) == record
    assert daemon._ensure(bus, 20, command) == record
    assert starts(bus) == [record.pid]
    assert holder(bus.lock) == (record.pid, record.start)


def test_detached_from_everything_of_the_caller(
    bus: Home, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    for name in ("bus", "agent", "hooks", "talkbus"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    monkeypatch.chdir(project)
    monkeypatch.setenv("PYTHONPATH", str(project))
    for name in ("CLAUDECODE", "CLAUDE_CODE_SESSION", "Claude_x", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TALKBUS_LOG", "debug")
    monkeypatch.setenv("TALKBUS_CLAUDE_BIN", "/c")
    monkeypatch.setenv("TALKBUS_HOME", "relative")
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        record = daemon._ensure(bus, 20, command)
    finally:
        os.close(read)
        os.close(write)
    facts = json.loads((bus.state / "facts").read_text())
    env = facts["env"]
    assert facts["cwd"] == str(bus.state)
    assert str(project) not in facts["path"] and "" not in facts["path"]
    assert facts["sid"] == record.pid != os.getsid(0)
    assert facts["umask"] == 0o077
    assert not [name for name in env if name.upper().startswith(("CLAUDE", "ANTHROPIC")) or name == "PYTHONPATH"]
    assert (env["TALKBUS_LOG"], env["TALKBUS_CLAUDE_BIN"]) == ("debug", "/c")
    assert env["TALKBUS_HOME"] == str(bus.root)
    if sys.platform == "linux":
        assert len(facts["fds"]) <= 2  # its own lock, and the look at /proc itself


def test_many_callers_in_many_processes_get_one_broker(bus: Home, command: list[str]) -> None:
    code = (
        "import sys; from bus import daemon; from bus.config import home;"
        "print(daemon._ensure(home(), 20, sys.argv[1:]).pid)"
    )
    callers = [
        subprocess.Popen(
            [sys.executable, "-c", code, *command],
            cwd=ROOT,
            env=os.environ | {"TALKBUS_HOME": str(bus.root)},
            stdout=subprocess.PIPE,
        )
        for _ in range(5)
    ]
    pids = {int(caller.communicate()[0]) for caller in callers}
    assert len(pids) == 1
    assert set(starts(bus)) == pids


def test_many_threads_get_one_broker(bus: Home, command: list[str]) -> None:
    with ThreadPoolExecutor(6) as pool:
        records = list(pool.map(lambda _: daemon._ensure(bus, 20, command), range(6)))
    assert len(set(records)) == 1
    assert starts(bus) == [records[0].pid]


def test_a_killed_broker_is_replaced_and_leaves_no_zombie(bus: Home, command: list[str]) -> None:
    first = daemon._ensure(bus, 20, command)
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: not alive(first.pid, first.start))
    assert published(bus) is None
    second = daemon._ensure(bus, 20, command)
    assert second.pid != first.pid
    until(lambda: not os.path.exists(f"/proc/{first.pid}"))


def test_who_finds_the_lock_held_waits_for_the_record(bus: Home, command: list[str]) -> None:
    """The holder goes without publishing: then one of those who waited starts another."""
    lock = FileLock(bus.lock)
    assert lock.acquire()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(daemon._ensure, bus, 20, command)
        with pytest.raises(Unreachable, match=f"though process {os.getpid()} holds"):
            daemon._ensure(bus, 0.1, command)
        assert not waiting.done()
        lock.release()
        assert waiting.result().pid == starts(bus)[-1]


def test_a_child_that_fails_is_noticed_early_and_quoted(
    bus: Home, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALKBUS_TEST", "crash")
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"ended with 1: OSError: no \?port \(see .*broker\.log\)"):
        daemon._ensure(bus, 60, command)
    assert time.monotonic() - began < 30
    monkeypatch.delenv("TALKBUS_TEST")
    assert daemon._ensure(bus, 20, command)


def test_a_child_that_says_nothing_times_out(bus: Home, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALKBUS_TEST", "mute")
    with pytest.raises(Unreachable, match=r"no broker after 0\.3 s"):
        daemon._ensure(bus, 0.3, command)
    until(lambda: holder(bus.lock))
    assert stop_broker(bus, 20), "one that never published is found by its lock"
    assert holder(bus.lock) is None


def test_a_missing_interpreter_is_said(bus: Home) -> None:
    with pytest.raises(Unreachable, match="cannot start /no/python"):
        daemon._ensure(bus, 5, ["/no/python"])


def test_an_installed_talkbus_runs_as_a_module() -> None:
    import site

    place = Path(site.getsitepackages()[0]).resolve()
    assert daemon.broker_command(place)[1:] == ["-P", "-m", "talkbus", "up", "--foreground"]


def test_a_large_log_is_put_aside(bus: Home, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_LOG_LIMIT", 10)
    private_dir(bus.logs)
    log = bus.logs / "broker.log"
    log.write_text("x" * 11)
    daemon._ensure(bus, 20, command)
    assert log.read_text() == ""
    assert log.stat().st_mode & 0o777 == 0o600
    assert (bus.logs / "broker.log.1").read_text() == "x" * 11


# -- stop -------------------------------------------------------------------------------------------------


def test_stopped_stays_stopped_until_cleared(bus: Home, command: list[str]) -> None:
    record = daemon._ensure(bus, 20, command)
    assert stop_broker(bus, 20)
    assert not alive(record.pid, record.start)
    assert published(bus) is None and stopped(bus)
    with pytest.raises(Unreachable, match="stopped with 'talkbus down'"):
        daemon._ensure(bus, 20, command)
    assert not stop_broker(bus, 1)
    clear_stop(bus)
    clear_stop(bus)
    assert daemon._ensure(bus, 20, command).pid != record.pid


def test_a_deaf_broker_is_killed(bus: Home, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALKBUS_TEST", "deaf")
    record = daemon._ensure(bus, 20, command)
    assert stop_broker(bus, 0.2)
    assert not alive(record.pid, record.start)
    assert not bus.record.exists()


def test_a_pid_given_out_again_is_not_signalled(bus: Home) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    publish(bus, replace(mine(), pid=child.pid, start="before"))
    assert not stop_broker(bus, 1)
    assert child.poll() is None
    child.communicate(b"\n")
    assert child.returncode == 0


def test_a_stop_while_it_starts_wins(bus: Home, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALKBUS_TEST", "mute")
    said: list[str] = []

    def start() -> None:
        with pytest.raises(Unreachable) as caught:
            daemon._ensure(bus, 20, command)
        said.append(str(caught.value))

    thread = threading.Thread(target=start)
    thread.start()
    until(lambda: holder(bus.lock))
    assert stop_broker(bus, 20)
    thread.join(20)
    assert "talkbus down" in said[0]
    assert holder(bus.lock) is None
    assert len(starts(bus)) == 1
