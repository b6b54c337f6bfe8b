"""The roll: the machines whose keys are known, each with a label of its own and a role (PROTOCOL.md §14).

Plain values: a change makes another roll. The file form is TOML. Must not know where it is kept, nor sockets.
"""

from __future__ import annotations

import hashlib
import tomllib
from base64 import b32encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from bus.config import LABEL_MAX, is_key, is_label

Role = Literal["owner", "member", "observer"]
ROLES: tuple[Role, ...] = get_args(Role)

MACHINES_MAX = 256  # the roll is looked through at every handshake, and written whole at every change


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a key is: a machine's label, what it may do, and since when (ms since 1970, 0 = not known)."""

    label: str
    role: Role
    since: int = 0


class Roll:
    """z85 public key -> Principal. Whoever is not on it cannot connect. `own` is the broker's own key."""

    __slots__ = ("_known", "own")

    def __init__(self, known: Mapping[str, Principal], own: str = "") -> None:
        self._known = dict(known)
        self.own = own

    def find(self, public: str) -> Principal | None:
        """Who this key is, or None."""
        return self._known.get(public)

    def labelled(self, label: str) -> str | None:
        """The key of the machine of this label, or None."""
        return next((key for key, one in self._known.items() if one.label == label), None)

    def free_label(self, wanted: str) -> str:
        """`wanted`, with a number behind it where another machine has it already."""
        made, number = wanted, 1
        while self.labelled(made) is not None:
            number += 1
            made = f"{wanted[: LABEL_MAX - 1 - len(str(number))].rstrip('-')}-{number}"
        return made

    def adding(self, public: str, one: Principal) -> Roll:
        """A roll with this machine too, or with what is said of it changed."""
        return Roll({**self._known, public: one}, self.own)

    def without(self, public: str) -> Roll:
        """A roll without this machine."""
        return Roll({key: one for key, one in self._known.items() if key != public}, self.own)

    def __contains__(self, public: object) -> bool:
        return public in self._known

    def __iter__(self) -> Iterator[tuple[str, Principal]]:
        return iter(self._known.items())

    def __len__(self) -> int:
        return len(self._known)


def role_of(text: object) -> Role | None:
    """The role of this name, or None."""
    return next((role for role in ROLES if role == text), None)


def with_own(others: Roll, own: str, label: str) -> Roll:
    """A broker's whole roll: its own key as owner, under `label` or what of it is free, and all others."""
    rest = others.without(own)
    return Roll({own: Principal(rest.free_label(label), "owner"), **dict(rest)}, own)


def fingerprint(public: str) -> str:
    """A form two people can compare aloud: 100 bits in five groups of four letters and digits."""
    text = b32encode(hashlib.sha256(public.encode("ascii")).digest()).decode("ascii").lower()
    return "-".join(text[i : i + 4] for i in range(0, 20, 4))


def parse(text: str) -> Roll:
    """The machines of a file's text. ValueError says which entry is wrong and what is wanted there."""
    table = tomllib.loads(text)
    entries = table.get("key", [])
    roll = Roll({})
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries], 1):
        public, one = _entry(entry, number)
        if roll.labelled(one.label) not in (None, public):
            raise ValueError(f"[[key]] number {number}: another machine is called {one.label!r} already")
        roll = roll.adding(public, one)
    return roll


def _entry(entry: Any, number: int) -> tuple[str, Principal]:
    fields = entry if isinstance(entry, dict) else {}
    public, label = fields.get("public"), fields.get("label")
    role, since = role_of(fields.get("role")), fields.get("since", 0)
    good = isinstance(public, str) and is_key(public) and isinstance(label, str) and is_label(label)
    if not good or role is None or type(since) is not int or since < 0:
        raise ValueError(
            f"[[key]] number {number} is wrong (it needs public = 40 z85 characters, label = at most {LABEL_MAX} of "
            f"a-z 0-9 -, and role = {', '.join(ROLES)})"
        )
    assert isinstance(public, str) and isinstance(label, str)
    return public, Principal(label, role, since)


def text(roll: Roll) -> str:
    """The file's text: everybody but the broker itself."""
    parts = ["# The machines that may use this bus. Written by the broker: talkbus lan peers, talkbus lan revoke.\n"]
    for public, one in roll:
        if public != roll.own:
            parts.append(
                f'\n[[key]]\npublic = "{public}"\nlabel = "{one.label}"\nrole = "{one.role}"\nsince = {one.since}\n'
            )
    return "".join(parts)


def with_role(roll: Roll, public: str, role: Role) -> Roll:
    """The same machine with another role."""
    one = roll.find(public)
    assert one is not None
    return roll.adding(public, replace(one, role=role))
