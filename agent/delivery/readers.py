"""Commands inside a session without tools that print its mail (`talkbus inbox`): what each was lent, and its fate.

Before such a command prints a message, the agent that holds the mailbox writes down that it is about to be shown, and
takes it back from the supervisor, so that it is not typed as well. A command that is killed before it could say that
it has printed leaves its messages offered: they come again, as possible repeats. Must not know MCP, nor how a text is
typed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from agent.delivery.terminal import Request, Terminal
from agent.link import Link
from bus.processes import alive

PATH = "printed"


class Call(Protocol):
    """Run something in the thread of the link; its result once the disk has what it changed."""

    def __call__(self, fn: Callable[[Link, int], Any], /) -> Awaitable[Any]: ...


@dataclass(slots=True)
class Readers:
    """`withdraw` takes these messages back from the supervisor, as far as it has not begun to type them."""

    terminal: Terminal
    call: Call
    withdraw: Callable[[set[str]], Awaitable[None]]
    _lent: dict[tuple[int, str], set[str]] = field(default_factory=dict)  # pid and start of a command -> messages

    @property
    def keys(self) -> set[str]:
        """What is lent now, by the keys of the ledger."""
        return set().union(*self._lent.values())

    async def look(self) -> None:
        """Answer what commands have asked since, and take back what those had that are gone: that first, for it is
        what the next command asks for.
        """
        requests = self.terminal.requests()
        for request in [request for request in requests if request.printed]:
            await self._printed(set(request.keys))
            request.done()
        for who in [who for who in self._lent if not alive(*who)]:
            await self._back(self._lent.pop(who), certain=False)
        for request in [request for request in requests if not request.printed]:
            if alive(request.pid, request.start):
                await self.withdraw(set(request.keys))
                await self._lend(request)
            else:
                request.done()

    async def _lend(self, request: Request) -> None:
        given = await self.call(lambda link, now: link.inbox.lend(now, request.keys, PATH))
        told = False
        try:
            told = request.answer(given)
        finally:
            if told:
                self._lent.setdefault((request.pid, request.start), set()).update(given)
            else:
                await self._back(set(given), certain=True)  # it has not printed, and does not wait any more

    async def _printed(self, keys: set[str]) -> None:
        """Those that were lent, and those that a former agent of this session had lent."""
        for had in self._lent.values():
            had -= keys

        def show(link: Link, now: int) -> None:
            link.inbox.shown(now, keys, PATH)
            link.inbox.proven(now, keys, PATH)

        await self.call(show)

    async def _back(self, keys: set[str], certain: bool) -> None:
        if keys:
            await self.call(lambda link, _now: link.inbox.unshown(keys, certain))
