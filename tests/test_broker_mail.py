"""Operations on mail: who gets a copy, what the sender is told, receipts, and what is read elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from bus import wire
from bus.core import Settings, Who
from bus.effects import Read
from bus.policy import paired
from bus.wire import Msg, Pong, Rep
from tests.pair import START, Direct

A, B, C, D = b"a", b"b", b"c", b"d"


def bus(*names: str, settings: Settings | None = None) -> Direct:
    """Routes a, b, c… hold these names; a name with @beta is another key's."""
    rig = Direct(settings)
    for route, name in zip((A, B, C, D), names, strict=False):
        name, _, host = name.partition("@")
        if host:
            rig.who[route] = Who(f"key of {host}", host)
        rig.hello(route, name)
    for key in sorted({who.key for who in rig.who.values()}):
        for other in sorted({who.key for who in rig.who.values()} - {key}):
            paired(rig.broker.core, key, other)
    rig.turn()
    return rig


def codes(rep: Rep) -> list[tuple[str, str, str, int]]:
    return [(row["name"], row["host"], row["status"], row["code"]) for row in rep.result["to"]]


def history(rig: Direct, name: str, ident: str) -> dict[str, str]:
    """Steps and proofs of the copy in this mailbox."""
    (mailbox,) = [m for m in rig.broker.world.mailboxes.values() if m.name == name]
    ask = Read(A, 1, "why", {"id": ident}, mailbox.id, mailbox.key, "owner")
    rows = [v for v, _ in rig.store.read(ask, rig.now) if v["name"] == name]
    return {step["status"]: step.get("proof", "") for row in rows for step in row["history"]}


def fid(rig: Direct, name: str) -> str:
    """The id of the mailbox of this name."""
    (found,) = [m.id for m in rig.broker.world.mailboxes.values() if m.name == name]
    return found


def pending(rig: Direct, name: str) -> list[str]:
    return [p.msg for m in rig.broker.world.mailboxes.values() if m.name == name for p in m.pending.values()]


def test_one_copy_with_everything_that_was_said() -> None:
    rig = bus("api", "web")
    rig.req(B, "send", {"to": ["api"]}, b"first")
    rig.now += 5
    re = "bb" + "z" * 14
    args = {"to": ["web"], "kind": "note", "tag": "t/1", "re": re, "ttl": 900, "hops": 2}
    rep = rig.req(A, "send", args, "grüß".encode())
    assert codes(rep) == [("web", "alpha", "stored", 200)]
    (msg,) = rig.sent[B]
    assert msg == Msg(1, 0, "abzzzzzzzzzzzzzz", "api", msg.fid, "alpha", "web", "note", START + 5, "t/1", re,
                      re, 900, 2, False, False, 0, 0, "grüß".encode())  # fmt: skip
    assert rig.topics() == ["msg.stored", "msg.answered"]
    assert "answered" in history(rig, "api", re)


def test_a_thread_of_its_own() -> None:
    rig = bus("api", "web")
    rig.req(A, "send", {"to": ["web"], "re": "b" * 16, "thread": "c" * 16}, b"x")
    assert rig.sent[B][0].thread == "c" * 16


def test_several_everybody_and_nobody_twice() -> None:
    rig = bus("api", "web", "db", "doc")
    rep = rig.req(A, "send", {"to": ["web", "WEB", "web@alpha", "db"]}, b"x")
    assert codes(rep) == [("web", "alpha", "stored", 200), ("db", "alpha", "stored", 200)]
    rep = rig.req(A, "send", {"to": ["*"], "exclude": ["doc"]}, b"x")
    assert [row[0] for row in codes(rep)] == ["web", "db"]
    rep = rig.req(A, "send", {"to": ["*", "web"]}, b"x")
    assert sorted(row[0] for row in codes(rep)) == ["db", "doc", "web"]
    rep = rig.req(A, "send", {"to": ["web"], "exclude": ["web"]}, b"x")
    assert rep.code == 404


def test_everybody_is_who_was_heard_from_and_is_a_session() -> None:
    rig = bus("api", "web")
    rig.hello(C, "svc", meta={"kind": "service"})
    rig.hello(D, "ann", meta={"kind": "human"})
    rig.req(A, "send", {"to": ["never"], "new": True}, b"x")
    assert [row[0] for row in codes(rig.req(A, "send", {"to": ["*"]}, b"x"))] == ["web"]
    rig.say(B, {"c": "BYE", "leave": True})
    rig.now += 24 * 3600 * 1000 - 1
    assert rig.req(A, "send", {"to": ["@all"]}, b"x").code == 200
    rig.now += 1
    assert rig.req(A, "send", {"to": ["*"]}, b"x").code == 404


