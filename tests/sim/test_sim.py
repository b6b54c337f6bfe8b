"""Some seeds of every kind, each run compared with the truth to its end; more of them: python -m tests.sim."""

from __future__ import annotations

import pytest

from tests.sim import directed
from tests.sim.__main__ import attempt
from tests.sim.plan import Run
from tests.sim.truth import Truth

SEEDS = 300
CHUNK = 20
FAILED_ONCE = (2237, 2368, 2461, 2721, 3759, 4245, 4408, 5864, 6846, 8488)
SCHEDULES = (
    directed.lost_request,
    directed.lost_reply,
    directed.lost_ack,
    directed.lost_message,
    directed.two_copies_ask_the_same,
    directed.restored_twice,
    directed.two_takers,
    directed.two_takers_by_operation,
    directed.old_reply_before_welcome,
    directed.leftover_gone,
    directed.full_disk_while_asking,
    directed.full_disk_while_pushing,
    directed.first_request_lost,
    directed.first_reply_lost,
    directed.first_message_lost,
    directed.another_persons_mail,
    directed.held_too_long,
    directed.renamed_by_the_dead,
    directed.task_behind_notes,
    directed.restored_before_it_was_reported,
    directed.found_by_the_next_life,
    directed.goodbye_before_it_was_reported,
    directed.goodbye_without_a_trace,
    directed.cut_off_and_back,
    directed.settled_by_the_name_of_another,
    directed.settled_by_a_name_that_was_of_another,
    directed.acknowledged_before_it_was_offered,
)


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_seeds(first: int) -> None:
    for seed in range(first, first + CHUNK):
        found = attempt(seed)
        assert not found, f"{found}\n  python -m tests.sim --seed {seed} --trace"


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_a_seed_that_failed_once(seed: int) -> None:
    assert not attempt(seed)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.__name__)
def test_directed(schedule: object) -> None:
    assert callable(schedule)
    schedule()


def test_a_seed_is_always_the_same() -> None:
    traces: list[list[str]] = [[], []]
    for trace in traces:
        attempt(7, trace)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 100


def test_the_runs_do_something() -> None:
    """Messages are sent and shown, values set, names taken, databases restored: else no violation means nothing."""
    shown = applied = restored = taken = 0
    for seed in range(40):
        truth = Truth()
        run = Run(seed, truth=truth)
        run.go()
        shown += len(truth.sights)
        applied += len(truth.history.applied)
        restored += truth.restored
        taken += sum(term > 1 for term, _ in truth.history.terms.values())
    assert shown > 400
    assert applied > 1000
    assert restored > 2
    assert taken > 5
