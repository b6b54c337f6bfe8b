"""The window of a mailbox: numbers, chains, acknowledgements, the barrier, and what time does to mail."""

from __future__ import annotations

from typing import Any

import pytest

from bus.core import Settings
from bus.wire import Msg, Pong, Welcome
from tests.pair import START, Direct

A, B, C, D = b"a", b"b", b"c", b"d"


def bus(mails: int = 0, **args: Any) -> Direct:
    """a sends, b holds web; so many messages have been sent."""
    rig = Direct()
    rig.hello(A, "api")
    rig.hello(B, "web")
    for _ in range(mails):
        rig.req(A, "send", {"to": ["web"], **args}, b"x")
    return rig


def chain(said: list[Any]) -> list[tuple[int, int]]:
    return [(m.n, m.prev) for m in said if isinstance(m, Msg)]


def waiting(rig: Direct) -> int:
    return sum(len(m.pending) for m in rig.broker.world.mailboxes.values())


def test_numbers_rise_and_prev_links_them() -> None:
    rig = bus(2)
    assert chain(rig.sent[B]) == [(2, 1)]
    rig.say(B, {"c": "ACK", "ranges": [[1, 1]]})
    rig.req(A, "send", {"to": ["web"]}, b"x")
    assert chain(rig.sent[B]) == [(3, 2)]


def test_a_resync_pushes_all_unsettled_under_new_numbers() -> None:
    rig = bus(3)
    rig.say(B, {"c": "ACK", "ranges": [[2, 2]]})
    assert chain(rig.say(B, {"c": "ACK", "ranges": [], "resync": True})) == [(4, 0), (5, 4)]
    assert rig.broker.core.counters["resync"] == 1
    rig.say(B, {"c": "ACK", "ranges": [[1, 3]]})
    assert waiting(rig) == 2, "numbers of the former chain mean nothing any more"
    rig.say(B, {"c": "ACK", "ranges": [[4, 5]]})
    assert waiting(rig) == 0


@pytest.mark.parametrize("ranges", [[[2, 2]], [[7, 9]], [[0, 0]], []])
def test_numbers_that_were_not_pushed_are_ignored(ranges: list[list[int]]) -> None:
    rig = bus(1)
    rig.say(B, {"c": "ACK", "ranges": ranges})
    assert waiting(rig) == 1 and rig.topics() == []


def test_settled_once() -> None:
    rig = bus(1)
    rig.say(B, {"c": "ACK", "ranges": [[1, 1]], "proof": "seen"})
    assert rig.topics() == ["msg.injected"] and rig.events[0].fields["proof"] == "seen"
    rig.say(B, {"c": "ACK", "ranges": [[1, 1]]})
    assert rig.topics() == []


def test_an_ack_that_crosses_a_change_of_mailbox_settles_nothing() -> None:
    rig = bus(1)
    rig.hello(C, "db")
    rig.req(A, "send", {"to": ["db"]}, b"of db")
    rig.say(C, {"c": "BYE", "leave": True})
    rep = rig.req(B, "take", {"name": "db"})
    assert rep.code == 200
    (welcome,) = [c for c in rig.sent[B] if isinstance(c, Welcome)]
    (msg,) = [c for c in rig.sent[B] if isinstance(c, Msg)]
    assert (welcome.name, msg.n, msg.prev, msg.body) == ("db", 2, 0, b"of db")
    rig.say(B, {"c": "ACK", "ranges": [[1, 1]]})
    assert waiting(rig) == 2, "1 was pushed of another mailbox"


def test_who_does_not_hold_settles_nothing() -> None:
    rig = bus(1)
    rig.hello(C, "web", mode="send")
    assert rig.say(C, {"c": "ACK", "ranges": [[1, 1]]}) == []
    assert waiting(rig) == 1 and rig.broker.core.counters["ack ignored"] == 1


def test_the_window() -> None:
    rig = bus(64)
    assert chain(rig.sent[B]) == [(64, 63)]
    rig.req(A, "send", {"to": ["web"]}, b"x")
    assert rig.sent[B] == [Pong(0, 0, [[1, 64]], 1, START)], "a full window is told"
    assert chain(rig.say(B, {"c": "ACK", "ranges": [[1, 1], [3, 3]]})) == [(65, 64)]
    assert rig.say(B, {"c": "PING", "k": 9}) == [Pong(9, 0, [[2, 2], [4, 65]], 0, START)]