def test_a_run_that_is_over_is_reached_by_its_name_alone() -> None:
    rig = bus("api", "web")
    rig.hello(C, "job-run-1a2b", meta={"cwd": "/src/job", "once": True})
    assert [row[0] for row in codes(rig.req(A, "send", {"to": ["job"]}, b"x"))] == ["job-run-1a2b"]
    rig.say(C, {"c": "BYE", "leave": True})
    assert rig.req(A, "send", {"to": ["/src/job"]}, b"x").code == 404
    assert [row[0] for row in codes(rig.req(A, "send", {"to": ["*"]}, b"x"))] == ["web"]
    assert rig.req(A, "send", {"to": ["job-run-1a2b"]}, b"x").code == 200
    rig.hello(D, "job", meta={"cwd": "/src/job"})
    assert [row[0] for row in codes(rig.req(A, "send", {"to": ["/src/job"]}, b"x"))] == ["job"]


def test_two_processes_of_one_session_do_not_throw_each_other_off() -> None:
    """The one that loses is told, and parks: else each would take what the other was not told it had lost."""
    rig = bus("web")
    first, second = ({"pid": pid, "start": "1"} for pid in (11, 12))
    rig.hello(B, "api", inst="S", meta=first)
    rig.hello(C, "api-2", inst="S", meta=second)
    assert [type(said) for said in rig.sent[B]] == [wire.Gone]
    assert [type(said) for said in rig.say(B, {"c": "PING"})] == [wire.Gone]
    rig.hello(C, "api-2", inst="S", term=1, meta=second)
    assert rig.req(A, "send", {"to": ["api-2"]}, b"x").code == 200


def test_one_is_unknown_and_the_worst_code_is_told() -> None:
    rig = bus("api", "web")
    rep = rig.req(A, "send", {"to": ["web", "webb", "@pool", "@pool/x", "bad\nname"]}, b"x")
    assert rep.code == 422
    assert [row[3] for row in codes(rep)] == [200, 404, 404, 404, 422]
    assert "did you mean web?" in rep.result["to"][1]["text"]
    assert rig.topics().count("msg.refused") == 4
    assert pending(rig, "web") == ["abzzzzzzzzzzzzzz"]


def test_a_new_mailbox_for_a_name_nobody_has_had() -> None:
    rig = bus("api")
    assert rig.req(A, "send", {"to": ["later"]}, b"x").code == 404
    rep = rig.req(A, "send", {"to": ["later"], "new": True}, b"x")
    assert rep.code == 200 and rep.result["to"][0]["text"] == "offline; it waits"
    assert rig.req(A, "send", {"to": ["no name"], "new": True}, b"x").code == 422
    assert rig.req(A, "send", {"to": ["a/b"], "new": True}, b"x").code == 404
    (welcome, msg) = rig.hello(B, "later")
    assert welcome.term == 1 and msg.body == b"x"


def test_addresses() -> None:
    rig = bus("api", "web", "web@beta", "db@beta")
    web = {m.host: m.id for m in rig.broker.world.mailboxes.values() if m.name == "web"}
    rig.hello(b"e", "site", meta={"cwd": "C:\\Work\\Site"})
    rig.hello(b"f", "site2", meta={"cwd": "/home/x/work/site"})
    rig.hello(b"g", "tool", meta={"cwd": "/home/x/tools"})

    def reached(text: str, route: bytes = A) -> list[tuple[str, str]] | int:
        rep = rig.req(route, "send", {"to": [text]}, b"x")
        return [(row[0], row[1]) for row in codes(rep)] if rep.code == 200 else rep.code

    assert reached("web") == [("web", "alpha")], "the sender's own key first"
    assert reached("web@beta") == [("web", "beta")]
    assert reached("WEB@Beta") == [("web", "beta")]
    assert reached("web@gamma") == 404
    assert reached("db") == [("db", "beta")], "the only one on the bus"
    assert reached(web["beta"]) == [("web", "beta")]
    assert reached(web["beta"][:5]) == [("web", "beta")]
    assert reached("tools") == [("tool", "alpha")]
    assert reached("work/Site") == 409 and reached("site") == [("site", "alpha")]
    assert reached("/home/x/work/site") == [("site2", "alpha")]
    rep = rig.req(A, "send", {"to": ["work/site"]}, b"x")
    assert "site@alpha id" in rep.result["to"][0]["text"] and "(use an id)" in rep.result["to"][0]["text"]
    rig.say(b"e", {"c": "BYE", "leave": True})
    assert reached("work/site") == [("site2", "alpha")], "the living first"


def test_a_name_of_two_other_keys_is_ambiguous() -> None:
    rig = bus("api", "web@beta", "web@gamma")
    rep = rig.req(A, "send", {"to": ["web"]}, b"x")
    assert rep.code == 409
    assert "web@beta" in rep.result["to"][0]["text"] and "web@gamma" in rep.result["to"][0]["text"]


