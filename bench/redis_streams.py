"""Redis Streams under test: a stream for each mailbox, a consumer group, XADD, XREADGROUP and XACK (redis-py)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import servers
from bench.system import WINDOW, Bus, Node, System

NAME = "redis-streams"
SYNCED = "redis-synced"
NOTE = (
    "redis-streams: redis-server, appendonly with appendfsync everysec (up to a second of acknowledged messages is "
    "lost with the machine, nothing with the process); a message counts as acknowledged with the reply to XADD, sent "
    "in pipelines of up to 64, and to XACK, many ids in one; no limits raised"
)
NOTE_SYNCED = (
    "redis-synced: the same with appendfsync always (what was acknowledged survives the loss of power, on this one "
    "disk; its clients keep nothing)"
)
GROUP = "bench"


@contextmanager
def server(folder: Path, fsync: str = "everysec") -> Iterator[servers.Server]:
    """A server with its own append-only file, synced `always` or `everysec`."""
    command = ("--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes", "--appendfsync", fsync)

    def line(port: int) -> list[str]:
        return [
            servers.program("redis-server") or "",
            "--port",
            str(port),
            *command,
            "--save",
            "",
            "--daemonize",
            "no",
        ]

    with servers.running(line, folder) as made:
        yield made


@contextmanager
def _bus(fsync: str = "everysec") -> Iterator[Bus]:
    with tempfile.TemporaryDirectory(prefix="talkbus-bench-") as folder, server(Path(folder), fsync) as made:
        yield Bus(made.pid, RedisNode, (made.port,))


def _missing() -> str:
    return servers.missing("redis-server", "redis-server", "redis", "redis")


SYSTEM = System(NAME, NOTE, _bus, _missing)
SYSTEM_SYNCED = System(SYNCED, NOTE_SYNCED, lambda: _bus("always"), _missing)


def connect(port: int) -> Any:
    """A client of this server."""
    import redis

    return redis.Redis(port=port, socket_timeout=20)


class RedisNode(Node):
    """A stream with a group, and one connection."""

    def __init__(self, name: str, port: int) -> None:
        self._name = name
        self._db = connect(port)
        self._db.xgroup_create(name, GROUP, id="0", mkstream=True)
        self._settled = 0
        self._came: list[tuple[bytes, bytes]] = []
        self._owed: list[bytes] = []

    def send(self, to: str, bodies: Sequence[bytes]) -> None:
        pipe = self._db.pipeline(transaction=False)
        for text in bodies:
            pipe.xadd(to, {"b": text})
        self._settled += len(pipe.execute())

    @property
    def settled(self) -> int:
        return self._settled

    def wait(self, seconds: float) -> None:
        if not self._came:
            self._read(max(1, int(seconds * 1000)))

    def take(self) -> list[bytes]:
        self.flush()
        if not self._came:
            self._read(None)
        came, self._came = self._came, []
        self._owed = [ident for ident, _ in came]
        return [text for _, text in came]

    def _read(self, block: int | None) -> None:
        found = self._db.xreadgroup(GROUP, "one", {self._name: ">"}, count=WINDOW, block=block)
        for _, entries in found.items() if isinstance(found, dict) else found or ():
            for ident, fields in entries[0] if isinstance(found, dict) else entries:
                self._came.append((ident, fields[b"b"]))

    def flush(self) -> None:
        if self._owed:
            self._db.xack(self._name, GROUP, *self._owed)
            self._owed = []

    def close(self) -> None:
        self._db.close()
