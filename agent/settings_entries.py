"""What of ours stands in a client's settings: put in, brought up to date, taken out again; text in, text out.

Everything here recognises what is ours by itself, so it works without any record; a record (`Put`) only makes the way
back exact. Never touched: whatever somebody else wrote, also under the same events and in the same lists. Must not
know files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent import settings_text as text_of
from agent.settings_hooks import (
    FOLDER,
    INSTALLED,
    PERMISSION,
    REFRESH_S,
    SERVER,
    installed,
    is_ours,
    statusline,
    theirs_in,
)
from agent.settings_text import Entry, find
from bus.errors import ConfigError

_ALLOW = ("permissions", "allow")
_ENTRY = ("mcpServers", SERVER)
_SELF_MADE = re.compile(r"talkbus\s+statusline|hooks/statusline\.sh")


@dataclass(slots=True)
class Put:
    """What a call put in: `made` are the containers it had to make, `added` the entries that can be anybody's. Paths
    are JSON arrays of keys, as text. `line` is the user's own status line command, spelled in JSON as it was. `notes`
    say what was left as it was, and why.
    """

    made: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    line: str = ""
    notes: list[str] = field(default_factory=list)


def put_settings(
    text: str, where: str, *, env: Mapping[str, str], line: bool = True, folder: Path = FOLDER
) -> tuple[str, Put]:
    """A settings file's text with our hooks, permission, variables and, with `line`, status line in it."""
    put = Put()
    before = text_of.parse(text, where)
    text = _put_hooks(text, where, installed(folder))
    text = _put_permission(text, where, put)
    text = _put_variables(text, where, env, put)
    if line:
        text = _put_line(text, where, folder, put)
    put.made += _made(before, text_of.parse(text, where), (("hooks",), ("permissions",), _ALLOW, ("env",)))
    hooks = text_of.parse(text, where)["hooks"]
    put.made += _made(before, {"hooks": hooks}, [("hooks", event) for event in hooks])
    return text, put


def take_settings(text: str, where: str, put: Put | None) -> str:
    """The text without what `put_settings` put in. Without a record, what it makes empty goes too."""
    text_of.parse(text, where)
    text = _take_hooks(text, put)
    allow = find(text, _ALLOW)
    if allow is not None and isinstance(allow.value, list) and (put is None or _name(_ALLOW) in put.added):
        for entry in reversed(text_of.entries(text, allow.at)):
            if entry.value == PERMISSION:
                text = text_of.remove(text, _must(text, _ALLOW), entry)
        if PERMISSION in allow.value:
            text = _emptied(text, put, _ALLOW, _ALLOW[:1])
    text = _take_variables(text, put)
    return _take_line(text, put)


def put_server(text: str, where: str, entry: Mapping[str, Any]) -> tuple[str, Put]:
    """The text of a file with `mcpServers`, with our entry in it. One that is not from us stays, and is told."""
    put = Put()
    before = text_of.parse(text, where)
    there = find(text, _ENTRY)
    if there is not None and not _is_our_server(there.value):
        put.notes.append(f"{where}: an MCP server '{SERVER}' is there that is not from us; it stays as it is")
        return text, put
    if there is None:
        text = text_of.put(text, _ENTRY, {**entry, "env": {INSTALLED: "1"}}, where)
    for key, value in entry.items():
        text = text_of.put(text, (*_ENTRY, key), value, where)
    put.made += _made(before, text_of.parse(text, where), (_ENTRY[:1],))
    return text, put


def take_server(text: str, where: str, put: Put | None) -> str:
    """The text without our MCP entry."""
    text_of.parse(text, where)
    there = find(text, _ENTRY)
    if there is None or not _is_our_server(there.value):
        return text
    return _emptied(text_of.drop(text, _ENTRY), put, _ENTRY[:1])


def has_hooks(settings: Mapping[str, Any]) -> bool:
    """Whether a parsed file has hooks of ours, of whatever version."""
    return any(is_ours(hook) for _, hook in _flat(settings.get("hooks")))


def _put_hooks(text: str, where: str, wanted: dict[str, list[dict[str, Any]]]) -> str:
    there = find(text, ("hooks",))
    if there is not None and not isinstance(there.value, dict):
        raise ConfigError(f"{where}: hooks is no object (mend it by hand)")
    ours: dict[str, list[Any]] = {}
    for event, hook in _flat(there.value if there else {}):
        if is_ours(hook):
            ours.setdefault(event, []).append(hook)
    if ours == {event: groups[0]["hooks"] for event, groups in wanted.items()}:
        return text
    text = _take_hooks(text, None)
    for event, groups in wanted.items():
        container = find(text, ("hooks", event))
        if container is None:
            text = text_of.put(text, ("hooks", event), groups, where)
        elif not isinstance(container.value, list):
            raise ConfigError(f"{where}: hooks.{event} is no list (mend it by hand)")
        else:
            for group in groups:
                text = text_of.append(text, _must(text, ("hooks", event)), group)
    return text


def _take_hooks(text: str, put: Put | None) -> str:
    hooks = find(text, ("hooks",))
    if hooks is None or not isinstance(hooks.value, dict):
        return text
    for event in hooks.value:
        path = ("hooks", event)
        container = _must(text, path)
        if not isinstance(container.value, list):
            continue
        for number in reversed(range(len(container.value))):
            text = _take_from_group(text, path, number)
        if len(_must(text, path).value) < len(container.value):
            text = _emptied(text, put, path)
    return text if not hooks.value else _emptied(text, put, ("hooks",))


