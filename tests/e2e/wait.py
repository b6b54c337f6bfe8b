"""Waiting for what has no event of its own: a file, a screen, the end of a foreign process.

Every wait has a deadline and says in its failure what it waited for and what it saw last. It must not
know what it waits for. Where there is an event (a request, output of the terminal) the modules wait on
their own conditions instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE = 10.0  # seconds; far above anything observed, so that a loaded machine does not fail a test
STEP = 0.02  # seconds between two looks: below the 50 ms in which the client updates its files


class TooLate(AssertionError):
    """What was waited for did not come before its deadline."""


def until(look: Callable[[], T | None], what: str, deadline: float = DEADLINE) -> T:
    """Look again and again until the answer is true, and return it; `TooLate` after `deadline` seconds."""
    end = time.monotonic() + deadline
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() >= end:
            raise TooLate(f"not within {deadline:g} s: {what}; last seen: {seen!r}")
        time.sleep(STEP)
