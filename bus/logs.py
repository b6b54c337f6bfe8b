"""Logs as JSON lines in a file that is rotated: for a process that runs for weeks, and for programs that read them.

One line has "ts" (UTC, to the millisecond), "level", "logger", "pid", "text", and "error" with a traceback where
there was one. A line that the disk does not take is lost: a log never stops what it tells of. Knows nothing of the
bus.
"""

from __future__ import annotations

import json
import logging
import os
import time
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

ROOT = "talkbus"
OCTETS_MAX = 5 << 20  # of one file
KEPT = 3  # older files, named .1 to .3


def to_file(path: Path, level: str, octets: int = OCTETS_MAX, kept: int = KEPT) -> logging.Handler | None:
    """Log from `level` up to `path`, 0600, whose folder is there; None when that cannot be, which is told on stderr.

    When it has `octets` it is renamed to `.1`, and so on up to `.<kept>`; the oldest goes. One process per file.
    """
    root = logging.getLogger(ROOT)
    root.setLevel(level.upper())
    try:
        handler = _Rotating(path, maxBytes=octets, backupCount=kept, encoding="utf-8")
    except OSError as error:
        root.warning("! no log is kept in %s: %s", path, error.strerror)
        return None
    handler.setFormatter(JsonLines())
    root.addHandler(handler)
    return handler


def to_stderr(level: int, form: str = "%(asctime)s %(message)s") -> logging.Handler:
    """Log from `level` up to stderr, as text."""
    handler = logging.StreamHandler()
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter(form))
    logging.getLogger(ROOT).addHandler(handler)
    return handler


def close(handler: logging.Handler | None) -> None:
    """Log there no more."""
    if handler is not None:
        logging.getLogger(ROOT).removeHandler(handler)
        handler.close()


class JsonLines(logging.Formatter):
    """A record as one line of JSON; ASCII only, so that nothing in it can drive a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        told: dict[str, Any] = {
            "ts": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name.removeprefix(f"{ROOT}."),
            "pid": record.process,
            "text": record.getMessage(),
        }
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told)


class _Rotating(RotatingFileHandler):
    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        handle = os.open(self.baseFilename, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0), 0o600)
        return TextIOWrapper(open(handle, "ab"), encoding=self.encoding, line_buffering=True)

    def handleError(self, record: logging.LogRecord) -> None:
        """The disk is full, or the folder is gone: the line is lost."""
