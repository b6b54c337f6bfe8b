"""Proof from the client's own transcript: what became of the texts we are watching for.

The transcript is one JSON record a line. That a text was in a request to the model is proven by three records: the
content of a message that holds it, an `api-request` that lists the hash of that message, and an `assistant`
record that answers this request. The content is in an `api-request-blob`, or, where the message stands alone in its
turn, in its `user` record; the records come in any order. The results of calls side by side have a `user` record each
and are one message of the request. A client that keeps no such records of its requests proves less: that the model
has answered since the text was taken for a turn. That an entry left the client's queue proves nothing, since that
record does not say which one. The records of a conversation name the one before them; a prompt that does not follow
ours begins another branch, from which the person has taken our text out.

`Parser` is fed with lines and touches nothing; `Follower` reads a growing file for it. Must not know messages, the
ledger, nor how a text got there. The records are the client's own, and not documented as stable.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

Record = dict[str, Any]
_REF = re.compile(rb'"requestRef"\s*:\s*"([^"]{1,200})"')

KEPT = 512  # requests and answers remembered; a proof needs those around its content
LINE_MAX = 64 * 1024 * 1024  # octets; a longer line is passed over
CHUNK = 1024 * 1024
_LINE = "line"  # no record follows the input line, into which the person takes what is queued: the next prompt tells
TURN_MAX = 8 * CHUNK  # read at one poll, so that a loop is not held up
BRANCH_MAX = 20_000  # records that follow a text and are remembered for it
GROUP_MAX = 64  # results of calls that one request may have in one message
GROUP_OCTETS = 16 * CHUNK
GRACE_MS = 60_000  # for how long a left file is looked at again: its last turn may still be running


class Seen(IntEnum):
    """What the transcript says of a text; a higher one is never taken back by a lower one."""

    NOTHING = 0
    DROPPED = 1  # the client dropped a message, and this text was not queued until then
    HELD = 2  # the client waits for its user; it may still be let in
    ENQUEUED = 3  # it stands in the client's queue
    TAKEN = 4  # it was taken for a turn; the model may not have been asked yet
    LEFT = 5  # the conversation went on from before it, so no later request holds it
    ANSWERED = 6  # the model has answered since, as far as a transcript without requests can say; weak proof
    INJECTED = 7  # it was in a request that was answered; strong proof


@dataclass(slots=True)
class Watch:
    """A text that is looked for, by words of it that nothing else holds; `key` is the caller's name for it.

    `native` says that it was written to the inbox: only such a text can be dropped, held or queued there. One that
    was `typed` can be queued as well, and is taken for a turn as a prompt.
    """

    key: str
    words: str
    native: bool = False
    typed: bool = False
    seen: Seen = Seen.NOTHING
    hashes: set[str] = field(default_factory=set)
    branch: set[str] = field(default_factory=set)  # ids of the record that holds it and of those that follow it
    raw: bytes = field(init=False)  # the words as they stand in a line; one without them holds no content of ours

    def __post_init__(self) -> None:
        self.raw = json.dumps(self.words, ensure_ascii=False)[1:-1].encode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class _Request:
    """The messages of a request, by their hashes: the first `keep` of the request `base`, then `tail`. The retry of
    one that failed has the same messages as that, and an empty tail.
    """

    tail: tuple[str, ...]
    base: str
    keep: int

    def place(self, hashes: set[str], before: int | None) -> int | None:
        """Where the first message with one of these hashes stands; `before`: where it stood in `base`."""
        if before is not None and before < self.keep:
            return before
        return next((self.keep + at for at, one in enumerate(self.tail) if one in hashes), None)


class Parser:
    """Feed it lines in the order of the file; ask `seen`, or take the changes."""

    def __init__(self) -> None:
        self._watches: dict[str, Watch] = {}
        self._requests: OrderedDict[str, _Request] = OrderedDict()
        self._answered: OrderedDict[str, None] = OrderedDict()
        self._spoken: list[bytes] = []  # records of what the model said last
        self._results: list[bytes] = []  # records of the results since the model's last message but one
        self._ref = b""  # the request that message answers
        self._answer = ""  # the model's last message, where requests are not recorded

    def watch(self, key: str, words: str, native: bool = False, typed: bool = False) -> None:
        """Look for `words` from now on, before the attempt. Nobody may be able to write them without having seen."""
        if not words:
            raise ValueError("nothing to look for")
        self._watches[key] = Watch(key, words, native, typed)

    def resume(self, other: Parser, key: str) -> None:
        """Go on watching what `other` has watched in an earlier part of this file."""
        watch = other._watches.get(key)
        if watch is None:
            return
        self._watches[key] = watch
        for ident, request in other._requests.items():
            _keep(self._requests, ident, request)
        for ident in other._answered:
            _keep(self._answered, ident, None)
        self._answer = self._answer or other._answer
        self._spoken, self._results, self._ref = list(other._spoken), list(other._results), other._ref

    def unwatch(self, key: str) -> None:
        """Its fate is settled."""
        self._watches.pop(key, None)

    def seen(self, key: str) -> Seen:
        """What is known so far."""
        watch = self._watches.get(key)
        return watch.seen if watch else Seen.NOTHING

    def recorded(self, key: str) -> bool:
        """Whether a message that holds the text is in the transcript, be it in a request yet or not."""
        watch = self._watches.get(key)
        return watch is not None and bool(watch.hashes)

    def feed(self, lines: Iterable[bytes]) -> dict[str, Seen]:
        """Read whole lines; what changed for whom. Lines that are no records are passed over."""
        before = {key: watch.seen for key, watch in self._watches.items()}
        for line in lines:
            self._gather(line)
            if self._matters(line):
                record = _record(line)
                if record is not None:
                    self._read(record, line)
        return {key: w.seen for key, w in self._watches.items() if w.seen != before.get(key, Seen.NOTHING)}

    def _gather(self, line: bytes) -> None:
        """Keep the records of results until the model speaks again; they are parsed only where one of ours is among
        them. What the model says in one message has several records, between which the first results may come.
        """
        if b'"assistant"' in line:
            _append(self._spoken, line)
        if b'"tool_result"' in line:
            _append(self._results, line)
        elif (found := _REF.search(line)) is not None and found[1] != self._ref:
            self._ref = found[1]
            self._results.clear()

    def _together(self) -> None:
        """The results so far as the one message that a request may have of them."""
        if len(self._results) < 2 or not any(w.raw in x for w in self._watches.values() for x in self._results):
            return
        blocks: list[Any] = []
        for record in map(_record, self._results):
            message = record.get("message") if record is not None and record.get("type") == "user" else None
            if isinstance(message, dict) and isinstance(message.get("content"), list):
                blocks += message["content"]
        self._content({"role": "user", "content": blocks}, "")

    def _matters(self, line: bytes) -> bool:
        # A session writes many megabytes that are not parsed for this; the order of keys is not relied upon.
        if b'"assistant"' in line and b'"requestRef"' not in line:
            return True  # which answer was the last one before ours was taken
        if b'"parentUuid"' in line and any(watch.branch for watch in self._watches.values()):
            return True
        return bool(self._watches) and (
            b'"api-request"' in line
            or b'"requestRef"' in line
            or b'"queue-operation"' in line
            or b'"informational"' in line
            or b'"tool_result"' in line
            or any(watch.raw in line for watch in self._watches.values())
        )

    def _read(self, record: Record, line: bytes) -> None:
        kind = record.get("type")
        self._grow(record, line)
        if kind == "api-request-blob" and isinstance(record.get("hash"), str):
            self._content(record.get("message"), record["hash"])
        elif kind == "user":
            self._content(record.get("message"), "")
            self._prompted(record)
            self._together()
        elif kind == "api-request":
            tail = record.get("tail")
            if isinstance(tail, list) and isinstance(record.get("id"), str):
                base, kept = record.get("base"), record.get("keep")
                _keep(
                    self._requests,
                    record["id"],
                    _Request(
                        tuple(x if isinstance(x, str) else "" for x in tail),
                        base if isinstance(base, str) else "",
                        kept if isinstance(kept, int) else 0,
                    ),
                )
                self._prove()
        elif kind == "assistant" and isinstance(record.get("requestRef"), str):
            _keep(self._answered, record["requestRef"], None)
            self._prove()
        elif kind == "assistant":
            self._said(record)
        elif kind == "queue-operation":
            self._queued(record)
        elif kind == "system" and record.get("subtype") == "informational":
            self._told(str(record.get("content", "")))

    def _grow(self, record: Record, line: bytes) -> None:
        """Follow the conversation from the record that holds a text. Results of calls side by side follow a record
        each, and the next record only one of them: what follows their calls counts as following them.
        """
        ident = record.get("uuid")
        if not isinstance(ident, str) or record.get("isSidechain"):
            return
        said = record.get("type") == "assistant"  # by the model, which may quote it
        holding = [] if said else [watch for watch in self._watches.values() if watch.raw in line]
        before = record.get("parentUuid")
        result = _is_result(record.get("message"))
        for watch in holding:
            watch.branch = {ident} | (self._calls(before) if result and isinstance(before, str) else set())
        for watch in [w for w in self._watches.values() if w.branch and w not in holding]:
            if watch.branch == {_LINE} and record.get("promptSource") != "typed":
                continue  # it says nothing of the line
            if before in watch.branch:
                watch.branch.add(ident)
                if len(watch.branch) > BRANCH_MAX:
                    watch.branch.clear()  # so long a turn is not followed any more
            elif record.get("type") == "user" and not result:
                self._raise([watch.key], Seen.LEFT)

    def _calls(self, call: str) -> set[str]:
        """The records of the model's calls of this turn, of which `call` is one, and of their results so far."""
        links: dict[str, Any] = {}
        for record in map(_record, [*self._spoken, *self._results]):
            if record is not None and isinstance(record.get("uuid"), str):
                links[record["uuid"]] = record.get("parentUuid")
        first = call
        for _ in links:
            if links.get(first) not in links:
                break
            first = links[first]
        found, size = {call, first}, 0
        while len(found) > size:
            size = len(found)
            found |= {ident for ident, before in links.items() if before in found}
        return found

    def _content(self, message: object, name: str) -> None:
        """A message that may be listed by a request. What the model itself said is no proof of what it was told."""
        if not isinstance(message, dict) or message.get("role") == "assistant":
            return
        texts = list(_texts(message.get("content")))
        found = [watch for watch in self._watches.values() if _holds(texts, watch)]
        if found:
            hashed = name or digest(message)
            for watch in found:
                watch.hashes.add(hashed)
            self._prove()

    def _prompted(self, record: Record) -> None:
        """A turn begins with this text. What the result of a tool quotes is no prompt."""
        message = record.get("message")
        texts = list(_texts(message.get("content"))) if isinstance(message, dict) and not _is_result(message) else []
        typed = record.get("promptSource") == "typed"
        found = [w.key for w in self._watches.values() if (w.native or (w.typed and typed)) and _holds(texts, w)]
        self._raise(found, Seen.TAKEN)

    def _said(self, record: Record) -> None:
        """The model spoke, in a transcript that does not say what it was asked. A message of it has several records;
        only one that begins after a text was taken can answer it, and an error of the client's is none.
        """
        message = record.get("message")
        if not isinstance(message, dict) or record.get("isApiErrorMessage") or record.get("isSidechain"):
            return
        ident = message.get("id")
        if not isinstance(ident, str) or not ident or message.get("model") == "<synthetic>":
            return
        if ident[:200] == self._answer:
            return
        self._answer = ident[:200]
        self._raise([w.key for w in self._watches.values() if w.seen == Seen.TAKEN], Seen.ANSWERED)

    def _prove(self) -> None:
        wanted = [watch for watch in self._watches.values() if watch.hashes and watch.seen < Seen.INJECTED]
        if not wanted:
            return
        for watch in wanted:
            places: dict[str, int] = {}  # request -> where the text stands in it
            for ident, request in self._requests.items():
                place = request.place(watch.hashes, places.get(request.base))
                if place is not None:
                    places[ident] = place
            if places.keys() & self._answered.keys():
                watch.seen = Seen.INJECTED

    def _queued(self, record: Record) -> None:
        operation = record.get("operation")
        texts = list(_texts(record.get("content")))
        ours = {w.key for w in self._watches.values() if (w.native or w.typed) and _holds(texts, w)}
        if operation == "enqueue":
            self._raise(ours, Seen.ENQUEUED)
            for key in ours:
                self._watches[key].branch.clear()
        elif operation == "remove" and record.get("reason") == "absorbed_mid_turn":
            self._raise(ours, Seen.TAKEN)
        elif operation == "popAll":
            for key in ours:
                self._watches[key].branch = {_LINE}

    def _told(self, text: str) -> None:
        if text.startswith("Held peer message"):
            held = {w.key for w in self._watches.values() if w.native and w.words in text}
            # The preview is short: what is not named and not queued is held as well.
            self._raise(held or self._unqueued(), Seen.HELD)
        elif text.startswith("Dropped a peer message"):
            # It names no message either, and many drops may share one record.
            self._raise(self._unqueued(), Seen.DROPPED)

    def _unqueued(self) -> set[str]:
        return {w.key for w in self._watches.values() if w.native and w.seen == Seen.NOTHING}

    def _raise(self, keys: Iterable[str], seen: Seen) -> None:
        for key in keys:
            watch = self._watches.get(key)
            if watch is not None and watch.seen < seen:
                watch.seen = seen


