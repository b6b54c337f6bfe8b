"""Every rule by which an attempt to deliver ends: pure, no client, no clock."""

from __future__ import annotations

import pytest

from agent.delivery.flights import (
    CLAIM_MS,
    OVER_MS,
    PROOF_MS,
    SESSION_MS,
    TRACE_MS,
    WAIT,
    Flight,
    Verdict,
    judge_hook,
    judge_native,
    judge_result,
    judge_resumed,
    judge_typed,
)
from agent.delivery.maildir import Fate
from agent.delivery.transcript import Seen
from agent.inbox import Letter
from bus.wire import Msg

START = 1_000
LATE = START + 10 * max(TRACE_MS, PROOF_MS, SESSION_MS, CLAIM_MS)


def letter(ident: str) -> Letter:
    return Letter(Msg(1, 0, ident, "alice", "f1", "vm", "bob", "task", 5), 0)


def flight(path: str = "native") -> Flight:
    return Flight([letter("a1"), letter("b2")], path, "cafe00", START, "session-1")


def native(one: Flight, seen: Seen, now: int, session: str = "session-1") -> Verdict:
    return judge_native(one, seen, now, session)


def test_a_flight_knows_the_keys_of_its_letters() -> None:
    assert flight().keys == ["vm/f1/a1", "vm/f1/b2"]


# -- the session's own inbox -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("session", ["session-1", "session-2", ""])
@pytest.mark.parametrize("now", [START, LATE])
def test_a_request_that_was_answered_is_the_proof(session: str, now: int) -> None:
    assert native(flight(), Seen.INJECTED, now, session) == Verdict("shown", "transcript")


def test_a_line_that_was_taken_for_a_turn_was_not_shown_for_that() -> None:
    """The request may fail, or be held for minutes, and the client be killed over it."""
    one = flight()
    for now in (START + 5, LATE, 100 * LATE):
        assert native(one, Seen.TAKEN, now) is WAIT
    assert native(one, Seen.TAKEN, 100 * LATE, "") is WAIT
    assert native(one, Seen.TAKEN, 100 * LATE + SESSION_MS, "") == Verdict("back", certain=False, blame=False)


@pytest.mark.parametrize("session", ["session-1", "session-2", ""])
def test_an_answer_since_then_is_the_weaker_proof(session: str) -> None:
    assert native(flight(), Seen.ANSWERED, START, session) == Verdict("shown", "queue")
    assert typed(flight("terminal"), Seen.ANSWERED, Fate.PRINTED, START, session) == Verdict("shown", "queue")


def test_what_was_taken_out_of_the_conversation_comes_back() -> None:
    for path, judge in (("native", native), ("resumed", judge_resumed)):
        assert judge(flight(path), Seen.LEFT, START, "session-1") == Verdict("back")
    assert typed(flight("terminal"), Seen.LEFT, Fate.PRINTED, START, "session-1") == Verdict("back")
    assert judge_result(flight("tool-result"), Seen.LEFT, True, START, "session-1", "over", True) == Verdict("back")


def test_what_a_former_agent_handed_over_waits_for_the_client() -> None:
    one = Flight([], "resumed", "cafe00", START, "session-1", resumed=["h/f/m"])
    assert one.keys == ["h/f/m"] and one.until == 0
    for seen in (Seen.NOTHING, Seen.ENQUEUED, Seen.TAKEN):  # nothing: a result that is recorded
        assert judge_resumed(one, seen, 100 * LATE, "session-1") is WAIT
    assert judge_resumed(one, Seen.TAKEN, LATE, "session-2") is WAIT
    assert judge_resumed(one, Seen.TAKEN, LATE + SESSION_MS, "session-2") == Verdict("back")
    assert judge_resumed(one, Seen.ANSWERED, LATE, "") == Verdict("shown", "queue")
    assert judge_resumed(one, Seen.INJECTED, LATE, "") == Verdict("shown", "transcript")


def test_a_dropped_line_comes_back_at_once_and_nobody_saw_it() -> None:
    assert native(flight(), Seen.DROPPED, START) == Verdict("back", certain=True, blame=True)


