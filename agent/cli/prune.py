"""`talkbus prune`: old mail that was read goes, after its amount was shown."""

from __future__ import annotations

import sys
import time

import click

from agent.cli import exits, show
from agent.cli.call import Call, acting, as_json, pass_call
from agent.cli.finite import Finite

DAY_MS = 86_400_000
LOOK_S = 0.2
LONGEST_S = 600.0


@click.command()
@click.option("--older-than", "days", type=Finite(0), required=True, metavar="DAYS", help="Age in days.")
@click.option("--dry-run", is_flag=True, help="Only tell how much would go.")
@acting
@as_json
@pass_call
def prune(call: Call, days: float, dry_run: bool, as_json: bool) -> int:
    """Remove old messages that were read.

    Unread mail stays whatever its age. It goes in pieces while the bus works on, also when this command is left.

    \b
    talkbus prune --older-than 30 --dry-run
    talkbus prune --older-than 30
    """
    person = call.person
    with person.asking() as asker:
        # The broker's clock decides what lies in the past.
        now = int(asker.ask("stats", {}).rows[0][0]["now"])
        before = max(0, now - int(days * DAY_MS))
        found = asker.ask("prune", {"before": before}).rows[0][0]
        told = {
            "before": before,
            "messages": int(found["messages"]),
            "octets": int(found["octets"]),
            "dry_run": dry_run,
        }
        what = f"{told['messages']} messages, {show.octets(int(told['octets']))}, older than {show.clock(before)}"
        if dry_run:
            _say(as_json, told, f"would go: {what}")
            return exits.DONE
        if not as_json:
            click.echo(f"goes: {what}")
        person.do("prune", {"before": before})
        end = time.monotonic() + LONGEST_S
        left = int(told["messages"])
        while left and time.monotonic() < end:
            left = int(asker.ask("prune", {"before": before}).rows[0][0]["messages"])
            if left and not as_json and sys.stderr.isatty():
                click.echo(f"\r{left} to go   ", err=True, nl=False)
            if left:
                time.sleep(LOOK_S)
    if left:
        raise exits.TimedOut(f"{left} messages are still to go (the bus goes on; look again with --dry-run)")
    _say(as_json, {**told, "left": left}, "done")
    return exits.DONE


def _say(as_json: bool, told: dict[str, int], words: str) -> None:
    if as_json:
        show.document(told)
    else:
        click.echo(words)
