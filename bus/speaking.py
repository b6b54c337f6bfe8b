"""The broker's words on their way out: effects become frames at the ROUTER, queries are answered from the disk.

Knows the sockets, the store and the reader; it must not know a rule of the protocol. A peer that is gone, or does not
read, is told to the broker as lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import zmq

from bus import wire
from bus.broker import Broker
from bus.effects import Push, Read, Recall, Send
from bus.errors import Code, LocalError, StoreError
from bus.reading import Reader, Telling, slow
from bus.requests import answer_again
from bus.sockets import Socket
from bus.store import Store

log = logging.getLogger("talkbus.broker")

PIECES_A_TURN = 64

_NOW, _MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)  # numbers are quicker than the library's enums
_DEAD = (zmq.EHOSTUNREACH, zmq.EAGAIN)


class Voice:
    """What is said to sessions. `clock` gives ms since 1970."""

    def __init__(
        self, router: Socket, broker: Broker, store: Store, reader: Reader, clock: Callable[[], int]
    ) -> None:
        self._router, self._broker = router, broker
        self._store, self._reader, self._clock = store, reader, clock
        self._debug = log.isEnabledFor(logging.DEBUG)

    def speak(self, sends: Sequence[Send | Push | Read | Recall]) -> None:
        """Send in order. Queries come after: they were asked to be answered by what is committed now."""
        reads = []
        dead: set[bytes] = set()
        for effect in sends:
            route = effect.route
            if route in dead:
                continue
            if type(effect) is Read:
                reads.append(effect)
            elif not self._hand_over(route, self._frames(effect)):
                dead.add(route)
        for read in reads:
            if read.route not in dead:
                self._answer(read)

    def pass_on(self) -> None:
        """What the reader's thread has found."""
        for _ in range(PIECES_A_TURN):
            piece = self._reader.take()
            if piece is None:
                return
            if len(piece) == 1:
                self._broker.core.counters.update({f"disk {name}": n for name, n in self._reader.sizes.items()})
            elif piece[1] == b"":
                self._hand_over(piece[0], piece[2:])
            else:
                route, r, code, text = piece
                self._done(route, int(r), Code(int(code)), text.decode())

    def _frames(self, effect: Send | Push | Read | Recall) -> list[bytes]:
        try:
            if type(effect) is Send:
                return wire.encode(effect.command)
            if type(effect) is Push:
                return wire.encode(self._message(effect))
            assert type(effect) is Recall
            saved = self._store.recall(effect.ob, effect.q)
            return wire.encode(answer_again(effect.q, saved, effect.digest))
        except LocalError as error:
            self._broker.core.count("unsendable")
            log.error("! to %s: %s", effect.route.hex(), error)
            return []

    def _message(self, push: Push) -> wire.Msg:
        m = self._store.message(push.sender, push.id)
        ask, answer = self._store.marks(m, push.mailbox, self._clock())
        return wire.Msg(
            push.n,
            push.prev,
            m.id,
            m.name,
            m.sender,
            m.host,
            push.to,
            m.kind,
            m.ts,
            m.tag,
            m.re,
            m.thread,
            push.ttl,
            m.hops,
            push.again,
            push.quiet,
            ask,
            answer,
            m.body,
        )

    def _hand_over(self, route: bytes, frames: list[bytes]) -> bool:
        """False when this peer is gone or does not read; then it is lost."""
        if not frames:
            return True
        send = self._router.send
        try:
            send(route, _MORE)
            for frame in frames[:-1]:
                send(frame, _MORE)
            send(frames[-1], _NOW)
        except zmq.ZMQError as error:
            if error.errno not in _DEAD:
                raise
            log.info("! %s is lost: %s", route.hex(), error.strerror)
            self._broker.lost(self._clock(), route)
            return False
        if self._debug:
            log.debug("> %s %d octets", route.hex(), sum(map(len, frames)))
        return True

    def _answer(self, read: Read) -> None:
        """Here and now when it is quick, else by the reader's thread."""
        now = self._clock()
        if slow(read):
            if not self._reader.ask(read, now):
                self._done(read.route, read.r, Code.BUSY, "too many searches at once (ask again in a second)")
            return
        telling = Telling(self._store, read, now)
        code, text = Code.OK, ""
        try:
            for frames in telling.frames():
                if not self._hand_over(read.route, frames):
                    return
            code, text = telling.code, telling.text
        except StoreError as error:
            log.warning("! %s", error)
            code, text = Code.BUSY, str(error)
        self._done(read.route, read.r, code, text)

    def _done(self, route: bytes, r: int, code: Code, text: str) -> None:
        self._hand_over(route, wire.encode(wire.Done(r, code, self._broker.core.events, wire.clip(text))))
