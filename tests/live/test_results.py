"""What a tool result proves: nothing while it lies unread in the client's pipe. Real agents, raw clients."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.processes import start_time
from tests.live.test_mcp_bed import AGENT, ROOT, Bed, bed, bodies, environment, ids, until
from tests.live.test_mcp_process import Raw, start

pytestmark = [pytest.mark.timeout(90), pytest.mark.skipif(sys.platform != "linux", reason="asks the pipe")]


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bed]:
    with bed(tmp_path / "bus") as made:
        made.stop_mark()
        yield made


@pytest.fixture
def raws() -> Iterator[list[Raw]]:
    made: list[Raw] = []
    yield made
    for raw in made:
        raw.end()


def waits(raw: Raw) -> int:
    """How many bytes of the agent this client has not read."""
    import fcntl
    import termios

    assert raw.process.stdout is not None
    told = fcntl.ioctl(raw.process.stdout.fileno(), termios.FIONREAD, b"\0" * 4)
    return int.from_bytes(told, sys.byteorder)


def check(raw: Raw, **given: object) -> int:
    """A call of check_messages whose result is not read: its request id, once the result is there."""
    before = waits(raw)
    ident = raw.ask("tools/call", {"name": "check_messages", "arguments": {"wait_s": 30, **given}})
    until(lambda: waits(raw) > before)
    return ident


def steps(asker: Raw, ident: str) -> list[str]:
    """The steps of a message to one recipient, each with its proof."""
    return asker.call("message_status", id=ident).partition("; ")[2].split(", ")


def only_offered(asker: Raw, ident: str) -> bool:
    """Whether the sender is told that it was offered, and not more."""
    told = " ".join(until(lambda: (s := steps(asker, ident)) and "offered" in str(s) and s))
    return "injected" not in told


def injected(asker: Raw, ident: str, reader: Raw | None = None, proof: str = "tool-result") -> bool:
    """Once the sender is told that it was shown: whether with this proof.

    A `reader` goes on calling meanwhile: a request that overtakes the word of the writer that its result is out proves
    nothing, the next one does.
    """

    def found() -> list[str]:
        if reader is not None:
            reader.call("set_status")
        return [s for s in steps(asker, ident) if s.startswith("injected")]

    step: list[str] = until(found)
    return f"({proof})" in step[0]


def sent(alice: Raw, bob: Raw, body: str = "precious") -> str:
    """A message for a session that has made itself known."""
    bob.call("set_status")
    return ids(alice.call("send_message", to="bob", body=body))[0]


def test_a_result_that_nobody_reads_stays_offered_and_comes_again_marked(bus: Bed, raws: list[Raw]) -> None:
    """The client is killed with the result in its pipe: a real process with SIGKILL, which cannot say a word."""
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    ident = sent(alice, bob)
    bob.process.terminate()
    bob.process.wait()
    # A client that asks for its mail, sees that the result is there, and does not read it.
    client = (
        "import json, select, subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-c', {AGENT!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "def say(**line): p.stdin.write(json.dumps({'jsonrpc': '2.0', **line}).encode() + b'\\n'); p.stdin.flush()\n"
        "info = {'name': 'raw', 'version': '1'}\n"
        "say(id=1, method='initialize', params={'protocolVersion': '2025-11-25', 'capabilities': {}, "
        "'clientInfo': info})\n"
        "p.stdout.readline()\n"
        "say(method='notifications/initialized')\n"
        "say(id=2, method='tools/call', params={'name': 'check_messages', 'arguments': {'wait_s': 30}})\n"
        "select.select([p.stdout], [], [])\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    env = environment(bus.root, CLAUDE_PROJECT_DIR=str(bus.root / "projects" / "bob"))
    process = subprocess.Popen([sys.executable, "-c", client], env=env, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        agent = int(process.stdout.readline())
        assert only_offered(alice, ident)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    until(lambda: start_time(agent) is None)
    assert only_offered(alice, ident)
    again = start(raws, bus, "bob").call("check_messages", wait_s=10)
    assert bodies(again) == ["precious"] and "possible repeat" in again


def test_the_next_request_of_a_client_that_has_read_it_is_the_proof(bus: Bed, raws: list[Raw]) -> None:
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    ident = sent(alice, bob)
    check(bob)
    assert only_offered(alice, ident)
    assert bodies(str(bob.read()["result"]["content"][0]["text"])) == ["precious"]
    assert bob.call("check_messages") == "no unread messages"
    assert injected(alice, ident, bob)


def test_a_request_that_was_sent_before_the_result_was_read_proves_nothing(bus: Bed, raws: list[Raw]) -> None:
    """Calls side by side: each of them was sent without knowing the result of another one."""
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    ident = sent(alice, bob)
    check(bob)
    before = waits(bob)
    bob.ask("tools/call", {"name": "set_status", "arguments": {}})
    bob.send("notifications/roots/list_changed")
    until(lambda: waits(bob) > before)
    assert only_offered(alice, ident)
    assert bodies(str(bob.read()["result"]["content"][0]["text"])) == ["precious"]
    bob.read()
    bob.call("set_status")
    assert injected(alice, ident, bob)


def test_what_was_in_the_pipe_before_the_result_was_written_proves_nothing(bus: Bed, raws: list[Raw]) -> None:
    """Sent in one piece: the second request was there all along, and its answer is read with the first one's."""
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    ident = sent(alice, bob)
    until(lambda: "1 unread" in alice.call("list_peers"))
    calls = [
        {"jsonrpc": "2.0", "id": n, "method": "tools/call", "params": {"name": name, "arguments": {}}}
        for n, name in ((101, "check_messages"), (102, "set_status"))
    ]
    assert bob.process.stdin is not None
    bob.process.stdin.write(b"".join(json.dumps(line).encode() + b"\n" for line in calls))
    bob.process.stdin.flush()
    answers = {(line := bob.read())["id"]: line for _ in calls}
    assert any(bodies(str(answer["result"]["content"][0]["text"])) == ["precious"] for answer in answers.values())
    assert only_offered(alice, ident)


