"""When something is to be looked at again: times that can be called off.

A binary heap. What was called off stays in it until it is due, or until such entries are the greater part: so neither
costs more than its logarithm, and no more is kept than about twice what is waited for. The order in which things come
due depends on nothing but what was asked for. Must not know what is looked at.
"""

from __future__ import annotations

import heapq
from typing import Any

SLACK = 64  # entries that may be called off before they are counted

Timer = tuple[int, str, tuple[Any, ...]]  # when, what kind, of what


class Timers:
    """Each timer is there once. `len` is how many entries are kept in memory, with those that were called off."""

    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self._wanted: set[Timer] = set()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, timer: Timer) -> None:
        """Ask for it."""
        if timer not in self._wanted:
            self._wanted.add(timer)
            heapq.heappush(self._heap, timer)

    def call_off(self, timer: Timer) -> None:
        """It is not wanted any more; nothing happens when it is not there."""
        self._wanted.discard(timer)
        if len(self._heap) > 2 * len(self._wanted) + SLACK:
            self._heap = sorted(self._wanted)

    def next(self) -> int | None:
        """The time of the first; None without one."""
        while self._heap and self._heap[0] not in self._wanted:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now: int) -> Timer | None:
        """The first one that is due, taken out; None when none is."""
        when = self.next()
        if when is None or when > now:
            return None
        timer = heapq.heappop(self._heap)
        self._wanted.discard(timer)
        return timer
