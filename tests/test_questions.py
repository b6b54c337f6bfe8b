"""What an agent knows of questions: which may be answered, what ends an `ask`, and when an answer wakes."""

from __future__ import annotations

from typing import Any

import pytest

from agent.book import Book
from agent.delivery.piggyback import letter_of, plain
from agent.effects import Mail
from agent.link import Link, Profile
from agent.questions import KEPT, Asked
from agent.reservations import Open
from bus import wire

MINUTE = 60_000


def link() -> Link:
    made = Link(Book("ob", name="bob"), Profile("hold", "i", "bob", mailbox="b0"), lambda: "r" * 16, lambda: 0.0)
    made.book.store = made.profile.store = "s"
    return made


def msg(n: int, ident: str, *, ask: int = 0, fid: str = "a0000001", **more: Any) -> wire.Msg:
    return wire.Msg(n, n - 1, ident * 16, "alice", fid, "desk", "bob", "task", 1, ask=ask, **more)


def show(made: Link, now: int, *keys: str, proof: str = "tool-result") -> None:
    made.inbox.offer(now, [x for x in made.inbox.waiting() if not keys or x.key in keys], "tool-result")
    made.inbox.shown(now, [x.key for x in made.inbox._offering.values()], proof)


def shown(made: Link, now: int, by: int | None = None) -> list[str]:
    return [x.id[0] for x in made.inbox.questions.shown(now, now if by is None else by)]


def send(made: Link, **args: Any) -> int:
    return made.submit(5, "send", {"to": ["alice"], **args}, b"x")[0]


def settle(made: Link, row: int, **result: Any) -> None:
    made.sending.sent = row
    made._settle(6, wire.Rep(made.book.number(row), 200, result))


TO_ALICE = [{"name": "alice", "host": "desk", "id": "a0000001", "status": "stored", "code": 200}]


def test_only_what_is_proved_to_have_been_shown_before_the_call() -> None:
    made = link()
    made.inbox.take_in(0, msg(1, "q", ask=11 * MINUTE), 0)
    assert shown(made, 10) == []
    made.inbox.offer(10, made.inbox.waiting(), "tool-result")
    assert shown(made, 10) == [] and [x.id[0] for x in made.inbox.questions.unproved(10)] == ["q"]
    made.inbox.shown(20, ["desk/a0000001/" + "q" * 16], "tool-result")
    assert shown(made, 30) == ["q"] and made.inbox.questions.unproved(30) == []
    assert shown(made, 30, by=19) == [], "the call was under way when the result was written that carried it"
    made.book.ledger["desk/a0000001/" + "q" * 16].proof = "transcript"
    assert shown(made, 30, by=19) == ["q"], "the transcript names the request, and the call is of no earlier one"


def test_until_ten_minutes_after_the_ask_counted_from_its_arrival() -> None:
    made = link()
    made.inbox.take_in(0, msg(1, "q", ask=11 * MINUTE), 0)
    show(made, 9 * MINUTE)  # it waited for a hook all the time
    assert shown(made, 11 * MINUTE - 1) == ["q"] and shown(made, 11 * MINUTE) == []
    made.inbox.take_in(0, msg(2, "p"), 0)
    show(made, 9 * MINUTE)
    assert shown(made, 9 * MINUTE) == ["q"], "a message that is not a question"


def test_a_question_found_by_query_counts_as_well() -> None:
    made = link()
    value = {"id": "q" * 16, "from": "alice", "fid": "a0000001", "host": "desk", "kind": "task", "ts": 1, "ask": 500}
    made.inbox.offer(0, [letter_of(value, b"x", 0)], "tool-result")
    made.inbox.shown(0, ["desk/a0000001/" + "q" * 16], "tool-result")
    assert shown(made, 499) == ["q"] and shown(made, 500) == []


