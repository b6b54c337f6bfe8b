"""Styled segments on a terminal: colours where the owner wants them, plain text elsewhere, ASCII where it must be.

Must not know what the segments say; what peers wrote was made harmless before.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence

_CODES = {
    "time": "2",
    "id": "2",
    "dim": "2",
    "bar": "2",
    "body": "",
    "remark": "1;33",
    "key": "36",
    "peer": "34",
    "state": "36",
    "bus": "35",
    "lan": "35",
    "unread": "33",
    "step.stored": "32",
    "step.offered": "36",
    "step.injected": "1;32",
    "step.acked": "1;32",
    "step.answered": "1;32",
    "step.held": "1;33",
    "step.refused": "1;31",
    "step.expired": "31",
    "step.failed": "1;31",
    "presence.open": "32",
    "presence.lost": "33",
    "presence.gone": "2",
}
_NAMES = ("31", "32", "33", "34", "35", "36", "91", "92", "93", "94", "95", "96")
_ASCII = str.maketrans({"→": ">", "…": "~"})


def painted(line: Sequence[tuple[str, str]], coloured: bool) -> str:
    """The text of a line, with colours or without; a name has a colour of its own, always the same."""
    if not coloured:
        return "".join(text for _, text in line).rstrip()
    return "".join(_one(style, text) for style, text in line)


def _one(style: str, text: str) -> str:
    code = _CODES.get(style, "")
    if style == "name":
        code = _NAMES[zlib.crc32(text.strip().encode("utf-8", "replace")) % len(_NAMES)]
    return f"\x1b[{code}m{text}\x1b[0m" if code else text


def plain_only(encoding: str | None = None) -> bool:
    """Whether stdout cannot show arrows and frames."""
    try:
        "→─│•✉".encode(encoding or sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return True
    return False


def ascii_only(text: str) -> str:
    """The signs of ours as ASCII of the same width."""
    return text.translate(_ASCII)
