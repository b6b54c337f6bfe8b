"""Change one value in a TOML text and keep every other line, comment and space as its author left it.

How far a statement reaches is left to tomllib, so nothing here knows the grammar of values.

Must not know which settings exist, nor where the text is kept.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


def line_of(text: str, name: str) -> int:
    """The line, from 1, where the dotted `name` is set in a valid TOML text; 1 when it is not."""
    return next((s.first + 1 for s in _statements(text.split("\n")) if _covers(s, name)), 1)


def edited(text: str, name: str, literal: str) -> str:
    """A valid TOML `text` with the dotted `name` set to `literal`, which is TOML for the value.

    ValueError with line and mend where the value stands within an inline table.
    """
    return "\n".join(_edited(text.split("\n"), name, literal))


@dataclass(frozen=True, slots=True)
class _Statement:
    """Lines first..last of the file: a header of `table` (key empty), or `key = value` within it."""

    first: int
    last: int
    table: tuple[str, ...]
    key: tuple[str, ...] = ()
    equals: int = 0


def _statements(lines: list[str]) -> Iterator[_Statement]:
    """The statements of a file known to be TOML. How far a value reaches is left to the parser."""
    table: tuple[str, ...] = ()
    at = 0
    while at < len(lines):
        first, at = at, at + 1
        if lines[first].strip() in ("", "\r") or lines[first].lstrip().startswith("#"):
            continue
        while at < len(lines) and _try("\n".join(lines[first:at])) is None:
            at += 1
        block = "\n".join(lines[first:at])
        if block.lstrip().startswith("["):
            # An array of tables takes no setting of ours, so it gets a name that none has.
            double = block.lstrip().startswith("[[")
            table = ("[[",) if double else _path(_try(block) or {})
            yield _Statement(first, at - 1, table)
            continue
        equals = block.find("=")
        while (key := _try(block[:equals] + "= 0")) is None and equals > 0:
            equals = block.find("=", equals + 1)
        yield _Statement(first, at - 1, table, _path(key or {}), equals)


def _try(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text + "\n")
    except tomllib.TOMLDecodeError:
        return None


def _path(table: object) -> tuple[str, ...]:
    keys: list[str] = []
    while isinstance(table, dict) and table:
        key, table = next(iter(table.items()))
        keys.append(key)
    return tuple(keys)


def _covers(statement: _Statement, name: str) -> bool:
    """Whether the statement sets `name`, itself or within an inline table."""
    full = statement.table + statement.key
    return bool(statement.key) and tuple(name.split("."))[: len(full)] == full


def _edited(lines: list[str], name: str, literal: str) -> list[str]:
    statements = list(_statements(lines))
    for found in statements:
        if not _covers(found, name):
            continue
        if ".".join(found.table + found.key) != name:
            raise ValueError(f"{found.first + 1}: an inline table (write it as [{name.split('.')[0]}])")
        block = "\n".join(lines[found.first : found.last + 1])
        head, rest = block[: found.equals + 1], block[found.equals + 1 :]
        return [*lines[: found.first], head + _replaced(rest, literal), *lines[found.last + 1 :]]
    return _inserted(lines, statements, name, literal)


def _replaced(rest: str, literal: str) -> str:
    """`rest` is all behind the equals sign; what is not the value, spaces and comment, stays."""
    end = rest.find("#")
    while end >= 0 and _try("x =" + rest[:end]) is None:  # a # within a string
        end = rest.find("#", end + 1)
    value = rest[:end] if end >= 0 else rest
    before = value[: len(value) - len(value.lstrip())]
    return before + literal + value[len(value.rstrip()) :] + rest[len(value) :]


def _inserted(lines: list[str], statements: list[_Statement], name: str, literal: str) -> list[str]:
    *parents, leaf = name.split(".")
    table = tuple(parents)
    end = "\r" if lines[0].endswith("\r") else ""
    line = f"{leaf} = {literal}{end}"
    inside = [s for s in statements if s.table == table and (s.key or table)]
    dotted = [s for s in statements if not s.table and table and s.key[:-1] == table]
    if inside or dotted:
        at = (inside or dotted)[-1].last + 1
        new = [line if inside else f"{name} = {literal}{end}"]
    elif not table and any(not s.key for s in statements):
        # Before the first table, and before the comment that stands over it.
        at = next(s.first for s in statements if not s.key)
        while at > 0 and lines[at - 1].lstrip().startswith("#"):
            at -= 1
        new = [line, end]
    else:
        at = len(lines) - 1 if lines[-1] == "" else len(lines)
        new = [*([end] if at and table else []), *([f"[{'.'.join(table)}]{end}"] if table else []), line]
    if at == len(lines):
        # The last line had no line end, which it now needs.
        lines = [*lines[:-1], lines[-1] + end, ""]
        at = len(lines) - 1
    return [*lines[:at], *new, *lines[at:]]
