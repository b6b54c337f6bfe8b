"""Numbers of options: within their bounds, and finite, for a float may also be `inf` or `nan`."""

from __future__ import annotations

import math
from typing import Any

import click


class Finite(click.FloatRange):
    """As click's range, without what no clock can count."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; a usage error for what is none."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return number
