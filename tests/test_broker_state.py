"""Shared state, names, what peers see, and the queries that memory answers."""

from __future__ import annotations

from typing import Any

import pytest

from bus.core import Settings, Who
from bus.wire import Gone, Part, Welcome
from tests.pair import START, Direct

A, B, C, D = b"a", b"b", b"c", b"d"


def bus(*names: str, settings: Settings | None = None) -> Direct:
    rig = Direct(settings)
    for route, name in zip((A, B, C, D), names, strict=False):
        rig.hello(route, name)
    return rig


def asked(rig: Direct, route: bytes, what: str, **args: Any) -> tuple[int, list[dict[str, Any]]]:
    said = rig.say(route, {"c": "QRY", "r": 1, "what": what, "args": args})
    return said[-1].code, [p.value for p in said if isinstance(p, Part)]


# -- state ---------------------------------------------------------------------------------------------------------


def test_compare_and_set() -> None:
    rig = bus("api", "web")
    first = rig.req(A, "state.set", {"key": "lock", "ver": 0}, b'"api"')
    assert (first.code, first.result, rig.topics()) == (200, {"ver": 1}, ["state.set"])
    late = rig.req(B, "state.set", {"key": "lock", "ver": 0}, b'"web"')
    assert (late.code, late.result) == (409, {"ver": 1, "by": "api@alpha"})
    assert rig.req(B, "state.set", {"key": "lock", "ver": 1}, b'"web"').result == {"ver": 3}
    assert rig.req(B, "state.set", {"key": "lock"}, b'"blind"').result == {"ver": 4}
    late = rig.req(A, "state.delete", {"key": "lock", "ver": 3})
    assert late.code == 409 and "read it again" in late.text
    assert rig.req(A, "state.delete", {"key": "lock", "ver": 4}).result == {"ver": 6}
    assert rig.topics() == ["state.delete"]
    assert rig.req(A, "state.delete", {"key": "lock"}).code == 404
    missing = rig.req(A, "state.set", {"key": "lock", "ver": 4}, b"1")
    assert missing.code == 409 and "does not exist" in missing.text and missing.result == {}


def test_time_to_live() -> None:
    rig = bus("api")
    rig.req(A, "state.set", {"key": "lease", "ttl": 500}, b"1")
    rig.req(A, "state.set", {"key": "kept", "ttl": 500}, b"1")
    rig.req(A, "state.set", {"key": "kept"}, b"2")
    rig.now += 500
    assert rig.req(A, "state.set", {"key": "lease", "ver": 1}, b"2").code == 409, "it is over, though not removed yet"
    assert rig.req(A, "state.delete", {"key": "lease"}).code == 404
    rig.pass_time(0)
    assert rig.topics() == ["state.delete"] and list(rig.broker.world.state) == ["kept"]


def test_what_ends_before_its_time_keeps_nothing() -> None:
    """A year ahead, thousands of times over: values written again and deleted, mail that was shown, busy sessions."""
    rig = bus("api", "web", settings=Settings(rate=10**9, burst=10**9))
    year = 365 * 86_400_000
    before = len(rig.broker.core.timers)
    for n in range(1000):
        rig.req(A, "state.set", {"key": "again", "ttl": year - n}, b"1")
        rig.req(A, "state.set", {"key": f"k{n}", "ttl": year}, b"1")
        rig.req(A, "state.delete", {"key": f"k{n}"})
        rig.req(A, "status", {"activity": "busy", "busy": year + n})
        rig.req(A, "send", {"to": ["web"], "ttl": year + n}, b"hi")
        rig.say(B, {"c": "ACK", "ranges": [[n + 1, n + 1]]})
    assert len(rig.broker.world.mailboxes) == 2 and not any(m.pending for m in rig.broker.world.mailboxes.values())
    assert len(rig.broker.core.timers) <= before + 100
    rig.pass_time(year + 1)
    assert "state.delete" in rig.topics() and not rig.broker.world.state


def test_time_to_live_outlives_the_broker() -> None:
    rig = bus("api")
    rig.req(A, "state.set", {"key": "lease", "ttl": 500}, b"1")
    rig.restart()
    rig.pass_time(500)
    assert rig.broker.world.state == {}