@pytest.mark.parametrize("seen", [Seen.ENQUEUED, Seen.HELD])
def test_what_stands_in_the_queue_of_a_living_session_is_left_alone(seen: Seen) -> None:
    one = flight()
    for now in (START, START + TRACE_MS, START + PROOF_MS, LATE):
        assert native(one, seen, now) is WAIT


@pytest.mark.parametrize("session", ["", "session-2"])
@pytest.mark.parametrize("seen", [Seen.ENQUEUED, Seen.HELD])
def test_a_queue_ends_some_time_after_its_session(seen: Seen, session: str) -> None:
    one = flight()
    assert native(one, seen, LATE, session) is WAIT
    assert native(one, seen, LATE + SESSION_MS - 1, session) is WAIT
    assert native(one, seen, LATE + SESSION_MS, session) == Verdict("back")


def test_a_session_that_was_gone_for_a_moment_only_begins_anew() -> None:
    one = flight()
    assert native(one, Seen.ENQUEUED, LATE, "") is WAIT
    assert native(one, Seen.ENQUEUED, LATE + SESSION_MS - 1) is WAIT
    assert native(one, Seen.ENQUEUED, LATE + SESSION_MS, "") is WAIT
    assert native(one, Seen.ENQUEUED, LATE + 2 * SESSION_MS, "") == Verdict("back")


def test_a_line_without_a_trace_did_not_arrive_and_its_path_is_to_blame() -> None:
    one = flight()
    assert native(one, Seen.NOTHING, START) is WAIT
    assert native(one, Seen.NOTHING, START + TRACE_MS - 1) is WAIT
    assert native(one, Seen.NOTHING, START + TRACE_MS) == Verdict("back", certain=False, blame=True)


# -- the maildir -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", list(Fate))
def test_the_transcript_stands_above_what_the_folder_says(fate: Fate) -> None:
    assert judge_hook(flight("hook"), Seen.INJECTED, fate, LATE) == Verdict("shown", "transcript")


def test_what_nobody_took_waits_for_ever() -> None:
    one = flight("hook")
    for now in (START, LATE, 10 * LATE):
        assert judge_hook(one, Seen.NOTHING, Fate.WAITING, now) is WAIT


def test_what_was_printed_has_time_for_the_better_proof() -> None:
    one = flight("hook")
    assert judge_hook(one, Seen.NOTHING, Fate.PRINTED, LATE) is WAIT
    assert judge_hook(one, Seen.NOTHING, Fate.PRINTED, LATE + PROOF_MS - 1) is WAIT
    assert judge_hook(one, Seen.NOTHING, Fate.PRINTED, LATE + PROOF_MS) == Verdict("shown", "hook-output")


def test_what_was_printed_waits_while_its_turn_runs() -> None:
    one = flight("hook")
    for now in (LATE, LATE + PROOF_MS, 10 * LATE):
        assert judge_hook(one, Seen.NOTHING, Fate.PRINTED, now, "runs") is WAIT


def test_a_turn_that_ended_without_it_did_not_show_what_was_printed() -> None:
    one = flight("hook")
    assert judge_hook(one, Seen.NOTHING, Fate.PRINTED, LATE, "over") is WAIT
    assert judge_hook(one, Seen.NOTHING, Fate.PRINTED, LATE + OVER_MS - 1, "over") is WAIT
    assert judge_hook(one, Seen.NOTHING, Fate.PRINTED, LATE + OVER_MS, "over") == Verdict("back", certain=False)
    assert judge_hook(one, Seen.INJECTED, Fate.PRINTED, LATE + OVER_MS, "over") == Verdict("shown", "transcript")


def test_a_turn_that_begins_again_starts_the_wait_anew() -> None:
    one = flight("hook")
    assert judge_hook(one, Seen.NOTHING, Fate.PRINTED, LATE, "over") is WAIT
    assert judge_hook(one, Seen.NOTHING, Fate.PRINTED, LATE + 1, "runs") is WAIT
    assert judge_hook(one, Seen.NOTHING, Fate.PRINTED, LATE + OVER_MS, "over") is WAIT


