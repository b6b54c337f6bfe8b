"""One message to many mailboxes, and the activity to many subscribers.

The recipients are one process that acknowledges for all of them: connections of the protocol without a database of
their own, consumers, groups or clients. What is measured is the broker, and the sender's wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from bench import crowd, crowd_peers, jetstream, mosquitto, ours, raw_zmq, redis_streams
from bench.frame import Options, Row, bench, failed, median, number, say
from bench.system import Bus, Fleet, System, fleet_of
from bench.systems import present
from bench.workers import Worker

SIZE = 256
CROWDS: dict[str, tuple[Callable[..., None], str]] = {
    ours.NAME: (crowd.sessions, "*"),
    raw_zmq.NAME: (crowd.raw, "*"),
    jetstream.NAME: (crowd_peers.jetstream, "all"),
    redis_streams.NAME: (crowd_peers.redis_streams, "all"),
    mosquitto.NAME: (crowd_peers.mosquitto, "all"),
}
PATIENCE_S = 90.0


@bench("fan-out")
def fan_out(options: Options) -> Iterator[Row]:
    """1 to 10, 100 and 1,000 mailboxes; the activity to 100 subscribers."""
    for system in present():
        for recipients in (10, 100, 1000) if not options.quick else (10, 50):
            try:
                with system.bus() as bus:
                    yield from _one(options, system, bus, recipients)
            except RuntimeError as error:
                failed(f"fan-out of {system.name} to {recipients}", error)
    yield from _taps(options)


def _one(options: Options, system: System, bus: Bus, recipients: int) -> Iterator[Row]:
    from bench.drive import sender

    serve, everybody = CROWDS[system.name]
    case = f"1 to {recipients}, {SIZE} B"
    with (
        Worker("crowd", serve, *bus.args, 0, recipients) as many,
        Worker("sender", sender, bus.make, bus.args, 0) as one,
    ):
        many.answer("ready", PATIENCE_S)
        one.answer("ready")
        taken: list[float] = []

        def burst(messages: int) -> float:
            """Seconds from the first send until the last acknowledgement."""
            many.tell("expect", messages * recipients)
            one.tell("count", everybody, messages, SIZE)
            flow = one.answer("count", PATIENCE_S)
            return float((max(flow.ended, many.answer("expect", PATIENCE_S)) - flow.began) / 1e9)

        burst(1)
        for _ in range(options.count(9, 3)):
            taken.append(burst(1))
        messages = max(3, options.count(5000, 500) // recipients)
        rate = messages * recipients / burst(messages)
    say(f"{case}: {system.name} {number(rate)} deliveries/s")
    yield Row("fan-out", case, system.name, "until all have it p50", median(taken) * 1e3, "ms")
    yield Row("fan-out", case, system.name, "deliveries", rate, "1/s")


def _taps(options: Options) -> Iterator[Row]:
    """Mail at a steady rate, with and without subscribers: what they cost it, and what they miss."""
    count = options.count(100, 10)
    rate = 200.0
    seconds = options.pick(4, 1)
    with ours.SYSTEM.bus() as bus, fleet_of(bus, 1) as fleet:
        yield from _tapped(fleet, "no subscriber", seconds, rate)
        with Worker("taps", crowd.taps, bus.args[0], count) as taps:
            taps.answer("ready", PATIENCE_S)
            time.sleep(1)  # subscriptions arrive by themselves; nothing tells when
            yield from _tapped(fleet, f"{count} subscribers", seconds, rate)
            taps.tell("told")
            came, missed, each = taps.answer("told", PATIENCE_S)
        case = f"activity to {count} subscribers, {rate:g} messages/s"
        say(f"{case}: {number(came)} events came, {missed} were missed")
        yield Row("fan-out", case, ours.NAME, "events each", each, "")
        yield Row("fan-out", case, ours.NAME, "events missed", float(missed), "")
    yield from _raw_taps(count, int(each))


def _tapped(fleet: Fleet, what: str, seconds: float, rate: float) -> Iterator[Row]:
    before = fleet.broker_seconds()
    delays = fleet.delays(seconds, SIZE, every=1 / rate)
    spent = (fleet.broker_seconds() - before) / len(delays) * 1e6
    yield Row("fan-out", f"activity, {what}", ours.NAME, "one-way p50", median(delays), "us")
    yield Row("fan-out", f"activity, {what}", ours.NAME, "processor of the broker per message", spent, "us")


def _raw_taps(count: int, events: int) -> Iterator[Row]:
    """The same number of events as fast as a bare PUB socket with CURVE gives them out."""
    with Worker("raw-pub", _publisher, count, max(100, events)) as pub:
        came, seconds = pub.answer("came", PATIENCE_S)
    case = f"{count} subscribers, events of 200 B as fast as they go"
    yield Row("fan-out", case, raw_zmq.NAME, "events given out", came / seconds, "1/s")


def _publisher(pipe: Any, count: int, events: int) -> None:
    import zmq

    public, secret = zmq.curve_keypair()
    context = zmq.Context()
    pub: Any = context.socket(zmq.PUB)
    pub.sndhwm = 0
    pub.curve_publickey, pub.curve_secretkey, pub.curve_server = public, secret, True
    endpoint = f"tcp://127.0.0.1:{pub.bind_to_random_port('tcp://127.0.0.1')}"
    poller = zmq.Poller()
    for _ in range(count):
        sub: Any = context.socket(zmq.SUB)
        sub.rcvhwm = 0
        sub.curve_publickey, sub.curve_secretkey = zmq.curve_keypair()
        sub.curve_serverkey = public
        sub.setsockopt(zmq.SUBSCRIBE, b"")
        sub.connect(endpoint)
        poller.register(sub, zmq.POLLIN)
    time.sleep(1)
    began, came = time.monotonic(), 0
    for _ in range(events):
        pub.send(b"x" * 200)
    while came < events * count and time.monotonic() < began + 30:
        for sub, _ in poller.poll(100):
            came += sum(1 for _ in crowd.drain(sub))
    pipe.send(("came", (came, time.monotonic() - began)))
    context.destroy(0)
