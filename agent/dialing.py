"""One connection to the broker, and the way to find one: published record, hub of another machine, or one started.

A socket is used for one connection only; libzmq's own reconnect is off. Nothing here waits: starting a broker is a
helper thread's work. It must not know the protocol, only frames.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from random import random

import zmq

from bus import joined
from bus.config import Config, Home
from bus.daemon import ensure_broker, published, stopped
from bus.errors import BusError
from bus.sockets import Context, Monitor, Socket, dealer, needs_ipv6
from bus.trust import KeyPair

# Plain numbers: to combine the flags of the library anew for every frame costs more than to send one.
_NOW = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
START_BACKOFF_MS = (1000, 30_000)
NOT_PAIRED_MS = (2000, 60_000)  # a key that was refused is seldom let in a moment later
NOT_PAIRED = "this machine is not paired with the hub (ask its owner for an invitation: talkbus lan join LINE)"
_WHY = {
    "failed auth": NOT_PAIRED,
    "disconnected": "the broker hung up, or nobody listens where it was",
}


_Found = tuple[str, str, int]  # endpoint, key, and since when the hub is joined: a new join is a new chance


class Connection:
    """A DEALER with its monitor, for one connection. Used by the thread that made it."""

    def __init__(self, context: Context, keys: KeyPair, endpoint: str, server_key: str) -> None:
        self._socket = dealer(context, keys, server_key, ipv6=needs_ipv6(endpoint))
        self._monitor = Monitor(self._socket)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError:
            self._monitor.close()
            raise

    @property
    def sources(self) -> tuple[Socket, Socket]:
        """What to poll for input."""
        return self._socket, self._monitor.socket

    def happened(self) -> tuple[bool, str | None]:
        """Whether it was shaken hands since the last call, and why it ended (None: it has not)."""
        up, down = False, None
        while (news := self._monitor.news()) is not None:
            if news == "connected":
                up = True
            elif down is None:
                down = _WHY[news]
        return up, down

    def frames(self, limit: int) -> Iterator[list[bytes]]:
        """What came in, at most `limit` messages; 0 takes all there are."""
        taken = 0
        recv = self._socket.recv
        while not limit or taken < limit:
            try:
                frame: zmq.Frame = recv(_NOW, copy=False)
            except zmq.Again:
                return
            # A Frame knows by itself whether more follow, which is quicker than to ask the socket for each.
            frames = [frame.bytes]
            while frame.more:
                frame = recv(copy=False)
                frames.append(frame.bytes)
            yield frames
            taken += 1

    def send(self, frames: list[bytes]) -> bool:
        """False when the connection takes nothing: its other end does not read. A dead one may still take some."""
        send = self._socket.send
        try:
            for frame in frames[:-1]:
                send(frame, _MORE)
            send(frames[-1], _NOW)
        except zmq.ZMQError:
            return False
        return True

    def close(self) -> None:
        """End the connection."""
        self._monitor.close()


class Dialer:
    """One attempt at a time: dial(), then work() whenever woken or due, then take() what came of it."""

    def __init__(
        self,
        home: Home,
        config: Config,
        keys: KeyPair,
        context: Context,
        wake: Callable[[], None],
        autostart: bool,
    ) -> None:
        self._home, self._config, self._keys, self._context = home, config, keys, context
        self._wake, self._autostart = wake, autostart
        self._wanted = False
        self._at = 0
        self._result: Connection | str | None = None
        self._starter: threading.Thread | None = None
        self._starting = False  # set back by the helper, the last thing it does before it wakes the loop
        self._failures = 0
        self._failed = ""
        self._start_at = 0
        self._refused: _Found | None = None  # the hub that does not know us
        self._refusals = 0
        self._again_at = 0
        self._dialed: _Found | None = None

    def dial(self, at: int) -> None:
        """Begin an attempt, not before `at` (ms)."""
        self._wanted, self._at = True, at

    def forget(self) -> None:
        """The attempt is given up."""
        self._wanted = False
        result, self._result = self._result, None
        if isinstance(result, Connection):
            result.close()

    def refused(self, now: int, reason: str) -> None:
        """Why the last connection ended. One that refused this machine's key is left alone for a while."""
        if reason != NOT_PAIRED:
            self._refused, self._refusals = None, 0
            return
        least, most = NOT_PAIRED_MS
        self._again_at = now + int(min(most, least << min(self._refusals, 10)) * (0.75 + random() / 2))
        self._refusals += 1
        self._refused = self._dialed

    def deadline(self) -> int | None:
        """When work() is wanted, in ms; None when it waits for nothing, or to be woken."""
        return self._at if self._wanted and not self._starting else None

    def take(self) -> Connection | str | None:
        """The connection of this attempt, or why there is none; None when that is not known yet."""
        result, self._result = self._result, None
        return result

    def work(self, now: int) -> None:
        """Go on with the attempt, if one was begun."""
        if not self._wanted or now < self._at or self._starting:
            return
        found = self._find(now)
        if found is None:
            return
        self._wanted = False
        if isinstance(found, str):
            self._result = found
        elif found == self._refused and now < self._again_at:
            self._result = NOT_PAIRED
        else:
            self._dialed = found
            self._result = self._connect(found)

    def _connect(self, found: _Found) -> Connection | str:
        endpoint, key, _ = found
        try:
            return Connection(self._context, self._keys, endpoint, key)
        except zmq.ZMQError as error:
            return f"{endpoint} cannot be reached: {error.strerror} (check the hub's address)"

    def close(self) -> None:
        """No more attempts. A helper thread that still waits for a broker is left to itself."""
        self.forget()

    def _find(self, now: int) -> _Found | str | None:
        """Where to; or why not; or None while a broker is being started."""
        try:
            hub = joined.hub(self._home, self._config)
            known = joined.joined(self._home) if hub is not None else None
        except BusError as error:
            return str(error)
        if hub is not None:
            return hub.endpoint, hub.key, known.since if known is not None else 0
        record = published(self._home)
        if record is not None:
            self._starter, self._failures, self._failed = None, 0, ""
            return record.router, record.key, 0
        if stopped(self._home):
            return "the bus was stopped with 'talkbus down' (the user starts it with 'talkbus up')"
        if not self._autostart:
            return "no broker is running (talkbus up starts one)"
        if self._starter is not None:
            self._starter = None
            least, most = START_BACKOFF_MS
            self._start_at = now + min(most, least << min(self._failures, 10))
            self._failures += 1
        if now < self._start_at:
            return self._failed or "the broker has ended right after its start (see its log)"
        self._starting = True
        self._starter = threading.Thread(target=self._start, name="talkbus-start", daemon=True)
        self._starter.start()
        return None

    def _start(self) -> None:
        try:
            ensure_broker(self._home)
            self._failed = ""
        except (BusError, OSError) as error:
            self._failed = str(error)
        finally:
            self._starting = False
            self._wake()
