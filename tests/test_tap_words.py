"""words: what a person reads, and that nothing a peer wrote gets through to his terminal."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli.colours import ascii_only, painted, plain_only
from agent.tap.choosing import CLASSES, Choice
from agent.tap.items import Item, as_line
from agent.tap.words import BODY_LINES, Teller
from bus.activity import EVENTS
from tests.story import HOSTILE, MANY, ONE, START, STORY, event, row, snapshot, step, stored


def told(*items: Item, bodies: bool = False) -> list[str]:
    choice = Choice()
    teller = Teller(lambda ms: f"+{ms - START}", choice, "->", bodies)
    lines = []
    for item in items:
        choice.takes(item)
        lines += [painted(line, False) for line in teller.lines(item)]
    return lines


def test_the_story() -> None:
    assert told(*STORY) == [
        "+0  3 peers here or with unread mail:",
        "    ada@mars    busy  reached by native  the migration",
        "    bob@mars    here  reached by hooks",
        "    cleo@venus  here  1 unread, the oldest 90 s ago  reached by tools",
        "+0  1 other mailbox nobody holds, 1 state key",
        f"+1000  stored    ada@mars -> bob@mars  task  31 B  #db  {ONE}",
        f"+1400  injected  ada@mars -> bob@mars  proof tool-result  {ONE}",
        "+1600  peer      dan@venus is here",
        "+2000  stored    ada@mars -> bob@mars  note  31 B  aaaabbbbccccdddd",
        "+2000  stored    ada@mars -> cleo@venus  note  31 B  aaaabbbbccccdddd",
        "+2000  stored    ada@mars -> dan@venus  note  31 B  aaaabbbbccccdddd",
        "+2100  refused   bob@mars -> nobody  404 nobody is called so  zzzzyyyyxxxxwwww",
        "+2200  peer      cleo@venus is cut off; it may come back",
    ]


def test_one_machine_goes_without_saying() -> None:
    assert told(snapshot(peers=[row("a1", "ada")]), stored(START, ONE))[-1].split()[2:5] == ["ada", "->", "bob"]
    assert told(snapshot(peers=[]))[0] == "+0  1 state key"
    assert told(Item(START, "snapshot", {})) == ["+0  nobody is here yet"]


def test_who_sent_it_is_remembered_for_later_steps() -> None:
    lines = told(stored(START, ONE), step(START, "acked", ONE), step(START, "answered", ONE, proof="r" * 16))
    assert lines[1] == f"+0  acked     ada -> bob  proof tool-result  {ONE}"
    assert lines[2] == f"+0  answered  ada -> bob  by {'r' * 16}  {ONE}"
    assert told(step(START, "acked", ONE)) == [f"+0  acked     bob  proof tool-result  {ONE}"]


def test_a_step_that_is_told_late() -> None:
    (line,) = told(step(START + 5000, "injected", ONE, at=START + 1000))
    assert "told 4 s late" in line


def test_everything_else() -> None:
    assert told(
        event(START, "peer.name", id="a", name="new", former="old", host="h"),
        event(START, "peer.name", id="a", name="new", host="h"),
        event(START, "peer.status", id="a", name="new", host="h", activity="idle", summary="s", wake="native"),
        event(START, "peer.status", id="a", name="new", host="h"),
        event(START, "peer.gone", id="a", name="new", host="h"),
        event(START, "state.set", key="k", ver=3, size=2, by="a@h"),
        event(START, "state.delete", key="k", by=""),
        event(START, "bus.full", requests=1),
        event(START, "bus.full", over=True),
        event(START, "bus.start"),
        event(START, "vote.cast"),
        stored(START, ONE, re="q" * 16),
        event(START, "msg.held", id="h" * 16, **{"from": "ada"}, to="bob", mailbox="b2", kind="task", size=3),
        Item(START, "missed", {"restarted": True}),
        Item(START, "missed", {"restarted": False}),
        Item(START, "lost", {"text": "nobody answers"}),
        Item(START, "peers", {}),
    ) == [
        "+0  peer      new is the new name of old",
        "+0  peer      new is a new mailbox",
        "+0  peer      new  idle  s  reached by native",
        "+0  peer      new  has a new status",
        "+0  peer      new has left",
        "+0  state     k is at version 3, 2 B  by a@h",
        "+0  state     k is removed  its time ran out",
        "+0  bus       the broker's disk is full",
        "+0  bus       the disk takes writes again",
        "+0  bus       the broker has started",
        "+0  vote      vote.cast",
        f"+0  stored    ada -> bob  task  31 B  re {'q' * 16}  {ONE}",
        f"+0  held      ada -> bob  task  3 B  waits for a person  {'h' * 16}",
        "+0  the broker was restarted: some of what happened was missed here; joined anew",
        "+0  events came too fast: some of what happened was missed here; joined anew",
        "+0  the connection is lost, it is tried again: nobody answers",
    ]


# The fields of the events that the story does not have, as the broker sends them.
FIELDS_OF = {
    "msg": {"id": ONE, "from": "ada", "to": "bob", "mailbox": "b2", "kind": "task", "proof": "why", "code": 403},
    "peer": {"id": "a1", "name": "ada", "host": "mars"},
    "state": {"key": "k", "ver": 1, "by": "ada@mars"},
    "bus": {"host": "mars", "on": True, "what": "hops", "name": "ada", "until": START + 5, "before": START - 5},
    "lan": {"host": "venus", "role": "observer", "until": START + 5, "why": "used", "left": 3},
}


@pytest.mark.parametrize("topic", [f"{kind}.{name}" for kind, names in EVENTS.items() for name in names.split()])
def test_every_event_of_the_table_is_shown_in_words(topic: str) -> None:
    kind, _, name = topic.partition(".")
    if kind == "sync":
        return  # a marker of the stream itself
    item = event(START, topic, **FIELDS_OF[kind])
    assert Choice().takes(item), "without a choice everything is wanted"
    assert kind in CLASSES and Choice(classes=[kind]).takes(item)
    (line,) = told(item)
    assert topic not in line and len(line.split()) > 3, line
    assert name in line if kind == "msg" else line.split()[1] == kind
    hostile = {key: HOSTILE for key, value in FIELDS_OF[kind].items() if isinstance(value, str)}
    (line,) = told(event(START, topic, **{**FIELDS_OF[kind], **hostile}))
    assert not [c for c in line if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")], line


def test_machines_and_the_bus() -> None:
    assert told(
        event(START, "lan.invited", role="member", until=START + 600_000),
        event(START, "lan.refused", left=1),
        event(START, "lan.closed", why="used"),
        event(START, "lan.closed", why="no port"),
        event(START, "lan.joined", host="venus", role="member"),
        event(START, "lan.role", host="venus", role="observer"),
        event(START, "lan.revoked", host="venus"),
        event(START, "lan.moved", host="venus"),
        event(START, "bus.policy", host="mars"),
        event(START, "bus.pause", host="mars", on=True),
        event(START, "bus.pause", host="mars", on=False),
        event(START, "bus.breaker", what="wakes", id="a1", name="ada", host="mars", until=START + 9),
        event(START, "bus.breaker", what="sums", id="a1", name="ada", host="mars", until=0),
        event(START, "bus.prune", before=START - 9),
        event(START, "bus.renamed"),
    ) == [
        "+0  lan       an invitation is open, for one machine as member, until +600000",
        "+0  lan       a machine came with a wrong token; 1 try is left",
        "+0  lan       no invitation is open any more: it was used",
        "+0  lan       no invitation is open any more: no port",
        "+0  lan       venus has joined as member",
        "+0  lan       venus is observer now",
        "+0  lan       venus was taken off the bus",
        "+0  lan       lan.moved",
        "+0  bus       the rules about mail to mars were changed",
        "+0  bus       mail to mars is held until it resumes (talkbus resume)",
        "+0  bus       mail to mars is no longer held by a pause",
        "+0  bus       ada was woken often enough; tasks wait for what comes next (until +9)",
        "+0  bus       ada has met a limit: sums",
        "+0  bus       old mail is being removed, from before +-9",
        "+0  bus       bus.renamed",
    ]


def test_a_step_that_is_told_twice_is_one_line() -> None:
    lines = told(stored(START, ONE), step(START, "injected", ONE), step(START + 5, "injected", ONE))
    assert [line.split()[1] for line in lines] == ["stored", "injected"]


def test_a_step_that_comes_after_a_higher_one_says_so() -> None:
    lines = told(stored(START, ONE), step(START, "injected", ONE), step(START, "offered", ONE, proof="hook"))
    assert lines[2] == f"+0  offered   ada -> bob  by hook  told after injected  {ONE}"


def test_what_was_missed_is_told_when_it_is_learned() -> None:
    history = [
        {"status": "injected", "ts": START + 30, "proof": "queue"},
        {"status": "stored", "ts": START, "proof": ""},
        {"status": "offered", "ts": START + 20, "proof": "native"},
    ]
    to = [{"name": "bob", "host": "mars", "mailbox": "b2", "status": "injected", "history": history}]
    known = {"id": ONE, "from": "ada", "from_host": "mars", "to": to}
    no = {"status": "refused", "ts": START + 2, "proof": "404 nobody"}
    refused = {"name": "x", "host": "", "status": "refused", "code": 404, "text": "nobody", "history": [no]}
    new = {"id": MANY, "from": "ada", "from_host": "mars", "kind": "note", "size": 6, "body": HOSTILE}
    lines = told(
        stored(START, ONE),
        Item(START, "missed", {"restarted": True}),
        Item(START + 50, "learned", known),
        Item(START + 50, "learned", {**new, "to": [*to, refused]}),
        Item(START + 50, "learned", {"more": True}),
        step(START + 30, "injected", ONE),
        step(START + 90, "acked", ONE),
        bodies=True,
    )
    end = "  (missed, and asked for)"
    assert lines[2:4] == [
        f"+20  offered   ada -> bob  by native  {ONE}{end}",
        f"+30  injected  ada -> bob  proof queue  {ONE}{end}",
    ]
    assert lines[4] == f"+0  stored    ada -> bob  note  6 B  {MANY}{end}"
    assert lines[5].startswith("    | \\u{1B}]0;owned")
    assert [line.split()[1] for line in lines[-5:-2]] == ["offered", "injected", "refused"]
    assert "404 nobody" in lines[-3] and lines[-2].endswith("(talkbus history has them)")
    assert lines[-1] == f"+90  acked     ada -> bob  proof tool-result  {ONE}", "what was told is not told again"


def test_bodies() -> None:
    many = "\n".join(f"line {n}" for n in range(BODY_LINES + 3))
    lines = told(stored(START, ONE, body=many), bodies=True)
    assert lines[1] == "    | line 0" and lines[-1] == "    | … 3 more lines" and len(lines) == BODY_LINES + 2
    assert told(stored(START, ONE, body="x" * 3000), bodies=True)[-1] == "    | … cut"
    assert told(stored(START, ONE, no_body="not yours to read"), bodies=True)[-1].endswith("not yours to read)")
    assert len(told(stored(START, ONE, body="secret"))) == 1, "it was not asked for"


FIELDS = "from from_host to host kind tag re id proof text name former summary activity wake key by event class body".split()
BIDI = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
VALUES = st.text(max_size=30) | st.just(HOSTILE) | st.integers() | st.none() | st.lists(st.integers(), max_size=2)


@given(
    st.dictionaries(st.sampled_from(FIELDS), VALUES), st.sampled_from(["msg", "peer", "state", "bus", "lan", HOSTILE])
)
def test_whatever_is_told_it_is_printable_lines(fields: dict[str, Any], kind: str) -> None:
    item = event(START, f"{kind}.stored")
    item.told.update(fields)
    picture = snapshot(peers=[{**row("a1", "ada"), **fields}])
    for line in told(item, picture, Item(START, "lost", fields), bodies=True):
        assert not [c for c in line if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")], line
        assert not [c for c in line if unicodedata.bidirectional(c) in BIDI], line


def test_hostile_text_is_shown_as_what_it_is() -> None:
    (line, body, *_) = told(stored(START, ONE, **{"from": HOSTILE, "tag": HOSTILE, "body": HOSTILE}), bodies=True)
    assert "\\u{1B}[2J" in line and "\\u{202E}" in line
    assert body.startswith("    | \\u{1B}]0;owned\\u{7}")


def test_lines_for_programs() -> None:
    assert as_line(stored(START, ONE))["event"] == "stored"
    assert as_line(Item(5, "missed", {"restarted": True})) == {
        "class": "tap",
        "event": "missed",
        "ts": 5,
        "restarted": True,
    }


def test_colours_and_terminals_without_arrows() -> None:
    assert painted([("step.stored", "stored"), ("", " x "), ("name", "ada")], True).count("\x1b[0m") == 2
    assert painted([("name", "ada ")], True)[:5] == painted([("name", "ada")], True)[:5], "always the same colour"
    assert plain_only("ascii") and plain_only("no-such-codec") and not plain_only("utf-8")
    assert ascii_only("a → b…") == "a > b~"
