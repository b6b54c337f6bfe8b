"""What a sender hears when something fails after the message is on the disk: its id, and nothing that is not true.

The faults are put into real processes, through code that runs before the command or the agent does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from tests.live.homes import ROOT, Home
from tests.live.test_mcp_bed import AGENT, Bed, ids, until
from tests.live.test_mcp_process import Raw

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")]

DONE, REFUSED, _, UNREACHABLE, _ = range(5)
INTERRUPTED = 130

# What was written cannot be read again, while the file BLIND is there.
BLIND = """
import os, sys
sys.path.insert(0, {root!r})
import agent.outbox
from bus.errors import StoreError
def _blind(method):
    def read(self, *args):
        if os.path.exists({flag!r}):
            raise StoreError("agent.db: cannot read: disk I/O error (check the disk)")
        return method(self, *args)
    return read
for name in ("row", "find", "by_id", "recent"):
    setattr(agent.outbox.Outbox, name, _blind(getattr(agent.outbox.Outbox, name)))
"""
# The broker's reply does not come: somebody presses Ctrl-C while it is waited for.
STALLED = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
import agent.visit
def _stalled(self, row, hopeless=False):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)
agent.visit.Visit.reply = _stalled
"""
# The hub takes the machine off its roll between its WELCOME and its reply.
CUT = """
import os, sys, time
sys.path.insert(0, {root!r})
import agent.loop, agent.visit
from agent.dialing import NOT_PAIRED
_send = agent.loop.Loop._send
def _cut(self, link, sends, now):
    if any(type(item).__name__ == "SendRow" for item in sends):
        link.lost(now, NOT_PAIRED)
    else:
        _send(self, link, sends, now)
agent.loop.Loop._send = _cut
"""
COMMAND = "\nimport talkbus\nsys.argv[0] = 'talkbus'\nsys.exit(talkbus.main())\n"


@pytest.fixture
def bus(home: Home) -> Iterator[Home]:
    home.start()
    home.session("api").close()
    yield home
    home.kill()


