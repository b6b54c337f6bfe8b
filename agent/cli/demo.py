"""`talkbus demo`: a bus of its own in a temporary folder, three agents, crashes in the middle, a count at the end.

What is running on this machine is not touched: nothing of the caller's TALKBUS_* reaches the processes of the demo,
and every one of them is gone when it ends, however it ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.call import as_json
from agent.cli.demo_count import Tally
from agent.cli.demo_find import PREFIX
from agent.cli.demo_plan import plan
from agent.cli.finite import Finite

if TYPE_CHECKING:
    from agent.cli.demo_run import Show
    from bus.config import Home

WATCH = "zmq-tap --demo --office --bodies"
AGENTS = ("ada", "bob", "cleo")
_SHOWN = "shown: the tool result that carried the message's id reached a live MCP client; counted by the demo itself"


@click.command()
@click.option(
    "--messages", default=1000, show_default=True, type=click.IntRange(30, 1500), help="How many copies to send."
)
@click.option("--seed", default=1, show_default=True, help="Who sends what to whom.")
@click.option("--pace", type=Finite(0.1, 1000), metavar="N", help="About N messages a second, to watch it.")
@click.option("--keep", is_flag=True, help="Keep the temporary folder, with databases and logs.")
@as_json
def demo(messages: int, seed: int, pace: float | None, keep: bool, as_json: bool) -> int:
    """See it: agents, messages, crashes, and nothing lost.

    Three agents send each other messages through a broker of their own. Meanwhile the broker is killed twice and an
    agent once. What is counted are copies: a message to several is one for each of them. In another terminal
    'zmq-tap --demo --office --bodies' shows it as it happens.

    \b
    talkbus demo
    talkbus demo --messages 60 --pace 2     slow enough to watch
    talkbus demo --messages 300 --json
    """
    from agent.cli.demo_show import Screen

    screen = Screen(sys.stderr if as_json else sys.stdout, messages)
    tally = Tally(AGENTS)
    pause_s = len(AGENTS) / pace if pace else 0.0
    screen.event(f"to watch it from another terminal: {WATCH}")
    with _interruptible(), _own_environment(), _temporary_home(keep) as home:
        show = _perform(home, tally, screen, plan(AGENTS, messages, seed), pause_s)
        screen.end()
    found = document(show, messages, seed)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        _tell(show, found)
        if keep:
            click.echo(f"kept: {home.root}", err=True)
    return 0 if found["ok"] else 1


def document(show: Show, messages: int, seed: int) -> dict[str, Any]:
    """All counts, for a program."""
    tally, counter = show.stage.tally, show.stage.counter
    ok = tally.good and tally.sent == messages and counter.good
    return {
        "ok": ok,
        "messages": messages,
        "seed": seed,
        "seconds": round(show.screen.elapsed, 2),
        "sent": tally.sent,
        "shown": tally.shown,
        "lost": tally.lost,
        "twice": tally.twice,
        "unexpected": tally.strangers,
        "agents": [{"name": name, **asdict(tally.share(name))} for name in tally.names],
        "kills": [{key: _rounded(value) for key, value in asdict(kill).items()} for kill in show.kills],
        "state": {**asdict(counter), "ok": counter.good},
    }


def _tell(show: Show, found: dict[str, Any]) -> None:
    from agent.cli.demo_show import agents_table, kills_table

    tally, counter = show.stage.tally, show.stage.counter
    word = "as it must be" if counter.good else "WRONG"
    unsure = f", {counter.unsure} written while the broker was away" if counter.unsure else ""
    click.echo(f"\n{agents_table(tally)}\n\n{kills_table(show.kills)}\n")
    click.echo(
        f"state: the counter is {counter.value} after {counter.raised} successful writes and {counter.conflicts} "
        f"refused ones{unsure}: {word}"
    )
    if tally.strangers:
        click.echo(f"{tally.strangers} messages were shown that nobody had sent")
    click.echo(
        f"{found['seconds']:.1f} s, {tally.messages} messages in {tally.sent} copies\n{_SHOWN}\n{tally.verdict}"
    )


def _rounded(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value


def _perform(home: Home, tally: Tally, screen: Any, steps: Any, pause_s: float) -> Show:
    """Run it; what stops it becomes one line."""
    import anyio

    from agent.cli.demo_agents import DemoFailed, Stage
    from agent.cli.demo_run import Show
    from bus.errors import BusError
    from bus.private import private_dir

    async def run() -> Show:
        log = os.open(private_dir(home.logs) / "agents.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(log, "a", encoding="utf-8") as errlog:
            show = Show(Stage(home, tally, errlog, pause_s=pause_s), screen, steps)
            await show.run()
            return show

    try:
        return anyio.run(run)
    except (Exception, BaseExceptionGroup) as error:
        leaves = _leaves(error)
        if not all(isinstance(leaf, Exception) for leaf in leaves):
            raise KeyboardInterrupt from error
        first = leaves[0]
    screen.end()
    text = str(first) if isinstance(first, DemoFailed | BusError) else f"{type(first).__name__}: {first}"
    raise click.ClickException(f"the demonstration stopped: {text} (run it with --keep and look into its logs)")


def _leaves(error: BaseException) -> list[BaseException]:
    """What really happened: task groups wrap it in groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


# -- what is left behind: nothing ------------------------------------------------------------------------------------


@contextmanager
def _temporary_home(keep: bool) -> Iterator[Home]:
    from bus.config import home

    root = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    found = home({"TALKBUS_HOME": str(root)})
    try:
        yield found
    finally:
        try:
            _stop_all(found)
        finally:
            if not keep:
                shutil.rmtree(root, ignore_errors=True)


def _stop_all(home: Home) -> None:
    """The broker in good order; then whatever still runs in this home, as a broker that was just being started."""
    import psutil  # type: ignore[import-untyped]

    from bus.daemon import stop_broker
    from bus.errors import BusError

    with suppress(BusError):
        stop_broker(home, 3.0)
    own = os.getpid()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != own and process.environ().get("TALKBUS_HOME") == str(home.root):
                process.kill()
                process.wait(3)


@contextmanager
def _own_environment() -> Iterator[None]:
    """Without what the caller set for a bus of his own."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("TALKBUS_")}
    try:
        yield
    finally:
        os.environ.update(taken)


@contextmanager
def _interruptible() -> Iterator[None]:
    """A request to end is as good as Ctrl-C: everything is cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

    def interrupt(_number: int, _frame: object) -> None:
        signal.raise_signal(signal.SIGINT)  # asyncio knows how to end everything in good order at this one only

    former = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