class Follower:
    """Reads what is added to a session's transcript; `poll` it now and then, it never waits.

    It begins at the end of the first file, and at the start of every file the session goes on in. The file that was
    left is read for a while longer. `now` is ms of any steady clock.
    """

    def __init__(self) -> None:
        self._current: Tail | None = None
        self._left: list[tuple[int, Tail]] = []
        self._none_yet = False

    @property
    def path(self) -> Path | None:
        """The file that is followed now."""
        return self._current.path if self._current else None

    def follow(self, now: int, path: Path | None) -> bool:
        """Follow this file from now on; True when that is another one than before.

        None says that the session has no transcript yet: the one that comes is read from its start.
        """
        if path is None:
            self._none_yet = True
            return False
        if self._current is not None and self._current.path == path:
            return False
        if self._current is not None:
            self._left.append((now + GRACE_MS, self._current))
        self._current = Tail(path, 0 if self._none_yet or self._current else _size(path))
        return True

    def go_on(self, tail: Tail) -> None:
        """Follow a file from where it was read to. To be called before `follow`."""
        self._current = tail

    def poll(self, now: int) -> list[bytes]:
        """The whole lines that were added, those of left files first. A file that cannot be read adds none."""
        self._left = [(until, tail) for until, tail in self._left if until > now]
        lines: list[bytes] = []
        for _, tail in self._left:
            lines += tail.read()
        if self._current is not None:
            lines += self._current.read()
        return lines


