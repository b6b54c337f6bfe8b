"""Editing JSON text without touching the rest of it: for any object, in and out again is the identity on bytes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import settings_files, settings_plan
from agent import settings_text as text_of
from agent.settings_client import Places
from agent.settings_entries import put_server, put_settings, take_server, take_settings
from bus.config import home as home_of
from bus.errors import BusError, ConfigError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
KEYS = st.sampled_from(["hooks", "env", "permissions", "statusLine", "mcpServers", "model"]) | st.text(max_size=5)
COMMAND = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
HOOK = st.fixed_dictionaries({"type": st.just("command"), "command": COMMAND})
GROUP = st.fixed_dictionaries({"hooks": st.lists(HOOK, max_size=2)}, optional={"matcher": st.text(max_size=4)})
HOOKS = st.dictionaries(
    st.sampled_from(["Stop", "SessionStart", "PreToolUse", "Else"]), st.lists(GROUP | SCALARS, max_size=3), max_size=3
)
SENSIBLE = st.fixed_dictionaries(
    {},
    optional={
        "model": st.text(),
        "hooks": HOOKS,
        "env": st.dictionaries(st.text(max_size=5), st.text(), max_size=3),
        "permissions": st.fixed_dictionaries({}, optional={"allow": st.lists(st.text()), "deny": st.just([])}),
        "statusLine": HOOK,
        "mcpServers": st.dictionaries(st.text(max_size=5), JSON, max_size=2),
        "else": JSON,
    },
)


@st.composite
def texts(draw: st.DrawFn, objects: st.SearchStrategy[dict[str, Any]]) -> str:
    """An object as some program would have written it."""
    value = draw(objects)
    indent = draw(st.sampled_from([None, 1, 2, 4, "\t"]))
    compact = draw(st.booleans())
    separators = (",", ":") if compact else (", " if indent is None else ",", ": ")
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=draw(st.booleans()))
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    return text + draw(st.sampled_from(["", "\n", "\r\n", "\n\n"]))


def encodable(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


@given(texts(SENSIBLE))
@settings(deadline=None)
def test_what_is_put_in_can_be_taken_out_of_the_text(text: str) -> None:
    installed, put = put_settings(text, "s", env={"TALKBUS_HOME": "/x"})
    again, second = put_settings(installed, "s", env={"TALKBUS_HOME": "/x"})
    assert (again, second.made, second.added) == (installed, [], [])
    assert take_settings(installed, "s", put) == text
    listed, put = put_server(text, "s", {"type": "stdio", "command": "talkbus", "args": ["mcp"]})
    assert put_server(listed, "s", {"type": "stdio", "command": "talkbus", "args": ["mcp"]})[0] == listed
    if '"talkbus"' not in text:
        assert take_server(listed, "s", put) == text


@given(texts(st.dictionaries(KEYS, JSON, max_size=5) | SENSIBLE).filter(encodable), st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_install_then_uninstall_is_the_identity_on_bytes(text: str, mark: bool) -> None:
    data = (b"\xef\xbb\xbf" if mark else b"") + text.encode()
    with tempfile.TemporaryDirectory() as root:
        home = home_of({"TALKBUS_HOME": f"{root}/bus"})
        where = Places("user", Path(root) / "settings.json", Path(root) / "servers.json")
        where.settings.write_bytes(data)
        where.servers.write_bytes(data)
        try:
            plan = settings_plan.installing(home, where, {})
        except ConfigError as error:
            assert str(where.settings.parent) in str(error)  # refused, for something in our way is no object
            return
        settings_plan.install(home, plan)
        json.loads(where.settings.read_bytes().decode("utf-8-sig"))
        assert settings_plan.installing(home, where, {}).pending == []
        settings_plan.uninstall(home, settings_plan.uninstalling(home, where))
        assert (where.settings.read_bytes(), where.servers.read_bytes()) == (data, data)
        assert sorted(p.name for p in Path(root).iterdir()) == ["bus", "servers.json", "settings.json"]


@given(texts(st.dictionaries(KEYS, JSON, max_size=4)), st.lists(KEYS, min_size=1, max_size=3), JSON)
@settings(deadline=None)
def test_a_value_that_is_put_is_found_and_nothing_else_changes(text: str, path: list[str], value: Any) -> None:
    before = text_of.parse(text, "s")
    try:
        changed = text_of.put(text, path, value, "s")
    except ConfigError as error:
        assert "is no object" in str(error)
        return
    after = text_of.parse(changed, "s")
    found = text_of.find(changed, path)
    assert found is not None and found.value == value
    inside: Any = before
    for key in path[:-1]:
        inside = inside.setdefault(key, {})
    inside[path[-1]] = value
    assert after == before


@given(st.text() | texts(SENSIBLE).flatmap(lambda text: st.builds(lambda n: text[:n], st.integers(0, len(text)))))
@settings(deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        text_of.parse(text, "where")
    except BusError as error:
        assert str(error).startswith("where:")


def test_a_text_that_is_nested_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="nested too deeply"):
        text_of.parse('{"a":' * 200_000, "s")


def test_a_number_of_any_length_is_kept() -> None:
    text = '{"n": ' + "7" * 5000 + "}"
    assert take_settings(*_put(text)) == text


def _put(text: str) -> tuple[str, str, Any]:
    installed, put = put_settings(text, "s", env={})
    return installed, "s", put


def test_a_diff_says_where_a_line_has_no_end() -> None:
    file = settings_files.File(Path("/x"), Path("/x"), b'{"a": 1}', 0o600)
    assert "\\ No newline at end of file" in settings_files.Change(file, b'{"a": 2}').diff()
