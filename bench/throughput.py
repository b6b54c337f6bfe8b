"""How many messages a second go from senders to one recipient through the broker, each acknowledged at both ends.

Every sender keeps 64 on their way, or fewer where all of them together would have more than 32 MiB. With few senders
the systems run side by side and take turns, so that what the machine does beside it hits all alike; with many, one
after the other, for the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from bench.frame import Options, Row, bench, failed, median, number, say
from bench.system import Fleet, System
from bench.systems import SYNCED, present

SENDERS = (1, 8, 32)
SIZES = (64, 256, 4096, 65536)
TOGETHER = 8  # so many senders of every system at once, at most


@bench("throughput")
def throughput(options: Options) -> Iterator[Row]:
    """Durable send, delivered and acknowledged: 1, 8 and 32 senders, 64 B to 64 KiB."""
    everybody, synced = present(), present(SYNCED)
    for senders in SENDERS if not options.quick else (1, 4):
        sizes = SIZES if not options.quick else (256, 4096)
        systems = [*everybody, *synced] if senders == 1 else everybody
        groups = [systems] if senders <= TOGETHER else [[system] for system in systems]
        for group in groups:
            yield from _group(options, group, senders, sizes)


def _group(options: Options, systems: Sequence[System], senders: int, sizes: Sequence[int]) -> Iterator[Row]:
    with ExitStack() as stack:
        fleets: dict[str, Fleet] = {}
        for system in systems:
            say(f"{system.name}: {senders} sender(s)")
            try:
                fleets[system.name] = stack.enter_context(system.fleet(senders))
            except (RuntimeError, OSError) as error:
                failed(f"{system.name} with {senders} senders", error)
        for size in sizes:
            yield from _size(options, fleets, senders, size)


def _size(options: Options, fleets: dict[str, Fleet], senders: int, size: int) -> Iterator[Row]:
    rounds = options.rounds if senders == 1 and not options.quick else 1
    turn = options.pick(0.8 if senders == 1 else 1.2, 0.3)
    case = f"{senders} to 1, {size} B"
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in fleets}
    for fleet in fleets.values():
        fleet.rate(options.pick(0.2, 0.05), size, senders)  # warm
    for _ in range(rounds):
        for name, fleet in fleets.items():
            found[name].append(fleet.rate(turn, size, senders))
            say(f"{case}: {name} {number(found[name][-1][0])}/s")
    for name, turns in found.items():
        yield Row("throughput", case, name, "messages", median([rate for rate, _ in turns]), "1/s")
        yield Row("throughput", case, name, "processor per message", median([spent for _, spent in turns]), "us")
