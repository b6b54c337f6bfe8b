"""Sender and recipient as processes of their own, made to be killed: what each did stands line by line in a file.

Run as a script it is one worker around a real agent.loop.Loop. `Worker` starts, kills and starts again such a process,
and reads what it told; `judge` compares what senders were promised with what recipients showed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.effects import News, Settled
from agent.inbox import Letter
from agent.link import Link, Profile
from agent.loop import Loop
from agent.outbox import Outbox
from bus import config
from bus.errors import StoreError
from bus.private import private_dir
from tests.live.homes import T, wait_for

ROOT = Path(__file__).resolve().parents[2]
PATH = "worker"


class Told:
    """A file of JSON lines, each in one write: what stands there was done, whenever the process is killed."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __call__(self, *line: Any) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")


def _loop(options: dict[str, Any], **more: Any) -> Loop:
    home = config.home()
    path = Path(options["database"])
    private_dir(path.parent)
    # The same instance in every life, as a session that its client starts again.
    profile = Profile("hold", options["name"], options["name"])
    return Loop(home, config.load(home), Outbox.open(path), profile, autostart=False, **more)


def send(options: dict[str, Any], tell: Told) -> None:
    """Submit the numbers that are not on disk yet, `batch` at a time, one every `pace` s; end when all are answered.

    A number the disk refuses is tried again until it is taken. Each row's answer is told, too.
    """

    def heard(news: News) -> None:
        if isinstance(news, Settled):
            tell("settled", news.row, news.code, news.text)

    loop = _loop(options, on_news=heard)
    done = [row for row in loop.outbox.recent(100) if row.op == "send"]
    last = max((int(row.body.split()[0]) for row in done), default=0)
    row = max((row.row for row in done), default=0)
    tell("life", os.getpid())
    loop.start()
    while last < options["count"]:
        numbers = range(last + 1, min(last + options["batch"], options["count"]) + 1)

        def submit(link: Link, now: int, numbers: Sequence[int] = numbers) -> list[tuple[int, str]]:
            args = {"to": [options["to"]], "new": True}
            return [link.submit(now, "send", args, f"{n} {options['filler']}".encode()) for n in numbers]

        try:
            rows = loop.call(submit).result()
        except StoreError as error:
            tell("refused", str(error))
            time.sleep(0.1)
            continue
        for number, (_, ident) in zip(numbers, rows, strict=True):
            tell("accepted", ident, number)
        last, row = numbers[-1], rows[-1][0]
        time.sleep(options["pace"])
    if row:
        loop.settled(row).result()
    tell("done")
    loop.stop(leave=False)


def receive(options: dict[str, Any], tell: Told) -> None:
    """Offer, show (a line is what is shown), confirm, for ever; how many are confirmed at once is random."""
    woken = threading.Event()
    rng = random.Random(options["seed"])
    loop = _loop(options, on_news=lambda news: woken.set())
    hands: dict[str, Letter] = {}
    loop.on_rebuilt = lambda link: link.inbox.hold(list(hands.values()))
    tell("life", os.getpid())
    loop.start()
    while True:
        woken.clear()
        try:
            letters = loop.call(lambda link, now: link.inbox.offer(now, link.inbox.waiting(), PATH)).result()
        except StoreError as error:
            tell("refused", str(error))
            woken.wait(0.1)
            continue
        if not letters:
            woken.wait()
        while letters:
            some, letters = letters[: (most := rng.choice((1, 3, 64)))], letters[most:]
            hands |= {letter.key: letter for letter in some}
            for letter in some:
                tell("shown", letter.msg.id, int(letter.msg.body.split()[0]), letter.msg.from_, letter.repeat)
                time.sleep(options["pace"])  # so that a kill finds some shown and not yet proved
            _confirm(loop, some, tell)
            for letter in some:
                hands.pop(letter.key)
                tell("proved", letter.msg.id)


def _confirm(loop: Loop, letters: Sequence[Letter], tell: Told) -> None:
    while True:
        try:
            return loop.call(lambda link, now: link.inbox.shown(now, [x.key for x in letters], "printed")).result()
        except StoreError as error:
            tell("refused", str(error))
            time.sleep(0.1)


