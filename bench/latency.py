"""How long one message takes from the call that sends it until the recipient's application has it, and until an
answer is back. One clock, for all processes are on one machine.

"half load" is half of what this system carried from a second sender just before, or 4,000 a second if that is less:
more than that makes all of them wait for two processors and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from bench.frame import Options, Row, bench, median, number, quantiles, say
from bench.system import Fleet
from bench.systems import SYNCED, present

SIZE = 256
LOAD_MAX = 4000.0


@bench("latency")
def latency(options: Options) -> Iterator[Row]:
    """One-way and durable reply, p50, p99 and p99.9, idle and under half load."""
    with ExitStack() as stack:
        fleets: dict[str, Fleet] = {}
        loads: dict[str, float] = {}
        for system in (*present(), *present(SYNCED)):
            say(f"{system.name} starts")
            fleet = fleets[system.name] = stack.enter_context(system.fleet(2))
            fleet.rate(0.2, SIZE)
            loads[system.name] = min(LOAD_MAX, fleet.rate(options.pick(1.0, 0.2), SIZE)[0] / 2)
        for loaded in (False, True):
            case = f"{SIZE} B, {'half load' if loaded else 'idle'}"
            for what in ("one-way", "reply"):
                found: dict[str, list[float]] = {name: [] for name in fleets}
                for _ in range(options.rounds if not options.quick else 1):
                    for name, fleet in fleets.items():
                        measure = fleet.delays if what == "one-way" else fleet.replies
                        every = 0.005 if what == "one-way" else 0.01
                        load = loads[name] if loaded else 0.0
                        found[name] += measure(options.pick(0.9, 0.3), SIZE, load, every)
                        say(f"{case}: {name} {what} p50 {number(median(found[name]))} µs")
                for name, delays in found.items():
                    yield from quantiles("latency", case, name, what, delays)
        for name, load in loads.items():
            yield Row("latency", f"{SIZE} B, half load", name, "load", load, "1/s")
