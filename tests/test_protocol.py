"""Every table of PROTOCOL.md is what the code does: commands, states, operations, queries, events, codes, limits."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from agent.link import LINK
from bus import activity, broker, governor, wire
from bus.errors import Code
from bus.ops import OPS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "bus" / "PROTOCOL.md").read_text(encoding="utf-8")


def table(name: str) -> list[dict[str, str]]:
    """The rows of the table that follows its mark."""
    _, mark, rest = TEXT.partition(f"<!-- table: {name} -->\n")
    assert mark, f"there is no table {name}"
    lines = []
    for line in rest.splitlines():
        if not line.startswith("|"):
            break
        lines.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    head, _, *rows = lines
    assert all(len(row) == len(head) for row in rows), f"table {name} is ragged"
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_every_table_is_looked_at() -> None:
    marked = set(re.findall(r"<!-- table: (\w+) -->", TEXT))
    assert marked == {
        "commands",
        "sessions",
        "link",
        "hello",
        "operations",
        "queries",
        "events",
        "codes",
        "limits",
        "roles",
        "defaults",
    }


def _fields(spec: wire.Spec) -> str:
    return " ".join(f"{f.key}{'' if f.required else '?'}:{f.type}" for f in spec.fields)


def test_commands() -> None:
    written = {row["command"]: (row["from"], row["fields"], row["body"]) for row in table("commands")}
    known = {name: (spec.sender, _fields(spec), spec.body) for name, spec in wire.COMMANDS.items()}
    assert written == known
    assert list(written) == list(known)


def test_commands_are_in_the_grammar() -> None:
    grammar = TEXT.partition("```abnf")[2].partition("```")[0]
    for name, spec in wire.COMMANDS.items():
        assert f"{spec.sender}:{name}" in grammar, name


def _states(name: str) -> dict[str, dict[str, str]]:
    return {row.pop("state"): row for row in table(name)}


def test_sessions() -> None:
    assert _states("sessions") == broker.SESSIONS


def test_link() -> None:
    assert _states("link") == LINK


def test_every_action_of_the_tables_is_told_or_named() -> None:
    actions = {action for row in broker.SESSIONS.values() for action in row.values()}
    for action in actions - {"nothing", "request", "settle", "query", "pong"}:
        assert f"*{action}*" in TEXT, action


def test_operations() -> None:
    assert {row["op"]: row["args"] for row in table("operations")} == {n: op.schema for n, op in OPS.items()}
    assert {row["op"] for row in table("operations") if "Owner only" in _paragraph(row["op"])} == {
        name for name, op in OPS.items() if op.role == "owner"
    }
    assert {row["op"] for row in table("operations") if "exempt from the rate" in _paragraph(row["op"])} == {
        name for name, op in OPS.items() if not op.metered
    }


def _paragraph(op: str) -> str:
    return TEXT.partition(f"**{op}**:")[2].partition("\n\n")[0]


def test_the_body_of_an_operation() -> None:
    assert {row["op"] for row in table("operations") if row["body"] != "none"} == {"send", "state.set"}


def test_queries() -> None:
    assert {row["what"]: row["args"] for row in table("queries")} == activity.QUERIES


def test_events() -> None:
    assert {row["class"]: row["names"] for row in table("events")} == activity.EVENTS


def _emitted() -> set[str]:
    """The topics of every emit() and announce() in the broker's source; `*` for what is put in."""
    found = set()
    for path in sorted((ROOT / "bus").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            if node.func.attr not in ("emit", "announce"):
                continue
            topic = node.args[0]
            if isinstance(topic, ast.Constant) and isinstance(topic.value, str):
                found.add(topic.value)
            elif isinstance(topic, ast.JoinedStr):
                found.add("".join(str(v.value) if isinstance(v, ast.Constant) else "*" for v in topic.values))
    return found


def test_every_event_that_is_emitted_is_in_the_table() -> None:
    emitted = _emitted()
    assert emitted
    for topic in emitted:
        kind, _, name = topic.partition(".")
        assert kind in activity.EVENTS, topic
        assert name == "*" or name in activity.EVENTS[kind].split(), topic


def test_every_event_of_the_table_is_emitted() -> None:
    emitted = _emitted()
    for kind, names in activity.EVENTS.items():
        for name in names.split() if kind != "sync" else ["*"]:
            later = f"{kind}.{name}" in ("bus.start", "bus.stop")  # the shell's, which announces them
            assert f"{kind}.{name}" in emitted or f"{kind}.*" in emitted or later, f"{kind}.{name}"


def test_codes() -> None:
    assert {(int(row["code"]), row["name"]) for row in table("codes")} == {(int(c), c.name) for c in Code}


def test_codes_that_settle() -> None:
    """What time cures, and what is no result, never comes in a REP."""
    never = {Code[row["name"]] for row in table("codes") if row["settles"] == "no"}
    assert never == {
        Code.MALFORMED,
        Code.UNKNOWN_SESSION,
        Code.UNKNOWN_COMMAND,
        Code.OUT_OF_ORDER,
        Code.TOO_MANY,
        Code.BUSY,
    }


def test_limits() -> None:
    assert {row["limit"]: int(row["value"]) for row in table("limits")} == wire.LIMITS


def test_defaults_of_the_governor() -> None:
    assert {row["default"]: int(row["value"]) for row in table("defaults")} == governor.DEFAULTS


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("num", [0, 1, 2**53], [-1, 2**53 + 1, 1.0, True, "1", None]),
        ("text", ["", "a" * 512], ["a" * 513, b"a", 1, None]),
        ("flag", [True, False], [0, 1, "true", None]),
        ("map", [{}, {"a": [1]}], [[], None, {1: 2}, {b"a": 1}]),
        (
            "ranges",
            [[], [[1, 1]], [[1, 2], [4, 4]]],
            [[[2, 1]], [[1, 2], [3, 4]], [[3, 3], [1, 1]], [[1]], [1], [[1, 1]] * 65],
        ),
    ],
)
def test_types(kind: str, good: list[Any], bad: list[Any]) -> None:
    check = wire.CHECKS[kind]
    assert all(check(value) for value in good)
    assert not any(check(value) for value in bad)
