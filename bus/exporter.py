"""Metrics over HTTP, on the loopback address only: `GET /metrics`.

Threads of its own, and a client of the broker like any other: it asks the query `stats` over a connection, at most
once a second however often it is asked, so nobody who scrapes, or hangs while scraping, can hold up the broker's
loop. It must not know how the broker works.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from bus.client import View
from bus.config import Config, Home
from bus.errors import BusError
from bus.metrics import CONTENT_TYPE, exposition, samples

log = logging.getLogger("talkbus.broker")

HOST = "127.0.0.1"
FRESH_S = 1.0
ANSWER_S = 2.0
PATIENCE_S = 5.0  # for a client that is slow to ask
AT_ONCE = 8  # connections; a further one is closed


class Exporter:
    """Serves the metrics of the broker of `home` from start() to close(), at the port `metrics.port`."""

    def __init__(self, home: Home, config: Config, version: str) -> None:
        self._home, self._version = home, version
        self._config = replace(config, hub="")  # the broker is this home's own
        self._server: _Server | None = None
        self._view: View | None = None
        self._lock = threading.Lock()
        self._text, self._at = "", float("-inf")

    def start(self, *_: object) -> None:
        """Bind the port and answer. A port that cannot be had is a warning in the log, for the bus goes on."""
        port = self._config.metrics_port
        try:
            self._server = _Server((HOST, port), self)
        except OSError as error:
            log.warning(
                "! no metrics at %s:%d: %s (talkbus config set metrics.port PORT)", HOST, port, error.strerror
            )
            return
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        log.info("%% metrics at http://%s:%d/metrics", HOST, port)

    def text(self) -> str:
        """The metrics as they are now, or were up to FRESH_S ago. BusError when the broker does not answer."""
        with self._lock:
            if time.monotonic() - self._at >= FRESH_S:
                self._text = self._measured()
                self._at = time.monotonic()
            return self._text

    def close(self) -> None:
        """End the answering; one under way is cut off."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        if self._view is not None and self._lock.acquire(timeout=ANSWER_S):
            self._view.close()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _measured(self) -> str:
        if self._view is None:
            self._view = View.open(self._home, self._config, ANSWER_S)
        answer = self._view.query("stats", {}, ANSWER_S)
        stats = answer.rows[0][0] if answer.rows else {}
        return exposition({**samples(stats, self._version), **_process()})


def _process() -> dict[str, float]:
    """What this process uses; the exporter runs inside the broker's."""
    import psutil  # type: ignore[import-untyped]

    own = psutil.Process()
    with own.oneshot():
        return {
            "process_cpu_seconds_total": time.process_time(),
            "process_resident_memory_bytes": float(own.memory_info().rss),
            "process_start_time_seconds": float(own.create_time()),
        }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], exporter: Exporter) -> None:
        self.exporter = exporter
        self._room = threading.BoundedSemaphore(AT_ONCE)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of ours."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = PATIENCE_S
    server_version = "talkbus"
    sys_version = ""

    def do_GET(self) -> None:
        """The metrics, for who asks by a name of this machine: another page's script, rebound here, does not."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host.strip("[]").lower() not in ("127.0.0.1", "localhost", "::1"):
            self._answer(403, "ask for 127.0.0.1 or localhost\n")
        elif self.path.partition("?")[0] != "/metrics":
            self._answer(404, "the metrics are at /metrics\n")
        else:
            try:
                self._answer(200, self.server.exporter.text())
            except BusError as error:
                self._answer(503, f"{error}\n")

    do_HEAD = do_GET

    def _answer(self, code: int, text: str) -> None:
        data = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", CONTENT_TYPE if code == 200 else "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            with suppress(OSError):
                self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Who scrapes is not worth a line."""
