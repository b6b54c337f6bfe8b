"""The systems that are measured beside each other, and which of them are here."""

from __future__ import annotations

from collections.abc import Sequence

from bench import jetstream, mosquitto, ours, raw_zmq, redis_streams
from bench.frame import left_out
from bench.system import System

ALL: tuple[System, ...] = (
    ours.SYSTEM,
    raw_zmq.SYSTEM,
    jetstream.SYSTEM,
    redis_streams.SYSTEM,
    mosquitto.SYSTEM,
)
# Measured where a promise as strong as ours is to be compared, with one sender and one recipient.
SYNCED: tuple[System, ...] = (redis_streams.SYSTEM_SYNCED,)


def present(systems: Sequence[System] = ALL) -> list[System]:
    """Those that can be measured on this machine; the others are named with what is missing."""
    found = []
    for system in systems:
        missing = system.missing()
        if missing:
            left_out(system.name, missing)
        else:
            found.append(system)
    return found


def promises() -> list[str]:
    """What each promises on disk, which acknowledgement is counted and what limits were raised."""
    return [system.note for system in (*ALL, *SYNCED) if not system.missing()]
