"""Every rule is needed: each mutant lacks one and is caught, by what it names."""

from __future__ import annotations

import pytest

from tests.sim.mutants import MUTANTS


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_is_caught(name: str) -> None:
    found = MUTANTS[name].found()
    assert found, f"nothing notices: {MUTANTS[name].lacks}"


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 16
