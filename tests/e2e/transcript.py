"""The client's transcript: one JSON record a line, and the proof in it that the model was sent a text.

The proof has three links: the exact content of a message, an `api-request` whose `tail` lists the hash of
that content, and an `assistant` record that answers that request. The content is in an `api-request-blob`,
but only where the transcript had no record with it at that moment: a message that stands alone in its turn
(a prompt, a tool's result, a peer's message that woke an idle session) is mostly in its `user` record, and
only its hash is in the tail. That record comes before the `api-request` or, in a race inside the client,
after it. This module must not know how the client is started; the records are the client's own and not
documented as stable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .wait import DEADLINE, until

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Proof:
    """The three records that together prove that a text was in a request that was answered."""

    content: Record  # of type api-request-blob, or user
    request: Record
    answer: Record


class Transcript:
    """Reads the file anew at each call; it may not exist yet."""

    def __init__(self, find: Callable[[], Path | None]) -> None:
        self._find = find

    @property
    def path(self) -> Path | None:
        return self._find()

    def records(self, kind: str = "") -> list[Record]:
        """All whole lines; the last one may still be in writing and is then left out."""
        path = self._find()
        if path is None:
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        found = [json.loads(line) for line in lines if line]
        return [record for record in found if not kind or record.get("type") == kind]

    def wait(self, fits: Callable[[Record], bool], deadline: float = DEADLINE) -> Record:
        """The first record that fits."""
        return until(
            lambda: next((record for record in self.records() if fits(record)), None),
            f"a record in {self._find()}",
            deadline,
        )

    def proof(self, words: str) -> Proof | None:
        """The chain for the first message that contains `words`, if it is whole."""
        return prove(self.records(), words)

    def wait_proof(self, words: str, deadline: float = DEADLINE) -> Proof:
        return until(lambda: self.proof(words), f"proof that the model was sent {words!r}", deadline)


def digest(message: Record) -> str:
    """The hash by which `tail` names a message: SHA-256 of its compact JSON with sorted keys.

    Plain text counts as one text block. The blobs are stored without marks for the cache already.
    """
    content = message["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    plain = {**message, "content": blocks}
    return hashlib.sha256(
        json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    ).hexdigest()


def prove(records: list[Record], words: str) -> Proof | None:
    """See the head of this file. Answers of an error of the API (no `requestRef`) prove nothing."""
    answers = {str(r["requestRef"]): r for r in records if r.get("type") == "assistant" and r.get("requestRef")}
    requests = [r for r in records if r.get("type") == "api-request" and str(r["id"]) in answers]
    for record in records:
        if record.get("type") == "api-request-blob":
            name = str(record["hash"])
        elif record.get("type") == "user":
            name = digest(record["message"])
        else:
            continue
        if words not in json.dumps(record["message"], ensure_ascii=False):
            continue
        for request in requests:
            if name in request["tail"]:
                return Proof(record, request, answers[str(request["id"])])
    return None