@pytest.mark.parametrize(
    ("args", "body"),
    [
        ({"to": []}, b"x"),
        ({"to": ["api"] * 17}, b"x"),
        ({"to": [5]}, b"x"),
        ({"to": ["api"], "exclude": [None]}, b"x"),
        ({"to": ["api"], "exclude": ["x"] * 65}, b"x"),
        ({"to": ["api"], "kind": "order"}, b"x"),
        ({"to": ["api"], "tag": "a b"}, b"x"),
        ({"to": ["api"], "re": "short"}, b"x"),
        ({"to": ["api"], "thread": "short"}, b"x"),
        ({"to": ["api"]}, b""),
        ({"to": ["api"]}, b"\xff"),
    ],
)
def test_a_send_is_refused(args: dict[str, Any], body: bytes) -> None:
    rig = bus("api")
    assert rig.req(A, "send", args, body).code == 422
    assert pending(rig, "api") == []


def test_an_id_is_made_by_the_rule() -> None:
    rig = bus("api")
    assert rig.req(A, "send", {"to": ["api"]}, b"x", id="UPPER").code == 422


def test_full_mailboxes() -> None:
    rig = bus("api", "web", settings=Settings(mailbox_messages=2, mailbox_bytes=10))
    assert rig.req(A, "send", {"to": ["web"]}, b"12345678").code == 200
    rep = rig.req(A, "send", {"to": ["web", "api"]}, b"123")
    assert rep.code == 507 and [row[3] for row in codes(rep)] == [507, 200], "octets"
    assert rig.req(A, "send", {"to": ["web"]}, b"1").code == 200
    assert rig.req(A, "send", {"to": ["web"]}, b"1").code == 507, "messages"
    rig.say(B, {"c": "ACK", "ranges": [[1, 1]]})
    assert rig.req(A, "send", {"to": ["web"]}, b"123456789").code == 200, "room was made"


def test_the_same_message_twice_is_one_copy() -> None:
    rig = bus("api", "web")
    rig.req(A, "send", {"to": ["web"]}, b"x", id="m" * 16)
    rep = rig.req(A, "send", {"to": ["web"]}, b"x", id="m" * 16)
    assert rep.code == 200 and pending(rig, "web") == ["m" * 16]


def test_two_keys_may_use_one_id() -> None:
    rig = bus("api", "web", "db@beta")
    rig.req(A, "send", {"to": ["web"]}, b"of alpha", id="m" * 16)
    rig.req(C, "send", {"to": ["web"]}, b"of beta", id="m" * 16)
    rig.say(B, {"c": "ACK", "resync": True, "ranges": []})
    assert [(m.host, m.body) for m in rig.sent[B]] == [("alpha", b"of alpha"), ("beta", b"of beta")]
    rig.req(B, "receipt", {"moved": [["offered", "p", 0, ["m" * 16]], ["injected", "p", 0, ["m" * 16]]]})
    assert len(pending(rig, "web")) == 2, "which of them is not said"
    rig.req(B, "receipt", {"moved": [["injected", "p", 0, ["m" * 16]]], "of": [fid(rig, "db")]})
    rig.say(B, {"c": "ACK", "resync": True, "ranges": []})
    assert [m.host for m in rig.sent[B]] == ["alpha"]


# -- receipts ------------------------------------------------------------------------------------------------------


def test_receipts_climb_and_settle() -> None:
    rig = bus("api", "web")
    rig.req(A, "send", {"to": ["web"]}, b"x", id="m" * 16)
    rig.now += 1000
    for _ in range(2):
        assert rig.req(B, "receipt", {"moved": [["offered", "hook", 300, ["m" * 16]]]}).code == 200
    assert rig.topics() == [], "a step that was recorded stays as it is"
    assert history(rig, "web", "m" * 16)["offered"] == "hook"
    rig.req(B, "receipt", {"moved": [["acked", "tool", 0, ["alpha/" + "m" * 16]]], "of": [fid(rig, "api")]})
    assert rig.topics() == ["msg.injected", "msg.acked"] and pending(rig, "web") == []
    assert rig.say(B, {"c": "PING", "k": 1}) == [Pong(1, 3, [], 0, START + 1000)]
    assert rig.req(A, "receipt", {"moved": []}).code == 200


def test_receipts_after_a_restart() -> None:
    rig = bus("api", "web")
    rig.req(A, "send", {"to": ["web"]}, b"x", id="m" * 16)
    rig.restart()
    rig.hello(C, "web", inst="b")
    rig.req(C, "receipt", {"moved": [["injected", "p", 0, ["alpha/" + "m" * 16]]], "of": [fid(rig, "api")]})
    assert pending(rig, "web") == []


