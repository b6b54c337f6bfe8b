"""What became of tool results that carry messages, after they left: written says nothing, read says something.

A result may lie unread in the pipe of a client that is then killed. So a message that went out with one stays
`offered` until there is proof: the transcript's, where the ladder reads one, else that the client has read the result
and has sent something afterwards. Where it sends nothing, it is pinged once: the answer to a ping that was written
behind a result can only come from a client that has read the result.

It must not know tools or frames, nor the SDK.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from agent.delivery.piggyback import Call, Piggyback

if TYPE_CHECKING:
    from agent.delivery.ladder import Ladder

log = logging.getLogger("talkbus.agent")

PING_S = 5.0  # a client that calls again within that time is not asked
PING_AT_ONCE_S = 0.1  # where the system does not tell what was read, nothing else proves it
OVERDUE_S = 10.0
PING_ID = "talkbus-ping-"
PINGS_KEPT = 64  # that were not answered


class Wire(Protocol):
    """What is needed of the writer."""

    def holds(self, request: Any) -> bool: ...

    def taken(self) -> int: ...


@dataclass(slots=True)
class _Out:
    """A result on its way; `end` and `sent` as in stdio.Place, `end` -1 until it was written in full."""

    request: Any
    call: Call
    end: int = -1
    sent: int = 0
    cancelled: bool = False


class Results:
    """The results of one connection. For the event loop that serves it."""

    def __init__(self, mail: Piggyback, ladder: Callable[[], Ladder | None]) -> None:
        self._mail = mail
        self._ladder = ladder
        self._out: list[_Out] = []
        self._wire: Wire | None = None
        self._ping: Callable[[str], Coroutine[Any, Any, None]] | None = None
        self._pings = 0
        self._pinged: dict[str, int] = {}  # id of a ping -> what of our stream was written before it
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def attach(self, wire: Wire, ping: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        """Where the results go; `ping` writes a ping with this id."""
        self._wire, self._ping = wire, ping

    def leaving(self, request: Any, call: Call) -> None:
        """The result of this call is about to be written, with its letters."""
        for out in [out for out in self._out if out.request == request and out.end < 0]:
            self._back(out, certain=False)  # a client that uses an id twice at once
        out = _Out(request, call)
        self._out.append(out)
        if (ladder := self._ladder()) is not None:
            ladder.carry(list(call.letters.values()), call.nonce)
            self._mail.handed_over(call)
        asyncio.get_running_loop().call_later(OVERDUE_S, self._overdue, out)

    def written(self, request: Any, end: int, sent: int) -> None:
        """It was written in full to a client that had not gone."""
        for out in [out for out in self._out if out.request == request and out.end < 0]:
            out.end, out.sent = end, sent
            if out.cancelled:
                self._back(out, certain=False)
                continue
            if (ladder := self._ladder()) is not None:
                ladder.carried(list(out.call.letters))
            self._ask_later()

    def lost(self, request: Any, certain: bool) -> None:
        """It was not written (`certain`), or nobody knows whether all of it was."""
        for out in [out for out in self._out if out.request == request and out.end < 0]:
            self._back(out, certain)

    def cancelled(self, request: Any) -> None:
        """The client has given the call up, and ignores a result that it had not read by then."""
        for out in [out for out in self._out if out.request == request]:
            out.cancelled = True
            if out.end >= 0:
                self._back(out, certain=False)

    def heard(self, begin: int, taken: int) -> None:
        """The client sent something; where it began, and how much of ours had been read when it arrived."""
        for out in list(self._out):
            if 0 <= out.end <= taken and begin >= out.sent:
                self._read(out)

    def ponged(self, ident: str) -> None:
        """The client answered a ping, so it has read what stood before that."""
        before = self._pinged.pop(ident, -1)
        for out in list(self._out):
            if 0 <= out.end <= before:
                self._read(out)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _read(self, out: _Out) -> None:
        self._out.remove(out)
        ladder = self._ladder()
        if ladder is None:
            self._mail.confirm(out.call)
        else:
            ladder.carried(list(out.call.letters), taken=True)

    def _back(self, out: _Out, certain: bool) -> None:
        self._out.remove(out)
        ladder = self._ladder()
        if ladder is not None:
            left = set(ladder.let_go(list(out.call.letters)))
            for key in [key for key in out.call.letters if key not in left]:
                del out.call.letters[key]
        self._mail.release(out.call, certain)

    def _overdue(self, out: _Out) -> None:
        """A call may be cancelled when its result was made and not yet handed to the writer: then nobody tells. One
        that a client does not read is still being written.
        """
        if out not in self._out or out.end >= 0:
            return
        if self._wire is not None and self._wire.holds(out.request):
            asyncio.get_running_loop().call_later(OVERDUE_S, self._overdue, out)
        else:
            self._back(out, certain=False)

    def _ask_later(self) -> None:
        ladder = self._ladder()
        if self._timer is not None or (ladder is not None and ladder.reads_transcript):
            return
        known = self._wire is not None and self._wire.taken() >= 0
        self._timer = asyncio.get_running_loop().call_later(PING_S if known else PING_AT_ONCE_S, self._ask)

    def _ask(self) -> None:
        self._timer = None
        waits = [out.end for out in self._out if out.end >= 0]
        if not waits or self._ping is None:
            return
        self._pings += 1
        ident = f"{PING_ID}{self._pings}"
        self._pinged[ident] = max(waits)
        while len(self._pinged) > PINGS_KEPT:
            del self._pinged[next(iter(self._pinged))]
        task = asyncio.get_running_loop().create_task(self._ping(ident))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
