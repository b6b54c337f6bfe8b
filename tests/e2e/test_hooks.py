"""The hook scripts in the real client: a text put into the maildir is in one request, and the waiter wakes.

The test plays the agent: it holds the maildir of the client. Needs no broker.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from agent.delivery.maildir import Fate, Maildir
from agent.delivery.transcript import Seen, scan
from bus import processes

from .api import FakeApi
from .messages import tool_results, tool_use
from .session import Home, Tui
from .wait import until

pytestmark = pytest.mark.e2e

HOOKS = Path(__file__).parents[2] / "hooks"
EVENTS = ["SessionStart", "UserPromptSubmit", "PreToolUse", "PostToolUse", "Stop", "Notification", "SessionEnd"]
ARMING = ["SessionStart", "UserPromptSubmit", "PostToolUse", "Stop"]


class Bus:
    """A home with our hooks; `maildir` is that of the session, once it runs."""

    def __init__(self, home: Home, events: list[str], arming: list[str] | None = None) -> None:
        self.home = home
        self.folder = home.project()
        self.env = {"TALKBUS_HOME": str(home.root / "bus")}
        self.maildirs = home.root / "bus" / "run" / "maildirs"
        hooks: dict[str, list[dict[str, Any]]] = {}
        for event in events:
            hooks[event] = [self._hook(f"sh '{HOOKS}/deliver.sh' {event}")]
        for event in arming or []:
            waiter = self._hook(f"sh '{HOOKS}/rewake.sh'", asyncRewake=True, timeout=86400)
            hooks.setdefault(event, []).append(waiter)
        home.settings(hooks=hooks)
        self.opened: list[Maildir] = []

    @staticmethod
    def _hook(command: str, **more: Any) -> dict[str, Any]:
        return {"hooks": [{"type": "command", "command": command, **more}]}

    def start(self, *arguments: str) -> tuple[Tui, Maildir]:
        tui = self.home.tui(self.folder, *arguments, env=self.env)
        return tui, self.open(tui.pid)

    def open(self, pid: int) -> Maildir:
        start = processes.start_time(pid)
        assert start
        self.opened.append(Maildir.open(self.maildirs, pid, start))
        return self.opened[-1]


@pytest.fixture
def made(home: Home) -> Iterator[list[Bus]]:
    buses: list[Bus] = []
    yield buses
    for bus in buses:
        for maildir in bus.opened:
            maildir.close()


def now() -> int:
    return time.time_ns() // 1_000_000


def shown_once(api: FakeApi, tui: Tui, maildir: Maildir, name: str, words: str) -> None:
    """In one request as something new, proven, and printed."""
    tui.wait_idle()
    assert len([r for r in api.requests if words in r.new]) == 1
    path = until(lambda: tui.transcript.path, "a transcript")
    until(lambda: scan(path, [words])[0].seen(words) is Seen.INJECTED, f"the proof of {words}")
    assert maildir.box.fate(name) is Fate.PRINTED


def doing(maildir: Maildir) -> str:
    seen = maildir.activity()
    return seen.doing if seen else ""


def test_with_a_prompt(api: FakeApi, home: Home, made: list[Bus]) -> None:
    made.append(Bus(home, EVENTS))
    tui, maildir = made[0].start()
    name = maildir.put("id-aaaa line one\nline <two>", "note", now())
    tui.submit("please think")
    request = api.wait("please think")
    assert "UserPromptSubmit hook additional context: id-aaaa line one\nline <two>" in request.new
    shown_once(api, tui, maildir, name, "id-aaaa line one")
    tui.submit("please think again")
    api.wait("please think again")
    tui.wait_idle()
    until(lambda: doing(maildir) == "idle", "idle")
    assert len([r for r in api.requests if "id-aaaa" in r.new]) == 1


@pytest.mark.parametrize("event", ["PreToolUse", "PostToolUse"])
def test_with_a_tool(api: FakeApi, home: Home, made: list[Bus], event: str) -> None:
    made.append(Bus(home, [event]))
    call = tool_use("Bash", command="seq 1 30000 | tail -1; seq 1 9000", description="say it")
    turn = api.on("please say it", call, hold=True)
    tui, maildir = made[0].start()
    tui.submit("please say it")
    api.wait("please say it")
    name = maildir.put("id-bbbb", "note", now())
    turn.release()
    request = api.wait("id-bbbb")
    assert call["id"] in tool_results(request)
    assert doing(maildir) == "busy"
    shown_once(api, tui, maildir, name, "id-bbbb")
    assert len(api.requests) == 2


def test_a_large_result_that_no_hook_reads_is_no_trouble(api: FakeApi, home: Home, made: list[Bus]) -> None:
    made.append(Bus(home, EVENTS))
    call = tool_use("Bash", command="seq 1 200000 | tr -d '\\n' | cut -c1-28000", description="say much")
    api.on("please say much", call)
    tui, maildir = made[0].start()
    tui.submit("please say much")
    api.wait(lambda request: call["id"] in tool_results(request))
    tui.wait_idle()
    errors = [r for r in tui.transcript.records("system") if r.get("hookErrors")]
    assert errors == [] and doing(maildir) == "idle"


def test_the_end_of_a_turn_hands_a_task_over_once(api: FakeApi, home: Home, made: list[Bus]) -> None:
    made.append(Bus(home, ["Stop"]))
    turn = api.on("please think", "thought", hold=True)
    tui, maildir = made[0].start()
    tui.submit("please think")
    api.wait("please think")
    note = maildir.put("id-note", "note", now())
    turn.release()
    tui.wait_idle()
    assert maildir.box.fate(note) is Fate.WAITING and len(api.requests) == 1
    turn = api.on("again", "thought", hold=True)
    tui.submit("again")
    api.wait("again")
    task = maildir.put("id-task", "task", now())
    more = api.on("id-task", "I see", hold=True)
    turn.release()
    request = api.wait("id-task")
    assert "Stop hook additional context: id-task\n\nid-note" in request.new
    late = maildir.put("id-late", "task", now())
    more.release()
    shown_once(api, tui, maildir, task, "id-task")
    assert maildir.box.fate(note) is Fate.PRINTED
    assert len(api.requests) == 3
    assert maildir.box.fate(late) is Fate.WAITING and maildir.box.withdraw(late)


def test_at_the_start_of_a_session(api: FakeApi, home: Home, made: list[Bus]) -> None:
    made.append(Bus(home, EVENTS))
    tui, maildir = made[0].start()
    tui.submit("hello")
    api.wait("hello")
    tui.wait_idle()
    name = maildir.put("id-cccc", "note", now())
    before = tui.session
    tui.submit("/clear")
    until(lambda: tui.session not in ("", before), "a new session")
    until(lambda: maildir.box.fate(name) is Fate.PRINTED, "the hook of the start")
    tui.submit("go on")
    request = api.wait("id-cccc")
    assert "SessionStart hook additional context: id-cccc" in request.new
    shown_once(api, tui, maildir, name, "id-cccc")


def test_a_subagent_is_not_given_what_is_for_its_session(api: FakeApi, home: Home, made: list[Bus]) -> None:
    made.append(Bus(home, ["PreToolUse", "PostToolUse", "UserPromptSubmit"]))
    job = "count the herons"
    call = tool_use("Bash", command="echo four | tr a-z A-Z", description="count")
    start = tool_use("Agent", subagent_type="general-purpose", description="count", prompt=job)
    api.on("delegate it", start)
    asked = api.on(job, call, hold=True)
    tui, maildir = made[0].start()
    tui.submit("delegate it")
    api.wait(job)
    api.wait(lambda request: start["id"] in tool_results(request))  # it goes on in the background
    name = maildir.put("id-dddd", "note", now())
    asked.release()
    sub = api.wait(lambda request: call["id"] in tool_results(request))
    assert sub.agent and "id-dddd" not in sub.text
    request = api.wait("id-dddd")  # with the prompt by which the subagent's end wakes the session
    assert not request.agent
    shown_once(api, tui, maildir, name, "id-dddd")


def test_the_waiter_wakes_an_idle_session(api: FakeApi, home: Home, made: list[Bus]) -> None:
    made.append(Bus(home, EVENTS, ARMING))
    tui, maildir = made[0].start()
    for n in range(3):
        until(lambda: maildir.waiter, "the waiter")
        words = f"id-{n:04} wake up"
        begun = time.monotonic()
        name = maildir.put(words, "task", now())
        request = api.wait(words)
        print(f"wake {n}: {request.at - begun:.3f} s")
        shown_once(api, tui, maildir, name, words)
    until(lambda: maildir.waiter, "the waiter")
    assert len(api.requests) == 3
    assert tui.exit() == 0
    until(lambda: not maildir.waiter, "the end of the waiter")


def test_esc_does_not_end_the_waiting(api: FakeApi, home: Home, made: list[Bus]) -> None:
    made.append(Bus(home, EVENTS, ARMING))
    tui, maildir = made[0].start()
    api.on("tell me a tale", "Once upon a time there was a heron. " * 40, pace=0.05)
    tui.submit("tell me a tale")
    tui.wait_screen("Once upon a time")
    tui.interrupt()
    tui.wait_idle()
    name = maildir.put("id-eeee", "task", now())
    api.wait("id-eeee")
    shown_once(api, tui, maildir, name, "id-eeee")


def test_what_was_printed_before_a_tool_is_lost_by_esc(api: FakeApi, home: Home, made: list[Bus]) -> None:
    """Why "printed" is no proof: the client drops the context of a tool that was interrupted, without a trace."""
    made.append(Bus(home, ["PreToolUse"]))
    turn = api.on("please wait", tool_use("Bash", command="tail -f /dev/null | cat", description="wait"), hold=True)
    tui, maildir = made[0].start()
    tui.submit("please wait")
    api.wait("please wait")
    name = maildir.put("id-ffff", "note", now())
    turn.release()
    until(lambda: maildir.box.fate(name) is Fate.PRINTED, "the hook")
    until(lambda: any("tail" in p.info["name"] for p in psutil.process_iter(["name"])), "the tool")
    tui.interrupt()
    tui.wait_idle()
    tui.submit("what now")
    assert "id-ffff" not in api.wait("what now").text
    tui.wait_idle()
    path = tui.transcript.path
    assert path is not None and scan(path, ["id-ffff"])[0].seen("id-ffff") is Seen.NOTHING


def test_nothing_is_left_when_the_client_is_killed(api: FakeApi, home: Home, made: list[Bus]) -> None:
    made.append(Bus(home, EVENTS, ARMING))
    tui, maildir = made[0].start()
    until(lambda: maildir.waiter, "the waiter")
    waiter = int((maildir.path / "waiter").read_text().split()[0])
    tui.kill()
    maildir.close(remove=False)  # an agent ends with its client
    until(lambda: processes.start_time(waiter) is None, "the end of the waiter")


def test_print_mode_is_not_held_up(api: FakeApi, home: Home, made: list[Bus]) -> None:
    made.append(Bus(home, EVENTS, ARMING))
    done = home.run_print(made[0].folder, "what is the word", env=made[0].env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")
    assert len(api.requests) == 1


def test_a_missing_or_broken_folder_is_no_trouble(api: FakeApi, home: Home, made: list[Bus]) -> None:
    made.append(Bus(home, EVENTS, ARMING))
    tui, maildir = made[0].start()
    os.rmdir(maildir.path / "new")
    (maildir.path / "new").write_text("not a folder")
    tui.submit("hello")
    api.wait("hello")
    tui.wait_idle()
    assert len(api.requests) == 1
