"""Accept, hold, refuse: who decides, in which order, and what becomes of what is held. The broker without a socket."""

from __future__ import annotations

from typing import Any

import pytest

from bus.core import Settings, Who
from bus.effects import Read
from bus.policy import paired
from bus.wire import Done, Msg, Part, Pong, Rep
from tests.pair import Direct

API, WEB, FAR, ME, YOU = b"a", b"w", b"f", b"m", b"y"
BETA = Who("key of beta", "beta", "member")


def bus(settings: Settings | None = None) -> Direct:
    """api, web and the person "me" on alpha; far and the person "you" on beta, a member. Nobody has made a rule."""
    rig = Direct(settings)
    rig.who[FAR] = rig.who[YOU] = BETA
    rig.hello(API, "api")
    rig.hello(WEB, "web")
    rig.hello(FAR, "far")
    rig.hello(ME, "me", mode="send", meta={"kind": "human"})
    rig.hello(YOU, "you", mode="send", meta={"kind": "human"})
    return rig


def send(rig: Direct, route: bytes, to: str, body: bytes = b"text", **args: Any) -> dict[str, Any]:
    """What became of one message, with its id."""
    rep = rig.req(route, "send", {"to": [to], **args}, body)
    assert isinstance(rep, Rep), rep
    q = rig.outboxes[route]
    ident = (route.decode() + "".join("abcdefghij"[int(d)] for d in str(q))).ljust(16, "z")
    assert rep.code == rep.result["to"][0]["code"]
    return {**rep.result["to"][0], "id": ident}


def person(rig: Direct, op: str, route: bytes = ME, **args: Any) -> Any:
    return rig.req(route, op, args)


def got(rig: Direct, route: bytes) -> list[bytes]:
    """Texts that were pushed in the last turn."""
    return [c.body for c in rig.sent.get(route, []) if isinstance(c, Msg)]


def why(rig: Direct, ident: str, who: Who = BETA) -> list[tuple[str, str]]:
    rows = rig.store.read(Read(b"", 1, "why", {"id": ident}, "", who.key, who.role), rig.now)
    return [(step["status"], step["proof"]) for value, _ in rows for step in value["history"]]


def unread(rig: Direct, route: bytes) -> tuple[int, int]:
    """Unread and held, as the session itself is told."""
    part = rig.say(route, {"c": "QRY", "r": 1, "what": "whoami"})[0]
    return part.value["unread"], part.value["held"]


# -- the default -----------------------------------------------------------------------------------------------------


def test_mail_of_the_own_key_is_accepted_and_of_another_held() -> None:
    rig = bus()
    assert send(rig, WEB, "api")["status"] == "stored"
    assert got(rig, API) == [b"text"]
    told = send(rig, FAR, "api")
    assert (told["status"], told["code"]) == ("held", 202)
    assert "a person at alpha decides" in told["text"]
    assert rig.topics()[-1] == "msg.held"
    assert got(rig, API) == [], "nothing reaches the session"
    assert unread(rig, API) == (1, 1)
    assert why(rig, told["id"]) == [("held", "no rule for this machine")]


def test_each_machine_decides_for_itself() -> None:
    rig = bus()
    assert person(rig, "policy.set", action="accept", machine="beta").code == 200
    assert send(rig, FAR, "api")["status"] == "stored"
    assert send(rig, API, "far")["status"] == "held", "what alpha accepts says nothing of what beta does"


def test_paired_machines_accept_each_other_and_a_rule_that_was_made_stays() -> None:
    rig = bus()
    paired(rig.broker.core, "key of alpha", "key of beta")
    rig.turn()
    rig.restart()
    for route, name in ((API, "api"), (FAR, "far"), (ME, "me")):
        rig.hello(route, name, meta={"kind": "human"} if route == ME else {}, mode="send" if route == ME else "hold")
    assert send(rig, FAR, "api")["status"] == send(rig, API, "far")["status"] == "stored"
    person(rig, "policy.set", action="refuse", machine="beta")
    paired(rig.broker.core, "key of alpha", "key of beta")
    rig.turn()
    assert send(rig, FAR, "api")["status"] == "refused"


# -- the order of the rules ------------------------------------------------------------------------------------------