@pytest.mark.parametrize("args", [{"re": "q" * 16}, {"answers": [["a0000001", "q" * 16]]}])
def test_an_answered_question_is_closed_and_one_that_was_refused_open_again(args: dict[str, Any]) -> None:
    made = link()
    made.inbox.take_in(0, msg(1, "q", ask=MINUTE), 0)
    show(made, 0)
    row = send(made, **args)
    assert shown(made, 5) == [], "its answer is on the way"
    settle(made, row, to=[{**TO_ALICE[0], "status": "refused", "code": 403}])
    assert shown(made, 6) == ["q"]
    row = send(made, **args)
    settle(made, row, to=TO_ALICE, **({"re": "q" * 16} if "answers" in args else {}))
    assert shown(made, 6) == []


def test_a_reply_to_somebody_else_does_not_close_it() -> None:
    made = link()
    made.inbox.take_in(0, msg(1, "q", ask=MINUTE), 0)
    show(made, 0)
    settle(made, send(made, re="q" * 16, to=["eve"]), to=[{**TO_ALICE[0], "name": "eve", "id": "e0000001"}])
    assert shown(made, 6) == ["q"]
    settle(made, send(made, answers=[["a0000001", "q" * 16]]), to=TO_ALICE)
    assert shown(made, 6) == ["q"], "the broker took it for none of them"


def test_another_mailbox_or_conversation_has_none_of_them() -> None:
    made = link()
    made.inbox.take_in(0, msg(1, "q", ask=MINUTE), 0)
    show(made, 0)
    made.state = "open"
    welcome = wire.Welcome("bob", "b0", 1, "s", 1, "", 0, 5000, 64, 1)
    made._adopt(1, welcome)
    assert shown(made, 1) == ["q"]
    made._adopt(1, wire.Welcome("carol", "c0", 1, "s", 1, "", 0, 5000, 64, 1))
    assert shown(made, 1) == []


def test_their_number_is_limited() -> None:
    made = link()
    for n in range(KEPT + 5):
        made.inbox.questions.offered(0, wire.Msg(1, 0, f"{n:016d}", "a", "f", "h", "b", "task", 1, ask=9), 9)
    assert len(made.inbox.questions._known) == KEPT
    made.inbox.questions.offered(9, wire.Msg(1, 0, "x" * 16, "a", "f", "h", "b", "task", 1, ask=9), 18)
    assert list(made.inbox.questions._known) == ["h/f/" + "x" * 16]


def test_which_addresses_seem_to_mean_who_asked() -> None:
    made = link()
    made.inbox.take_in(0, msg(1, "q", ask=MINUTE), 0)
    show(made, 0)
    (question,) = made.inbox.questions.shown(1, 1)
    assert all(question.may_be_of(text) for text in ("alice", "Alice@desk", "a000", "a0000001"))
    assert not any(question.may_be_of(text) for text in ("alice@far", "ali", "a00", "/src/alice", "bob"))


# -- who ends an ask -------------------------------------------------------------------------------------------------


def reply(fid: str = "b0000001", re: str = "q", answer: int = 0, name: str = "bob", host: str = "desk") -> wire.Msg:
    return wire.Msg(1, 0, "m" * 16, name, fid, host, "alice", "task", 1, re=re * 16, answer=answer)


def test_an_ask_is_ended_by_the_mailbox_that_was_asked_and_by_no_other() -> None:
    call = Open("q" * 16, 1)
    assert not call.ends(reply()) and call.may_end(reply()), "nobody knows yet who was asked"
    assert call.ends(reply(answer=1)), "the broker says that it is the answer"
    call.settled({"to": [{"name": "bob", "host": "desk", "id": "b0000001", "status": "stored", "code": 200}]})
    assert call.ends(reply()) and call.ends(reply(name="renamed"))
    for forged in (reply("e0000001"), reply("e0000001", host="far"), reply(re="p")):
        assert not call.ends(forged) and not call.may_end(forged)


def test_with_a_broker_that_does_not_tell_ids_the_name_and_the_machine_decide() -> None:
    call = Open("q" * 16, 1)
    call.settled({"to": [{"name": "bob", "host": "desk", "status": "held", "code": 202}]})
    assert call.ends(reply()) and not call.ends(reply(name="eve")) and not call.ends(reply(host="far"))
    assert call.asked == Asked("bob", "desk", "") and call.asked.query() == {"from": "bob@desk"}