def ran(home: Home, *args: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """A command, with code that runs before it."""
    command = [sys.executable, "-P", str(ROOT / "talkbus.py")]
    if before:
        command = [sys.executable, "-P", "-c", before.format(root=str(ROOT), flag=str(home.root / "blind")) + COMMAND]
    return subprocess.run(
        [*command, *args], env=home.environ, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )


def ok(home: Home, *args: str) -> Any:
    done = ran(home, *args)
    assert done.returncode == DONE, (args, done)
    return json.loads(done.stdout) if "--json" in args else done.stdout


def stored(home: Home) -> list[str]:
    return sorted(row["body"] for row in ok(home, "history", "--json"))


def test_a_command_whose_disk_fails_after_the_commit_is_queued_with_its_id(bus: Home) -> None:
    flag = bus.root / "blind"
    flag.touch()
    done = ran(bus, "send", "api", "one", "--json", before=BLIND)
    told = json.loads(done.stdout)
    assert (done.returncode, told["status"]) == (DONE, "queued") and told["id"], done
    plain = ran(bus, "send", "api", "two", before=BLIND)
    assert plain.returncode == DONE and "queued for api" in plain.stdout and len(ids(plain.stdout)) == 1, plain
    ask = ran(bus, "ask", "--as", "ci", "api", "three", before=BLIND)
    assert ask.returncode == UNREACHABLE and len(ids(ask.stderr)) == 1, ask
    state = ran(bus, "state", "set", "--as", "cron", "port", "1", before=BLIND)
    assert state.returncode == UNREACHABLE and "talkbus why" in state.stderr, state
    flag.unlink()
    ok(bus, "peers")  # any call sends what was left
    assert stored(bus) == ["one", "three", "two"]
    assert ok(bus, "why", told["id"], "--json")["to"][0]["status"] == "stored"
    assert ok(bus, "why", ids(ask.stderr)[0], "--json")["to"][0]["status"] == "stored"
    request = ok(bus, "why", "--as", "cron", ids(state.stderr)[0], "--json")
    assert (request["op"], request["status"], request["to"]) == ("state.set", "done", [])
    assert (
        "state.set" in ok(bus, "why", "--as", "cron", ids(state.stderr)[0])
        and ok(bus, "state", "get", "port").strip() == "1"
    )


def test_an_agent_whose_disk_fails_after_the_commit_says_queued_with_the_id(bus: Home) -> None:
    flag = bus.root / "blind"
    command = [sys.executable, "-c", BLIND.format(root=str(ROOT), flag=str(flag)) + AGENT]
    raw = Raw(Bed(bus.root), "web", command).hello()
    try:
        assert "stored" in raw.call("send_message", to="api", body="before")
        flag.touch()
        told = {
            "send_message": raw.call("send_message", to="api", body="one"),
            "again": raw.call("send_message", to="api", body="two"),
            "set_state": raw.call("set_state", key="port", value=1),
            "set_status": raw.call("set_status", summary="working"),
            "ask": raw.call("ask", to="api", body="three", timeout_s=1),
        }
        assert all(not text.startswith("error") and "queued (id " in text for text in told.values()), told
        sent = [ids(told[name])[0] for name in ("send_message", "again", "ask")]
        flag.unlink()
        for ident in sent:
            until(lambda ident=ident: "stored" in raw.call("message_status", id=ident))
        request = ids(told["set_state"])[0]
        assert raw.call("message_status", id=request).startswith(f"state.set {request}: done")
    finally:
        raw.end()
    assert stored(bus) == ["before", "one", "three", "two"]


def test_ctrl_c_after_the_commit_names_what_was_left(bus: Home) -> None:
    done = ran(bus, "send", "api", "one", "--json", before=STALLED)
    told = json.loads(done.stdout)
    assert done.returncode == INTERRUPTED and told["status"] == "queued" and told["id"] in done.stderr, done
    assert "talkbus why" in done.stderr and "Traceback" not in done.stderr
    plain = ran(bus, "send", "--as", "ci", "api", "two", before=STALLED)
    assert plain.returncode == INTERRUPTED and not plain.stdout and len(set(ids(plain.stderr))) == 1, plain
    state = ran(bus, "state", "set", "port", "1", before=STALLED)
    assert state.returncode == INTERRUPTED and "state.set" in state.stderr and ids(state.stderr), state
    ok(bus, "peers")
    assert stored(bus) == ["one", "two"]


def test_ctrl_c_while_an_answer_is_waited_for_names_the_question(bus: Home) -> None:
    command = [sys.executable, "-P", str(ROOT / "talkbus.py"), "ask", "api", "well?"]
    asking = subprocess.Popen(
        command, env=bus.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        until(lambda: stored(bus) == ["well?"])
        asking.send_signal(signal.SIGINT)
        out, err = asking.communicate(timeout=20)
    finally:
        asking.kill()
    assert (asking.returncode, out) == (INTERRUPTED, "") and len(set(ids(err))) == 1, err
    assert ok(bus, "why", ids(err)[0], "--json")["to"][0]["status"] == "stored"


def test_a_hub_that_takes_nothing_more_before_it_replied(bus: Home) -> None:
    """The message is on the disk, and may be on the hub: it is not told as queued, nor as refused."""
    done = ran(bus, "send", "api", "one", "--json", before=CUT)
    told = json.loads(done.stdout)
    assert (done.returncode, told["status"], told["to"][0]["status"]) == (REFUSED, "blocked", "blocked"), done
    assert told["id"] in done.stderr and f"talkbus why {told['id']}" in done.stderr
    ask = ran(bus, "ask", "--as", "ci", "api", "two", before=CUT)
    assert ask.returncode == REFUSED and f"talkbus why {ids(ask.stderr)[0]}" in ask.stderr, ask
    state = ran(bus, "state", "set", "--as", "cron", "port", "1", before=CUT)
    assert state.returncode == REFUSED and "talkbus why" in state.stderr, state
    ok(bus, "peers")
    assert stored(bus) == ["one", "two"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGQUIT"])
def test_a_signal_after_the_commit_names_what_was_left(bus: Home, name: str) -> None:
    stalled = STALLED.replace("SIGINT", name)
    code = 128 + getattr(signal, name)
    done = ran(bus, "send", "api", "one", "--json", before=stalled)
    told = json.loads(done.stdout)
    assert done.returncode == code and told["status"] == "queued" and told["id"] in done.stderr, done
    assert f"talkbus why {told['id']}" in done.stderr and done.stderr.count("\n") == 1, done
    ask = ran(bus, "ask", "--as", "ci", "api", "two", before=stalled)
    assert ask.returncode == code and not ask.stdout and len(set(ids(ask.stderr))) == 1, ask
    state = ran(bus, "state", "set", "port", "1", before=stalled)
    assert state.returncode == code and "state.set" in state.stderr and ids(state.stderr), state
    ok(bus, "peers")
    assert stored(bus) == ["one", "two"]


# A signal comes in the instant in which a request has come back from the disk and the broker.
RETURNED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import agent.person
_submit = agent.person.Person.submit
def _returned(self, *args, **more):
    outcome = _submit(self, *args, **more)
    {come}
    return outcome
agent.person.Person.submit = _returned
"""
PLAIN = "os.kill(os.getpid(), signal.{name})"
# What Python drops: it comes while a callback runs, as of the lock of a module that is being imported.
DROPPED = """class Gone: pass
    import weakref
    gone = Gone()
    kept = weakref.ref(gone, lambda _: [os.kill(os.getpid(), signal.{name}), *range(1000)])
    del gone
    import time
    time.sleep(30)"""


@pytest.mark.parametrize("come", [PLAIN, DROPPED], ids=["plain", "dropped"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_before_the_result_is_told_names_what_went_out(bus: Home, name: str, come: str) -> None:
    before = RETURNED.replace("{come}", come.format(name=name))
    code = 128 + getattr(signal, name)
    sent = ran(bus, "send", "api", "one", "--json", before=before)
    assert sent.returncode == code and "was sent" in sent.stderr and not sent.stdout, sent
    assert ok(bus, "why", ids(sent.stderr)[0], "--json")["to"][0]["status"] == "stored"
    state = ran(bus, "state", "set", "port", "1", before=before)
    assert state.returncode == code and "state.set" in state.stderr and "was done" in state.stderr, state
    assert state.stderr.strip().count("\n") == 0 and "Traceback" not in state.stderr
    quiet = ran(bus, "inbox", "--as", "api", before=before)
    assert quiet.returncode == code and "receipt" not in quiet.stderr, "nobody has asked for that"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_nobody_reads_the_result_names_what_went_out(bus: Home, name: str) -> None:
    """The pipe that its result goes to is full."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 65536)
    os.set_blocking(writing, True)
    command = [sys.executable, "-P", str(ROOT / "talkbus.py"), "send", "api", "one", "--json"]
    sending = subprocess.Popen(command, env=bus.environ, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        until(lambda: stored(bus) == ["one"])
        until(lambda: psutil.Process(sending.pid).status() == psutil.STATUS_SLEEPING)
        sending.send_signal(getattr(signal, name))
        _, err = sending.communicate(timeout=20)
    finally:
        sending.kill()
        os.close(reading)
        os.close(writing)
    assert sending.returncode == 128 + getattr(signal, name) and ids(err), err
    assert ok(bus, "why", ids(err)[0], "--json")["to"][0]["status"] == "stored"


def test_a_signal_that_is_ignored_stays_so(bus: Home) -> None:
    """As under nohup."""
    ignored = STALLED.replace("SIGINT", "SIGHUP").replace("time.sleep(30)", "return _reply(self, row, hopeless)")
    before = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + ignored.replace(
        "def _stalled", "_reply = agent.visit.Visit.reply\ndef _stalled"
    )
    done = ran(bus, "send", "api", "one", before=before)
    assert done.returncode == DONE and "stored" in done.stdout, done


@pytest.mark.parametrize("kind", ["full", "closed"])
def test_a_result_that_cannot_be_printed_does_not_hide_what_went_out(bus: Home, kind: str) -> None:
    def unread(*args: str) -> str:
        """The error of a command whose output nobody takes."""
        if kind == "full":
            if not os.path.exists("/dev/full"):
                pytest.skip("needs /dev/full")
            out = os.open("/dev/full", os.O_WRONLY)
        else:
            reading, out = os.pipe()
            os.close(reading)
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(ROOT / "talkbus.py"), *args],
                env=bus.environ,
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                cwd=ROOT,
                check=False,
            )
        finally:
            os.close(out)
        assert done.returncode == REFUSED and done.stderr.startswith("error: "), (args, done)
        assert done.stderr.count("\n") == 1 and "talkbus why" in done.stderr, (args, done)
        return done.stderr

    for options in ((), ("--json",)):
        told = unread("send", "api", "one", *options)
        assert "was sent" in told
        assert ok(bus, "why", ids(told)[0], "--json")["to"][0]["status"] == "stored"
        assert "state.set" in unread("state", "set", "port", "1", *options)
    assert "rename" in unread("rename", "--as", "ci", "cd")
    bus.kill()
    ok(bus, "down")
    assert "queued on this disk" in unread("send", "api", "two")
