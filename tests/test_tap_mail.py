"""mail: which message and which copy an event is about, and how far that has climbed; nothing twice, nothing guessed."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from agent.paths import PATHS
from agent.tap.mail import FINAL, FIRST, OPEN, RUNGS, UNKNOWN, Copy, Mail, settle
from bus.activity import EVENTS
from bus.store_schema import BELOW, STEP
from tests.story import MANY, ONE, START, step, stored

ROOT = Path(__file__).parents[1]


def told(item: Any) -> dict[str, Any]:
    found: dict[str, Any] = item.told
    return found


def test_the_ladder_is_the_one_of_the_disk() -> None:
    assert set(RUNGS) == set(EVENTS["msg"].split()) == {*STEP, "refused"}
    for one in STEP:
        for other in STEP:
            assert (RUNGS[one] < RUNGS[other]) == (STEP[one] < BELOW[other]), (one, other)
    assert set(FIRST) | set(OPEN) | set(FINAL) <= set(RUNGS)


def test_every_path_a_session_names_has_words() -> None:
    tree = ast.parse((ROOT / "agent/delivery/ladder.py").read_text(encoding="utf-8"))
    (path,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "path")
    named = {
        value.value
        for node in ast.walk(path)
        if isinstance(node, ast.Return)
        for value in ast.walk(node)
        if isinstance(value, ast.Constant)
    }
    assert named >= {"native", "channel", "tools"} and named <= set(PATHS), "agent/paths.py has them"


def test_a_copy_only_climbs_and_a_step_counts_once() -> None:
    copy = Copy("bob", "mars")
    assert [copy.climb(name) for name in ("stored", "injected", "offered", "injected")] == [True, True, True, False]
    assert copy.step == "injected"
    assert copy.climb("expired") and copy.step == "injected", "what was shown has not expired"
    assert Copy("bob", "mars", "expired").climb("failed") and copy.step == "injected"
    late = Copy("bob", "mars", "expired")
    late.climb("failed")
    assert late.step == "expired", "one rung: the first stays, as on the disk"
    late.climb("injected")
    assert late.step == "injected"


def test_what_waits_is_counted_once() -> None:
    copy = Copy("bob", "mars")
    count = lambda name, **more: (copy.waits({"event": name, **more}), copy.climb(name))[0]  # noqa: E731
    assert [count("held"), count("stored"), count("stored"), count("offered")] == [0, 1, 0, 0]
    assert [count("injected"), count("injected"), count("acked")] == [-1, 0, 0]
    dropped = Copy("bob", "mars")
    assert dropped.waits({"event": "held", "from": "ada"}) == dropped.waits({"event": "failed", "from": "ada"}) == 0
    before = Copy("bob", "mars")
    assert before.waits({"event": "injected", "from": "ada"}) == -1, "it was stored before we looked"
    settled = Copy("bob", "mars")
    assert settled.waits({"event": "injected"}) == 0, "told again of what was settled long ago"
    mail = Mail(5)
    about = mail.heard(told(stored(START, ONE)))
    assert about and about[1].waits(told(stored(START, ONE))) == 1 and about[1].climb("stored")
    mail.missed()
    assert about[1].waits({"event": "injected"}) == 0, "it was settled in the gap; the new picture has counted that"
    about[1].waiting = None
    settle(about[1], {"status": "injected", "history": [{"status": "injected"}]})
    assert about[1].waits({"event": "injected", "from": "ada"}) == -1, "after the picture, though it was asked before"
    late = Copy("bob", "mars", "expired", steps={"stored", "expired"})
    assert late.waits({"event": "injected", "from": "ada"}) == 0, (
        "it left with its time; that it was shown is told late"
    )
    assert about[1].waits(told(stored(START, ONE))) == 0, "a step may be told twice"


def test_after_a_gap_nothing_is_claimed_of_what_was_not_settled() -> None:
    mail = Mail(10)
    for item in (stored(START, ONE), stored(START, MANY), step(START, "injected", MANY)):
        about = mail.heard(told(item))
        assert about is not None
        about[1].climb(told(item)["event"])
    mail.missed()
    statuses = lambda: [c.status for m in mail.unfinished() for c in m.copies.values()]  # noqa: E731
    assert statuses() == [UNKNOWN, "injected"]
    about = mail.heard(told(step(START, "offered", ONE)))
    assert about is not None and about[1].climb("offered")
    assert statuses() == ["offered", "injected"], "the stream speaks of it again"


def test_another_machine_may_use_the_id() -> None:
    mail = Mail(10)
    other = stored(START, ONE, **{"from": "ada", "from_host": "venus"})
    first, second = mail.heard(told(stored(START, ONE))), mail.heard(told(other))
    assert first and second and first[0] is not second[0] and len(mail) == 2
    assert mail.heard(told(step(START, "acked", ONE))) is None, "either may be meant: neither is taken for it"
    exact = mail.heard(told(step(START, "injected", ONE, **{"from": "ada", "from_host": "venus"})))
    assert exact and exact[0] is second[0]
    elsewhere = mail.heard(told(stored(START, ONE, "cleo", "venus", "c3")))
    assert elsewhere and elsewhere[0] is first[0]
    only = mail.about(told(step(START, "acked", ONE, "cleo", "venus", "c3")))
    assert only and only[0] is first[0], "the other one has no copy there"


def test_a_copy_is_its_mailboxs_whatever_that_is_called() -> None:
    mail = Mail(10)
    mail.heard(told(stored(START, ONE)))
    about = mail.heard(told(step(START, "injected", ONE, "robert", "mars", "b2")))
    assert about and about[1].name == "bob" and len(about[0].copies) == 1
    renamed = mail.heard(told(step(START, "injected", ONE, **{"from": "adele", "from_host": "mars"})))
    assert renamed and renamed[0] is about[0], "its sender has another name by now"


def test_the_senders_mailbox_tells_messages_apart_where_it_is_told() -> None:
    mail = Mail(10)
    first = mail.heard(told(stored(START, ONE, fid="a1")))
    second = mail.heard(told(stored(START, ONE, fid="a9")))
    assert first and second and first[0] is not second[0], "one name, one machine, and yet two mailboxes"
    renamed = mail.heard(told(step(START, "acked", ONE, fid="a1", **{"from": "adele", "from_host": "mars"})))
    assert renamed and renamed[0] is first[0]
    assert mail.heard(told(step(START, "acked", ONE))) is None


def test_it_is_bounded() -> None:
    mail = Mail(3)
    for number in range(5):
        mail.heard(told(stored(START, f"m{number}")))
        mail.heard(told(stored(START, ONE, **{"from": f"s{number}"})))
    assert len(mail) == 3 and sum(map(len, mail._by_id.values())) == 3


def test_an_answer_settles_a_copy_and_tells_what_is_new() -> None:
    copy = Copy("bob", "mars", "stored", doubt=True, steps={"stored"})
    history = [{"status": name, "ts": ts} for name, ts in (("stored", 1), ("injected", 3), ("offered", 2), ("?", 4))]
    fresh = settle(copy, {"status": "injected", "history": history})
    assert [made["status"] for made in fresh] == ["offered", "injected"] and copy.status == "injected"
    assert settle(copy, {"status": "stored", "history": []}) == []
    assert copy.status == "stored", "the broker's database was put back: its word counts"
    assert settle(copy, {"status": "\x1b[2J"}) == [] and copy.status == "stored"


@pytest.mark.parametrize("odd", [{}, {"id": 3, "to": None}, {"from": [], "mailbox": {}}, {"event": 7}])
def test_odd_events_are_borne(odd: dict[str, Any]) -> None:
    mail = Mail(5)
    about = mail.heard(odd)
    assert about is None or about[1].climb("") in (True, False)
    assert mail.learned({"from": "a", "to": [{"name": 3, "history": "none"}, 4]}) is not None
    assert mail.learned({"to": "nobody"}) is None
