"""Queries the disk answers: who may see what, the ladder of a message, search over odd input, pruning in pieces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bus import wire
from bus.effects import (
    AddDelivery,
    AddMessage,
    AddOp,
    AddRefusal,
    Move,
    MoveById,
    PutMailbox,
    PutMeta,
    PutOutbox,
    PutState,
    Read,
    Release,
    Write,
)
from bus.errors import Code, Refused
from bus.store import Store
from bus.store_reads import match
from bus.world import Entry, Mailbox, Outbox

ANN = Mailbox("a0000000", "ann-key", "desk", "ann")
BOB = Mailbox("b0000000", "bob-key", "lap", "bob")
CY = Mailbox("c0000000", "cy-key", "far", "cy")
OWNER = Mailbox("", "owner-key", "", "")


def sent(ident: str, n: int, sender: Mailbox = ANN, to: tuple[Mailbox, ...] = (BOB,), **more: Any) -> list[Write]:
    fields = {
        "kind": "task",
        "tag": "",
        "re": "",
        "thread": "",
        "ts": n,
        "expires": 0,
        "hops": 0,
        "body": b"hi",
        **more,
    }
    made: list[Write] = [AddMessage(ident, sender.id, sender.name, sender.host, sender.key, **fields)]
    return [*made, *(AddDelivery(box.id, n, sender.id, ident, box.name, "stored", fields["ts"]) for box in to)]


def ask(store: Store, who: Mailbox, what: str, now: int = 1000, **args: Any) -> list[tuple[dict[str, Any], bytes]]:
    role = "owner" if who is OWNER else "member"
    args = {key.rstrip("_"): value for key, value in args.items()}
    parts = list(store.read(Read(b"", 1, what, args, who.id, who.key, role), now))
    for value, body in parts:
        wire.encode(wire.Part(2**53, value, body))  # fits a head
    return parts


def ids(parts: list[tuple[dict[str, Any], bytes]]) -> list[str]:
    return [value["id"] for value, _ in parts]


def refused(store: Store, who: Mailbox, what: str, **args: Any) -> Code:
    with pytest.raises(Refused) as error:
        store.read(Read(b"", 1, what, args, who.id, who.key, "member"), 1000)
    return error.value.code


@pytest.fixture
def store() -> Store:
    made = Store.memory()
    made.apply([PutMailbox(ANN), PutMailbox(BOB), PutMailbox(CY)])
    return made


def test_inbox_value_and_order(store: Store) -> None:
    store.apply(sent("aaaaaaa1", 1, tag="ci", thread="t", re="r", expires=1500, body="ü".encode()))
    store.apply([*sent("aaaaaaa2", 2, CY), Move(BOB.id, 2, "offered", 5, "", False)])
    store.apply(sent("aaaaaaa3", 3, to=(CY,)))
    first, second = ask(store, BOB, "inbox")
    assert first == (
        {
            "id": "aaaaaaa1",
            "n": 1,
            "from": "ann",
            "host": "desk",
            "fid": ANN.id,
            "to": "bob",
            "kind": "task",
            "tag": "ci",
            "re": "r",
            "thread": "t",
            "ts": 1,
            "status": "stored",
            "ttl": 500,
            "again": False,
        },
        "ü".encode(),
    )
    assert second[0]["status"] == "offered" and second[0]["again"] and "ttl" not in second[0]
    assert ask(store, ANN, "inbox") == []
    assert refused(store, OWNER, "inbox") == Code.FORBIDDEN


def test_only_what_was_offered_and_not_settled_may_be_a_repeat(store: Store) -> None:
    store.apply(sent("aaaaaaa2", 1, body=b"word"))
    store.index_piece()

    def told() -> dict[str, bool]:
        reads: dict[str, tuple[Mailbox, dict[str, Any]]] = {
            "inbox": (BOB, {"ids": ["aaaaaaa2"]}),
            "message": (BOB, {"id": "aaaaaaa2"}),
            "history": (BOB, {}),
            "search": (BOB, {"query": "word"}),
        }
        assert not any(value["again"] for value, _ in ask(store, ANN, "message", id="aaaaaaa2")), "for its sender"
        return {what: ask(store, who, what, **args)[0][0]["again"] for what, (who, args) in reads.items()}

    never = dict.fromkeys(("inbox", "message", "history", "search"), False)
    assert told() == never
    store.apply([Move(BOB.id, 1, "offered", 5, "printed", False)])
    assert told() == {**never, "inbox": True, "message": True}
    store.apply([Move(BOB.id, 1, "injected", 6, "printed", True)])
    assert told() == never


@pytest.mark.parametrize(
    ("seen", "marked"), [((0, 0), ""), ((1, 0), "a"), ((4, 0), "ac"), ((0, 3), "b"), ((0, 4), "bd"), ((4, 4), "abcd")]
)
def test_what_a_session_that_died_was_pushed_may_have_been_shown(
    store: Store, seen: tuple[int, int], marked: str
) -> None:
    """What wakes and what does not are pushed in an order of their own; a quiet task is of the second kind."""
    for n, kind in enumerate(("task", "note", "task"), 1):
        store.apply(sent("abc"[n - 1] * 8, n, kind=kind))
    message, delivery = sent("d" * 8, 4)
    store.apply([message, replace(delivery, quiet=True)])
    read = Read(b"", 1, "inbox", {}, BOB.id, BOB.key, "member", seen)
    assert "".join(value["id"][0] for value, _ in store.read(read, 1000) if value["again"]) == marked  # type: ignore[misc]
    other = Read(b"", 1, "message", {"id": "aaaaaaaa"}, ANN.id, ANN.key, "member", (9, 9))
    assert not any(value["again"] for value, _ in store.read(other, 1000))  # type: ignore[misc]


def test_inbox_filters(store: Store) -> None:
    for n in range(1, 31):
        store.apply(
            sent(f"m{n:07}", n, CY if n % 3 else ANN, tag=f"t{n % 2}", re=f"r{n}", kind="note" if n > 28 else "task")
        )
    store.apply([Move(BOB.id, n, "injected", 50, "p", True) for n in range(1, 6)])
    numbers = lambda **args: [value["n"] for value, _ in ask(store, BOB, "inbox", **args)]  # noqa: E731
    assert numbers() == list(range(6, 26))
    assert numbers(limit=3) == [6, 7, 8]
    assert numbers(limit=0) == [6]
    assert numbers(limit=9999) == list(range(6, 31))
    assert numbers(limit=3, after=20) == [21, 22, 23]
    assert numbers(unread=False) == list(range(11, 31))
    assert numbers(unread=False, limit=3, before=11) == [8, 9, 10]
    assert numbers(unread=False, before=1) == []
    assert numbers(unread=False, oldest=True, limit=3) == [1, 2, 3]
    assert numbers(from_="ann") == numbers(from_="Ann@desk") == [6, 9, 12, 15, 18, 21, 24, 27, 30]
    assert numbers(from_="ann@far") == []
    assert numbers(tag="t1", limit=2) == [7, 9]
    assert numbers(kind="note") == [29, 30]
    assert numbers(re="r12") == [12]
    assert numbers(ids=["m0000002", "m0000007", "nothing"]) == [2, 7]
    assert numbers(ids=["m0000002", "m0000007"], unread=True) == [7]


@pytest.mark.parametrize(
    "args",
    [
        {"limit": "x"},
        {"limit": -1},
        {"after": 2**60},
        {"before": -1},
        {"unread": 1},
        {"ids": "x"},
        {"ids": [1]},
        {"tag": 5},
        {"from": b"x"},
    ],
)
def test_wrong_arguments_are_named(store: Store, args: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=next(iter(args))) as error:
        store.read(Read(b"", 1, "inbox", args, BOB.id, BOB.key, "member"), 1)
    assert error.value.code == Code.INVALID
    assert refused(store, BOB, "nonsense") == Code.INVALID


def test_held_mail_waits_outside_the_inbox(store: Store) -> None:
    message = sent("aaaaaaa1", 1, to=())
    store.apply([*message, AddDelivery(BOB.id, 1, ANN.id, "aaaaaaa1", "bob", "held", 3)])
    assert ask(store, BOB, "inbox") == ask(store, BOB, "inbox", unread=False) == []
    while store.index_piece():
        pass
    assert ask(store, BOB, "history") == ask(store, BOB, "search", query="hi") == []
    assert refused(store, BOB, "message", id="aaaaaaa1") == Code.FORBIDDEN, "nor is it read by its id"
    assert ids(ask(store, ANN, "history")) == ["aaaaaaa1"], "its sender knows it"
    assert store.load().mailboxes[BOB.id].held[1].status == "held"
    [(value, body)] = ask(store, BOB, "held")
    assert (value["id"], value["to"], body) == ("aaaaaaa1", "bob", message[0].body)
    assert ask(store, BOB, "held", after=value["at"]) == ask(store, ANN, "held") == []
    store.apply([Release(BOB.id, 1, 2, 9, "bob")])
    assert ids(ask(store, BOB, "inbox")) == ["aaaaaaa1"]
    [(value, _)] = ask(store, ANN, "why", id="aaaaaaa1")
    assert [(step["status"], step["ts"]) for step in value["history"]] == [("held", 3), ("stored", 9)]


def test_the_owner_reads_what_others_wrote_and_not_what_is_held_for_him(store: Store) -> None:
    store.apply([PutMailbox(Mailbox("d0000000", "owner-key", "hub", "hub"))])
    for ident, to in (("aaaaaaa1", BOB.id), ("aaaaaaa2", "d0000000")):
        store.apply([*sent(ident, 1, to=()), AddDelivery(to, 1, ANN.id, ident, "x", "held", 3)])
    store.apply([*sent("aaaaaaa3", 1, to=()), AddRefusal(ANN.id, "aaaaaaa3", "hub", "hub", 403, "no", 3)])
    assert ids(ask(store, OWNER, "history")) == ["aaaaaaa1"]
    assert ids(ask(store, OWNER, "why", id="aaaaaaa2")) == ["aaaaaaa2"], "what became of it is no secret"
    store.apply([Release("d0000000", 1, 2, 9, "p")])
    assert sorted(ids(ask(store, OWNER, "history"))) == ["aaaaaaa1", "aaaaaaa2"]


def test_message_by_id_and_prefix(store: Store) -> None:
    store.apply([*sent("abcdefg2", 1), *sent("abcdxyz3", 2, body=b"two"), *sent("abcdzzz4", 3, CY, (CY,))])
    for who in (ANN, BOB, OWNER):
        assert ids(ask(store, who, "message", id="abcdefg2")) == ["abcdefg2"]
    assert ask(store, BOB, "message", id=" ABCDX ")[0][1] == b"two"
    assert refused(store, CY, "message", id="abcdefg2") == Code.FORBIDDEN
    assert refused(store, BOB, "message", id="abcd") == Code.CONFLICT
    assert ids(ask(store, CY, "message", id="abcd")) == ["abcdzzz4"]  # of the others cy must not even know
    assert refused(store, BOB, "message", id="abcdzzz") == Code.NOT_FOUND
    for bad in ("abc", "", 5):
        assert refused(store, BOB, "message", id=bad) == Code.INVALID


def test_one_id_of_two_senders(store: Store) -> None:
    store.apply([*sent("abcdefg2", 1, body=b"ann's"), *sent("abcdefg2", 2, CY, body=b"cy's")])
    assert ask(store, ANN, "message", id="abcdefg2")[0][1] == b"ann's"
    assert ask(store, CY, "message", id="abcdefg2")[0][1] == b"cy's"
    with pytest.raises(Refused, match=r"say which: ann@desk/abcdefg2, cy@far/abcdefg2") as error:
        ask(store, BOB, "message", id="abcdefg2")
    assert error.value.code == Code.CONFLICT
    for form in ("desk/abcdefg2", "Ann@desk/abcdefg2", "desk/ABCDE"):
        assert ask(store, BOB, "message", id=form)[0][1] == b"ann's", form
    assert ask(store, BOB, "message", id="abcdefg2", of=CY.id)[0][1] == b"cy's"
    assert refused(store, BOB, "message", id="abcd") == Code.CONFLICT, "the beginning of one id, and two messages"
    assert refused(store, BOB, "message", id="bob@desk/abcdefg2") == Code.NOT_FOUND
    assert refused(store, CY, "message", id="desk/abcdefg2") == Code.FORBIDDEN
    assert [body for _, body in ask(store, BOB, "inbox")] == [b"ann's", b"cy's"]
    store.apply(sent("abcdefg2", 3, BOB, (ANN,), body=b"bob's"))
    assert ask(store, BOB, "message", id="abcdefg2")[0][1] == b"bob's", "his own counts first"
    for sender, body in ((CY, b"cy's"), (ANN, b"ann's"), (BOB, b"bob's")):
        assert ask(store, OWNER, "message", id="abcdefg2", of=sender.id)[0][1] == body
    [(value, _)] = ask(store, OWNER, "why", id="abcd", of=CY.id)
    assert (value["fid"], value["from"], value["from_host"], value["mailbox"]) == (CY.id, "cy", CY.host, BOB.id)
    assert refused(store, OWNER, "why", id="abcdefg2", of="x") == Code.NOT_FOUND
    assert refused(store, OWNER, "why", id="abcdefg2", of=5) == Code.INVALID


def test_inbox_names_messages_exactly(store: Store) -> None:
    store.apply([*sent("abcdefg2", 1, body=b"ann's"), *sent("abcdefg2", 2, CY, body=b"cy's")])
    texts = lambda **args: [body for _, body in ask(store, BOB, "inbox", **args)]  # noqa: E731
    assert texts(ids=["abcdefg2"]) == [b"ann's", b"cy's"]
    assert texts(ids=["far/abcdefg2"]) == [b"cy's"]
    assert texts(ids=["abcdefg2"], of=[ANN.id]) == [b"ann's"]
    assert texts(ids=["nothing", "desk/abcdefg2"], of=["", CY.id]) == []


def test_why_answers_for_the_one_who_asks(store: Store) -> None:
    """Whoever uses an id again, later and as seen by its recipient, changes nothing of what its owner is told."""
    desk = Mailbox("d0000000", OWNER.key, "hub", "desk")
    shelf = Mailbox("e0000000", OWNER.key, "hub", "shelf")
    store.apply([PutMailbox(desk), PutMailbox(shelf)])
    store.apply(
        [*sent("abcdefg2", 1, desk, (BOB,), body=b"mine"), *sent("abcdefg2", 2, CY, (ANN, desk), body=b"bad")]
    )
    store.apply([Move(ANN.id, 2, "injected", 3, "transcript", True), Move(desk.id, 2, "injected", 3, "p", True)])
    for ident in ("abcdefg2", "abcde"):
        [(value, _)] = ask(store, OWNER, "why", id=ident)
        assert (value["from"], value["name"], value["status"]) == ("desk", "bob", "stored"), ident
        assert ask(store, OWNER, "message", id=ident)[0][1] == b"mine"
    assert [value["name"] for value, _ in ask(store, OWNER, "why", id="far/abcdefg2")] == ["ann", "desk"]
    store.apply(sent("abcdefg2", 3, shelf, (BOB,), body=b"of the shelf"))
    in_desk = Mailbox(desk.id, OWNER.key, "", "")
    assert ask(store, in_desk, "message", id="abcdefg2")[0][1] == b"mine", "its own mailbox goes first"
    with pytest.raises(Refused, match=r"say which: desk@hub/abcdefg2, shelf@hub/abcdefg2"):
        ask(store, OWNER, "why", id="abcdefg2")


def test_the_sender_sees_the_worst_copy(store: Store) -> None:
    store.apply([*sent("abcdefg2", 1, to=(BOB, CY)), Move(BOB.id, 1, "injected", 5, "p", True)])
    status = lambda who: ask(store, who, "message", id="abcdefg2")[0][0]["status"]  # noqa: E731
    assert (status(ANN), status(BOB), status(CY), status(OWNER)) == ("stored", "injected", "stored", "stored")
    assert ask(store, ANN, "message", id="abcdefg2")[0][0]["to"] == "cy, bob"
    store.apply([Move(CY.id, 1, "expired", 6, "", True)])
    assert (status(ANN), status(CY)) == ("expired", "expired")
    refused = [AddRefusal(ANN.id, "abcdefg3", name, "", 404, "no", 1) for name in ("dan", "eve")]
    store.apply([*sent("abcdefg3", 2, to=()), *refused, AddRefusal(CY.id, "abcdefg3", "fay", "", 404, "no", 1)])
    for what, args in (("message", {"id": "abcdefg3"}), ("history", {"limit": 1})):
        told = ask(store, ANN, what, **args)[0][0]
        assert (told["status"], told["to"]) == ("refused", "dan, eve")


def test_why_tells_the_ladder(store: Store) -> None:
    store.apply([*sent("abcdefg2", 1, to=(BOB, CY)), AddRefusal(ANN.id, "abcdefg2", "dan", "far", 507, "full", 3)])
    store.apply([AddRefusal(CY.id, "abcdefg2", "eve", "", 404, "another message of that id", 3)])
    store.apply([Move(BOB.id, 1, "offered", 5, "push", False), Move(BOB.id, 1, "expired", 6, "ttl", True)])
    store.apply(
        [MoveById(BOB.id, "abcdefg2", "injected", 7, "late"), MoveById(BOB.id, "abcdefg2", "injected", 8, "again")]
    )
    store.apply([MoveById(BOB.id, "abcdefg2", "answered", 9, "x"), MoveById(BOB.id, "abcdefg2", "failed", 10, "no")])
    bob, cy, dan = (value for value, body in ask(store, ANN, "why", id="abcd") if body == b"")
    assert (bob["name"], bob["host"], bob["status"], bob["from"]) == ("bob", "lap", "answered", "ann")
    assert [tuple(step.values()) for step in bob["history"]] == [
        ("stored", 1, ""),
        ("offered", 5, "push"),
        ("injected", 7, "late"),
        ("answered", 9, "x"),
        ("expired", 6, "ttl"),
        ("failed", 10, "no"),
    ]
    assert (cy["name"], cy["status"], len(cy["history"])) == ("cy", "stored", 1)
    assert (dan["name"], dan["status"], dan["code"], dan["text"]) == ("dan", "refused", 507, "full")
    assert refused(store, Mailbox("d", "dan-key", "", ""), "why", id="abcdefg2") == Code.FORBIDDEN


def test_a_step_that_is_told_early_settles_nothing(store: Store) -> None:
    store.apply([*sent("abcdefg2", 1), MoveById(BOB.id, "abcdefg2", "answered", 5, "x")])
    assert list(store.load().mailboxes[BOB.id].pending) == [1]
    assert ids(ask(store, BOB, "inbox")) == ["abcdefg2"]
    store.apply([Move(BOB.id, 1, "injected", 6, "p", True)])
    assert ask(store, BOB, "message", id="abcdefg2")[0][0]["status"] == "answered"
    assert store.load().mailboxes[BOB.id].pending == {}


@pytest.mark.parametrize(
    ("steps", "ends"),
    [
        (("expired", "failed"), "expired"),
        (("failed", "expired"), "failed"),
        (("injected", "expired", "offered"), "injected"),
        (("expired", "injected"), "injected"),
        (("acked", "injected"), "acked"),
        (("answered", "acked"), "answered"),
        (("offered", "stored", "held"), "offered"),
    ],
)
def test_status_only_climbs(store: Store, steps: tuple[str, ...], ends: str) -> None:
    store.apply(sent("abcdefg2", 1))
    store.apply([Move(BOB.id, 1, step, i, "", False) for i, step in enumerate(steps)])
    assert ask(store, BOB, "message", id="abcdefg2")[0][0]["status"] == ends


def test_history(store: Store) -> None:
    store.apply([*sent("mmmmmmm1", 1), *sent("mmmmmmm2", 2, BOB, (ANN,)), *sent("mmmmmmm3", 3, CY, (ANN, BOB))])
    store.apply(sent("mmmmmmm4", 4, CY, (CY,)))
    assert ids(ask(store, BOB, "history")) == ["mmmmmmm3", "mmmmmmm2", "mmmmmmm1"]
    assert ids(ask(store, OWNER, "history")) == ["mmmmmmm4", "mmmmmmm3", "mmmmmmm2", "mmmmmmm1"]
    assert ids(ask(store, BOB, "history", before=3, limit=1)) == ["mmmmmmm2"]
    assert ids(ask(store, BOB, "history", peer="cy")) == ["mmmmmmm3"]
    assert ids(ask(store, ANN, "history", peer="bob@lap")) == ["mmmmmmm3", "mmmmmmm2", "mmmmmmm1"]
    assert ask(store, ANN, "history", peer="bob@far") == []


def test_search(store: Store) -> None:
    texts = [b"deploy failed on the big box", b"Deployed: all fine", "böse \udcff".encode("utf-8", "surrogateescape")]
    for n, text in enumerate(texts, 1):
        store.apply(sent(f"mmmmmmm{n}", n, tag="ops" if n == 2 else "", body=text))
    store.apply(sent("mmmmmmm4", 4, CY, (CY,), body=b"deploy secret"))
    assert (store.indexed(), ask(store, BOB, "search", query="deploy")) == ((0, 4), [])
    assert (store.index_piece(3), store.indexed(), store.index_piece(), store.index_piece()) == (3, (3, 4), 1, 0)
    [(value, body)] = ask(store, BOB, "search", query="deploy")
    assert (value["id"], value["snippet"], body) == ("mmmmmmm1", "[deploy] failed on the big box", b"")
    assert ids(ask(store, BOB, "search", query="deploy*")) == ["mmmmmmm2", "mmmmmmm1"]
    assert ids(ask(store, BOB, "search", query='"big box" deploy')) == ["mmmmmmm1"]
    assert ask(store, BOB, "search", query='"box big"') == []
    assert ids(ask(store, BOB, "search", query="bose")) == ["mmmmmmm3"]
    assert ids(ask(store, BOB, "search", query="ops")) == ["mmmmmmm2"]
    assert ids(ask(store, BOB, "search", query="ann", limit=2)) == ["mmmmmmm3", "mmmmmmm2"]
    assert ids(ask(store, OWNER, "search", query="secret")) == ["mmmmmmm4"]
    assert ask(store, BOB, "search", query="secret") == []
    assert refused(store, BOB, "search", query=5) == Code.INVALID


QUERIES = Store.memory()
QUERIES.apply([PutMailbox(BOB), *sent("mmmmmmm1", 1, body=b"and or not near body: name")])
QUERIES.index_piece()


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab\"*^:(){}+-' \x00\nANDORNOTNEAR/,.ü②")) | st.text(max_size=60))
@example('NEAR("a" b, 5)')
@example("AND OR NOT")
@example('"unclosed')
@example("\x00a\x00")
@example('- * " ^ name : {a} ')
@example("a " * 2000)
def test_no_query_makes_search_fail(query: str) -> None:
    ask(QUERIES, BOB, "search", query=query)


def test_words_of_a_query_are_only_words() -> None:
    assert match("AND name:x") == '"AND" "name:x"'
    assert ids(ask(QUERIES, BOB, "search", query="NOT OR and")) == ["mmmmmmm1"]
    assert match('--- "" *') == ""


def test_a_large_text_does_not_burst_a_head(store: Store) -> None:
    big = "ü" * 100_000
    store.apply(sent("mmmmmmm1", 1, body=big.encode(), thread="ü" * 1024, re="ü" * 1024, to=tuple([BOB])))
    store.apply([AddRefusal(ANN.id, "mmmmmmm1", "ü" * 128, "x", 404, "ü" * 2000, 1)])
    moves = ("offered", "injected", "acked", "answered", "expired", "failed", "held")
    store.apply([Move(BOB.id, 1, step, 2**53, "\U0001f600" * 500, False) for step in moves])
    store.index_piece()
    for what, args in (("inbox", {}), ("why", {"id": "mmmmmmm1"}), ("history", {}), ("search", {"query": "ann"})):
        assert ask(store, BOB, what, **args)


def test_state(store: Store) -> None:
    def put(key: str, value: bytes, expires: int = 0, project: str = "p") -> PutState:
        return PutState(Entry(key, 7, "ann@desk", project, 5, expires, len(value)), value)

    store.apply([put("a/1", b"[1]"), put("a/2", b"[2]", 1500), put("a/3", b"[3]", 900), put("b", b"4", project="q")])
    [(value, body)] = ask(store, BOB, "state.get", key="a/2")
    assert value == {"key": "a/2", "ver": 7, "by": "ann@desk", "host": "desk", "project": "p", "ts": 5, "ttl": 500}
    assert body == b"[2]"
    assert refused(store, BOB, "state.get", key="a/3") == refused(store, BOB, "state.get", key="c") == Code.NOT_FOUND
    assert refused(store, BOB, "state.get", key="a b") == Code.INVALID
    listed = lambda **args: [(v["key"], b) for v, b in ask(store, BOB, "state.list", **args)]  # noqa: E731
    assert listed() == [("a/1", b"[1]"), ("a/2", b"[2]"), ("b", b"4")]
    assert listed(prefix="a/") == [("a/1", b"[1]"), ("a/2", b"[2]")]
    assert listed(project="q") == [("b", b"4")]


def op(seq: int, q: int, at: int, ob: str = "ob") -> AddOp:
    return AddOp(seq, at, ob, q, "send", b"d" * 16, bytes([seq]) * 16, 200, b"reply", "ann@desk")


def test_log(store: Store) -> None:
    store.apply([op(seq, seq, seq) for seq in range(1, 31)])
    seqs = lambda **args: [value["seq"] for value, _ in ask(store, BOB, "log", **args)]  # noqa: E731
    assert seqs() == list(range(11, 31))
    assert seqs(after=0, limit=3) == [1, 2, 3]
    assert seqs(after=28) == [29, 30]
    first = ask(store, BOB, "log", after=0, limit=1)[0][0]
    assert (first["chain"], first["digest"], first["who"]) == ("01" * 16, "64" * 16, "ann@desk")


def test_prune_in_pieces(store: Store) -> None:
    store.apply([PutOutbox(Outbox("ob", "k", 9, 4)), *(op(seq, seq, seq) for seq in range(1, 10))])
    for n in range(1, 41):
        store.apply(sent(f"mmmmmm{n:02}", n, to=(BOB, CY), body=b"word" * n))
    store.apply(
        [
            Move(box, n, "injected", 99, "p", True)
            for n in range(1, 31)
            for box in (BOB.id, CY.id)
            if n != 7 or box == CY.id
        ]
    )
    store.apply([*sent("mmmmmm99", 5, to=(), ts=2), AddRefusal(ANN.id, "mmmmmm99", "x", "", 404, "no", 2)])
    assert not store.prune_piece()
    while store.index_piece():
        pass
    before = store.load()
    expected = {"messages": 19, "octets": 4 * (sum(range(1, 20)) - 7) + 2, "orders_left": 0}
    assert ask(store, OWNER, "prune", before=20)[0][0] == expected
    store.apply([PutMeta("prune_before", 20)])
    before.prune_before = 20
    assert ask(store, OWNER, "prune")[0][0] == {**expected, "orders_left": 1}
    calls = 1
    while store.prune_piece(limit=4):
        assert store.load() == before
        calls += 1
    assert calls > 5
    assert ask(store, OWNER, "prune")[0][0] == {"messages": 0, "octets": 0, "orders_left": 0}
    assert store.sizes()["messages"] == 41 - 19 and store.sizes()["deliveries"] == 2 * 21 + 1
    assert [value["status"] for value, _ in ask(store, ANN, "why", id="mmmmmm07")] == ["stored"]
    assert store._db.execute("SELECT count(*) FROM refusals").fetchone()[0] == 0
    assert ask(store, ANN, "search", query="word" * 3) == [] and ask(store, ANN, "search", query="word" * 20) != []
    store._db.execute("INSERT INTO search (search) VALUES ('integrity-check')")
    assert [value["seq"] for value, _ in ask(store, BOB, "log", after=0)] == [4, 5, 6, 7, 8, 9]
    assert store.checkpoints() == [{"seq": 3, "chain": b"\x03" * 16, "at": 3, "removed": 3}]
    assert store.recall("ob", 3) is None and store.recall("ob", 4) is not None


def test_prune_keeps_the_newest_operation_and_stops_at_the_first_that_is_not_old(store: Store) -> None:
    store.apply([PutOutbox(Outbox("ob", "k", 4, 5)), op(1, 1, 1), op(2, 2, 9), op(3, 3, 1), op(4, 4, 1)])
    store.apply([PutMeta("prune_before", 5)])
    while store.prune_piece():
        pass
    assert [value["seq"] for value, _ in ask(store, BOB, "log")] == [2, 3, 4]
    store.apply([PutMeta("prune_before", 50)])
    while store.prune_piece():
        pass
    assert [value["seq"] for value, _ in ask(store, BOB, "log")] == [4]
    assert (store.load().seq, store.load().chain) == (4, b"\x04" * 16)


def test_a_message_after_a_pruned_one_is_indexed(store: Store) -> None:
    store.apply([*sent("mmmmmmm1", 1), Move(BOB.id, 1, "injected", 2, "", True), PutMeta("prune_before", 5)])
    store.index_piece()
    while store.prune_piece():
        pass
    again = Store.from_dump(store.dump())
    again.apply(sent("mmmmmmm2", 9, body=b"fresh"))
    assert again.index_piece() == 1
    assert ids(ask(again, BOB, "search", query="fresh")) == ["mmmmmmm2"]


def test_what_is_pruned_while_an_answer_is_taken_is_left_out(store: Store) -> None:
    store.apply([*sent("mmmmmmm1", 1), *sent("mmmmmmm2", 9), Move(BOB.id, 1, "injected", 2, "", True)])
    parts = store.read(Read(b"", 1, "history", {}, BOB.id, BOB.key, "member"), 1)
    store.apply([PutMeta("prune_before", 5)])
    while store.prune_piece():
        pass
    assert [value["id"] for value, _ in parts] == ["mmmmmmm2"]


def test_one_piece_is_bounded_by_octets(store: Store) -> None:
    for n in range(1, 6):
        store.apply(sent(f"mmmmmmm{n}", n, body=b"x " * 60_000))
    assert [store.index_piece() for _ in range(4)] == [2, 2, 1, 0]
    store.apply([*(Move(BOB.id, n, "injected", 9, "", True) for n in range(1, 6)), PutMeta("prune_before", 9)])
    left = [store.sizes()["messages"] for _ in range(3) if store.prune_piece()]
    assert left == [3, 1, 0]
