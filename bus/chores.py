"""What the broker does when there is time: let search know new mail, prune what is old, merge the index, measure.

In slices of some milliseconds between batches, and no more than a quarter of the time while mail flows. Knows the
store and its reader, and the monotonic clock it is given; it must not know sessions or sockets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from bus.effects import AddMessage, PutMeta, Write
from bus.errors import StoreError
from bus.reading import Reader
from bus.store import Store

log = logging.getLogger("talkbus.broker")

# All in seconds. Indexing is a commit of its own: it waits for a pause, or a message that comes right after the last
# one would wait for the disk twice.
QUIET = 0.05
LATEST = 1.0
REST = 3.0  # times what the slice took
MEASURE = 60.0
AFTER_FAILURE = 5.0


class Chores:
    """Call `noticed()` after each commit, `work()` when `due()` has come. Times are those of `clock`, in seconds."""

    def __init__(self, store: Store, reader: Reader, clock: Callable[[], float], reach: Callable[[], int]) -> None:
        """`reach` tells how far may be pruned, whatever was ordered (ms since 1970)."""
        self._store, self._reader, self._clock, self._reach = store, reader, clock, reach
        now = clock()
        self._index_at: float | None = now + LATEST
        self._index_by: float | None = now + LATEST
        self._merge_at: float | None = now + LATEST
        self._prune_at: float | None = now + LATEST
        self._measure_at: float | None = now + LATEST

    def noticed(self, writes: Sequence[Write]) -> None:
        """These were committed: what is owed because of them?"""
        now = self._clock()
        if self._measure_at is None:
            self._measure_at = now + MEASURE
        for write in writes:
            kind = type(write)
            if kind is AddMessage:
                self._index_by = self._index_by or now + LATEST
                self._index_at = min(now + QUIET, self._index_by)
                return
            if kind is PutMeta:
                self._prune_at = now

    def prune(self) -> None:
        """There may be something to prune."""
        self._prune_at = self._clock()

    def due(self) -> float | None:
        """When there is something to do next; None for never."""
        times = [at for at in (self._index_at, self._merge_at, self._prune_at, self._measure_at) if at is not None]
        return min(times) if times else None

    def work(self) -> None:
        """One slice of each that is due. StoreError when the disk is broken, not when it is full."""
        try:
            self._work()
        except StoreError as error:
            if not error.full:
                raise
            log.warning("! %s", error)
            later = self._clock() + AFTER_FAILURE
            self._index_at = self._index_at and later
            self._merge_at = self._merge_at and later
            self._prune_at = self._prune_at and later

    def _work(self) -> None:
        begun = self._clock()
        if self._index_at is not None and self._index_at <= begun:
            done = self._store.index_piece()
            now = self._clock()
            self._index_at = now + REST * (now - begun) if done else None
            self._index_by = self._index_at
            if done:
                self._merge_at = self._merge_at or self._index_at
                log.debug("%% %d messages indexed in %.1f ms", done, (now - begun) * 1000)
        begun = self._clock()
        if self._prune_at is not None and self._prune_at <= begun:
            more = self._store.prune_piece(reach=self._reach())
            now = self._clock()
            self._prune_at = now + REST * (now - begun) if more else None
            self._merge_at = self._merge_at or now + REST * (now - begun)
        begun = self._clock()
        if self._merge_at is not None and self._merge_at <= begun:
            more = self._store.merge_piece()
            now = self._clock()
            self._merge_at = now + REST * (now - begun) if more else None
        if self._measure_at is not None and self._measure_at <= begun:
            self._measure_at = None
            self._reader.measure()
