"""The people at the machines of a run: they make rules, pause, and decide over what is held. And the rules as the
checker knows them, from what was asked and accepted, by a reading of the protocol of its own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bus import wire
from bus.effects import AddMessage
from tests.sim.app import AppSeat

if TYPE_CHECKING:
    from tests.sim.faults import SimHub

Rules = dict[tuple[str, str, str, str], str]  # owner, machine, name, kind -> action


@dataclass(slots=True)
class Word:
    """What the people have said so far."""

    rules: Rules = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)

    def accepted(self, owner: str, req: wire.Req) -> None:
        """A request of this owner's person was accepted."""
        args = req.args
        machine = f"key of {args['machine']}" if args.get("machine") else ""
        about = (owner, machine, args.get("name", ""), args.get("kind", ""))
        if req.op == "policy.set":
            self.rules[about] = args["action"]
        elif req.op == "policy.unset":
            del self.rules[about]
        elif req.op == "pause":
            (self.paused.add if args["on"] else self.paused.discard)(owner)

    def fate(self, owner: str, message: AddMessage) -> str:
        """ "stored", "held" or "refused": what must become of a message to a mailbox of `owner`."""
        own = message.key == owner
        fit = [
            ((machine != "", name != "", kind != ""), action)
            for (key, machine, name, kind), action in self.rules.items()
            if key == owner
            and (machine == message.key or (machine == "" and not own))
            and name in ("", message.name)
            and kind in ("", message.kind)
        ]
        action = max(fit)[1] if fit else "accept" if own else "hold"
        if action == "refuse":
            return "refused"
        return "held" if action == "hold" or owner in self.paused else "stored"


def is_person(seat: AppSeat) -> bool:
    """Whether somebody sits at a keyboard here."""
    return seat.profile.meta.get("kind") == "human"


def held(hub: SimHub, key: str) -> list[tuple[str, str]]:
    """What is held for the person of a key, as a listing would tell: host/id and the mailbox that sent it."""
    if not hub.up:
        return []
    boxes = hub.alive.world.mailboxes
    found = [(boxes[p.sender].host, p.msg, p.sender) for m in boxes.values() if m.key == key for p in m.held.values()]
    return list(dict.fromkeys((f"{host}/{msg}", sender) for host, msg, sender in found))


def decision(rng: random.Random, hub: SimHub, seat: AppSeat, hosts: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """An operation that a person might want now."""
    chance = rng.random()
    if chance < 0.3:
        args: dict[str, Any] = {"action": rng.choice(("accept", "accept", "hold", "refuse")), **_about(rng, hosts)}
        return "policy.set", args
    if chance < 0.4:
        return "policy.unset", _about(rng, hosts)
    if chance < 0.85:
        known = held(hub, seat.who.key)
        some = rng.sample(known, rng.randint(1, min(8, len(known)))) if known else [("a" * 16, "")]
        op = "hold.drop" if rng.random() < 0.25 else "hold.release"
        if rng.random() < 0.5:
            return op, {"ids": [ident for ident, _ in some], "of": [sender for _, sender in some]}
        return op, {"ids": [i if rng.random() < 0.7 else i.partition("/")[2] or i for i, _ in some]}
    return "pause", {"on": rng.random() < 0.5}


def _about(rng: random.Random, hosts: tuple[str, ...]) -> dict[str, Any]:
    about: dict[str, Any] = {}
    if rng.random() < 0.7:
        about["machine"] = rng.choice(hosts)
        if rng.random() < 0.4:
            about["name"] = f"s{rng.randrange(5)}"
    if rng.random() < 0.3:
        about["kind"] = rng.choice(("task", "note"))
    return about


def last_word(hub: SimHub, seat: AppSeat) -> tuple[str, dict[str, Any]] | None:
    """At the end everything goes on: the next thing this person has to do for that."""
    if hub.up and seat.who.key in hub.alive.world.paused:
        return "pause", {"on": False}
    known = held(hub, seat.who.key)[:20]
    return ("hold.release", {"ids": [i for i, _ in known], "of": [of for _, of in known]}) if known else None
