"""`zmq-tap`: what happens on the bus, as lines, as a room or as a table; live, or from a recording.

The options, and which of them go together. Where items come from is put together here; what becomes of them is
agent.tap's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import click

from agent.cli import colours, exits, show
from agent.cli.call import Call, pass_call
from agent.tap.choosing import CLASSES, KINDS, Choice
from agent.tap.items import Item, as_line
from agent.tap.live import Bodies, live
from agent.tap.recording import Recorder, Recording
from agent.tap.words import Teller

PULSE_S = 0.2
REFRESH_S = 2.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options that say where items come from. `refresh`: the peers are read anew, for the table."""

    record: Path | None
    replay: Path | None
    speed: float
    timeout: float | None
    bodies: bool
    demo: bool
    refresh: bool = False


@click.command(cls=exits.OneLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--office", is_flag=True, help="Show the sessions in a room, and who talks to whom.")
@click.option("--top", is_flag=True, help="Show the sessions by traffic, with what waits for each.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines, for programs.")
@click.option("--bodies", is_flag=True, help="Also the text of messages, where you may read it.")
@click.option(
    "--class", "classes", multiple=True, type=click.Choice(CLASSES), help="Only this class; may be repeated."
)
@click.option("--peer", "peers", multiple=True, metavar="NAME", help="Only about this peer; may be repeated.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Only messages of this kind.")
@click.option("--record", type=click.Path(path_type=Path), metavar="FILE", help="Also write everything to FILE.")
@click.option("--replay", type=click.Path(path_type=Path), metavar="FILE", help="Play FILE instead of a bus.")
@click.option(
    "--speed", type=click.FloatRange(0, 10_000), metavar="X", help="With --replay: X times as fast; 0: at once."
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N events; with --top, after N tables.")
@click.option("--timeout", type=click.FloatRange(0), metavar="S", help="End after S seconds, with exit code 4.")
@click.option("--demo", is_flag=True, help="Look at a running 'talkbus demo'; wait for one.")
@pass_call
def tap(
    call: Call,
    office: bool,
    top: bool,
    as_json: bool,
    bodies: bool,
    classes: Sequence[str],
    peers: Sequence[str],
    kinds: Sequence[str],
    record: Path | None,
    replay: Path | None,
    speed: float | None,
    count: int | None,
    timeout: float | None,
    demo: bool,
) -> int:
    """Show what happens on the bus, as it happens, until Ctrl-C.

    It begins with the picture as it is, then tells every event. What was missed is said, and after a restart of the
    broker it goes on by itself. It changes nothing, slows nothing, and never starts a broker. Events tell who and
    what; the text of messages only with --bodies.

    \b
    zmq-tap --class msg --peer api
    zmq-tap --office --bodies
    zmq-tap --record day.tap        then: zmq-tap --replay day.tap --speed 10 --office
    """
    if office and top:
        raise click.UsageError("--office and --top are two screens (choose one)")
    if office and (as_json or count is not None):
        raise click.UsageError("--office is a screen (leave out --json and --count)")
    if (office or top) and (classes or peers or kinds):
        raise click.UsageError("a screen shows everything (leave out --class, --peer and --kind, or use no screen)")
    if speed is not None and replay is None:
        raise click.UsageError("--speed is for --replay FILE")
    if replay is not None and demo:
        raise click.UsageError("--replay plays a file and --demo looks at a bus (choose one)")
    wanted = Wanted(record, replay, 1.0 if speed is None else speed, timeout, bodies, demo, top)
    if office or top:
        from agent.cli.tap_screens import run_office, run_top

        return run_office(call, wanted) if office else run_top(call, wanted, as_json, count)
    began = time.monotonic()
    with ExitStack() as stack:
        items = opened(stack, call, wanted)
        printer = Printer(Choice(classes, peers, kinds), as_json, bodies)
        for item in items:
            if item is not None and printer.show(item) and printer.seen == count:
                return exits.DONE
    if demo and timeout is None:
        show.note("the demo has ended")
    return exits.TIMED_OUT if timeout is not None and time.monotonic() - began >= timeout else exits.DONE


# -- where items come from -------------------------------------------------------------------------------------------


def opened(
    stack: ExitStack, call: Call, wanted: Wanted, wait: Callable[[float], bool] | None = None, pulse: float = PULSE_S
) -> Iterator[Item | None]:
    """Items, and None now and then while there are none; closed with `stack`.

    `wait` sleeps for some seconds, and returns True to end a replay. Unreachable and Refused may come out of it later
    too. Everything is recorded that comes, whatever is shown of it.
    """
    if wanted.replay is not None:
        items: Iterator[Item | None] = _replayed(wanted, wait or threading.Event().wait)
    else:
        items = _of_a_bus(stack, call, wanted, pulse)
    if wanted.record is None:
        return items
    return _recorded(stack.enter_context(Recorder(wanted.record, show.now_ms())), items)


def _of_a_bus(stack: ExitStack, call: Call, wanted: Wanted, pulse: float) -> Iterator[Item | None]:
    if wanted.demo:
        from agent.cli.demo_find import at_demo

        call = at_demo(call, wanted.timeout)
    view = stack.enter_context(call.view(start=False))
    items = live(
        view,
        show.now_ms,
        timeout=wanted.timeout,
        bodies=Bodies(view) if wanted.bodies else None,
        refresh=REFRESH_S if wanted.refresh else 0.0,
        pulse=pulse,
    )
    if not wanted.demo:
        return items
    from agent.cli.demo_find import until_it_ends

    return until_it_ends(items, call.home)


def _replayed(wanted: Wanted, wait: Callable[[float], bool]) -> Iterator[Item]:
    assert wanted.replay is not None
    recording = Recording(wanted.replay)
    until = time.monotonic() + wanted.timeout if wanted.timeout is not None else float("inf")

    def waited(seconds: float) -> bool:
        return wait(max(0.0, min(seconds, until - time.monotonic()))) or time.monotonic() >= until

    return recording.played(wanted.speed, waited)


def _recorded(recorder: Recorder, items: Iterator[Item | None]) -> Iterator[Item | None]:
    for item in items:
        if item is not None:
            recorder.write(item)
        yield item


# -- lines -----------------------------------------------------------------------------------------------------------


class Printer:
    """Prints items as lines. `seen` counts the events that were printed."""

    def __init__(self, choice: Choice, as_json: bool, bodies: bool) -> None:
        self.seen = 0
        self._choice, self._as_json, self._bodies = choice, as_json, bodies
        self._coloured = colours.wanted()
        self._ascii = colours.plain_only()
        self._teller = Teller(stamp, choice, "->" if self._ascii else "→", bodies)

    def show(self, item: Item) -> bool:
        """Print it, if it is wanted; True for an event that was."""
        if not self._choice.takes(item):
            return False
        if self._as_json:
            self._line(item)
        else:
            for line in self._teller.lines(item):
                text = colours.painted(line, self._coloured)
                click.echo(colours.ascii_only(text) if self._ascii else text, color=True)
        self.seen += item.what == "event"
        return item.what == "event"

    def _line(self, item: Item) -> None:
        told = as_line(item)
        if item.what == "snapshot":
            told = self._choice.narrowed(told)
        if not self._bodies:
            told = {key: value for key, value in told.items() if key not in ("body", "no_body")}
        show.line(told)


def stamp(ms: int) -> str:
    """A time of today to the millisecond, another with its date."""
    with suppress(ValueError, OverflowError, OSError):
        text = show.clock(ms)
        return f"{text}.{ms % 1000:03d}" if text.count(":") == 2 else text
    return "?"
