"""Questions and answers at the broker: who was asked decides, not the id that a sender names."""

from __future__ import annotations

from typing import Any

from bus import wire
from bus.effects import Read
from bus.store import Store
from bus.store_schema import MIGRATIONS
from tests.pair import Direct
from tests.test_broker_mail import A, B, C, D, bus, history
from tests.test_policy import API, FAR, ME, YOU, person
from tests.test_policy import bus as strangers


def box(rig: Direct, name: str) -> str:
    return next(m.id for m in rig.broker.world.mailboxes.values() if m.name == name)


def ask(rig: Direct, route: bytes, to: str, ms: int = 20_000, **args: Any) -> str:
    """A question; its id."""
    assert rig.req(route, "send", {"to": [to], "ask": ms, **args}, b"?").code in (200, 202)
    q = rig.outboxes[route]
    return (route.decode() + "".join("abcdefghij"[int(d)] for d in str(q))).ljust(16, "z")


def reply(rig: Direct, route: bytes, to: str, re: str, **args: Any) -> wire.Msg | None:
    """What the recipient is pushed."""
    rig.req(route, "send", {"to": [to], "re": re, **args}, b"!")
    return next((c for said in rig.sent.values() for c in said if isinstance(c, wire.Msg)), None)


def marks(rig: Direct, name: str, what: str, **args: Any) -> list[tuple[int, int]]:
    """`ask` and `answer` of what a query tells the session of this name."""
    mailbox = rig.broker.world.mailboxes[box(rig, name)]
    rows = rig.store.read(Read(A, 1, what, args, mailbox.id, mailbox.key, "owner"), rig.now)
    return [(value.get("ask", 0), value.get("answer", 0)) for value, _ in rows]


def test_a_question_says_how_long_it_is_matched_and_an_answer_how_long_it_is_waited_for() -> None:
    rig = bus("api", "web")
    ident = ask(rig, A, "web")
    assert [(m.ask, m.answer) for m in rig.sent[B]] == [(20_000 + wire.ANSWER_MS, 0)]
    rig.now += 5_000
    told = reply(rig, B, "api", ident)
    assert told is not None and (told.ask, told.answer, told.re) == (0, 15_000, ident)
    assert rig.topics() == ["msg.stored", "msg.answered"]
    rig.now += 30_000
    late = reply(rig, B, "api", ident, kind="note")
    assert late is not None and late.answer == 1
    assert marks(rig, "api", "inbox", re=ident) == [(0, 1), (0, 1)]
    assert marks(rig, "web", "message", id=ident) == [(wire.ANSWER_MS - 15_000, 0)]
    rig.now += wire.ANSWER_MS
    assert marks(rig, "web", "message", id=ident) == [(0, 0)]


def test_what_was_not_a_question_has_no_answer() -> None:
    rig = bus("api", "web")
    rig.req(A, "send", {"to": ["web"]}, b"do it")
    told = reply(rig, B, "api", "ab" + "z" * 14)
    assert told is not None and told.answer == 0
    assert "answered" in history(rig, "web", "ab" + "z" * 14)


def test_only_the_mailbox_that_was_asked_answers() -> None:
    rig = bus("api", "web", "eve", "far@beta")
    ident = ask(rig, A, "web")
    for route in (C, D):
        forged = reply(rig, route, "api", ident)
        assert forged is not None and forged.answer == 0 and forged.re == ident
        assert rig.topics() == ["msg.stored"]
    assert "answered" not in history(rig, "web", ident)
    assert marks(rig, "api", "inbox", re=ident, fid=box(rig, "web")) == []
    assert marks(rig, "api", "inbox", re=ident) == [(0, 0), (0, 0)]
    elsewhere = reply(rig, B, "eve", ident)
    assert elsewhere is not None and elsewhere.answer == 0 and rig.topics() == ["msg.stored"]
    assert "answered" not in history(rig, "web", ident)
    assert reply(rig, B, "api", ident).answer == 20_000  # type: ignore[union-attr]
    assert "answered" in history(rig, "web", ident)


def test_an_id_that_two_have_used_is_told_apart_by_who_sent_it() -> None:
    rig = bus("api", "web", "eve")
    ident = ask(rig, A, "web")
    head = {"c": "REQ", "q": 1, "floor": 1, "op": "send", "id": ident, "args": {"to": ["web"], "ask": 9_000}}
    rig.say(C, head, b"mine has that id as well")
    rig.outboxes[C] = 1
    assert reply(rig, B, "eve", ident).answer == 9_000  # type: ignore[union-attr]
    rows = rig.store._db.execute(
        "SELECT m.name, d.answered_at IS NOT NULL FROM deliveries d JOIN messages m ON m.row = d.msg WHERE m.id = ?",
        (ident,),
    ).fetchall()
    assert dict(rows) == {"api": 0, "eve": 1}


def test_a_reply_that_was_refused_or_is_held_answers_nothing_until_it_is_released() -> None:
    rig = strangers()
    person(rig, "policy.set", action="accept", machine="beta")
    person(rig, "policy.set", YOU, action="accept", machine="alpha")
    ident = ask(rig, API, "far")
    person(rig, "policy.set", action="refuse", machine="beta")
    assert reply(rig, FAR, "api", ident) is None and rig.topics() == ["msg.refused"]
    assert "answered" not in history(rig, "far", ident)
    person(rig, "policy.set", action="hold", machine="beta")
    assert reply(rig, FAR, "api", ident) is None and rig.topics() == ["msg.held"]
    assert "answered" not in history(rig, "far", ident)
    held = [p.msg for m in rig.broker.world.mailboxes.values() for p in m.held.values()]
    rig.now += 1_000
    assert rig.req(ME, "hold.release", {"ids": held}).code == 200
    assert rig.topics() == ["msg.stored", "msg.answered"]
    assert [c.answer for c in rig.sent[API] if isinstance(c, wire.Msg)] == [19_000]
    assert history(rig, "far", ident)["answered"] == held[0]


