"""The descriptors of the wire, taken before anything of ours may print. It must not import the SDK: the agent takes
them and begins to connect while that is still being loaded.
"""

from __future__ import annotations

import os
import sys


def take_over() -> tuple[int, int]:
    """Descriptors for the wire. From now on prints go to stderr, and whoever reads stdin finds its end."""
    if sys.platform == "win32":
        import msvcrt

        for descriptor in (0, 1):
            msvcrt.setmode(descriptor, os.O_BINARY)
        return 0, 1
    wire = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    try:
        os.dup2(2, 1)
    except OSError:
        os.dup2(null, 1)
    os.close(null)
    return wire