def _take_from_group(text: str, path: tuple[str, ...], number: int) -> str:
    """Without our hooks in one group of an event, and without the group when nothing else is in it."""
    container = _must(text, path)
    group = text_of.entries(text, container.at)[number]
    if not isinstance(group.value, dict) or not isinstance(group.value.get("hooks"), list):
        return text
    kept = [hook for hook in group.value["hooks"] if not is_ours(hook)]
    if len(kept) == len(group.value["hooks"]):
        return text
    if not kept:
        return text_of.remove(text, container, group)
    for index in reversed(range(len(group.value["hooks"]))):
        group = text_of.entries(text, _must(text, path).at)[number]
        inner = [each for each in text_of.entries(text, group.at) if each.key == "hooks"][-1]
        hook = text_of.entries(text, inner.at)[index]
        if is_ours(hook.value):
            text = text_of.remove(text, inner, hook)
    return text


def _put_permission(text: str, where: str, put: Put) -> str:
    allow = find(text, _ALLOW)
    if allow is None:
        text = text_of.put(text, _ALLOW, [PERMISSION], where)
    elif not isinstance(allow.value, list):
        raise ConfigError(f"{where}: permissions.allow is no list (mend it by hand)")
    elif {PERMISSION, PERMISSION + "__*"} & {each for each in allow.value if isinstance(each, str)}:
        return text
    else:
        text = text_of.append(text, allow, PERMISSION)
    put.added.append(_name(_ALLOW))
    return text


def _put_variables(text: str, where: str, env: Mapping[str, str], put: Put) -> str:
    """The mark, whose value lists the other variables that are ours: `1`, or `1:TALKBUS_HOME`."""
    ours = _variables(text)
    for name in ours - env.keys():
        text = text_of.drop(text, ("env", name))
    ours &= env.keys()
    for name, value in env.items():
        there = find(text, ("env", name))
        if there is None or name in ours:
            text = text_of.put(text, ("env", name), value, where)
            ours.add(name)
        elif there.value != value:
            put.notes.append(f"{where}: {name} is set there already, to {there.value!r}; sessions go by that")
    return text_of.put(text, ("env", INSTALLED), ":".join(["1", *sorted(ours)]), where)


def _take_variables(text: str, put: Put | None) -> str:
    had = find(text, ("env", INSTALLED))
    if had is None:
        return text
    for name in (INSTALLED, *_variables(text)):
        text = text_of.drop(text, ("env", name))
    return _emptied(text, put, ("env",))


def _variables(text: str) -> set[str]:
    mark = find(text, ("env", INSTALLED))
    return set(mark.value.split(":")[1:]) if mark is not None and isinstance(mark.value, str) else set()


def _put_line(text: str, where: str, folder: Path, put: Put) -> str:
    there = find(text, ("statusLine",))
    if there is None or there.value is None:
        return text_of.put(text, ("statusLine",), _line(folder), where)
    command = there.value.get("command") if isinstance(there.value, dict) else None
    if not isinstance(command, str) or not command.strip() or there.value.get("type") != "command":
        put.notes.append(f"{where}: statusLine is of a kind that ours cannot go with; it stays as it is")
        return text
    if not is_ours(there.value) and _SELF_MADE.search(command):
        put.notes.append(f"{where}: the statusLine there calls ours already; it stays as it is")
        return text
    theirs = theirs_in(command) if is_ours(there.value) else command
    if theirs == command:
        own = _must(text, ("statusLine", "command"))
        put.line = text[own.at : own.end]
    return text_of.put(text, ("statusLine", "command"), statusline(theirs, folder), where)


def _take_line(text: str, put: Put | None) -> str:
    there = find(text, ("statusLine",))
    if there is None or not is_ours(there.value):
        return text
    theirs = theirs_in(there.value["command"])
    if theirs:
        own = _must(text, ("statusLine", "command"))
        if put is not None and put.line and json.loads(put.line) == theirs:
            return text[: own.at] + put.line + text[own.end :]
        return text_of.replace(text, own, theirs)
    return text_of.drop(text, ("statusLine",))


def _line(folder: Path) -> dict[str, Any]:
    return {"type": "command", "command": statusline("", folder), "refreshInterval": REFRESH_S}


def _is_our_server(entry: object) -> bool:
    env = entry.get("env") if isinstance(entry, dict) else None
    return isinstance(env, dict) and INSTALLED in env


def _flat(hooks: object) -> Iterable[tuple[str, Any]]:
    """Every hook under its event, whatever the shape of the rest."""
    for event, groups in hooks.items() if isinstance(hooks, dict) else ():
        for group in groups if isinstance(groups, list) else ():
            inner = group.get("hooks") if isinstance(group, dict) else None
            for hook in inner if isinstance(inner, list) else ():
                yield event, hook


def _emptied(text: str, put: Put | None, *paths: tuple[str, ...]) -> str:
    """Without those containers that are empty now, and were made by us as far as is known."""
    for path in paths:
        there = find(text, path)
        if there is not None and there.value in ({}, []) and (put is None or _name(path) in put.made):
            text = text_of.drop(text, path)
    return text


def _made(before: Any, after: Any, paths: Iterable[tuple[str, ...]]) -> list[str]:
    return [_name(path) for path in paths if _at(before, path) is None and _at(after, path) is not None]


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _must(text: str, path: tuple[str, ...]) -> Entry:
    entry = find(text, path)
    assert entry is not None
    return entry


def _name(path: tuple[str, ...]) -> str:
    return json.dumps(path)
