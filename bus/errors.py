"""Codes as they stand on the wire, and the tree of errors every layer raises.

BusError
├── LocalError     this side was asked for something the protocol does not allow
├── RemoteError    the other side sent something the protocol does not allow (`code` says what to answer)
├── Refused        an operation was refused; `code` and text go to whoever asked
├── StoreError     the disk said no; `full` when space or permission is what is missing
├── ConfigError    a setting or key file is wrong; the text names the file and the mend
└── Unreachable    no broker answers

Knows nobody.
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """Answers of TBP/1. Below 500 a REP settles the request it answers; an ERR settles nothing."""

    OK = 200
    HELD = 202
    NO_CONTENT = 204
    MALFORMED = 400
    UNKNOWN_SESSION = 401
    FORBIDDEN = 403
    NOT_FOUND = 404
    UNKNOWN_COMMAND = 405
    CONFLICT = 409
    GONE = 410
    OUT_OF_ORDER = 412
    TOO_LARGE = 413
    INVALID = 422
    TOO_MANY = 429
    BUSY = 503
    FULL = 507


class BusError(Exception):
    """Root of everything this project raises on purpose. `str()` is one line a person can act on."""


class LocalError(BusError):
    """The caller broke the protocol on this side; nothing was sent."""


class RemoteError(BusError):
    """What came in breaks the protocol."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class Refused(BusError):
    """An operation cannot be done; `code` and the text are the answer to whoever asked."""

    def __init__(self, code: Code, text: str, **extra: object) -> None:
        super().__init__(text)
        self.code = code
        self.extra = extra


class StoreError(BusError):
    """The disk refused. `full` is true when time or room cures it (no space, read-only)."""

    def __init__(self, text: str, *, full: bool = False) -> None:
        super().__init__(text)
        self.full = full


class ConfigError(BusError):
    """A setting, directory or key file is wrong; the text names it and says the mend."""


class Unreachable(BusError):
    """No broker answers at the published or configured endpoint."""
