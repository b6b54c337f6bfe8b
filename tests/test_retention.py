"""How far is pruned by itself: as configured, but not by a clock that jumped ahead."""

from __future__ import annotations

import pytest

from bus.retention import DAY_MS, reach

NOW = 1_800_000_000_000
KEEP = 30 * DAY_MS


@pytest.mark.parametrize("last", [0, NOW - DAY_MS, NOW - 7 * DAY_MS, NOW - 8 * DAY_MS])
def test_as_configured(last: int) -> None:
    assert reach(NOW, KEEP, last, NOW - KEEP - 1) == (NOW - KEEP, "")


@pytest.mark.parametrize(("keep", "last"), [(30, 9), (30, 400), (10, 7), (1, 3)])
def test_after_a_hole_in_the_mail_nothing_goes(keep: int, last: int) -> None:
    before, doubt = reach(NOW, keep * DAY_MS, NOW - last * DAY_MS, 0)
    assert before == 0 and f"{last} days ahead" in doubt


def test_what_a_clock_ordered_that_was_ahead_is_not_carried_out() -> None:
    before, doubt = reach(NOW, KEEP, NOW - 2 * DAY_MS, NOW + 300 * DAY_MS)
    assert before == NOW - KEEP and "300 days" in doubt
    assert reach(NOW, KEEP, NOW - 90 * DAY_MS, NOW + 1)[0] == 0


def test_a_young_clock_prunes_nothing() -> None:
    assert reach(5, KEEP, 0, 0) == (0, "")
