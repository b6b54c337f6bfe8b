"""A blocking client for looking: queries and live events, for command line, tap, web page and benchmarks.

It has neither name nor outbox, changes nothing, and never starts a broker. Its connection is made again at need, each
time from what the running broker published. It must not know what a row or an event means.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import zmq

from bus import joined, sockets, wire
from bus.config import Config, Home
from bus.daemon import published, stopped
from bus.errors import Code, Refused, RemoteError, Unreachable
from bus.sockets import Context, Monitor, Socket
from bus.trust import KeyPair, ensure_keys

PAUSE_S, PAUSE_MAX_S = 0.05, 0.5  # before a lost connection is tried again
IDLE_S = 5.0  # without events, until the broker is asked whether there were any
LATE_S = 1.0  # an event the broker has published comes within this, or is lost
# The first marker may pass before the subscription has arrived; then another one is asked for.
MARKER_WAITS_S = (0.05, 0.2, 1.0, 1.0, 1.0)
_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query came to: values and bodies of its PARTs, and code, number of the last event and text of DONE."""

    rows: list[tuple[dict[str, Any], bytes]]
    code: int
    seq: int = 0
    text: str = ""


class News(NamedTuple):
    """One step of `View.events`.

    `snapshot` is {"peers", "state", "seq", "boot", "ts"} whenever the stream was joined, `gap` tells that events were
    missed before it. `events` are maps with "class", "event", "seq", "boot", "ts" and the event's own fields. `lost`
    says why the stream ended; it is joined anew as soon as that can be.
    """

    snapshot: dict[str, Any] | None
    events: list[dict[str, Any]]
    gap: bool
    lost: str = ""


