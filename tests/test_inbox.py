"""The mailbox's side of a link: chains, the ledger, what is acknowledged, and when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.book import LEDGER_KEPT, Book, DropShown, PutShown, Shown
from agent.effects import Batch, Mail
from agent.inbox import LEDGER_SLACK, Inbox, Letter, named
from bus import wire
from bus.wire import Ack, Msg, Pong


def msg(n: int, prev: int, name: str = "", **more: Any) -> Msg:
    return Msg(n, prev, name or f"m{n}", "web", "0001", "h", "api", "task", 1, **more)


def pong(*held: int, k: int = 1, more: int = 0) -> Pong:
    return Pong(k, 0, [[n, n] for n in held], more, 1)


class Rig:
    def __init__(self) -> None:
        self.book = Book("ob")
        self.batch = Batch()
        self.inbox = Inbox(self.book, lambda: self.batch)
        self.now = 1000

    def take(self) -> Batch:
        self.inbox.acknowledge()
        batch, self.batch = self.batch, Batch()
        return batch

    def hear(self, *messages: Msg, pinged: int = 0) -> list[Any]:
        """What is sent when these come in."""
        for message in messages:
            self.inbox.take_in(self.now, message, pinged)
        return self.take().sends

    def compare(self, answer: Pong, pinged: int = 1) -> list[Any]:
        self.inbox.compare(answer.k, answer, pinged)
        return self.take().sends

    def waiting(self) -> list[str]:
        return [x.msg.id for x in self.inbox.waiting()]

    def offer(self, *names: str) -> list[Letter]:
        letters = [x for x in self.inbox.waiting() if not names or x.msg.id in names]
        return self.inbox.offer(self.now, letters, "hook")

    def show(self, *names: str, proof: str = "seen") -> list[Any]:
        self.offer(*names)
        self.inbox.shown(self.now, [f"h/0001/{name}" for name in names], proof)
        return self.take().sends


def test_a_chain_is_taken_in_order() -> None:
    rig = Rig()
    assert rig.hear(msg(1, 0), msg(2, 1), msg(5, 2)) == []
    assert rig.waiting() == ["m1", "m2", "m5"]
    assert rig.inbox.waiting()[0].key == "h/0001/m1"


def test_a_gap_asks_once_and_waits_for_a_new_chain() -> None:
    rig = Rig()
    rig.hear(msg(1, 0))
    assert rig.hear(msg(3, 2), msg(4, 3), pinged=6) == [Ack([], resync=True)]
    assert rig.waiting() == [], "what it has not begun to show comes again"
    assert rig.hear(msg(5, 1)) == [], "not even what would fit"
    assert rig.hear(msg(6, 0, "m1"), msg(7, 6, "m2"), msg(8, 7, "m3")) == []
    assert rig.waiting() == ["m1", "m2", "m3"]


def test_a_resync_that_was_lost_is_asked_again() -> None:
    rig = Rig()
    rig.hear(msg(1, 0))
    rig.hear(msg(3, 2), pinged=6)
    assert rig.compare(pong(1, 2, 3, k=6), 7) == [], "that PING was sent before"
    assert rig.compare(pong(1, 2, 3, k=7), 7) == [Ack([], resync=True)]
    assert rig.compare(pong(k=8), 8) == [], "nothing is held: nothing is missing"
    assert rig.hear(msg(4, 0)) == [] and rig.waiting() == ["m4"]


def test_shown_is_acknowledged_by_number() -> None:
    rig = Rig()
    rig.hear(msg(1, 0), msg(2, 1), msg(3, 2))
    assert rig.show("m1", "m3") == [Ack([[1, 1], [3, 3]], "seen")]
    assert rig.waiting() == ["m2"]
    assert rig.show("m2", proof="other") == [Ack([[2, 2]], "other")]


def test_the_ledger_is_written_before_and_after() -> None:
    rig = Rig()
    rig.hear(msg(1, 0))
    (letter,) = rig.offer()
    assert rig.take().writes == [PutShown("h/0001/m1", rig.book.ledger["h/0001/m1"])]
    assert rig.book.ledger["h/0001/m1"] == Shown("offering", "hook", at=1000)
    assert rig.offer() == [] and rig.inbox.offer(1000, [letter], "other") == [], "another path has it"
    rig.inbox.shown(1001, ["h/0001/m1", "h/0001/unknown"], "p" * 100)
    assert rig.book.ledger["h/0001/m1"] == Shown("shown", "hook", "p" * 64, 1001)
    assert rig.take().writes == [PutShown("h/0001/m1", rig.book.ledger["h/0001/m1"])]
    assert rig.inbox.offer(1002, [letter], "other") == []
    rig.inbox.shown(1003, ["h/0001/m1"], "again")
    assert rig.take() == Batch()


def test_what_was_shown_is_acknowledged_at_once() -> None:
    rig = Rig()
    rig.book.ledger["h/0001/m1"] = Shown("shown", "hook", "seen", 5)
    assert rig.hear(msg(7, 0, "m1")) == [Ack([[7, 7]], "seen")] and rig.waiting() == []


def test_two_hosts_may_use_one_id() -> None:
    rig = Rig()
    rig.book.ledger["other/m1"] = Shown("shown", "hook", "seen", 5)
    assert rig.hear(msg(1, 0)) == [] and rig.waiting() == ["m1"]


def test_what_may_have_been_seen_is_marked() -> None:
    rig = Rig()
    rig.book.ledger["h/0001/m1"] = Shown("offering", "hook")
    rig.hear(msg(1, 0), msg(2, 1, again=True), msg(3, 2))
    assert [x.repeat for x in rig.inbox.waiting()] == [True, True, False]
    assert [x.repeat for x in rig.offer()] == [True, True, False]


def test_unshown_for_certain_is_as_if_never_offered() -> None:
    rig = Rig()
    rig.hear(msg(1, 0), msg(2, 1))
    rig.offer("m1")
    rig.take()
    rig.inbox.unshown(["h/0001/m1", "h/0001/unknown"], certain=True)
    batch = rig.take()
    assert batch.writes == [DropShown("h/0001/m1")] and batch.news == [Mail(0)] and "h/0001/m1" not in rig.book.ledger
    assert rig.waiting() == ["m1", "m2"], "in its old place"
    assert [x.repeat for x in rig.inbox.waiting()] == [False, False]
    rig.inbox.unshown(["h/0001/unknown"], certain=True)
    assert rig.take() == Batch()


def test_what_several_paths_give_back_is_in_order() -> None:
    rig = Rig()
    rig.hear(*(msg(n, n - 1) for n in range(1, 5)))
    rig.offer("m1")
    rig.offer("m2", "m3")
    rig.inbox.unshown(["h/0001/m1"], certain=True)
    rig.inbox.unshown(["h/0001/m2", "h/0001/m3"], certain=True)
    assert rig.waiting() == ["m1", "m2", "m3", "m4"]


def test_unshown_perhaps_is_a_possible_repeat() -> None:
    rig = Rig()
    rig.hear(msg(1, 0))
    rig.offer()
    rig.inbox.unshown(["h/0001/m1"], certain=False)
    assert [x.repeat for x in rig.inbox.waiting()] == [True] and "h/0001/m1" in rig.book.ledger
    rig.offer()
    rig.inbox.unshown(["h/0001/m1"], certain=True)
    assert [x.repeat for x in rig.inbox.waiting()] == [True], "a doubt of old stays"
    assert "h/0001/m1" in rig.book.ledger


def test_a_mark_for_what_this_process_did_itself() -> None:
    """It came unmarked first, so nobody had it before, and what was done with it since is known here."""
    rig = Rig()
    rig.inbox.connected(("box", 4))
    rig.hear(msg(1, 0), msg(2, 1, again=True))
    rig.offer("m1")
    rig.inbox.unshown(["h/0001/m1"], certain=True)
    rig.inbox.connected(("box", 4))
    rig.hear(msg(1, 0, again=True), msg(2, 1, again=True))
    assert [x.repeat for x in rig.inbox.waiting()] == [False, True]
    later = Inbox(rig.book, lambda: rig.batch)
    later.inherit(rig.inbox)
    later.connected(("box", 4))
    later.take_in(rig.now, msg(1, 0, again=True), 0)
    assert [x.repeat for x in later.waiting()] == [False], "the disk refused a batch, the process is the same"


@pytest.mark.parametrize("term", [("box", 5), ("other", 4), None])
def test_a_mark_after_somebody_else_may_have_held_it(term: tuple[str, int] | None) -> None:
    rig = Rig()
    rig.inbox.connected(("box", 4))
    rig.hear(msg(1, 0))
    rig.inbox.connected(term)
    rig.inbox.connected(term or ("box", 4))
    rig.hear(msg(1, 0, again=True))
    assert [x.repeat for x in rig.inbox.waiting()] == [True]


def test_a_goodbye_tells_what_was_begun() -> None:
    rig = Rig()
    rig.hear(*(msg(n, n - 1) for n in range(1, 6)))
    rig.offer("m2")
    rig.show("m4")
    rig.take()
    assert rig.inbox.leave(7) == [[2, 2], [4, 4]], "whether the ACK arrived is not known"
    assert rig.waiting() == [] and rig.inbox.offer(1000, [Letter(msg(5, 4), 0)], "hook") == []
    assert rig.hear(msg(6, 5)) == [] and rig.waiting() == [], "the next process has it"
    assert rig.compare(pong(2, 3, k=7), 8) == []
    assert rig.compare(pong(2, 3, k=8), 8) == [Ack([], resync=True)], "the goodbye was lost"
    assert rig.hear(msg(7, 0, "m3")) == [] and rig.waiting() == ["m3"]


def test_a_goodbye_that_cannot_name_what_was_begun() -> None:
    rig = Rig()
    rig.hear(msg(1, 0))
    rig.offer("m1")
    rig.inbox.connected()
    assert rig.inbox.leave(0) is None


def test_a_new_connection() -> None:
    rig = Rig()
    rig.hear(msg(1, 0), msg(2, 1), msg(3, 2))
    rig.offer("m1")
    rig.show("m2")
    rig.inbox.connected()
    assert rig.waiting() == [] and rig.take().sends == []
    assert ("injected", "seen", 1000, "h/0001/m2") in rig.inbox.moves, "whether its ACK arrived is not known"
    rig.inbox.connected()
    assert [m[3] for m in rig.inbox.moves if m[0] == "injected"] == ["h/0001/m2"], "said once"
    assert rig.hear(msg(1, 0), msg(2, 1), msg(3, 2)) == [Ack([[2, 2]], "seen")]
    assert rig.waiting() == ["m3"], "what is being shown stays being shown"
    rig.inbox.shown(1000, ["h/0001/m1"], "late")
    assert rig.take().sends == [Ack([[1, 1]], "late")]


def test_shown_without_a_connection_is_a_receipt() -> None:
    rig = Rig()
    rig.hear(msg(1, 0))
    rig.offer()
    rig.inbox.connected()
    rig.inbox.shown(1000, ["h/0001/m1"], "seen")
    assert rig.take().sends == []
    assert rig.inbox.moves == [("offered", "hook", 1000, "h/0001/m1"), ("injected", "seen", 1000, "h/0001/m1")]
    rig.inbox.reported(["h/0001/m1", "h/0001/unknown"])
    assert rig.book.ledger["h/0001/m1"].told
    rig.inbox.moves.clear()
    rig.inbox.connected()
    assert rig.inbox.moves == []


# -- the barrier ---------------------------------------------------------------------------------------------------


def test_a_lost_ack() -> None:
    rig = Rig()
    rig.hear(msg(1, 0), msg(2, 1))
    rig.show("m1")
    assert rig.compare(pong(1, 2)) == [Ack([[1, 1]], "seen")]
    assert not rig.book.ledger["h/0001/m1"].told
    assert rig.compare(pong(2, k=2)) == [] and rig.book.ledger["h/0001/m1"].told
    assert rig.inbox.unconfirmed == 1


def test_a_lost_message() -> None:
    rig = Rig()
    rig.hear(msg(1, 0))
    assert rig.compare(pong(1, 2)) == [Ack([], resync=True)]


def test_settled_elsewhere() -> None:
    rig = Rig()
    rig.hear(msg(1, 0), msg(2, 1), msg(3, 2))
    rig.offer("m3")
    assert rig.compare(pong(2)) == []
    assert rig.waiting() == ["m2"], "m1 was settled by another"
    rig.inbox.shown(1000, ["h/0001/m3"], "seen")
    assert rig.inbox.moves[-1] == ("injected", "seen", 1000, "h/0001/m3")


def test_more_beyond_the_window() -> None:
    rig = Rig()
    rig.inbox.compare(0, pong(k=0, more=4), 0)
    assert rig.take().news == [Mail(4)] and rig.inbox.more == 4
    rig.inbox.compare(0, pong(k=0, more=4), 0)
    rig.inbox.compare(0, pong(k=0, more=0), 0)
    assert rig.take().news == [] and rig.inbox.more == 0


def test_a_pong_does_not_confirm_what_is_still_owed() -> None:
    rig = Rig()
    rig.hear(msg(1, 0))
    rig.offer()
    rig.inbox.shown(1000, ["h/0001/m1"], "seen")
    rig.inbox.compare(1, pong(), 1)
    assert not rig.book.ledger["h/0001/m1"].told


# -- time ----------------------------------------------------------------------------------------------------------


def test_its_time_runs_out_unshown() -> None:
    rig = Rig()
    rig.hear(msg(1, 0, ttl=500), msg(2, 1))
    assert rig.inbox.next_expiry() == 1500
    rig.inbox.expire(1499)
    assert rig.waiting() == ["m1", "m2"]
    rig.inbox.expire(1500)
    assert rig.waiting() == ["m2"] and rig.take().sends == [Ack([[1, 1]], "", "expired")]
    assert rig.inbox.next_expiry() is None
    assert rig.compare(pong(1, 2)) == [Ack([[1, 1]], "", "expired")], "that ACK was lost"
    assert rig.compare(pong(2)) == []


def test_what_expired_comes_again_after_a_cut() -> None:
    rig = Rig()
    rig.hear(msg(1, 0, ttl=500))
    rig.inbox.connected()
    rig.hear(msg(1, 0, ttl=1))
    rig.inbox.expire(1001)
    rig.inbox.connected()
    assert rig.hear(msg(1, 0, ttl=1)) == [Ack([[1, 1]], "", "expired")]


def test_what_has_time_again_is_another_copy() -> None:
    rig = Rig()
    rig.hear(msg(1, 0, ttl=500))
    rig.inbox.expire(1500)
    rig.inbox.connected()
    assert rig.hear(msg(1, 0, ttl=500)) == [] and rig.waiting() == ["m1"]


def test_offered_too_late() -> None:
    rig = Rig()
    rig.hear(msg(1, 0, ttl=500))
    (letter,) = rig.inbox.waiting()
    rig.now = 1500
    assert rig.offer() == []
    assert rig.take().sends == [Ack([[1, 1]], "", "expired")]
    assert rig.inbox.offer(1600, [letter], "hook") == [], "it stays so"
    rig.inbox.connected()
    rig.inbox.expire(9999)


def test_in_hand_nothing_expires() -> None:
    rig = Rig()
    rig.hear(msg(1, 0, ttl=500))
    rig.offer()
    rig.inbox.expire(9999)
    rig.inbox.shown(9999, ["h/0001/m1"], "seen")
    assert rig.take().sends == [Ack([[1, 1]], "seen")]


def test_a_message_read_by_query_may_be_offered() -> None:
    """Beyond the window a message is got by query: it has no number here, so a receipt tells that it was shown."""
    rig = Rig()
    assert [x.key for x in rig.inbox.offer(1000, [Letter(msg(0, 0, "far"), 0)], "tool")] == ["h/0001/far"]
    rig.inbox.shown(1000, ["h/0001/far"], "seen")
    assert [(m[0], m[3]) for m in rig.inbox.moves] == [("offered", "h/0001/far"), ("injected", "h/0001/far")]


@pytest.mark.parametrize("certain", [True, False])
def test_unshown_after_a_new_connection(certain: bool) -> None:
    rig = Rig()
    rig.hear(msg(1, 0))
    rig.offer()
    rig.inbox.connected()
    rig.inbox.unshown(["h/0001/m1"], certain)
    rig.hear(msg(1, 0))
    assert rig.waiting() == ["m1"]


# -- a former life -------------------------------------------------------------------------------------------------


def test_proof_of_a_former_life() -> None:
    rig = Rig()
    rig.book.ledger.update(
        {
            "h/0001/m1": Shown("offering", "hook"),
            "h/0001/m2": Shown("offering", "hook"),
            "h/0001/m3": Shown("shown", "x"),
        }
    )
    rig.hear(msg(1, 0), msg(2, 1))
    rig.offer("m2")
    rig.inbox.proven(2000, ["h/0001/m1", "h/0001/m2", "h/0001/m3", "h/0001/unknown"], "f" * 99)
    assert rig.book.ledger["h/0001/m1"] == Shown("shown", "hook", "f" * 64, 2000)
    assert rig.take().sends == [Ack([[1, 1]], "f" * 64)], "m2 is in a path's hands, m3 was proven before"
    assert rig.waiting() == []


def test_proof_before_it_comes_again_is_a_receipt() -> None:
    rig = Rig()
    rig.book.ledger["h/0001/m1"] = Shown("offering", "hook")
    rig.inbox.proven(2000, ["h/0001/m1"], "found")
    assert rig.inbox.moves == [("injected", "found", 2000, "h/0001/m1")]
    assert rig.hear(msg(1, 0)) == [Ack([[1, 1]], "found")]


def test_proof_of_what_was_said_to_have_expired() -> None:
    rig = Rig()
    rig.book.ledger["h/0001/m1"] = Shown("offering", "hook")
    rig.hear(msg(1, 0, ttl=500))
    rig.inbox.expire(1500)
    assert rig.take().sends == [Ack([[1, 1]], "", "expired")]
    rig.inbox.proven(2000, ["h/0001/m1"], "found")
    assert rig.take().sends == [] and rig.inbox.moves == [("injected", "found", 2000, "h/0001/m1")]
    rig.compare(pong())
    assert not rig.book.ledger["h/0001/m1"].told, "the broker believes that it expired"
    rig.inbox.reported(["h/0001/m1"])
    assert rig.book.ledger["h/0001/m1"].told


def test_what_is_in_hand_when_the_book_is_read_again() -> None:
    rig = Rig()
    rig.hear(msg(1, 0), msg(2, 1))
    letters = rig.offer("m1")
    other = Inbox(rig.book, lambda: rig.batch)
    other.hold([*letters, Letter(msg(9, 0), 0)])
    assert other.offer(1000, letters, "hook") == [], "it is in hand"
    other.shown(1000, ["h/0001/m1"], "seen")
    assert rig.book.ledger["h/0001/m1"].state == "shown" and "h/0001/m9" not in rig.book.ledger


def test_a_message_with_host_and_id_of_one_that_was_offered_is_a_possible_repeat() -> None:
    """A sender that lost its mailbox sends again from another; both may wait here before either is shown."""
    rig = Rig()
    rig.hear(msg(1, 0, "same"), replace(msg(2, 1, "same"), fid="0002"))
    assert [x.repeat for x in rig.inbox.waiting()] == [False, False]
    first, second = rig.inbox.waiting()
    assert [x.repeat for x in rig.inbox.offer(1000, [first], "hook")] == [False]
    assert [x.repeat for x in rig.inbox.offer(1000, [second], "hook")] == [True]


def test_a_report_that_answers_no_ping_settles_and_asks_nothing() -> None:
    """It may have crossed an ACK, which would look lost."""
    rig = Rig()
    rig.hear(msg(1, 0), msg(2, 1))
    assert rig.show("m1") == [Ack([[1, 1]], "seen")]
    assert rig.compare(pong(1, 2, 3, k=0, more=4)) == [] and rig.inbox.more == 4
    assert not rig.book.ledger["h/0001/m1"].told and rig.waiting() == ["m2"]
    assert rig.compare(pong(1, 2, k=1)) == [Ack([[1, 1]], "seen")]


def test_what_a_former_life_handed_over_stays_on_its_way() -> None:
    rig = Rig()
    for name in ("m1", "m2", "m3", "m4"):
        rig.book.ledger[f"h/0001/{name}"] = Shown("offering", "native cafe")
    rig.hear(msg(1, 0))
    rig.inbox.resume([f"h/0001/{name}" for name in ("m1", "m2", "m3", "m9")])
    rig.hear(msg(2, 1))
    assert rig.inbox.waiting() == [] and rig.offer("m1", "m2") == []
    assert rig.inbox.lend(1000, ["h/0001/m1", "h/0001/m3"], "printed") == {}, "the client has them"
    rig.inbox.shown(2000, ["h/0001/m2", "h/0001/m3"], "transcript")  # m3 has not come in yet
    assert rig.book.ledger["h/0001/m3"].state == "shown" and rig.inbox.moves[-1][3] == "h/0001/m3"
    rig.inbox.unshown(["h/0001/m1"], certain=False)
    rig.hear(msg(3, 2), msg(4, 3))
    assert [(x.msg.id, x.repeat) for x in rig.inbox.waiting()] == [("m1", True), ("m4", True)]


def test_what_is_lent_is_on_the_disk_before_it_is_printed() -> None:
    rig = Rig()
    rig.book.ledger["h/0001/seen"] = Shown("shown", "hook")
    rig.book.ledger["h/0001/begun"] = Shown("offering", "hook")
    rig.hear(msg(1, 0))
    keys = [f"h/0001/{name}" for name in ("m1", "beyond", "seen", "begun")]
    lent = rig.inbox.lend(2000, keys, "printed")
    assert lent == {"h/0001/m1": False, "h/0001/beyond": None, "h/0001/begun": True}
    assert [w.ident for w in rig.take().writes if isinstance(w, PutShown)] == ["h/0001/m1", "h/0001/beyond"]
    assert rig.inbox.lend(2000, keys, "printed") == {}, "they are in hand"
    twin = replace(msg(2, 1, "beyond"), fid="0002")
    rig.hear(twin)
    assert rig.inbox.waiting()[0].repeat, "it may be the same message, sent again"
    rig.inbox.shown(3000, ["h/0001/m1", "h/0001/beyond"], "printed")
    rig.hear(msg(3, 2, "beyond"))
    assert [x.msg.fid for x in rig.inbox.waiting()] == ["0002"]


def test_the_ledger_in_memory_has_an_end() -> None:
    rig = Rig()
    for i in range(LEDGER_KEPT + LEDGER_SLACK):
        rig.book.ledger[f"h/0001/old{i}"] = Shown("shown", "hook", told=i != 1)
    rig.hear(msg(1, 0))
    rig.offer()
    assert len(rig.book.ledger) == LEDGER_KEPT and "h/0001/m1" in rig.book.ledger
    assert "h/0001/old0" not in rig.book.ledger and "h/0001/old1" in rig.book.ledger, (
        "what the broker was not told stays"
    )


@pytest.mark.parametrize(
    ("kind", "quiet", "wakes"), [("task", False, True), ("task", True, False), ("note", False, False)]
)
def test_only_a_task_that_is_not_quieted_may_wake(kind: str, quiet: bool, wakes: bool) -> None:
    assert Letter(Msg(1, 0, "m", "web", "1", "h", "api", kind, 1, quiet=quiet), 0).wakes is wakes


def test_one_id_of_two_mailboxes_of_one_host_is_two_messages() -> None:
    rig = Rig()
    rig.hear(msg(1, 0), replace(msg(2, 1, "m1"), fid="0002"))
    first, second = rig.inbox.waiting()
    rig.inbox.offer(rig.now, [first], "hook")
    rig.inbox.shown(rig.now, [first.key], "seen")
    assert rig.take().sends == [Ack([[1, 1]], "seen")]
    assert rig.inbox.waiting() == [second], "the other one was not shown"


def test_a_message_of_the_same_host_and_id_as_another_in_the_ledger_may_be_a_repeat() -> None:
    """A sender that lost its mailbox with the broker's database sends again from another; nobody knows which it is."""
    book = Book("ob")
    book.ledger |= {"h/0001/m1": Shown("shown", "hook", "seen", told=True), "h/m2": Shown("shown", "hook", "seen")}
    rig = Rig()
    rig.book = book
    rig.inbox = Inbox(book, lambda: rig.batch)
    assert rig.hear(msg(1, 0), msg(2, 1), replace(msg(3, 2, "m1"), fid="0002")) == [Ack([[1, 1]], "seen")]
    assert [(x.key, x.repeat) for x in rig.inbox.waiting()] == [("h/0001/m2", True), ("h/0002/m1", True)]


def test_how_operations_name_what_the_ledger_has() -> None:
    assert named("h/0001/m1") == ("h/m1", "0001")
    assert named("h/m1") == ("h/m1", ""), "of an earlier talkbus"


def test_a_goodbye_that_cannot_name_all_says_so() -> None:
    """Numbers with gaps, more than one BYE holds: the broker is to take everything for begun."""
    rig = Rig()
    for n in range(1, 2 * wire.WINDOW + 3):
        rig.inbox.take_in(rig.now, msg(n, n - 1, ttl=0 if n % 2 else 5), 0)
        if n % 2:
            rig.inbox.offer(rig.now, rig.inbox.waiting(), "native")
            rig.inbox.shown(rig.now, list(rig.inbox._offering), "transcript")
        else:
            rig.now += 6
            rig.inbox.expire(rig.now)
    assert rig.inbox.leave(0) is None
