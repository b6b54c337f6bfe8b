"""talkbus under test: a broker process, and two with the agent's own Loop and Link on databases of their own.

Nothing is switched off: CURVE, `synchronous=FULL` at all three databases, the ledger, receipts. Only the limits are
raised, for they are policy.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from agent.effects import Mail, News, Settled
from agent.link import Link, Profile
from agent.loop import Loop
from agent.outbox import Outbox
from bench.frame import OURS
from bench.system import Flow, Pair, body, sent_at
from bench.workers import PROFILE, Worker
from bus import config, daemon
from bus.private import private_dir

NAME = OURS
LIMIT = 1_000_000
NOTES = (
    f"talkbus: limits.rate and limits.burst raised to {LIMIT:,} (60 and 600 by default); "
    "synchronous=FULL and receipts as always",
)
_PROOF = "bench"


@contextmanager
def pair() -> Iterator[Pair]:
    """Broker, sender and recipient, connected; their folder is removed at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="talkbus-bench-") as folder,
        _broker(Path(folder)) as broker,
        Worker("recipient", _recipient, folder) as recipient,
    ):
        recipient.answer("ready")
        with Worker("sender", _sender, folder) as sender:
            sender.answer("ready")
            yield Pair(sender, recipient, broker)


@contextmanager
def _broker(folder: Path) -> Iterator[int]:
    home = _home(folder)
    for name in ("limits.rate", "limits.burst"):
        config.set_value(home, name, str(LIMIT))
    profiled = _profiled(home) if os.environ.get(PROFILE) else None
    try:
        yield daemon.ensure_broker(home).pid
    finally:
        daemon.stop_broker(home)
        if profiled:
            profiled.wait(30)


def _profiled(home: config.Home) -> subprocess.Popen[bytes]:
    """The broker under cProfile, ready."""
    Path(os.environ[PROFILE]).mkdir(parents=True, exist_ok=True)
    root = Path(__file__).resolve().parent.parent
    out = Path(os.environ[PROFILE]).resolve() / f"broker-{os.getpid()}-{secrets.token_hex(2)}.prof"
    command = [sys.executable, "-m", "cProfile", "-o", str(out), str(root / "talkbus.py"), "up", "--foreground"]
    process = subprocess.Popen(command, env=os.environ | {"TALKBUS_HOME": str(home.root)})
    end = time.monotonic() + 10
    while daemon.published(home) is None and time.monotonic() < end:
        time.sleep(0.02)
    return process


def _home(folder: Path) -> config.Home:
    return config.home({"TALKBUS_HOME": str(folder)})


@contextmanager
def _loop(folder: str, name: str, on_news: Any) -> Iterator[Loop]:
    """An agent's loop, welcomed under this name."""
    home = _home(Path(folder))
    outbox = Outbox.open(private_dir(home.agents / name) / "agent.db")
    welcomed = threading.Event()

    def heard(news: News) -> None:
        welcomed.set()
        on_news(news)

    profile = Profile("hold", secrets.token_hex(8), name)
    loop = Loop(home, config.load(home, {}), outbox, profile, autostart=False, on_news=heard)
    loop.start()
    try:
        end = time.monotonic() + 10
        while not loop.status().connected and time.monotonic() < end:
            welcomed.wait(0.05)
        if not loop.status().connected:
            raise RuntimeError(f"{name} is not connected: {loop.status().reason}")
        yield loop
    finally:
        loop.stop(leave=True)


class _Sender:
    """Keeps a window of sends that the broker has not answered yet full."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._settled = 0
        self._refused = ""

    def heard(self, news: News) -> None:
        """In the loop's thread."""
        if isinstance(news, Settled):
            with self._free:
                self._settled += 1
                if news.code != 200:
                    self._refused = f"{news.code} {news.text} {news.result}"
                self._free.notify()

    def flow(self, loop: Loop, seconds: float, window: int) -> Flow:
        """As many as go out in this time."""
        self._settled = 0
        began = time.monotonic_ns()
        end = began + int(seconds * 1e9)
        count = 0
        while time.monotonic_ns() < end:
            with self._free:
                while count - self._settled >= window:
                    if not self._free.wait(5):
                        raise RuntimeError(f"no answer to {count - self._settled} sends for 5 s")
                room = window - (count - self._settled)
            # All there is room for goes in with one call, as an application would do it that has so much to say.
            loop.call(partial(_submit, room))
            count += room
        self._all(count)
        return Flow(count, began, time.monotonic_ns())

    def pace(self, loop: Loop, count: int, every: float) -> Flow:
        """One at a time, long apart."""
        self._settled = 0
        began = time.monotonic_ns()
        for _ in range(count):
            time.sleep(every)
            loop.submit("send", {"to": ["recipient"], "kind": "note"}, body())
        self._all(count)
        return Flow(count, began, time.monotonic_ns())

    def _all(self, count: int) -> None:
        with self._free:
            if not self._free.wait_for(lambda: self._settled >= count, 30):
                raise RuntimeError(f"{count - self._settled} of {count} sends were not answered")
        if self._refused:
            raise RuntimeError(f"the broker refused: {self._refused}")


def _submit(count: int, link: Link, now: int) -> None:
    for _ in range(count):
        link.submit(now, "send", {"to": ["recipient"], "kind": "note"}, body())


def _sender(pipe: Connection, folder: str) -> None:
    sender = _Sender()
    with _loop(folder, "sender", sender.heard) as loop:
        pipe.send(("ready", None))
        while True:
            what, *args = pipe.recv()
            pipe.send((what, sender.flow(loop, *args) if what == "flow" else sender.pace(loop, *args)))


class _Recipient:
    """Takes what is there, has it, says so, and takes what came meanwhile."""

    def __init__(self) -> None:
        self._mail = threading.Event()
        self._keys: list[str] = []
        self.delays: list[int] = []

    def heard(self, news: News) -> None:
        """In the loop's thread."""
        if isinstance(news, Mail):
            self._mail.set()

    def take(self, loop: Loop) -> None:
        """What waits now, once it is in the ledger; what was taken before is shown."""
        self._mail.wait(0.02)
        self._mail.clear()
        keys, self._keys = self._keys, []

        def step(link: Link, now: int) -> list[Any]:
            link.inbox.shown(now, keys, _PROOF)
            return link.inbox.offer(now, link.inbox.waiting(), _PROOF)

        letters = loop.call(step).result()
        got = time.monotonic_ns()
        self.delays += [got - sent_at(letter.msg.body) for letter in letters]
        self._keys = [letter.key for letter in letters]
        if letters:
            self._mail.set()  # so that these are acknowledged at once


def _recipient(pipe: Connection, folder: str) -> None:
    recipient = _Recipient()
    with _loop(folder, "recipient", recipient.heard) as loop:
        pipe.send(("ready", None))
        total = -1
        while True:
            recipient.take(loop)
            if pipe.poll():
                _, total = pipe.recv()
            if len(recipient.delays) >= total >= 0:
                recipient.take(loop)
                _settled(loop)
                pipe.send(("total", (time.monotonic_ns(), recipient.delays)))
                recipient.delays, total = [], -1


def _settled(loop: Loop) -> None:
    """The broker has every acknowledgement on its disk."""
    unread = -1
    for _ in range(500):
        rows = loop.ask("whoami", {}, 5).rows
        unread = rows[0][0]["unread"] if rows else unread
        if unread == 0:
            return
        with contextlib.suppress(InterruptedError):
            time.sleep(0.005)
    raise RuntimeError(f"{unread} messages stay unread")
