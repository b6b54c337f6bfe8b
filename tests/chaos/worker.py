"""Senders and recipients of a chaos run: real agent loops in processes of their own, made to be killed.

Each process appends what it did to a log, one JSON line per write, so a line that is there was done. Run as a script
with a role and its options. It must not know what is done to the process, nor what is checked afterwards.

Every line begins with the wall-clock time in seconds.

| line | written |
|---|---|
| ["start", pid] | when a life begins |
| ["trying", key] | before a message is submitted; `key` is the text that makes it recognisable |
| ["accepted", key, id] | after the sender was told that it is on disk |
| ["failed", key, text] | after the sender was told that it was not taken |
| ["settled", id, code, copies] | after the broker's answer was recorded on disk |
| ["all sent"] | when the sender has nothing left to do |
| ["shown", id, host, key, repeat] | while the recipient shows a message; the line is the showing |
| ["proved", id, host] | after the proof was recorded on disk |
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent.effects import News, Parked, Settled, Welcomed
from agent.inbox import Letter
from agent.link import Link, Profile
from agent.loop import Loop
from agent.outbox import Outbox
from bus import config
from bus.errors import BusError, StoreError
from bus.private import private_dir

PATH = "chaos"
RETRY_S = 0.1


class Log:
    """An append-only file of JSON lines, each written by one system call."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __call__(self, *line: Any) -> None:
        os.write(self._file, json.dumps([time.time(), *line]).encode() + b"\n")


def _loop(options: dict[str, Any], on_news: Callable[[News], None]) -> Loop:
    """The loop of this worker; a disk without room is tried again, as a session does.

    Half of the lives are another session in the same place, which takes over from the one that is dead before it was
    ever welcome. One that was welcome takes nothing: if it is parked then, nobody comes to its help.
    """
    home = config.home()
    path = Path(options["database"])
    private_dir(path.parent)
    inst = f"{options['name']}-{os.getpid()}" if os.getpid() % 2 else options["name"]
    profile = Profile("hold", inst, options["name"])
    welcome = False

    def heard(news: News) -> None:
        nonlocal welcome
        welcome = welcome or isinstance(news, Welcomed)
        if isinstance(news, Parked) and not welcome:
            term = news.term
            loop.call(lambda link, now: link.knock(now, take=term))
        on_news(news)

    while True:
        try:
            loop = Loop(home, config.load(home), Outbox.open(path), profile, autostart=False, on_news=heard)
            return loop
        except StoreError:
            time.sleep(RETRY_S)


def _start(loop: Loop) -> None:
    while True:
        try:
            loop.start()
            return
        except StoreError:
            time.sleep(RETRY_S)


def send(options: dict[str, Any], log: Log) -> None:
    """Send `count` messages to all of `to`, tasks and notes mixed, then one task per round until killed.

    The next key is taken from the log, not from agent.db: a restored agent.db must not make this worker send again
    what it was told is accepted.
    """

    def on_news(news: News) -> None:
        if isinstance(news, Settled):
            copies = [[c.get("name"), c.get("status"), c.get("code")] for c in (news.result.get("to") or [])]
            log("settled", loop.outbox.row(news.row).id, news.code, copies)

    rng = random.Random(f"{options['seed']} {os.getpid()}")
    done = 0
    with open(options["log"], encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            if line[1] == "trying":
                done = max(done, int(line[2].split("-")[1]))
    loop = _loop(options, on_news)
    log("start", os.getpid())
    _start(loop)
    while done < options["count"]:
        batch = range(done + 1, min(done + rng.choice((1, 4, 16)), options["count"]) + 1)
        texts = [f"{options['name']}-{n}-{os.getpid()}" for n in batch]
        # A key is tried once: what a killed or refused attempt came to is for the checker to judge.
        for text in texts:
            log("trying", text)

        def submit(link: Link, now: int, texts: Sequence[str] = texts) -> list[tuple[str, str]]:
            made = []
            for text in texts:
                args = {"to": options["to"], "new": True, "kind": rng.choice(("task", "note", "note"))}
                _, ident = link.submit(now, "send", args, f"{text} {options['filler']}".encode())
                made.append((ident, text))
            return made

        try:
            for ident, text in loop.call(submit).result():
                log("accepted", text, ident)
        except BusError as error:
            for text in texts:
                log("failed", text, str(error))
            time.sleep(RETRY_S)
        done = batch[-1]
        time.sleep(options["pace"] * len(batch))
    while _unsettled(loop):
        time.sleep(RETRY_S)
    log("all sent")
    # A waking message every now and then brings along the notes that wait, until the run ends this process.
    serial = 0
    while True:
        time.sleep(1.0)
        serial += 1
        text = f"{options['name']}-{options['count']}-flush-{os.getpid()}-{serial}"
        log("trying", text)
        try:
            _, ident = loop.submit("send", {"to": options["to"], "new": True, "kind": "task"}, text.encode())
            log("accepted", text, ident)
        except BusError as error:
            log("failed", text, str(error))


def _unsettled(loop: Loop) -> bool:
    try:
        return loop.call(lambda link, _now: link.book.unsettled > 0).result()
    except StoreError:
        return True


def _recover(options: dict[str, Any], loop: Loop, rng: random.Random) -> None:
    """Find proof for what an earlier life was showing, as a session does in its transcript; in some lives find none."""
    if rng.random() < 0.5:
        return
    seen = set()
    with open(options["log"], encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            if line[1] == "shown":
                seen.add((line[3], line[2]))

    def prove(link: Link, now: int) -> None:
        offering = [key for key, entry in link.book.ledger.items() if entry.state == "offering"]
        proven = [key for key in offering if (key.partition("/")[0], key.rpartition("/")[2]) in seen]
        link.inbox.proven(now, proven, "transcript")

    loop.call(prove).result()


def receive(options: dict[str, Any], log: Log) -> None:
    """Show what waits whenever something that wakes is among it, as a session does; prove it a few at a time."""
    woken = threading.Event()
    rng = random.Random(f"{options['seed']} {os.getpid()}")
    loop = _loop(options, lambda news: woken.set())
    in_hand: dict[str, Letter] = {}
    loop.on_rebuilt = lambda link: link.inbox.hold(list(in_hand.values()))
    log("start", os.getpid())
    _start(loop)
    try:
        _recover(options, loop, rng)
    except StoreError:
        log("no recovery")

    def take(link: Link, now: int) -> list[Letter]:
        waiting = link.inbox.waiting()
        if not any(letter.wakes for letter in waiting):
            return []
        return link.inbox.offer(now, waiting[: rng.choice((3, 20, 64))], PATH)

    while True:
        woken.clear()
        try:
            letters = loop.call(take).result()
        except StoreError:
            woken.wait(RETRY_S)
            continue
        if not letters:
            woken.wait(1.0)
            continue
        while letters:
            some, letters = letters[: (most := rng.choice((1, 3, 64)))], letters[most:]
            in_hand |= {letter.key: letter for letter in some}
            for letter in some:
                log("shown", letter.msg.id, letter.msg.host, letter.msg.body.split()[0].decode(), letter.repeat)
                time.sleep(options["pace"])
            proved = [letter.key for letter in some]
            while True:
                try:
                    loop.call(lambda link, now, keys=proved: link.inbox.shown(now, keys, "transcript")).result()
                    break
                except StoreError:
                    time.sleep(RETRY_S)
            for letter in some:
                in_hand.pop(letter.key)
                log("proved", letter.msg.id, letter.msg.host)


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    {"send": send, "receive": receive}[sys.argv[1]](given, Log(given["log"]))