@pytest.mark.parametrize("rows", [None, [], [{"status": "refused", "name": "bob", "code": 404}]])
def test_a_question_that_nobody_got_has_no_answer(rows: Any) -> None:
    call = Open("q" * 16, 1)
    call.settled({"to": rows})
    assert not call.may_end(reply()) and not call.ends(reply(""))


# -- when an answer wakes --------------------------------------------------------------------------------------------


def wakes(made: Link) -> list[bool]:
    return [x.wakes for x in made.inbox.waiting()]


def test_an_answer_wakes_when_its_ask_is_over() -> None:
    made = link()
    made.inbox.take_in(0, msg(1, "m", re="q" * 16, answer=5000), 0)
    assert wakes(made) == [False] and made.inbox.next_expiry() == 5000
    made.inbox.expire(4999)
    assert wakes(made) == [False]
    made.batch.news.clear()
    made.inbox.expire(5000)
    assert wakes(made) == [True] and made.batch.news == [Mail(0)] and made.inbox.next_expiry() is None
    made.inbox.take_in(6000, msg(2, "n", re="q" * 16, answer=1), 0)
    assert wakes(made) == [True, True], "it came late"


def test_an_ask_that_ended_here_early_lets_its_answer_wake_at_once() -> None:
    made = link()
    made.inbox.take_in(0, msg(1, "m", re="q" * 16, answer=5000), 0)
    made.inbox.over("q" * 16)
    made.inbox.take_in(0, msg(2, "n", re="q" * 16, answer=5000), 0)
    made.inbox.take_in(0, msg(3, "o", re="p" * 16, answer=5000), 0)
    assert wakes(made) == [True, True, False]


def test_what_comes_back_from_a_path_still_rests() -> None:
    made = link()
    made.inbox.take_in(0, msg(1, "m", re="q" * 16, answer=5000), 0)
    given = made.inbox.offer(1, made.inbox.waiting(), "hook")
    made.inbox.unshown([x.key for x in given], certain=True)
    assert wakes(made) == [False]
    made.inbox.expire(5000)
    assert wakes(made) == [True]


def test_an_answer_is_told_to_the_rendering() -> None:
    made = link()
    made.inbox.take_in(0, msg(1, "m", re="q" * 16, answer=1), 0)
    made.inbox.take_in(0, msg(2, "n", re="q" * 16), 0)
    assert [x.answer for x in plain(made.inbox.waiting())] == [True, False]


def test_a_book_that_is_read_again_forgets_no_question() -> None:
    """The disk refused a batch; the process, and what its model was shown, are the same."""
    made = link()
    made.inbox.take_in(0, msg(1, "q", ask=MINUTE), 0)
    show(made, 1)
    lost = send(made, re="q" * 16)
    assert shown(made, 6) == []
    later = Link(made.book, made.profile, lambda: "r" * 16, lambda: 0.0)
    made.book.last = lost - 1
    later.inbox.inherit(made.inbox)
    assert shown(later, 6) == ["q"], "the answer was not written, so the question is open"


def test_an_answer_that_nobody_here_waits_for_rests_a_minute_at_most() -> None:
    """The command that asked may have been ended long before its time was over."""
    made = link()
    made.inbox.take_in(0, msg(1, "m", re="q" * 16, answer=3_600_000), 0)
    made.inbox.expire(MINUTE - 1)
    assert wakes(made) == [False]
    made.inbox.expire(MINUTE)
    assert wakes(made) == [True]


def test_questions_of_one_do_not_crowd_out_those_of_another() -> None:
    made = link()
    made.inbox.take_in(0, msg(1, "q", ask=11 * MINUTE, fid="a0000002"), 0)
    show(made, 1)
    for n in range(2, KEPT + 50):
        made.inbox.take_in(
            1, wire.Msg(n, n - 1, f"{n:016d}", "eve", "e0000001", "far", "bob", "note", 1, ask=MINUTE), 0
        )
        show(made, 2)
    assert "q" in shown(made, 3)