@pytest.mark.parametrize(
    ("args", "body", "code"),
    [
        ({"key": "k"}, b"", 422),
        ({"key": "no key"}, b"1", 422),
        ({"key": "k" * 201}, b"1", 422),
        ({"key": ""}, b"1", 422),
        ({"key": "k"}, b"x" * 65537, 413),
        ({"key": "k"}, b"x" * 65536, 200),
    ],
)
def test_values_are_checked(args: dict[str, Any], body: bytes, code: int) -> None:
    assert bus("api").req(A, "state.set", args, body).code == code


def test_so_many_keys() -> None:
    rig = bus("api", settings=Settings(state_keys=2))
    assert rig.req(A, "state.set", {"key": "one"}, b"1").code == 200
    assert rig.req(A, "state.set", {"key": "two"}, b"1").code == 200
    assert rig.req(A, "state.set", {"key": "three"}, b"1").code == 507
    assert rig.req(A, "state.set", {"key": "two"}, b"2").code == 200, "one that is there is no new one"


# -- names ---------------------------------------------------------------------------------------------------------


def test_rename() -> None:
    rig = bus("api", "web")
    rig.req(B, "send", {"to": ["api"]}, b"waits")
    rep = rig.req(A, "rename", {"name": " New "})
    assert rep.result == {"name": "new"} and rig.topics() == ["peer.name"]
    welcome, msg = rig.sent[A][:2]
    assert isinstance(welcome, Welcome) and (welcome.name, welcome.term) == ("new", 1)
    assert (msg.body, msg.prev) == (b"waits", 0), "the chain starts anew"
    assert rig.req(A, "rename", {"name": "new"}).code == 200 and rig.sent[A][0].code == 200, "nothing to do"
    taken = rig.req(A, "rename", {"name": "web"})
    assert taken.code == 409 and "'take' it" in taken.text
    assert rig.req(A, "rename", {"name": "all"}).code == 422
    assert rig.req(B, "send", {"to": ["api"]}, b"x").code == 404


def test_rename_by_a_command_line() -> None:
    rig = bus("api")
    rig.hello(B, "api", mode="send")
    assert rig.req(B, "rename", {"name": "web"}).code == 200
    assert rig.sent[A][0].name == "web", "the session hears it"


def test_a_command_line_acts_for_a_mailbox_of_its_own() -> None:
    rig = bus()
    (welcome,) = rig.hello(A, "me", mode="send")
    assert (welcome.name, welcome.term) == ("me", 0)
    assert rig.req(A, "rename", {"name": "myself"}).code == 200
    assert rig.req(A, "take", {"name": "other"}).code == 409, "only a living session can take"


def test_take_a_free_name() -> None:
    rig = bus("api", "web")
    rig.req(A, "send", {"to": ["web"]}, b"for whoever is web")
    rig.say(B, {"c": "BYE", "leave": True})
    rep = rig.req(A, "take", {"name": "web"})
    assert rep.result == {"name": "web", "term": 2, "unread": 1}
    assert [e for e in rig.topics() if e.startswith("peer")] == ["peer.gone", "peer.open"]
    assert [c.body for c in rig.sent[A] if hasattr(c, "prev")] == [b"for whoever is web"]
    assert rig.hello(B + b"2", "api")[0].term == 2, "the former name is free"


def test_take_a_held_name_by_its_term() -> None:
    rig = bus("api", "web")
    refused = rig.req(A, "take", {"name": "web"})
    assert refused.code == 409 and refused.result["term"] == 1 and refused.result["by"]["inst"] == "b"
    assert rig.req(A, "take", {"name": "web", "term": 1}).result["term"] == 2
    (gone,) = rig.sent[B]
    assert isinstance(gone, Gone) and (gone.term, gone.by) == (2, "a")
    assert rig.req(A, "take", {"name": "web"}).result == {"name": "web", "term": 2}, "it is its own"


