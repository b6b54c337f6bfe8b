"""Live events, flattened: one after the other, and a word whenever the picture may have changed unseen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bus.client import View


def following(view: View, topics: Sequence[str], timeout: float | None) -> Iterator[dict[str, Any] | None]:
    """Events of these topics until `timeout` s are over; None for ever.

    None comes first, once joined, and whenever events were missed: look then at what the events are about.
    """
    for news in view.events(topics, timeout):
        if news.snapshot is not None or news.gap:
            yield None
        yield from news.events
