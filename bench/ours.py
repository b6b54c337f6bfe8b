"""talkbus under test: a broker process, and sessions with the agent's own Loop and Link on databases of their own.

Nothing is switched off: CURVE, `synchronous=FULL` at all three databases, the ledger, receipts. Only the limits are
raised, for they are policy.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.effects import Mail, News, Settled
from agent.inbox import Letter
from agent.link import Link, Profile
from agent.loop import Loop
from agent.outbox import Outbox
from bench.frame import OURS
from bench.system import Bus, Node, System
from bench.workers import PROFILE
from bus import config, daemon
from bus.private import private_dir

NAME = OURS
LIMIT = 1_000_000
ROOT = Path(__file__).resolve().parent.parent
NOTE = (
    "talkbus: SQLite with synchronous=FULL at sender, broker and recipient (an acknowledged message survives the "
    "loss of power); it counts as acknowledged when the sender has the broker's reply on its own disk and the "
    f"broker has the recipient's proof on its disk; limits.rate and limits.burst raised to {LIMIT:,} (60 and 600 by "
    "default); CURVE, policy, ledger and receipts as always"
)
_PROOF = "bench"
_STUCK_S = 15


@contextmanager
def _bus() -> Iterator[Bus]:
    with tempfile.TemporaryDirectory(prefix="talkbus-bench-") as folder, broker(Path(folder)) as pid:
        yield Bus(pid, OurNode, (folder,))


SYSTEM = System(NAME, NOTE, _bus, lambda: "")


@contextmanager
def broker(folder: Path) -> Iterator[int]:
    """A broker of this home with raised limits; surely ended."""
    home = home_of(folder)
    for name in ("limits.rate", "limits.burst"):
        config.set_value(home, name, str(LIMIT))
    daemon.clear_stop(home)
    profiled = _profiled(home) if os.environ.get(PROFILE) else None
    try:
        yield daemon.ensure_broker(home, 60).pid
    finally:
        daemon.stop_broker(home)
        if profiled:
            profiled.wait(30)


def _profiled(home: config.Home) -> subprocess.Popen[bytes]:
    """The broker under cProfile, ready."""
    Path(os.environ[PROFILE]).mkdir(parents=True, exist_ok=True)
    out = Path(os.environ[PROFILE]).resolve() / f"broker-{os.getpid()}-{secrets.token_hex(2)}.prof"
    command = [sys.executable, "-m", "cProfile", "-o", str(out), str(ROOT / "talkbus.py"), "up", "--foreground"]
    process = subprocess.Popen(command, env=os.environ | {"TALKBUS_HOME": str(home.root)})
    end = time.monotonic() + 10
    while daemon.published(home) is None and time.monotonic() < end:
        time.sleep(0.02)
    return process


def home_of(folder: Path) -> config.Home:
    """The directories of a bus under this folder."""
    return config.home({"TALKBUS_HOME": str(folder)})


class OurNode(Node):
    """An agent's loop, welcomed under this name."""

    def __init__(self, name: str, folder: str) -> None:
        home = home_of(Path(folder))
        outbox = Outbox.open(private_dir(home.agents / name) / "agent.db")
        profile = Profile("hold", secrets.token_hex(8), name)
        self._changed = threading.Condition()
        self._settled = 0
        self._failed = ""
        self._came: list[Letter] = []
        self._shown: list[str] = []
        self._asked = False  # a step is on its way to the loop's thread
        self._loop = Loop(home, config.load(home, {}), outbox, profile, autostart=False, on_news=self._heard)
        self._loop.start()
        with self._changed:
            if not self._changed.wait_for(lambda: self._loop.status().connected, _STUCK_S):
                self._loop.stop(leave=True)
                raise RuntimeError(f"{name} is not connected: {self._loop.status().reason}")

    # -- in the loop's thread --------------------------------------------------------------------------------------

    def _heard(self, news: News) -> None:
        if isinstance(news, Mail):
            self._ask()
            return
        with self._changed:
            if isinstance(news, Settled):
                self._settled += 1
                if news.code != 200:
                    self._failed = f"{news.code} {news.text} {news.result}"
            self._changed.notify()

    def _ask(self) -> None:
        """Have the waiting ones offered, and what was taken marked as shown."""
        if not self._asked:
            self._asked = True
            self._loop.call(self._step).add_done_callback(self._offered)

    def _step(self, link: Link, now: int) -> list[Letter]:
        self._asked = False
        keys, self._shown = self._shown, []
        if keys:
            link.inbox.shown(now, keys, _PROOF)
        return link.inbox.offer(now, link.inbox.waiting(), _PROOF)

    def _offered(self, done: Future[list[Letter]]) -> None:
        """They are in the ledger, on disk: now they may be seen."""
        with self._changed:
            if done.exception() is not None:
                self._failed = str(done.exception())
            else:
                self._came += done.result()
            self._changed.notify()

    # -- in the application's --------------------------------------------------------------------------------------

    def send(self, to: str, bodies: Sequence[bytes]) -> None:
        args = {"to": [to], "kind": "note"}

        def submit(link: Link, now: int) -> None:
            for text in bodies:
                link.submit(now, "send", args, text)

        self._loop.call(submit)

    def request(self, op: str, args: dict[str, Any]) -> None:
        """Any other operation; returns when it is on disk here."""
        self._loop.submit(op, args)

    @property
    def settled(self) -> int:
        if self._failed:
            raise RuntimeError(self._failed)
        return self._settled

    def wait(self, seconds: float) -> None:
        with self._changed:
            if not self._came:
                self._changed.wait(seconds)

    def take(self) -> list[bytes]:
        with self._changed:
            came, self._came = self._came, []
        if came:
            self._shown = self._shown + [letter.key for letter in came]
            self._ask()
        return [letter.msg.body for letter in came]

    def flush(self) -> None:
        """The broker has every acknowledgement on its disk."""
        until = time.monotonic() + _STUCK_S
        unread = -1
        while unread:
            self._ask()
            rows = self._loop.ask("whoami", {}, 5).rows
            unread = rows[0][0]["unread"] if rows else unread
            if time.monotonic() > until:
                raise RuntimeError(f"{unread} messages stay unread")

    def close(self) -> None:
        self._loop.stop(leave=True)
