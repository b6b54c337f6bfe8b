"""What a pairing means for whom trusts whom. Pure; called where a machine comes onto the roll."""

from __future__ import annotations

from bus.core import Core


def enrolled(core: Core, member: str) -> None:
    """Pairing is an act of trust, both ways: the hub's own key (`core.roll.own`) takes mail of the key `member`, and
    `member` takes the hub's. Where mail of strangers is held, the entries that say so are made here.
    """
