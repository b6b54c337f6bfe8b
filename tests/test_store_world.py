"""load() gives back what a simple model has, after any sequence of batches; a batch is whole or nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.effects import (
    AddDelivery,
    AddMessage,
    AddOp,
    AddRefusal,
    DropRule,
    DropState,
    Move,
    MoveById,
    PutMailbox,
    PutMeta,
    PutOutbox,
    PutPause,
    PutRule,
    PutState,
    Release,
    Write,
)
from bus.errors import StoreError
from bus.store import Store
from bus.world import Entry, Mailbox, Outbox, Pending, Rule, Saved, World

BOXES = ("a0000000", "b0000000", "c0000000")
OUTBOXES = ("ob1", "ob2")
KEYS = ("k1", "k2", "k3")
small = st.integers(0, 2**53)
texts = st.text(max_size=8)
metas = st.dictionaries(texts, st.none() | st.booleans() | small | texts | st.lists(small, max_size=2), max_size=3)


class Model:
    """What the core would have in memory, and the writes that lead there."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sent: list[tuple[str, str]] = []  # sender and id
        self.log: dict[tuple[str, int], Saved] = {}
        for ident in BOXES:
            world.mailboxes[ident] = Mailbox(ident, f"key-{ident}", "host", f"name-{ident}")
        for ident in OUTBOXES:
            world.outboxes[ident] = Outbox(ident, "key")

    def first(self) -> list[Write]:
        world = self.world
        return [
            *(PutMailbox(copy.deepcopy(m)) for m in world.mailboxes.values()),
            *(PutOutbox(copy.deepcopy(o)) for o in world.outboxes.values()),
        ]

    def send(self, data: Any) -> list[Write]:
        sender, ident = data.draw(st.sampled_from(BOXES)), f"m{data.draw(st.integers(0, 30))}"
        if (sender, ident) in self.sent:
            return []
        self.sent.append((sender, ident))
        body, expires = data.draw(st.binary(max_size=20)), data.draw(small)
        made: list[Write] = [
            AddMessage(ident, sender, "n", "h", "key", "task", "t", "", "", 5, expires, 0, body),
            AddRefusal(sender, ident, "nobody", "", 404, "no such name", 5),
        ]
        for to in data.draw(st.lists(st.sampled_from(BOXES), unique=True)):
            box = self.world.mailboxes[to]
            box.top += 1
            status, quiet = data.draw(st.sampled_from(("stored", "held"))), data.draw(st.booleans())
            why = data.draw(st.sampled_from(("", "paused"))) if status == "held" else ""
            pending = Pending(box.top, ident, sender, "task", len(body), expires, status, quiet, why, 5)
            (box.held if status == "held" else box.pending)[box.top] = pending
            made.append(AddDelivery(to, box.top, sender, ident, box.name, status, 5, why, quiet))
            made.append(PutMailbox(copy.deepcopy(box)))
        return made

    def move(self, data: Any) -> list[Write]:
        open_ = [(b, n) for b in self.world.mailboxes.values() for n in b.pending]
        if not open_:
            return []
        box, n = data.draw(st.sampled_from(open_))
        pending = box.pending[n]
        status = data.draw(st.sampled_from(("stored", "offered", "injected", "expired", "failed")))
        settled = status in ("injected", "expired", "failed")
        if settled:
            del box.pending[n]
        elif status == "offered":
            pending.status = status
        return [Move(box.id, n, status, data.draw(small), "proof", settled)]

    def held(self, data: Any) -> list[Write]:
        """Released under a new number, or settled unseen."""
        held = [(b, n) for b in self.world.mailboxes.values() for n in b.held]
        if not held:
            return []
        box, n = data.draw(st.sampled_from(held))
        pending = box.held.pop(n)
        if data.draw(st.booleans()):
            return [Move(box.id, n, data.draw(st.sampled_from(("expired", "failed"))), 5, "proof", True)]
        box.top += 1
        pending.n, pending.status, pending.why = box.top, "stored", ""
        box.pending[box.top] = pending
        return [Release(box.id, n, box.top, 5, "person"), PutMailbox(copy.deepcopy(box))]

    def policy(self, data: Any) -> list[Write]:
        key, about = data.draw(st.sampled_from(KEYS)), (data.draw(st.sampled_from(("", "m"))), "", "task")
        rules = self.world.policy.setdefault(key, {})
        if about in rules and data.draw(st.booleans()):
            del rules[about]
            if not rules:
                del self.world.policy[key]
            return [DropRule(key, about)]
        rules[about] = Rule(key, *about, data.draw(st.sampled_from(("accept", "hold"))), data.draw(small))
        return [PutRule(rules[about])]

    def pause(self, data: Any) -> list[Write]:
        key, since = data.draw(st.sampled_from(KEYS)), data.draw(small)
        self.world.paused.pop(key, None)
        if since:
            self.world.paused[key] = since
        return [PutPause(key, since)]

    def late(self, data: Any) -> list[Write]:
        """A step by id leaves nothing out of the working set and takes nothing in."""
        if not self.sent:
            return []
        status = data.draw(st.sampled_from(("acked", "answered", "injected", "failed")))
        return [MoveById(data.draw(st.sampled_from(BOXES)), data.draw(st.sampled_from(self.sent))[1], status, 7, "p")]

    def request(self, data: Any) -> list[Write]:
        world, outbox = self.world, self.world.outboxes[data.draw(st.sampled_from(OUTBOXES))]
        outbox.high += 1
        outbox.floor = data.draw(st.integers(outbox.floor, outbox.high))
        world.seq += 1
        world.chain = data.draw(st.binary(min_size=16, max_size=16))
        saved = Saved(data.draw(st.binary(max_size=16)), 200, data.draw(st.binary(max_size=9)))
        outbox.saved[outbox.high] = saved
        outbox.saved = {q: s for q, s in outbox.saved.items() if q >= outbox.floor}
        return [
            AddOp(world.seq, 5, outbox.id, outbox.high, "x", saved.digest, world.chain, 200, saved.reply, "n@h"),
            PutOutbox(copy.deepcopy(outbox)),
        ]

    def mailbox(self, data: Any) -> list[Write]:
        box = self.world.mailboxes[data.draw(st.sampled_from(BOXES))]
        box.name, box.inst, box.meta = data.draw(texts), data.draw(texts), data.draw(metas)
        box.term, box.active = data.draw(small), data.draw(small)
        return [PutMailbox(copy.deepcopy(box))]

    def state(self, data: Any) -> list[Write]:
        key = data.draw(st.sampled_from(KEYS))
        if key in self.world.state and data.draw(st.booleans()):
            del self.world.state[key]
            return [DropState(key)]
        entry = Entry(key, data.draw(small), "n@h", "p", data.draw(small), data.draw(small), 3)
        self.world.state[key] = entry
        return [PutState(copy.copy(entry), b"[1]")]

    def meta(self, data: Any) -> list[Write]:
        self.world.prune_before = data.draw(st.integers(0, 3))
        return [PutMeta("prune_before", self.world.prune_before)]


