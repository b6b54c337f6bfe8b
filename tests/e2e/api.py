"""A fake Messages API on 127.0.0.1: records every request, and answers as a script says.

The script is a list of rules: a predicate over a request, and the content blocks to answer with. The
first rule that fits and is not used up answers; without one the answer is "ok". Nothing is ever asked
outside of this machine. It must not know how the client is started, nor what a message bus is.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .messages import (
    CLASSIFIER,
    COMPACTION,
    COUNT,
    HOOK,
    MAIN,
    TITLE,
    Block,
    Json,
    Request,
    message,
    prefix,
    read_request,
    stream,
    text,
)
from .wait import DEADLINE, TooLate

Predicate = Callable[[Request], bool]

HOLD_LIMIT = 60.0  # seconds after which a held answer goes out by itself, so that no thread stays for ever


def says(words: str, label: str = "", session: str = "", cwd: str = "") -> Predicate:
    """Fits a main request whose newest messages contain `words`, of that session if one is named."""

    def fits(request: Request) -> bool:
        return (
            words in request.new
            and (not label or request.label == label)
            and (not session or request.session == session)
            and (not cwd or request.cwd == cwd)
        )

    fits.__name__ = f"says {words!r} {label} {session} {cwd}".strip()
    return fits


class Rule:
    """One line of the script. While it holds, the client waits for the answer and its session is busy."""

    def __init__(self, fits: Predicate, blocks: list[Block], kind: str, times: int | None, pace: float) -> None:
        self.fits = fits
        self.blocks = blocks
        self.kind = kind
        self.left = times
        self.pace = pace
        self.requests: list[Request] = []
        self.gate = threading.Event()
        self.gate.set()

    def release(self) -> None:
        """Let a held answer go."""
        self.gate.set()


class FakeApi:
    """The server. `url(label, cwd)` is what ANTHROPIC_BASE_URL should be; both come back in each request."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._requests: list[Request] = []
        self._rules: list[Rule] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.api = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> FakeApi:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for rule in self._rules:
            rule.release()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(DEADLINE)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, label: str = "", cwd: str = "") -> str:
        return f"http://127.0.0.1:{self.port}{prefix(label, cwd)}"

    # --- the script

    def on(
        self,
        fits: Predicate | str,
        *blocks: Block | str,
        times: int | None = 1,
        hold: bool = False,
        pace: float = 0.0,
        kind: str = MAIN,
    ) -> Rule:
        """Answer requests that fit with these blocks; a plain string is text, on both sides.

        `times` None is for ever. `hold` keeps the answer back until `release()` of the returned rule.
        `pace` is seconds between two events of the stream.
        """
        chosen = says(fits) if isinstance(fits, str) else fits
        given = [text(block) if isinstance(block, str) else block for block in blocks]
        rule = Rule(chosen, given or [text("ok")], kind, times, pace)
        if hold:
            rule.gate.clear()
        with self._change:
            self._rules.append(rule)
        return rule

    # --- what came

    @property
    def all_requests(self) -> list[Request]:
        with self._change:
            return list(self._requests)

    @property
    def requests(self) -> list[Request]:
        """The turns of conversations: main requests only."""
        return self.seen(MAIN)

    def seen(self, kind: str) -> list[Request]:
        return [request for request in self.all_requests if request.kind == kind]

    def mark(self) -> int:
        """The number of the next request: for `wait(…, since=mark)`."""
        with self._change:
            return len(self._requests)

    def wait(self, fits: Predicate | str, deadline: float = DEADLINE, since: int = 0, kind: str = MAIN) -> Request:
        """The first request that fits and arrived at or after `since`; it may be there already."""
        chosen = says(fits) if isinstance(fits, str) else fits
        end = time.monotonic() + deadline
        looked = since
        with self._change:
            while True:
                for request in self._requests[looked:]:
                    if request.kind == kind and chosen(request):
                        return request
                looked = len(self._requests)
                if not self._change.wait(max(0.0, end - time.monotonic())) and time.monotonic() >= end:
                    what = f"{kind} {getattr(chosen, '__name__', chosen)}"
                    raise TooLate(f"not within {deadline:g} s: {what}; {self._tell(since)}")

    def _tell(self, since: int) -> str:
        lines = [f"  {r.number} {r.kind} {r.method} {r.path} {r.label} {_ends(r.new)}" for r in self._requests]
        return "came instead:\n" + "\n".join(lines[since:] or ["  nothing"])

    # --- called by the handler, in its threads

    def arrive(self, method: str, path: str, headers: dict[str, str], raw: bytes) -> tuple[Request, Rule | None]:
        with self._change:
            now = (time.monotonic(), time.time())
            request = read_request(len(self._requests), now, method, path, headers, raw)
            self._requests.append(request)
            rule = self._choose(request)
            self._change.notify_all()
            return request, rule

    def _choose(self, request: Request) -> Rule | None:
        for rule in self._rules:
            if rule.kind == request.kind and rule.left != 0 and rule.fits(request):
                rule.left = None if rule.left is None else rule.left - 1
                rule.requests.append(request)
                return rule
        return None


def _ends(words: str) -> str:
    return repr(words if len(words) < 400 else f"{words[:200]} … {words[-200:]}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    api: FakeApi

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle (Esc, SIGKILL) is part of the tests: no trace on stderr."""


SIDE_ANSWERS = {
    TITLE: json.dumps({"title": "test bed"}),
    CLASSIFIER: "<block>no</block>",
    COMPACTION: "<summary>a summary of the conversation</summary>",
    HOOK: json.dumps({"ok": True, "reason": "the test bed agrees"}),
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the recorded requests are the log."""

    def _any(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request, rule = self.server.api.arrive(self.command, self.path, headers, raw)
        if self.command == "CONNECT":
            self._json({"error": "this machine only"}, 403)
        elif request.kind == COUNT:
            self._json({"input_tokens": 1 + len(raw) // 4})
        elif request.path.endswith("/v1/messages") and request.method == "POST":
            self._answer(request, rule)
        else:
            self._json({})

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = do_OPTIONS = _any

    def _answer(self, request: Request, rule: Rule | None) -> None:
        blocks = rule.blocks if rule else [text(SIDE_ANSWERS.get(request.kind, "ok"))]
        if rule:
            rule.gate.wait(HOLD_LIMIT)
        model = str(request.body.get("model", ""))
        if not request.body.get("stream"):
            self._json(message(model, blocks))
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("request-id", f"req_{request.number}")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        for event in stream(model, blocks):
            self.wfile.write(event)
            self.wfile.flush()
            if rule and rule.pace:
                time.sleep(rule.pace)

    def _json(self, body: Json, status: int = 200) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)
