"""The command as a user runs it: real processes, a real broker, a home of its own for every test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DONE, REFUSED, USAGE, UNREACHABLE, TIMED_OUT = range(5)

pytestmark = [pytest.mark.timeout(180), pytest.mark.skipif(sys.platform == "win32", reason="pipes and signals")]


@dataclass(frozen=True)
class Ran:
    """One call of the command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Bus:
    """A bus of its own. Calls run from a folder that is neither the checkout nor a project of anybody's."""

    root: Path
    cwd: Path

    def env(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TALKBUS_", "CLAUDE", "PYTHON"))}
        return {**kept, "TALKBUS_HOME": str(self.root), "PYTHONPATH": str(ROOT), **more}

    def start(self, *args: str, **more: Any) -> subprocess.Popen[bytes]:
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": self.env()}
        options |= more
        return subprocess.Popen([sys.executable, "-m", "talkbus", *args], cwd=self.cwd, **options)

    def run(self, *args: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "talkbus", *args],
            cwd=self.cwd,
            env=env or self.env(),
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, *args: str, stdin: bytes = b"") -> Ran:
        ran = self.run(*args, stdin=stdin)
        assert ran.code == DONE, (args, ran)
        return ran


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    cwd = tmp_path / "somewhere"
    cwd.mkdir()
    made = Bus(tmp_path / "bus", cwd)
    yield made
    made.run("down")


