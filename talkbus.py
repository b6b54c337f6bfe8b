"""talkbus: the entry points of the two commands, and the only public module.

The rooms beside it are called bus, agent and hooks, as packages of users' own projects may be. So before any of them
is imported, whatever PYTHONPATH and the current folder put on the import path is taken off it. This is also the one
place that composes the command line (agent) with the broker (bus.server): neither imports the other.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from bus.config import Config, Home

__version__ = "0.1.0"


def main() -> None:
    """The command `talkbus`; ends the process with its exit code."""
    _ours_first()
    with _imports():
        from agent.cli.call import Call
        from agent.cli.main import cli

    own = Call(version=__version__, serve=_serve, unread=_unread, moved=_moved, look=_look, audit=_audit)
    with _end():
        cli.main(prog_name="talkbus", obj=own)


def tap() -> None:
    """The command `zmq-tap`; ends the process with its exit code."""
    _ours_first()
    with _imports():
        from agent.cli.call import Call
        from agent.cli.tap import tap as command

    with _end():
        command.main(prog_name="zmq-tap", obj=Call(version=__version__, serve=_serve))


@contextlib.contextmanager
def _imports() -> Iterator[None]:
    """End without a word at Ctrl-C while there is nothing that could tell it."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)


@contextlib.contextmanager
def _end() -> Iterator[None]:
    """Once a command has told how it ended, Ctrl-C ends the process without a traceback."""
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _serve(home: Home, config: Config) -> int:
    """The broker in this process, until it is told to end; with its log in a file, and its metrics if wanted."""
    import logging

    from bus import logs
    from bus.daemon import spawned
    from bus.private import private_dir
    from bus.server import serve

    # What stderr of a broker that was started by itself leads to is not rotated: it gets what ends it, no more.
    logs.to_stderr(logging.ERROR if spawned() else logging.DEBUG)
    with contextlib.ExitStack() as stack:
        stack.callback(logs.close, logs.to_file(private_dir(home.logs) / "broker.jsonl", config.log_level))
        ready = None
        if config.metrics_port:
            from bus.exporter import Exporter

            ready = stack.enter_context(Exporter(home, config, __version__)).start
        return serve(home, config, version=__version__, ready=ready)


def _unread(home: Home) -> list[dict[str, Any]]:
    """What waits in the bus of this machine, which does not run."""
    from bus.leftover import unread

    return unread(home)


def _moved(home: Home, letters: list[dict[str, Any]]) -> None:
    """These are elsewhere now."""
    from bus.leftover import moved

    moved(home, letters)


def _look(path: Path) -> None:
    """Whether the database of a bus that does not run can be opened."""
    from bus.store_look import look

    look(path)


def _audit(path: Path, heads: list[tuple[str, str, int, str]]) -> dict[str, Any]:
    """What the journal of a database is worth, as plain data."""
    from dataclasses import asdict

    from bus.store_audit import Head, verify

    return asdict(verify(path, [Head(*head) for head in heads]))


def _ours_first() -> None:
    """Drop from sys.path what PYTHONPATH and the current folder put there, but never this file's own folder."""
    own = os.path.dirname(os.path.realpath(__file__))
    kept = {own, os.path.dirname(os.path.realpath(os.__file__))}
    foreign = {os.path.realpath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place}
    with contextlib.suppress(OSError):  # a folder that was removed: nothing can be imported from it
        foreign.add(os.path.realpath(os.getcwd()))
    foreign -= kept
    sys.path[:] = [place for place in sys.path if place and os.path.realpath(place) not in foreign]
    if own not in map(os.path.realpath, sys.path):
        sys.path.insert(0, own)


if __name__ == "__main__":
    main()
