"""Fixtures of the tests with real hosts: they skip, with the reason, where hosts cannot be made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lan.net import Net, missing


@pytest.fixture(scope="session")
def allowed() -> None:
    why = missing()
    if why:
        pytest.skip(why)


@pytest.fixture
def net(allowed: None) -> Iterator[Net]:
    with Net() as made:
        yield made


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """For what a test opens: closed in reverse order."""
    with ExitStack() as made:
        yield made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the hosts have their homes."""
    return tmp_path