def test_a_receipt_before_its_message_in_one_batch() -> None:
    """After a broker lost its database the recipient may be first to speak of a message."""
    rig = bus("api", "web")
    moved = [["offered", "p", 0, ["alpha/" + "m" * 16]]]
    for route, op, args, body in ((B, "receipt", {"moved": moved}, b""), (A, "send", {"to": ["web"]}, b"x")):
        head = {"c": "REQ", "q": 1, "floor": 1, "op": op, "id": "m" * 16, "args": args | {"of": [fid(rig, "api")]}}
        frames = [wire.SIGNATURE, wire.pack(head)] + ([body] if body else [])
        rig.broker.receive(rig.now, route, None, frames)
    (msg,) = [m for m in rig.turn()[B] if isinstance(m, Msg)]
    assert msg.again
    rig.say(B, {"c": "PING"})
    assert rig.broker.core.stepped == set()


def test_failed_is_told() -> None:
    rig = bus("api", "web")
    rig.req(A, "send", {"to": ["web"]}, b"x", id="m" * 16)
    moved = [["offered", "hook", 0, ["m" * 16]], ["failed", "no path", 0, ["m" * 16]]]
    rig.req(B, "receipt", {"moved": moved, "of": 2 * [fid(rig, "api")]})
    assert rig.topics() == ["msg.offered", "msg.failed"] and pending(rig, "web") == []


def test_late_truth() -> None:
    rig = bus("api", "web")
    rig.req(A, "send", {"to": ["web"], "ttl": 100}, b"x", id="m" * 16)
    rig.say(B, {"c": "ACK", "ranges": [[1, 1]], "as": "expired"})
    assert rig.topics() == ["msg.expired"]
    rig.req(B, "receipt", {"moved": [["injected", "transcript", 0, ["m" * 16]]]})
    assert rig.topics() == ["msg.injected"]
    told = history(rig, "web", "m" * 16)
    assert "expired" in told and told["injected"] == "transcript"


@pytest.mark.parametrize(
    "moved",
    [
        [["seen", "p", 0, []]],
        [["offered", 5, 0, []]],
        [["offered", "p", 0]],
        ["offered"],
        [[["offered"], "p", 0, []]],
    ],
)
def test_receipts_are_checked(moved: list[Any]) -> None:
    assert bus("api").req(A, "receipt", {"moved": moved}).code == 422


def test_receipts_have_an_end() -> None:
    rig = bus("api", "web")
    for i in range(70):
        rig.req(A, "send", {"to": ["web"]}, b"x", id=f"m{chr(97 + i // 26)}{chr(97 + i % 26)}" + "m" * 13)
    every = pending(rig, "web")
    moved = [["injected", "p", "soon", every[:40]], ["injected", "p", -5, [None, *every[40:]]]]
    rig.req(B, "receipt", {"moved": moved, "of": 71 * [fid(rig, "api")]})
    assert pending(rig, "web") == every[63:], "at most 64 in all, what is no id counts too"


# -- read without holding ------------------------------------------------------------------------------------------


def test_settle_marks_what_nobody_holds() -> None:
    rig = bus("api", "web")
    rig.req(A, "send", {"to": ["web"]}, b"x", id="m" * 16)
    rig.hello(C, "web", mode="send")
    exact = {"ids": ["alpha/" + "m" * 16], "of": [fid(rig, "api")]}
    rep = rig.req(C, "settle", {**exact, "proof": "printed"})
    assert rep.code == 409, "its holder shows and marks its own"
    rig.say(B, {"c": "BYE", "leave": True})
    more = {"ids": [*exact["ids"], "alpha/none", 5], "of": [*exact["of"], "", ""]}
    rep = rig.req(C, "settle", {**more, "proof": "printed"})
    assert (rep.code, rep.result) == (200, {"settled": 1})
    assert pending(rig, "web") == [] and history(rig, "web", "m" * 16)["injected"] == "printed"


def test_settle_by_the_holder_makes_room() -> None:
    rig = bus("api", "web")
    for i in range(66):
        rig.req(A, "send", {"to": ["web"]}, b"x", id=f"m{chr(97 + i // 26)}{chr(97 + i % 26)}" + "m" * 13)
    rig.req(B, "settle", {"ids": pending(rig, "web")[:3], "proof": "p", "of": 3 * [fid(rig, "api")]})
    assert [m.n for m in rig.sent[B] if isinstance(m, Msg)] == [65, 66]
    assert rig.say(B, {"c": "PING", "k": 1})[0].open == [[4, 66]]


def test_prune_orders_only() -> None:
    rig = bus("api")
    assert rig.req(A, "prune", {"before": START + 1}).code == 422
    assert rig.req(A, "prune", {"before": 10}).result == {"before": 10}
    assert rig.topics() == ["bus.prune"]
    assert rig.req(A, "prune", {"before": 5}).result == {"before": 10}, "the later-reaching order stays"
    assert rig.topics() == [] and rig.broker.world.prune_before == 10