def test_a_hook_that_hangs_over_a_claim_may_have_shown_it() -> None:
    one = flight("hook")
    assert judge_hook(one, Seen.NOTHING, Fate.CLAIMED, LATE) is WAIT
    assert judge_hook(one, Seen.NOTHING, Fate.CLAIMED, LATE + CLAIM_MS - 1) is WAIT
    assert judge_hook(one, Seen.NOTHING, Fate.CLAIMED, LATE + CLAIM_MS) == Verdict("back", certain=False, blame=True)


def test_a_claim_that_is_printed_later_is_no_trouble() -> None:
    one = flight("hook")
    assert judge_hook(one, Seen.NOTHING, Fate.CLAIMED, LATE) is WAIT
    assert judge_hook(one, Seen.NOTHING, Fate.PRINTED, LATE + CLAIM_MS) is WAIT


@pytest.mark.parametrize(
    ("fate", "certain", "blame"), [(Fate.NOTICED, True, False), (Fate.LOST, False, True), (Fate.GONE, False, False)]
)
def test_what_was_not_printed_comes_back(fate: Fate, certain: bool, blame: bool) -> None:
    assert judge_hook(flight("hook"), Seen.NOTHING, fate, START) == Verdict("back", certain=certain, blame=blame)


# -- the supervisor ----------------------------------------------------------------------------------------------------


def typed(one: Flight, seen: Seen, fate: Fate, now: int, session: str = "session-1", turn: str = "over") -> Verdict:
    return judge_typed(one, seen, fate, now, session, turn)


@pytest.mark.parametrize("fate", list(Fate))
def test_the_transcript_stands_above_what_the_terminal_says(fate: Fate) -> None:
    assert typed(flight("terminal"), Seen.INJECTED, fate, LATE) == Verdict("shown", "transcript")


@pytest.mark.parametrize("fate", [Fate.WAITING, Fate.CLAIMED])
def test_what_is_not_typed_or_not_taken_waits(fate: Fate) -> None:
    one = flight("terminal")
    for now in (START, LATE, 10 * LATE):
        assert typed(one, Seen.NOTHING, fate, now) is WAIT


def test_what_was_taken_proves_something_only_where_there_is_no_transcript() -> None:
    one = flight("terminal")
    assert judge_typed(one, Seen.NOTHING, Fate.PRINTED, LATE, "", "", False) == Verdict("shown", "terminal")
    assert judge_typed(one, Seen.NOTHING, Fate.CLAIMED, LATE, "", "", False) is WAIT
    assert judge_typed(one, Seen.NOTHING, Fate.PRINTED, LATE, "session-1", "", True) is WAIT


def test_what_was_typed_and_left_no_trace_comes_back_once_no_turn_runs() -> None:
    one = flight("terminal")
    assert typed(one, Seen.NOTHING, Fate.PRINTED, LATE) is WAIT
    assert typed(one, Seen.NOTHING, Fate.PRINTED, LATE + TRACE_MS - 1) is WAIT
    assert typed(one, Seen.NOTHING, Fate.PRINTED, LATE + TRACE_MS, turn="runs") is WAIT
    assert typed(one, Seen.NOTHING, Fate.PRINTED, LATE + TRACE_MS) is WAIT
    assert typed(one, Seen.NOTHING, Fate.PRINTED, LATE + 2 * TRACE_MS) == Verdict("back", certain=False, blame=True)


@pytest.mark.parametrize("seen", [Seen.ENQUEUED, Seen.TAKEN])
def test_a_prompt_the_client_has_taken_is_not_typed_again_while_its_session_lives(seen: Seen) -> None:
    one = flight("terminal")
    for now in (LATE, 10 * LATE, 100 * LATE):
        assert typed(one, seen, Fate.PRINTED, now) is WAIT
    assert typed(one, seen, Fate.PRINTED, 100 * LATE, "session-2") is WAIT
    assert typed(one, seen, Fate.PRINTED, 100 * LATE + SESSION_MS, "session-2") == Verdict("back")


