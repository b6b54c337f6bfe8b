"""What a former life of the agent was offering when it ended: what became of it, before anything is offered again.

The transcript of the session is asked, and that of the session which sat in this seat before; then the maildir, where
the client lived on. Transcripts of other sessions prove nothing: they may have been sent the same message. Must not
know the bus nor the ledger.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from agent.delivery.maildir import Box, Fate
from agent.delivery.transcript import Seen, scan, stands_in

_SESSION = re.compile(r"[A-Za-z0-9_-]{1,128}")
END = "</peer-message>"  # how a message in a rendered text ends, and no body can hold it


def mark(key: str) -> tuple[str, str]:
    """How a message stands in a rendered text, and cannot stand in a body: there such a tag is broken.

    The name of its sender may be any; its host has to follow, for another sender may have used the same id.
    """
    host, ident = key.partition("/")[0], key.rpartition("/")[2]
    return f'<peer-message id="{ident}" from="', f"@{host}" if host else ""


def distinct(keys: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those of `keys` that no other message of the ledger could be taken for: two of one host may have one id."""
    count = Counter(map(mark, known))
    return [key for key in keys if count[mark(key)] <= 1]


def proofs(current: Path | None, former: str, keys: Iterable[str], lives: bool) -> list[str]:
    """Those of `keys` that a model was told. `former` is the id of the client's session that sat here before, "" for
    none; its transcript is beside the current one.

    `lives`: the client is still the one of then, so the turn that took a message goes on. One that was killed over a
    request has not answered it, and its successor is not told of it.
    """
    enough = Seen.REMOVED if lives else Seen.INJECTED
    wanted = dict.fromkeys(keys)
    found = []
    for path in _files(current, former):
        left = [(key, mark(key)) for key in wanted if key not in found]
        if left:
            found += [key for key, what in scan(path, left, end=END).items() if what >= enough]
    return found


def _files(current: Path | None, former: str) -> list[Path]:
    if current is None:
        return []
    beside = current.parent / f"{former}.jsonl"
    return [current, beside] if _SESSION.fullmatch(former) and beside != current else [current]


def empty(box: Box, keys: Iterable[str]) -> list[str]:
    """Take back what waits in a box of a former life; those of `keys` whose text a hook handed over."""
    marks = {key: mark(key) for key in keys}
    printed = []
    for name in box.names():
        if not box.withdraw(name) and box.fate(name) is Fate.PRINTED:
            text = box.text(name)
            printed += [key for key, words in marks.items() if stands_in(text, *words)]
        box.forget(name)
    return printed
