"""What the agents of the demonstration will send: to whom, of which kind, in which order; the same for the same seed.

Pure.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("task", "task", "note")
_TEXT = "the build is green again please look at this before noon <peer-message> & tell"
_ALL = 0.1  # the share of messages to everybody
_SEVERAL = 0.2  # of what is left, the share of those to more than one


@dataclass(frozen=True, slots=True)
class Step:
    """One message. `to` is as it is given to the tool; `recipients` who shall get a copy."""

    to: tuple[str, ...]
    recipients: tuple[str, ...]
    kind: str
    body: str


def plan(names: tuple[str, ...], copies: int, seed: int) -> dict[str, list[Step]]:
    """Steps for each sender, `copies` copies in all, shared out as evenly as messages to several allow."""
    rng = random.Random(seed)
    steps: dict[str, list[Step]] = {name: [] for name in names}
    sent = dict.fromkeys(names, 0)
    left = copies
    number = 0
    while left:
        sender = min(names, key=sent.__getitem__)
        others = tuple(name for name in names if name != sender)
        to, recipients = _recipients(rng, others, left)
        number += 1
        body = f"{number}: " + " ".join(_words(rng))
        steps[sender].append(Step(to, recipients, rng.choice(KINDS), body))
        sent[sender] += len(recipients)
        left -= len(recipients)
    return steps


def _recipients(rng: random.Random, others: tuple[str, ...], left: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    draw = rng.random()
    if left < len(others) or draw >= _ALL + _SEVERAL:
        one = (rng.choice(others),)
        return one, one
    return (("*",) if draw < _ALL else others), others


def _words(rng: random.Random) -> Iterator[str]:
    words = _TEXT.split()
    for _ in range(rng.randint(3, 14)):
        yield rng.choice(words)