class View:
    """A look at one bus. Made by open(); close it, or use it as a context manager. For one thread."""

    def __init__(self, home: Home, config: Config, timeout: float) -> None:
        self._home, self._config, self._timeout = home, config, timeout
        self._ctx: Context = zmq.Context()
        self._line: _Line | None = None

    @classmethod
    def open(cls, home: Home, config: Config, timeout: float = 2.0) -> Self:
        """Connect within `timeout` s to the broker of `home`, or to its hub.

        Unreachable when there is none; Refused (403) when it does not know this machine's key.
        """
        view = cls(home, config, timeout)
        try:
            view._connected(time.monotonic() + timeout)
        except BaseException:
            view.close()
            raise
        return view

    def query(self, what: str, args: dict[str, Any] | None = None, timeout: float = 5.0) -> Answer:
        """Ask, within `timeout` s; asked again when the connection is lost, for a query changes nothing.

        A refusal of the query itself is an Answer with its code and text. Unreachable when none came in time; Refused
        (403) when this machine's key is not known any more.
        """
        until = time.monotonic() + timeout
        while True:
            try:
                return self._connected(until).ask(what, args or {}, until)
            except Unreachable:
                self._hang_up()
                if time.monotonic() + PAUSE_S >= until:
                    raise
                time.sleep(PAUSE_S)

    def events(
        self, topics: Sequence[str] = (), timeout: float | None = None, pulse: float = float("inf")
    ) -> Iterator[News]:
        """Join the activity without a hole (PROTOCOL.md §12), then tell it for `timeout` s; None for ever.

        `topics` are beginnings of topics, as in "msg." or "state.set"; none means all but the markers. After a gap or
        a restart of the broker it joins anew by itself and says so. Between two steps queries may be asked. While
        nothing happens there is an empty step every `pulse` s, for who must look at something else too.
        Unreachable when the first attempt to join fails, Refused (403) as in open().
        """
        until = time.monotonic() + timeout if timeout is not None else float("inf")
        gap = told = False
        pause = PAUSE_S
        while True:
            stream = _Stream()
            try:
                snapshot = stream.join(self._ctx, self._connected(time.monotonic() + self._timeout))
                yield News(snapshot, [], gap)
                gap, told, pause = True, False, PAUSE_S
                yield from self._follow(stream, tuple(topics), until, pulse)
            except Unreachable as error:
                self._hang_up()
                if not gap:
                    raise
                yield News(None, [], False, "" if told else str(error))
                told = True
            finally:
                stream.close()
            if time.monotonic() + pause >= until:
                return
            time.sleep(pause)
            pause = min(2 * pause, PAUSE_MAX_S)

    def close(self) -> None:
        """Close the connection; nothing can be asked any more."""
        self._hang_up()
        self._ctx.destroy(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _follow(self, stream: _Stream, topics: tuple[str, ...], until: float, pulse: float) -> Iterator[News]:
        """Until events were missed, the connection ended, or the time is over."""
        asked_at = time.monotonic()
        wanted, by = 0, 0.0
        while (now := time.monotonic()) < until:
            due = by if wanted > stream.seq else asked_at + IDLE_S
            events, whole = stream.read(min(until, due, now + pulse) - now)
            told = [e for e in events if _wanted(e, topics)]
            if told or (not events and pulse < IDLE_S):
                yield News(None, told, False)
            if not whole:
                return
            now = time.monotonic()
            if events:
                asked_at = now
            elif wanted > stream.seq and now >= by:
                return
            elif now >= asked_at + IDLE_S:
                # The last event may have been lost, and nothing would tell.
                wanted, by = (
                    self._connected(now + self._timeout).ask("whoami", {}, now + self._timeout).seq,
                    now + LATE_S,
                )
                asked_at = now

    def _connected(self, until: float) -> _Line:
        if self._line is not None and self._line.dead():
            self._hang_up()
        if self._line is None:
            line = _Line(self._ctx, *self._find())
            try:
                line.greet(until)
            except BaseException:
                line.close()
                raise
            self._line = line
        return self._line

    def _find(self) -> tuple[KeyPair, str, str, str]:
        """Own keys; the broker's router, xpub and key."""
        hub = joined.hub(self._home, self._config)
        if hub is not None:
            return ensure_keys(self._home), hub.endpoint, hub.activity, hub.key
        record = published(self._home)
        if record is not None:
            return ensure_keys(self._home), record.router, record.xpub, record.key
        if stopped(self._home):
            raise Unreachable("the bus was stopped with 'talkbus down' (start it with 'talkbus up')")
        raise Unreachable("no broker is running (start it with 'talkbus up')")

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()


class _Line:
    """One connection to a broker, of a session in view mode."""

    def __init__(self, ctx: Context, keys: KeyPair, endpoint: str, xpub: str, key: str) -> None:
        self.keys, self.endpoint, self.xpub, self.key = keys, endpoint, xpub, key
        self._socket = sockets.dealer(ctx, keys, key, ipv6=sockets.needs_ipv6(endpoint))
        self._monitor = Monitor(self._socket)
        self._poller = zmq.Poller()
        self._poller.register(self._monitor.socket, zmq.POLLIN)
        self._poller.register(self._socket, zmq.POLLIN)
        self._r = 0
        _connect(self._socket, endpoint)

    def greet(self, until: float) -> None:
        """Say HELLO as soon as hands are shaken, and wait for WELCOME. Unreachable, Refused."""
        self._send(wire.Hello("view", secrets.token_hex(8), hb=60_000))
        while True:
            match self._receive(until):
                case wire.Welcome():
                    return
                case wire.Err(code=Code.BUSY | Code.TOO_MANY | Code.UNKNOWN_SESSION, text=text):
                    raise Unreachable(f"the broker at {self.endpoint} is not ready: {text}")
                case wire.Err(code=code, text=text) | wire.Gone(code=code, text=text):
                    raise Refused(_code(code), text)

    def ask(self, what: str, args: dict[str, Any], until: float) -> Answer:
        """The answer to one query. Unreachable when the connection is lost or the time is over."""
        self._r += 1
        self._send(wire.Qry(self._r, what, args))
        rows: list[tuple[dict[str, Any], bytes]] = []
        while True:
            match self._receive(until):
                case wire.Part(r=self._r, value=value, body=body):
                    rows.append((value, body))
                case wire.Done(r=self._r, code=code, seq=seq, text=text):
                    return Answer(rows, code, seq, text)
                case wire.Err(code=Code.UNKNOWN_SESSION):
                    raise Unreachable(f"the broker at {self.endpoint} has forgotten this session")
                case wire.Err(code=code, of="QRY" | "", ref=ref, text=text) if ref in (0, self._r):
                    return Answer([], code, 0, text)

    def dead(self) -> bool:
        """Whether the connection is known to have ended."""
        while (news := self._monitor.news()) is not None:
            if news != "connected":
                return True
        return False

    def close(self) -> None:
        self._monitor.close()

    def _send(self, command: wire.Command) -> None:
        frames = wire.encode(command)
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            raise Unreachable(f"the connection to the broker at {self.endpoint} is lost") from error

    def _receive(self, until: float) -> Any:
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                self._check(until)
                continue
            try:
                return wire.decode(frames, "S")
            except RemoteError as error:
                raise Unreachable(f"what answers at {self.endpoint} is no broker of this version: {error}") from error

    def _check(self, until: float) -> None:
        """Wait for something to happen; raises when that is the end of the connection, or of the time."""
        left = until - time.monotonic()
        if left <= 0:
            raise Unreachable(f"the broker at {self.endpoint} does not answer (see 'talkbus doctor')")
        self._poller.poll(int(left * 1000) + 1)
        match self._monitor.news():
            case "failed auth":
                raise Refused(
                    Code.FORBIDDEN,
                    f"this machine is not paired with the hub at {self.endpoint} "
                    "(ask its owner for an invitation: talkbus lan join LINE)",
                )
            case "disconnected":
                raise Unreachable(f"nobody answers at {self.endpoint} (the broker has ended, or its key is another)")


class _Stream:
    """One subscription to everything: a gap can only be seen by who gets all numbers."""

    def __init__(self) -> None:
        self.seq = 0
        self.boot = ""
        self._ts = 0
        self._monitor: Monitor | None = None
        self._socket: Socket | None = None

    def join(self, ctx: Context, line: _Line) -> dict[str, Any]:
        """The picture as of the event after which `read` goes on. Unreachable when it cannot be joined."""
        self._socket = sockets.sub(ctx, line.keys, line.key, ipv6=sockets.needs_ipv6(line.xpub))
        self._monitor = Monitor(self._socket)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        _connect(self._socket, line.xpub)
        if not self._monitor.socket.poll(sockets.CONNECT_MS) or self._monitor.news() != "connected":
            raise Unreachable(f"no activity is to be had at {line.xpub}")
        for wait in MARKER_WAITS_S:
            nonce = secrets.token_hex(8)
            answer = line.ask("snapshot", {"nonce": nonce}, time.monotonic() + 10 * LATE_S)
            if answer.code != Code.OK:
                raise Unreachable(f"the broker gives no snapshot: {answer.text}")
            if self._passed(nonce, time.monotonic() + wait):
                values = [value for value, _ in answer.rows]
                return {
                    "peers": [v["peer"] for v in values if "peer" in v],
                    "state": [v["state"] for v in values if "state" in v],
                    "seq": self.seq,
                    "boot": self.boot,
                    "ts": self._ts,
                }
        raise Unreachable(f"no marker came through at {line.xpub}")

    def read(self, wait: float) -> tuple[list[dict[str, Any]], bool]:
        """Events in their order, waiting at most `wait` s for the first; False when one is missing after them."""
        assert self._socket is not None and self._monitor is not None
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor.socket, zmq.POLLIN)
        poller.poll(max(0, int(min(wait, 3600) * 1000) + 1))
        events: list[dict[str, Any]] = []
        for _ in range(_AT_ONCE):
            event = self._next()
            if event is None:
                break
            if event["boot"] != self.boot or event["seq"] > self.seq + 1:
                return events, False
            if event["seq"] == self.seq + 1:
                self.seq += 1
                events.append(event)
        return events, bool(events) or self._monitor.news() is None

    def close(self) -> None:
        if self._monitor is not None:
            self._monitor.close()

    def _passed(self, nonce: str, until: float) -> bool:
        """Whether the marker came in time; what came before it is in the snapshot already."""
        assert self._socket is not None
        while True:
            event = self._next()
            if event is None:
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._socket.poll(int(left * 1000) + 1)
            elif event["class"] == "sync" and event["event"] == nonce:
                self.seq, self.boot = event["seq"], event["boot"]
                self._ts = event["ts"] if type(event.get("ts")) is int else 0
                return True

    def _next(self) -> dict[str, Any] | None:
        """The next event that is one; None when there is none yet."""
        assert self._socket is not None
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            with contextlib.suppress(RemoteError, UnicodeDecodeError):
                if len(frames) == 3 and frames[1] == wire.SIGNATURE:
                    head = wire.unpack(frames[2])
                    if type(head) is dict and type(head.get("seq")) is int and type(head.get("boot")) is str:
                        kind, _, name = frames[0].decode().partition(".")
                        return {**head, "class": kind, "event": name}


def _connect(socket: Socket, endpoint: str) -> None:
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise Unreachable(f"{endpoint} is no endpoint: {error.strerror} (talkbus config show)") from error


def _wanted(event: dict[str, Any], topics: tuple[str, ...]) -> bool:
    return f"{event['class']}.{event['event']}".startswith(topics) if topics else event["class"] != "sync"


def _code(number: int) -> Code:
    try:
        return Code(number)
    except ValueError:
        return Code.FORBIDDEN
