"""The paths by which mail reaches a session, as it says itself what it can be reached by (`wake`). Pure.

One table for all who show it. A session of another version may name a path that is not in here.
"""

from __future__ import annotations

from typing import NamedTuple


class Path(NamedTuple):
    """What a path means to a person, and whether a message wakes an idle session by it."""

    words: str
    wakes: bool


# Best first.
PATHS = {
    "native": Path("inbox, wakes at once", True),
    "rewake": Path("hooks, wakes", True),
    "channel": Path("channel, wakes", True),
    "terminal": Path("typed in, wakes", True),
    "hooks": Path("hooks, next turn", False),
    "tools": Path("tool calls only", False),
}
UNTOLD = Path("not told", False)
