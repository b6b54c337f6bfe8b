"""Proves the bed with the real client, and the facts about the client which other tests lean on.

Every claim here about the client is one row of the table in README.md. It must not test anything of the
bus itself.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from .api import FakeApi, says
from .messages import Request, tool_results, tool_use
from .session import Home, Tui, mcp
from .transcript import digest
from .wait import TooLate, until

pytestmark = pytest.mark.e2e

PROBE = Path(__file__).with_name("probe_server.py")
WHO = "mcp__probe__who"
ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def echo(words: str) -> dict[str, Any]:
    """A call whose result has the words in upper case, so that it cannot be mistaken for the call."""
    return tool_use("Bash", command=f"echo {words} | tr a-z A-Z", description="say it")


def has_result(call: dict[str, Any]) -> Any:
    return lambda request: call["id"] in tool_results(request)


# --- one request, one turn


def test_a_print_run_asks_once(api: FakeApi, home: Home) -> None:
    api.on("what is the word", "the word is heron")
    done = home.run_print(home.project(), "what is the word")
    assert (done.returncode, done.stdout, done.stderr) == (0, "the word is heron\n", "")
    [request] = api.requests
    assert ID.fullmatch(request.session)
    assert json.loads(request.body["metadata"]["user_id"])["session_id"] == request.session
    assert (request.label, request.cwd, request.agent) == ("project", str(home.root / "project"), "")
    assert [r.kind for r in api.all_requests if r.path.endswith("/v1/messages")] == ["main"]


def test_a_tui_runs_the_scripted_tool(api: FakeApi, home: Home) -> None:
    call = echo("heron")
    api.on("please say it", "I will", call)
    tui = home.tui(home.project())
    tui.submit("please say it")
    request = api.wait(has_result(call))
    assert tool_results(request)[call["id"]] == "HERON"
    assert (request.session, request.new) == (tui.session, "HERON")
    tui.wait_screen("● I will")
    tui.wait_idle()
    assert len(api.requests) == 2
    assert tui.exit() == 0
    assert tui.info == {}  # the session file goes at a normal exit


def test_nothing_of_the_callers_environment_gets_in(
    api: FakeApi, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CLAUDE_CODE_LEAK", "ANTHROPIC_LEAK", "TALKBUS_LEAK"):
        monkeypatch.setenv(name, "leaked")
    call = tool_use("Bash", command="env", description="look")
    api.on("look", call)
    home.run_print(home.project(), "look")
    shown = tool_results(api.wait(has_result(call)))[call["id"]]
    assert f"HOME={home.path}" in shown
    assert "leaked" not in shown and str(Path.home()) + "\n" not in shown


def test_a_subagent_is_told_apart_from_its_session(api: FakeApi, home: Home) -> None:
    job = "count the herons"
    call = tool_use("Agent", subagent_type="general-purpose", description="count", prompt=job)
    api.on("delegate it", call)
    api.on(job, "there are four")
    tui = home.tui(home.project())
    tui.submit("delegate it")
    asked = api.wait(job)
    assert (bool(asked.agent), asked.session) == (True, tui.session)
    # It runs in the background here: its end wakes the session.
    told = api.wait(lambda request: not request.agent and "there are four" in request.new)
    assert "<task-notification>" in told.new and told.session == tui.session


# --- messages from outside


def test_a_message_wakes_an_idle_session(api: FakeApi, home: Home) -> None:
    tui = home.tui(home.project())
    tui.post("the gate is open")
    request = api.wait("the gate is open")
    assert request.session == tui.session
    assert "Another Claude session sent a message:\nthe gate is open\n" in request.new
    assert request.body["messages"][0]["role"] == "user"


def test_a_message_to_a_busy_session_comes_with_the_next_tool_result(api: FakeApi, home: Home) -> None:
    call = echo("heron")
    turn = api.on("please say it", call, hold=True)
    tui = home.tui(home.project())
    tui.submit("please say it")
    api.wait("please say it")
    tui.wait_status("busy")
    tui.post("the gate is open")
    assert len(api.requests) == 1
    turn.release()
    request = api.wait("the gate is open")
    assert tool_results(request) == {call["id"]: "HERON"}
    message = request.body["messages"][-1]
    assert message["role"] == "system"
    assert "sent a message while you were working:\nthe gate is open\n" in request.new
    tui.wait_idle()
    assert len(api.requests) == 2
    removed = tui.wait_transcript(lambda r: r.get("type") == "queue-operation" and r["operation"] == "remove")
    assert (removed["content"], removed["reason"]) == ("the gate is open", "absorbed_mid_turn")


def test_a_stranger_is_held_where_permissions_are_bypassed(api: FakeApi, home: Home) -> None:
    tui = home.tui(home.project(), "--permission-mode", "bypassPermissions")
    tui.post("the gate is open")
    tui.wait_screen("Held message from another session")
    tui.wait_status("waiting")
    assert api.requests == []


def test_the_transcript_proves_what_the_model_was_sent(api: FakeApi, home: Home) -> None:
    call = echo("heron")
    tui = home.tui(home.project())

    tui.post("first wake")
    api.wait("first wake")
    tui.wait_idle()
    first = tui.transcript.wait_proof("first wake")

    # This one stands alone in its message: a blob is written only when its user record is not there yet.
    tui.post("second wake")
    api.wait("second wake")
    tui.wait_idle()
    second = tui.transcript.wait_proof("second wake")
    woken = tui.wait_transcript(lambda r: r.get("type") == "user" and "second wake" in str(r["message"]))
    assert woken["origin"]["kind"] == "peer"
    assert digest(woken["message"]) in second.request["tail"]

    turn = api.on("please say it", call, hold=True)
    tui.submit("please say it")
    api.wait("please say it")
    tui.post("third, in the middle")
    assert tui.transcript.proof("third, in the middle") is None  # taken, not delivered
    turn.release()
    third = tui.transcript.wait_proof("third, in the middle")
    assert third.content["type"] == "api-request-blob"  # no other record has these very words
    assert third.content["message"]["role"] == "system"
    assert tui.transcript.wait_proof("HERON").request == third.request  # a tool's result, the same way

    for proof in (first, second, third):
        assert proof.answer["requestRef"] == proof.request["id"]
        assert proof.answer["message"]["role"] == "assistant"
    assert len({proof.request["id"] for proof in (first, second, third)}) == 3


def test_a_rewake_hook_wakes_an_idle_session(api: FakeApi, home: Home) -> None:
    folder = home.project()
    os.mkfifo(folder / "bell")
    waiter = {"type": "command", "command": "cat bell >&2; exit 2", "asyncRewake": True, "timeout": 60}
    home.settings(hooks={"SessionStart": [{"hooks": [waiter]}]})
    tui = home.tui(folder)
    line = until(lambda: _listened(folder / "bell"), "the hook listening")
    assert api.requests == []
    with line:
        line.write(b"the gate is open")
    request = api.wait("the gate is open")
    assert request.session == tui.session
    assert 'Stop hook blocking error from command "SessionStart:startup": the gate is open' in request.new
    assert "[SYSTEM NOTIFICATION - NOT USER INPUT]" in request.new


def _listened(fifo: Path) -> Any:
    """The writing end, once somebody reads."""
    try:
        return os.fdopen(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK), "wb")
    except OSError:
        return None


# --- an MCP server of the session


def _ask_who(api: FakeApi, tui: Tui, word: str) -> dict[str, Any]:
    """Let the model call the probe's tool. A server that is still connecting is waited for, turn by turn."""
    for turn in range(20):
        prompt = f"{word} {turn}"
        call = tool_use(WHO)
        api.on(_offers(prompt), call)
        tui.submit(prompt)
        if WHO in api.wait(prompt).tools:
            who: dict[str, Any] = json.loads(tool_results(api.wait(has_result(call)))[call["id"]])
            tui.wait_idle()
            return who
        tui.wait_idle()
    raise AssertionError("the probe never connected")