def test_the_most_specific_rule_decides() -> None:
    rig = bus()
    order: list[tuple[dict[str, str], str]] = [
        ({}, "refuse"),
        ({"kind": "task"}, "accept"),
        ({"machine": "beta"}, "refuse"),
        ({"machine": "beta", "kind": "task"}, "hold"),
        ({"machine": "beta", "name": "far"}, "accept"),
        ({"machine": "beta", "name": "far", "kind": "task"}, "refuse"),
    ]
    words = {"accept": "stored", "hold": "held", "refuse": "refused"}
    for about, action in order:
        assert person(rig, "policy.set", action=action, **about).code == 200
        assert send(rig, FAR, "api")["status"] == words[action], about
    while order:
        about, _ = order.pop()
        assert person(rig, "policy.unset", **about).code == 200
        assert send(rig, FAR, "api")["status"] == (words[order[-1][1]] if order else "held")


def test_a_rule_for_everybody_is_about_other_machines_only() -> None:
    rig = bus()
    person(rig, "policy.set", action="refuse")
    person(rig, "policy.set", action="refuse", kind="note")
    assert send(rig, WEB, "api")["status"] == send(rig, WEB, "api", kind="note")["status"] == "stored"
    person(rig, "policy.set", action="hold", machine="alpha", name="web")
    assert send(rig, WEB, "api")["status"] == "held"


def test_a_name_without_its_machine_is_looked_up_and_not_matched() -> None:
    rig = bus()
    rep = person(rig, "policy.set", action="accept", name="far")
    assert rep.result["rule"] | {"machine": "key of beta", "host": "beta", "name": "far"} == rep.result["rule"]
    assert person(rig, "policy.set", action="accept", name="nobody").code == 404
    rig.who[b"g"] = Who("key of gamma", "gamma", "member")
    rig.hello(b"g", "far")
    assert person(rig, "policy.set", action="accept", name="far").code == 409
    assert send(rig, b"g", "api")["status"] == "held", "another far is another machine's"


def test_a_rule_is_about_the_key_and_not_about_the_label() -> None:
    """A machine that joins under the label of one that was accepted is not the one that was."""
    rig = bus()
    person(rig, "policy.set", action="accept", machine="beta")
    rig.who[b"x"] = Who("another key", "beta", "member")
    rig.hello(b"x", "other")
    assert send(rig, b"x", "api")["status"] == "held"
    assert person(rig, "policy.set", action="accept", machine="beta").code == 409
    assert person(rig, "policy.set", action="refuse", machine="another key").code == 200
    assert send(rig, b"x", "api")["status"] == "refused"


def test_refused_mail_leaves_no_text_for_its_recipient() -> None:
    rig = bus()
    person(rig, "policy.set", action="refuse", machine="beta")
    told = send(rig, FAR, "api", b"poison")
    assert (told["status"], told["code"]) == ("refused", 403) and "alpha takes no such mail" in told["text"]
    assert "msg.refused" in rig.topics()
    assert why(rig, told["id"])[0][0] == "refused"
    read = Read(b"", 1, "history", {}, "", "key of alpha", "owner")
    assert list(rig.store.read(read, rig.now)) == []


# -- who may ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["policy.set", "policy.unset", "hold.release", "hold.drop", "pause"])
def test_no_session_of_a_model_decides(op: str) -> None:
    rig = bus()
    told = send(rig, FAR, "api")
    args = {"action": "accept", "machine": "beta", "ids": [told["id"]], "on": True}
    for route, hello in ((API, None), (b"s", {"mode": "send", "meta": {"kind": "script"}}), (b"t", {"mode": "send"})):
        if hello is not None:
            rig.hello(route, "api", **hello)
        assert rig.req(route, op, args).code == 403
    holder = rig.hello(b"h", "human", meta={"kind": "human"})
    assert holder and rig.req(b"h", op, args).code == 403, "who holds a mailbox is a session, whatever it says"
    assert send(rig, FAR, "api")["status"] == "held"


def test_no_other_machine_decides() -> None:
    """A person of beta, an accepted one, changes nothing of alpha's."""
    rig = bus()
    told = send(rig, FAR, "api")
    assert person(rig, "policy.set", YOU, action="accept", machine="beta").code == 200, "about mail to beta"
    assert person(rig, "pause", YOU, on=True).code == 200
    assert person(rig, "hold.release", YOU, ids=[told["id"]]).code == 404
    assert person(rig, "hold.drop", YOU, ids=[told["id"]]).code == 404
    assert unread(rig, API) == (0, 1)
    assert send(rig, FAR, "api")["status"] == "held"


