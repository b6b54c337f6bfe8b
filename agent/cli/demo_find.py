"""Finding a running `talkbus demo` from another terminal: its folder is temporary and known to nobody else.

Only folders of this user count. Must not know what a demo does.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli import exits, show
from agent.cli.call import Call
from agent.tap.items import Item, topic
from bus.config import Home, home, load
from bus.daemon import published, stopped
from bus.errors import Unreachable

if TYPE_CHECKING:
    from bus.client import View

PREFIX = "talkbus-demo-"
OPEN_S = 5.0
_LOOK_S = 0.1


def at_demo(call: Call, timeout: float | None) -> Call:
    """A call that looks at the bus of a demo; waits for one. TimedOut after `timeout` s, None waits for ever."""
    until = time.monotonic() + timeout if timeout is not None else float("inf")
    found = running()
    if found is None:
        show.note("waiting for a demo (run 'talkbus demo' in another terminal)")
    while found is None:
        if time.monotonic() >= until:
            raise exits.TimedOut("no demo is running (run 'talkbus demo' in another terminal)")
        time.sleep(_LOOK_S)
        found = running()
    there = Call(call.version, call.serve)
    # What the caller set is for a bus of his own.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TALKBUS_")}
    there.__dict__["home"] = found
    there.__dict__["config"] = load(found, environ)
    return there


def view_of(call: Call, timeout: float | None) -> tuple[Call, View]:
    """A look at a demo, whose broker may be dead just now, or which may have ended before it was looked at.

    The call is one at that demo. TimedOut after `timeout` s.
    """
    from bus.client import View

    until = time.monotonic() + timeout if timeout is not None else float("inf")
    while True:
        left = None if timeout is None else max(0.0, until - time.monotonic())
        there = at_demo(call, left)
        with suppress(Unreachable):
            return there, View.open(there.home, there.config, OPEN_S)
        time.sleep(_LOOK_S)


def running() -> Home | None:
    """The bus of the demo that was started last and has a broker; None when there is none."""
    found: list[tuple[float, Home]] = []
    for root in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            known = root.lstat()
            ours = not hasattr(os, "getuid") or known.st_uid == os.getuid()
            bus = home({"TALKBUS_HOME": str(root.resolve())})
            if ours and not root.is_symlink() and published(bus) is not None:
                found.append((known.st_mtime, bus))
    return max(found, key=lambda one: one[0])[1] if found else None


def until_it_ends(items: Iterator[Item | None], bus: Home) -> Iterator[Item | None]:
    """These items, as long as the demo goes on: its brokers may die, but at its end the bus is stopped for good.

    It is marked as stopped before its last broker ends, and what that one has published is still told.
    """
    for item in items:
        over = stopped(bus) or not bus.state.exists()
        if over and item is not None and item.what == "lost":
            return
        yield item
        if over and (published(bus) is None if item is None else topic(item.told) == "bus.stop"):
            return
