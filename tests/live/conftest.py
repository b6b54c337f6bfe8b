"""Fixtures of the live tests: homes that are cleaned up, however a test ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.live.homes import Home


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A bus whose broker is not started yet."""
    with Home(tmp_path / "bus") as made:
        yield made


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """For what a test opens: closed in reverse order."""
    with ExitStack() as made:
        yield made
