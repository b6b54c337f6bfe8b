"""`zmq-tap`: what happens on the bus, as lines, as a room or as a table; live, or from a recording.

The options, and which of them go together.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from agent.cli import exits, show
from agent.cli.call import Call, pass_call
from agent.cli.finite import Finite
from agent.cli.tap_lines import Printer
from agent.cli.tap_source import Wanted, opened
from agent.tap.choosing import CLASSES, KINDS, Choice


def _no_pools(_ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise click.UsageError("this bus has no pools yet (choose by --peer, --class or --kind)")


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
@click.option("--pool", metavar="NAME", callback=_no_pools, expose_value=False, help="There are no pools yet.")
@click.option("--record", type=click.Path(path_type=Path), metavar="FILE", help="Also write everything to FILE.")
@click.option("--replay", type=click.Path(path_type=Path), metavar="FILE", help="Play FILE instead of a bus.")
@click.option("--speed", type=Finite(0, 10_000), metavar="X", help="With --replay: X times as fast; 0: at once.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N events; with --top, after N tables.")
@click.option("--timeout", type=Finite(0), metavar="S", help="End after S seconds, with exit code 4.")
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
