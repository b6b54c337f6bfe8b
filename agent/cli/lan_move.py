"""Mail of a machine's own bus on its way to the hub the machine joins: each message as its sender would have sent it.

Senders and recipients are mailboxes of this machine's key at the hub too, under the same names. Must not know where
the mail was read.
"""

from __future__ import annotations

import secrets
from types import TracebackType
from typing import Any

from agent.link import Profile
from agent.loop import Loop
from agent.outbox import Outbox
from bus.config import Config, Home
from bus.errors import Code, Refused, Unreachable

REPLY_S = 30.0
OPEN_S = 10.0


class Mover:
    """Use it as a context manager. `label` is this machine's at the hub."""

    def __init__(self, home: Home, config: Config, label: str) -> None:
        self._home, self._config, self._label = home, config, label
        self._loops: dict[str, Loop] = {}

    def move(self, letter: dict[str, Any]) -> None:
        """One message, in the form of bus.leftover; returns when the hub has it. Unreachable, Refused."""
        self._opened(letter["to"], letter["to_meta"])
        loop = self._opened(letter["from"], letter["from_meta"])
        args = {**letter["args"], "to": [f"{letter['to']}@{self._label}"]}
        row, _ = loop.submit("send", args, letter["body"], letter["id"])
        try:
            settled = loop.settled(row).result(REPLY_S)
        except TimeoutError as error:
            raise Unreachable(f"the hub did not take the unread mail: {loop.status().reason} (join again)") from error
        if settled.code >= 300:
            told = settled.result.get("to") or [{"text": settled.text}]
            raise Refused(_code(settled.code), f"unread mail for {letter['to']} was refused: {told[0].get('text')}")

    def _opened(self, name: str, meta: dict[str, Any]) -> Loop:
        """The session that acts for a mailbox; saying hello makes the mailbox."""
        loop = self._loops.get(name)
        if loop is None:
            profile = Profile("send", f"move-{secrets.token_hex(4)}", name, meta=meta)
            loop = Loop(self._home, self._config, Outbox.memory(), profile, autostart=False)
            loop.start()
            self._loops[name] = loop
            loop.ask("whoami", {}, OPEN_S)
        return loop

    def __enter__(self) -> Mover:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for loop in self._loops.values():
            loop.stop(leave=False)


def _code(number: int) -> Code:
    return Code(number) if number in list(Code) else Code.FORBIDDEN