def _offers(prompt: str) -> Any:
    return lambda request: WHO in request.tools and says(prompt)(request)


def test_an_mcp_server_is_a_child_and_lives_through_clear(api: FakeApi, home: Home) -> None:
    home.settings(permissions={"defaultMode": "default", "allow": ["mcp__probe"]})
    folder = home.project()
    tui = home.tui(folder, *mcp(probe=[sys.executable, str(PROBE)]))
    before = tui.session
    who = _ask_who(api, tui, "who are you")
    assert who["CLAUDE_CODE_SESSION_ID"] == before
    assert who["CLAUDE_CODE_MESSAGING_SOCKET"] == tui.info["messagingSocketPath"]
    assert (who["parent"], who["cwd"], who["CLAUDE_PROJECT_DIR"]) == (tui.pid, str(folder), str(folder))

    tui.submit("/clear")
    until(lambda: tui.session not in ("", before), "a new session id")
    tui.wait_idle()
    again = _ask_who(api, tui, "and who now")
    assert again == who  # the same process; what its environment says is now out of date
    assert api.requests[-1].session == tui.session != before
    assert tui.info["messagingSocketPath"] == who["CLAUDE_CODE_MESSAGING_SOCKET"]


# --- the user's hand, and the end


def test_esc_ends_a_slow_answer(api: FakeApi, home: Home) -> None:
    tui = home.tui(home.project())
    slow = api.on("tell me a tale", "Once upon a time there was a heron. " * 40, pace=0.05)
    tui.submit("tell me a tale")
    tui.wait_screen("Once upon a time")
    assert tui.status == "busy"
    tui.interrupt()
    tui.wait_idle()
    assert len(slow.requests) == len(api.requests) == 1


def test_a_draft_is_typed_and_then_submitted(api: FakeApi, home: Home) -> None:
    tui = home.tui(home.project())
    tui.type("half a ")
    tui.wait_screen("❯ half a")
    assert api.requests == []
    tui.submit("prompt")
    assert api.wait("half a prompt").session == tui.session


def test_a_killed_session_leaves_its_file_and_its_children_are_ended(api: FakeApi, home: Home) -> None:
    folder = home.project()
    hook = {"type": "command", "command": "echo $$ > hook.pid; exec sleep 60", "asyncRewake": True}
    home.settings(hooks={"SessionStart": [{"hooks": [hook]}]})
    tui = home.tui(folder)
    child = until(lambda: _number(folder / "hook.pid"), "the hook")
    tui.kill()
    assert tui.info["pid"] == tui.pid  # stale: it was not removed
    os.kill(child, 0)  # the hook outlives its client
    tui.close()
    until(lambda: not _alive(child), "the end of the hook")


def _number(path: Path) -> int | None:
    written = path.read_text() if path.is_file() else ""
    return int(written) if written.endswith("\n") else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return True
    except ProcessLookupError:
        return False


def test_two_sessions_in_one_home_are_told_apart(api: FakeApi, home: Home) -> None:
    folders = [home.project("alice"), home.project("bob")]
    alice, bob = [home.start(folder) for folder in folders]
    for tui in (alice, bob):
        tui.wait_ready()
    bob.post("for bob only")
    request: Request = api.wait(says("for bob only", label="bob", session=bob.session, cwd=str(folders[1])))
    assert request.session != alice.session
    bob.wait_idle()
    assert [r.label for r in api.requests] == ["bob"]
    with pytest.raises(TooLate, match="for bob only"):
        api.wait(says("for bob only", label="alice"), deadline=0.01)
