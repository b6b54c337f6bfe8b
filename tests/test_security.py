"""The table of attacks names tests that exist, and every row has all that a row must have."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith(("| attack", "|---"))]


def test_there_are_rows() -> None:
    assert len(ROWS) >= 40


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:50])
def test_a_row_names_its_test(row: str) -> None:
    cells = [cell.strip() for cell in row.strip().strip("|").split("|")]
    assert len(cells) == 5, "attack, what prevents it, what shows it, what remains, test"
    assert cells[0] and cells[1]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", cells[4])
    assert named, "which test proves it?"
    for file, test in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert any(isinstance(node, functions) and node.name == test for node in ast.walk(tree)), f"{file}::{test}"
