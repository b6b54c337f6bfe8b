"""Ids are chosen by senders: what a receipt, an acknowledgement or an answer names by one, and what is told of it."""

from __future__ import annotations

from typing import Any

import pytest

from bus import wire
from bus.core import Who
from bus.store_schema import LADDER
from tests.pair import Direct
from tests.test_broker_mail import A, B, C, D, bus, fid, history, pending

ID = "m" * 16


def moved(rig: Direct, *rows: tuple[str, str], of: str = "") -> Any:
    """A receipt of web: (status, how it names the message)."""
    args: dict[str, Any] = {"moved": [[status, "proof", 0, [ident]] for status, ident in rows]}
    if of:
        args["of"] = [fid(rig, of)] * len(rows)
    return rig.req(B, "receipt", args)


def clones(*names: str) -> Direct:
    """api sends web a message, and then each of the others sends web another one under the same id."""
    rig = bus("api", "web", *names)
    for route, _ in zip((A, C, D), ("api", *names), strict=False):
        rig.req(route, "send", {"to": ["web"]}, b"of " + route, id=ID)
    return rig


def steps(rig: Direct, sender: str) -> dict[str, str]:
    """What the disk says of the copy of this sender's message."""
    columns = ", ".join(f"d.{step}_at IS NOT NULL" for step in LADDER)
    sql = f"SELECT {columns}, d.open FROM deliveries d JOIN messages m ON m.row = d.msg WHERE m.sender = ?"
    *had, unsettled = rig.store._db.execute(sql, (fid(rig, sender),)).fetchone()
    found = {step: "disk" for step, there in zip(LADDER, had, strict=True) if there}
    return found | ({"open": "yes"} if unsettled else {})


def told(rig: Direct) -> list[tuple[str, str]]:
    """The events of the last turn: topic, and the sender's mailbox."""
    return [(event.topic, event.fields.get("fid", "")) for event in rig.events]


def counted(rig: Direct) -> dict[str, int]:
    return {name: n for name, n in rig.broker.core.counters.items() if name.startswith(("receipt", "settle"))}


def test_an_acknowledged_clone_leaves_the_original_alone() -> None:
    """evil at another machine sends a clone of api's id; web is shown the clone, and acknowledges that id."""
    rig = clones("evil@beta")
    assert [m.body for m in rig.sent.get(B, [])] == [b"of c"]
    moved(rig, ("offered", f"beta/{ID}"), ("injected", f"beta/{ID}"), of="evil")
    assert [box.body for box in waiting(rig)] == [b"of a"]
    moved(rig, ("acked", ID))
    assert told(rig) == [] and counted(rig) == {"receipt ambiguous": 1}, (
        "a restored disk may not know which was offered"
    )
    moved(rig, ("acked", f"beta/{ID}"))
    assert told(rig) == [("msg.acked", fid(rig, "evil"))]
    assert steps(rig, "api") == {"stored": "disk", "open": "yes"}
    assert [box.body for box in waiting(rig)] == [b"of a"], "the original is still to be shown"


def waiting(rig: Direct) -> list[wire.Msg]:
    """What web is pushed when it asks for everything."""
    rig.say(B, {"c": "ACK", "resync": True, "ranges": []})
    return [m for m in rig.sent.get(B, []) if isinstance(m, wire.Msg)]


@pytest.mark.parametrize("status", ["acked", "failed"])
@pytest.mark.parametrize("of", ["", "api"])
@pytest.mark.parametrize("form", [ID, f"alpha/{ID}"])
def test_what_was_not_offered_is_not_marked(status: str, of: str, form: str) -> None:
    rig = clones()
    moved(rig, (status, form), of=of)
    assert rig.events == [] and steps(rig, "api") == {"stored": "disk", "open": "yes"}
    assert counted(rig) == {"receipt not offered": 1}
    moved(rig, ("offered", form), (status, form), of=of)
    last = {"acked": ["msg.injected", "msg.acked"] if of else ["msg.acked"], "failed": ["msg.failed"]}[status]
    assert rig.topics() == (["msg.offered", *last])
    assert pending(rig, "web") == ([] if of else [ID]), "only an exact name settles"


