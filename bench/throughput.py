"""How many messages a second go from one process to another through the broker, each acknowledged."""

from __future__ import annotations

from collections.abc import Iterator

from bench import ours, raw_zmq
from bench.frame import Options, Row, bench, median, say
from bench.system import BODY, WINDOW


@bench("throughput")
def throughput(options: Options) -> Iterator[Row]:
    """Sent, delivered and acknowledged; ours durable at all three places."""
    case = f"{BODY} B, window {WINDOW}"
    found: dict[str, list[tuple[float, float]]] = {ours.NAME: [], raw_zmq.NAME: []}
    with ours.pair() as talkbus, raw_zmq.pair() as raw:
        for pair in (talkbus, raw):
            pair.rate(min(0.5, options.turn))  # warm
        for number in range(options.rounds):
            for name, pair in ((ours.NAME, talkbus), (raw_zmq.NAME, raw)):
                found[name].append(pair.rate(options.turn))
                say(f"throughput {number + 1}/{options.rounds}: {name} {found[name][-1][0]:,.0f}/s")
    for name, turns in found.items():
        yield Row("throughput", case, name, "messages", median([rate for rate, _ in turns]), "1/s")
        yield Row("throughput", case, name, "processor per message", median([spent for _, spent in turns]), "us")
