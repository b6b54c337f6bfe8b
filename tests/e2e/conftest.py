"""Fixtures of the test bed. Whatever uses `claude` or `home` is skipped where the client is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .api import FakeApi
from .client import need_client
from .session import Home


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "e2e: runs the real client; skipped where it is not installed")


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as running:
        yield running


@pytest.fixture
def claude() -> Path:
    return need_client()


@pytest.fixture
def home(api: FakeApi, claude: Path) -> Iterator[Home]:
    with Home(api, claude) as made:
        yield made
