"""Who may import whom, and who may touch the world."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("bus", "agent", "hooks")
OF_BUS_FOR_AGENTS = {
    "errors",
    "names",
    "wire",
    "client",
    "config",
    "daemon",
    "private",
    "processes",
    "trust",
    "sockets",
    "database",
    "joined",
    "invitations",
    "enrolling",
    "discovery",
    "roll",
    "logs",
    "record",
}
PURE = {
    *(f"bus.{name}" for name in "errors names wire world effects core deliveries sessions addresses".split()),
    *(f"bus.{name}" for name in "requests activity broker ops ops.kinds ops.mail ops.naming ops.state".split()),
    *(f"bus.{name}" for name in "ops.upkeep ops.machines store_writes roll z85 enrolment invitations plain".split()),
    *(f"bus.{name}" for name in "ops.hold policy governor journal metrics timers retention record".split()),
    *(f"agent.{name}" for name in "book effects questions sending inbox link".split()),
    *(f"agent.tap.{name}" for name in "items choosing words cells mail office office_scene top".split()),
    "agent.paths",
}
WORLD = {
    "socket",
    "time",
    "random",
    "sqlite3",
    "os",
    "pathlib",
    "secrets",
    "threading",
    "subprocess",
    "zmq",
    "datetime",
}
SHELLS = {
    *("server", "sockets", "client", "loop", "trust", "listening", "publishing", "reading", "dialing", "tap"),
    *("speaking", "enrolling"),
}


def modules() -> dict[str, Path]:
    """Every module of ours, by its dotted name."""
    found = {}
    for top in OURS:
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """Every module that is imported anywhere in a file, `from a import b` as a.b where that is a module."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            base = node.module or ""
            subs = [f"{base}.{alias.name}" for alias in node.names]
            yield from (sub if sub in MODULES else base for sub in subs)


def outside(name: str) -> set[str]:
    """The tops of what a module imports."""
    return {target.split(".")[0] for target in imports(name)}


def test_there_are_modules() -> None:
    assert set(MODULES) >= PURE


@pytest.mark.parametrize("name", sorted(MODULES))
def test_direction(name: str) -> None:
    top = name.split(".")[0]
    if top == "hooks":
        assert not outside(name) & set(OURS), "hooks import nobody of ours"
    if top == "bus":
        assert not outside(name) & {"agent", "hooks"}
    if top == "agent":
        assert "hooks" not in outside(name)
        of_bus = {target.split(".")[1] for target in imports(name) if target.startswith("bus.")}
        assert of_bus <= OF_BUS_FOR_AGENTS
    assert "tests" not in outside(name)


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_do_not_touch_the_world(name: str) -> None:
    assert not outside(name) & WORLD


@pytest.mark.parametrize("name", sorted(MODULES))
def test_libraries_have_one_place(name: str) -> None:
    top, _, rest = name.partition(".")
    used = outside(name)
    if "msgpack" in used:
        assert name == "bus.wire"
    if "sqlite3" in used:
        assert name.startswith(("bus.store", "bus.database", "agent.outbox"))
    if "zmq" in used:
        assert rest.split(".")[-1] in SHELLS, "sockets belong to shells"
    assert top in OURS


def test_no_cycles() -> None:
    graph = {name: sorted({t for t in imports(name) if t in MODULES and t != name}) for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for target in graph[name]:
                visit(target, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])
