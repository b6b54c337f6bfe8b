"""Recordings of a tap: a file of JSON lines, written as it happens, and played again.

The first line says what the file is; each of the others is one item. A file that is no recording, or has a broken
line, is refused with the number of that line before anything of it is shown. Must not know what an item means.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, Self

from agent.tap.items import WHATS, Item
from bus.errors import LocalError

VERSION = 2  # of version 1 is a recording without "learned"
LINE_MAX = 64 << 20  # octets; a picture of some thousand peers has a few million
_STEP_S = 3600.0  # a longer sleep than some systems allow is made in steps


class Recorder:
    """Writes one recording. Use it as a context manager; each item is handed to the system at once."""

    def __init__(self, path: Path, at: int) -> None:
        """Make the file, which must not exist (a device may); 0600, for it tells who wrote to whom.

        `at` is the time of the start, ms since 1970. LocalError when it cannot be made.
        """
        self._path = path
        special = path.exists() and not path.is_file()
        flags = os.O_WRONLY | (0 if special else os.O_CREAT | os.O_EXCL)
        try:
            handle = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0), 0o600)
        except FileExistsError:
            raise LocalError(f"{path} exists and is not written over (choose another name)") from None
        except OSError as error:
            raise LocalError(f"cannot record to {path}: {error.strerror} (choose another place)") from error
        self._file = os.fdopen(handle, "wb", buffering=0)
        self._put({"talkbus": "recording", "version": VERSION, "at": at})

    def write(self, item: Item) -> None:
        """Append an item. LocalError when the disk does not take it; what was written before is whole."""
        self._put({"at": item.at, "what": item.what, "told": item.told})

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, value: dict[str, Any]) -> None:
        # surrogatepass is not needed: json writes ASCII.
        data = json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"
        try:
            whole = self._length()
            self._write_all(data, whole)
        except OSError as error:
            raise LocalError(
                f"the recording ends here, {self._path} takes no more: {error.strerror} (make room; what was "
                "recorded until then can be replayed)"
            ) from error

    def _length(self) -> int:
        return self._file.tell() if self._file.seekable() else -1

    def _write_all(self, data: bytes, whole: int) -> None:
        """All of it or, where the file can be cut back, nothing."""
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) or 0 :]
        except OSError:
            if whole >= 0 and len(view) < len(data):
                self._file.truncate(whole)
            raise


class Recording:
    """A recording that was found whole."""

    def __init__(self, path: Path) -> None:
        """Look through the whole file. LocalError names the line that is wrong, and why."""
        self.path = path
        self.count = 0
        self.began = 0
        try:
            if not path.is_file():
                raise LocalError(f"{path} is no recording: {_why_not(path)} (make one with zmq-tap --record FILE)")
            with path.open("rb") as file:
                self.began = self._head(file)
                for _ in self._items(file):
                    self.count += 1
        except OSError as error:
            raise LocalError(f"{path} cannot be read: {error.strerror} (choose a file you may read)") from error

    def items(self) -> Iterator[Item]:
        """Everything in it, at once."""
        with self.path.open("rb") as file:
            self._head(file)
            # What was appended since it was looked through was not found whole.
            yield from islice(self._items(file), self.count)

    def played(self, speed: float, wait: Callable[[float], bool]) -> Iterator[Item]:
        """Everything in it at its pace, `speed` times as fast; 0 is without waiting.

        `wait` sleeps for some seconds, and returns True to end it.
        """
        last = self.began
        for item in self.items():
            left = (item.at - last) / 1000 / speed if speed else 0.0
            while left > 0:
                if wait(min(left, _STEP_S)):
                    return
                left -= _STEP_S
            last = item.at
            yield item

    def _head(self, file: BinaryIO) -> int:
        head = self._parsed(1, file.readline(LINE_MAX))
        if not isinstance(head, dict) or head.get("talkbus") != "recording":
            self._wrong(1, "it is no recording of zmq-tap")
        if head.get("version") not in (1, VERSION):
            self._wrong(1, f"it is of version {str(head.get('version'))[:20]}, and {VERSION} is known here")
        return self._time(1, head.get("at"), 0)

    def _items(self, file: BinaryIO) -> Iterator[Item]:
        last = self.began
        number = 1
        while line := file.readline(LINE_MAX):
            number += 1
            value = self._parsed(number, line)
            if not isinstance(value, dict):
                self._wrong(number, "it is no item")
            what, told = value.get("what"), value.get("told")
            if what not in WHATS or not isinstance(told, dict):
                self._wrong(number, f"it is none of {', '.join(WHATS)}")
            last = self._time(number, value.get("at"), last)
            yield Item(last, what, told)

    def _time(self, number: int, at: Any, last: int) -> int:
        if not isinstance(at, int) or isinstance(at, bool) or not last <= at < 2**53:
            self._wrong(number, "its time is none, or before the line above")
        return at

    def _parsed(self, number: int, line: bytes) -> Any:
        if not line.endswith(b"\n"):
            self._wrong(number, "it is cut off" if line else "the file is empty")
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            self._wrong(number, "it is no JSON")

    def _wrong(self, number: int, why: str) -> NoReturn:
        mend = "" if number == 1 else f"; the lines before it are good: head -n {number - 1}"
        raise LocalError(f"{self.path}:{number}: {why} (replay files made with zmq-tap --record{mend})")


def _why_not(path: Path) -> str:
    return "it does not exist" if not path.exists() else "it is no file"