class Worker:
    """One worker and its lives. Use it as a context manager: it is dead afterwards."""

    def __init__(
        self,
        environ: dict[str, str],
        folder: Path,
        role: str,
        name: str,
        *,
        before: Sequence[str] = (),
        **options: Any,
    ) -> None:
        """Options of `send`: to, count, pace, batch, filler, database; of `receive`: seed, pace, database. `before`
        are words in front of the command, which runs the rest in their way.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.path = name, folder / f"{name}.told"
        given = {"name": name, "database": str(folder / name / "agent.db"), "log": str(self.path), "seed": name}
        given |= {"pace": 0.0, "batch": 1, "filler": ""} | options
        self._command = [*before, sys.executable, "-m", "tests.live.worker", role, json.dumps(given)]
        self._environ, self._errors = environ, folder / f"{name}.err"
        self._lines: list[list[Any]] = []
        self._read = 0
        self.lives = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Worker:
        """Another life."""
        assert self.process is None or self.process.poll() is not None, f"{self.name} lives"
        self.lives += 1
        with self._errors.open("ab") as errors:
            self.process = subprocess.Popen(self._command, cwd=ROOT, env=self._environ, stderr=errors)
        return self

    def awake(self) -> bool:
        """Whether the present life has begun its work."""
        return len(self.lines("life")) == self.lives

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(15)

    def lines(self, kind: str) -> list[list[Any]]:
        """What it told of one kind, in all its lives."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self._read)
            for line in file.read().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    self._read += len(line)
                    self._lines.append(json.loads(line))
        return [line[1:] for line in self._lines if line[0] == kind]

    def all(self) -> list[list[Any]]:
        """Everything it told, in order."""
        self.lines("")
        return self._lines

    def check(self) -> None:
        """AssertionError when it died by itself, with what it said."""
        ended = self.process is not None and self.process.poll() not in (None, 0)
        assert not ended, self._errors.read_text()[-3000:]

    def __enter__(self) -> Worker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def wait_on(workers: Sequence[Worker], look: Callable[[], T | None], what: str, deadline: float) -> T:
    """As wait_for; a worker that died by itself meanwhile is told at once, with what it said."""

    def checked() -> T | None:
        for worker in workers:
            worker.check()
        return look()

    return wait_for(checked, what, deadline)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run came to."""

    accepted: int
    shown: int
    repeats: int


def judge(senders: Sequence[Worker], recipient: Worker) -> Verdict:
    """AssertionError for anything lost, refused, out of order, or shown again without cause and mark."""
    seen: dict[str, int] = {}  # id -> the life in which it was shown last
    proved: set[str] = set()
    order: dict[str, list[int]] = {}
    life = repeats = 0
    for kind, *line in recipient.all():
        if kind == "life":
            life += 1
        elif kind == "proved":
            proved.add(line[0])
        elif kind == "shown":
            ident, number, sender, repeat = line
            if ident in seen:
                assert repeat, f"{sender} {number} was shown again without a mark"
                assert ident not in proved, f"{sender} {number} was shown again after its proof"
                assert seen[ident] < life, f"{sender} {number} was shown twice in one life"
                repeats += 1
            else:
                order.setdefault(sender, []).append(number)
            seen[ident] = life
    accepted = 0
    for worker in senders:
        told = worker.lines("accepted")
        accepted += len(told)
        lost = [number for ident, number in told if ident not in seen]
        assert not lost, f"{worker.name} was told accepted, and nobody was shown: {lost}"
        numbers = order.get(worker.name, [])
        assert numbers == list(range(1, len(numbers) + 1)), f"{worker.name} is out of order, or has a gap: {numbers}"
        assert {code for _, code, _ in worker.lines("settled")} <= {200}, worker.lines("settled")
    return Verdict(accepted, len(seen), repeats)


if __name__ == "__main__":
    chosen = json.loads(sys.argv[2])
    {"send": send, "receive": receive}[sys.argv[1]](chosen, Told(chosen["log"]))
