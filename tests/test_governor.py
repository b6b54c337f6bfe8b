"""Rates, hops, thanks, wakes: what is limited, what its sender is told, and that nothing real is ever eaten."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import governor
from bus.core import Settings, Who
from bus.governor import Governor, is_thanks
from bus.policy import paired
from bus.wire import Err, Msg, Rep
from tests.pair import Direct

A, B, C, ME = b"a", b"b", b"c", b"m"


def bus(settings: Settings | None = None) -> Direct:
    """api, web and db on alpha, and a person."""
    rig = Direct(settings)
    for route, name in ((A, "api"), (B, "web"), (C, "db")):
        rig.hello(route, name)
    rig.hello(ME, "me", mode="send", meta={"kind": "human"})
    return rig


def send(rig: Direct, route: bytes, to: str, body: bytes | str = b"text", **args: Any) -> dict[str, Any]:
    """What became of it, with its id and whether it arrived quiet."""
    rep = rig.req(route, "send", {"to": [to], **args}, body.encode() if isinstance(body, str) else body)
    assert isinstance(rep, Rep), rep
    ident = (route.decode() + "".join("abcdefghij"[int(d)] for d in str(rig.outboxes[route]))).ljust(16, "z")
    pushed = [c for said in rig.sent.values() for c in said if isinstance(c, Msg)]
    return {**rep.result["to"][0], "id": ident, "quiet": any(m.quiet for m in pushed), "pushed": len(pushed)}


def breakers(rig: Direct) -> list[tuple[str, str]]:
    part = rig.say(A, {"c": "QRY", "r": 1, "what": "stats"})[0]
    return [(b["what"], b["name"]) for b in part.value["breakers"]]


# -- thanks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["ok", "OK!", "Thanks!", "thank you so much 🙏", "👍", "You’re welcome.", "Got it, thanks.", "ok, noted.\n"],
)
def test_thanks(text: str) -> None:
    assert is_thanks(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        *(
            "yes",
            "no",
            "done",
            "ok?",
            "ok 3",
            "do it",
            "thanks, now the tests",
            "ok - merge it",
            "...",
            "?",
            "ok `ls`",
        ),
        *(
            "not ok",
            "thanks for nothing",
            "approved",
            "go",
            "stop",
            "LGTM",
            "ok/err",
            "OK => ship",
            "+1",
            "ок",
            "ok" * 80,
        ),
        *("copy that file", "will do the migration", "all good except one", "great idea"),
    ],
)
def test_what_says_more_is_no_thanks(text: str) -> None:
    assert not is_thanks(text.encode())


WORDS = ("ok", "thanks", "deploy", "no", "42", "?", "port", "got", "it", "good")


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8))
def test_one_other_word_makes_it_a_message(words: list[str]) -> None:
    if set(words) & {"deploy", "no", "42", "?", "port"}:
        assert not is_thanks(" ".join(words).encode())


@given(st.binary(max_size=200))
def test_any_octets_may_come(body: bytes) -> None:
    assert is_thanks(body) in (True, False)


def test_thanks_for_thanks_wakes_nobody_and_then_ends() -> None:
    rig = bus(Settings(thanks=4))
    assert not send(rig, A, "web", "the build is green")["quiet"]
    told = [send(rig, route, to, "thanks!") for route, to in ((B, "api"), (A, "web")) * 3]
    assert [(t["status"], t["quiet"]) for t in told] == [
        ("stored", False), ("stored", True), ("stored", True), ("stored", True), ("refused", False), ("refused", False),
    ]  # fmt: skip
    assert told[1]["text"] == "it wakes nobody: thanks for thanks"
    assert told[4]["code"] == 403 and "nothing but thanks" in told[4]["text"]
    assert breakers(rig) == [("thanks", "api"), ("thanks", "web")] or breakers(rig) == [
        ("thanks", "web"),
        ("thanks", "api"),
    ]
    assert send(rig, A, "web", "one more thing: port 80")["status"] == "stored"
    assert not send(rig, B, "api", "ok")["quiet"], "what says something ends it"


def test_an_answer_is_never_taken_for_thanks() -> None:
    """ok may be a yes: whatever answers a message that said something passes, in any company."""
    rig = bus(Settings(thanks=2))
    asked = send(rig, A, "web", "may I deploy?")
    for _ in range(8):
        send(rig, A, "web", "thanks")
        send(rig, B, "api", "ok")
    assert send(rig, A, "web", "thanks")["status"] == send(rig, B, "api", "ok")["status"] == "refused"
    send(rig, A, "web", "thanks")
    told = send(rig, B, "api", "ok", re=asked["id"])
    assert (told["status"], told["quiet"]) == ("stored", False)
    assert told["pushed"] == 1


def test_thanks_to_several_or_for_several_is_none() -> None:
    rig = bus(Settings(thanks=2))
    for _ in range(6):
        assert not send(rig, A, "web", "thanks")["quiet"], "each may be for another thing"
    assert not send(rig, C, "web", "thanks")["quiet"]
    assert send(rig, B, "api", "thanks")["quiet"]
    rig.pass_time(governor.THANKS_MS)
    rig.hello(A, "api")
    rig.hello(B, "web")
    assert not send(rig, A, "web", "thanks")["quiet"], "it was over"


def test_people_thank_as_they_like() -> None:
    rig = bus(Settings(thanks=1))
    for _ in range(4):
        assert send(rig, ME, "api", "thanks")["status"] == send(rig, A, "me", "thanks")["status"] == "stored"


def test_thanks_switched_off() -> None:
    rig = bus(Settings(thanks=0))
    for _ in range(6):
        assert not send(rig, A, "web", "thanks")["quiet"] and not send(rig, B, "api", "thanks")["quiet"]


# -- hops ------------------------------------------------------------------------------------------------------------


def test_a_chain_of_replies_has_an_end_that_its_sender_is_told() -> None:
    rig = bus(Settings(hops=6))
    last = send(rig, A, "web", "start")
    ends = []
    for i in range(8):
        route, to = ((B, "api"), (A, "web"))[i % 2]
        told = send(rig, route, to, f"reply {i}", re=last["id"])
        ends.append(told["status"])
        last = told if told["status"] == "stored" else last
    assert ends[:6] == ["stored"] * 6 and ends[6] == "refused"
    refused = send(rig, B if len(ends) % 2 else A, "api", "again", re=last["id"])
    assert refused["code"] in (200, 403)
    assert send(rig, A, "web", "anew")["status"] == "stored"
    assert breakers(rig)[0][0] == "hops"


def test_hops_travel_with_the_message() -> None:
    rig = bus()
    one = send(rig, A, "web", "start", hops=3)
    (msg,) = [c for c in rig.sent[B] if isinstance(c, Msg)]
    assert msg.hops == 3
    send(rig, B, "api", "reply", re=one["id"])
    (msg,) = [c for c in rig.sent[A] if isinstance(c, Msg)]
    assert msg.hops == 4
    told = send(rig, A, "web", "far travelled", hops=1000)
    assert told["code"] == 403 and "1000" in told["text"] and "not as a reply" in told["text"]


def test_a_person_begins_anew() -> None:
    rig = bus(Settings(hops=2))
    one = send(rig, A, "me", "a", hops=2)
    two = send(rig, ME, "api", "b", re=one["id"])
    (msg,) = [c for c in rig.sent[A] if isinstance(c, Msg)]
    assert msg.hops == 0 and two["status"] == "stored"


def test_another_key_cannot_make_a_chain_longer_by_using_its_id() -> None:
    rig = bus(Settings(hops=3))
    rig.who[b"x"] = Who("key of beta", "beta", "member")
    rig.hello(b"x", "bad")
    paired(rig.broker.core, "key of alpha", "key of beta")
    one = send(rig, A, "web", "start")
    rig.req(b"x", "send", {"to": ["web"], "hops": 3}, b"of the same id", id=one["id"])
    assert send(rig, B, "api", "reply", re=one["id"])["status"] == "stored"


# -- wakes -----------------------------------------------------------------------------------------------------------


def test_a_wake_budget_leaves_the_mail_and_takes_the_noise() -> None:
    rig = bus(Settings(wakes=2))
    told = []
    for i in range(4):
        told.append(send(rig, A, "web", f"task {i}"))
        rig.pass_time(governor.WAKE_TOGETHER_MS)
        for route in (A, B, C, ME):
            rig.say(route, {"c": "PING", "k": 1})
    assert [(t["status"], t["quiet"]) for t in told] == [
        ("stored", False), ("stored", False), ("stored", True), ("stored", True),
    ]  # fmt: skip
    assert "does not wake web: woken 2 times within an hour" in told[2]["text"]
    assert breakers(rig) == [("wakes", "web")]
    assert not send(rig, A, "web", "for your information", kind="note").get("text")
    assert not send(rig, ME, "web", "look at this")["quiet"], "who sits at the keyboard may wake"
    rig.restart()
    assert [p.quiet for m in rig.broker.world.mailboxes.values() if m.name == "web" for p in m.pending.values()] == [
        False, False, True, True, False, False,
    ]  # fmt: skip


def test_what_comes_together_wakes_once() -> None:
    rig = bus(Settings(wakes=1))
    assert not any(send(rig, A, "web", f"task {i}")["quiet"] for i in range(20))


def test_an_hour_later_it_may_be_woken_again() -> None:
    keeper = Governor()
    assert [keeper.wake(t, "m", 1) for t in (0, 9_999, 10_000, governor.HOUR_MS - 1)] == [True, True, False, False]
    assert keeper.next_wake(10_000, "m") == governor.HOUR_MS
    assert keeper.wake(governor.HOUR_MS, "m", 1)
    assert keeper.wake(0, "other", 1)


def test_who_is_away_is_not_woken() -> None:
    rig = bus(Settings(wakes=1))
    rig.say(B, {"c": "BYE", "leave": True})
    for i in range(3):
        assert send(rig, A, "web", f"task {i}")["text"] == "offline; it waits"
        rig.pass_time(governor.WAKE_TOGETHER_MS)
        rig.say(A, {"c": "PING", "k": 1})


# -- rate ------------------------------------------------------------------------------------------------------------


def test_a_machine_has_one_rate_however_many_outboxes_it_opens() -> None:
    rig = bus(Settings(rate=1, burst=2))
    beta = Who("key of beta", "beta", "member")
    answers = []
    for i in range(15):
        route = f"x{i}".encode()
        rig.who[route] = beta
        rig.hello(route, f"n{i}")
        answers += [rig.say(route, _status(i, q))[0] for q in (1, 2)]
    refused = [a for a in answers if isinstance(a, Err)]
    assert len(answers) - len(refused) == 20 and {a.code for a in refused} == {429, 412}
    assert all(a.retry > 0 for a in refused if a.code == 429)
    assert rig.req(A, "status", {}).code == 200, "nobody else pays for it"
    assert ("rate", "n14") in breakers(rig)


def _status(i: int, q: int) -> dict[str, Any]:
    return {
        "c": "REQ",
        "q": q,
        "floor": q,
        "op": "status",
        "id": f"{'abcdefghijklmnop'[i]}{'bcd'[q]}".ljust(16, "a"),
        "args": {},
    }


def test_buckets_are_all_or_none_and_forgotten() -> None:
    keeper = Governor()
    assert not keeper.within(0, {"full": (1, 5), "empty": (1, 0)})
    assert [keeper.within(0, {"full": (1, 5)}) for _ in range(6)] == [True] * 5 + [False]
    assert keeper.within(1000, {"full": (1, 5)})
    for i in range(governor.BUCKETS_MAX + 10):
        keeper.within(2000 + i, {f"b{i}": (1, 1)})
    assert len(keeper._buckets) <= governor.BUCKETS_MAX


# -- breakers --------------------------------------------------------------------------------------------------------


def test_a_breaker_is_news_once_and_closes_by_itself() -> None:
    rig = bus(Settings(rate=1, burst=1))
    events = []
    for _ in range(5):
        rig.req(A, "status", {})
        events += rig.topics()
    assert events.count("bus.breaker") == 1
    (known,) = rig.broker.core.governor.breakers(rig.now)
    assert (known.what, known.count) == ("rate", 4)
    assert rig.broker.core.governor.breakers(rig.now + governor.RATE_MS) == []


def test_what_is_remembered_is_bounded() -> None:
    keeper = Governor()
    for i in range(governor.KNOWN_MAX + 5):
        keeper.delivered("s", "m", str(i), 1, True)
        keeper.thanks(0, "a", str(i), True, "")
        keeper.wake(i, str(i), 3)
    assert len(keeper._hops) == len(keeper._thanks) == len(keeper._talks) == governor.KNOWN_MAX
    assert len(keeper._wakes) == governor.KNOWN_MAX and keeper.next_wake(i, str(i)) > i


def test_breakers_that_are_closed_are_forgotten_first_then_those_that_close_first() -> None:
    keeper = Governor()
    for i in range(governor.BREAKERS_MAX):
        keeper.trip(0, "rate", str(i), 10 + i)
    keeper.trip(0, "rate", "one more", 5)
    assert len(keeper._breakers) == governor.BREAKERS_MAX // 2
    assert next(known.mailbox for known in keeper.breakers(0)) == str(governor.BREAKERS_MAX - 1)


def test_an_id_that_is_used_again_counts_for_its_own_sender() -> None:
    """Whoever uses the id of another's message neither lengthens nor ends the chain of answers to that one."""
    keeper = Governor()
    keeper.delivered("ann", "bob", "m1", 3, False)
    keeper.delivered("eve", "bob", "m1", 60, True)
    assert keeper.hops("bob", "m1", 0, ("ann",)) == 4
    assert keeper.hops("bob", "m1", 0, ("eve",)) == 61
    assert keeper.hops("bob", "m1", 0, ("cy",)) == 4, "elsewhere the first one counts"
    assert keeper.thanks(0, "ann", "bob", True, "") == 1
    assert keeper.thanks(1, "bob", "ann", True, "m1") == 1, "an answer to what ann said, which was no mere thanks"
