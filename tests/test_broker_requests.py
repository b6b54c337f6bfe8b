"""Numbered requests: once, the same answer for ever, in order, within the rate, and across a full disk."""

from __future__ import annotations

from typing import Any

import pytest

from bus import wire
from bus.core import Settings, Who
from bus.effects import Read, Recall
from bus.requests import answer_again, reply
from bus.wire import Err, Gone, Rep, Welcome
from bus.world import Saved
from tests.pair import START, Direct

A, B, C = b"a", b"b", b"c"
OB = "1" * 32


def opened(settings: Settings | None = None, **more: Any) -> Direct:
    rig = Direct(settings)
    rig.hello(A, "api", ob=OB, **more)
    return rig


def test_done_once_and_answered_the_same() -> None:
    rig = opened()
    first = rig.req(A, "send", {"to": ["api"]}, b"one")
    assert first.code == 200
    again = rig.req(A, "send", {"to": ["api"]}, b"one", q=1, id="abzzzzzzzzzzzzzz")
    assert again == first
    (mailbox,) = rig.broker.world.mailboxes.values()
    assert len(mailbox.pending) == 1
    assert rig.broker.world.outboxes[OB].high == 1


@pytest.mark.parametrize("change", ["op", "id", "args", "body"])
def test_another_request_under_the_same_number(change: str) -> None:
    rig = opened()
    told: dict[str, Any] = {"op": "send", "id": "a" * 16, "args": {"to": ["api"]}}
    assert rig.say(A, {"c": "REQ", "q": 1, "floor": 1} | told, b"one")[-1].code == 200
    other = {"op": "status", "id": "b" * 16, "args": {}}
    (err,) = rig.say(
        A, {"c": "REQ", "q": 1, "floor": 1} | told | {k: v for k, v in other.items() if k == change},
        b"two" if change == "body" else b"one",
    )  # fmt: skip
    assert isinstance(err, Err) and (err.code, err.of, err.ref) == (409, "REQ", 1)


def test_out_of_order() -> None:
    rig = opened()
    err = rig.req(A, "status", {}, q=3, floor=1)
    assert (err.code, err.ref, err.want) == (412, 3, 1)
    assert rig.req(A, "status", {}, q=0).code == 400


def test_the_number_before_must_be_seen_to_agree() -> None:
    rig = opened()
    for q in (1, 2, 3):
        assert rig.req(A, "status", {"summary": "original"}, q=q, floor=1).code == 200
    rig.hello(B, "copy", ob=OB)
    err = rig.req(B, "status", {"summary": "copy"}, q=4, floor=2)
    assert (err.code, err.want) == (412, 3)
    assert rig.req(B, "status", {"summary": "copy"}, q=3, floor=2).code == 409
    assert rig.req(B, "status", {"summary": "copy"}, q=4, floor=2).code == 412, "still not"
    assert rig.req(B, "status", {"summary": "copy"}, q=4, floor=4).code == 200, "it has the reply of number 3"
    assert rig.req(A, "status", {"summary": "original"}, q=5, floor=1).code == 412
    rig.hello(C, "again", ob=OB)
    assert rig.req(C, "status", {"summary": "copy"}, q=4, floor=4, id="be" + "z" * 14).code == 200
    assert rig.req(C, "status", {"summary": "copy"}, q=5, floor=4).code == 200, "it has sent number 4 itself"


def test_below_the_floor_the_journal_answers() -> None:
    rig = opened()
    first = rig.req(A, "status", {"summary": "one"}, q=1, floor=1)
    for q in (2, 3):
        rig.req(A, "status", {}, q=q, floor=q)
    box = rig.broker.world.outboxes[OB]
    assert (box.high, box.floor, list(box.saved)) == (3, 3, [3])
    recalls = rig.say(
        A, {"c": "REQ", "q": 1, "floor": 1, "op": "status", "id": "ab" + "z" * 14, "args": {"summary": "one"}}
    )
    (recall,) = recalls
    assert isinstance(recall, Recall)
    assert answer_again(1, rig.store.recall(recall.ob, recall.q), recall.digest) == first
    assert answer_again(1, rig.store.recall(recall.ob, recall.q), b"other").code == 409
    assert answer_again(9, rig.store.recall(recall.ob, 9), b"").code == 410


def test_a_floor_that_lies_keeps_the_last_reply() -> None:
    rig = opened()
    rig.req(A, "status", {}, q=1, floor=2**53)
    assert list(rig.broker.world.outboxes[OB].saved) == [1]
    rig.req(A, "status", {}, q=2, floor=1)
    assert list(rig.broker.world.outboxes[OB].saved) == [1, 2], "a floor never falls"


