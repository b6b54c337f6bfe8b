"""A bus of its own for a test: directories, a real broker process, peers with real sockets.

`Home` starts, kills and stops the broker; `Peer` is one connection that says what a test tells it to, frame by frame
if need be. Every wait has a deadline and waits for an event (a pipe, a socket, the end of a process), never for luck.
Knows the broker's shell and client; it must not know the agent.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from base64 import b32encode
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import zmq

from bus import config, sockets, wire
from bus.client import View
from bus.daemon import Record, published
from bus.private import private_dir
from bus.sockets import Monitor
from bus.trust import KeyPair, ensure_keys

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 15.0  # seconds; far above anything observed, so that a loaded machine fails no test

T = TypeVar("T")

# The broker tells through a pipe that it is ready: its record as a line of JSON.
_SERVE = """
import json, os, sys
sys.path.insert(0, {root!r})
{before}
from dataclasses import asdict
from bus.config import home, load
from bus.server import serve
here = home()
def ready(record):
    os.write({pipe}, json.dumps(asdict(record)).encode() + b"\\n")
sys.exit(serve(here, load(here), version="test", ready=ready))
"""


def wait_for(look: Callable[[], T | None], what: str, deadline: float = DEADLINE) -> T:
    """For what has no event of its own: look until the answer is true; AssertionError naming `what` after that."""
    end = time.monotonic() + deadline
    while not (seen := look()):
        assert time.monotonic() < end, f"not within {deadline:g} s: {what}"
        time.sleep(0.01)
    return seen


def free_pair() -> int:
    """The first of two ports that nobody listens on, away from those that brokers take by themselves and below those
    the system gives out. RuntimeError when there is none.
    """
    rng = random.SystemRandom()
    for _ in range(200):
        port = 2 * rng.randrange(10_500, 15_500)
        with suppress(OSError):
            for one in (port, port + 1):
                socket.create_server(("127.0.0.1", one)).close()
            return port
    raise RuntimeError("no free pair of ports")


def message_id() -> str:
    """A fresh id as every row of an outbox has one."""
    return b32encode(secrets.token_bytes(10)).decode().lower()


class Home:
    """One bus under a folder. Use it as a context manager: whatever it started is killed at the end."""

    def __init__(self, root: Path, **settings: str) -> None:
        """`settings` are environment variables for the broker, as in TALKBUS_PORT="7800"."""
        self.root = root
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("TALKBUS_", "CLAUDE", "PYTHONUNBUFFERED"))},
            "TALKBUS_HOME": str(root),
            **settings,
        }
        self.paths = config.home(self.environ)
        self.process: subprocess.Popen[bytes] | None = None
        self.log = root / "broker-stderr.log"

    @property
    def config(self) -> config.Config:
        return config.load(self.paths, self.environ)

    @property
    def record(self) -> Record:
        """The running broker's; AssertionError when none is published."""
        record = published(self.paths)
        assert record is not None, "no broker is published"
        return record

    @property
    def keys(self) -> KeyPair:
        return ensure_keys(self.paths)

    def settings(self, text: str) -> None:
        """Write config.toml."""
        private_dir(self.paths.config)
        self.paths.config_file.write_text(text)

    def spawn(self, before: str = "", **options: Any) -> tuple[subprocess.Popen[bytes], int]:
        """A broker process and the pipe that tells when it is ready; `before` is code that it runs first."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        reading, writing = os.pipe()
        code = _SERVE.format(root=str(ROOT), before=before, pipe=writing)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", code], env=self.environ, stderr=log, pass_fds=(writing,), **options
            )
        os.close(writing)
        return process, reading

    def start(self, before: str = "", deadline: float = DEADLINE) -> Record:
        """Start the broker and wait until it serves."""
        assert self.process is None or self.process.poll() is not None, "a broker runs already"
        self.process, pipe = self.spawn(before)
        try:
            readable, _, _ = select.select([pipe], [], [], deadline)
            told = os.read(pipe, 65536) if readable else b""
        finally:
            os.close(pipe)
        assert told, f"the broker did not come up: {self.said()}"
        return Record(**json.loads(told))

    def kill(self) -> None:
        """SIGKILL, as in a power cut."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE)

    def stop(self, deadline: float = DEADLINE) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(deadline)

    def said(self) -> str:
        """What the broker wrote to its log."""
        return self.log.read_text() if self.log.exists() else ""

    def view(self, timeout: float = DEADLINE) -> View:
        """A client that looks. Close it."""
        return View.open(self.paths, self.config, timeout)

    def peer(self, **options: Any) -> Peer:
        """One connection with this home's key, no HELLO said yet. Close it."""
        record = self.record
        return Peer(record.router, record.key, options.pop("keys", None) or self.keys, **options)

    def session(self, name: str, **options: Any) -> Peer:
        """A connection that holds a mailbox. Close it."""
        peer = self.peer()
        peer.hello(name, **options)
        return peer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)