def test_a_new_connection_begins_a_chain() -> None:
    rig = bus(3)
    rig.req(B, "receipt", {"moved": [["offered", "hook", 0, ["ab" + "z" * 14]]]})
    (welcome, *mail) = rig.hello(C, "web", inst="b")
    assert isinstance(welcome, Welcome) and chain(mail) == [(1, 0), (2, 1), (3, 2)]
    assert [m.again for m in mail] == [True, False, False], "an earlier holder may have seen it"


def test_what_a_restart_pushes() -> None:
    rig = bus(2)
    rig.req(B, "receipt", {"moved": [["offered", "hook", 0, ["ac" + "z" * 14]]]})
    rig.restart()
    (_, *mail) = rig.hello(C, "web", inst="b")
    assert [(m.n, m.prev, m.again) for m in mail] == [(1, 0, False), (2, 1, True)]


# -- what wakes nobody leaves room ---------------------------------------------------------------------------------


def kinds(said: list[Any]) -> str:
    return "".join(m.kind[0] for m in said if isinstance(m, Msg))


def test_a_task_goes_past_notes_that_wait() -> None:
    rig = bus(60, kind="note")
    assert len(rig.say(B, {"c": "ACK", "ranges": [], "resync": True})) == 49, "48 notes, and a PONG"
    rig.req(A, "send", {"to": ["web"]}, b"x")
    msg, told = rig.sent[B]
    assert (msg.kind, told.k, told.more) == ("task", 0, 12), "what waits beyond the window is told anew"
    for _ in range(20):
        rig.req(A, "send", {"to": ["web"]}, b"x")
    assert rig.say(B, {"c": "PING", "k": 9})[0].more == 12 + 5, "a window is a window"
    first = msg.n - 48
    said = rig.say(B, {"c": "ACK", "ranges": [[first, first + 1]]})
    assert kinds(said) == "nn", "the oldest first, where both may be pushed"
    assert kinds(rig.say(B, {"c": "ACK", "ranges": [[msg.n, msg.n + 1]]})) == "tt", "no room for more notes"


def test_quiet_tasks_are_as_notes() -> None:
    rig = Direct(Settings(wakes=1))
    for route, name in ((A, "api"), (B, "web"), (C, "loud")):
        rig.hello(route, name)
    rig.req(C, "send", {"to": ["web"]}, b"x")
    rig.pass_time(11_000)
    rig.hello(C, "loud", inst="c")
    for _ in range(70):
        rig.req(C, "send", {"to": ["web"]}, b"x")
    rig.who[D] = rig.who[A]
    rig.hello(B, "web")
    rig.hello(D, "person", mode="send", meta={"kind": "human"})
    rig.req(D, "send", {"to": ["web"]}, b"from the owner")
    (msg, *_) = rig.sent[B]
    assert (msg.quiet, msg.body) == (False, b"from the owner")


def test_what_is_released_goes_past_notes_as_well() -> None:
    rig = bus(60, kind="note")
    rig.hello(D, "person", mode="send", meta={"kind": "human"})
    assert rig.req(D, "pause", {"on": True}).code == 200
    rig.req(A, "send", {"to": ["web"]}, b"held")
    assert B not in rig.sent
    assert rig.req(D, "pause", {"on": False}).code == 200
    assert [m.body for m in rig.sent[B] if isinstance(m, Msg)] == [b"held"]


# -- again ---------------------------------------------------------------------------------------------------------


def again(said: list[Any]) -> list[bool]:
    return [m.again for m in said if isinstance(m, Msg)]


def alive(mails: int = 0, **args: Any) -> Direct:
    """As bus(), and b tells which of its lives it is."""
    rig = Direct()
    rig.hello(A, "api")
    rig.hello(B, "web", life="one")
    for _ in range(mails):
        rig.req(A, "send", {"to": ["web"], **args}, b"x")
    return rig


@pytest.mark.parametrize("restart", [False, True])
def test_what_was_pushed_to_an_earlier_life_is_marked(restart: bool) -> None:
    rig = alive(2)
    if restart:
        rig.restart()
    assert again(rig.hello(C, "web", inst="b", life="one")) == [False, False], "the same process knows what it did"
    if restart:
        rig.restart()
    assert again(rig.hello(D, "web", inst="b", life="two")) == [True, True]
    rig.hello(A + A, "api", inst="a", ob=A.hex().rjust(32, "0"))
    rig.outboxes[A + A] = rig.outboxes[A]
    rig.req(A + A, "send", {"to": ["web"]}, b"x")
    assert again(rig.sent[D]) == [False]
    assert again(rig.hello(C, "web", inst="b", life="two")) == [True, True, False]


