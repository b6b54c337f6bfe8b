"""A TCP relay that can be cut: with a reset, or by saying nothing more in one direction or both.

One thread; a stalled connection stays open and is never read or written again, as behind a firewall that forgot it.
Connections made afterwards work.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Self

_CHUNK = 65536


class _Pair:
    """A client's connection and the one that was made for it."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.ends = (near, far)
        self.stalled: set[socket.socket] = set()  # what comes from these is not read any more

    def other(self, end: socket.socket) -> socket.socket:
        return self.ends[1] if end is self.ends[0] else self.ends[0]

    def close(self, reset: bool) -> None:
        for end in self.ends:
            with suppress(OSError):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.close()


class Relay:
    """Listens on a port of its own and passes everything on to `target`. Use it as a context manager.

    `delay` (s) is waited before each piece is passed on, in the order in which they came.
    """

    def __init__(self, target: tuple[str, int], near: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self._target = target
        self.delay = 0.0
        self._listener = socket.create_server(near)
        self.port = int(self._listener.getsockname()[1])
        self.accepted = 0  # connections so far
        self.octets = 0
        self._pairs: list[_Pair] = []
        self._lock = threading.Lock()
        self._near, self._far = socket.socketpair()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def reset(self) -> int:
        """Cut every connection with RST on both sides; what was on its way is gone. Returns how many."""
        with self._lock:
            cut, self._pairs = self._pairs, []
            for pair in cut:
                pair.close(reset=True)
        self._far.send(b"!")
        return len(cut)

    def stall(self, up: bool = True, down: bool = True) -> int:
        """Pass nothing more `up` to the target, `down` to the client, or both ways. Returns how many stalled."""
        with self._lock:
            for pair in self._pairs:
                pair.stalled |= {end for end, on in zip(pair.ends, (up, down), strict=True) if on}
            stalled = len(self._pairs)
        self._far.send(b"!")
        return stalled

    def _run(self) -> None:
        while not self._closing:
            with self._lock:
                owners = {end: pair for pair in self._pairs for end in pair.ends if end not in pair.stalled}
            try:
                ready, _, _ = select.select([self._listener, self._near, *owners], [], [], 5)
            except (OSError, ValueError):  # one was cut meanwhile
                continue
            for source in ready:
                if source is self._near:
                    source.recv(_CHUNK)
                elif source is self._listener:
                    self._accept()
                else:
                    self._pass(owners[source], source)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self._target, 2)
        except OSError:
            near.close()
            return
        with self._lock:
            self._pairs.append(_Pair(near, far))
            self.accepted += 1

    def _pass(self, pair: _Pair, source: socket.socket) -> None:
        with self._lock:
            if pair not in self._pairs or source in pair.stalled:
                return
            try:
                data = source.recv(_CHUNK)
                if data:
                    if self.delay:
                        time.sleep(self.delay)
                    pair.other(source).settimeout(5)
                    pair.other(source).sendall(data)
                    self.octets += len(data)
                    return
            except OSError:
                pass
            self._pairs.remove(pair)
            pair.close(reset=False)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._far.send(b"!")
        self._thread.join(10)
        self.reset()
        for end in (self._listener, self._near, self._far):
            end.close()
