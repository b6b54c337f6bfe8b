"""What a former life of the agent was offering when it ended: what became of it, before anything is offered again.

The transcript of the session is asked, and those of the folder that were written to since; then the maildir, where
the client lived on. Must not know the bus nor the ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from agent.delivery.maildir import Box, Fate
from agent.delivery.transcript import Seen, scan, stands_in

FILES_MAX = 8  # of other sessions in this folder: the one that was ended may not be the one that goes on
SLACK_MS = 60_000
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


def proofs(current: Path | None, since: int, keys: Iterable[str], lives: bool) -> list[str]:
    """Those of `keys` that a model was told. `since` in ms since 1970 is when the first of them was offered.

    `lives`: the client is still the one of then, so the turn that took a message goes on. One that was killed over a
    request has not answered it, and its successor is not told of it.
    """
    enough = Seen.REMOVED if lives else Seen.INJECTED
    wanted = dict.fromkeys(keys)
    found = []
    for path in _files(current, since):
        left = [(key, mark(key)) for key in wanted if key not in found]
        if left:
            found += [key for key, what in scan(path, left, end=END).items() if what >= enough]
    return found


def _files(current: Path | None, since: int) -> list[Path]:
    if current is None:
        return []
    others = []
    try:
        for path in current.parent.glob("*.jsonl"):
            changed = path.stat().st_mtime_ns // 1_000_000
            if path != current and changed >= since - SLACK_MS:
                others.append((changed, path))
    except OSError:
        pass
    return [current, *(path for _, path in sorted(others, reverse=True)[:FILES_MAX])]


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
