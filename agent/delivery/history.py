"""Another session's conversation, read from its transcript: turns, a search over them, one of them in pieces.

Turns are what was said and done: prompts, messages from outside, the model's words, and each call of a tool with
its result. What the client adds by itself is left out, and so is the conversation inside a subagent: its call, and
what it reported, are a tool's. Secrets are redacted unless the caller asks for raw text, which only the session's
owner may allow; whether anybody may read at all is decided elsewhere.

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

from agent.redact import redact, redact_json
from bus.errors import Code, Refused

PAGE_CHARS = 8000
LINE_CHARS = 240  # of a turn in a listing, of the context of a hit
QUERY_MAX = 300
REGEX_S = 5.0
FILE_LINE_MAX = 16 * 1024 * 1024
TOOL_CHARS = 32_000  # kept of the arguments of a call, and of its result
TOOL_LEAST = 400  # kept of each of the oldest ones, where all together are more than ALL_CHARS
ALL_CHARS = 32_000_000
MARGIN = 24_000  # characters; longer than any secret that is known by its form
ENTRIES_MAX, DEPTH_MAX = 200, 8  # of arguments

_REMINDER = re.compile(r"<system-reminder>[\s\S]*?</system-reminder>\s*")
_ECHO = re.compile(r"^<(?:local-command-|bash-|command-name>|command-message>|user-memory-input>)")


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said, or one call of a tool. `n` counts from 1; `role` is user, peer, assistant or tool; `time`
    as the client wrote it. The text of a call is its name and arguments on one line, its result on those below.
    """

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


@dataclass(slots=True)
class _Said:
    """A turn while the transcript is being read. Of a call `texts` has what was called, `result` what came of it."""

    role: str
    time: str
    texts: list[str]
    result: str | None = None

    def text(self, raw: bool) -> str:
        if self.role == "tool":
            return f"{self.texts[0]}\n{_ARROW} {'(no result)' if self.result is None else self.result}"
        # Redacted as a whole: a key may begin in one record and end in the next.
        joined = "\n\n".join(self.texts)
        return joined if raw else redact(joined)


_ARROW = "→"


class _Reading:
    """The turns so far, the calls that wait for a result, and how much is kept of calls and results in all."""

    def __init__(self, raw: bool) -> None:
        self.said: list[_Said] = []
        self._raw = raw
        self._open: dict[str, _Said] = {}
        self._kept = 0
        self._oldest = 0  # of `said`, the first one that may have to be cut

    def take(self, record: dict[str, Any]) -> None:
        """One record, in the order of the file."""
        time = str(record.get("timestamp", ""))
        message = record.get("message")
        blocks = message.get("content") if isinstance(message, dict) else None
        told = _told(record)
        mine = record.get("type") == "assistant"
        if not isinstance(blocks, list) or record.get("isSidechain") is True:
            if told is not None:
                self._say(*told, time)
            return
        for block in blocks:
            if not isinstance(block, dict):
                continue
            kind = str(block.get("type", ""))
            if mine and kind == "text":
                text = _text([block])
                if text:
                    self._say("assistant", text, time)
            elif mine and kind.endswith("tool_use"):
                self._call(block, time)
            elif kind.endswith("tool_result"):
                self._result(block, time)
        if told is not None and not mine:
            self._say(*told, time)

    def _say(self, role: str, text: str, time: str) -> None:
        if self.said and role == "assistant" == self.said[-1].role:
            self.said[-1].texts.append(text)
        else:
            self.said.append(_Said(role, time, [text]))

    def _call(self, block: dict[str, Any], time: str) -> None:
        name = " ".join(str(block.get("name", "?")).split())[:100]
        one = _Said("tool", time, [f"{name} {_arguments(block.get('input'), self._raw)}"])
        self.said.append(one)
        if isinstance(block.get("id"), str):
            self._open[block["id"]] = one
        self._keep(len(one.texts[0]))

    def _result(self, block: dict[str, Any], time: str) -> None:
        one = self._open.pop(str(block.get("tool_use_id", "")), None)
        if one is None:
            one = _Said("tool", time, ["(a call that is not in this transcript)"])
            self.said.append(one)
        text = _cut(_shown(block.get("content")), TOOL_CHARS, self._raw) or "(empty)"
        one.result = f"error: {text}" if block.get("is_error") is True else text
        self._keep(len(one.result))

    def _keep(self, chars: int) -> None:
        """Cut the oldest calls where all of them would be too much to hold."""
        self._kept += chars
        while self._kept > ALL_CHARS and self._oldest < len(self.said) - 1:
            one = self.said[self._oldest]
            self._oldest += 1
            if one.role == "tool":
                for text in (one.texts[0], one.result or ""):
                    self._kept -= max(len(text) - TOOL_LEAST, 0)
                one.texts[0] = _least(one.texts[0])
                one.result = None if one.result is None else _least(one.result)