def until(look: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What `look` returns once it is true."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)
    return found


# -- the broker ------------------------------------------------------------------------------------------------------


def test_it_starts_by_itself_and_stays_down_after_down(bus: Bus) -> None:
    status = bus.run("status", "--json")
    assert (status.code, status.json["running"], status.json["stopped"]) == (UNREACHABLE, False, False)
    sent = bus.ok("send", "--as", "a", "b", "hello", "--new", "--json").json
    assert sent["status"] == "stored"
    status = bus.run("status", "--json")
    assert status.code == DONE and status.json["running"] and status.json["pid"]
    assert "stopped" in bus.ok("down").out
    again = bus.run("peers")
    assert again.code == UNREACHABLE and "talkbus down" in again.err and again.err.startswith("error: ")
    status = bus.run("status", "--json")
    assert (status.code, status.json["stopped"]) == (UNREACHABLE, True)
    assert "talkbus down" in status.err
    assert bus.ok("up", "--json").json["started"] is True
    assert bus.ok("up", "--json").json["started"] is False
    assert bus.ok("status").out


def test_version_config_and_down_start_nothing(bus: Bus) -> None:
    for args in (("version",), ("--version",), ("config", "show", "--json"), ("--help",), ("status",)):
        bus.run(*args)
    assert not (bus.root / "state" / "logs").exists()


def test_exit_codes(bus: Bus) -> None:
    assert bus.run("no-such-command").code == USAGE
    assert bus.run("send").code == USAGE
    assert bus.run("send", "--as", "a", "nobody-here", "hi").code == REFUSED
    assert bus.run("why", "zzzzzzzzzzzzzzzz").code == REFUSED
    assert bus.run("inbox", "--wait", "0.2").code == TIMED_OUT
    assert bus.run("state", "get", "no:such:key").code == REFUSED
    bus.ok("down")
    assert bus.run("peers").code == UNREACHABLE
    assert bus.run("state", "set", "k", "1").code == UNREACHABLE


# -- mail ------------------------------------------------------------------------------------------------------------


def test_send_inbox_why(bus: Bus) -> None:
    sent = bus.ok("send", "--as", "alice", "--new", "bob", "the migration is in", "--tag", "handoff", "--json").json
    assert sent["to"][0]["name"] == "bob" and sent["to"][0]["code"] == 200
    peeked = bus.ok("inbox", "--as", "bob", "--peek", "--json").json
    (got,) = bus.ok("inbox", "--as", "bob", "--json").json
    assert [got] == peeked
    assert {k: got[k] for k in ("id", "from", "to", "kind", "tag", "body")} == {
        "id": sent["id"],
        "from": "alice",
        "to": "bob",
        "kind": "task",
        "tag": "handoff",
        "body": "the migration is in",
    }
    assert bus.ok("inbox", "--as", "bob", "--json").json == []
    assert bus.ok("inbox", "--as", "bob", "--all", "--json").json == [got]
    why = bus.ok("why", sent["id"][:8], "--json").json
    (ladder,) = why["to"]
    assert (why["id"], why["from"], ladder["name"], ladder["status"]) == (sent["id"], "alice", "bob", "injected")
    assert [step["status"] for step in ladder["history"]] == ["stored", "offered", "injected"]
    assert ladder["history"][1]["proof"] == "printed"
    bus.ok("ack", "--as", "bob", sent["id"])
    assert bus.ok("why", sent["id"], "--json").json["to"][0]["status"] == "acked"
    reply = bus.ok("send", "--as", "bob", "alice", "thanks", "--reply-to", sent["id"], "--json").json
    assert bus.ok("inbox", "--as", "alice", "--json").json[0]["reply_to"] == sent["id"]
    assert bus.ok("why", sent["id"], "--json").json["to"][0]["status"] == "answered"
    assert [m["id"] for m in bus.ok("history", "--peer", "bob", "--json").json] == [sent["id"], reply["id"]]


def test_a_person_has_a_seat(bus: Bus) -> None:
    me = bus.ok("whoami", "--json").json
    assert me["acts_as"] == "human"
    bus.ok("send", "--as", "ci", me["name"], "red")
    assert "red" in bus.ok("inbox").out
    assert bus.ok("peers", "--json").json == []
    assert me["name"] in [p["name"] for p in bus.ok("peers", "--all", "--json").json]
    bus.ok("rename", "somebody-else")
    assert bus.ok("whoami", "--json").json["name"] == "somebody-else"
    assert bus.ok("whoami", "--json").json["id"] == me["id"]


def test_stdin_unicode_and_octets_arrive_as_they_are(bus: Bus) -> None:
    text = "zwölf 💡 \x1b[31m\u202e\r\n\ttab\n"
    bus.ok("send", "--as", "a", "--new", "b", "-", stdin=text.encode())
    (got,) = bus.ok("inbox", "--as", "b", "--json", "--peek").json
    assert got["body"] == text
    assert not {"\x1b", "\u202e"} & set(bus.ok("inbox", "--as", "b").out)


def test_twenty_sends_side_by_side(bus: Bus) -> None:
    bus.ok("send", "--as", "first", "--new", "box", "0")
    calls = [("send", "--as", "many", "box", f"text {n}", "--json") for n in range(20)]
    with ThreadPoolExecutor(20) as pool:
        ran = list(pool.map(lambda args: bus.run(*args), calls))
    assert [r.code for r in ran] == [DONE] * 20, [r.err for r in ran if r.code]
    bus.ok("whoami", "--as", "many")  # sends what a busy machine left queued
    got = bus.ok("inbox", "--as", "box", "--json", "--limit", "100").json
    assert sorted(m["body"] for m in got) == sorted(["0", *(f"text {n}" for n in range(20))])
    assert {m["id"] for m in got} >= {r.json["id"] for r in ran}


def test_two_readers_never_show_the_same_message(bus: Bus) -> None:
    for n in range(5):
        bus.ok("send", "--as", "a", "--new", "b", str(n))
    with ThreadPoolExecutor(4) as pool:
        ran = list(pool.map(lambda _: bus.run("inbox", "--as", "b", "--json", "--limit", "2"), range(4)))
    shown = [m["id"] for r in ran for m in r.json]
    assert len(shown) == len(set(shown)) == 5


def test_queued_while_down_then_drained_in_order(bus: Bus) -> None:
    bus.ok("send", "--as", "a", "--new", "b", "one")
    bus.ok("down")
    told = []
    for text in ("two", "three"):
        ran = bus.ok("send", "--as", "a", "b", text, "--json")
        assert ran.json["status"] == "queued" and ran.json["since"] > 1_600_000_000_000
        told.append(ran.json["id"])
    assert bus.run("status", "--as", "a", "--json").json["queued"] == 2
    queued = bus.ok("why", "--as", "a", told[0], "--json").json
    assert queued["to"][0]["status"] == "queued"
    bus.ok("up")
    assert bus.ok("send", "--as", "a", "b", "four", "--json").json["status"] == "stored"
    assert [m["body"] for m in bus.ok("inbox", "--as", "b", "--json").json] == ["one", "two", "three", "four"]
    assert bus.ok("status", "--as", "a", "--json").json["queued"] == 0


def test_any_call_of_this_user_sends_what_was_left(bus: Bus) -> None:
    bus.ok("send", "--as", "a", "--new", "b", "one")
    bus.ok("down")
    for name in ("x", "y"):
        bus.ok("send", "--as", name, "b", name)
    bus.ok("send", "b", "me")
    bus.ok("up")
    assert bus.ok("send", "--as", "a", "b", "two", "--json").json["status"] == "stored"
    got = bus.ok("inbox", "--as", "b", "--json").json
    assert sorted(m["body"] for m in got) == ["me", "one", "two", "x", "y"]
    assert {m["body"]: m["from"] for m in got}["x"] == "x"
    assert not list(bus.root.glob("state/agents/*/left"))


def test_a_broken_pipe_loses_nothing(bus: Bus) -> None:
    for n in range(3):
        bus.ok("send", "--as", "a", "--new", "b", f"{n} " + "x" * 100_000)
    command = f"{sys.executable} -m talkbus inbox --as b | head -c0"
    for options in ("", " --json"):
        done = subprocess.run(
            command.replace(" | ", f"{options} | "), shell=True, cwd=bus.cwd, env=bus.env(), capture_output=True
        )
        assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr
    with open("/dev/full", "wb") if Path("/dev/full").exists() else open(os.devnull, "rb") as full:
        process = bus.start("inbox", "--as", "b", stdout=full)
        _, err = process.communicate(timeout=60)
        assert process.returncode == REFUSED and err.startswith(b"error: "), err
    assert len(bus.ok("inbox", "--as", "b", "--json").json) == 3


def test_inbox_waits_by_events(bus: Bus) -> None:
    bus.ok("whoami", "--as", "b")
    waiting = bus.start("inbox", "--as", "b", "--json", "--wait", "30", "--tag", "wanted")
    time.sleep(1.0)  # most of the time it waits by now; it must work when it does not as well
    bus.ok("send", "--as", "a", "b", "other")
    bus.ok("send", "--as", "a", "b", "this", "--tag", "wanted")
    out, err = waiting.communicate(timeout=30)
    assert waiting.returncode == DONE, err
    assert [m["body"] for m in json.loads(out)] == ["this"]
    assert [m["body"] for m in bus.ok("inbox", "--as", "b", "--json").json] == ["other"]


def test_ask_and_answer(bus: Bus) -> None:
    bus.ok("whoami", "--as", "api")
    asking = bus.start("ask", "--as", "web", "api", "which port?", "--timeout", "30", "--json")
    (question,) = bus.ok("inbox", "--as", "api", "--wait", "20", "--json").json
    bus.ok("send", "--as", "api", "web", "8080", "--reply-to", question["id"])
    out, err = asking.communicate(timeout=30)
    assert asking.returncode == DONE, err
    assert json.loads(out)["body"] == "8080"
    assert bus.ok("inbox", "--as", "web", "--all").out.count(f"answer to {question['id']} from api@") == 1
    assert bus.ok("inbox", "--as", "web", "--json").json == []
    late = bus.run("ask", "--as", "web", "api", "and the host?", "--timeout", "0.5")
    assert late.code == TIMED_OUT and late.out == ""
    (question,) = bus.ok("inbox", "--as", "api", "--json").json
    assert question["id"] in late.err
    bus.ok("send", "--as", "api", "web", "localhost", "--reply-to", question["id"])
    assert [m["body"] for m in bus.ok("inbox", "--as", "web", "--json").json] == ["localhost"]


def test_a_stranger_cannot_end_an_ask(bus: Bus) -> None:
    """Who names the question is not who was asked: that is mail like any other, and stays unread."""
    bus.ok("whoami", "--as", "api")
    asking = bus.start("ask", "--as", "web", "api", "which port?", "--timeout", "40", "--json")
    (question,) = bus.ok("inbox", "--as", "api", "--wait", "20", "--json").json
    bus.ok("send", "--as", "eve", "web", "6666", "--reply-to", question["id"])
    assert bus.ok("why", question["id"], "--json").json["to"][0]["status"] == "injected"
    bus.ok("send", "--as", "api", "web", "8080", "--reply-to", question["id"])
    out, err = asking.communicate(timeout=40)
    assert asking.returncode == DONE, err
    assert json.loads(out)["body"] == "8080"
    assert [m["body"] for m in bus.ok("inbox", "--as", "web", "--json").json] == ["6666"]
    assert bus.ok("why", question["id"], "--json").json["to"][0]["status"] == "answered"


def test_a_second_broker_in_the_foreground_is_refused_and_one_that_lost_a_race_ends_quietly(bus: Bus) -> None:
    pid = bus.ok("up", "--json").json["pid"]
    second = bus.run("up", "--foreground")
    assert (second.code, second.out) == (REFUSED, "")
    assert second.err == f"error: the bus runs already, as process {pid} (talkbus status; talkbus down ends it)\n"
    assert bus.run("up", "--foreground", env=bus.env(TALKBUS_SPAWNED="1")) == Ran(DONE, "", "")
    assert bus.ok("status", "--json").json["pid"] == pid


# -- state, search, prune, log ---------------------------------------------------------------------------------------


def test_state(bus: Bus) -> None:
    first = bus.ok("state", "set", "api:port", "8080", "--if-version", "0", "--json").json
    assert json.loads(bus.ok("state", "get", "api:port").out) == 8080
    assert bus.run("state", "set", "api:port", "1", "--if-version", "0").code == REFUSED
    bus.ok("state", "set", "api:port", "8081", "--if-version", str(first["version"]))
    bus.ok("state", "set", "api:motto", "all is wöll", "--string")
    told = bus.ok("state", "list", "api:", "--json").json
    assert [(s["key"], s["value"]) for s in told] == [("api:motto", "all is wöll"), ("api:port", 8081)]
    bus.ok("state", "delete", "api:motto")
    assert bus.run("state", "get", "api:motto").code == REFUSED
    bus.ok("state", "set", "short", "1", "--ttl", "0.5")
    until(lambda: bus.run("state", "get", "short").code == REFUSED)


def test_state_watch(bus: Bus) -> None:
    bus.ok("state", "set", "w:ready", "0")
    watching = bus.start("state", "watch", "w:", "--json", "--count", "2", "--timeout", "40")
    number = 0

    def write() -> bool:
        nonlocal number
        number += 1
        bus.ok("state", "set", f"w:{number}", str(number))
        bus.ok("state", "set", f"elsewhere:{number}", str(number))
        return watching.poll() is not None

    until(write, 40)
    out, err = watching.communicate(timeout=10)
    assert watching.returncode == DONE, err
    lines = [json.loads(text) for text in out.splitlines()]
    assert len(lines) == 2 and all(line["key"].startswith("w:") and line["event"] == "set" for line in lines)
    assert all(line["value"] == int(line["key"][2:]) for line in lines)


def test_search_history_log_and_prune(bus: Bus) -> None:
    sent = bus.ok("send", "--as", "a", "--new", "b", "the needle in the haystack", "--json").json
    bus.ok("send", "--as", "a", "b", "only hay")

    def found() -> Any:
        return bus.ok("search", "needle", "--json").json

    (hit,) = until(found)
    assert hit["id"] == sent["id"] and "needle" in hit["snippet"]
    log = bus.ok("log", "--json").json
    assert [row["op"] for row in log] == ["send", "send"] and log[0]["seq"] < log[1]["seq"]
    assert "send" in bus.ok("log").out
    assert bus.ok("prune", "--older-than", "0", "--dry-run", "--json").json["messages"] == 0
    assert len(bus.ok("inbox", "--as", "b", "--json").json) == 2
    assert bus.ok("prune", "--older-than", "0", "--dry-run", "--json").json["messages"] == 2
    told = bus.ok("prune", "--older-than", "0", "--json").json
    assert (told["messages"], told["left"]) == (2, 0)
    assert bus.ok("history", "--json").json == []
    assert bus.ok("search", "needle", "--json").json == []


def test_log_follows_and_the_tap_tells(bus: Bus) -> None:
    bus.ok("send", "--as", "a", "--new", "b", "before")
    code = "import talkbus; talkbus.tap()"
    tapping = subprocess.Popen(
        [sys.executable, "-c", code, "--json", "--class", "msg", "--peer", "b", "--count", "1", "--timeout", "40"],
        cwd=bus.cwd,
        env=bus.env(),
        stdout=subprocess.PIPE,
    )
    logging = bus.start("log", "-f", "--json", "--count", "1")

    def send() -> bool:
        bus.ok("send", "--as", "a", "b", "again")
        return tapping.poll() is not None and logging.poll() is not None

    until(send, 40)
    event = json.loads(tapping.communicate(timeout=10)[0])
    assert (event["class"], event["event"], event["to"]) == ("msg", "stored", "b")
    lines = [json.loads(text) for text in logging.communicate(timeout=10)[0].splitlines()]
    assert lines[0]["op"] == "send" and "event" in lines[-1]
