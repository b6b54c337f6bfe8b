"""Activity on its way out: events become frames for whoever subscribed (PROTOCOL.md §12).

Knows the XPUB socket and the form of an event; it must not know what an event means. While nobody subscribes nothing
is encoded.
"""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from bus import wire
from bus.effects import Event
from bus.sockets import Socket

_AT_ONCE = 256


class Publisher:
    """Publishes the events of one start of the broker, named by `boot`."""

    def __init__(self, xpub: Socket, boot: str) -> None:
        self._xpub = xpub
        self._boot = boot
        self.topics = 0  # that somebody listens to

    def read_subscriptions(self) -> None:
        """Take in who came and went; call it when the socket is readable."""
        for _ in range(_AT_ONCE):
            try:
                frames = self._xpub.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            # The socket passes on a topic's first subscription and last cancellation, and whatever else a subscriber
            # sends up, which is none of our concern.
            if frames[0][:1] == b"\x01":
                self.topics += 1
            elif frames[0][:1] == b"\x00":
                self.topics = max(0, self.topics - 1)

    def publish(self, events: Sequence[Event]) -> None:
        """Send these events, in order, if anybody listens."""
        if not self.topics:
            # Whoever subscribed before he asked for his snapshot must not miss the marker.
            self.read_subscriptions()
        if not self.topics:
            return
        send = self._xpub.send
        for event in events:
            head = {"seq": event.seq, "boot": self._boot, "ts": event.ts, **event.fields}
            send(event.topic.encode(), zmq.SNDMORE)
            send(wire.SIGNATURE, zmq.SNDMORE)
            send(wire.pack(head))
