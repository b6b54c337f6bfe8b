"""Another session's conversation, read from its transcript: turns, a search over them, one of them in pieces.

Turns are what was said: prompts, messages from outside, the model's words. Calls of tools, their results, what the
client adds by itself and what subagents said are left out. Secrets are redacted unless the caller asks for raw text,
which only the session's owner may allow; whether anybody may read at all is decided elsewhere.

Must not know the bus nor who asks.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.redact import redact
from bus.errors import Code, Refused

PAGE_CHARS = 8000
LINE_CHARS = 240  # of a turn in a listing, of the context of a hit
QUERY_MAX = 300
REGEX_S = 5.0
FILE_LINE_MAX = 64 * 1024 * 1024

_REMINDER = re.compile(r"<system-reminder>[\s\S]*?</system-reminder>\s*")
_ECHO = re.compile(r"^<(?:local-command-|bash-|command-name>|command-message>|user-memory-input>)")


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said. `n` counts from 1; `role` is user, peer or assistant; `time` as the client wrote it."""

    n: int
    role: str
    time: str
    text: str


@dataclass(frozen=True, slots=True)
class Page:
    """A part of the turns, oldest first. `before` asks for the part before it; 0 when there is none."""

    turns: tuple[Turn, ...]
    total: int
    before: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A place where a search found something: the turn, the offset in its text, and the text around it."""

    n: int
    role: str
    time: str
    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class Hits:
    """What was found, the newest first. `before` continues the search; 0 when all was looked at."""

    hits: tuple[Hit, ...]
    before: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A turn's text from `offset` on. `next` is the offset of what was cut; 0 when nothing was."""

    turn: Turn
    offset: int
    next: int
    total: int


def read(path: Path, raw: bool = False) -> list[Turn]:
    """All turns of a transcript. What several records of the model say between two prompts is one turn.

    Refused when the file cannot be read. Lines that are no records are passed over.
    """
    said: list[tuple[str, str, list[str]]] = []
    try:
        with open(path, "rb") as file:
            for record in _records(file):
                told = _told(record)
                if told is None:
                    continue
                role, text = told
                if said and role == "assistant" == said[-1][0]:
                    said[-1][2].append(text)
                else:
                    said.append((role, str(record.get("timestamp", "")), [text]))
    except OSError as error:
        raise Refused(Code.NOT_FOUND, f"that transcript cannot be read: {error.strerror} (does it exist?)") from error
    joined = ((role, time, "\n\n".join(texts)) for role, time, texts in said)
    # Redacted as a whole: a key may begin in one record and end in the next.
    return [Turn(n, role, time, text if raw else redact(text)) for n, (role, time, text) in enumerate(joined, 1)]


def page(turns: Sequence[Turn], before: int = 0, limit: int = 20, chars: int = PAGE_CHARS) -> Page:
    """The last `limit` turns before number `before` (0: the newest), long ones cut to a line, within `chars`."""
    end = len(turns) if before <= 0 else min(before - 1, len(turns))
    taken: list[Turn] = []
    room = chars
    for turn in reversed(turns[:end]):
        short = Turn(turn.n, turn.role, turn.time, _short(turn.text))
        room -= len(short.text)
        if len(taken) == max(limit, 1) or (taken and room < 0):
            break
        taken.append(short)
    taken.reverse()
    first = taken[0].n if taken else 0
    return Page(tuple(taken), len(turns), first if first > 1 else 0)


def turn(turns: Sequence[Turn], n: int, offset: int = 0, chars: int = PAGE_CHARS) -> Piece:
    """One turn, from `offset` on, at most `chars` of it. Refused for one that is not there."""
    if not 1 <= n <= len(turns):
        raise Refused(Code.NOT_FOUND, f"there is no turn {n} (there are {len(turns)})")
    whole = turns[n - 1]
    offset = min(max(offset, 0), len(whole.text))
    end = min(offset + max(chars, 1), len(whole.text))
    part = Turn(n, whole.role, whole.time, whole.text[offset:end])
    return Piece(part, offset, end if end < len(whole.text) else 0, len(whole.text))


