"""Disks without room, or read-only: one clear line, reads go on, nothing lost, and all goes on when room returns."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bus import wire
from bus.errors import StoreError
from bus.private import private_dir
from bus.processes import FileLock
from tests.live.homes import Home, wait_for
from tests.live.test_cli import DONE, REFUSED, Bus
from tests.live.worker import Worker, judge

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(sys.platform == "win32", reason="POSIX disks")]

SIZE_KIB = 16_384  # room for a write-ahead log at its largest, for each of two
needs_prlimit = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit")


class Disk:
    """A small file system of its own where that may be mounted; elsewhere limits on the size of a process's files."""

    def __init__(self, where: Path, pids: Callable[[], list[int]]) -> None:
        """`pids` are the processes that write there, for the second way."""
        self.where, self._pids = where, pids
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_KIB}k,mode=700", "talkbus-test", str(where)]
        may = sys.platform == "linux" and os.geteuid() == 0
        self.mounted = may and subprocess.run(command, capture_output=True).returncode == 0

    def fill(self) -> None:
        """Leave no octet of room."""
        if self.mounted:
            with (self.where / "filler").open("ab", buffering=0) as file:
                for size in (65536, 4096, 1):
                    try:
                        while file.write(b"x" * size):
                            continue
                    except OSError:
                        continue
            return
        if not hasattr(resource, "prlimit"):
            pytest.skip("neither may mount nor has prlimit")
        biggest = max((p.stat().st_size for p in self.where.rglob("*") if p.is_file()), default=0)
        self._limit(biggest)

    def free(self) -> None:
        """Give the room back."""
        if self.mounted:
            (self.where / "filler").unlink()
        else:
            self._limit(resource.RLIM_INFINITY)

    def read_only(self) -> None:
        """Until free_again(); skips where there is no file system of our own, or it cannot be had."""
        self._remount("ro")

    def writable(self) -> None:
        """The end of read_only()."""
        self._remount("rw")

    def _remount(self, how: str) -> None:
        if not self.mounted:
            pytest.skip("may not mount")
        done = subprocess.run(["mount", "-o", f"remount,{how}", str(self.where)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def _limit(self, octets: int) -> None:
        for pid in self._pids():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (octets, resource.RLIM_INFINITY))


@contextmanager
def disk(where: Path, pids: Callable[[], list[int]]) -> Iterator[Disk]:
    """A Disk that is gone afterwards."""
    private_dir(where)
    made = Disk(where, pids)
    try:
        yield made
    finally:
        if made.mounted:
            subprocess.run(["umount", "-l", str(where)], check=True)


def test_a_full_disk_of_the_broker(home: Home, stack: ExitStack) -> None:
    home.root.mkdir(mode=0o700)
    pid: list[int] = []
    room = stack.enter_context(disk(home.paths.state, lambda: pid))
    stack.callback(lambda: home.process and home.kill())
    home.start()
    assert home.process is not None
    pid.append(home.process.pid)
    alice = stack.enter_context(home.session("alice"))
    stored = [alice.post("bob", f"before {n}") for n in range(5)]
    room.fill()
    req = told = None
    for n in range(400):
        req = alice.request("send", {"to": ["bob"]}, f"{n} ".encode() + b"x" * 8000)
        told = alice.next()
        if not isinstance(told, wire.Rep):
            break
        stored.append(req.id)
    assert isinstance(told, wire.Err) and req is not None
    assert (told.code, told.of, told.ref) == (503, "REQ", req.q) and told.retry > 0
    assert "disk is full" in told.text and "\n" not in told.text
    # Reads go on: what the loop answers, and what the thread beside it does.
    with home.view() as view:
        for what, args in (("message", {"id": stored[0]}), ("why", {"id": stored[-1]}), ("history", {"limit": 3})):
            assert view.query(what, args).code == 200, what
    # A newcomer cannot be written down, and is told to come again; the mailbox of whoever is here stays readable.
    with home.peer() as late:
        late.say(wire.Hello("hold", "late", late.ob, name="late"))
        refused = late.next()
        assert isinstance(refused, wire.Err) and refused.code == 503 and refused.retry > 0
    alice.say(req)
    again = alice.next()
    assert isinstance(again, wire.Err) and again.code == 503
    room.free()

    def taken() -> bool:
        alice.say(req)
        answer = alice.next()
        assert isinstance(answer, wire.Err | wire.Rep)
        assert not isinstance(answer, wire.Rep) or answer.code == 200
        return isinstance(answer, wire.Rep)

    wait_for(taken, "the disk taking writes again")
    stored.append(req.id)
    stored.append(alice.post("bob", "after"))
    said = home.said()
    assert "Traceback" not in said
    assert [line for line in said.splitlines() if "full" in line and "free some disk space" in line]
    home.kill()
    home.start()
    bob = stack.enter_context(home.session("bob"))
    shown = []
    while len(shown) < len(stored):
        msg = bob.hear(wire.Msg)
        shown.append(msg.id)
        bob.say(wire.Ack([[msg.n, msg.n]], "test"))
    assert shown == stored
    bob.say(wire.Ping(1))
    assert bob.hear(wire.Pong).open == []


def test_a_full_disk_of_both_agents(home: Home, stack: ExitStack, tmp_path: Path) -> None:
    count = 90  # few enough that the write-ahead log never starts over, which would make room
    home.start()
    workers: list[Worker] = []
    folder = tmp_path / "agents"
    room = stack.enter_context(disk(folder / "dbs", lambda: [w.process.pid for w in workers if w.process]))
    bases = [str(folder / "dbs" / name / "agent.db") for name in ("alice", "bob")]
    filler = "y" * 2000
    alice = Worker(
        home.environ, folder, "send", "alice", to="bob", count=count, pace=0.01, filler=filler, database=bases[0]
    )
    bob = Worker(home.environ, folder, "receive", "bob", database=bases[1])
    workers += [stack.enter_context(alice), stack.enter_context(bob)]
    for turn in range(1, 3):
        at = turn * count // 3
        wait_for(lambda at=at: len(alice.lines("accepted")) >= at, f"{at} accepted")  # type: ignore[misc]
        refused = len(alice.lines("refused"))
        room.fill()
        wait_for(lambda refused=refused: len(alice.lines("refused")) > refused, "a refusal")  # type: ignore[misc]
        assert len(alice.lines("accepted")) < count
        room.free()
    wait_for(lambda: alice.lines("done"), "the sender's end", 60)
    wait_for(lambda: len({x[0] for x in bob.lines("shown")}) >= count, "all shown", 60)
    verdict = judge([alice], bob)
    assert (verdict.accepted, verdict.shown, verdict.repeats) == (count, count, 0)
    texts = {text for worker in workers for (text,) in worker.lines("refused")}
    assert texts and all("\n" not in text and "agent.db: cannot" in text for text in texts), texts
    for worker in workers:
        worker.check()


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    """A bus whose agents have a disk of their own."""
    (tmp_path / "somewhere").mkdir()
    made = Bus(tmp_path / "bus", tmp_path / "somewhere")
    yield made
    made.run("down")


def _refuses(bus: Bus, text: str) -> str:
    ran = bus.run("send", "--as", "a", "b", text)
    assert (ran.code, ran.out) == (REFUSED, ""), ran
    assert ran.err.startswith("error: ") and len(ran.err.splitlines()) == 1, ran.err
    as_json = bus.run("send", "--as", "a", "b", text, "--json")
    assert as_json.code == REFUSED and "queued" not in as_json.out and "stored" not in as_json.out, as_json
    return ran.err


def test_a_command_with_a_full_or_read_only_disk_claims_nothing(bus: Bus, stack: ExitStack) -> None:
    sent = [bus.ok("send", "--as", "x", "--new", "b", "first", "--json").json["id"]]
    room = stack.enter_context(disk(bus.root / "state" / "agents", list))
    if not room.mounted:
        pytest.skip("may not mount")
    sent.append(bus.ok("send", "--as", "a", "b", "second", "--json").json["id"])
    room.fill()
    err = _refuses(bus, "z" * 60_000)
    assert "free some disk space" in err, err
    assert bus.run("peers", "--json").code == DONE
    assert bus.run("log", "--json").code == DONE
    room.free()
    room.read_only()
    err = _refuses(bus, "never told as sent")
    assert "read-only" in err.lower() or "readonly" in err.lower() or "writable" in err, err
    assert bus.run("peers", "--json").code == DONE
    room.writable()
    sent.append(bus.ok("send", "--as", "a", "b", "third", "--json").json["id"])
    got = bus.ok("inbox", "--as", "b", "--json").json
    assert [m["body"] for m in got] == ["first", "second", "third"]
    assert [m["id"] for m in got] == sent


@needs_prlimit
def test_a_command_that_may_write_no_octet_claims_nothing(bus: Bus) -> None:
    bus.ok("send", "--as", "a", "--new", "b", "first")

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    process = bus.start("send", "--as", "a", "b", "second", preexec_fn=no_room)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (REFUSED, b""), (out, err)
    assert err.startswith(b"error: ") and len(err.splitlines()) == 1, err
    bus.ok("send", "--as", "a", "b", "third")
    assert [m["body"] for m in bus.ok("inbox", "--as", "b", "--json").json] == ["first", "third"]


def test_a_lock_that_could_not_say_who_holds_it_is_not_held(tmp_path: Path, stack: ExitStack) -> None:
    room = stack.enter_context(disk(tmp_path / "full", list))
    if not room.mounted:
        pytest.skip("may not mount")
    (room.where / "lock").touch()
    room.fill()
    lock = FileLock(room.where / "lock")
    with pytest.raises(StoreError, match=r"cannot lock .* \(free some disk space") as refused:
        lock.acquire()
    assert refused.value.full
    room.free()
    assert FileLock(lock.path).acquire(), "the failed attempt holds it still"