def test_what_was_never_pushed_is_not_marked() -> None:
    rig = alive(60, kind="note")
    for _ in range(3):
        rig.req(A, "send", {"to": ["web"]}, b"x")
    told = rig.hello(C, "web", inst="b", life="two")
    assert (kinds(told), set(again(told))) == ("n" * 48 + "ttt", {True})
    said = rig.say(C, {"c": "ACK", "ranges": [[1, 48]]})
    assert (kinds(said), again(said)) == ("n" * 12, [False] * 12), "they lay beyond the window"


def test_an_older_client_has_the_life_of_its_instance() -> None:
    rig = bus(1)
    assert again(rig.hello(C, "web", inst="b")) == [False]
    rig.say(C, {"c": "BYE", "leave": True})
    assert again(rig.hello(D, "web")) == [True]


def test_a_goodbye_that_tells_what_was_begun() -> None:
    rig = alive(3)
    rig.say(B, {"c": "BYE", "leave": True, "begun": [[2, 2]]})
    assert rig.topics() == ["msg.offered", "peer.gone"]
    assert again(rig.hello(C, "web", life="two")) == [False, True, False]


def test_a_goodbye_that_does_not_tell_forgets_nothing() -> None:
    rig = alive(2)
    rig.say(B, {"c": "BYE", "leave": True})
    assert again(rig.hello(C, "web", life="two")) == [True, True]
    rig.say(C, {"c": "BYE", "leave": True, "begun": []})
    assert again(rig.hello(D, "web", life="three")) == [True, True], "what the first may have shown stays marked"


# -- time ----------------------------------------------------------------------------------------------------------


def test_nobody_holds_it_and_its_time_runs_out() -> None:
    rig = bus()
    rig.say(B, {"c": "BYE", "leave": True})
    rig.req(A, "send", {"to": ["web"], "ttl": 500}, b"x")
    rig.pass_time(499)
    assert waiting(rig) == 1
    rig.pass_time(1)
    assert waiting(rig) == 0 and rig.topics() == ["msg.expired"]


def test_in_a_living_hand_nothing_expires() -> None:
    rig = bus(1, ttl=500)
    rig.pass_time(2_000)
    assert waiting(rig) == 1
    rig.say(B, {"c": "ACK", "ranges": [[1, 1]], "as": "expired"})
    assert waiting(rig) == 0 and rig.topics() == ["msg.expired"], "its session answers for it"


def test_after_the_lease_it_expires() -> None:
    rig = bus(1, ttl=500)
    rig.pass_time(600)
    rig.broker.lost(rig.now, B)
    rig.turn()
    rig.pass_time(14_999)
    assert waiting(rig) == 1, "who comes back within the lease answers for it"
    rig.pass_time(1)
    assert waiting(rig) == 0


def test_who_comes_back_gets_it_with_next_to_no_time() -> None:
    rig = bus(1, ttl=500)
    rig.pass_time(600)
    rig.broker.lost(rig.now, B)
    (_, msg) = rig.hello(C, "web", inst="b")
    assert msg.ttl == 1


def test_beyond_the_window_time_goes_on() -> None:
    rig = bus(64)
    rig.req(A, "send", {"to": ["web"], "ttl": 500}, b"x")
    rig.pass_time(500)
    assert waiting(rig) == 64, "it was in nobody's hand"
    assert chain(rig.say(B, {"c": "ACK", "ranges": [[1, 1]]})) == []


def test_the_time_that_is_left() -> None:
    rig = bus()
    rig.say(B, {"c": "BYE", "leave": True})
    rig.req(A, "send", {"to": ["web"], "ttl": 500}, b"x")
    rig.pass_time(100)
    (_, msg) = rig.hello(C, "web")
    assert (msg.ttl, msg.ts) == (400, START)


def test_after_a_restart_time_waits_for_the_lease() -> None:
    rig = bus(1, ttl=500)
    rig.now += 600
    rig.restart()
    rig.pass_time(14_999)
    assert waiting(rig) == 1
    rig.pass_time(1)
    assert waiting(rig) == 0


def test_a_deadline_that_does_not_apply_any_more() -> None:
    rig = bus(1, ttl=500)
    rig.say(B, {"c": "ACK", "ranges": [[1, 1]]})
    rig.pass_time(1_000)
    assert rig.topics() == []
    assert rig.broker.deadline() is not None


def test_a_broker_without_anything_waits_for_nothing() -> None:
    assert Direct().broker.deadline() is None
