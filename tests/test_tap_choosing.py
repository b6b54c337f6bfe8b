"""choosing: what a person wants to see, also of events that do not say it themselves."""

from __future__ import annotations

import pytest

from agent.tap import choosing
from agent.tap.choosing import Choice
from agent.tap.items import Item
from tests.story import ONE, START, STORY, event, row, snapshot, step, stored

NOTE = "n" * 16


def shown(choice: Choice, *items: Item) -> list[str]:
    return [str(item.told.get("event", item.what)) for item in items if choice.takes(item)]


def test_without_a_choice_everything_is_wanted_but_the_peers_read_anew() -> None:
    assert len(shown(Choice(), *STORY)) == len(STORY)
    assert shown(Choice(), Item(START, "peers", {"peers": []}), Item(START, "lost", {"text": "x"})) == ["lost"]


def test_by_class() -> None:
    choice = Choice(classes=["peer"])
    assert shown(choice, *STORY) == ["snapshot", "open", "lost"]
    assert shown(Choice(classes=["msg"]), *STORY)[:2] == ["stored", "injected"], "no picture of nothing"
    assert shown(Choice(classes=["msg"]), Item(START, "missed", {})) == ["missed"], "a gap is always told"


def test_by_peer_also_what_does_not_name_him() -> None:
    choice = Choice(peers=["ADA"])
    assert shown(choice, stored(START, ONE), step(START, "injected", ONE), step(START, "acked", ONE)) == [
        "stored",
        "injected",
        "acked",
    ]
    assert shown(choice, step(START, "injected", NOTE)) == [], "of a message nobody knows"
    both = Choice(peers=["cleo@venus", "dan"])
    assert shown(both, *STORY) == ["snapshot", "open", "stored", "stored", "lost"]
    assert shown(Choice(peers=["ada@venus"]), stored(START, ONE)) == [], "another machine's"


def test_what_was_learned_is_chosen_like_its_events() -> None:
    to = [{"name": "bob", "host": "mars", "mailbox": "b2", "status": "injected", "history": []}]
    learned = Item(START, "learned", {"id": ONE, "from": "ada", "from_host": "mars", "kind": "note", "to": to})
    for choice in (
        Choice(),
        Choice(classes=["msg"]),
        Choice(peers=["bob"]),
        Choice(peers=["ada@mars"], kinds=["note"]),
    ):
        assert choice.takes(learned)
    for choice in (
        Choice(classes=["peer"]),
        Choice(peers=["cleo"]),
        Choice(peers=["bob@venus"]),
        Choice(kinds=["task"]),
    ):
        assert not choice.takes(learned)
    more = Item(START, "learned", {"more": True})
    assert Choice().takes(more) and not Choice(peers=["bob"]).takes(more)


def test_an_id_that_two_machines_use_is_not_mixed_up() -> None:
    far = {"from": "eve", "from_host": "venus"}
    items = (stored(START, ONE), stored(START, ONE, kind="note", **far), step(START, "acked", ONE))
    assert shown(Choice(peers=["eve"]), *items) == ["stored"], "whose was acked is not known"
    assert shown(Choice(kinds=["note"]), *items, step(START, "injected", ONE, kind="note", **far)) == [
        "stored",
        "injected",
    ]


def test_by_peer_in_a_rename_and_in_the_state() -> None:
    choice = Choice(peers=["old"])
    assert shown(choice, event(START, "peer.name", id="a1", name="new", former="old", host="mars")) == ["name"]
    assert shown(choice, event(START, "state.set", key="k", by="old@mars", ver=1, size=1)) == ["set"]
    assert shown(choice, event(START, "state.set", key="k", by="other@mars", ver=1, size=1)) == []


def test_by_kind_also_the_later_steps() -> None:
    choice = Choice(kinds=["note"])
    items = [
        stored(START, ONE),
        stored(START, NOTE, kind="note"),
        step(START, "acked", ONE),
        step(START, "acked", NOTE),
        event(START, "peer.open", id="a1", name="ada", host="mars"),
    ]
    assert shown(choice, *items) == ["stored", "acked"]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "KNOWN_MAX", 3)
    choice = Choice(peers=["ada"])
    for number in range(5):
        choice.takes(stored(START, f"m{number}"))
    assert shown(choice, step(START, "acked", "m1"), step(START, "acked", "m4")) == ["acked"]
    assert len(choice.mail) == 3


def test_an_id_of_two_senders_is_told_apart() -> None:
    """Who uses an id again does not change what is known of the message of another."""
    choice = Choice(peers=["ada"])
    ada = {"fid": "f1", "from": "ada", "from_host": "desk", "kind": "task"}
    eve = {"fid": "f2", "from": "eve", "from_host": "far", "kind": "note"}
    assert shown(choice, stored(START, ONE, **ada), stored(START, ONE, **eve)) == ["stored"]
    assert shown(choice, step(START, "acked", ONE, **ada), step(START, "acked", ONE, **eve)) == ["acked"]
    assert choice.known({"id": ONE}) is None, "whose it is was not said"


def test_a_picture_is_narrowed() -> None:
    told = snapshot().told
    assert [p["name"] for p in Choice(peers=["bob"]).narrowed(told)["peers"]] == ["bob"]
    assert Choice(classes=["state"]).narrowed(told)["peers"] == []
    assert Choice(classes=["peer"]).narrowed(told)["state"] == []
    odd = {"peers": [3, row("a", "ada"), None], "state": "none"}
    assert [p["name"] for p in Choice().narrowed(odd)["peers"]] == ["ada"]
