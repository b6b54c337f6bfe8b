"""rejoin: after a gap the broker is asked what became of every message, and which were sent meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from agent.asks import Answer
from agent.tap import rejoin
from agent.tap.items import Item
from agent.tap.live import live
from agent.tap.rejoin import Rejoined
from bus.client import News
from bus.errors import Unreachable
from tests.story import MANY, ONE, START, snapshot, step, stored
from tests.test_tap_live import Script

NEW = "n" * 16


def row(ident: str, name: str, status: str, box: str, **more: Any) -> dict[str, Any]:
    history = [{"status": "stored", "ts": START, "proof": ""}, {"status": status, "ts": START + 5, "proof": "p"}]
    made = {
        "id": ident,
        "fid": "a1",
        "from": "ada",
        "from_host": "mars",
        "name": name,
        "host": "mars",
        "mailbox": box,
    }
    return {**made, "status": status, "history": history, **more}


def sent(ident: str, ts: int, sender: str = "ada", host: str = "mars") -> tuple[dict[str, Any], bytes]:
    return {
        "id": ident,
        "fid": "a1",
        "from": sender,
        "host": host,
        "kind": "task",
        "tag": "t",
        "re": "",
        "ts": ts,
    }, b"secret"


@dataclass
class Broker:
    """Answers `why` and `history` from literal rows; counts what it was asked."""

    why: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    past: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    fails: int = 0

    def query(self, what: str, args: dict[str, Any], timeout: float) -> Answer:
        self.asked.append((what, args))
        if self.fails:
            self.fails -= 1
            raise Unreachable("away again")
        if what == "history":
            rows = [found for found in self.past if found[0]["ts"] < args["before"]]
            return Answer(rows[: args["limit"]], 200)
        rows = [(value, b"") for value in self.why.get(args["id"], [])]
        return Answer(rows, 200 if rows else 404)


def joined(broker: Broker, *events: Item, bodies: bool = False, at: int = START + 10_000) -> Rejoined:
    """A stream that had these events, and was joined again after a gap."""
    made = Rejoined(broker, bodies)
    made.joined({**snapshot().told, "ts": START - 5000}, False)
    for item in events:
        made.heard(item.told)
    made.joined({**snapshot().told, "ts": at}, True)
    return made


def learned(made: Rejoined, seconds: float = 60) -> list[dict[str, Any]]:
    return [item.told for item in made.learned(START, seconds)]


def test_every_message_that_is_not_finished_is_asked_about() -> None:
    broker = Broker({ONE: [row(ONE, "bob", "injected", "b2")], MANY: [row(MANY, "bob", "expired", "b2")]})
    made = joined(broker, stored(START, ONE), stored(START, MANY), stored(START, NEW), step(START, "answered", NEW))
    told = learned(made)
    assert [(t["id"], t["to"][0]["status"]) for t in told] == [(ONE, "injected"), (MANY, "expired")]
    assert ("why", {"id": ONE, "of": ""}) in broker.asked, "this broker's events do not say which mailbox sent it"
    assert not made.pending and learned(made) == []


def test_what_was_sent_in_the_gap_is_found() -> None:
    past = [sent(NEW, START + 900), sent(ONE, START), sent("o" * 16, START - 10_000)]
    broker = Broker({NEW: [row(NEW, "bob", "injected", "b2")], ONE: [row(ONE, "bob", "stored", "b2")]}, past)
    told = learned(joined(broker, stored(START, ONE)))
    assert [t["id"] for t in told] == [ONE, NEW], "and nothing from before it was looked"
    assert (told[1]["kind"], told[1]["tag"], told[1]["size"], told[1]["sent"]) == ("task", "t", 6, START + 900)
    assert "body" not in told[1]
    told = learned(joined(broker, stored(START, ONE), bodies=True))
    assert told[1]["body"] == "secret"


def test_the_sender_is_named_by_its_mailbox_where_that_is_known() -> None:
    broker = Broker({ONE: [row(ONE, "bob", "injected", "b2")]}, [sent(ONE, START + 900)])
    assert [t["id"] for t in learned(joined(broker, stored(START, ONE, fid="a1")))] == [ONE]
    assert broker.asked[-1] == ("why", {"id": ONE, "of": "a1"})
    assert learned(joined(broker, stored(START, MANY), stored(START, ONE)))[0]["fid"] == "a1", "history has told it"
    renamed = stored(START, ONE, fid="e5", **{"from": "ada", "from_host": "mars"})
    assert [t["fid"] for t in learned(joined(broker, renamed))] == ["a1"], "of e5's message nothing is said"


def test_the_past_is_read_in_pages_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejoin, "PAGE", 4)
    past = [sent(f"{n:016}", START + 100 - n // 3) for n in range(30)]  # three of one millisecond each
    broker = Broker({value["id"]: [row(value["id"], "bob", "injected", "b2")] for value, _ in past}, past)
    told = learned(joined(broker))
    assert [t["id"] for t in told] == [value["id"] for value, _ in reversed(past)]
    monkeypatch.setattr(rejoin, "KEPT", 8)
    told = learned(joined(broker))
    assert told[0] == {"more": True} and 8 <= len(told) - 1 < 30, "what is left out is said"


def test_what_is_not_told_is_not_claimed() -> None:
    other = row(ONE, "bob", "injected", "b2", from_host="venus")
    old = {key: value for key, value in row(MANY, "bob", "injected", "b2").items() if key != "from_host"}
    made = joined(Broker({ONE: [other], MANY: [old]}), stored(START, ONE), stored(START, MANY), stored(START, NEW))
    assert learned(made) == [], "another's message, a broker that does not say whose, one that was pruned"
    assert not made.pending


def test_an_outage_in_between_leaves_the_rest_for_later() -> None:
    broker = Broker({ONE: [row(ONE, "bob", "injected", "b2")], NEW: [row(NEW, "bob", "stored", "b2")]})
    broker.past = [sent(NEW, START + 900)]
    made = joined(broker, stored(START, ONE))
    broker.fails = 1
    assert learned(made) == [] and made.pending
    made.heard(stored(START + 11_000, MANY).told)
    made.joined({**snapshot().told, "ts": START + 20_000}, True)
    broker.why[MANY] = [row(MANY, "bob", "acked", "b2")]
    assert [t["id"] for t in learned(made)] == [ONE, MANY, NEW], "the first gap is not forgotten"


def test_it_takes_no_longer_than_it_may() -> None:
    idents = [f"{n:016}" for n in range(9)]
    broker = Broker({ident: [row(ident, "bob", "injected", "b2")] for ident in idents})
    made = joined(broker, *(stored(START, ident) for ident in idents))
    assert learned(made, 0) == [] and made.pending
    assert len(learned(made)) == 9


def test_a_stream_with_a_gap() -> None:
    picture = {**snapshot().told, "ts": START}
    script = Script(
        [
            News(picture, [], False),
            News(None, [stored(START + 1, ONE).told], False),
            News({**picture, "boot": "b2", "ts": START + 9}, [], True),
            News(None, [step(START + 20, "acked", ONE).told], False),
        ],
        {"history": Answer([], 200), "why": Answer([(row(ONE, "bob", "injected", "b2"), b"")], 200)},
    )
    made = [item for item in live(script, lambda: START, rejoined=Rejoined(script)) if item]
    assert [item.what for item in made] == ["snapshot", "event", "missed", "snapshot", "learned", "event"]
    assert script.asked == ["history", "why"], "and nothing is asked while nothing was missed"