def test_take_a_name_nobody_had() -> None:
    rig = bus("api")
    assert rig.req(A, "take", {"name": "fresh"}).result == {"name": "fresh", "term": 1, "unread": 0}


def test_take_fresh_sets_the_old_mail_aside() -> None:
    rig = bus("api", "web", "doc")
    rig.req(A, "send", {"to": ["web"]}, b"old")
    assert rig.req(A, "take", {"name": "web", "term": 1, "fresh": True}).result["unread"] == 0
    assert isinstance(rig.sent[B][0], Gone)
    rig.req(A, "take", {"name": "api"})
    assert rig.req(A, "take", {"name": "web", "fresh": True}).code == 200
    aside = sorted(m.name for m in rig.broker.world.mailboxes.values() if m.meta.get("stale"))
    assert aside == [f"web-stale-{START // 1000}", f"web-stale-{START // 1000}x"]
    rows = {row["name"]: row for row in asked(rig, C, "peers", all=True)[1]}
    assert rows[aside[0]]["kind"] == "stale" and rows[aside[0]]["unread"] == 1
    told = rig.req(C, "send", {"to": ["*"]}, b"x").result["to"]
    assert sorted(row["name"] for row in told) == ["api", "web"], "nobody writes to what was set aside"


def test_take_by_a_command_line_moves_the_session() -> None:
    rig = bus("api", "web")
    rig.say(B, {"c": "BYE", "leave": True})
    rig.hello(C, "api", mode="send")
    assert rig.req(C, "take", {"name": "web"}).code == 200
    assert [w.name for route in (A, C) for w in rig.sent[route] if isinstance(w, Welcome)] == ["web", "web"]
    assert asked(rig, C, "whoami")[1][0]["name"] == "web", "the command line goes along"


# -- what peers see ------------------------------------------------------------------------------------------------


def test_status() -> None:
    rig = bus("api")
    assert rig.req(A, "status", {"summary": "s" * 300, "metadata": {"a": 1, "b": None}}).code == 200
    assert rig.req(A, "status", {"metadata": {"c": [1.5], "a": None}}).code == 200
    ((row),) = asked(rig, A, "whoami")[1]
    assert row["summary"] == "s" * 200 and row["metadata"] == {"c": [1.5]} and row["role"] == "owner"
    assert rig.req(A, "status", {"activity": "dancing"}).code == 422
    assert rig.req(A, "status", {"metadata": {"a": b"octets"}}).code == 422
    assert rig.req(A, "status", {"metadata": {"a": "x" * 1100}}).code == 413


def test_what_a_ping_says_is_told_once() -> None:
    rig = bus("api", "web")
    rig.say(B, {"c": "PING", "k": 1, "st": "busy"})
    assert [(e.topic, e.fields["name"], e.fields["activity"]) for e in rig.events] == [("peer.status", "web", "busy")]
    rig.say(B, {"c": "PING", "k": 2, "st": "busy"})
    assert rig.topics() == []


def test_who_opens_and_what_changes_is_told_with_the_way_to_wake_it() -> None:
    rig = bus("api")
    rig.req(A, "status", {"wake": "native", "summary": "s"})
    (event,) = rig.events
    assert (event.topic, event.fields["wake"], event.fields["summary"]) == ("peer.status", "native", "s")
    rig.hello(B, "api", inst="b", take=1)
    (event,) = (e for e in rig.events if e.topic == "peer.open")
    assert (event.fields["wake"], event.fields["summary"]) == ("native", "s")


def test_oldest_is_when_the_longest_waiting_came() -> None:
    rig = bus("api", "web")
    assert asked(rig, B, "whoami")[1][0]["oldest"] == 0
    rig.req(A, "send", {"to": ["web"]}, b"x")
    rig.now += 500
    rig.req(A, "send", {"to": ["web"]}, b"y")
    assert asked(rig, B, "whoami")[1][0]["oldest"] == START
    assert asked(rig, A, "stats")[1][0]["oldest"] == START
    rig.say(B, {"c": "ACK", "ranges": [[1, 1]]})
    assert asked(rig, B, "whoami")[1][0]["oldest"] == START + 500