def test_an_id_of_two_that_were_offered_is_ambiguous() -> None:
    rig = clones("evil@beta")
    for name in ("api", "evil"):
        moved(rig, ("offered", ID), of=name)
        assert told(rig) == [("msg.offered", fid(rig, name))]
    for status in ("injected", "acked", "failed", "offered"):
        moved(rig, (status, ID))
        assert rig.events == []
    assert counted(rig) == {"receipt ambiguous": 4}
    moved(rig, ("acked", f"beta/{ID}"))
    assert told(rig) == [("msg.acked", fid(rig, "evil"))], "the host tells which"


def test_two_mailboxes_of_one_host_may_use_one_id() -> None:
    rig = clones("db")
    moved(rig, ("offered", f"alpha/{ID}"))
    assert rig.events == [] and counted(rig) == {"receipt ambiguous": 1}
    moved(rig, ("offered", f"alpha/{ID}"), ("injected", f"alpha/{ID}"), of="db")
    assert told(rig) == [("msg.offered", fid(rig, "db")), ("msg.injected", fid(rig, "db"))]
    assert [m.body for m in waiting(rig)] == [b"of a"]
    moved(rig, ("acked", f"alpha/{ID}"))
    assert told(rig) == [] and counted(rig) == {"receipt ambiguous": 2}
    moved(rig, ("acked", f"alpha/{ID}"), of="db")
    assert told(rig) == [("msg.acked", fid(rig, "db"))]
    assert steps(rig, "api") == {"stored": "disk", "open": "yes"}


def test_a_foreign_receipt_is_counted_and_not_told() -> None:
    rig = bus("api", "web", "ada@beta")
    for status in ("injected", "acked", "failed", "offered"):
        moved(rig, (status, "z" * 16))
        assert rig.events == []
        moved(rig, (status, f"beta/{ID}"), of="ada")
        assert rig.events == []
    assert counted(rig) == {"receipt unknown": 8}
    seq = rig.broker.core.events
    rig.req(A, "send", {"to": ["web"]}, b"x", id=ID)
    assert [event.seq for event in rig.events] == [seq + 1], "nothing was left out that was not told"


def test_steps_that_are_told_late_are_numbered_without_a_gap() -> None:
    rig = clones()
    moved(rig, ("offered", ID), ("injected", ID), of="api")
    seq = rig.broker.core.events
    args = {"to": ["api"], "re": ID}
    q = rig.outboxes.get(B, 0) + 1
    head = {"c": "REQ", "q": q, "floor": q, "op": "send", "id": "r" * 16, "args": args}
    rig.broker.receive(rig.now, B, None, [wire.SIGNATURE, wire.pack(head), b"done"])
    more = {"moved": [["acked", "tool", 5, [ID]], ["acked", "again", 0, [ID]], ["injected", "late", 0, [ID]]]}
    head = {"c": "REQ", "q": q + 1, "floor": q + 1, "op": "receipt", "id": "s" * 16, "args": more}
    rig.broker.receive(rig.now, B, None, [wire.SIGNATURE, wire.pack(head)])
    rig.turn()
    rig.outboxes[B] = q + 1
    assert [(event.seq, event.topic) for event in rig.events] == [
        (seq + 1, "msg.stored"),
        (seq + 2, "msg.answered"),
        (seq + 3, "msg.acked"),
    ]
    (acked,) = [event.fields for event in rig.events if event.topic == "msg.acked"]
    assert acked["at"] == rig.now - 5 and acked["proof"] == "tool" and acked["kind"] == "task"
    assert (acked["from"], acked["from_host"], acked["to"]) == ("api", "alpha", "web"), "also of what was settled"


