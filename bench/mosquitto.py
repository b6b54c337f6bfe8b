"""Mosquitto under test: MQTT 3.1.1 with QoS 1, a topic and a persistent session for each mailbox (paho-mqtt)."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import servers
from bench.system import Bus, Node, System

NAME = "mosquitto"
NOTE = (
    "mosquitto: QoS 1, persistence on but written only every 30 minutes and at exit, as is its default (acknowledged "
    "messages are lost with the process); a message counts as acknowledged with the broker's PUBACK and with the "
    "recipient's; max_inflight_messages 64 and max_queued_messages 0 (no limit), default 20 and 1000; "
    "TCP_NODELAY at both ends, which paho leaves off"
)
_CONFIG = """
listener {port} 127.0.0.1
allow_anonymous true
persistence true
persistence_location {folder}/
max_inflight_messages 64
max_queued_messages 0
set_tcp_nodelay true
log_type error
user {user}
"""


@contextmanager
def server(folder: Path) -> Iterator[servers.Server]:
    """A server with a folder of its own."""
    import getpass

    def line(port: int) -> list[str]:
        config = folder / "mosquitto.conf"
        config.write_text(_CONFIG.format(port=port, folder=folder, user=getpass.getuser()))
        return [servers.program("mosquitto") or "", "-c", str(config)]

    with servers.running(line, folder) as made:
        yield made


@contextmanager
def _bus() -> Iterator[Bus]:
    with tempfile.TemporaryDirectory(prefix="talkbus-bench-") as folder, server(Path(folder)) as made:
        yield Bus(made.pid, MosquittoNode, (made.port,))


SYSTEM = System(NAME, NOTE, _bus, lambda: servers.missing("mosquitto", "mosquitto", "paho.mqtt", "paho-mqtt"))


class MosquittoNode(Node):
    """A client whose network loop runs while this node waits."""

    def __init__(self, name: str, port: int) -> None:
        import paho.mqtt.client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        self._settled = 0
        self._came: list[bytes] = []
        self._client: Any = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, clean_session=False)
        self._client.max_inflight_messages_set(64)
        self._client.max_queued_messages_set(0)
        self._client.on_message = lambda _client, _data, message: self._came.append(bytes(message.payload))
        self._client.on_publish = self._acknowledged
        ready: list[bool] = []
        self._client.on_subscribe = lambda *_: ready.append(True)
        self._client.connect("127.0.0.1", port, keepalive=3600)  # nobody tends a node that waits for its turn
        until = time.monotonic() + 10
        while not self._client.is_connected() and time.monotonic() < until:
            self._client.loop(0.05)
        line: Any = self._client.socket()
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client.subscribe(f"to/{name}", qos=1)
        while not ready and time.monotonic() < until:
            self._client.loop(0.05)
        if not ready:
            raise RuntimeError("mosquitto does not answer")

    def _acknowledged(self, *_: Any) -> None:
        self._settled += 1

    def send(self, to: str, bodies: Sequence[bytes]) -> None:
        for text in bodies:
            self._client.publish(f"to/{to}", text, qos=1)
        self._client.loop(0)

    @property
    def settled(self) -> int:
        return self._settled

    def wait(self, seconds: float) -> None:
        if self._came:
            return
        before, until = self._settled, time.monotonic() + seconds
        while not self._came and self._settled == before and (left := until - time.monotonic()) > 0:
            self._client.loop(left)

    def take(self) -> list[bytes]:
        came, self._came = self._came, []
        return came

    def flush(self) -> None:
        self._client.loop(0)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop(0.05)
