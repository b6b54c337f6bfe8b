"""python -m bench [NAME…] [--json] [--seconds S]: measure, beside others, in the same run.

The result is on stdout, progress on stderr. Without a name everything is measured.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import click

from bench import latency, machine, ours, throughput, tokens
from bench.frame import BENCHES, Options, Row, document, ratios, say, table
from bench.workers import PROFILE

# Imported for what they register.
__all__ = ["latency", "main", "throughput", "tokens"]


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHES)), metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="One document for programs.")
@click.option("--seconds", default=6.0, show_default=True, type=click.FloatRange(0.1, 600), help="For each system.")
@click.option(
    "--rounds", default=3, show_default=True, type=click.IntRange(1, 20), help="Turns they are spread over."
)
def main(names: Sequence[str], as_json: bool, seconds: float, rounds: int) -> None:
    """Measure talkbus beside other systems, in the same run on the same machine."""
    for name in [n for n in os.environ if n.startswith("TALKBUS_") and n != PROFILE]:
        del os.environ[name]  # what is set for the bus of whoever measures is not for these
    found = machine.describe()
    say(machine.sentence(found))
    rows: list[Row] = []
    for name in names or BENCHES:
        rows += BENCHES[name](Options(seconds, rounds))
    rows += list(ratios(rows))
    if as_json:
        click.echo(json.dumps(document(found, ours.NOTES, rows), indent=1))
        return
    click.echo(f"{machine.sentence(found)}\n" + "\n".join(ours.NOTES) + f"\n\n{table(rows)}")


if __name__ == "__main__":
    sys.exit(main())