ACTIONS = (
    *(Model.send, Model.move, Model.move, Model.held, Model.late, Model.request, Model.mailbox, Model.state),
    *(Model.meta, Model.policy, Model.pause),
)
BAD = (
    AddOp(1, 5, "ob9", 1, "x", b"", b"", 200, b"", ""),
    AddDelivery(BOXES[0], 1, BOXES[0], "nowhere", "n", "stored", 1),
    PutMailbox(Mailbox(BOXES[0], "k", "h", "n", term=2**64)),
)


def batch(data: Any, model: Model) -> list[Write]:
    steps = data.draw(st.lists(st.sampled_from(ACTIONS), max_size=12))
    return [write for step in steps for write in step(model, data)]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_load_equals_the_model(data: Any) -> None:
    store = Store.memory()
    model = Model(store.load())
    store.apply([*model.first(), *model.request(data)])
    store.apply([write for _ in range(data.draw(st.integers(1, 6))) for write in model.send(data)])
    for _ in range(data.draw(st.integers(1, 4))):
        kept = copy.deepcopy(model)
        writes = batch(data, model)
        if data.draw(st.booleans()):
            dump = store.dump()
            with pytest.raises(StoreError):
                store.apply([*writes, data.draw(st.sampled_from(BAD))])
            assert store.load() == kept.world
            assert store.dump() == dump
        store.apply(writes)
        assert store.load() == model.world
        for box in store.load().mailboxes.values():
            assert list(box.pending) == sorted(box.pending)
    while store.index_piece(3):
        pass
    while store.prune_piece(3):
        pass
    while store.merge_piece():
        pass
    assert store.load() == model.world
    assert Store.from_dump(store.dump()).load() == model.world
    for box in model.world.mailboxes.values():
        for pending in box.pending.values():
            assert len(store.message(pending.sender, pending.msg).body) == pending.size
    store._db.execute("INSERT INTO search (search) VALUES ('integrity-check')")
