"""Times that can be called off: against a model that forgets at once, and in how much memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.timers import SLACK, Timer, Timers

TIMER = st.tuples(st.integers(0, 20), st.sampled_from("ab"), st.tuples(st.integers(0, 3)))


@given(st.lists(st.tuples(st.sampled_from(["add", "call off", "take"]), TIMER), max_size=300))
def test_only_what_is_wanted_comes_due_in_order(steps: list[tuple[str, Timer]]) -> None:
    timers, model = Timers(), set[Timer]()
    for what, timer in steps:
        if what == "add":
            timers.add(timer)
            model.add(timer)
        elif what == "call off":
            timers.call_off(timer)
            model.discard(timer)
        else:
            due = min((known for known in model if known[0] <= timer[0]), default=None)
            assert timers.take(timer[0]) == due
            model -= {due} if due else set()
        assert timers.next() == min((known[0] for known in model), default=None)


def test_what_was_called_off_takes_no_room() -> None:
    timers = Timers()
    for n in range(100):
        timers.add((10**6 + n, "kept", ()))
    for n in range(10_000):
        timers.add((10**7 - n, "again", ()))
        timers.call_off((10**7 - n, "again", ()))
        assert len(timers) <= 2 * 100 + SLACK + 1
    assert [timers.take(10**7) for _ in range(101)] == [(10**6 + n, "kept", ()) for n in range(100)] + [None]
