"""zmq-tap beside a real broker: the whole ladder as `why` tells it, recordings, gaps, restarts, full disks, bodies."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.tap.office import Office
from agent.tap.recording import Recording
from bus import wire
from bus.private import write_private
from bus.trust import roll_file
from tests.live.homes import DEADLINE, Home, Peer
from tests.live.taps import Tap, recorded, run
from tests.story import HOSTILE

pytestmark = [pytest.mark.timeout(180), pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes")]

WIDE_OPEN = "[limits]\nrate = 100000\nburst = 100000\n"
# Small buffers on the way, so that a tap that does not read misses something soon.
NARROW = """
import zmq, bus.sockets as sockets
sockets.EVENT_QUEUE = 20
former_{0} = sockets.{0}
def narrow(*args, **more):
    made = former_{0}(*args, **more)
    made.setsockopt(zmq.SNDBUF, 4096)
    made.setsockopt(zmq.RCVBUF, 4096)
    return made
sockets.{0} = narrow
"""


def in_rows(line: str) -> bool:
    return json.loads(line)["class"] != "tap"


# -- picture, filters, ends ------------------------------------------------------------------------------------------


def test_the_picture_comes_first_and_then_what_happens(home: Home, stack: ExitStack) -> None:
    home.start()
    alice = stack.enter_context(home.session("alice"))
    alice.do("state.set", {"key": "k"}, b"1")
    tap = stack.enter_context(Tap(home, "--json", "--count", "2", "--peer", "bob"))
    first = json.loads(tap.until(lambda line: True))
    assert (first["class"], first["event"], first["peers"]) == ("tap", "snapshot", []), "bob is not there yet"
    assert [entry["key"] for entry in first["state"]] == ["k"]
    alice.post("carol", "not his")
    sent = alice.post("bob", "hello", kind="note")
    code, err = tap.end()
    told = [json.loads(line) for line in tap.lines[1:]]
    assert (code, err) == (0, "")
    assert [(e["class"], e["event"]) for e in told] == [("peer", "name"), ("msg", "stored")]
    assert (told[1]["id"], told[1]["from"], told[1]["kind"]) == (sent, "alice", "note") and "body" not in told[1]


def test_lines_for_a_person_by_kind(home: Home, stack: ExitStack) -> None:
    home.start()
    alice = stack.enter_context(home.session("alice"))
    tap = stack.enter_context(Tap(home, "--kind", "note", "--bodies", "--count", "1"))
    tap.until(lambda line: "alice" in line and "here" in line)
    alice.post("bob", "a task")
    alice.post("bob", f"one\n{HOSTILE}", kind="note", tag="t")
    code, err = tap.end()
    assert (code, err) == (0, "")
    text = "\n".join(tap.lines)
    assert "alice → bob  note" in text and "#t" in text and "    | one\n    | \\u{1B}]0;owned" in text
    assert "a task" not in text and not set(text) & set("\x1b\x07\u202e")


def test_no_broker_is_3_and_none_is_started(home: Home) -> None:
    code, lines, err = run(home)
    assert (code, lines) == (3, []) and err.startswith("error: no broker is running") and not home.paths.lock.exists()


@pytest.mark.parametrize(
    "args",
    [
        ("--speed", "2"),
        ("--office", "--top"),
        ("--office", "--json"),
        ("--top", "--peer", "a"),
        ("--replay", "x", "--demo"),
        ("--pool", "x"),
        ("--office",),
    ],
)
def test_what_does_not_go_together_is_2(home: Home, args: tuple[str, ...]) -> None:
    code, _, err = run(home, *args)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1


def test_ctrl_c_and_a_reader_that_leaves(home: Home, stack: ExitStack) -> None:
    home.start()
    alice = stack.enter_context(home.session("alice"))
    tap = stack.enter_context(Tap(home, "--json"))
    tap.event("snapshot")
    tap.process.send_signal(signal.SIGINT)
    code, err = tap.end()
    assert (code, err.strip()) == (130, "")
    gone = stack.enter_context(Tap(home, "--json"))
    gone.event("snapshot")
    assert gone.process.stdout is not None
    gone.process.stdout.close()
    alice.post("bob", "x")
    assert (gone.process.wait(DEADLINE), gone.process.stderr.read() if gone.process.stderr else b"") == (1, b"")
    gone.process.stdout = None


# -- the ladder ------------------------------------------------------------------------------------------------------


def steps_of(tap: Tap, ids: list[str]) -> dict[tuple[str, str], dict[str, tuple[int, str]]]:
    """(message, recipient) -> status -> (time, proof), as the tap told it; what is told twice counts once."""
    found: dict[tuple[str, str], dict[str, tuple[int, str]]] = {}
    for line in tap.lines:
        told = json.loads(line)
        if told["class"] != "msg" or told["id"] not in ids:
            continue
        proof = f"{told['code']} {told['text']}" if told["event"] == "refused" else told.get("proof", "")
        steps = found.setdefault((told["id"], told["to"]), {})
        steps.setdefault(told["event"], (told.get("at", told["ts"]), proof))
    return found


def test_why_and_the_tap_agree_on_every_step(home: Home, stack: ExitStack) -> None:
    home.start()
    alice, bob = (stack.enter_context(home.session(name)) for name in ("alice", "bob"))
    tap = stack.enter_context(Tap(home, "--json"))
    tap.event("snapshot")
    all_of_it = _climb(alice, bob)
    late = alice.post("bob", "told late")
    fid = bob.hear(wire.Msg).fid
    bob.do("receipt", {"moved": [["injected", "transcript", 4000, [late]]], "of": [fid]})
    failed = alice.post("bob", "not to be shown")
    bob.hear(wire.Msg)
    moved = [["offered", "hook", 0, [failed]], ["failed", "no way in", 0, [failed]]]
    bob.do("receipt", {"moved": moved, "of": [fid, fid]})
    bob.do("receipt", {"moved": [["injected", "lie", 0, [late]], ["acked", "lie", 0, ["z" * 16]]], "of": ["", fid]})
    printed = alice.post("shelf", "read by query")
    shelf = stack.enter_context(home.peer())
    shelf.hello("shelf", mode="send")
    shelf.do("settle", {"ids": [printed], "of": [fid], "proof": "printed"})
    gone = alice.post("shelf", "too late", ttl=1)
    many = alice.request("send", {"to": ["bob", "nobody-here"]}, b"x")
    assert alice.hear(wire.Rep).code == 404
    ids = [all_of_it, late, failed, printed, gone, many.id]
    last = {"expired", "refused"}  # in either order
    tap.until(lambda line: last <= {json.loads(told)["event"] for told in (*tap.lines, line)})
    told = steps_of(tap, ids)
    view = stack.enter_context(home.view())
    known: dict[tuple[str, str], dict[str, tuple[int, str]]] = {}
    for ident in ids:
        for value, _ in view.query("why", {"id": ident}).rows:
            history = {step["status"]: (step["ts"], step["proof"]) for step in value["history"]}
            known[ident, value["name"]] = history
    assert told == known
    seen = {status for steps in told.values() for status in steps}
    assert seen == {"stored", "offered", "injected", "acked", "answered", "refused", "expired", "failed"}
    assert told[late, "bob"]["injected"][0] < told[late, "bob"]["stored"][0], "as the recipient's agent saw it"


def _climb(alice: Peer, bob: Peer) -> str:
    """One message up the whole ladder."""
    ident = alice.post("bob", "please")
    msg = bob.hear(wire.Msg)
    bob.do("receipt", {"moved": [["offered", "hook", 0, [ident]]]})
    bob.say(wire.Ack([[msg.n, msg.n]], "transcript"))
    bob.do("receipt", {"moved": [["acked", "tool", 0, [ident]]]})
    bob.do("receipt", {"moved": [["acked", "again", 0, [ident]]]})
    bob.post("alice", "done", re=ident)
    return ident


# -- recordings ------------------------------------------------------------------------------------------------------


def test_a_recording_is_played_as_it_was(home: Home, stack: ExitStack, tmp_path: Path) -> None:
    home.start()
    alice = stack.enter_context(home.session("alice"))
    first, again = tmp_path / "first.tap", tmp_path / "again.tap"
    tap = stack.enter_context(Tap(home, "--json", "--bodies", "--record", str(first), "--count", "4"))
    tap.event("snapshot")
    for text in ("one", HOSTILE):
        alice.post("bob", text)
    alice.do("state.set", {"key": "k"}, b"1")
    assert tap.end()[0] == 0
    replay = ("--json", "--replay", str(first), "--speed", "0")
    code, lines, _ = run(home, *replay, "--bodies", "--record", str(again))
    assert code == 0 and [line for line in lines if in_rows(line)] == [line for line in tap.lines if in_rows(line)]
    assert HOSTILE in [json.loads(line).get("body") for line in lines]
    assert list(recorded(first)) == list(recorded(again)), "what is recorded from a recording is the same"
    assert "body" not in "".join(run(home, *replay)[1]), "they are shown when asked for"
    filtered = run(home, *replay, "--class", "state")[1]
    assert [json.loads(line)["event"] for line in filtered] == ["snapshot", "set"]
    assert run(home, "--replay", str(first), "--speed", "0", "--top", "--json")[0] == 0
    code, _, err = run(home, "--record", str(first))
    assert code == 1 and "not written over" in err and len(list(recorded(first))) == 5


def test_a_broken_recording_is_refused_with_its_line(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text('{"talkbus":"recording","version":1,"at":1}\n{"at":1,"what":"event","told":{}}\n{"at":1,"wh')
    code, lines, err = run(home, "--replay", str(path))
    assert (code, lines) == (1, []) and err.startswith(f"error: {path}:3: it is cut off (")
    path.write_text("PNG")
    assert f"{path}:1: " in run(home, "--replay", str(path))[2]


def test_a_disk_that_fills_while_recording_is_said(home: Home, stack: ExitStack, tmp_path: Path) -> None:
    home.start()
    alice = stack.enter_context(home.session("alice"))
    path = tmp_path / "x.tap"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))"
    tap = stack.enter_context(Tap(home, "--json", "--record", str(path), before=limit))
    tap.event("snapshot")
    for _ in range(20):
        alice.post("bob", "x")
    code, err = tap.end()
    assert code == 1 and err.startswith(f"error: the recording ends here, {path} takes no more: "), err
    assert run(home, "--replay", str(path), "--speed", "0")[0] == 0, "what was recorded is whole"


# -- healing ---------------------------------------------------------------------------------------------------------


def test_a_restart_of_the_broker_is_said_and_healed(home: Home, stack: ExitStack) -> None:
    home.start()
    tap = stack.enter_context(Tap(home, "--json"))
    tap.event("snapshot")
    home.kill()
    assert "broker" in tap.event("lost")["text"]
    home.start()
    alice = stack.enter_context(home.session("alice"))
    assert tap.event("missed")["restarted"] is True
    tap.event("snapshot")
    sent = alice.post("bob", "x")
    tap.event("stored", id=sent)
    home.stop()
    tap.event("stop")
    tap.event("lost")


def test_after_a_restart_the_office_and_the_lines_agree_with_why(
    home: Home, stack: ExitStack, tmp_path: Path
) -> None:
    """The broker is killed in the middle, and the tap does not look while a new one works on."""
    home.start()
    alice, bob, cleo = (stack.enter_context(home.session(name)) for name in ("alice", "bob", "cleo"))
    path = tmp_path / "day.tap"
    tap = stack.enter_context(Tap(home, "--json", "--record", str(path)))
    tap.event("snapshot")
    seen, both, waits = (_to(alice, *names) for names in (("bob",), ("bob", "cleo"), ("cleo",)))
    bob.say(wire.Ack([[1, 2]], "transcript"))
    tap.event("injected", id=both, to="bob")
    tap.process.send_signal(signal.SIGSTOP)
    home.kill()
    home.start()
    alice, bob, cleo = (stack.enter_context(home.session(name)) for name in ("alice", "bob", "cleo"))
    cleo.do("receipt", {"moved": [["offered", "hook", 0, [both]]]})
    cleo.say(wire.Ack([[1, 1]], "transcript"))
    bob.do("receipt", {"moved": [["acked", "tool", 0, [seen]]]})
    missed, open_ = _to(alice, "bob", "cleo"), _to(alice, "bob")
    refused = alice.request("send", {"to": ["bob", "nobody-here"]}, b"x").id
    assert alice.hear(wire.Rep).code == 404
    bob.say(wire.Ack([[1, 1]], "queue"))
    bob.post("alice", "done", re=both)
    tap.process.send_signal(signal.SIGCONT)
    assert tap.event("missed")["restarted"] is True
    tap.event("snapshot")
    told = {tap.event("learned")["id"] for _ in range(7)}
    assert {seen, both, waits, missed, open_, refused} < told
    cleo.say(wire.Ack([[2, 2]], "transcript"))
    tap.event("injected", id=waits)
    late = _to(alice, "cleo")
    tap.event("stored", id=late)
    tap.process.send_signal(signal.SIGINT)
    tap.end()

    office = Office()
    for item in Recording(path).items():
        office.take(item)
    feed = office.scene(0).feed
    view = stack.enter_context(home.view())
    history = [value for value, _ in view.query("history", {"limit": 50}).rows]
    assert office.messages == len(feed) == len(history) == 8, "each message once, to however many it goes"
    unread = {value["name"]: value["unread"] for value, _ in view.query("peers", {"all": True}).rows}
    assert {desk.name: desk.unread for desk in office.scene(0).desks} == unread
    lines = run(home, "--replay", str(path), "--speed", "0")[1]
    for entry in feed:
        why = [value for value, _ in view.query("why", {"id": entry.ident}).rows]
        found = {(copy.name, copy.host): copy.status for copy in entry.copies.values()}
        assert found == {(row["name"], row["host"]): row["status"] for row in why}
        for row in why:
            host = f"→ {row['name']}  "
            steps = [line.split()[1] for line in lines if entry.ident in line and host in line]
            assert steps == [step["status"] for step in row["history"]], lines


def _to(sender: Peer, *names: str) -> str:
    """A message to these, stored."""
    req = sender.request("send", {"to": list(names)}, b"x")
    assert sender.hear(wire.Rep).code == 200
    return req.id


def test_a_tap_that_does_not_read_slows_nobody_and_says_what_it_missed(home: Home, stack: ExitStack) -> None:
    home.settings(WIDE_OPEN)
    home.start(NARROW.format("xpub"))
    alice = stack.enter_context(home.session("alice"))
    tap = stack.enter_context(Tap(home, "--json", before=NARROW.format("sub")))
    tap.event("snapshot")
    tap.process.send_signal(signal.SIGSTOP)
    try:
        for number in range(3000):
            assert alice.do("state.set", {"key": f"k{number % 5}"}, b"1").code == 200
    finally:
        tap.process.send_signal(signal.SIGCONT)
    assert tap.event("missed")["restarted"] is False
    last = tap.event("snapshot")
    assert len(last["state"]) == 5
    alice.do("state.delete", {"key": "k0"})
    tap.event("delete", key="k0")


# -- bodies ----------------------------------------------------------------------------------------------------------


def guest_of(home: Home, tmp_path: Path, role: str) -> Home:
    """Another machine, which is on the roll of the broker of `home`, started here."""
    far = Home(tmp_path / "far")
    entry = f'[[key]]\npublic = "{far.keys.public}"\nlabel = "far"\nrole = "{role}"\n'
    assert home.keys
    write_private(roll_file(home.paths), entry.encode())
    home.start()
    far.environ["TALKBUS_HUB"] = f"{home.record.router.removeprefix('tcp://')}#{home.record.key}"
    return far


def test_an_observer_may_look_but_not_read(home: Home, tmp_path: Path) -> None:
    far = guest_of(home, tmp_path, "observer")
    code, lines, err = run(far, "--json", "--bodies")
    assert (code, lines) == (1, []) and err.startswith("error: an observer may not read messages")
    code, lines, _ = run(far, "--json", "--timeout", "0.5")
    assert code == 4 and json.loads(lines[0])["event"] == "snapshot"


def test_a_member_is_told_that_a_text_is_not_his(home: Home, stack: ExitStack, tmp_path: Path) -> None:
    far = guest_of(home, tmp_path, "member")
    alice = stack.enter_context(home.session("alice"))
    guest = stack.enter_context(home.peer(keys=far.keys))
    guest.hello("guest")
    tap = stack.enter_context(Tap(far, "--json", "--bodies"))
    tap.event("snapshot")
    alice.post("bob", "secret")
    guest.post("mine", "from me")
    assert tap.event("stored", to="bob", **{"from": "alice"})["no_body"] == "not yours to read"
    assert tap.event("stored", to="mine", **{"from": "guest"})["body"] == "from me"
    assert "secret" not in "".join(tap.lines)
