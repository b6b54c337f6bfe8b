"""What a tool is: how it is described, how its arguments are read, and the one way it says no.

It must not know any tool, nor the MCP SDK.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.delivery.piggyback import Call, Piggyback
from agent.reservations import Reservations
from agent.session import Session
from bus.errors import BusError


class ToolError(BusError):
    """A call that cannot be done; the text says what is wrong and what to do next."""


@dataclass(slots=True)
class Desk:
    """What a tool works with during one call. `catch_up` takes in what proves by now that something was shown."""

    session: Session
    mail: Piggyback
    asks: Reservations
    call: Call
    ask_max: int  # s
    catch_up: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """One row of the table. `own_mail`: its text has the waiting messages already."""

    name: str
    description: str
    properties: dict[str, dict[str, Any]]
    run: Callable[[Desk, Args], Awaitable[str]]
    required: tuple[str, ...] = ()
    always: bool = False
    own_mail: bool = False
    also: tuple[str, ...] = ()  # taken, and not told

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the arguments."""
        schema: dict[str, Any] = {"type": "object", "properties": self.properties}
        return schema | {"required": list(self.required)} if self.required else schema


class Args:
    """The arguments of one call, read by name; a ToolError names the one that is wrong."""

    def __init__(self, tool: Tool, given: Mapping[str, Any]) -> None:
        known = (*tool.properties, *tool.also)
        for name in given:
            if name not in known:
                raise ToolError(f"{tool.name} has no argument {name[:40]!r} (it takes {', '.join(tool.properties)})")
        self._given = {name: value for name, value in given.items() if value is not None}
        for name in tool.required:
            if name not in self._given and not (name == "body" and self.has("message", "text")):
                raise ToolError(f"{name!r} is missing ({tool.name} needs {', '.join(tool.required)})")

    def has(self, *names: str) -> bool:
        """Whether one of these was given."""
        return any(name in self._given for name in names)

    def any(self, name: str) -> Any:
        """A value of any type."""
        return self._given.get(name)

    def text(self, name: str, default: str = "") -> str:
        """A string; numbers are taken for one."""
        value = self._given.get(name, default)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise ToolError(f"{name!r} must be a string")
        return value

    def body(self) -> str:
        """The text of a message, under any of its names."""
        body = next((self.text(name) for name in ("body", "message", "text") if self.has(name)), "")
        if not body.strip():
            raise ToolError("the message is empty (say in body what the peer shall know or do)")
        return body.encode("utf-8", "replace").decode("utf-8")

    def texts(self, name: str) -> list[str]:
        """A list of strings; one string is a list of one, also where it holds a JSON list."""
        value = self._given.get(name, [])
        if isinstance(value, str):
            value = _listed(value)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ToolError(f"{name!r} must be a string or a list of strings")
        return [item.strip() for item in value if item.strip()]

    def number(self, name: str, default: float, least: float, most: float) -> int:
        """A whole number within bounds; floats are rounded, numbers in strings read."""
        value = self._given.get(name, default)
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                value = None
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ToolError(f"{name!r} must be a number from {least:g} to {most:g}")
        return round(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false, also written as a string."""
        value = self._given.get(name, default)
        if isinstance(value, str):
            value = {"true": True, "false": False}.get(value.lower(), value)
        if not isinstance(value, bool):
            raise ToolError(f"{name!r} must be true or false")
        return value


def _listed(text: str) -> list[Any]:
    if text.lstrip().startswith("["):
        try:
            value = json.loads(text)
        except ValueError:
            return [text]
        if isinstance(value, list):
            return value
    return [text]
