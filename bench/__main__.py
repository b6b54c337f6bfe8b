"""python -m bench [NAME…] [--json] [--quick] [--compare FILE] [--output FILE]: measure, beside others, in one run.

The result is on stdout, progress on stderr. Without a name everything is measured. A benchmark that fails is
reported, the others go on, and the exit code is 1.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bench import agents, c2c, fanout, growth, latency, loss, machine, many, plots, results, throughput, tokens, wake
from bench.compare import compare, read
from bench.frame import BENCHES, FAILURES, NOTES, Options, Row, document, failed, ratios, say, table
from bench.systems import promises
from bench.workers import PROFILE

# Imported for what they register.
__all__ = ["agents", "c2c", "fanout", "growth", "latency", "loss", "many", "throughput", "tokens", "wake"]

HERE = Path(__file__).resolve().parent


def _list(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        width = max(map(len, BENCHES))
        for name, run in BENCHES.items():
            click.echo(f"{name:{width}}  {(run.__doc__ or '').splitlines()[0]}")
        context.exit()


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHES)), metavar="[NAME]...")
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="Names and what they do."
)
@click.option("--json", "as_json", is_flag=True, help="One document for programs on stdout.")
@click.option("--quick", is_flag=True, help="Everything, but little of it: does it run at all?")
@click.option(
    "--compare", "earlier", type=click.Path(exists=True, dir_okay=False), help="Beside an earlier document."
)
@click.option("--output", type=click.Path(file_okay=False), help="A folder for bench.json and the plots.")
@click.option("--write-results", is_flag=True, help="Make bench/RESULTS.md and its plots of this run.")
@click.option(
    "--from", "made", type=click.Path(exists=True, dir_okay=False), help="Measure nothing, take this document."
)
def main(
    names: Sequence[str],
    as_json: bool,
    quick: bool,
    earlier: str | None,
    output: str | None,
    write_results: bool,
    made: str | None,
) -> None:
    """Measure talkbus beside other systems, in the same run on the same machine.

    All of it takes less than 15 minutes on two cores. What is not installed is left out, with a word:
    apt-get install nats-server redis-server mosquitto; pip install 'talkbus[bench]'.
    """
    try:
        former = read(earlier) if earlier else None
        found, bad = (read(made), False) if made else _measure(names or list(BENCHES), quick)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    rows = [Row(**row) for row in found["rows"]]
    if output:
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bench.json").write_text(json.dumps(found, indent=1) + "\n")
        plots.draw(rows, folder)
    if write_results:
        results.write(found, rows, HERE)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        click.echo("\n".join([machine.sentence(found["machine"]), *found["notes"], "", table(rows)]))
        if former is not None:
            click.echo("\n" + compare(former, rows))
    sys.exit(1 if bad else 0)


def _measure(names: Sequence[str], quick: bool) -> tuple[dict[str, Any], bool]:
    """The document of a run, and whether something in it failed."""
    # Told to end, it ends what it started, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in [n for n in os.environ if n.startswith("TALKBUS_") and n not in (PROFILE, "TALKBUS_E2E_CACHE")]:
        del os.environ[name]  # what is set for the bus of whoever measures is not for these
    described = machine.describe()
    rows: list[Row] = []
    say.total = len(names)
    for number, name in enumerate(names):
        say.done, say.name = number, name
        try:
            # One by one: what was measured before a failure counts.
            for row in BENCHES[name](Options(quick)):
                rows.append(row)
        except KeyboardInterrupt:
            raise
        except Exception as error:
            failed(name, f"{type(error).__name__}: {error}")
            say.finish()
            traceback.print_exc()
    say.finish()
    rows += list(ratios(rows))
    kind = ["a quick run: its figures are no measurements"] if quick else []
    return document(described, [*kind, *promises(), *NOTES, *FAILURES], rows), bool(FAILURES)


if __name__ == "__main__":
    main()
