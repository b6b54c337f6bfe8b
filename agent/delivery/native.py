"""The path into a session through its own inbox: one line of JSON on the client's socket.

The client takes a line and says nothing: it queues it, holds it for its user, or drops it in silence (above about 30
quick lines, or when a line repeats the one before). So lines are paced far below that, no two are alike, and a write
proves nothing: what became of a line is read from the transcript.

It knows the client's frame and the user's setting for such messages; nothing of the ledger or of rendering.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.settings_client import managed_folder, managed_settings

BURST = 5
EVERY_MS = 5000  # after an emptied bucket one line every 5 s was never dropped
LINE_MAX = 500_000  # characters; 600,000 were seen to pass whole
SETTINGS_MAX = 4 * 1024 * 1024
_MARK = re.compile(r"\(talkbus delivery ([0-9a-f]{12})\)")
ANSWERS = ("accept", "hold", "refuse")  # what the setting may say, the laxest first


class Pacer:
    """When the next line may be written: a few at once, then one in a while. `now` is ms of any steady clock."""

    __slots__ = ("_burst", "_every", "_full_at")

    def __init__(self, burst: int = BURST, every_ms: int = EVERY_MS) -> None:
        self._burst = burst
        self._every = every_ms
        self._full_at: int | None = None  # when all of the burst may be used again

    def ready_at(self, now: int) -> int:
        """The time from which on a line may be written; `now` when that is at once."""
        if self._full_at is None:
            return now
        return max(now, self._full_at - (self._burst - 1) * self._every)

    def take(self, now: int) -> bool:
        """Use up one line, if one may be written now."""
        if self.ready_at(now) > now:
            return False
        self._full_at = max(now, self._full_at or now) + self._every
        return True


@dataclass(frozen=True, slots=True)
class Attempt:
    """A line was written. `nonce` stands in it, and whoever looks for it in the transcript finds the line itself.

    `taken` is true when the client closed the connection, which it does after it took the line: not a delivery.
    """

    nonce: str
    text: str
    taken: bool


class NotPosted(Exception):
    """The line did not get there. With `certain` nothing of it can have been taken."""

    def __init__(self, text: str, certain: bool) -> None:
        super().__init__(text)
        self.certain = certain


def marked(text: str, nonce: str) -> str:
    """The text with the nonce by which it is found in the transcript, whichever path carries it."""
    return f"{text}\n\n(talkbus delivery {nonce})"


def reference(text: str) -> str:
    """The nonce of a marked text, "" where there is none; what looks like one in a message stands before it."""
    found = _MARK.findall(text)
    return found[-1] if found else ""


def line(text: str, nonce: str) -> tuple[str, bytes]:
    """The text with its nonce, and the frame that carries it. What is alike twice in a row would be dropped."""
    shown = marked(text, nonce)
    frame = {"type": "user", "message": {"role": "user", "content": shown}, "priority": "next"}
    return shown, json.dumps(frame, ensure_ascii=True).encode("ascii") + b"\n"


def post(path: str, text: str, token: str = "", timeout: float = 2.0, nonce: str = "") -> Attempt:
    """Write one line to the inbox socket at `path` and wait up to `timeout` s for the client to close.

    Blocks, so not for a loop that has other work. `token` is the one the client gave its children; where the client
    wants none it does no harm. A `nonce` is made where none is given. NotPosted when there is no such socket or the
    line was not written whole.
    """
    if sys.platform == "win32":
        raise NotPosted("this system has no such sockets", certain=True)
    if not path or len(os.fsencode(path)) > 107 or len(text) > LINE_MAX:
        raise NotPosted("no inbox socket, or too long a text for it", certain=True)
    nonce = nonce or secrets.token_hex(6)
    shown, data = line(text, nonce)
    if token:
        data = json.dumps({"type": "auth", "token": token}).encode("ascii") + b"\n" + data
    end = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
        wire.settimeout(timeout)
        try:
            wire.connect(path)
        except OSError as error:
            raise NotPosted(
                f"the inbox at {path} does not answer: {error.strerror or error}", certain=True
            ) from error
        try:
            wire.sendall(data)
            wire.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise NotPosted(f"the inbox at {path} broke off: {error.strerror or error}", certain=False) from error
        return Attempt(nonce, shown, _closed(wire, end))


def _closed(wire: socket.socket, end: float) -> bool:
    """Whether the other side closes before `end`."""
    while True:
        left = end - time.monotonic()
        if left <= 0:
            return False
        wire.settimeout(left)
        try:
            if not wire.recv(4096):
                return True
        except TimeoutError:
            return False
        except OSError:
            return True


@dataclass(frozen=True, slots=True)
class Inbound:
    """The user's answer to messages from other sessions, and the file that gave it ("" for the default)."""

    answer: str
    source: str = ""

    @property
    def open(self) -> bool:
        """Only then may a line be written: a held one could still be let in by hand later, and be seen twice."""
        return self.answer == "accept"


def inbound(config: Path, project: str, managed: Sequence[Path] | None = None) -> Inbound:
    """What `crossSessionInbound` is for a session of this project folder.

    Managed settings decide alone; else the strictest of the user's and the project's, which may only tighten. A value
    that is not known holds messages, as it does in the client. Without any, they are accepted.
    """
    for path in _managed() if managed is None else managed:
        if found := _answers([path]):
            return found[-1]
    files = [config / "settings.json"]
    if project:
        files += [Path(project) / ".claude" / name for name in ("settings.json", "settings.local.json")]
    found = _answers(files)
    return max(found, key=lambda one: ANSWERS.index(one.answer)) if found else Inbound("accept")


def _answers(files: Iterable[Path]) -> list[Inbound]:
    found = []
    for path in files:
        said = _settings(path)
        if "crossSessionInbound" in said:
            value = said["crossSessionInbound"]
            found.append(Inbound(value if value in ANSWERS else "hold", str(path)))
    return found


def _settings(path: Path) -> Mapping[str, Any]:
    """A settings file as far as it can be read; a broken one says nothing, for the client drops it too."""
    try:
        with open(path, "rb") as file:
            said = json.loads(file.read(SETTINGS_MAX).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _managed() -> list[Path]:
    return managed_settings(managed_folder())[::-1]
