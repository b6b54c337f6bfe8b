"""JSON text that belongs to somebody else: looked into with positions, and changed where it must be, nowhere else.

Indentation, order of keys, line ends, spelling of numbers and strings stay as they are. What is put in follows the
style of what is there; what is taken out leaves the text as it was before that was put in. Of a key that stands twice
the last one counts, as for the clients. Must not know which settings these are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from bus.errors import ConfigError

Path = Sequence[str]

_SPACE = re.compile(r"[ \t\r\n]*")
_INDENT = "  "  # of a text that has no style of its own


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) < 400 else digits  # Python refuses to read very long ones; here none is needed


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_int=_integer, parse_constant=_constant)


@dataclass(frozen=True, slots=True)
class Entry:
    """A member of an object or an element of an array: [start, end) with its key, [at, end) without."""

    key: str
    start: int
    at: int
    end: int
    value: Any


def parse(text: str, where: str) -> dict[str, Any]:
    """The object that `text` is; nothing at all counts as an empty one. ConfigError names file, line and column."""
    if not text.strip():
        return {}
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{where}:{error.lineno}:{error.colno}: not JSON: {error.msg} (mend that line, then try again)"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply to be read (mend it by hand)") from error
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error} (mend it by hand)") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where}:1:1: not a JSON object (put {{}} there, or mend it by hand)")
    return value


def entries(text: str, at: int) -> list[Entry]:
    """What the object or array that begins at `at` holds, in its order. The text is known to be JSON."""
    found = []
    keyed = text[at] == "{"
    place = _skip(text, at + 1)
    while text[place] not in "]}":
        start, key = place, ""
        if keyed:
            key, place = scanstring(text, place + 1)
            place = _skip(text, _skip(text, place) + 1)
        value, end = _DECODER.raw_decode(text, place)
        found.append(Entry(key, start, place, end, value))
        place = _skip(text, end)
        if text[place] == ",":
            place = _skip(text, place + 1)
    return found


def find(text: str, path: Path) -> Entry | None:
    """What stands at `path`, by keys of objects in objects; None where there is no such thing."""
    if not text.strip():
        return None
    start = _skip(text, 0)
    value, end = _DECODER.raw_decode(text, start)
    entry = Entry("", start, start, end, value)
    for key in path:
        if not isinstance(entry.value, dict):
            return None
        inside = [each for each in entries(text, entry.at) if each.key == key]
        if not inside:
            return None
        entry = inside[-1]
    return entry


def put(text: str, path: Path, value: Any, where: str) -> str:
    """`value` at `path`: in place of what is there, else as the last member, in objects that are made at need.

    ConfigError when something on the way is no object.
    """
    if not text.strip():
        text = "{}\n"
    for depth in range(len(path), -1, -1):
        entry = find(text, path[:depth])
        if entry is None:
            continue
        if depth == len(path):
            return replace(text, entry, value)
        if not isinstance(entry.value, dict):
            raise ConfigError(
                f"{where}:{_line(text, entry.at)}: {'.'.join(path[:depth])} is no object (mend it by hand)"
            )
        for key in reversed(path[depth + 1 :]):
            value = {key: value}
        return append(text, entry, value, path[depth])
    raise AssertionError("the whole text is always found")


def append(text: str, container: Entry, value: Any, key: str | None = None) -> str:
    """`value` as the last in an object (with `key`) or an array."""
    inside = entries(text, container.at)
    head = "" if key is None else _json(key, None, (",", ":")) + _colon(text)
    if inside:
        last = inside[-1]
        gap = _gap(text, container, inside)
        base = gap.rpartition("\n")[2] if "\n" in gap else None
        return text[: last.end] + "," + gap + head + _dump(text, value, base) + text[last.end :]
    base = _indentation(text, container.at) if _spread(text) else None
    if base is None:
        fresh = head + _dump(text, value, None)
    else:
        line, deeper = _newline(text), base + _unit(text)
        fresh = line + deeper + head + _dump(text, value, deeper) + line + base
    return text[: container.at + 1] + fresh + text[container.end - 1 :]


def remove(text: str, container: Entry, entry: Entry) -> str:
    """Without one of the entries of `container`, and without the comma and the space it needed."""
    inside = entries(text, container.at)
    number = inside.index(entry)
    if number > 0:
        return text[: inside[number - 1].end] + text[entry.end :]
    if len(inside) > 1:
        return text[: entry.start] + text[inside[1].start :]
    return text[: container.at + 1] + text[container.end - 1 :]


def replace(text: str, entry: Entry, value: Any) -> str:
    """With another value in the place of `entry`'s."""
    if entry.value == value and type(entry.value) is type(value):
        return text
    base = _indentation(text, entry.at) if _spread(text) else None
    return text[: entry.at] + _dump(text, value, base) + text[entry.end :]


def drop(text: str, path: Path) -> str:
    """Without what stands at `path`, if anything does."""
    entry, container = find(text, path), find(text, path[:-1])
    return text if entry is None or container is None else remove(text, container, entry)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _top(text: str) -> list[Entry]:
    return entries(text, _skip(text, 0)) if text.strip() else []


def _spread(text: str) -> bool:
    """Whether the text puts its members on lines of their own. One that has none gets that style."""
    inside = _top(text)
    return not inside or "\n" in text[_skip(text, 0) + 1 : inside[-1].start]


def _unit(text: str) -> str:
    """One step of indentation."""
    inside = _top(text)
    step = _indentation(text, inside[0].start) if inside else ""
    return step if inside and "\n" in text[: inside[0].start] and step else _INDENT


def _indentation(text: str, at: int) -> str:
    """The white space at the begin of the line on which `at` is."""
    begin = text.rfind("\n", 0, at) + 1
    end = begin
    while end < at and text[end] in " \t":
        end += 1
    return text[begin:end]


def _colon(text: str) -> str:
    """What stands between a key and its value in this text."""
    for entry in _top(text)[:1]:
        _, end = scanstring(text, entry.start + 1)
        between = text[end : entry.at]
        if not between.strip(" :"):
            return between
    return ": "


def _gap(text: str, container: Entry, inside: list[Entry]) -> str:
    """The white space before a further entry: as before the last one."""
    if len(inside) > 1:
        return text[inside[-2].end : inside[-1].start].replace(",", "", 1)
    gap = text[container.at + 1 : inside[0].start]
    if "\n" in gap:
        return _newline(text) + gap.rpartition("\n")[2]
    return " " if _colon(text).endswith(" ") else ""


def _dump(text: str, value: Any, base: str | None) -> str:
    """`value` as text: on one line where `base` is None, else over lines whose first one is indented by `base`."""
    colon = _colon(text)
    if base is None:
        return _json(value, None, ("," + colon[colon.rfind(":") + 1 :], colon))
    return _json(value, _unit(text), (",", colon)).replace("\n", _newline(text) + base)


def _json(value: Any, indent: str | None, separators: tuple[str, str]) -> str:
    plain = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
    if any("\ud800" <= letter <= "\udfff" for letter in plain):  # half a character: only its escape can be written
        return json.dumps(value, indent=indent, separators=separators)
    return plain
