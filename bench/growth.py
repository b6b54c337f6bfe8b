"""What a past costs: messages stored from 10³ to 10⁶, and what goes on in a large store beside the mail.

The brokers of all sizes run side by side and take turns. JetStream has its own stream filled by its client.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from bench import jetstream, ours
from bench.fill import fill
from bench.frame import OURS, Options, Row, bench, failed, left_out, median, number, quantile, say
from bench.system import Bus, Fleet, fleet_of
from bus import config
from bus.client import View

SIZE = 256
ROUNDS = 5
FRESH = 20_000  # messages that search does not know yet


@bench("growth")
def growth(options: Options) -> Iterator[Row]:
    """Cost per message with 10^3 to 10^6 stored, start-up, latency during search, prune and indexing."""
    sizes = (1_000, 10_000, 100_000, 1_000_000) if not options.quick else (1_000, 20_000)
    with ExitStack() as stack:
        folders = []
        for size in sizes:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="talkbus-bench-")))
            store = ours.home_of(folder).bus_db
            with ours.broker(folder) as pid, fleet_of(Bus(pid, ours.OurNode, (str(folder),)), 1):
                pass  # now there are the mailboxes that the past is to be in
            taken = fill(store, size)
            say(f"{size:,} messages made in {taken:.1f} s")
            yield Row("growth", f"{size:,} stored", OURS, "file", store.stat().st_size / 1e6, "MB")
            folders.append(folder)
        yield from _costs(options, sizes, folders)
        yield from _beside(options, sizes[-1], folders[-1])
    yield from _jetstream(options, sizes[0], sizes[-1])


def _costs(options: Options, sizes: Sequence[int], folders: Sequence[Path]) -> Iterator[Row]:
    with ExitStack() as stack:
        fleets: dict[int, Fleet] = {}
        for size, folder in zip(sizes, folders, strict=True):
            began = time.monotonic()
            pid = stack.enter_context(ours.broker(folder))
            yield Row("growth", f"{size:,} stored", OURS, "start of the broker", time.monotonic() - began, "s")
            memory = psutil.Process(pid).memory_info().rss / 1e6
            yield Row("growth", f"{size:,} stored", OURS, "memory of the broker", memory, "MB")
            fleets[size] = stack.enter_context(fleet_of(Bus(pid, ours.OurNode, (str(folder),)), 1))
            fleets[size].rate(0.3, SIZE)
        yield from _flat(options, OURS, {f"{size:,} stored": fleet for size, fleet in fleets.items()})


def _flat(options: Options, name: str, fleets: dict[str, Fleet]) -> Iterator[Row]:
    """Rate, processor time and latency of each, in turns; and how much more the last takes than the first."""
    rates: dict[str, list[float]] = {case: [] for case in fleets}
    spent: dict[str, list[float]] = {case: [] for case in fleets}
    delays: dict[str, list[float]] = {case: [] for case in fleets}
    for turn in range(options.count(ROUNDS, 1)):
        for case, fleet in fleets.items():
            rate, cost = fleet.rate(options.pick(0.8, 0.3), SIZE)
            rates[case].append(rate)
            spent[case].append(cost)
            delays[case] += fleet.delays(options.pick(0.5, 0.2), SIZE, every=0.01)
            say(f"{name}: {case}, {number(rate)}/s, turn {turn + 1}")
    for case in fleets:
        yield Row("growth", case, name, "messages", median(rates[case]), "1/s")
        yield Row("growth", case, name, "processor per message", median(spent[case]), "us")
        yield Row("growth", case, name, "one-way p50", median(delays[case]), "us")
    first, last = next(iter(fleets)), list(fleets)[-1]
    case = f"{last} over {first}"
    yield Row("growth", case, name, "processor per message, growth", median(spent[last]) / median(spent[first]), "x")
    yield Row("growth", case, name, "one-way p50, growth", median(delays[last]) / median(delays[first]), "x")


def _beside(options: Options, size: int, folder: Path) -> Iterator[Row]:
    """Latency in the large store while something else goes on in it."""
    home = ours.home_of(folder)
    seconds = options.pick(3, 0.5)
    with ours.broker(folder) as pid, fleet_of(Bus(pid, ours.OurNode, (str(folder),)), 1) as fleet:
        fleet.rate(0.3, SIZE)
        yield from _during(fleet, f"{size:,} stored, nothing beside", seconds)
        with _searching(home) as times:
            yield from _during(fleet, f"{size:,} stored, searches beside", seconds)
        case = f"search in {size:,}, one word"
        if times:
            yield Row("growth", case, OURS, "p50", median(times) * 1e3, "ms")
            yield Row("growth", case, OURS, "p99", quantile(times, 0.99) * 1e3, "ms")
        node = ours.OurNode("pruner", str(folder))
        try:
            node.request("prune", {"before": int((time.time() - 5 * 86_400) * 1000)})
            yield from _during(fleet, f"{size:,} stored, pruning beside", seconds)
        finally:
            node.close()
    fill(home.bus_db, options.count(FRESH, 2000), indexed=False)
    with ours.broker(folder) as pid, fleet_of(Bus(pid, ours.OurNode, (str(folder),)), 1) as fleet:
        yield from _during(fleet, f"{size:,} stored, indexing beside", seconds)


def _during(fleet: Fleet, case: str, seconds: float) -> Iterator[Row]:
    delays = fleet.delays(seconds, SIZE, every=0.01)
    say(f"{case}: p50 {number(median(delays))} µs, p99 {number(quantile(delays, 0.99))} µs")
    yield Row("growth", case, OURS, "one-way p50", median(delays), "us")
    yield Row("growth", case, OURS, "one-way p99", quantile(delays, 0.99), "us")


@contextmanager
def _searching(home: config.Home) -> Iterator[list[float]]:
    """Somebody who searches one word after the other; the seconds that each took."""
    times: list[float] = []
    stop = threading.Event()

    def search() -> None:
        with View.open(home, config.load(home, {})) as view:
            turn = 0
            while not stop.is_set():
                began = time.monotonic()
                view.query("search", {"query": f"topic{turn % 997}", "limit": 20}, 10)
                times.append(time.monotonic() - began)
                turn += 1

    thread = threading.Thread(target=search, daemon=True)
    thread.start()
    try:
        yield times
    finally:
        stop.set()
        thread.join(15)


def _jetstream(options: Options, first: int, last: int) -> Iterator[Row]:
    missing = jetstream.SYSTEM.missing()
    if missing:
        left_out("growth of jetstream", missing)
        return
    with ExitStack() as stack:
        fleets: dict[str, Fleet] = {}
        for size in (first, last):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="talkbus-bench-")))
            server = stack.enter_context(jetstream.server(folder))
            say(f"jetstream is filled with {size:,}")
            try:
                jetstream.fill(server.port, size)
            except RuntimeError as error:
                failed(f"growth of jetstream to {size:,}", error)
                return
            server.stop()
            began = time.monotonic()
            server.start()
            jetstream.messages(server.port)
            case = f"{size:,} stored"
            yield Row("growth", case, jetstream.NAME, "start of the broker", time.monotonic() - began, "s")
            memory = psutil.Process(server.pid).memory_info().rss / 1e6
            yield Row("growth", case, jetstream.NAME, "memory of the broker", memory, "MB")
            bus = Bus(server.pid, jetstream.JetStreamNode, (server.port,))
            fleets[case] = stack.enter_context(fleet_of(bus, 1))
            fleets[case].rate(0.3, SIZE)
        yield from _flat(options, jetstream.NAME, fleets)