def test_unknown_operation_and_roles_settle() -> None:
    rig = opened()
    assert rig.req(A, "pool.make", {}).code == 422
    rig.who[B] = Who("key of beta", "beta", "member")
    rig.hello(B, "web")
    assert rig.req(B, "prune", {"before": 1}).code == 403
    assert rig.req(A, "prune", {"before": 1}).code == 200


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("send", {}),
        ("send", {"to": "api"}),
        ("send", {"to": ["api"], "ttl": -1}),
        ("send", {"to": ["api"], "new": 1}),
        ("rename", {"name": 5}),
        ("rename", {"name": "x" * 1025}),
        ("status", {"metadata": []}),
        ("state.set", {"key": "k", "ver": "1"}),
    ],
)
def test_arguments_are_checked(op: str, args: dict[str, Any]) -> None:
    rep = opened().req(A, op, args, b"1")
    assert rep.code == 422 and "argument" in rep.text


def test_a_large_reply_travels_in_the_body() -> None:
    packed = wire.pack([{"to": ["x" * 4000]}, "text"])
    rep = reply(7, 200, packed)
    assert (rep.q, rep.result, rep.body) == (7, {"large": True}, packed)
    huge = reply(7, 200, b"x" * (wire.BODY_MAX + 1))
    assert huge.result == {"large": True} and huge.body == b"" and huge.text
    rig = opened()
    told = rig.req(A, "send", {"to": [f"{'nobody' * 20}{i}" for i in range(16)]}, b"x")
    assert told.result == {"large": True}
    result, _ = wire.unpack(told.body, wire.BODY_MAX)
    assert [row["code"] for row in result["to"]] == [404] * 16
    assert answer_again(1, Saved(b"d", 404, told.body), b"d") == Rep(1, 404, {"large": True}, body=told.body)


def test_rate() -> None:
    rig = opened(Settings(rate=10, burst=3))
    assert [rig.req(A, "status", {}).code for _ in range(3)] == [200] * 3
    err = rig.req(A, "status", {})
    assert isinstance(err, Err) and (err.code, err.ref, err.retry) == (429, 4, 300)
    assert rig.req(A, "status", {}, q=3).code == 200, "what is done is answered whatever the rate"
    assert rig.req(A, "receipt", {"moved": []}).code == 200, "receipts are exempt"
    rig.pass_time(err.retry)
    assert [rig.req(A, "status", {}).code for _ in range(3)] == [200] * 3
    assert rig.req(A, "status", {}).code == 429
    assert opened(Settings(rate=0)).req(A, "status", {}).code == 200


def full(rig: Direct) -> dict[bytes, list[Any]]:
    """The batch in the making could not be written."""
    batch = rig.broker.take()
    rig.broker.undo(rig.now, batch, rig.store.load())
    return rig.turn()


def say(rig: Direct, route: bytes, head: dict[str, Any], body: bytes = b"") -> None:
    """A command, without the turn's end."""
    frames = [wire.SIGNATURE, wire.pack(head)] + ([body] if body else [])
    rig.broker.receive(rig.now, route, rig.who.setdefault(route, Who("key of alpha", "alpha")), frames)


def test_a_full_disk_undoes_the_batch() -> None:
    rig = opened()
    rig.hello(B, "web")
    rig.req(A, "send", {"to": ["web"]}, b"kept")
    say(rig, A, {"c": "REQ", "q": 2, "floor": 2, "op": "send", "id": "b" * 16, "args": {"to": ["web"]}}, b"lost")
    say(rig, A, {"c": "QRY", "r": 1, "what": "whoami"})
    say(rig, A, {"c": "QRY", "r": 2, "what": "why", "args": {"id": "b" * 16}})
    say(rig, A, {"c": "REQ", "q": 1, "floor": 1, "op": "x", "id": "b" * 16})
    say(rig, C, {"c": "HELLO", "mode": "hold", "inst": "c", "ob": "2" * 32, "name": "new"})
    sent = full(rig)
    errors = [(e.code, e.of, e.ref, e.retry) for e in sent[A] if isinstance(e, Err)]
    assert (503, "REQ", 2, 1000) in errors and (503, "QRY", 1, 1000) in errors and (503, "QRY", 2, 1000) in errors
    assert [(m.prev, m.body) for m in sent[B]] == [(0, b"kept")], "the chain starts anew"
    assert C not in sent and not rig.broker.knows(C)
    assert rig.topics() == ["bus.full"]
    assert rig.broker.world.outboxes[OB].high == 1 and "new" not in {
        m.name for m in rig.broker.world.mailboxes.values()
    }


