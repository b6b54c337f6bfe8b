"""office: who sits where, who speaks to whom, in which mood, and how it looks; all by literal items and times."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.tap import office as office_
from agent.tap.cells import width
from agent.tap.items import Item
from agent.tap.office import ARROW, LISTENS, MISSED, REFUSED, TALKS, Office, Scene
from agent.tap.office_scene import _fate, draw
from tests.story import (
    HOSTILE,
    LOST,
    MANY,
    ONE,
    PEERS,
    SCREENS,
    START,
    STORY,
    as_text,
    compare,
    event,
    row,
    snapshot,
    step,
    stored,
)


def after(*items: Item) -> Office:
    made = Office()
    for item in items:
        made.take(item)
    return made


def moods(office: Office, now: int) -> dict[str, str]:
    return {desk.name: desk.mood for desk in office.scene(now).desks}


def clock(ms: int) -> str:
    return f"12:00:{(ms - START) // 1000 % 60:02d}"


def seen(scene: Scene, wide: int, high: int, ascii_only: bool = False) -> str:
    rows = draw(scene, wide, high, clock, ascii_only)
    assert len(rows) == high and all(width("".join(text for _, text in r)) == wide for r in rows)
    return as_text(rows)


# -- moods and seats -------------------------------------------------------------------------------------------------


def test_before_anything_is_known() -> None:
    scene = after().scene(START)
    assert (scene.desks, scene.remark) == ((), "connecting")
    assert "nobody is here" in seen(scene, 80, 24)


def test_a_message_makes_one_talk_and_the_other_listen_to_it() -> None:
    office = after(snapshot(), stored(START + 1000, ONE, body="\nhello\nworld"))
    ada, bob, cleo = office.scene(START + 1000).desks
    assert (ada.mood, ada.facing, ada.bubble) == ("talking", "b2", "hello")
    assert (bob.mood, bob.facing, bob.bubble, bob.unread) == ("listening", "a1", "", 1)
    assert cleo.mood == "idle"
    assert moods(office, START + 1000 + TALKS) == {"ada": "idle", "bob": "listening", "cleo": "idle"}
    assert set(moods(office, START + 1000 + ARROW + LISTENS).values()) == {"idle"}


def test_the_arrow_travels_once() -> None:
    office = after(snapshot(), stored(START, ONE))
    ways = [a.way for now in (0, ARROW // 2, ARROW, ARROW + 1) for a in office.scene(START + now).arrows]
    assert ways == [0.0, 0.5, 1.0]
    assert [(a.sender, a.to) for a in office.scene(START).arrows] == [("a1", "b2")]
    many = after(snapshot(), *(stored(START, f"m{n}") for n in range(20)))
    assert len(many.scene(START).arrows) == 1, "not one upon the other"
    spread = after(snapshot(), *(stored(START + 300 * n, f"m{n}") for n in range(50)))
    assert len(spread.scene(START + 300 * 49).arrows) <= office_.ARROWS_MAX


def test_a_message_to_many_is_one_message() -> None:
    office = after(*STORY)
    scene = office.scene(START + 2100)
    assert scene.messages == 3 and [e.ident for e in scene.feed] == [ONE, MANY, LOST]
    assert [(c.name, c.host, c.status) for c in scene.feed[1].copies.values()] == [
        ("bob", "mars", "stored"),
        ("cleo", "venus", "stored"),
        ("dan", "venus", "stored"),
    ]
    assert len([a for a in scene.arrows if a.sender == "a1"]) == 3
    office.take(step(START + 3000, "acked", MANY, "cleo", "venus", "c3"))
    office.take(step(START + 3000, "injected", MANY, "cleo", "venus", "c3"))
    assert office.scene(START).feed[1].copies["c3"].status == "acked", "it only climbs"


def test_two_senders_with_one_id_are_two_messages() -> None:
    office = after(
        snapshot(), stored(START, ONE), stored(START, ONE, **{"from": "bob", "to": "ada", "mailbox": "a1"})
    )
    assert office.scene(START).messages == 2


def test_refused_shows_at_the_sender() -> None:
    office = after(*STORY)
    bob = next(d for d in office.scene(START + 2100).desks if d.name == "bob")
    assert bob.mood == "refused" and bob.bubble == "✗ nobody: nobody is called so"
    assert moods(office, START + 2100 + REFUSED)["bob"] != "refused"


def test_presence() -> None:
    office = after(snapshot(), event(START, "peer.lost", id="a1", name="ada", host="mars"))
    assert moods(office, START)["ada"] == "connecting"
    office.take(event(START, "peer.gone", id="a1", name="ada", host="mars"))
    assert moods(office, START)["ada"] == "offline", "who was here keeps the desk"
    assert "dan" not in moods(office, START), "who was never here has none"
    office.take(event(START, "peer.open", id="d4", name="dan", host="venus"))
    office.take(event(START, "peer.name", id="d4", name="daniel", former="dan", host="venus"))
    assert moods(office, START)["daniel"] == "idle"
    assert office.scene(START).here == 3
    office.take(event(START, "peer.status", id="d4", name="daniel", host="venus", activity="busy"))
    assert next(d for d in office.scene(START).desks if d.name == "daniel").activity == "busy"


def test_people_get_a_desk_when_they_take_part() -> None:
    me = row("p9", "paul", kind="human", presence="gone", unread=3)
    office = after(snapshot(peers=[*PEERS, me, row("s1", "old", kind="stale", unread=2)]))
    assert not {"paul", "old"} & set(moods(office, START))
    office.take(stored(START, ONE, "paul", "mars", "p9"))
    assert moods(office, START)["paul"] == "offline"


def test_unread_is_counted() -> None:
    office = after(snapshot(), stored(START, ONE), stored(START, MANY), step(START, "injected", ONE))
    desk = next(d for d in office.scene(START).desks if d.name == "bob")
    assert desk.unread == 1
    office.take(Item(START, "peers", {"peers": [row("b2", "bob", unread=5)], "seq": 12}))
    assert [(d.name, d.unread) for d in office.scene(START).desks] == [("bob", 5)]


def test_what_was_held_and_is_released_is_one_copy() -> None:
    held = stored(START, ONE)
    held.told["event"] = "held"
    office = after(snapshot(), held, stored(START + 5000, ONE))
    desk = next(d for d in office.scene(START + 5000).desks if d.name == "bob")
    assert (desk.unread, desk.mood) == (1, "listening")
    assert office.scene(START).messages == 1


def test_a_lost_connection_is_seen_and_what_was_missed() -> None:
    office = after(snapshot(), Item(START, "lost", {"text": "x"}))
    assert office.scene(START).remark.startswith("the connection is lost")
    assert set(moods(office, START).values()) == {"connecting"}
    office.take(Item(START, "missed", {"restarted": True}))
    office.take(snapshot())
    assert office.scene(START).remark == "the broker was restarted" and moods(office, START)["ada"] == "idle"
    assert office.moving(START) and office.scene(START + MISSED).remark == ""
    office.take(Item(START, "missed", {"restarted": False}))
    assert "too fast" in office.scene(START).remark
    office.over("it is over")
    assert office.scene(START).remark == "it is over"


GAP = [Item(START + 50, "missed", {"restarted": True}), snapshot(START + 50, boot="b2")]


def learned(ident: str, *to: dict[str, Any], **more: Any) -> Item:
    return Item(START + 60, "learned", {"id": ident, "from": "ada", "from_host": "mars", "to": list(to), **more})


def answered(name: str, status: str, box: str, host: str = "mars") -> dict[str, Any]:
    history = [{"status": step, "ts": START, "proof": ""} for step in dict.fromkeys(("stored", status))]
    return {"name": name, "host": host, "mailbox": box, "status": status, "history": history}


def fates(office: Office) -> list[str]:
    return [_fate(entry)[0] for entry in office.scene(START).feed]


def test_a_gap_leaves_no_old_status_standing() -> None:
    three = [stored(START, MANY, *to) for to in (("bob",), ("cleo", "venus", "c3"), ("dan", "venus", "d4"))]
    office = after(snapshot(), stored(START, ONE), *three, step(START, "injected", MANY))
    assert fates(office) == ["stored", "✓ seen 1/3"]
    for item in GAP:
        office.take(item)
    assert fates(office) == ["? not known", "✓ seen 1/3, ? 2"], "nobody knows yet"
    office.take(learned(ONE, answered("bob", "injected", "b2")))
    office.take(learned(MANY, answered("bob", "acked", "b2"), answered("cleo", "expired", "c3", "venus")))
    assert fates(office) == ["✓ seen", "✗ expired 1/3"]
    office.take(step(START + 90, "injected", MANY, "cleo", "venus", "c3"))
    office.take(step(START + 90, "injected", MANY, "dan", "venus", "d4"))
    assert fates(office) == ["✓ seen", "✓ seen 3/3"], "the late truth counts, and the stream goes on"
    assert office.scene(START).messages == 2


def test_what_was_sent_in_a_gap_is_in_the_feed_once() -> None:
    office = after(snapshot(), *GAP)
    for _ in range(2):
        office.take(learned(MANY, answered("bob", "stored", "b2"), answered("cleo", "injected", "c3", "venus")))
    office.take(stored(START + 70, MANY))
    office.take(step(START + 90, "injected", MANY))
    scene = office.scene(START + 100)
    assert (scene.messages, fates(office)) == (1, ["✓ seen 2/2"])
    assert next(d for d in scene.desks if d.name == "bob").bubble == ""


def test_what_was_sent_before_it_was_looked_stays_out_of_the_feed() -> None:
    early = Item(START, "snapshot", {**snapshot().told, "ts": START})
    office = after(early, step(START + 10, "offered", ONE, **{"from": "ada", "from_host": "mars"}), *GAP)
    office.take(learned(ONE, answered("bob", "injected", "b2")))
    office.take(learned(MANY, answered("bob", "injected", "b2"), sent=START + 20))
    assert [entry.ident for entry in office.scene(START).feed] == [MANY]


def test_what_was_asked_before_its_event_came_is_counted_by_the_event() -> None:
    again = snapshot(START + 50, boot="b2", peers=[row("b2", "bob", unread=1)])
    office = after(snapshot(), GAP[0], again, learned(MANY, answered("bob", "injected", "b2")))
    unread = lambda: next(d for d in office.scene(START).desks if d.name == "bob").unread  # noqa: E731
    assert unread() == 1, "as of the picture"
    office.take(step(START + 90, "injected", MANY, **{"from": "ada", "from_host": "mars"}))
    assert unread() == 0
    office.take(Item(START + 95, "peers", {"peers": [row("b2", "bob", unread=4)], "seq": 30}))
    office.take(stored(START + 95, LOST, seq=30))
    assert unread() == 4, "it is in what was read"


def test_a_step_that_is_told_twice_counts_once() -> None:
    office = after(snapshot(), stored(START, ONE), stored(START, MANY))
    for _ in range(3):
        office.take(step(START, "injected", ONE))
    assert next(d for d in office.scene(START).desks if d.name == "bob").unread == 1


def test_another_machines_message_of_that_id_is_another_message() -> None:
    far = {"from": "ada", "from_host": "venus"}
    office = after(snapshot(), stored(START, ONE), stored(START, ONE, **far), step(START, "injected", ONE, **far))
    assert (office.scene(START).messages, fates(office)) == (2, ["stored", "✓ seen"])
    office.take(step(START, "answered", ONE))
    assert fates(office) == ["stored", "✓ seen"], "whose it is was not said, so neither is called answered"


def test_a_recipient_that_is_renamed_has_one_copy() -> None:
    office = after(snapshot(), stored(START, ONE), stored(START, ONE, "cleo", "venus", "c3"))
    office.take(step(START, "injected", ONE, "robert", "mars", "b2"))
    office.take(step(START, "injected", ONE, "cleo", "venus", "c3"))
    assert fates(office) == ["✓ seen 2/2"]


def test_it_moves_only_while_something_passes() -> None:
    office = after(snapshot(), stored(START, ONE))
    assert office.moving(START) and not office.moving(START + 60_000)


def test_the_feed_is_bounded() -> None:
    office = after(snapshot(), *(stored(START, f"m{n}") for n in range(office_.FEED_MAX + 50)))
    scene = office.scene(START)
    assert len(scene.feed) == office_.FEED_MAX and scene.messages == office_.FEED_MAX + 50


# -- how it looks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["80x24", "160x50", "60x20"])
@pytest.mark.parametrize(("moment", "now"), [("many", 2400), ("later", 9000)])
def test_screens(size: str, moment: str, now: int) -> None:
    wide, high = map(int, size.split("x"))
    scene = after(*STORY).scene(START + now)
    compare(f"office-{moment}-{size}", seen(scene, wide, high))


def test_a_narrow_feed_keeps_who_and_what_became_of_it() -> None:
    scene = after(*STORY).scene(START + 3000)
    last = lambda wide: [row for row in seen(scene, wide, 16).splitlines() if " → " in row][-1]  # noqa: E731
    assert ":" in last(40) and "refused" in last(40)
    for wide in (39, 24):
        assert ":" not in last(wide) and last(wide).startswith("│ bob@") and "refused" in last(wide)


def test_screen_in_ascii() -> None:
    text = seen(after(*STORY).scene(START + 2400), 80, 24, ascii_only=True)
    assert text.isascii()
    compare("office-ascii-80x24", text)


def test_screen_of_a_crowd() -> None:
    crowd = [row(f"{n:08x}", f"s-{n:02d}", unread=n % 3) for n in range(40)]
    crowd += [row(f"9{n:07x}", f"w-{n:02d}", presence="gone", unread=1) for n in range(60)]
    compare("office-crowd-80x24", seen(after(snapshot(peers=crowd)).scene(START), 80, 24))
    everybody = seen(after(snapshot(peers=crowd)).scene(START), 160, 50)
    assert "s-39" in everybody and "more" not in everybody


def test_desks_shrink_before_anybody_is_left_out() -> None:
    for count in range(1, 46):
        peers = [row(f"{n:08x}", f"s{n}x") for n in range(count)]
        text = seen(after(snapshot(peers=peers)).scene(START), 80, 24)
        assert not [p["name"] for p in peers if p["name"] not in text], count


WILD = st.text(max_size=40) | st.just(HOSTILE) | st.just("日本語の名前" * 5) | st.just("e\u0301" * 20) | st.integers()
FIELDS = st.dictionaries(
    st.sampled_from("id name host from from_host to mailbox text body kind tag former presence unread".split()), WILD
)
TOPICS = st.sampled_from(
    "msg.stored msg.refused msg.injected msg.held peer.open peer.lost peer.status state.set".split()
)


@given(
    st.lists(st.tuples(TOPICS, FIELDS), max_size=8),
    st.integers(20, 130),
    st.integers(4, 40),
    st.booleans(),
    st.lists(FIELDS, max_size=4),
)
def test_whatever_is_told_every_row_has_its_width(
    told: list[tuple[str, dict[str, Any]]], wide: int, high: int, ascii_only: bool, peers: list[dict[str, Any]]
) -> None:
    office = after(snapshot(peers=[*PEERS, *peers]))
    for topic, fields in told:
        office.take(
            event(START, topic, **{"id": "a1", "from": "ada", "from_host": "mars", "mailbox": "b2", **fields})
        )
    text = seen(office.scene(START + 100), wide, high, ascii_only)
    assert not set(text) & set("\x1b\x07\x9b\r\u202e\u2066")


def test_the_readme_shows_the_screens_as_they_are() -> None:
    readme = (SCREENS.parents[1] / "README.md").read_text(encoding="utf-8")
    for name in ("office-many-80x24", "top-120x12"):
        _, mark, rest = readme.partition(f"<!-- screen: {name} -->\n```\n")
        shown = rest.partition("```")[0]
        kept = (SCREENS / f"{name}.txt").read_text(encoding="utf-8")
        assert mark and [line for line in kept.splitlines() if line] == [
            line for line in shown.splitlines() if line
        ], name