def search(
    turns: Sequence[Turn],
    query: str,
    regex: bool = False,
    before: int = 0,
    limit: int = 20,
    context: int = LINE_CHARS,
) -> Hits:
    """Where the text (any case) or the expression occurs, once a turn, the newest first; `before` as in Hits.

    Refused for an empty, too long or wrong expression, and for one that takes too long.
    """
    if not query or len(query) > QUERY_MAX:
        raise Refused(Code.INVALID, f"what to look for must have 1 to {QUERY_MAX} characters")
    end = len(turns) if before <= 0 else min(before - 1, len(turns))
    searched = list(reversed(turns[:end]))
    limit = max(limit, 1)
    found = _matches(query, [t.text for t in searched], limit) if regex else _finds(query, searched, limit)
    hits = []
    for index, start, stop in found:
        hit = searched[index]
        around = max(0, (context - (stop - start)) // 2)
        left, right = max(0, start - around), min(len(hit.text), start + max(context, 1), stop + around)
        text = ("…" if left else "") + hit.text[left:right] + ("…" if right < len(hit.text) else "")
        hits.append(Hit(hit.n, hit.role, hit.time, start, text))
    more = len(hits) == limit and hits[-1].n > 1
    return Hits(tuple(hits), hits[-1].n if more else 0)


def _finds(query: str, turns: Sequence[Turn], limit: int) -> list[tuple[int, int, int]]:
    wanted = re.compile(re.escape(query), re.IGNORECASE)
    found = []
    for index, one in enumerate(turns):
        match = wanted.search(one.text)
        if match:
            found.append((index, match.start(), match.end()))
            if len(found) == limit:
                break
    return found


# In a process of its own: an expression can take for ever, and nothing in Python stops it.
_CHILD = """
import json, re, sys
query, texts, limit = json.load(sys.stdin)
wanted = re.compile(query, re.IGNORECASE | re.MULTILINE)
found = []
for index, text in enumerate(texts):
    match = wanted.search(text)
    if match:
        found.append([index, match.start(), match.end()])
        if len(found) == limit:
            break
print(json.dumps(found))
"""


def _matches(query: str, texts: list[str], limit: int) -> list[tuple[int, int, int]]:
    try:
        re.compile(query, re.IGNORECASE | re.MULTILINE)
    except (re.error, OverflowError, RecursionError) as error:
        raise Refused(Code.INVALID, f"not a regular expression: {error} (search for plain text instead?)") from error
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=json.dumps([query, texts, limit]).encode("ascii"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=REGEX_S,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise Refused(Code.INVALID, "that expression takes too long (make it simpler, or search for text)") from error
    except (OSError, subprocess.CalledProcessError) as error:
        raise Refused(Code.BUSY, "the search did not run (search for plain text instead)") from error
    return [(index, start, stop) for index, start, stop in json.loads(done.stdout)]


def _records(file: Any) -> Iterator[dict[str, Any]]:
    while line := file.readline(FILE_LINE_MAX):
        # What is only about requests and tools is most of the file.
        if b'"user"' not in line and b'"assistant"' not in line and b'"queued_command"' not in line:
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield record


def _told(record: dict[str, Any]) -> tuple[str, str] | None:
    """Who said what in this record; None when it is no part of the conversation."""
    kind = record.get("type")
    if record.get("isSidechain") is True:
        return None
    if kind == "attachment":
        return _queued(record.get("attachment"))
    message = record.get("message")
    if kind not in ("user", "assistant") or not isinstance(message, dict):
        return None
    text = _text(message.get("content"))
    if kind == "assistant":
        return ("assistant", text) if text else None
    origin = record.get("origin")
    outside = _outside(origin)
    if isinstance(origin, dict) and origin.get("kind") == "task-notification":
        return None
    if record.get("isCompactSummary") is True or (record.get("isMeta") is True and not outside):
        return None
    text = _REMINDER.sub("", text).strip()
    if not text or _ECHO.match(text):
        return None
    return ("peer" if outside else "user"), text


def _queued(attachment: object) -> tuple[str, str] | None:
    """A prompt or message that came in the middle of a turn."""
    if not isinstance(attachment, dict) or attachment.get("type") != "queued_command":
        return None
    if attachment.get("commandMode", "prompt") != "prompt":
        return None
    text = _text(attachment.get("prompt")).strip()
    return ("peer" if _outside(attachment.get("origin")) else "user", text) if text else None


def _outside(origin: object) -> bool:
    return isinstance(origin, dict) and origin.get("kind") in ("peer", "channel")


def _text(content: object) -> str:
    if isinstance(content, str):
        return content.strip()
    if not isinstance(content, list):
        return ""
    parts = [b.get("text") for b in content if isinstance(b, dict) and b.get("type") == "text"]
    return "\n\n".join(part.strip() for part in parts if isinstance(part, str) and part.strip())


def _short(text: str) -> str:
    one = " ".join(text.split())
    return one if len(one) <= LINE_CHARS else f"{one[:LINE_CHARS]}… ({len(text)} characters)"
