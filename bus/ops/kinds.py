"""What an operation is: its handler, the schema of its arguments, the role it needs, and its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from functools import cache
from typing import Any

from bus.core import Core, Session
from bus.errors import Code, Refused
from bus.record import record
from bus.wire import CHECKS, Req
from bus.world import Mailbox

TYPES: dict[str, Callable[[Any], bool]] = {
    **CHECKS,
    "list": lambda value: type(value) is list,
    "text": lambda value: type(value) is str and len(value) <= 1024,
}


@record
class Answer:
    """What an operation came to; it is saved with the request's number."""

    code: Code = Code.OK
    result: dict[str, Any] = field(default_factory=dict)
    text: str = ""


Handler = Callable[[Core, Session, Req], Answer]


@record
class Op:
    """One row of the table of operations; `schema` is written as in PROTOCOL.md §10."""

    handler: Handler
    schema: str
    role: str = ""  # "" = whoever may send
    metered: bool = True  # counts against the rate


def check(op: Op, args: dict[str, Any]) -> None:
    """Refused 422 naming the first argument that does not fit the schema; unknown ones are ignored."""
    for key, kind, optional in _parsed(op.schema):
        if key not in args:
            if not optional:
                raise Refused(Code.INVALID, f"argument {key!r} is missing")
        elif not TYPES[kind](args[key]):
            raise Refused(Code.INVALID, f"argument {key!r} is no {kind}")


@cache
def _parsed(schema: str) -> tuple[tuple[str, str, bool], ...]:
    """(key, type, optional) of every argument: read once, for this is on the way of every request."""
    words = (word.partition(":") for word in schema.split())
    return tuple((key.rstrip("?"), kind, key.endswith("?")) for key, _, kind in words)


def own_mailbox(core: Core, session: Session) -> Mailbox:
    """The mailbox the session acts for."""
    return core.world.mailboxes[session.mailbox]


def signature(mailbox: Mailbox) -> str:
    """name@host as it is written into records."""
    return f"{mailbox.name}@{mailbox.host}"
