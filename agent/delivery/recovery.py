"""What a former life of the agent was offering when it ended: what became of it, before anything is offered again.

The transcript of the session is asked, and that of the session which sat in this seat before; then the maildir, where
the client lived on. Transcripts of other sessions prove nothing: they may have been sent the same message. A text is
found by its nonce, which nobody can write who has not seen it. Must not know the bus nor the ledger.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from agent.delivery.maildir import Box, Fate
from agent.delivery.transcript import Seen, scan

_SESSION = re.compile(r"[A-Za-z0-9_-]{1,128}")


def proofs(current: Path | None, former: str, keys: Mapping[str, str], lives: bool) -> list[str]:
    """Those of `keys` (ledger key -> nonce of the text that carried it) that a model was told. `former` is the id of
    the client's session that sat here before, "" for none; its transcript is beside the current one.

    `lives`: the client is still the one of then, so the turn that took a message goes on. One that was killed over a
    request has not answered it, and its successor is not told of it.
    """
    enough = Seen.REMOVED if lives else Seen.INJECTED
    found: list[str] = []
    for path in _files(current, former):
        left = [(key, nonce) for key, nonce in keys.items() if key not in found]
        if left:
            found += [key for key, what in scan(path, left).items() if what >= enough]
    return found


def _files(current: Path | None, former: str) -> list[Path]:
    if current is None:
        return []
    beside = current.parent / f"{former}.jsonl"
    return [current, beside] if _SESSION.fullmatch(former) and beside != current else [current]


def empty(box: Box, keys: Mapping[str, str]) -> list[str]:
    """Take back what waits in a box of a former life; those of `keys` whose text a hook handed over."""
    printed = []
    for name in box.names():
        if not box.withdraw(name) and box.fate(name) is Fate.PRINTED:
            text = box.text(name)
            printed += [key for key, nonce in keys.items() if nonce in text]
        box.forget(name)
    return printed
