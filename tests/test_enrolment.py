"""enrolment, roles and revocation at the pure broker: who comes onto the roll, by what, and what falls off with it."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus import policy, wire
from bus.broker import Broker
from bus.core import Who
from bus.effects import Admit, Cut, Greet, Push, Shut
from bus.errors import LocalError
from bus.invitations import digest
from bus.roll import MACHINES_MAX, Principal, Roll, fingerprint
from tests.fuzz_heads import SEEDS, once
from tests.pair import Direct

HUB, FAR, OTHER = "H" * 40, "F" * 40, "O" * 40
OWNER, LAPTOP, NEWCOMER = b"owner", b"laptop", b"new"
TOKEN = "0123456789abcdef0123456789abcdef"


class Rig(Direct):
    """A hub with its own key on the roll; what its doors were told is kept."""

    def __init__(self, **others: Principal) -> None:
        super().__init__()
        known = {HUB: Principal("hub", "owner"), **others}
        self.broker = Broker(self.store.load(), self.now, self.settings, Roll(known, HUB))
        self.doors: list[Any] = []
        self.saved: list[Roll] = []
        self.who[OWNER] = Who(HUB, "hub", "owner")
        for key in others:
            policy.paired(self.broker.core, HUB, key)
        self.turn()

    def turn(self) -> dict[bytes, list[Any]]:
        take = self.broker.take

        def kept() -> Any:
            batch = take()
            self.doors += batch.doors
            if batch.roll is not None:
                self.saved.append(batch.roll)
            return batch

        self.broker.take = kept  # type: ignore[method-assign]
        try:
            return super().turn()
        finally:
            del self.broker.take  # type: ignore[method-assign]

    def owner(self, op: str, args: dict[str, Any]) -> Any:
        if OWNER not in self.outboxes:
            self.outboxes[OWNER] = 0
            self.hello(OWNER, "boss")
        return self.req(OWNER, op, args)

    def invite(self, **more: Any) -> Any:
        return self.owner("lan.invite", {"digest": digest(TOKEN).hex(), **more})

    def enroll(self, token: str = TOKEN, key: str = FAR, label: str = "laptop", route: bytes = NEWCOMER) -> list[Any]:
        head = wire.pack({"c": "ENROLL", "token": token, "label": label})
        return self.knock([wire.SIGNATURE, head], key, route)

    def knock(self, frames: list[bytes], key: str = FAR, route: bytes = NEWCOMER) -> list[Any]:
        """What was answered at the enrolment port."""
        self.doors.clear()
        self.broker.enroll(self.now, route, key, frames)
        self.turn()
        return [door.command for door in self.doors if isinstance(door, Greet)]

    @property
    def counters(self) -> dict[str, int]:
        return self.broker.core.counters

    @property
    def roll(self) -> Roll:
        return self.broker.core.roll

    def member(self, role: str = "member", route: bytes = LAPTOP, name: str = "api") -> list[Any]:
        self.who[route] = Who(FAR, "laptop", role)
        return self.hello(route, name)


def machine(role: Any = "member") -> dict[str, Principal]:
    return {FAR: Principal("laptop", role)}


# -- enrolment -------------------------------------------------------------------------------------------------------


def test_the_right_token_once() -> None:
    rig = Rig()
    assert rig.invite().code == 200
    assert [type(d) for d in rig.doors] == [Admit]
    assert rig.enroll() == [wire.Bye()]
    assert rig.roll.find(FAR) == Principal("laptop", "member", rig.now)
    assert [type(d) for d in rig.doors] == [Greet, Shut]  # answered before the port closes
    assert rig.saved[-1].find(FAR) is not None, "what is told must be on disk"
    # both take each other's mail from now on
    assert rig.topics() == ["bus.policy", "bus.policy", "lan.joined", "lan.closed"]
    assert rig.enroll(key=OTHER) == [] and OTHER not in rig.roll  # single use


def test_without_an_invitation_nobody_is_heard() -> None:
    rig = Rig()
    assert rig.enroll() == [] and FAR not in rig.roll and rig.counters["enrolment noise"] == 1


def test_five_wrong_tries_close_it_even_for_the_right_token() -> None:
    rig = Rig()
    rig.invite()
    for left in (4, 3, 2, 1, 0):
        (answer,) = rig.enroll(secrets.token_hex(16), OTHER)
        assert answer.code == 403 and rig.events[0].fields == {"left": left}
    assert isinstance(rig.doors[-1], Shut)
    assert rig.enroll() == [] and len(rig.roll) == 1
    assert rig.counters["enrolment refused"] == 5


def test_it_expires() -> None:
    rig = Rig()
    rig.invite(ttl=60_000)
    rig.doors.clear()
    rig.pass_time(59_999)
    assert not rig.doors
    rig.pass_time(1)
    assert [type(d) for d in rig.doors] == [Shut] and rig.topics() == ["lan.closed"]
    assert rig.enroll() == []


def test_it_is_over_at_its_time_even_before_the_tick() -> None:
    rig = Rig()
    rig.invite(ttl=1000)
    rig.now += 1000
    assert rig.enroll() == [] and FAR not in rig.roll


def test_a_further_invitation_replaces_the_first_and_close_withdraws() -> None:
    rig = Rig()
    rig.invite()
    rig.doors.clear()
    assert rig.owner("lan.invite", {"digest": digest("another").hex()}).code == 200
    assert [type(d) for d in rig.doors] == [Shut, Admit]
    assert rig.enroll()[0].code == 403
    assert rig.owner("lan.close", {}).code == 200
    assert rig.enroll("another") == []
    assert rig.owner("lan.close", {}).code == 404


def test_a_restart_closes_it() -> None:
    rig = Rig()
    rig.invite()
    rig.restart()
    assert rig.enroll() == []


def test_labels_are_unique_and_made_to_fit() -> None:
    rig = Rig()
    for number, (calls_itself, label) in enumerate(
        [("hub", "hub-2"), ("HUB", "hub-3"), ("My Mac.local", "my-mac-local"), ("…", "host"), ("x" * 60, "x" * 32)]
    ):
        rig.invite()
        assert rig.enroll(key=str(number) * 40, label=calls_itself) == [wire.Bye()]
        found = rig.roll.find(str(number) * 40)
        assert found is not None and found.label == label
    rig.invite(label="chosen")
    rig.enroll(label="laptop")
    assert rig.roll.labelled("chosen") == FAR
    assert rig.invite(label="No Label").code == 422


def test_the_same_machine_again_keeps_its_label_and_gets_the_role_of_the_invitation() -> None:
    rig = Rig(**machine())
    rig.member()
    rig.invite(role="observer")
    assert rig.enroll(label="other-name") == [wire.Bye()]
    assert rig.roll.find(FAR) == Principal("laptop", "observer", rig.now)
    assert rig.say(LAPTOP, {"c": "PING", "k": 1})[0].code == 401, "a session it may not have any more has ended"


def test_the_hub_does_not_join_itself_and_the_roll_has_an_end() -> None:
    rig = Rig()
    rig.invite()
    assert rig.enroll(key=HUB)[0].code == 409
    full = {str(i).rjust(40, "k"): Principal(f"m{i}", "member") for i in range(MACHINES_MAX - 1)}
    rig = Rig(**full)
    rig.invite()
    assert rig.enroll()[0].code == 507 and FAR not in rig.roll


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [wire.SIGNATURE],
        [b"GET / HTTP/1.1", b"x"],
        [wire.SIGNATURE, b"\xc1"],
        [wire.SIGNATURE, wire.pack({"c": "HELLO", "mode": "view", "inst": "i"})],
        [wire.SIGNATURE, wire.pack({"c": "BYE"})],
        [wire.SIGNATURE, wire.pack({"c": "QRY", "r": 1, "what": "stats"})],
        [wire.SIGNATURE, wire.pack({"c": "ENROLL"})],
        [wire.SIGNATURE, wire.pack({"c": "ENROLL", "token": 7})],
        [wire.SIGNATURE, wire.pack({"c": "ENROLL", "token": TOKEN}), b"body"],
        [wire.SIGNATURE, wire.pack({"c": "ENROLL", "token": TOKEN, "pad": "x" * 300})],
    ],
    ids=range(12),
)
def test_everything_else_there_is_noise(frames: list[bytes]) -> None:
    rig = Rig()
    rig.invite()
    assert rig.knock(frames) == [] and len(rig.roll) == 1
    assert rig.counters["enrolment noise"] == 1 and not rig.topics()
    assert rig.enroll() == [wire.Bye()], "and costs the invited nothing"


def test_enroll_is_unknown_at_the_session_port() -> None:
    rig = Rig()
    rig.invite()
    (answer,) = rig.say(LAPTOP, {"c": "ENROLL", "token": TOKEN})
    assert answer.code == 405 and len(rig.roll) == 1


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=300), st.just(wire.SIGNATURE)), max_size=4))
def test_no_noise_raises_or_pairs(frames: list[bytes]) -> None:
    rig = Rig()
    rig.invite()
    rig.knock(frames)
    assert len(rig.roll) == 1


def test_the_token_is_in_no_row_event_or_repr() -> None:
    rig = Rig()
    rig.invite()
    said = [str(rig.events), repr(rig.broker.core.invitation), repr(wire.Enroll(TOKEN, "x"))]
    rig.enroll()
    said += [str(rig.events), rig.store.dump().decode("latin-1")]
    assert not any(TOKEN in text for text in said)


def test_where_the_port_cannot_be_bound_the_invitation_is_closed() -> None:
    rig = Rig()
    rig.invite()
    rig.broker.enrolling(7719)
    assert rig.broker.core.invitation is not None and rig.broker.core.invitation.port == 7719
    rig.broker.enrolling(0, "no")
    assert rig.broker.core.invitation is None and rig.enroll() == []
    rig.broker.enrolling(7719)  # too late, and harmless


def test_a_roll_that_cannot_be_written_takes_nobody_in() -> None:
    rig = Rig()
    rig.invite()
    rig.broker.enroll(rig.now, NEWCOMER, FAR, [wire.SIGNATURE, wire.pack({"c": "ENROLL", "token": TOKEN})])
    batch = rig.broker.take()
    assert batch.roll is not None and FAR in batch.roll
    rig.broker.undo(rig.now, batch, rig.store.load())
    assert FAR not in rig.roll
    (answer,) = [d.command for d in rig.broker.take().doors if isinstance(d, Greet)]
    assert isinstance(answer, wire.Err) and answer.code == 503
    rig.invite()
    assert rig.enroll() == []  # nothing new while the disk is full: lan.invite itself is told 503
    rig.broker.resume()


def test_what_was_written_stays_though_the_database_refused_the_rest() -> None:
    rig = Rig(**machine())
    rig.member()
    rig.broker.core.now = rig.now
    rig.owner("status", {})
    rig.broker.receive(rig.now, OWNER, rig.who[OWNER], _req(rig, "lan.revoke", {"host": "laptop"}))
    batch = rig.broker.take()
    batch.former = None  # the shell: the roll is on disk
    rig.broker.undo(rig.now, batch, rig.store.load())
    assert FAR not in rig.roll
    assert any(isinstance(d, Cut) for d in rig.broker.take().doors)


def _req(rig: Rig, op: str, args: dict[str, Any]) -> list[bytes]:
    q = rig.outboxes[OWNER] + 1
    head = {"c": "REQ", "q": q, "floor": q, "op": op, "id": "a" * 16, "args": args}
    return [wire.SIGNATURE, wire.pack(head)]


# -- revocation ------------------------------------------------------------------------------------------------------


def test_a_revoked_machine_is_forgotten_ignored_and_sent_nothing() -> None:
    rig = Rig(**machine())
    rig.member()
    rig.owner("status", {})
    rig.doors.clear()
    assert rig.owner("lan.revoke", {"host": "Laptop"}).code == 200
    assert [(e.code, type(e)) for e in rig.sent[LAPTOP]] == [(401, wire.Err)]
    assert FAR not in rig.roll and [type(d) for d in rig.doors] == [Cut]
    assert "lan.revoked" in rig.topics()
    # Its live connection speaks on, with the key it had: the shell finds nobody of that key.
    rig.broker.receive(rig.now, LAPTOP, None, [wire.SIGNATURE, wire.pack({"c": "PING", "k": 1})])
    assert LAPTOP not in rig.turn() and rig.counters["revoked"] == 1
    # Mail for it waits; nothing is pushed.
    assert rig.req(OWNER, "send", {"to": ["api@laptop"]}, b"x").code == 200
    assert not any(isinstance(s, Push) for sends in rig.sent.values() for s in sends)
    assert LAPTOP not in rig.sent


def test_others_stay_when_one_is_revoked() -> None:
    rig = Rig(**machine(), **{OTHER: Principal("desk", "member")})
    rig.member()
    rig.who[b"desk"] = Who(OTHER, "desk", "member")
    rig.hello(b"desk", "web")
    rig.owner("lan.revoke", {"host": "laptop"})
    assert rig.req(b"desk", "send", {"to": ["boss@hub"]}, b"still here").code == 200


@pytest.mark.parametrize(("host", "code"), [("nobody", 404), ("hub", 422)], ids=["unknown", "the hub"])
def test_what_cannot_be_revoked(host: str, code: int) -> None:
    rig = Rig(**machine())
    assert rig.owner("lan.revoke", {"host": host}).code == code
    assert len(rig.roll) == 2


def test_an_owner_elsewhere_does_not_cut_the_branch_it_sits_on() -> None:
    rig = Rig(**machine("owner"))
    rig.member("owner")
    assert rig.req(LAPTOP, "lan.revoke", {"host": "laptop"}).code == 422
    assert rig.req(LAPTOP, "lan.role", {"host": "laptop", "role": "observer"}).code == 422
    assert rig.req(LAPTOP, "lan.invite", {"digest": digest("x").hex()}).code == 200


# -- roles -----------------------------------------------------------------------------------------------------------

OWNERS_ONLY = {
    "lan.invite": {"digest": digest("x").hex()},
    "lan.close": {},
    "lan.revoke": {"host": "desk"},
    "lan.role": {"host": "desk", "role": "owner"},
    "prune": {"before": 1},
}


@pytest.mark.parametrize("op", sorted(OWNERS_ONLY))
def test_members_do_not_govern(op: str) -> None:
    rig = Rig(**machine(), **{OTHER: Principal("desk", "member")})
    rig.member()
    assert rig.req(LAPTOP, op, OWNERS_ONLY[op]).code == 403
    assert len(rig.roll) == 3 and not rig.doors and rig.roll.find(OTHER) == Principal("desk", "member")


def test_observers_neither_send_nor_hold_nor_read_mail() -> None:
    rig = Rig(**machine("observer"))
    for mode in ("hold", "send"):
        route = mode.encode()
        rig.who[route] = Who(FAR, "laptop", "observer")
        (answer,) = rig.hello(route, "spy", mode=mode)
        assert answer.code == 403
    rig.who[b"view"] = Who(FAR, "laptop", "observer")
    rig.say(b"view", {"c": "HELLO", "mode": "view", "inst": "i"})
    for what in ("inbox", "message", "history", "search"):
        (answer,) = rig.say(b"view", {"c": "QRY", "r": 1, "what": what, "args": {"id": "a" * 16, "query": "x"}})
        assert (answer.code, type(answer)) == (403, wire.Done), what
    for what in ("peers", "stats", "machines", "whoami"):
        assert rig.say(b"view", {"c": "QRY", "r": 1, "what": what})[-1].code == 200
    (answer,) = rig.say(b"view", {"c": "REQ", "q": 1, "floor": 1, "op": "send", "id": "a" * 16, "args": {}})
    assert answer.code == 403 and isinstance(answer, wire.Err)


def test_another_role_counts_at_once_for_open_sessions() -> None:
    rig = Rig(**machine())
    rig.member()
    assert rig.req(LAPTOP, "prune", {"before": 1}).code == 403
    assert rig.owner("lan.role", {"host": "laptop", "role": "owner"}).code == 200
    assert rig.req(LAPTOP, "prune", {"before": 1}).code == 200
    assert rig.owner("lan.role", {"host": "laptop", "role": "observer"}).code == 200
    assert rig.sent[LAPTOP][0].code == 401
    assert rig.owner("lan.role", {"host": "laptop", "role": "king"}).code == 422


def test_machines_tells_fingerprints_and_no_keys_and_the_invitation_to_owners_only() -> None:
    rig = Rig(**machine())
    rig.member()
    rig.invite()
    rig.broker.enrolling(7719)
    rows = {}
    for route in (OWNER, LAPTOP):
        *parts, done = rig.say(route, {"c": "QRY", "r": 1, "what": "machines"})
        assert done.code == 200
        rows[route] = [part.value for part in parts]
    assert not any(key in str(rows) for key in (HUB, FAR))
    hub, far, invitation = rows[OWNER]
    assert (hub["host"], hub["hub"], hub["you"], hub["sessions"]) == ("hub", True, True, 1)
    assert (far["host"], far["role"], far["fingerprint"], far["sessions"]) == (
        "laptop",
        "member",
        fingerprint(FAR),
        1,
    )
    assert invitation["invitation"] == {"role": "member", "until": rig.now + wire.ENROL_MS, "port": 7719, "tries": 5}
    assert [row["you"] for row in rows[LAPTOP]] == [False, True]


# -- who somebody is -------------------------------------------------------------------------------------------------


def test_each_machine_has_its_own_api_and_nobody_the_others() -> None:
    rig = Rig(**machine())
    (mine,) = rig.hello(OWNER, "api")
    rig.outboxes[OWNER] = 0
    rig.req(OWNER, "status", {})
    (theirs,) = rig.member()
    assert mine.id != theirs.id and (mine.name, theirs.name) == ("api", "api")
    for route in (b"cli", b"copy", LAPTOP + b"2"):
        rig.who[route] = Who(FAR, "laptop", "member")
    rig.hello(b"cli", "someone", mode="send")
    rep = rig.req(b"cli", "send", {"to": ["api@hub"]}, b"to the hub")
    assert [(row["host"], row["status"]) for row in rep.result["to"]] == [("hub", "stored")]
    (pushed,) = [c for c in rig.sent[OWNER] if isinstance(c, wire.Msg)]
    assert (pushed.from_, pushed.host) == ("someone", "laptop"), "stamped by the broker"
    # Asking for a name gives one's own mailbox of that name, never another key's.
    assert not any(isinstance(c, wire.Msg) for c in rig.hello(LAPTOP + b"2", "api", inst="laptop"))
    (answer,) = rig.hello(b"copy", "web", ob=OWNER.hex().rjust(32, "0"))
    assert answer.code == 403, "an outbox belongs to its key"


def test_only_the_owner_of_a_mailbox_acknowledges_and_tells_receipts() -> None:
    rig = Rig(**machine())
    rig.hello(OWNER, "api")
    rig.outboxes[OWNER] = 0
    rig.member(name="eve")
    rig.who[b"cli"] = Who(HUB, "hub", "owner")
    rig.hello(b"cli", "boss", mode="send")
    rig.req(b"cli", "send", {"to": ["api@hub"]}, b"secret")
    (msg,) = [c for c in rig.sent[OWNER] if isinstance(c, wire.Msg)]
    rig.say(LAPTOP, {"c": "ACK", "ranges": [[1, 9]], "proof": "lie"})
    for of in ("", msg.fid):
        rig.req(LAPTOP, "receipt", {"moved": [["injected", "lie", 0, [msg.id, f"hub/{msg.id}"]]], "of": [of, of]})
        rig.req(LAPTOP, "settle", {"ids": [f"hub/{msg.id}"], "of": [of], "proof": "lie"})
    box = rig.broker.core.mailbox_named(HUB, "api")
    assert box is not None and [p.status for p in box.pending.values()] == ["stored"]


# -- heads after pairing ---------------------------------------------------------------------------------------------

NAMES = sorted({f.key for spec in wire.COMMANDS.values() for f in spec.fields})
PLAIN = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-2, 2**63), st.floats(), st.text(max_size=20), st.binary(max_size=9)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)
ARGS = sorted(
    "to kind tag re thread ttl exclude hops new moved ids proof name term fresh key ver before host role".split()
)
HEADS = st.builds(
    lambda c, op, args, rest: {**rest, "c": c, "op": op, "id": "a" * 16, "args": args},
    st.sampled_from([*wire.COMMANDS, "NOPE"]),
    st.sampled_from(
        ["send", "receipt", "settle", "rename", "take", "status", "state.set", "lan.revoke", "lan.invite"]
    ),
    st.dictionaries(st.sampled_from(ARGS), PLAIN, max_size=6),
    st.dictionaries(st.sampled_from(NAMES), st.one_of(PLAIN, st.integers(0, 3)), max_size=8),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(HEADS, st.binary(max_size=30)), min_size=1, max_size=6))
def test_no_head_of_a_paired_machine_breaks_the_broker_or_touches_others(
    said: list[tuple[dict[str, Any], bytes]],
) -> None:
    rig = Rig(**machine())
    rig.hello(OWNER, "api")
    rig.outboxes[OWNER] = 0
    rig.req(OWNER, "send", {"to": ["api@hub"]}, b"mine")
    rig.member(name="eve")
    before = rig.broker.core.mailbox_named(HUB, "api")
    assert before is not None
    term, inst = before.term, before.inst
    for head, body in said:
        head.setdefault("q", rig.outboxes.get(LAPTOP, 0) + 1)
        head.setdefault("floor", 1)
        try:
            packed = wire.pack(head)
        except LocalError:  # what cannot be packed is not sent
            continue
        for answer in rig.raw(LAPTOP, [wire.SIGNATURE, packed, body] if body else [wire.SIGNATURE, packed]):
            if isinstance(answer, wire.Rep):
                rig.outboxes[LAPTOP] = answer.q
    after = rig.broker.core.mailbox_named(HUB, "api")
    assert after is not None and (after.term, after.inst, after.key) == (term, inst, HUB)
    assert [p.status for p in after.pending.values()][:1] == ["stored"], "somebody else's mail moved"
    assert rig.roll.find(HUB) == Principal("hub", "owner") and rig.broker.core.invitation is None
    assert rig.say(OWNER, {"c": "PING", "k": 7})[0].k == 7


@pytest.mark.parametrize("seed", sorted(SEEDS.iterdir()), ids=lambda path: path.name)
def test_what_fuzzing_kept_breaks_nothing(seed: Path) -> None:
    once(seed.read_bytes())
