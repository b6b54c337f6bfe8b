"""The link alone: every row of its table by literal frames, its timers, and whatever octets come in."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agent.book import AddRow, Book, PutBook, SettleRow
from agent.effects import Batch, Ended, Finished, Lost, Parked, Parted, SendRow, Settled, Welcomed
from agent.link import BACKOFF_MS, DIAL_MS, LINK, Link, Profile
from bus import wire
from bus.errors import LocalError
from bus.wire import Bye, Hello, Qry

OB = "a" * 32
WELCOME = {"c": "WELCOME", "name": "api", "id": "00000001", "term": 3, "store": "s", "seq": 9, "chain": "cc", "high": 0,
           "hb": 4000, "win": 64, "now": 1}  # fmt: skip
MSG = {"c": "MSG", "n": 1, "prev": 0, "id": "m" * 16, "from": "web", "fid": "00000002", "host": "beta", "to": "api",
       "kind": "task", "ts": 1}  # fmt: skip
SAID: dict[str, dict[str, Any]] = {
    "WELCOME": WELCOME,
    "REP": {"c": "REP", "q": 1, "code": 200},
    "ERR": {"c": "ERR", "code": 409},
    "MSG": MSG,
    "PART": {"c": "PART", "r": 1, "value": {"x": 1}},
    "DONE": {"c": "DONE", "r": 1, "code": 200, "seq": 4},
    "PONG": {"c": "PONG", "k": 1, "high": 0, "open": [], "more": 0, "now": 1},
    "GONE": {"c": "GONE", "code": 409, "term": 4, "by": "other", "text": "taken"},
    "BYE": {"c": "BYE"},
}


class Rig:
    """A link, its clock, and everything it wanted done."""

    def __init__(self, mode: str = "hold", **more: Any) -> None:
        self.now = 1000
        self.book = Book(OB)
        rng = random.Random(1)
        self.link = Link(
            self.book,
            Profile(mode, "me", "api", 5000, {"pid": 1}, **({"life": "life"} | more)),
            lambda: "".join(rng.choices("abcdefgh", k=16)),
            lambda: 0.5,
        )

    def take(self) -> Batch:
        return self.link.take(self.now)

    def hear(self, head: dict[str, Any], body: bytes = b"") -> Batch:
        frames = [wire.SIGNATURE, wire.pack(head)] + ([body] if body else [])
        self.link.receive(self.now, frames)
        return self.take()

    def greeted(self) -> Batch:
        assert self.take().connect == "open"
        self.link.connected(self.now)
        return self.take()

    def opened(self, **more: Any) -> Rig:
        self.greeted()
        self.hear(WELCOME | more)
        assert self.link.state == "open"
        return self

    def later(self, ms: int) -> Batch:
        self.now += ms
        return self.take()

    def in_state(self, state: str) -> Rig:
        if state == "dialing":
            self.take()
        elif state == "greeting":
            self.greeted()
        elif state in ("open", "parked"):
            self.opened()
            if state == "parked":
                self.hear(SAID["GONE"])
        assert self.link.state == state
        return self


def test_the_first_words() -> None:
    (hello,) = Rig().greeted().sends
    assert hello == Hello("hold", "me", OB, 1, "api", 0, 0, 5000, {"pid": 1}, life="life")
    (hello,) = Rig("view").greeted().sends
    assert hello.ob == ""  # type: ignore[union-attr]


def _next_hello(rig: Rig) -> Hello:
    """What the next connection begins with."""
    if rig.link.state == "open":
        rig.link.lost(rig.now)
        rig.take()
    rig.now += 2000
    (hello,) = rig.greeted().sends
    assert isinstance(hello, Hello)
    return hello


def test_it_says_which_mailbox_it_was_welcomed_to() -> None:
    rig = Rig().opened()
    hello = _next_hello(rig)
    assert (hello.name, hello.id, hello.store) == (WELCOME["name"], WELCOME["id"], WELCOME["store"])
    rig.hear(WELCOME | {"name": "web", "id": "99999999"})
    hello = _next_hello(rig)
    assert (hello.name, hello.id) == ("web", "99999999"), "the three are of one WELCOME"


def test_a_name_that_is_kept_for_a_lost_holder_is_waited_for() -> None:
    rig = Rig().opened()
    rig.link.lost(rig.now)
    rig.take()
    rig.now += 2000
    rig.greeted()
    batch = rig.hear({"c": "ERR", "code": 503, "of": "HELLO", "retry": 9000, "text": "kept"})
    assert batch.news == [Lost("kept")] and rig.link.state == "down"
    assert rig.link.deadline() == rig.now + 9000
    assert _next_hello_after(rig, 9000).term == WELCOME["term"], "it still says what it held"


def _next_hello_after(rig: Rig, ms: int) -> Hello:
    rig.now += ms
    (hello,) = rig.greeted().sends
    assert isinstance(hello, Hello)
    return hello


@pytest.mark.parametrize("code", [403, 422])
def test_what_somebody_else_may_change_is_asked_for_again_seldom(code: int) -> None:
    rig = Rig()
    rig.greeted()
    batch = rig.hear({"c": "ERR", "code": code, "of": "HELLO", "text": "no"})
    assert batch.news == [Parked(code, 0, {}, "no")] and rig.link.state == "parked"
    assert rig.link.deadline() == rig.now + 60_000
    rig.later(59_999)
    assert rig.link.state == "parked"
    assert _next_hello_after(rig, 1)
    rig.hear(WELCOME)
    assert rig.link.state == "open"


@pytest.mark.parametrize("command", ["ERR", "GONE"])
def test_a_name_that_is_taken_waits_for_a_decision(command: str) -> None:
    rig = Rig()
    rig.greeted()
    rig.hear(SAID[command])
    assert rig.link.state == "parked" and rig.link.deadline() is None
    rig.later(10_000_000)
    assert rig.link.state == "parked"


def test_another_mailbox_is_not_asked_for_by_the_former_id() -> None:
    rig = Rig().opened()
    rig.hear(SAID["GONE"])
    rig.link.knock(rig.now)
    assert _next_hello(rig).id == "", "it is another's now"
    rig = Rig().opened()
    rig.link.knock(rig.now, "web")
    hello = _next_hello(rig)
    assert (hello.name, hello.id) == ("web", ""), "somebody chose this name"


IGNORED = [(s, e) for s, row in LINK.items() for e, action in row.items() if action == "ignore"]


@pytest.mark.parametrize(("state", "event"), IGNORED)
def test_ignored(state: str, event: str) -> None:
    rig = Rig()
    if state != "down":
        rig.in_state(state)
    before = rig.link.deadline()
    if event == "connected":
        rig.link.connected(rig.now)
    elif event == "lost":
        rig.link.lost(rig.now, "x")
    else:
        rig.link.receive(rig.now, [wire.SIGNATURE, wire.pack(SAID[event])])
    assert rig.link.state == state and rig.link.deadline() == before
    batch, rig.link.batch = rig.link.batch, Batch()
    assert batch == Batch()


@pytest.mark.parametrize("state", ["dialing", "greeting", "open"])
def test_back_off(state: str) -> None:
    rig = Rig().in_state(state)
    rig.link.lost(rig.now, "cut")
    batch = rig.take()
    assert (rig.link.state, batch.connect, batch.news) == ("down", "close", [Lost("cut")])
    assert rig.link.deadline() == rig.now + 75
    assert rig.later(74).connect == "" and rig.later(1).connect == "open"


def test_back_off_doubles_up_to_a_second() -> None:
    rig = Rig()
    waits = []
    for _ in range(8):
        rig.take()
        rig.link.lost(rig.now)
        rig.take()
        waits.append((rig.link.deadline() or 0) - rig.now)
        rig.now += waits[-1]
    assert waits == [75, 150, 300, 600, 1200, 1500, 1500, 1500]
    assert BACKOFF_MS == (50, 1000)


def test_no_answer_in_time() -> None:
    rig = Rig().in_state("dialing")
    assert rig.later(DIAL_MS).connect == "close"
    rig = Rig().in_state("greeting")
    assert rig.link.deadline() == rig.now + wire.WELCOME_WAIT_MS
    assert rig.later(wire.WELCOME_WAIT_MS).news == [Lost("no answer in time")]


def test_adopt() -> None:
    rig = Rig()
    rig.greeted()
    batch = rig.hear(WELCOME)
    assert batch.news == [Welcomed("api", "00000001", 3)]
    assert batch.writes == [PutBook(rig.book)] and rig.book.seq == 9
    assert rig.link.deadline() == rig.now + 4000, "the heartbeat that was agreed"


def test_adopt_of_a_broker_that_forgot() -> None:
    rig = Rig()
    rig.book.first, rig.book.last = 5, 6
    rig.greeted()
    batch = rig.hear(WELCOME | {"high": 3})
    assert (rig.book.base, batch.connect, rig.link.state) == (4, "open", "dialing")
    assert rig.book.ob != OB and PutBook(rig.book) in batch.writes
    rig.link.connected(rig.now)
    (hello,) = rig.take().sends
    assert isinstance(hello, Hello) and (hello.ob, hello.floor, hello.term) == (rig.book.ob, 1, 3)
    batch = rig.hear(WELCOME)
    assert batch.sends == [SendRow(5, 1, 1), SendRow(6, 2, 1)]


def test_reseat() -> None:
    rig = Rig().opened()
    rig.hear(MSG, b"x")
    batch = rig.hear(WELCOME | {"name": "new", "term": 5})
    assert batch.news == [Welcomed("new", "00000001", 5)] and rig.link.inbox.waiting() == []
    assert rig.link.profile.name == "new" and rig.book.name == "new"


@pytest.mark.parametrize(
    ("code", "state"), [(401, "down"), (429, "down"), (503, "down"), (409, "parked"), (403, "parked")]
)
def test_refused(code: int, state: str) -> None:
    rig = Rig().in_state("greeting")
    batch = rig.hear(
        {"c": "ERR", "code": code, "of": "HELLO", "term": 7, "by": {"inst": "x"}, "text": "t", "retry": 900}
    )
    assert rig.link.state == state and batch.connect == "close"
    if state == "parked":
        assert batch.news == [Parked(code, 7, {"inst": "x"}, "t")]
    else:
        assert rig.link.deadline() == rig.now + 900


@pytest.mark.parametrize("state", ["greeting", "open"])
def test_park(state: str) -> None:
    rig = Rig().in_state(state)
    rig.book.term = 3
    batch = rig.hear(SAID["GONE"])
    assert batch.news == [Parked(409, 4, {"inst": "other"}, "taken")] and batch.connect == "close"
    assert rig.book.term == 0 and rig.link.deadline() is None
    assert rig.later(10**6) == Batch()


def test_knock() -> None:
    rig = Rig().in_state("parked")
    rig.link.knock(rig.now, take=4)
    (hello,) = rig.greeted().sends
    assert isinstance(hello, Hello) and (hello.name, hello.take, hello.term) == ("api", 4, 0)
    rig.hear(WELCOME)
    rig.hear(SAID["GONE"])
    rig.link.knock(rig.now, "other")
    (hello,) = rig.greeted().sends
    assert isinstance(hello, Hello) and (hello.name, hello.take, hello.term) == ("other", 0, 0)


def test_a_name_chosen_while_open_counts_from_the_next_connection() -> None:
    rig = Rig().opened()
    rig.link.knock(rig.now, "other")
    assert rig.link.state == "open" and rig.book.term == 0
    rig.link.lost(rig.now)
    rig.take()
    rig.now += 200
    (hello,) = rig.greeted().sends
    assert isinstance(hello, Hello) and (hello.name, hello.term) == ("other", 0)


def test_after_a_cut_the_term_is_told() -> None:
    rig = Rig().opened()
    rig.link.lost(rig.now)
    rig.take()
    rig.now += 200
    (hello,) = rig.greeted().sends
    assert isinstance(hello, Hello) and hello.term == 3


def test_end() -> None:
    rig = Rig().opened()
    rig.link.bye(leave=True)
    assert rig.take().sends == [Bye(True, [])]
    assert rig.hear(SAID["BYE"]).news == [Ended()]
    assert rig.link.state == "parked"
    rig.link.bye(leave=True)
    assert rig.take() == Batch()


def test_queries() -> None:
    rig = Rig()
    assert rig.link.ask("peers", {}) == 1
    batch, rig.link.batch = rig.link.batch, Batch()
    assert batch.news == [Finished(1, 503, 0, "the broker is not reachable")]
    rig.opened()
    r = rig.link.ask("peers", {"all": True})
    assert rig.take().sends == [Qry(r, "peers", {"all": True})]
    assert rig.hear({"c": "PART", "r": r, "value": {"x": 1}}, b"body").news == [Parted(r, {"x": 1}, b"body")]
    assert rig.hear({"c": "PART", "r": 99, "value": {}}).news == []
    assert rig.hear({"c": "DONE", "r": r, "code": 204, "seq": 4, "text": "t"}).news == [Finished(r, 204, 4, "t")]
    assert rig.hear({"c": "DONE", "r": r, "code": 204, "seq": 4}).news == []
    r = rig.link.ask("peers", {})
    assert rig.hear({"c": "ERR", "code": 503, "of": "QRY", "ref": r, "text": "full"}).news == [
        Finished(r, 503, 0, "full")
    ]
    r = rig.link.ask("peers", {})
    rig.link.lost(rig.now)
    assert Finished(r, 503, 0, "the connection was lost") in rig.take().news
    with pytest.raises(LocalError):
        rig.link.ask("search", {"query": "x" * 5000})


def test_complaints() -> None:
    rig = Rig().opened()
    assert rig.hear({"c": "ERR", "code": 400}) == Batch()
    assert rig.hear({"c": "ERR", "code": 401, "of": "PING"}).connect == "close"
    assert rig.link.state == "down"


def test_what_was_to_be_said_on_a_connection_goes_with_it() -> None:
    rig = Rig().opened()
    rig.link.ask("peers", {})
    rig.link.bye(leave=False)
    rig.link.lost(rig.now)
    assert rig.take().sends == []


def test_submit() -> None:
    rig = Rig()
    row, ident = rig.link.submit(rig.now, "send", {"to": ["web"]}, b"x")
    batch = rig.take()
    assert batch.writes == [AddRow(1, ident, "send", wire.pack({"to": ["web"]}), b"x", 1000)] and row == 1
    for args, body in (({"a": "x" * 5000}, b""), ({}, b"x" * (wire.BODY_MAX + 1)), ({"a": object()}, b"")):
        with pytest.raises(LocalError):
            rig.link.submit(rig.now, "send", args, body)
    assert rig.book.last == 1 and rig.take().writes == []
    assert rig.link.submit(rig.now, "send", {}, b"x", "m" * 16) == (2, "m" * 16)


def test_a_reply_is_told_with_its_write() -> None:
    rig = Rig().opened()
    rig.link.submit(rig.now, "status", {})
    assert rig.take().sends == [SendRow(1, 1, 1)]
    batch = rig.hear({"c": "REP", "q": 1, "code": 409, "result": {"a": 1}, "text": "no"})
    assert batch.writes == [SettleRow(1, 409, wire.pack({"a": 1}), "no", 1000)]
    assert batch.news == [Settled(1, 409, {"a": 1}, "no")]
