"""Processes that take part in a benchmark: started clean (spawn), asked and answering over a pipe, surely ended.

With TALKBUS_BENCH_PROFILE set to a folder every worker leaves a cProfile of each of its threads there.
"""

from __future__ import annotations

import contextlib
import cProfile
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROFILE = "TALKBUS_BENCH_PROFILE"
PATIENCE_S = 30.0


class WorkerFailed(RuntimeError):
    """A worker ended or raised; the text is its traceback."""


class Worker:
    """One process that runs `serve(pipe, *args)`; its last word before it serves is ("ready", anything)."""

    def __init__(self, name: str, serve: Callable[..., None], *args: Any) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_run, args=(far, name, serve, args), name=name, daemon=True)
        self._process.start()
        far.close()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid or 0

    def tell(self, what: str, *args: Any) -> None:
        """Give it something to do."""
        try:
            self._pipe.send((what, *args))
        except OSError:
            self.answer("")  # it says why

    def answer(self, what: str, patience: float = PATIENCE_S) -> Any:
        """What it answers under this name; WorkerFailed when it says anything else, or nothing in time."""
        if not self._pipe.poll(patience):
            raise WorkerFailed(f"{self.name} said nothing for {patience:g} s")
        try:
            said, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise WorkerFailed(f"{self.name} is gone") from None
        if said != what:
            raise WorkerFailed(f"{self.name}: {value}")
        return value

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._process.kill()
        self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()  # every serve() ends when its pipe does
        self._process.join(10 if kind is None else 1)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _run(pipe: Connection, name: str, serve: Callable[..., None], args: tuple[Any, ...]) -> None:
    folder = os.environ.get(PROFILE)
    if folder:
        _profile_threads(Path(folder), name)
    try:
        serve(pipe, *args)
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception:
        with contextlib.suppress(OSError):  # who is not listened to any more need not complain
            pipe.send(("failed", traceback.format_exc()))
    finally:
        for finish in _finishing:
            finish()


_finishing: list[Callable[[], None]] = []


def _profile_threads(folder: Path, name: str) -> None:
    """A profile for this thread, and one for each that starts later: cProfile sees only its own."""
    made: list[tuple[str, cProfile.Profile]] = []

    def begin(*_event: Any) -> None:
        profile = cProfile.Profile()
        made.append((threading.current_thread().name, profile))
        profile.enable()

    def finish() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (thread, profile) in enumerate(made):
            profile.disable()
            profile.dump_stats(folder / f"{name}-{os.getpid()}-{number}-{thread}.prof")

    threading.setprofile(begin)
    begin()
    _finishing.append(finish)
