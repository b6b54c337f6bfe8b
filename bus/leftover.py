"""What still waits in the bus of a machine that joins another one's: read, and marked as moved, while no broker runs.

The caller holds the lock of the home, so nobody writes meanwhile. Knows the store; it must not know where the mail
goes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from bus.addresses import kind_of
from bus.config import Home
from bus.effects import Move
from bus.store import Store
from bus.world import Mailbox

MOVED = "moved to the hub"


def unread(home: Home) -> list[dict[str, Any]]:
    """Every unsettled message, mailbox by mailbox, in their order; empty where there was never a bus.

    Each has `mailbox` and `n` (what moved() wants), `to`, `to_meta`, `from`, `from_meta`, `id`, `body`, `held` and
    the arguments of a send in `args`. StoreError when the database cannot be read.
    """
    if not home.bus_db.exists():
        return []
    store = Store.open(home.bus_db)
    now = time.time_ns() // 1_000_000
    try:
        world = store.load()
        found = []
        for mailbox in sorted(world.mailboxes.values(), key=lambda m: m.name):
            for pending in mailbox.pending.values():
                if pending.expires and pending.expires <= now:
                    continue
                m = store.message(pending.sender, pending.msg)
                ttl = pending.expires - now if pending.expires else 0
                optional = {"tag": m.tag, "re": m.re, "thread": m.thread, "ttl": ttl, "hops": m.hops}
                sender = world.mailboxes.get(pending.sender)
                found.append(
                    {
                        "mailbox": mailbox.id,
                        "n": pending.n,
                        "to": mailbox.name,
                        "to_meta": _meta(mailbox),
                        "from": sender.name if sender else m.name,
                        "from_meta": _meta(sender) if sender else {},
                        "id": m.id,
                        "body": m.body,
                        "held": pending.status == "held",
                        "args": {"kind": m.kind, **{key: value for key, value in optional.items() if value}},
                    }
                )
        return found
    finally:
        store.close()


def moved(home: Home, letters: Sequence[dict[str, Any]]) -> None:
    """These are at the hub now: here they are settled, as not shown. StoreError when that cannot be written."""
    store = Store.open(home.bus_db)
    now = time.time_ns() // 1_000_000
    try:
        store.apply([Move(x["mailbox"], x["n"], "failed", now, MOVED, True) for x in letters])
    finally:
        store.close()


def _meta(mailbox: Mailbox) -> dict[str, Any]:
    kind = kind_of(mailbox)
    return {} if kind == "session" else {"kind": kind}