class Peer:
    """One DEALER, numbered requests, no rule of its own. Every wait ends after `deadline` s."""

    def __init__(self, endpoint: str, server_key: str, keys: KeyPair, deadline: float = DEADLINE) -> None:
        self.deadline = deadline
        self.ob = secrets.token_hex(16)
        self.q = 0
        self.ctx: sockets.Context = zmq.Context()
        self.socket = sockets.dealer(self.ctx, keys, server_key)
        self.monitor = Monitor(self.socket)
        self.socket.connect(endpoint)

    def news(self) -> str | None:
        """What the monitor tells next; None after the deadline."""
        return self.monitor.news() if self.monitor.socket.poll(int(self.deadline * 1000)) else None

    def hello(self, name: str, *, mode: str = "hold", ob: str = "", **fields: Any) -> wire.Welcome:
        """Open the session and wait for WELCOME; goes on from the `high` it tells."""
        self.ob = ob or self.ob
        self.say(wire.Hello(mode, fields.pop("inst", name), self.ob, name=name, **fields))
        welcome = self.hear(wire.Welcome)
        self.q = welcome.high
        return welcome

    def say(self, command: Any) -> None:
        """Send one command."""
        self.send(wire.encode(command))

    def send(self, frames: Sequence[bytes]) -> None:
        """Send any frames."""
        assert self.socket.poll(int(self.deadline * 1000), zmq.POLLOUT), "nobody takes it"
        self.socket.send_multipart(list(frames))

    def request(self, op: str, args: dict[str, Any], body: bytes = b"") -> wire.Req:
        """Send the next request and return it."""
        self.q += 1
        req = wire.Req(self.q, 1, op, message_id(), args, body)
        self.say(req)
        return req

    def do(self, op: str, args: dict[str, Any], body: bytes = b"") -> wire.Rep:
        """A request and its reply."""
        self.request(op, args, body)
        return self.hear(wire.Rep)

    def post(self, to: str, text: str, **args: Any) -> str:
        """Send a message and wait until it is stored; returns its id."""
        req = self.request("send", {"to": [to], "new": True, **args}, text.encode())
        rep = self.hear(wire.Rep)
        assert rep.code == 200, rep
        return req.id

    def next(self) -> Any:
        """The next command from the broker; AssertionError when none comes."""
        assert self.socket.poll(int(self.deadline * 1000)), "the broker says nothing"
        return wire.decode(self.socket.recv_multipart(), "S")

    def hear(self, kind: type[T]) -> T:
        """The next command of this kind; what comes before it is passed over, but not a refusal."""
        while True:
            command = self.next()
            if isinstance(command, kind):
                return command
            assert not isinstance(command, wire.Err | wire.Gone), command

    def close(self) -> None:
        """Without a word, as a process that dies."""
        sockets.close_all(self.ctx, [self.monitor])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
