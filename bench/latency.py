"""How long one message takes from the call that sends it until the recipient's application has it, nothing else going
on. One clock, for both are on one machine.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench import ours, raw_zmq
from bench.frame import Options, Row, bench, median, quantile, say
from bench.system import BODY


@bench("latency")
def latency(options: Options) -> Iterator[Row]:
    """One way, idle; a message every 25 ms."""
    case = f"{BODY} B, idle"
    delays: dict[str, list[float]] = {ours.NAME: [], raw_zmq.NAME: []}
    with ours.pair() as talkbus, raw_zmq.pair() as raw:
        for pair in (talkbus, raw):
            pair.delays(min(0.2, options.turn))  # warm
        for number in range(options.rounds):
            for name, pair in ((ours.NAME, talkbus), (raw_zmq.NAME, raw)):
                found = pair.delays(options.turn)
                delays[name] += found
                say(f"latency {number + 1}/{options.rounds}: {name} p50 {median(found):,.0f} µs")
    for name, found in delays.items():
        for metric, share in (("one-way p50", 0.5), ("one-way p99", 0.99)):
            yield Row("latency", case, name, metric, quantile(found, share), "us")