class Tail:
    """One file and how far it was read."""

    __slots__ = ("_long", "_offset", "_rest", "_which", "path")

    def __init__(self, path: Path, offset: int) -> None:
        self.path = path
        self._offset = offset
        self._which = 0
        self._rest = bytearray()
        self._long = False  # in the middle of a line that is passed over

    def read(self) -> list[bytes]:
        try:
            found = os.stat(self.path)
            if self._which not in (0, found.st_ino) or found.st_size < self._offset:
                self._anew()  # replaced or cut: what it says now counts
            self._which = found.st_ino
            if found.st_size == self._offset:
                return []
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                data = file.read(TURN_MAX)
        except FileNotFoundError:
            self._anew()  # one that comes in its place may have the same number
            return []
        except OSError:
            return []
        self._offset += len(data)
        return self._split(data)

    def _anew(self) -> None:
        self._offset, self._long = 0, False
        self._rest.clear()

    def _split(self, data: bytes) -> list[bytes]:
        *whole, rest = data.split(b"\n")
        lines = []
        for part in whole:
            if not self._long and (self._rest or part):
                lines.append(bytes(self._rest) + part)
            self._long = False
            self._rest.clear()
        if not self._long:
            self._rest += rest
        if len(self._rest) > LINE_MAX:
            self._rest.clear()
            self._long = True
        return lines


