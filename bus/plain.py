"""Whether a value from somewhere else is plain JSON. Pure; knows nobody."""

from __future__ import annotations

from typing import Any


def is_plain(value: Any, depth: int = 6) -> bool:
    """Whether a value from the wire is plain JSON of at most `depth` levels: no octets, no NaN, str keys only."""
    if value is None or isinstance(value, bool | int | str):
        return True
    if isinstance(value, float):
        return value - value == 0
    if depth and isinstance(value, list):
        return all(is_plain(v, depth - 1) for v in value)
    if depth and isinstance(value, dict):
        return all(isinstance(k, str) and is_plain(v, depth - 1) for k, v in value.items())
    return False