def read(path: Path, raw: bool = False) -> list[Turn]:
    """All turns of a transcript. What several records of the model say without a call in between is one turn.

    Refused when the file cannot be read. Lines that are no records are passed over, and of calls and their results at
    most TOOL_CHARS each are kept, whatever their size.
    """
    reading = _Reading(raw)
    try:
        with open(path, "rb") as file:
            for record in _records(file):
                reading.take(record)
    except OSError as error:
        raise Refused(Code.NOT_FOUND, f"that transcript cannot be read: {error.strerror} (does it exist?)") from error
    return [Turn(n, one.role, one.time, one.text(raw)) for n, one in enumerate(reading.said, 1)]


def page(turns: Sequence[Turn], before: int = 0, limit: int = 20, chars: int = PAGE_CHARS) -> Page:
    """The last `limit` turns before number `before` (0: the newest), long ones cut to a line, within `chars`."""
    end = len(turns) if before <= 0 else min(before - 1, len(turns))
    taken: list[Turn] = []
    room = chars
    for turn in reversed(turns[:end]):
        short = Turn(turn.n, turn.role, turn.time, _short(turn))
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


def _arguments(given: object, raw: bool) -> str:
    """The arguments of a call as one line of JSON."""
    budget = [TOOL_CHARS]
    text = json.dumps(_bounded(given, raw, budget, DEPTH_MAX), ensure_ascii=False, separators=(",", ":"))
    return text if raw else redact_json(text)  # what its name makes a secret


def _bounded(value: object, raw: bool, budget: list[int], depth: int) -> object:
    """The same value, with its texts redacted and cut, so that all of it is of `budget` characters or little more."""
    if isinstance(value, str):
        text = _cut(value, max(budget[0], 0), raw)
        budget[0] -= len(text)
        return text
    if depth == 0 or budget[0] <= 0:
        return "…"
    budget[0] -= 4
    if isinstance(value, dict | list):
        if isinstance(value, list):
            return [_bounded(entry, raw, budget, depth - 1) for entry in value[:ENTRIES_MAX]]
        some = list(value.items())[:ENTRIES_MAX]
        return {_cut(str(key), 200, raw): _bounded(entry, raw, budget, depth - 1) for key, entry in some}
    return value


def _shown(content: object) -> str:
    """A result as text; what is no text is named with its size."""
    if not isinstance(content, list):
        return content.strip() if isinstance(content, str) else ""
    parts = []
    for block in content[:ENTRIES_MAX]:
        if isinstance(block, dict):
            text = block.get("text")
            parts.append(text.strip() if isinstance(text, str) else _named(block))
        elif isinstance(block, str):
            parts.append(block.strip())
    return "\n".join(part for part in parts if part)


def _named(block: dict[str, Any]) -> str:
    """An image, a document or the like."""
    source = block.get("source")
    data = source.get("data") if isinstance(source, dict) else None
    kind = " ".join(str(block.get("type", "?")).split())[:40]
    media = str(source.get("media_type", ""))[:40] if isinstance(source, dict) else ""
    size = f", {len(data)} characters of base64" if isinstance(data, str) else ""
    return f"[{' '.join(part for part in (kind, media) if part)}{size}]"


def _cut(text: str, keep: int, raw: bool) -> str:
    """At most `keep` characters of a text and a word on the rest. Redacted first, so that no half of a secret is
    left: of a text that is too large for that, the end is dropped in which one may begin that goes on beyond.
    """
    part = text if len(text) <= keep + MARGIN else text[: keep + MARGIN]
    whole = len(part) == len(text)
    if not raw:
        if text[:200].lstrip()[:1] in ("{", "[", '"'):
            # A text within JSON is escaped; the last one has to end, for it to be read.
            part = redact_json(part if whole else part.rstrip("\\") + '"')
        part = redact(part)
    end = keep if whole else max(min(keep, len(part) - MARGIN), 0)
    if whole and len(part) <= keep:
        return part
    return f"{part[:end]}… ({len(text)} characters)"


def _least(text: str) -> str:
    return text if len(text) <= TOOL_LEAST else f"{text[:TOOL_LEAST]}…"


def _short(turn: Turn) -> str:
    """A turn on one line; of a call a part of what was called, and of what came of it."""
    if turn.role == "tool":
        call, _, result = turn.text.partition("\n")
        return f"{_line(call, LINE_CHARS // 2)} {_line(result, LINE_CHARS // 2)}"
    return _line(turn.text, LINE_CHARS)


def _line(text: str, most: int) -> str:
    one = " ".join(text[: 8 * most].split())
    return one if len(one) <= most and len(text) <= 8 * most else f"{one[:most]}… ({len(text)} characters)"