def scan(path: Path, wanted: Iterable[str], last: int = 256 * CHUNK) -> tuple[Parser, Tail]:
    """What a transcript says of texts offered in a former life, by the words that are each text's key as well; and
    the file, read to its present end.

    To be called before anything is offered again. Reads the last `last` octets of the file, once. A file that cannot
    be read says nothing.
    """
    parser = Parser()
    for words in wanted:
        parser.watch(words, words, native=True, typed=True)
    tail = Tail(path, max(0, _size(path) - last))
    while True:
        before = tail._offset
        parser.feed(tail.read())
        if tail._offset == before:
            return parser, tail


def digest(message: Record) -> str:
    """The hash by which a `tail` names a message: SHA-256 of its compact JSON with sorted keys.

    A plain string counts as one text block; marks for the cache are left out.
    """
    content = message.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if isinstance(blocks, list):
        blocks = [{k: v for k, v in b.items() if k != "cache_control"} if isinstance(b, dict) else b for b in blocks]
    plain = json.dumps({**message, "content": blocks}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(plain.encode("utf-8", "replace")).hexdigest()


def _append(lines: list[bytes], line: bytes) -> None:
    """Keep one more record of a turn, and no more than there may be."""
    lines.append(line)
    if len(lines) > GROUP_MAX or sum(map(len, lines)) > GROUP_OCTETS:
        del lines[0]


def _is_result(message: object) -> bool:
    """Whether a message holds the result of a tool."""
    content = message.get("content") if isinstance(message, dict) else None
    blocks = content if isinstance(content, list) else []
    return any(isinstance(block, dict) and block.get("type") == "tool_result" for block in blocks)


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _texts(content: object) -> Iterator[str]:
    """What a model reads of a content: text and results of tools, not the inputs of calls."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for block in content:
            if isinstance(block, dict):
                yield from _texts(block.get("text") if block.get("type") == "text" else block.get("content"))


def _holds(texts: Iterable[str], watch: Watch) -> bool:
    return any(watch.words in text for text in texts)


def _keep(kept: OrderedDict[str, Any], key: str, value: object) -> None:
    kept[key] = value
    while len(kept) > KEPT:
        kept.popitem(last=False)


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
