"""Messages as people and models name them: an id, `HOST/ID` or `NAME@HOST/ID`, and which message that is.

An id is chosen by its sender, so another sender may use it again. Pure; it must not know who asks, nor the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bus import names
from bus.errors import Code, Refused

SHOWN = ("offered", "injected", "acked", "answered")
FORMS_MAX = 5


@dataclass(frozen=True, slots=True)
class Typed:
    """What somebody typed; `host` and `name` of the sender are "" where they were left out."""

    ident: str
    host: str = ""
    name: str = ""

    def fits(self, value: dict[str, Any]) -> bool:
        """Whether it may mean this message; the name of a sender may be unknown."""
        return (
            str(value.get("id", "")).startswith(self.ident)
            and self.host in ("", str(value.get("host", "")).lower())
            and (self.name in ("", str(value.get("from", "")).lower()) or not value.get("from"))
        )


def typed(text: str) -> Typed:
    """What was typed, in its parts; the id may be the beginning of one."""
    whose, _, ident = text.strip().lower().rpartition("/")
    name, _, host = whose.rpartition("@")
    return Typed(ident, host, name)


def whole(text: str) -> Typed | None:
    """The same where the id is a whole one, else None."""
    found = typed(text)
    return found if names.MESSAGE_ID.match(found.ident) else None


def form(value: dict[str, Any]) -> str:
    """How to name exactly this one of several messages that have one id."""
    return f"{value.get('from', '')}@{value.get('host', '')}/{value.get('id', '')}"


def forms(values: Sequence[dict[str, Any]]) -> str:
    """The same for a few of them, as a part of a sentence."""
    more = f" and {len(values) - FORMS_MAX} more" if len(values) > FORMS_MAX else ""
    return ", ".join(form(value) for value in values[:FORMS_MAX]) + more


def on_the_wire(values: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """`ids` and `of` of an operation that means exactly these messages."""
    return {
        "ids": [f"{value.get('host', '')}/{value['id']}" for value in values],
        "of": [str(value.get("fid", "")) for value in values],
    }


def was_offered(value: dict[str, Any]) -> bool:
    """Whether the broker knows that this copy was in the hands of somebody who shows mail."""
    return value.get("status") in SHOWN or value.get("again") is True


def offered(wanted: Typed, values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The one message of a mailbox that was typed, among those of it that were offered. Refused 404 or 409."""
    known = [value for value in values if wanted.fits(value)]
    found = [value for value in known if was_offered(value)]
    if len(found) == 1:
        return found[0]
    if found:
        raise Refused(Code.CONFLICT, f"{len(found)} messages have the id {wanted.ident} (say which: {forms(found)})")
    if known:
        raise Refused(Code.NOT_FOUND, f"message {wanted.ident} has not been shown yet")
    raise Refused(Code.NOT_FOUND, f"no message {wanted.ident}")