def test_a_question_that_is_held_was_not_asked_yet() -> None:
    """Its id may be known from the events; whoever names it has not seen it."""
    rig = strangers()
    person(rig, "policy.set", action="accept", machine="beta")
    ident = ask(rig, API, "far")
    told = reply(rig, FAR, "api", ident)
    assert told is not None and told.answer == 0 and rig.topics() == ["msg.stored"]
    assert "answered" not in history(rig, "far", ident)


def test_a_restart_forgets_no_question() -> None:
    rig = bus("api", "web")
    ident = ask(rig, A, "web", 600_000)
    rig.restart()
    for route, name in ((A, "api"), (B, "web")):
        rig.hello(route, name, term=1)
    assert [m.ask for m in rig.sent[B] if isinstance(m, wire.Msg)] == [600_000 + wire.ANSWER_MS]
    rig.say(B, {"c": "ACK", "ranges": [[1, 1]]})
    rig.restart()
    for route, name in ((A, "api"), (B, "web")):
        rig.hello(route, name, term=1)
    assert reply(rig, B, "api", ident).answer == 600_000  # type: ignore[union-attr]
    assert rig.topics() == ["msg.stored", "msg.answered"], "the disk knows it, and is asked"
    assert "answered" in history(rig, "web", ident)


def test_a_question_has_one_recipient_and_a_longest_time() -> None:
    rig = bus("api", "web", "db")
    rep = rig.req(A, "send", {"to": ["web", "db"], "ask": 1000}, b"?")
    assert rep.code == 422 and "one recipient" in rep.text
    ask(rig, A, "web", 2**53)
    assert rig.sent[B][0].ask == wire.ASK_MAX_MS + wire.ANSWER_MS


def test_a_message_is_matched_with_the_question_of_its_recipient() -> None:
    rig = bus("api", "web", "eve")
    ident, other = ask(rig, A, "web"), ask(rig, C, "web")
    pairs = [[box(rig, "api"), ident], [box(rig, "eve"), other]]
    rig.req(A, "rename", {"name": "backend"})  # the mailbox counts, not what it was called
    rep = rig.req(B, "send", {"to": ["backend"], "answers": pairs}, b"!")
    assert rep.code == 200 and rep.result["re"] == ident
    (msg,) = [c for c in rig.sent[A] if isinstance(c, wire.Msg)]
    assert (msg.re, msg.thread, msg.answer) == (ident, ident, 20_000)
    assert "answered" in history(rig, "web", ident)
    rep = rig.req(B, "send", {"to": ["backend"], "answers": pairs[1:]}, b"no question of its own")
    assert "re" not in rep.result and rig.sent[A][0].re == ""
    rep = rig.req(B, "send", {"to": ["backend"], "re": "c" * 16, "answers": pairs}, b"it says so")
    assert "re" not in rep.result and rig.sent[A][0].re == "c" * 16


def test_of_several_none_is_taken_and_nothing_is_sent() -> None:
    rig = bus("api", "web")
    first, second = ask(rig, A, "web"), ask(rig, A, "web")
    rep = rig.req(B, "send", {"to": ["api"], "answers": [[box(rig, "api"), x] for x in (first, second)]}, b"!")
    assert rep.code == 409 and first in rep.text and second in rep.text and "api@alpha" in rep.text
    assert [type(c) for said in rig.sent.values() for c in said] == [wire.Rep]


def test_anything_but_a_pair_of_mailbox_and_id_is_ignored() -> None:
    rig = bus("api", "web", "db")
    ident, api = ask(rig, A, "web"), box(rig, "api")
    for pairs in ([ident], [[api]], [[api, 5]], [[api, "x"]], [[5, ident]], [None], [[api, ident, 1]]):
        assert "re" not in rig.req(B, "send", {"to": ["api"], "answers": pairs}, b"!").result
    assert "re" not in rig.req(B, "send", {"to": ["api", "db"], "answers": [[api, ident]]}, b"!").result
    assert rig.req(B, "send", {"to": ["nobody"], "answers": [[api, ident]]}, b"!").code == 404


def test_a_database_of_the_schema_before_questions_is_migrated() -> None:
    store = Store.memory()
    db = store._db
    db.execute("ALTER TABLE messages DROP COLUMN ask")
    db.execute(f"PRAGMA user_version = {next(i for i, sql in enumerate(MIGRATIONS) if ' ask ' in sql)}")
    columns = "row, id, sender, name, host, key, kind, tag, re, thread, ts, expires, hops, size, body"
    db.execute(
        f"INSERT INTO messages ({columns}) VALUES (1, 'm', 's', 'n', 'h', 'k', 'task', '', '', '', 1, 0, 0, 1, x'41')"
    )
    made = Store.from_dump(store.dump())
    assert made.message("s", "m").ask == 0
    assert made._db.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)


def test_nobody_waits_for_a_second_answer() -> None:
    rig = bus("api", "web")
    ident = ask(rig, A, "web", 600_000)
    first = reply(rig, B, "api", ident)
    assert first is not None and first.answer == 600_000
    second = reply(rig, B, "api", ident)
    assert second is not None and second.answer == 1
    assert sorted(marks(rig, "api", "inbox", re=ident)) == [(0, 1), (0, 600_000)]