def test_an_answer_is_to_the_message_of_the_one_who_gets_it() -> None:
    rig = clones("evil@beta")
    rig.req(B, "send", {"to": ["evil@beta"], "re": ID}, b"what is this?")
    assert [t for t in told(rig) if "answered" in t[0]] == [("msg.answered", fid(rig, "evil"))]
    rig.req(B, "send", {"to": ["api"], "re": ID}, b"done")
    assert [t for t in told(rig) if "answered" in t[0]] == [("msg.answered", fid(rig, "api"))]
    rig.req(B, "send", {"to": ["api"], "re": "z" * 16}, b"about something else")
    assert rig.topics() == ["msg.stored"], "what was never received is not answered"


def test_a_receipt_by_id_that_the_disk_takes_for_what_waits() -> None:
    """An older agent reports by id alone: the disk finds the one message, and memory follows it."""
    rig = clones()
    moved(rig, ("offered", ID))
    assert rig.topics() == ["msg.offered"] and history(rig, "web", ID)["offered"] == "proof"
    assert [m.again for m in waiting(rig)] == [True]
    moved(rig, ("injected", ID))
    assert rig.topics() == ["msg.injected"] and pending(rig, "web") == [ID], "its ACK settles it"


def test_settle_needs_to_know_whose() -> None:
    rig = clones("db")
    rig.say(B, {"c": "BYE", "leave": True})
    rig.who[b"w"] = rig.who[B]
    rig.hello(b"w", "web", mode="send")
    for ids, of, done in (
        ([ID], [], 0),
        ([f"alpha/{ID}"], [], 0),
        ([f"alpha/{ID}"], ["nobody"], 0),
        ([f"alpha/{ID}"], [fid(rig, "db")], 1),
        ([f"alpha/{ID}"], [], 0),
    ):
        rep = rig.req(b"w", "settle", {"ids": ids, "proof": "printed", "of": of})
        assert rep.result == {"settled": done}, (ids, of)
    assert counted(rig) == {"settle ambiguous": 3, "receipt unknown": 1}


def test_held_messages_of_two_senders_are_told_apart() -> None:
    rig = Direct()
    for route, name, host in ((A, "api", "alpha"), (B, "web", "beta"), (C, "db", "alpha")):
        rig.who[route] = Who(f"key of {host}", host)
        rig.hello(route, name)
    rig.who[D] = rig.who[B]
    rig.hello(D, "person", mode="send", meta={"kind": "human"})
    for route in (A, C):
        rig.req(route, "send", {"to": ["web"]}, b"of " + route, id=ID)
    rep = rig.req(D, "hold.release", {"ids": [f"alpha/{ID}"]})
    assert rep.code == 409 and "api@alpha, db@alpha" in rep.text and rig.events == []
    rep = rig.req(D, "hold.release", {"ids": [f"alpha/{ID}", f"alpha/{ID}"], "of": [fid(rig, "db")] * 2})
    assert rep.result == {"done": 1, "missing": []}, "named twice, released once"
    assert [m.body for m in rig.sent[B]] == [b"of c"]


def test_what_was_printed_is_shown_though_its_time_ran_out_before_it_was_marked() -> None:
    rig = bus("api")
    rig.who[b"w"] = rig.who[A]
    rig.hello(b"w", "web", mode="send")
    ident = "m" * 16
    rig.req(A, "send", {"to": ["web"], "ttl": 1000}, b"soon", id=ident)
    exact = {"ids": [f"alpha/{ident}"], "of": [fid(rig, "api")]}
    rig.req(b"w", "receipt", {"moved": [["offered", "printed", 0, exact["ids"]]], "of": exact["of"]})
    rig.pass_time(2000)
    assert rig.req(b"w", "settle", {**exact, "proof": "printed"}).code == 200
    assert {"offered", "expired", "injected"} <= set(history(rig, "web", ident))
