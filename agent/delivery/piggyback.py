"""Delivery by tool results: every result of ours carries what waits.

`offering` is on the disk before a text leaves this file; whether it was shown is found out by results.py. It must not
know JSON-RPC, nor which tool was called.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from agent import render
from agent.inbox import Letter
from agent.link import Link
from agent.loop import Loop
from bus import wire
from bus.errors import BusError, StoreError, Unreachable

log = logging.getLogger("talkbus.agent")

PATH = "tool-result"
BUDGET = 9000  # UTF-16 units
RESULT_MAX = 48_000  # characters; of a result beyond 50,000 a client shows its model the beginning only
_ASIDE = 160  # kept of the budget for the line that counts the rest
_RETRY_S = 0.5


class Call:
    """One tool call: what its result carries is confirmed, or comes back, as a whole."""

    __slots__ = ("letters", "nonce")

    def __init__(self) -> None:
        self.letters: dict[str, Letter] = {}  # changed in the thread of the link only
        self.nonce = secrets.token_hex(6)  # stands at the end of the result, if it carries letters


class Piggyback:
    """The path. `reserved` says which letters somebody else waits for; it is called in the thread of the link."""

    def __init__(self, loop: Loop, reserved: Callable[[Letter], bool]) -> None:
        self._loop = loop
        self._reserved = reserved
        self._calls: set[Call] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        loop.on_rebuilt = self._rebuilt

    def offer(self, link: Link, now: int, call: Call, letters: Sequence[Letter]) -> list[Letter]:
        """In the thread of the link: those of `letters` that may be shown by this call's result."""
        given = link.inbox.offer(now, letters, PATH, call.nonce)
        self._calls.add(call)
        call.letters.update((letter.key, letter) for letter in given)
        return given

    async def waiting(self, call: Call, budget: int = BUDGET, peek: bool = False) -> tuple[str, int, int]:
        """What waits, rendered for this call's result; how many that are, and how many are left.

        With `peek` nothing is offered, so they come again.
        """
        room = budget - _ASIDE

        def choose(link: Link, now: int) -> tuple[list[Letter], int, int]:
            letters = [letter for letter in link.inbox.waiting() if not self._reserved(letter)]
            first = fitting(letters, now, room)
            given = first if peek else self.offer(link, now, call, first)
            return given, len(letters) - len(first) + link.inbox.more, now

        letters, left, now = await asyncio.wrap_future(self._loop.call(choose))
        return render.render(plain(letters), now, room), len(letters), left

    async def refused(self, call: Call) -> None:
        """The disk refused what this call wanted last: keep what it was offered before, where that is known."""
        try:
            await asyncio.wrap_future(self._loop.call(lambda link, _now: self._keep_offered(link, call)))
        except BusError:
            call.letters.clear()

    @staticmethod
    def _keep_offered(link: Link, call: Call) -> None:
        ledger = link.book.ledger
        call.letters = {
            key: letter for key, letter in call.letters.items() if key in ledger and ledger[key].state == "offering"
        }

    async def left_waiting(self) -> int:
        """How many messages wait, for a result that has no room for them."""

        def count(link: Link, _now: int) -> int:
            return sum(not self._reserved(letter) for letter in link.inbox.waiting()) + link.inbox.more

        return await asyncio.wrap_future(self._loop.call(count))

    def named(self, link: Link, now: int, idents: Sequence[str], proof: str) -> None:
        """In the thread of the link: the model has named these messages, so it was shown those that are on their way
        to it, unless somebody else finds that out. An id that two senders used says nothing.
        """
        ours = {key for call in list(self._calls) for key in call.letters}
        for ident in idents:
            keys = [key for key in link.book.ledger if key.rpartition("/")[2] == ident]
            if len(keys) == 1 and keys[0] in ours and link.book.ledger[keys[0]].state == "offering":
                link.inbox.shown(now, keys, proof)

    def handed_over(self, call: Call) -> None:
        """Somebody else holds these letters and finds out what becomes of them."""
        self._calls.discard(call)

    def confirm(self, call: Call) -> asyncio.Task[None]:
        """The client has read the response. Done when that is on the disk."""

        def shown(link: Link, now: int) -> None:
            link.inbox.hold(call.letters.values())
            link.inbox.shown(now, call.letters, PATH)

        return self._begin(self._settle(call, shown))

    def release(self, call: Call, certain: bool) -> asyncio.Task[None]:
        """The response was not written (`certain`), or nobody knows whether it arrived."""

        def unshown(link: Link, _now: int) -> None:
            link.inbox.hold(call.letters.values())
            link.inbox.unshown(call.letters, certain)

        return self._begin(self._settle(call, unshown))

    async def settled(self, timeout: float) -> None:
        """Wait until what was begun is done, up to `timeout` s."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _settle(self, call: Call, fn: Callable[[Link, int], None]) -> None:
        while True:
            try:
                await asyncio.wrap_future(self._loop.call(fn))
            except StoreError as error:
                log.warning("what became of %d messages cannot be written yet: %s", len(call.letters), error)
                await asyncio.sleep(_RETRY_S)
            except Unreachable:
                return  # the agent ends; the ledger says "offering", and they come again marked as possible repeats
            else:
                self._calls.discard(call)
                return

    def _rebuilt(self, link: Link) -> None:
        for call in list(self._calls):
            self._keep_offered(link, call)
            link.inbox.hold(call.letters.values())


def plain(letters: Sequence[Letter]) -> list[render.Letter]:
    """As the rendering knows them."""
    return [
        render.Letter(
            m.id, m.from_, m.host, m.to, m.kind, m.tag, m.re, m.thread, m.ts, m.body, letter.repeat, m.answer > 0
        )
        for letter in letters
        for m in (letter.msg,)
    ]


def fitting(letters: Sequence[Letter], now: int, budget: int, reply_tool: str = "send_message") -> list[Letter]:
    """Those that one text shows, in their order. What wakes is chosen before anything else, however much came before
    it: a note can wait, and a task must not wait behind it.
    """
    chosen = sorted(letters, key=lambda letter: not letter.wakes)
    keys = {letter.key for letter in chosen[: render.fitting(plain(chosen), now, budget, reply_tool)]}
    return [letter for letter in letters if letter.key in keys]


def counted(left: int) -> str:
    """The line for what did not fit."""
    return f"({left} more waiting: check_messages)" if left > 0 else ""


def letter_of(value: dict[str, Any], body: bytes, now: int) -> Letter:
    """A message as a query tells it. Its number on this connection is not known, which is as good."""
    ttl = value.get("ttl", 0)
    text = {
        key: str(value.get(key, "")) for key in ("id", "from", "fid", "host", "to", "kind", "tag", "re", "thread")
    }
    msg = wire.Msg(
        0,
        0,
        text["id"],
        text["from"],
        text["fid"],
        text["host"],
        text["to"],
        text["kind"],
        int(value.get("ts", 0)),
        text["tag"],
        text["re"],
        text["thread"],
        ttl,
        again=value.get("again") is True,
        ask=int(value.get("ask", 0)),
        answer=int(value.get("answer", 0)),
        body=body,
    )
    rests = now + msg.answer if msg.answer > 1 else 0
    return Letter(msg, now + ttl if ttl else 0, msg.again, rests, now + msg.ask if msg.ask else 0)
