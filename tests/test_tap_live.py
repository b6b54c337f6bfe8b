"""live: what a view tells, as items; texts only where they may be read, and never more than the broker can bear."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.asks import Answer
from agent.tap import live as live_
from agent.tap.items import Item
from agent.tap.live import Bodies, live
from bus.client import News
from bus.errors import Refused, Unreachable
from tests.story import ONE, stored

SNAP = {"peers": [], "state": [], "seq": 1, "boot": "b1"}


@dataclass
class Script:
    """Stands for a View."""

    steps: list[News] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def query(self, what: str, args: dict[str, Any], timeout: float) -> Answer:
        self.asked.append(what)
        found = self.answers[what]
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, Answer)
        return found

    def events(self, topics: Any, timeout: float | None, pulse: float) -> Iterator[News]:
        assert not topics, "who does not get everything cannot see a gap"
        yield from self.steps


def items(script: Script, **options: Any) -> list[Item]:
    ticks = itertools.count(1000)
    return [item for item in live(script, lambda: next(ticks), **options) if item is not None]


def test_joining_missing_and_losing_is_told() -> None:
    told = {"class": "msg", "event": "stored"}
    again = {**SNAP, "boot": "b2"}
    script = Script([
        News(SNAP, [], False),
        News(None, [told, told], False),
        News(SNAP, [], True),
        News(None, [], False, "nobody answers"),
        News(None, [], False),
        News(again, [], True),
    ])  # fmt: skip
    made = items(script)
    assert [item.what for item in made] == [
        "snapshot",
        "event",
        "event",
        "missed",
        "snapshot",
        "lost",
        "missed",
        "snapshot",
    ]
    assert [item.told["restarted"] for item in made if item.what == "missed"] == [False, True]
    assert made[5].told == {"text": "nobody answers"}
    assert [item.at for item in made] == sorted(item.at for item in made)


def test_a_clock_that_is_set_back_does_not_run_backwards() -> None:
    script = Script([News(SNAP, [], False), News(None, [{"class": "msg"}], False)])
    clock = iter([2000, 1000])
    assert [item.at for item in live(script, lambda: next(clock)) if item] == [2000, 2000]


def test_every_step_may_be_a_pulse() -> None:
    script = Script([News(SNAP, [], False), News(None, [], False), News(None, [], False)])
    assert list(live(script, lambda: 5)).count(None) == 3


def test_peers_are_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([News(SNAP, [], False), News(None, [], False)], {"peers": Answer([({"name": "a"}, b"")], 200, 7)})
    ticks = itertools.count(0, 10)
    monkeypatch.setattr(live_.time, "monotonic", ticks.__next__)
    made = items(script, refresh=1.0)
    assert ("peers", {"peers": [{"name": "a"}], "seq": 7}) in [(item.what, item.told) for item in made]
    script.answers["peers"] = Unreachable("gone")
    assert "peers" not in [item.what for item in items(script, refresh=1.0)]
    script.answers["peers"] = Answer([], 503)
    assert "peers" not in [item.what for item in items(script, refresh=1.0)]


def who(role: str) -> Answer:
    return Answer([({"role": role}, b"")], 200)


def test_bodies() -> None:
    event = stored(5, ONE).told
    found = Answer([({"from": "ada", "host": "mars"}, b"hello \xff")], 200)
    script = Script(answers={"whoami": who("owner"), "message": found})
    assert Bodies(script).added(event)["body"] == "hello \ufffd"
    assert Bodies(script).added({"class": "msg", "event": "acked", "id": ONE}) == {
        "class": "msg",
        "event": "acked",
        "id": ONE,
    }
    script.answers["message"] = Answer([({"from": "ada", "host": "venus"}, b"another's of this id")], 200)
    assert "body" not in Bodies(script).added(event)
    for answer, why in (
        (Answer([], 403), "not yours"),
        (Answer([], 404), "not there"),
        (Unreachable("x"), "did not answer"),
    ):
        script.answers["message"] = answer
        assert why in Bodies(script).added(event)["no_body"]


def test_an_observer_gets_no_bodies() -> None:
    with pytest.raises(Refused, match="observer"):
        Bodies(Script(answers={"whoami": who("observer")}))


def test_bodies_are_not_fetched_faster_than_the_broker_can_bear(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(
        answers={"whoami": who("owner"), "message": Answer([({"from": "ada", "host": "mars"}, b"x")], 200)}
    )
    now = [100.0]
    monkeypatch.setattr(live_.time, "monotonic", lambda: now[0])
    bodies = Bodies(script)
    added = [bodies.added(stored(5, ONE).told) for _ in range(live_.BODIES_BURST + 5)]
    assert [event.get("no_body") for event in added[-6:]] == [None, *["too many at once"] * 5]
    now[0] += 0.025
    assert ["body" in bodies.added(stored(5, ONE).told) for _ in range(3)] == [True, True, False]


def test_lines_need_neither_textual_nor_rich() -> None:
    code = "import sys, agent.cli.tap, agent.cli.log, agent.cli.main; print({'textual', 'rich'} & set(sys.modules))"
    root = Path(__file__).parents[1]
    assert subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True).strip() == "set()"