def test_a_client_that_stays_silent_is_pinged(bus: Bed, raws: list[Raw]) -> None:
    """Its answer comes from behind the result."""
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    ident = sent(alice, bob)
    check(bob)
    assert bodies(str(bob.read()["result"]["content"][0]["text"])) == ["precious"]
    ping = bob.line()
    assert ping["method"] == "ping" and only_offered(alice, ident)
    bob.send_line({"jsonrpc": "2.0", "id": ping["id"], "error": {"code": -32601, "message": "Method not found"}})
    assert injected(alice, ident)
    assert bob.call("check_messages") == "no unread messages"


def test_a_call_that_was_given_up_comes_again_marked(bus: Bed, raws: list[Raw]) -> None:
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    ident = sent(alice, bob)
    request = check(bob)
    bob.send("notifications/cancelled", {"requestId": request, "reason": "timed out"})
    bob.read()
    again = bob.call("check_messages", wait_s=10)
    assert bodies(again) == ["precious"] and "possible repeat" in again
    bob.call("set_status")
    assert injected(alice, ident, bob)


def test_every_kind_of_result_needs_the_proof(bus: Bed, raws: list[Raw]) -> None:
    """An answer that `ask` waited for, mail that rides on a send, on an error, and what was asked for by its id."""
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    bob.call("set_status")
    bob.ask("tools/call", {"name": "ask", "arguments": {"to": "alice", "body": "which port?", "timeout_s": 30}})
    question = ids(alice.call("check_messages", wait_s=30))[0]
    answer = ids(alice.call("send_message", to="bob", body="8080", reply_to=question))[0]
    until(lambda: waits(bob) > 0)
    assert only_offered(alice, answer)
    assert bodies(str(bob.read()["result"]["content"][0]["text"])) == ["8080"]
    for tool, given in (
        ("send_message", {"to": "bob", "body": "to myself", "kind": "note"}),
        ("send_message", {"to": "nobody-here", "body": "x"}),
        ("check_messages", {"id": ""}),
    ):
        one = ids(alice.call("send_message", to="bob", body="precious"))[0]
        before = waits(bob)
        arguments = {**given, "id": one} if "id" in given else given
        bob.ask("tools/call", {"name": tool, "arguments": arguments})
        until(lambda before=before: waits(bob) > before)
        text = str(bob.read()["result"]["content"][0]["text"])
        if "precious" not in bodies(text):
            text = bob.call("check_messages", wait_s=10)
        assert "precious" in bodies(text) and "possible repeat" not in text
        assert only_offered(alice, one)
        bob.call("set_status")
        assert injected(alice, one, bob)
    assert injected(alice, answer, bob)


def test_a_model_that_names_a_message_has_seen_it(bus: Bed, raws: list[Raw]) -> None:
    """Also where the client has read nothing yet, for it may have another way to know."""
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    ident = sent(alice, bob)
    check(bob)
    before = waits(bob)
    bob.ask("tools/call", {"name": "ack", "arguments": {"ids": [ident]}})
    until(lambda: waits(bob) > before)
    until(lambda: any(s.startswith("acked") for s in steps(alice, ident)))
    bob.read()
    bob.read()
    bob.end()
    assert start(raws, bus, "bob").call("check_messages") == "no unread messages"


