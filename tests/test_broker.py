"""Sessions at the broker: every row of the state table, every row of the HELLO table, and whatever octets come in."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus import wire
from bus.broker import SESSIONS, Broker
from bus.core import Who
from bus.effects import PutMailbox
from bus.errors import LocalError
from bus.wire import Bye, Err, Gone, Pong, Rep, Welcome
from bus.world import World
from tests.pair import START, Direct

A, B, C, D = b"a", b"b", b"c", b"d"
SPOKEN: dict[str, dict[str, Any]] = {
    "HELLO": {"c": "HELLO", "mode": "hold", "inst": "x", "ob": "0" * 32, "name": "other"},
    "REQ": {"c": "REQ", "q": 1, "floor": 1, "op": "status", "id": "a" * 16},
    "ACK": {"c": "ACK", "ranges": []},
    "QRY": {"c": "QRY", "r": 5, "what": "whoami"},
    "PING": {"c": "PING", "k": 3},
    "BYE": {"c": "BYE"},
}


def in_state(state: str) -> Direct:
    """Route A in this state; B displaced it where it is parked."""
    rig = Direct()
    if state != "new":
        rig.hello(A, "api")
    if state == "parked":
        rig.hello(B, "api", take=1)
        assert isinstance(rig.sent[A][0], Gone)
    return rig


@pytest.mark.parametrize("command", [c for c in SESSIONS["new"] if c not in ("HELLO", "lost")])
def test_unknown(command: str) -> None:
    (err,) = in_state("new").say(A, SPOKEN[command])
    assert (err.code, err.of) == (401, command)
    assert err.ref == {"REQ": 1, "QRY": 5}.get(command, 0)


def test_new_is_opened_or_refused() -> None:
    rig = in_state("new")
    (welcome,) = rig.hello(A, "Api")
    assert welcome == Welcome("api", welcome.id, 1, rig.store.load().store, 0, "00" * 16, 0, 5000, 64, START)
    (err,) = rig.hello(B, "all")
    assert (err.code, err.of) == (422, "HELLO")
    (err,) = rig.say(B, SPOKEN["PING"])
    assert err.code == 401, "after a refusal the route is new"


def test_new_lost_is_nothing() -> None:
    rig = in_state("new")
    rig.broker.lost(rig.now, A)
    assert rig.turn() == {}


def test_whoever_is_not_on_the_roll_gets_no_answer_and_is_counted() -> None:
    rig = in_state("new")
    rig.broker.receive(rig.now, A, None, [wire.SIGNATURE, wire.pack(SPOKEN["HELLO"])])
    assert not rig.turn() and rig.broker.core.counters["revoked"] == 1
    assert not rig.broker.knows(A)


@pytest.mark.parametrize("state", ["open", "parked"])
def test_second_hello(state: str) -> None:
    (err,) = in_state(state).say(A, SPOKEN["HELLO"])
    assert (err.code, err.of) == (400, "HELLO")


def test_open_answers_everything() -> None:
    rig = in_state("open")
    assert rig.broker.knows(A)
    assert rig.say(A, SPOKEN["REQ"])[0].code == 200
    assert rig.say(A, SPOKEN["ACK"]) == []
    part, done = rig.say(A, SPOKEN["QRY"])
    assert (part.r, part.value["name"], done.r, done.code) == (5, "api", 5, 200)
    assert rig.say(A, SPOKEN["PING"]) == [Pong(3, 1, [], 0, START)]
    assert rig.say(A, SPOKEN["BYE"]) == [Bye()]
    assert rig.say(A, SPOKEN["PING"])[0].code == 401, "after BYE the route is new"


@pytest.mark.parametrize("command", ["REQ", "ACK", "QRY", "PING"])
def test_parked_is_told_again(command: str) -> None:
    rig = in_state("parked")
    (gone,) = rig.say(A, SPOKEN[command])
    assert (gone.code, gone.term, gone.by) == (409, 2, "b")


def test_parked_says_goodbye() -> None:
    rig = in_state("parked")
    assert rig.say(A, SPOKEN["BYE"]) == [Bye()]
    assert rig.say(A, SPOKEN["PING"])[0].code == 401
    assert rig.topics() == [], "its mailbox is another's"


@pytest.mark.parametrize("state", ["open", "parked"])
def test_lost_is_forgotten(state: str) -> None:
    rig = in_state(state)
    rig.broker.lost(rig.now, A)
    rig.turn()
    assert rig.topics() == (["peer.lost"] if state == "open" else [])
    assert not rig.broker.knows(A)


# -- HELLO ---------------------------------------------------------------------------------------------------------


def test_same_instance_resumes() -> None:
    rig = in_state("open")
    (welcome,) = rig.hello(B, "api", inst="a")
    assert welcome.term == 1
    assert A not in rig.sent and rig.say(A, SPOKEN["PING"])[0].code == 401, "the former route is forgotten"


@pytest.mark.parametrize("how", ["leave", "lease", "never held"])
def test_free_is_given_with_a_rising_term(how: str) -> None:
    rig = in_state("open")
    if how == "leave":
        rig.say(A, {"c": "BYE", "leave": True})
        assert rig.topics() == ["peer.gone"]
    elif how == "lease":
        rig.say(A, {"c": "BYE"})
        assert rig.topics() == ["peer.lost"]
        assert rig.hello(B, "api")[0].code == 409, "not before the lease is over"
        rig.pass_time(15_000)
        assert "peer.gone" in rig.topics()
    else:
        assert rig.req(A, "send", {"to": ["fresh"], "new": True}, b"x").code == 200
        assert rig.hello(B, "fresh")[0].term == 1
        return
    assert rig.hello(C, "api")[0].term == 2


def test_free_of_another_project() -> None:
    rig = Direct()
    rig.hello(A, "api", meta={"project": "one"})
    rig.say(A, {"c": "BYE", "leave": True})
    (err,) = rig.hello(B, "api", meta={"project": "two"})
    assert (err.code, err.term, err.by["living"], err.by["project"]) == (409, 1, False, "one")
    assert rig.hello(C, "api", meta={"project": "two"}, take=1)[0].term == 2


def test_held_by_a_living_other() -> None:
    rig = Direct()
    rig.hello(A, "api", meta={"pid": 77, "start": 5, "host": "alpha", "cwd": "/w", "other": "not told"})
    (err,) = rig.hello(B, "api")
    assert (err.code, err.term) == (409, 1)
    assert err.by == {
        "pid": 77,
        "start": 5,
        "host": "alpha",
        "cwd": "/w",
        "inst": "a",
        "living": True,
        "presence": "open",
        "name": "api",
        "id": err.by["id"],
    }
    (gone,) = rig.hello(C, "api", term=1)
    assert (gone.code, gone.term, gone.by) == (409, 1, "a"), "it was displaced"
    (err,) = rig.hello(B, "api", take=9)
    assert err.code == 409
    (welcome,) = rig.hello(B, "api", take=1)
    assert welcome.term == 2
    assert rig.sent[A] == [Gone(409, 2, "b", rig.sent[A][0].text)]


def test_a_session_that_did_not_hear_of_its_new_name() -> None:
    rig = in_state("open")
    assert rig.req(A, "rename", {"name": "web"}).code == 200
    (welcome,) = rig.hello(B, "api", inst="a", term=1)
    assert (welcome.name, welcome.term) == ("web", 1)
    assert len(rig.broker.world.mailboxes) == 1


@pytest.mark.parametrize("mode", ["hold", "send"])
def test_a_mailbox_is_found_by_its_id_whatever_it_is_called(mode: str) -> None:
    rig = Direct()
    (told,) = rig.hello(A, "api")
    assert rig.req(A, "rename", {"name": "web"}).code == 200
    rig.say(A, {"c": "BYE", "leave": True})
    (welcome,) = rig.hello(B, "api", mode=mode, id=told.id, store=told.store)
    assert (welcome.name, welcome.id) == ("web", told.id)
    assert len(rig.broker.world.mailboxes) == 1
    assert rig.req(B, "send", {"to": ["web"]}, b"x").code == 200, "it acts as that mailbox"


def test_the_id_of_a_mailbox_of_a_living_other_is_no_claim() -> None:
    rig = Direct()
    (told,) = rig.hello(A, "api")
    known = {"id": told.id, "store": told.store}
    assert rig.hello(B, "former", **known)[0].code == 409
    assert rig.hello(D, "former", take=1, **known)[0].term == 2
    assert isinstance(rig.hello(C, "former", term=1, **known)[0], Gone)


# -- a broker that was restored from an older copy ---------------------------------------------------------------


def test_a_holder_that_is_lost_is_not_alive_to_one_that_held_it_later() -> None:
    """The database is a copy of before b took over: it knows a, who will never come back."""
    rig = in_state("open")
    (told,) = rig.hello(B, "api", take=1)
    known = {"term": told.term, "id": told.id, "store": told.store}
    rig.store.apply([PutMailbox(dataclasses.replace(rig.broker.world.mailboxes[told.id], inst="a", term=1))])
    rig.restart()
    rig.pass_time(5_000)
    (err,) = rig.hello(C, "api", inst="b", **known)
    assert (err.code, err.of, err.retry, err.term) == (503, "HELLO", 10_000, 1)
    assert (err.by["living"], err.by["presence"]) == (False, "lost") and "living" not in err.text
    (err,) = rig.hello(D, "api")
    assert (err.code, err.term, err.retry) == (409, 1, 0), "a newcomer may choose another name, or take it"
    assert (err.by["living"], err.by["presence"]) == (False, "lost") and "living" not in err.text
    rig.pass_time(10_000)
    (welcome,) = rig.hello(C, "api", inst="b", **known)
    assert (welcome.id, welcome.term) == (told.id, 2)


def test_a_lost_holder_that_comes_back_within_its_lease_has_it() -> None:
    rig = in_state("open")
    (told,) = rig.hello(B, "api", take=1)
    rig.broker.lost(rig.now, B)
    assert rig.hello(A + b"2", "api", inst="a", term=1, id=told.id, store=told.store)[0].code == 503
    assert rig.hello(C, "api", inst="b", term=2, id=told.id, store=told.store)[0].term == 2
    (gone,) = rig.hello(A + b"3", "api", inst="a", term=1, id=told.id, store=told.store)
    assert isinstance(gone, Gone), "it was displaced, and its holder lives"


@pytest.mark.parametrize("why", ["a later term", "another mailbox", "another store"])
def test_who_was_never_displaced_here_is_refused_as_a_newcomer(why: str) -> None:
    """It may go on under another name at once; GONE would park it until a person decides."""
    rig = in_state("open")
    (mailbox,) = rig.broker.world.mailboxes.values()
    known = {"term": 3, "id": mailbox.id, "store": rig.broker.world.store}
    known |= {"another mailbox": {"id": "00000000"}, "another store": {"store": "f" * 32}}.get(why, {})
    (err,) = rig.hello(B, "api", **known)
    assert (err.code, err.by["presence"]) == (409, "open")


def test_who_held_what_was_set_aside_was_displaced() -> None:
    rig = in_state("open")
    (known,) = rig.broker.world.mailboxes.values()
    rig.hello(B, "web")
    assert rig.req(B, "take", {"name": "api", "term": 1, "fresh": True}).code == 200
    (gone,) = rig.hello(C, "api", inst="a", term=1, id=known.id, store=rig.broker.world.store)
    assert isinstance(gone, Gone)


def test_a_lost_holder_is_not_called_living_by_the_operation() -> None:
    rig = in_state("open")
    rig.hello(B, "web")
    rig.broker.lost(rig.now, A)
    rep = rig.req(B, "take", {"name": "api"})
    assert (rep.code, rep.result["term"], rep.result["by"]["presence"]) == (409, 1, "lost")
    assert "living" not in rep.text
    assert rig.req(B, "take", {"name": "api", "term": 1}).code == 200


@pytest.mark.parametrize("why", ["another store", "another key", "set aside", "unknown", "no store"])
def test_an_id_that_means_nothing_here_leaves_the_name(why: str) -> None:
    rig = Direct()
    (told,) = rig.hello(A, "api")
    known = {"id": told.id, "store": told.store}
    if why == "set aside":
        rig.hello(B, "web")
        assert rig.req(B, "take", {"name": "api", "term": 1, "fresh": True}).code == 200
        rig.say(B, {"c": "BYE", "leave": True})
    else:
        assert rig.req(A, "rename", {"name": "docs"}).code == 200
        rig.say(A, {"c": "BYE", "leave": True})
    if why == "another key":
        rig.who[C] = Who("key of beta", "beta")
    known |= {"another store": {"store": "f" * 32}, "unknown": {"id": "00000000"}}.get(why, {})
    if why == "no store":
        del known["store"]
    (welcome,) = rig.hello(C, "api", **known)
    assert welcome.name == "api" and welcome.id != told.id


def test_a_session_that_chooses_another_name_lets_the_former_go() -> None:
    rig = in_state("open")
    (welcome,) = rig.hello(B, "web", inst="a")
    assert (welcome.name, welcome.term) == ("web", 1)
    assert rig.hello(C, "api")[0].term == 2, "the former is free"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"mode": "other"}, 422),
        ({"ob": "xyz"}, 422),
        ({"ob": ""}, 422),
        ({"name": "no name!"}, 422),
        ({"name": ""}, 422),
        ({"meta": {"a": "x" * 2048}}, 413),
        ({"meta": {"a": b"octets"}}, 422),
        ({"meta": {"a": float("nan")}}, 422),
    ],
)
def test_hello_is_refused(change: dict[str, Any], code: int) -> None:
    (err,) = Direct().hello(A, **({"name": "api"} | change))
    assert (err.code, err.of) == (code, "HELLO")


def test_an_outbox_belongs_to_its_key() -> None:
    rig = in_state("open")
    rig.req(A, "status", {})
    rig.who[B] = Who("another key", "beta")
    assert rig.hello(B, "api", ob=A.hex().rjust(32, "0"))[0].code == 403


def test_observers_look_only() -> None:
    rig = Direct()
    rig.who[A] = Who("key", "beta", "observer")
    assert rig.hello(A, "api")[0].code == 403
    (welcome,) = rig.say(A, {"c": "HELLO", "mode": "view", "inst": "w"})
    assert (welcome.name, welcome.id, welcome.term, welcome.high) == ("", "", 0, 0)
    assert rig.say(A, SPOKEN["REQ"])[0].code == 403
    part, _ = rig.say(A, SPOKEN["QRY"])
    assert part.value == {"name": "", "host": "beta", "role": "observer"}
    assert rig.say(A, SPOKEN["PING"]) == [Pong(3, 0, [], 0, START)]
    assert rig.say(A, SPOKEN["ACK"]) == []
    assert rig.say(A, SPOKEN["BYE"]) == [Bye()]


def test_heartbeats_are_agreed_and_silence_is_loss() -> None:
    rig = Direct()
    assert rig.hello(A, "api", hb=1)[0].hb == 1000
    assert rig.hello(B, "web", hb=10**9)[0].hb == 60_000
    rig.pass_time(2_900)
    assert rig.say(A, SPOKEN["PING"]), "any command is a heartbeat"
    rig.pass_time(2_900)
    assert rig.broker.knows(A)
    rig.pass_time(200)
    assert not rig.broker.knows(A) and rig.topics() == ["peer.lost"]


def test_meta_does_not_grow_for_ever() -> None:
    rig = Direct()
    for i in range(12):
        rig.hello(A + str(i).encode(), "api", inst="a", meta={f"key{i}": "x" * 1500})
    (mailbox,) = rig.broker.world.mailboxes.values()
    assert len(wire.pack(mailbox.meta)) < 9000


def test_answers_fit_their_head_whatever_others_say() -> None:
    wide = "\U0001f600" * 400
    rig = Direct()
    rig.hello(A, "api", meta={"project": wide})
    rig.hello(A + b"1", "api", inst="a", meta={"cwd": wide})
    rig.hello(A + b"2", "api", inst="a", meta={"host": wide, "pid": [1], "start": wide[:50], "wake": wide[:50]})
    rig.hello(A + b"3", "api", inst="a", meta={"branch": wide})
    assert rig.hello(B, "api")[0].code == 409
    rig.hello(B, "b")
    assert rig.say(B, {"c": "QRY", "r": 1, "what": "peers"})[-1].code == 200
    rig.say(A + b"3", {"c": "BYE", "leave": True})
    assert rig.hello(C, "api", meta={"project": "x"})[0].code == 409


def test_a_restart_keeps_names_terms_and_leases() -> None:
    rig = in_state("open")
    rig.hello(B, "web")
    rig.say(B, {"c": "BYE", "leave": True})
    rig.restart()
    assert rig.hello(C, "api")[0].code == 409, "within the lease"
    assert rig.hello(D, "web")[0].term == 2
    rig.pass_time(15_000)
    assert "peer.gone" in rig.topics()
    assert rig.hello(C, "api")[0].term == 2


# -- whatever comes in ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([wire.SIGNATURE], 400),
        ([wire.SIGNATURE, b"\x80", b"", b""], 400),
        ([wire.SIGNATURE, b"\xc1"], 400),
        ([wire.SIGNATURE, wire.pack([1])], 400),
        ([wire.SIGNATURE, wire.pack({b"c": "PING"})], 400),
        ([wire.SIGNATURE, wire.pack({str(i): i for i in range(33)})], 400),
        ([wire.SIGNATURE, b"\xd4\x05\x00"], 400),
        ([wire.SIGNATURE, b"x" * 4097], 413),
        ([wire.SIGNATURE, wire.pack({"c": "PING"}), b"x" * 262145], 413),
        ([wire.SIGNATURE, wire.pack({"c": "PING"}), b"x"], 400),
        ([wire.SIGNATURE, wire.pack({})], 405),
        ([wire.SIGNATURE, wire.pack({"c": "NEW"})], 405),
        ([wire.SIGNATURE, wire.pack({"c": ["PING"]})], 405),
        ([wire.SIGNATURE, wire.pack({"c": "REP", "q": 1, "code": 200})], 405),
        ([wire.SIGNATURE, wire.pack({"c": "PING", "k": -1})], 400),
        ([wire.SIGNATURE, wire.pack({"c": "QRY", "what": "x"})], 400),
        ([wire.SIGNATURE, b"\x91" * 1023 + b"\x01"], 400),
    ],
)
def test_malformed(frames: list[bytes], code: int) -> None:
    rig = in_state("open")
    (err,) = rig.raw(A, frames)
    assert isinstance(err, Err) and err.code == code
    assert rig.broker.core.counters["malformed"] == 1
    assert rig.say(A, SPOKEN["PING"]), "it goes on"


@pytest.mark.parametrize("frames", [[], [b""], [b"TB\x02", b"\x80"], [b"GET / HTTP/1.1"]])
def test_another_signature_is_dropped_unanswered(frames: list[bytes]) -> None:
    rig = in_state("open")
    assert rig.raw(A, frames) == []
    assert rig.broker.core.counters["unsigned"] == 1


def test_deep_arguments() -> None:
    rig = in_state("open")
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    assert isinstance(rig.req(A, "status", {"metadata": {"a": deep}}), Rep)
    assert isinstance(rig.req(A, "receipt", {"moved": deep}), Rep)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
names_of_fields = sorted({f.key for spec in wire.COMMANDS.values() for f in spec.fields})
words = st.sampled_from(
    ["hold", "send", "view", "api", "whoami", "peers", "inbox", "status", "rename", "take", "state.set", "receipt", "settle",
     "state.delete", "prune", "stats", "snapshot", "a" * 16, "0" * 32]
)  # fmt: skip
arguments = st.dictionaries(
    st.sampled_from(["to", "key", "ver", "ttl", "name", "moved", "ids", "proof", "summary", "metadata", "activity",
                     "before", "nonce", "scope", "active", "all", "re", "kind", "tag", "exclude", "new", "busy", "term"]),
    plain | st.lists(words, max_size=3) | words,
    max_size=4,
)  # fmt: skip
heads = st.builds(
    lambda command, fields, args: {"c": command, **fields, **args},
    st.sampled_from(sorted(wire.COMMANDS)) | plain,
    st.dictionaries(st.sampled_from(names_of_fields), plain | words | st.integers(0, 3), max_size=9),
    st.fixed_dictionaries({}, optional={"args": arguments}),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(st.binary(max_size=40), max_size=4), max_size=4))
def test_any_octets(messages: list[list[bytes]]) -> None:
    broker = Broker(World("store"), START)
    for frames in messages:
        broker.receive(START, A, Who("key", "host"), frames)
        broker.receive(START, A, Who("key", "host"), [wire.SIGNATURE, *frames])
    for sent in broker.take().sends:
        wire.encode(sent.command)  # type: ignore[union-attr]


@settings(max_examples=600, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([A, B]), heads, st.binary(max_size=6)), max_size=6))
def test_any_heads(messages: list[tuple[bytes, dict[str, Any], bytes]]) -> None:
    """Nothing raises, whatever is said; what is answered can be sent, and memory stays what the disk has."""
    rig = Direct()
    rig.hello(A, "api")
    for route, head, body in messages:
        try:
            packed = wire.pack(head)
        except LocalError:
            continue
        rig.raw(route, [wire.SIGNATURE, packed, body])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(["send", "receipt", "settle", "rename", "take", "status", "state.set",
                                                 "state.delete", "prune", "none"])), arguments), max_size=5))  # fmt: skip
def test_any_arguments(requests: list[tuple[str, dict[str, Any]]]) -> None:
    rig = Direct()
    rig.hello(A, "api")
    for op, args in requests:
        try:
            wire.pack(args)
        except LocalError:
            continue
        assert isinstance(rig.req(A, op, args, b"1"), Rep)


def test_every_command_is_a_frozen_dataclass() -> None:
    for spec in wire.COMMANDS.values():
        assert dataclasses.is_dataclass(spec.cls) and spec.cls.__hash__ is not None, "frozen ones have a hash"
