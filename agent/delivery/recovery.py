"""What a former life of the agent was offering when it ended: what became of it, before anything is offered again.

The transcript of the session is asked, and that of the session which sat in this seat before; then the maildir, where
the client lived on. Transcripts of other sessions prove nothing: they may have been sent the same message. A text is
found by its nonce, which nobody can write who has not seen it. It must not know the bus, and asks no ledger.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.delivery.flights import told
from agent.delivery.maildir import Box, Fate
from agent.delivery.transcript import Parser, Seen, Tail, scan

_SESSION = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True, slots=True)
class Past:
    """What the transcripts say: `shown`, ledger key -> proof; `held`, nonce -> the keys of a text that the client has
    taken in and not shown yet; `parser` has watched those by their nonces, in the current transcript, which is read
    as far as `tail` says; None where there is none.
    """

    shown: dict[str, str]
    held: dict[str, list[str]]
    parser: Parser
    tail: Tail | None


def look_back(current: Path | None, former: str, keys: Mapping[str, str], lives: bool) -> Past:
    """What became of `keys` (ledger key -> nonce of the text that carried it). `former` is the id of the client's
    session that sat here before, "" for none; its transcript is beside the current one.

    `lives`: the client is still the one of then, so what it has taken in goes on to its model. One that was killed
    over a request has not answered it, and its successor is not told of it.
    """
    now, tail = scan(current, set(keys.values())) if current is not None else (Parser(), None)
    shown = {key: proof for key, nonce in keys.items() if (proof := _proof(now, nonce))}
    held: dict[str, list[str]] = {}
    for key, nonce in keys.items():
        seen = now.seen(nonce)
        if lives and key not in shown and seen != Seen.LEFT and (seen >= Seen.ENQUEUED or now.recorded(nonce)):
            held.setdefault(nonce, []).append(key)
    left = {key: nonce for key, nonce in keys.items() if key not in shown and nonce not in held}
    if current is not None and left and _SESSION.fullmatch(former) and current.stem != former:
        then, _ = scan(current.parent / f"{former}.jsonl", set(left.values()))
        shown |= {key: proof for key, nonce in left.items() if (proof := _proof(then, nonce))}
    return Past(shown, held, now, tail)


def _proof(parser: Parser, nonce: str) -> str:
    verdict = told(parser.seen(nonce))
    return verdict.proof if verdict else ""


def empty(box: Box, keys: Mapping[str, str]) -> list[str]:
    """Take back what waits in a box of a former life; those of `keys` whose text a hook handed over."""
    printed = []
    for name in box.names():
        if not box.withdraw(name) and box.fate(name) is Fate.PRINTED:
            text = box.text(name)
            printed += [key for key, nonce in keys.items() if nonce in text]
        box.forget(name)
    return printed
