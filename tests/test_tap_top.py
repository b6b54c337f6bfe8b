"""top: traffic, what waits, how each is reached; by literal items and times."""

from __future__ import annotations

from agent.tap.items import Item
from agent.tap.top import SORTS, Rate, Row, Top, draw_top
from tests.story import MANY, ONE, PEERS, START, STORY, as_text, compare, event, row, snapshot, step, stored


def after(*items: Item) -> Top:
    made = Top()
    for item in items:
        made.take(item)
    return made


def line(top: Top, name: str, now: int) -> Row:
    return next(r for r in top.table(now).rows if r.name == name)


def test_rate() -> None:
    rate = Rate()
    for at in (0, 50, 900, 1500, 59_000):
        rate.add(START + at)
    assert rate.count(START + 1500, 1000) == 3, "the one of 59 s is not asked for twice"
    assert rate.count(START + 59_000, 60_000) == 5
    assert rate.count(START + 60_000, 60_000) == 3
    assert rate.count(START + 200_000, 60_000) == 0 and not rate._buckets


def test_rates_over_a_second_and_a_minute() -> None:
    top = after(snapshot(), *(stored(START + 100 * n, f"m{n}") for n in range(20)))
    now = START + 1900
    ada, bob = line(top, "ada", now), line(top, "bob", now)
    assert top.table(now).copies_1s == 10
    assert ada.sent_1s == 10 and bob.got_1s == 10 and ada.got_1s == 0
    assert round(ada.sent_60s, 2) == round(20 / 1.9, 2), "as long as it was looked"
    later = line(top, "ada", START + 30_000)
    assert later.sent_1s == 0 and round(later.sent_60s, 3) == round(20 / 30, 3)
    assert line(top, "ada", START + 120_000).sent_60s == 0


def test_depth_and_age() -> None:
    top = after(snapshot(), stored(START + 1000, ONE, seq=11), stored(START + 2000, MANY, seq=12))
    bob = line(top, "bob", START + 5000)
    assert (bob.unread, bob.waits) == (2, 4000)
    top.take(step(START + 5000, "injected", ONE, seq=13))
    assert line(top, "bob", START + 5000).unread == 1
    top.take(Item(START + 6000, "peers", {"peers": [row("b2", "bob", unread=1, oldest=START + 2000)], "seq": 13}))
    assert line(top, "bob", START + 6000).waits == 4000, "what is read anew is exact"
    assert line(top, "bob", START + 6000).got_60s > 0, "and rates go on"


def test_what_was_read_is_not_counted_twice() -> None:
    top = after(snapshot(), Item(START, "peers", {"peers": [row("b2", "bob", unread=1, oldest=START)], "seq": 20}))
    top.take(stored(START, ONE, seq=20))
    assert line(top, "bob", START).unread == 1
    top.take(stored(START, MANY, seq=21))
    assert line(top, "bob", START).unread == 2


def test_health() -> None:
    top = after(snapshot())
    health = {r.name: (r.wake, r.health) for r in top.table(START).rows}
    assert health == {"ada": ("native", "ok"), "bob": ("hooks", "warn"), "cleo": ("tools", "bad")}
    top.take(event(START, "peer.status", id="b2", name="bob", host="mars", wake="rewake", activity="idle"))
    assert line(top, "bob", START).health == "ok"
    top.take(event(START, "peer.lost", id="b2", name="bob", host="mars"))
    assert line(top, "bob", START).health == "warn"
    top.take(stored(START, ONE, seq=11))
    assert line(top, "bob", START).health == "bad", "mail waits for who is not here"


def test_paths_that_are_known_and_one_that_is_not() -> None:
    for wake, words, health in (
        ("channel", "channel, wakes", "ok"),
        ("terminal", "typed in, wakes", "ok"),
        ("hooks", "hooks, next turn", "warn"),
        ("", "not told", "warn"),
        ("carrier-pigeon", "carrier-pigeon", "warn"),
        ("\x1b[2J", "\\u{1B}[2J", "warn"),
    ):
        top = after(snapshot(peers=[row("a1", "ada", wake=wake)]))
        assert words in as_text(draw_top(top.table(START), "name", 120, 8)), wake
        assert line(top, "ada", START).health == health, wake


def test_no_copy_is_counted_twice() -> None:
    held = stored(START, ONE, seq=11)
    held.told["event"] = "held"
    top = after(snapshot(), held)
    assert line(top, "bob", START).unread == 0, "held mail waits for a person, as in talkbus peers"
    top.take(stored(START, ONE, seq=12))
    assert (line(top, "bob", START).unread, top.table(START).copies_1s) == (1, 1)
    top.take(stored(START, MANY, seq=13))
    for seq in (14, 15):
        top.take(step(START, "injected", ONE, seq=seq))
    assert line(top, "bob", START).unread == 1, "a step may be told twice"
    top.take(Item(START, "missed", {"restarted": True}))
    top.take(snapshot(seq=2, boot="b2", peers=[row("b2", "bob", unread=1, oldest=START)]))
    top.take(step(START, "injected", MANY, seq=3))
    assert line(top, "bob", START).unread == 1, "it was settled in the gap: the new picture has counted that"


def test_who_is_listed() -> None:
    top = after(snapshot())
    assert [r.name for r in top.table(START).rows] == ["cleo", "ada", "bob"], "dan is gone and nothing waits for him"
    top.take(event(START, "peer.open", id="e5", name="eve", host="venus", kind="session"))
    assert top.table(START).here == 4
    top.take(event(START, "peer.gone", id="e5", name="eve", host="venus"))
    assert "eve" not in [r.name for r in top.table(START).rows]


def test_sorting() -> None:
    top = after(snapshot(peers=[*PEERS, row("e5", "eve", unread=9, oldest=START - 1000)]), stored(START, ONE, seq=11))
    orders = {}
    for _ in SORTS:
        orders[top.sort] = [r.name for r in top.table(START + 1).rows]
        top.next_sort()
    assert orders["traffic"][0:2] == ["bob", "ada"]
    assert orders["unread"][0] == "eve" and orders["oldest"][0] == "cleo"
    assert orders["name"] == ["ada", "bob", "cleo", "eve"] and top.sort == SORTS[0]


def test_the_connection_is_lost() -> None:
    top = after(snapshot(), Item(START, "lost", {"text": "x"}))
    assert "lost" in top.table(START).remark
    top.take(snapshot())
    assert top.table(START).remark == ""
    top.over("it is over")
    assert top.table(START).remark == "it is over"


def test_a_narrow_screen_keeps_what_counts() -> None:
    table = after(snapshot(), stored(START, ONE, seq=11)).table(START)
    head = lambda wide: as_text(draw_top(table, "unread", wide, 8)).splitlines()[1].split()  # noqa: E731
    assert head(60)[:2] == ["session", "is"] and head(39) == ["session", "unread"] and head(20) == ["session"]
    assert "q quits" in as_text(draw_top(table, "unread", 20, 8))


def test_screens() -> None:
    top = after(*STORY)
    for wide, high in ((120, 12), (80, 24), (60, 20)):
        rows = draw_top(top.table(START + 3000), top.sort, wide, high)
        assert len(rows) == high
        compare(f"top-{wide}x{high}", as_text(rows))
    crowd = after(snapshot(peers=[row(f"{n:08x}", f"s{n:02d}") for n in range(30)]))
    assert "and 13 more" in as_text(draw_top(crowd.table(START), "name", 80, 20))
    assert as_text(draw_top(top.table(START), "name", 80, 20, True)).isascii()