def test_what_is_held_is_told_to_the_person_only() -> None:
    rig = bus()
    told = send(rig, FAR, "api", b"may I?")
    for route in (API, FAR, YOU):
        said = rig.say(route, {"c": "QRY", "r": 1, "what": "held"})
        if route == YOU:
            (read,) = said
            assert list(rig.store.read(read, rig.now)) == []
        else:
            assert isinstance(said[0], Done) and said[0].code == 403
    (read,) = rig.say(ME, {"c": "QRY", "r": 1, "what": "held"})
    ((value, body),) = rig.store.read(read, rig.now)
    assert (value["id"], value["from"], value["host"], value["to"], body) == (
        told["id"],
        "far",
        "beta",
        "api",
        b"may I?",
    )
    assert value["why"] == "no rule for this machine"


def test_the_rules_are_listed_in_the_order_they_are_tried() -> None:
    rig = bus()
    for about in ({}, {"kind": "note"}, {"machine": "beta"}, {"machine": "beta", "name": "far"}):
        person(rig, "policy.set", action="hold", **about)
    *parts, done = rig.say(API, {"c": "QRY", "r": 1, "what": "policy"})
    rules = [p.value["rule"] for p in parts if isinstance(p, Part) and "rule" in p.value]
    assert [(r["host"], r["name"], r["kind"]) for r in rules] == [
        ("beta", "far", ""), ("beta", "", ""), ("", "", "note"), ("", "", ""),
    ]  # fmt: skip
    assert parts[-1].value == {"paused": 0} and done.code == 200
    assert [p.value for p in rig.say(FAR, {"c": "QRY", "r": 1, "what": "policy"})[:-1]] == [{"paused": 0}]


# -- held, released, dropped -----------------------------------------------------------------------------------------


def test_a_released_message_comes_after_what_came_meanwhile_and_once() -> None:
    rig = bus()
    told = send(rig, FAR, "api", b"held")
    send(rig, WEB, "api", b"meanwhile")
    assert got(rig, API) == [b"meanwhile"]
    assert person(rig, "hold.release", ids=["beta/" + told["id"]]).result == {"done": 1, "missing": []}
    (msg,) = [c for c in rig.sent[API] if isinstance(c, Msg)]
    assert (msg.body, msg.n, msg.prev) == (b"held", 2, 1)
    assert "msg.stored" in rig.topics()
    assert unread(rig, API) == (2, 0)
    assert person(rig, "hold.release", ids=[told["id"]]).code == 404, "it is held no more"
    rig.say(API, {"c": "ACK", "ranges": [[1, 2]], "proof": "p"})
    assert why(rig, told["id"]) == [
        ("held", "no rule for this machine"), ("stored", "released by a person"), ("injected", "p"),
    ]  # fmt: skip
    rig.restart()
    assert not [c for c in rig.hello(API, "api") if isinstance(c, Msg)]


def test_a_dropped_message_is_never_shown_and_its_sender_is_told() -> None:
    rig = bus()
    told = send(rig, FAR, "api", b"poison")
    assert person(rig, "hold.drop", ids=[told["id"]], reason="not from you").code == 200
    assert rig.topics() == ["msg.failed"]
    assert why(rig, told["id"]) == [("held", "no rule for this machine"), ("failed", "not from you")]
    rig.restart()
    assert not [c for c in rig.hello(API, "api") if isinstance(c, Msg)]
    mailbox = next(m for m in rig.broker.world.mailboxes.values() if m.name == "api")
    for what, args in (("inbox", {"unread": False}), ("history", {}), ("inbox", {"ids": [told["id"]]})):
        read = Read(b"", 1, what, args, mailbox.id, "key of alpha", "owner")
        assert list(rig.store.read(read, rig.now)) == [], what


def test_held_mail_is_outside_the_window_and_the_barrier() -> None:
    rig = bus()
    for _ in range(3):
        send(rig, FAR, "api")
    pong = rig.say(API, {"c": "PING", "k": 1})[0]
    assert isinstance(pong, Pong) and (pong.open, pong.more) == ([], 0)
    assert rig.say(API, {"c": "ACK", "ranges": [], "resync": True}) == []