def test_a_large_result_carries_no_mail(bus: Bed, raws: list[Raw]) -> None:
    """A client shows its model the beginning of it only."""
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    bob.call("set_status")
    alice.call("set_state", key="large", value="x" * 60_000)
    alice.call("send_message", to="bob", body="precious")
    until(lambda: "1 unread" in alice.call("list_peers"))
    text = until(lambda: (t := bob.call("get_state", key="large")) and "waiting: check_messages" in t and t)
    assert not bodies(text) and "(1 more waiting: check_messages)" in text
    assert bodies(bob.call("check_messages")) == ["precious"]


def test_a_client_that_does_not_read_is_not_offered_it_again(bus: Bed, raws: list[Raw]) -> None:
    """Its pipe is full, so the result cannot even be written: it stays where it is, for as long as the client lives."""
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    bob.call("set_status")
    alice.call("set_state", key="large", value="x" * 60_000)
    for _ in range(3):
        bob.ask("tools/call", {"name": "get_state", "arguments": {"key": "large"}})
    until(lambda: waits(bob) > 60_000)
    ident = ids(alice.call("send_message", to="bob", body="precious"))[0]
    bob.ask("tools/call", {"name": "check_messages", "arguments": {"wait_s": 30}})
    assert only_offered(alice, ident)
    texts = [str(bob.read()["result"]["content"][0]["text"]) for _ in range(4)]
    assert [bodies(t) for t in texts if bodies(t)] == [["precious"]]
    assert bob.call("check_messages") == "no unread messages"
    assert injected(alice, ident, bob)


def test_a_socket_instead_of_pipes(bus: Bed) -> None:
    """As clients have it that run on Node."""
    ours, theirs = socket.socketpair()
    env = environment(bus.root, CLAUDE_PROJECT_DIR=str(bus.root / "projects" / "bob"))
    with (
        ours,
        subprocess.Popen([sys.executable, "-c", AGENT], env=env, cwd=ROOT, stdin=theirs, stdout=theirs) as agent,
    ):
        theirs.close()
        stream = ours.makefile("rwb")

        def say(method: str, **more: object) -> None:
            stream.write(json.dumps({"jsonrpc": "2.0", "method": method, **more}).encode() + b"\n")
            stream.flush()

        def call(number: int, tool: str, **given: object) -> str:
            say("tools/call", id=number, params={"name": tool, "arguments": given})
            while (line := json.loads(stream.readline())).get("method") == "ping":
                stream.write(json.dumps({"jsonrpc": "2.0", "id": line["id"], "result": {}}).encode() + b"\n")
                stream.flush()
            return str(line["result"]["content"][0]["text"])

        info = {"name": "raw", "version": "1"}
        say("initialize", id=1, params={"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info})
        stream.readline()
        say("notifications/initialized")
        call(2, "set_status")
        ident = ids(call(3, "send_message", to="bob", body="to myself", kind="note"))[0]
        call(4, "check_messages", wait_s=10)
        until(lambda: "(tool-result)" in call(5, "message_status", id=ident))
        agent.kill()


def test_a_client_that_hangs_up_without_reading_has_not_seen_it(bus: Bed, raws: list[Raw]) -> None:
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    ident = sent(alice, bob)
    check(bob)
    assert only_offered(alice, ident)
    assert bob.process.stdin is not None
    bob.process.stdin.close()  # the agent leaves in good order
    bob.process.wait(5)
    assert only_offered(alice, ident)
    again = start(raws, bus, "bob").call("check_messages", wait_s=10)
    assert bodies(again) == ["precious"] and "possible repeat" in again


def test_what_was_shown_once_is_never_called_a_repeat(bus: Bed, raws: list[Raw]) -> None:
    """Read again on purpose: before there is a proof, with it, and by another session's look at it."""
    alice, bob = start(raws, bus, "alice"), start(raws, bus, "bob")
    ident = sent(alice, bob)
    check(bob)
    assert only_offered(alice, ident)
    assert bodies(str(bob.read()["result"]["content"][0]["text"])) == ["precious"]
    looks: list[dict[str, object]] = [{"id": ident}, {"id": ident, "peek": True}, {"unread_only": False}]
    for look in looks:
        text = bob.call("check_messages", **look)
        assert bodies(text) == ["precious"] and "possible repeat" not in text, look
    assert injected(alice, ident, bob)
    for look in looks:
        text = bob.call("check_messages", **look)
        assert bodies(text) == ["precious"] and "possible repeat" not in text, look
    env = environment(bus.root, TALKBUS_NAME="alice")
    for command in (["history"], ["search", "precious"], ["inbox", "--as", "bob", "--all"]):
        done = subprocess.run(
            [sys.executable, "-m", "talkbus", *command, "--json"], env=env, cwd=ROOT, capture_output=True, check=True
        )
        assert [m["again"] for m in json.loads(done.stdout) if m["id"] == ident] == [False], command