def test_while_the_disk_is_full() -> None:
    rig = opened()
    rig.hello(B, "web", ob="2" * 32)
    rig.req(A, "send", {"to": ["web"]}, b"kept")
    rig.req(A, "status", {"busy": 700})
    rig.req(A, "state.set", {"key": "k", "ttl": 500}, b"1")
    n = next(iter(rig.broker.world.mailboxes[rig.broker.core.sessions[B].mailbox].pending))
    say(rig, A, {"c": "REQ", "q": 4, "floor": 4, "op": "status", "id": "b" * 16})
    full(rig)
    assert rig.req(A, "status", {}, q=4).code == 503
    assert rig.req(A, "state.set", {"key": "k", "ttl": 500}, b"1", q=3).code == 200, "what is done is answered"
    assert rig.hello(C, "more")[0].code == 503
    assert rig.say(C, {"c": "HELLO", "mode": "view", "inst": "v"})[0].name == ""
    assert rig.say(B, {"c": "ACK", "ranges": [[1, 9]]}) == [] and rig.broker.core.counters["ack ignored"] == 1
    assert rig.say(B, {"c": "PING", "k": 1})[0].open == [[2, 2]]
    assert rig.say(A, {"c": "QRY", "r": 1, "what": "stats"})[0].value["writable"] is False
    rig.pass_time(2_500)
    assert "k" in rig.broker.world.state, "nothing is written meanwhile"
    assert rig.say(B, {"c": "BYE", "leave": True})[0] == wire.Bye()
    assert rig.topics() == ["peer.lost"], "that it left cannot be written"
    rig.broker.resume()
    rig.pass_time(1_000)
    assert "k" not in rig.broker.world.state and {"state.delete", "peer.status"} <= set(rig.topics())
    assert rig.req(A, "status", {}, q=4).code == 200
    (welcome, message) = rig.hello(B, "web", ob="2" * 32)
    assert isinstance(welcome, Welcome) and message.body == b"kept" and n == 1


def test_a_takeover_that_could_not_be_written_did_not_happen() -> None:
    rig = opened()
    rig.hello(B, "b", take=0)
    say(rig, B, {"c": "REQ", "q": 1, "floor": 1, "op": "take", "id": "b" * 16, "args": {"name": "api", "term": 1}})
    batch = rig.broker.take()
    assert any(isinstance(getattr(s, "command", None), Gone) for s in batch.sends)
    rig.broker.undo(rig.now, batch, rig.store.load())
    rig.turn()
    assert rig.say(A, {"c": "PING", "k": 1})[0].k == 1, "the holder was not displaced"
    assert not rig.broker.knows(B), "who changed its name comes again"
    rig.broker.resume()
    assert rig.hello(B + b"2", "b", inst="b", term=1)[0].term == 1
    assert rig.req(A, "status", {}).code == 200


def test_long_parked_sessions_stay_parked() -> None:
    rig = opened()
    rig.hello(B, "api", take=1)
    rig.hello(C, "api", inst="a", take=2)
    for _ in range(3):
        say(rig, C, {"c": "REQ", "q": 1, "floor": 1, "op": "status", "id": "b" * 16})
        full(rig)
        rig.broker.resume()
        assert isinstance(rig.say(A, {"c": "PING"})[0], Gone)
        assert rig.say(C, {"c": "PING", "k": 4})[0].k == 4
    (holder,) = rig.broker.core.holders.values()
    assert holder == C


def test_a_rename_that_could_not_be_written_did_not_happen() -> None:
    rig = opened()
    say(rig, A, {"c": "REQ", "q": 1, "floor": 1, "op": "rename", "id": "b" * 16, "args": {"name": "web"}})
    full(rig)
    assert not rig.broker.knows(A) and [m.name for m in rig.broker.world.mailboxes.values()] == ["api"]
    rig.broker.resume()
    assert rig.hello(B, "api")[0].code == 409, "it is lost, not gone: the lease begins now"
    assert rig.hello(C, "api", inst="a", term=1)[0].term == 1


def test_queries_go_to_memory_or_disk() -> None:
    rig = opened()
    (read,) = rig.say(A, {"c": "QRY", "r": 3, "what": "inbox", "args": {"unread": True}})
    mailbox = rig.broker.core.sessions[A].mailbox
    assert read == Read(A, 3, "inbox", {"unread": True}, mailbox, "key of alpha", "owner", (0, 0))
    (done,) = rig.say(A, {"c": "QRY", "r": 4, "what": "weather"})
    assert (done.r, done.code) == (4, 422)


def test_announced() -> None:
    rig = Direct()
    rig.broker.announce("bus.start", version="1")
    rig.turn()
    assert rig.topics() == ["bus.start"] and rig.events[0].ts == START