def test_the_time_of_held_mail_runs_on() -> None:
    rig = bus()
    told = send(rig, FAR, "api", ttl=1000)
    rig.pass_time(1500)
    assert rig.topics() == ["msg.expired"]
    assert why(rig, told["id"]) == [("held", "no rule for this machine"), ("expired", "while it was held")]
    again = send(rig, FAR, "api", ttl=60_000)
    rig.restart()
    rig.pass_time(70_000)
    assert why(rig, again["id"])[-1] == ("expired", "while it was held")
    assert not any(m.held for m in rig.broker.world.mailboxes.values())


def test_a_released_message_still_expires() -> None:
    rig = bus()
    rig.say(API, {"c": "BYE", "leave": True})
    told = send(rig, FAR, "api", ttl=60_000)
    person(rig, "hold.release", ids=[told["id"]])
    rig.pass_time(70_000)
    assert why(rig, told["id"])[-1][0] == "expired"


def test_held_mail_counts_against_the_mailbox_and_cannot_fill_it() -> None:
    rig = bus(Settings(mailbox_messages=5, held_messages=3))
    for _ in range(3):
        assert send(rig, FAR, "api")["status"] == "held"
    told = send(rig, FAR, "api")
    assert told["code"] == 507 and "too much is held" in told["text"]
    assert [send(rig, WEB, "api")["code"] for _ in range(3)] == [200, 200, 507]
    small = bus(Settings(held_bytes=10))
    assert [send(small, FAR, "api", b"x" * 6)["code"] for _ in range(2)] == [202, 507]


def test_a_release_of_many_names_what_is_not_there() -> None:
    rig = bus()
    idents = [send(rig, FAR, name)["id"] for name in ("api", "web")]
    rep = person(rig, "hold.release", ids=[*idents, "zzzz", 7])
    assert rep.result == {"done": 2, "missing": ["zzzz"]}
    assert got(rig, API) == got(rig, WEB) == [b"text"]


# -- the pause -------------------------------------------------------------------------------------------------------


def test_a_pause_holds_everything_and_its_end_releases_what_only_it_held() -> None:
    rig = bus()
    assert person(rig, "pause", on=True).result == {"paused": True, "released": 0}
    assert "bus.pause" in rig.topics()
    own = send(rig, WEB, "api", b"own")
    strange = send(rig, FAR, "api", b"strange")
    assert (own["status"], strange["status"]) == ("held", "held") and "paused" in own["text"]
    assert send(rig, API, "far")["text"].endswith("(no rule for this machine)"), "beta is not paused"
    rig.restart()
    rig.hello(API, "api")
    rig.hello(WEB, "web")
    rig.hello(ME, "me", mode="send", meta={"kind": "human"})
    assert send(rig, WEB, "api", b"later")["status"] == "held", "a restart does not end a pause"
    assert person(rig, "pause", on=False).result == {"paused": False, "released": 2}
    assert got(rig, API) == [b"own", b"later"]
    assert unread(rig, API) == (2, 1), "what is held by the policy stays held"
    assert person(rig, "pause", on=False).result["released"] == 0
    person(rig, "policy.set", action="refuse", machine="beta")
    person(rig, "pause", on=True)
    rig.hello(FAR, "far")
    assert send(rig, FAR, "api")["status"] == "refused", "a pause makes nothing of what is refused"


# -- what cannot be --------------------------------------------------------------------------------------------------


def test_rules_that_are_none() -> None:
    rig = bus()
    assert person(rig, "policy.set", action="allow").code == 422
    assert person(rig, "policy.set", action="hold", kind="mail").code == 422
    assert person(rig, "policy.set", action="hold", machine="nowhere").code == 404
    assert person(rig, "policy.set", action="hold", machine="beta", name="A B").code == 422
    assert person(rig, "policy.unset", machine="beta").code == 404
    assert rig.req(ME, "policy.set", {}).code == 422


def test_a_key_has_so_many_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bus.policy.POLICY_RULES", 2)
    rig = bus()
    assert [person(rig, "policy.set", action="hold", machine="beta", name=n).code for n in ("a", "b", "c", "a")] == [
        200, 200, 507, 200,
    ]  # fmt: skip
    paired(rig.broker.core, "key of alpha", "key of beta")
    rig.turn()
    assert send(rig, FAR, "api")["status"] == "held", "a pairing that finds no room leaves mail held"
    assert send(rig, API, "far")["status"] == "stored"