def test_activity_lapses() -> None:
    rig = bus("api", "web")
    rig.req(A, "status", {"busy": 700})
    rig.say(B, {"c": "PING", "k": 1, "st": "waiting"})
    rows = {row["name"]: (row["activity"], row["until"]) for row in asked(rig, A, "peers")[1]}
    assert rows == {"api": ("busy", START + 700), "web": ("waiting", 0)}
    rig.pass_time(700)
    assert [(e.topic, e.fields["activity"], e.fields["until"]) for e in rig.events] == [("peer.status", "idle", 0)]
    assert {row["activity"] for row in asked(rig, A, "peers")[1]} == {"idle", "waiting"}
    rig.say(B, {"c": "PING", "k": 1, "st": "asleep"})
    assert asked(rig, B, "whoami")[1][0]["activity"] == "waiting", "no such activity"


def test_heard_from_is_written_once_a_minute() -> None:
    rig = bus("api")
    (mailbox,) = rig.broker.world.mailboxes.values()
    rig.now += 59_999
    rig.say(A, {"c": "PING"})
    assert mailbox.active == START
    rig.now += 1
    rig.say(A, {"c": "PING"})
    assert mailbox.active == START + 60_000


def test_peers() -> None:
    rig = Direct()
    rig.hello(A, "api", meta={"cwd": "/w/a", "project": "one"})
    rig.hello(B, "web", meta={"cwd": "/w/a", "project": "two"})
    rig.hello(C, "svc", meta={"kind": "service"})
    rig.who[D] = Who("key of beta", "beta")
    rig.hello(D, "far", meta={"cwd": "/w/a", "project": "one"})
    rig.req(A, "send", {"to": ["asleep"], "new": True}, b"x")

    def names(**args: Any) -> list[str]:
        return [row["name"] for row in asked(rig, A, "peers", **args)[1]]

    assert names() == ["api", "far", "web"]
    assert names(all=True) == ["api", "asleep", "far", "svc", "web"]
    assert names(scope="machine") == ["api", "web"]
    assert names(scope="folder") == ["api", "web"]
    assert names(scope="repo") == ["api"]
    rig.say(B, {"c": "BYE"})
    rig.now += 10_000
    assert names(active=5_000) == ["api", "far"]
    assert [row["presence"] for row in asked(rig, A, "peers")[1]] == ["open", "open", "lost"]


def test_snapshot_marks_the_stream_first() -> None:
    rig = bus("api")
    rig.req(A, "state.set", {"key": "k"}, b"1")
    said = rig.say(A, {"c": "QRY", "r": 2, "what": "snapshot", "args": {"nonce": "n1"}})
    assert rig.topics() == ["sync.n1"]
    assert [sorted(p.value) for p in said[:-1]] == [["peer"], ["state"]]
    assert said[-1].seq == rig.events[0].seq
    for nonce in ("", "a.b", 5, "x" * 65):
        assert asked(rig, A, "snapshot", nonce=nonce)[0] == 422


def test_stats() -> None:
    rig = bus("api", "web")
    rig.req(A, "send", {"to": ["web"]}, b"x")
    code, (row,) = asked(rig, A, "stats")
    assert code == 200
    assert (row["mailboxes"], row["sessions"], row["holding"], row["unread"], row["seq"]) == (2, 2, 2, 1, 1)
    assert (row["presence"], row["octets"]) == ({"open": 2}, 1)
    assert (row["told"]["msg.stored"], row["told"]["peer.open"]) == (1, 2)
    asked(rig, A, "snapshot", nonce="a1")
    assert asked(rig, A, "stats")[1][0]["told"]["sync"] == 1, "a marker is no topic of its own"
    assert row["chain"] == rig.broker.world.chain.hex() and row["store"] == rig.broker.world.store


def test_the_journal_is_a_chain() -> None:
    rig = bus("api")
    rig.req(A, "status", {})
    head = rig.broker.world.chain
    rig.req(A, "status", {"summary": "x"})
    assert rig.broker.world.chain != head and rig.broker.world.seq == 2
    assert rig.hello(B, "web")[0].chain == rig.broker.world.chain.hex()
