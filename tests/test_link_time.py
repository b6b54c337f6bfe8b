"""The link over time: heartbeats, stalls, receipts; and whatever octets come in."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.book import AddRow, PutShown
from agent.effects import Batch, Mail, SendRow
from agent.link import STALL_MS, UNCONFIRMED_MAX
from bus import wire
from bus.errors import LocalError
from bus.wire import Ack, Ping
from tests.test_link import MSG, SAID, WELCOME, Rig


def test_heartbeats() -> None:
    rig = Rig(activity="busy").opened()
    assert rig.later(3999).sends == []
    assert rig.later(1).sends == [Ping(1, "busy")]
    assert rig.later(3999).sends == [] and rig.later(1).sends == [Ping(2, "busy")]
    rig.link.status("idle")
    assert rig.take().sends == [Ping(3, "idle")], "told at once"
    rig.link.status("idle")
    assert rig.take().sends == []


def test_a_stall_is_asked_about() -> None:
    rig = Rig().opened()
    rig.link.submit(rig.now, "status", {})
    rig.take()
    assert rig.link.deadline() == rig.now + STALL_MS
    assert rig.later(STALL_MS - 1).sends == []
    assert rig.later(1).sends == [Ping(1)]
    assert rig.link.deadline() == rig.now + STALL_MS, "and again a second later"
    assert rig.later(STALL_MS).sends == [Ping(2)]
    batch = rig.hear(SAID["PONG"] | {"k": 2, "high": 0})
    assert batch.sends == [SendRow(1, 1, 1)], "the request was lost"
    assert rig.link._pinged == {}


def test_many_unconfirmed_are_asked_about() -> None:
    rig = Rig().opened()
    for i in range(UNCONFIRMED_MAX + 1):
        head = MSG | {"n": i + 1, "prev": i, "id": f"m{i}"}
        rig.link.receive(rig.now, [wire.SIGNATURE, wire.pack(head)])
    assert [type(c) for c in rig.take().sends] == [Ping]


def test_receipts_travel_together_and_are_confirmed() -> None:
    rig = Rig().opened()
    rig.hear(MSG, b"x")
    inbox = rig.link.inbox
    (letter,) = inbox.offer(rig.now, inbox.waiting(), "hook")
    assert letter.key == "beta/00000002/" + "m" * 16
    assert rig.take().sends == [] and rig.link.deadline() == rig.now + 200
    rig.link.lost(rig.now)
    rig.take()
    inbox.shown(rig.now, [letter.key], "p" * 600)
    rig.now += 300
    rig.greeted()
    batch = rig.hear(WELCOME)
    (row,) = [w for w in batch.writes if isinstance(w, AddRow)]
    moved = [
        ["offered", "hook", 300, ["beta/" + "m" * 16]],
        ["injected", "p" * 64, 300, ["beta/" + "m" * 16]],
    ]
    assert wire.unpack(row.args) == {"moved": moved, "of": ["00000002", "00000002"]}
    assert not rig.book.ledger[letter.key].told
    batch = rig.hear({"c": "REP", "q": 1, "code": 200})
    assert rig.book.ledger[letter.key].told
    assert any(isinstance(w, PutShown) for w in batch.writes)


def test_what_was_offered_is_told_before_it_is_acknowledged() -> None:
    rig = Rig().opened()
    for i in range(3):
        rig.hear(MSG | {"n": i + 1, "prev": i, "id": f"{i}" * 16})
    inbox = rig.link.inbox
    first, second, third = inbox.waiting()
    inbox.offer(rig.now, [first, second], "hook")
    assert rig.take().sends == [], "nothing is known of their fate: that can wait"
    inbox.shown(rig.now, [first.key], "seen")
    receipt, ack = rig.take().sends
    assert isinstance(receipt, SendRow) and ack == wire.Ack([[1, 1]], "seen", "injected")
    assert inbox.moves == [], "what else waited travels along"
    inbox.offer(rig.now, [third], "hook")
    inbox.shown(rig.now, [second.key], "seen")
    assert rig.take().sends == [wire.Ack([[2, 2]], "seen", "injected")], "its own was told, another one's can wait"


def test_an_acknowledgement_does_not_wait_for_a_full_window() -> None:
    rig = Rig().opened()
    rig.hear(MSG, b"x")
    for _ in range(wire.OPEN_REQUESTS):
        rig.link.submit(rig.now, "status", {})
    rig.take()
    inbox = rig.link.inbox
    inbox.shown(rig.now, [x.key for x in inbox.offer(rig.now, inbox.waiting(), "hook")], "seen")
    assert rig.take().sends == [wire.Ack([[1, 1]], "seen", "injected")]


def test_receipts_always_fit_a_head() -> None:
    rig = Rig().opened()
    for i in range(64):
        rig.hear(MSG | {"n": i + 1, "prev": i, "id": f"{i:02}" + "m" * 14, "host": "h" * 60})
    rig.link.lost(rig.now)
    inbox = rig.link.inbox
    for i, letter in enumerate(inbox.waiting()):
        given = inbox.offer(rig.now, [letter], "a path of its own " + "ü" * 60 + str(i))
        inbox.shown(rig.now, [x.key for x in given], "proof " + "ü" * 58)
        rig.now += 1
    rows = 0
    rig.now += 300
    rig.greeted()
    rig.hear(WELCOME)
    for _ in range(60):
        rows += sum(isinstance(w, AddRow) for w in rig.later(250).writes)
    assert rows > 2 and rig.link.inbox.moves == []


def test_receipts_wait_while_the_window_is_full() -> None:
    rig = Rig().opened()
    rig.link.inbox.moves.append(("offered", "hook", rig.now, "beta/m"))
    for _ in range(wire.OPEN_REQUESTS):
        rig.link.submit(rig.now, "status", {})
    rig.take()
    rig.later(500)
    assert rig.link.inbox.moves and (rig.link.deadline() or 0) > rig.now, "and do not make the shell spin"


def test_news_of_mail() -> None:
    rig = Rig().opened()
    assert rig.hear(MSG, b"x").news == [Mail(0)]
    assert rig.hear(SAID["PONG"] | {"k": 0, "open": [[1, 1]], "more": 3}).news == [Mail(3)]


def test_a_frame_that_is_none_is_dropped() -> None:
    rig = Rig().opened()
    for frames in ([], [b"x"], [wire.SIGNATURE], [wire.SIGNATURE, b"\xc1"], [b"TB\x02", b"\x80"]):
        rig.link.receive(rig.now, frames)
    assert rig.take() == Batch()


def test_without_mail_or_requests_nothing_is_due_but_the_heartbeat() -> None:
    assert Rig().opened().link.deadline() == 1000 + 4000


plain = st.recursive(
    st.none() | st.booleans() | st.integers(0, 80) | st.floats() | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
heads = st.builds(
    lambda name, change: SAID[name] | change,
    st.sampled_from(sorted(SAID)),
    st.dictionaries(
        st.sampled_from(["q", "code", "result", "n", "prev", "id", "ttl", "r", "k", "high", "open", "more", "of", "ref",
                         "want", "retry", "term", "text", "again"]),
        plain | st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), max_size=3) | st.just("REQ"),
        max_size=4,
    ),
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(heads, st.binary(max_size=9), st.integers(0, 3000)), max_size=12))
def test_any_heads(said: list[tuple[dict[str, Any], bytes, int]]) -> None:
    """Nothing raises, and the deadline never lies in the past after a turn."""
    rig = Rig().opened()
    for i in range(5):
        rig.link.submit(rig.now, "status", {"summary": str(i)})
    for head, body, ms in said:
        try:
            rig.hear(head, body)
        except LocalError:
            raise AssertionError("a reply that cannot be written") from None
        given_ = rig.link.inbox.offer(rig.now, rig.link.inbox.waiting()[:1], "p")
        rig.link.inbox.shown(rig.now, [x.key for x in given_], "p")
        rig.later(ms)
        due = rig.link.deadline()
        assert due is None or due > rig.now or rig.link.state == "down"
        if rig.link.state == "dialing":
            rig.link.connected(rig.now)
        elif rig.link.state == "parked":
            rig.link.knock(rig.now)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.binary(max_size=40), max_size=4), max_size=6))
def test_any_octets(messages: list[list[bytes]]) -> None:
    rig = Rig().opened()
    for frames in messages:
        rig.link.receive(rig.now, frames)
        rig.link.receive(rig.now, [wire.SIGNATURE, *frames])
    rig.take()


def test_ack_is_not_said_before_welcome() -> None:
    rig = Rig().opened()
    rig.hear(MSG, b"x")
    inbox = rig.link.inbox
    given_ = inbox.offer(rig.now, inbox.waiting(), "p")
    rig.link.lost(rig.now)
    inbox.shown(rig.now, [x.key for x in given_], "p")
    assert not any(isinstance(c, Ack) for c in rig.take().sends)