def test_the_session_that_counts_is_that_in_which_it_was_typed() -> None:
    one = flight("terminal")
    assert typed(one, Seen.NOTHING, Fate.WAITING, LATE, "session-2") is WAIT
    assert typed(one, Seen.TAKEN, Fate.PRINTED, LATE, "session-2") is WAIT
    assert typed(one, Seen.TAKEN, Fate.PRINTED, 10 * LATE, "session-2") is WAIT


@pytest.mark.parametrize(
    ("fate", "certain", "blame"), [(Fate.NOTICED, True, True), (Fate.LOST, False, True), (Fate.GONE, False, False)]
)
def test_what_was_not_typed_comes_back(fate: Fate, certain: bool, blame: bool) -> None:
    assert typed(flight("terminal"), Seen.NOTHING, fate, START) == Verdict("back", certain=certain, blame=blame)


def test_waiting_says_nothing() -> None:
    assert Verdict("", "", False, False) == WAIT


# -- a tool result -----------------------------------------------------------------------------------------------------


def result(one: Flight, now: int = START, **said: object) -> Verdict:
    facts = {"seen": Seen.NOTHING, "recorded": False, "session": "session-1", "turn": "runs", "transcript": True}
    return judge_result(one, now=now, **{**facts, **said})  # type: ignore[arg-type]


def written(taken: bool = False) -> Flight:
    one = flight("tool-result")
    one.written, one.taken = True, taken
    return one


@pytest.mark.parametrize("turn", ["runs", "over", ""])
@pytest.mark.parametrize("transcript", [True, False])
def test_a_result_in_a_request_that_was_answered_was_shown(turn: str, transcript: bool) -> None:
    said = {"seen": Seen.INJECTED, "turn": turn, "transcript": transcript}
    assert result(flight("tool-result"), **said) == Verdict("shown", "transcript")
    assert result(written(), LATE, **said) == Verdict("shown", "transcript")


@pytest.mark.parametrize("turn", ["runs", ""])
def test_with_a_transcript_nothing_else_is_a_proof(turn: str) -> None:
    """Also when the client has ended, so that nobody says whether a turn runs."""
    one = written(taken=True)
    assert result(one, turn=turn) is WAIT and result(one, LATE, turn=turn) is WAIT


def test_a_client_that_says_nothing_of_itself_must_have_read_it() -> None:
    for taken in (False, True):
        one = written(taken)
        one.session = ""
        verdict = result(one, LATE, transcript=False, turn="", session="")
        assert verdict == (Verdict("shown", "tool-result") if taken else WAIT)


def test_a_session_has_its_transcript_by_the_end_of_its_first_turn_if_ever() -> None:
    """A client that was killed before that (it says nothing any more) has shown nothing."""
    one = written(taken=True)
    for turn in ("runs", ""):
        assert result(one, LATE, transcript=False, turn=turn) is WAIT
    assert result(one, LATE, transcript=False, turn="over") is WAIT
    assert result(one, LATE + OVER_MS, transcript=False, turn="over") == Verdict("shown", "tool-result")
    unread = written()
    assert result(unread, transcript=False, turn="over") is WAIT
    assert result(unread, LATE, transcript=False, turn="over") is WAIT


def test_a_result_of_which_a_turn_left_no_trace_comes_back_marked() -> None:
    one = written(taken=True)
    assert result(one, turn="over") is WAIT
    assert result(one, START + OVER_MS - 1, turn="over") is WAIT
    assert result(one, START + OVER_MS, turn="over") == Verdict("back", certain=False)
    assert result(flight("tool-result"), LATE, turn="over") is WAIT, "it is still being written"


def test_a_result_in_the_history_waits_for_the_next_request_of_that_session() -> None:
    one = written()
    assert result(one, turn="over", recorded=True) is WAIT
    assert result(one, LATE, turn="over", recorded=True) is WAIT
    assert result(one, LATE, turn="over", recorded=True, session="session-2") is WAIT
    assert result(one, LATE + OVER_MS, turn="over", recorded=True, session="session-2") == Verdict("back")
