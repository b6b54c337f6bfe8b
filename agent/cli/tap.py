"""`zmq-tap`: the live events of the bus as lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from agent.cli import exits, show
from agent.cli.call import Call, pass_call
from agent.cli.follow import following

CLASSES = ("msg", "peer", "state", "bus")
_PEOPLE = ("name", "from", "to", "former", "by")


@click.command(cls=exits.OneLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="JSON lines, for programs.")
@click.option(
    "--class", "classes", multiple=True, type=click.Choice(CLASSES), help="Only this class; may be repeated."
)
@click.option("--peer", metavar="NAME", help="Only events that name this peer.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N events.")
@click.option("--timeout", type=click.FloatRange(0), metavar="S", help="End after S seconds, with exit code 4.")
@pass_call
def tap(
    call: Call, as_json: bool, classes: Sequence[str], peer: str | None, count: int | None, timeout: float | None
) -> int:
    """Print what happens on the bus, as it happens, until Ctrl-C.

    Events tell who and what, never the text of a message. What was missed is said. The broker is not started for it.

    \b
    zmq-tap
    zmq-tap --class msg --peer api --json
    """
    topics = tuple(f"{name}." for name in classes or CLASSES)
    with call.view(start=False) as view:
        done = follow(view, topics, peer, count, timeout, as_json)
    return exits.DONE if done else exits.TIMED_OUT


def follow(
    view: Any, topics: Sequence[str], peer: str | None, count: int | None, timeout: float | None, as_json: bool
) -> bool:
    """Print events; whether `count` of them came."""
    seen = 0
    joined = False
    for event in following(view, topics, timeout):
        if event is None:
            if joined and not as_json:
                show.note("events were missed here")
            elif joined:
                show.line({"class": "tap", "name": "gap"})
            joined = True
            continue
        if peer is not None and peer.lower() not in _named(event):
            continue
        print_event(event, as_json)
        seen += 1
        if seen == count:
            return True
    return False


def print_event(event: dict[str, Any], as_json: bool) -> None:
    """One event as a line."""
    if as_json:
        show.line(event)
    else:
        click.echo(show.safe(in_words(event)))


def _named(event: dict[str, Any]) -> set[str]:
    found = {str(event.get(key, "")).lower() for key in _PEOPLE}
    return found | {text.partition("@")[0] for text in found}


def in_words(event: dict[str, Any]) -> str:
    """What happened, for a person."""
    told = dict(event)
    for key in ("seq", "boot", "mailbox", "size", "from_host", "host"):
        told.pop(key, None)
    topic = f"{told.pop('class', '')}.{told.pop('event', '')}"
    head = f"{show.clock(int(told.pop('ts', 0)))}  {topic.ljust(13)}"
    ident = f" {told.pop('id')}" if "id" in told else ""
    way = " -> ".join(str(told.pop(key)) for key in ("from", "to") if told.get(key))
    rest = " ".join(f"{key}={value}" for key, value in told.items() if value not in ("", 0, None))
    return f"{head}{ident}{' ' + way if way else ''}{' ' + rest if rest else ''}"
