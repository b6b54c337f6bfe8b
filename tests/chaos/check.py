"""What a chaos run must not show, checked from the logs of its workers and the broker's own answers.

The checker reads only what users can see: what senders were told, what recipients showed, and what `why` says. It knows
nothing of the protocol. A restored database excuses only what nobody could know: see `Restore`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SLACK_S = 2.0  # around the moment a copy was made: its files were written a little before
SHOWN = frozenset({"injected", "acked", "answered"})


@dataclass(frozen=True, slots=True)
class Restore:
    """A database replaced by an older copy of itself: whose, when the copy was made, when it was put back (s)."""

    whose: str  # "broker" or a worker's name
    copied: float
    restored: float


@dataclass(slots=True)
class Log:
    """One worker's log."""

    name: str
    path: Path
    lines: list[list[Any]] = field(default_factory=list)
    _read: int = 0

    def read(self) -> list[list[Any]]:
        """All whole lines so far."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read)
                for line in file.read().splitlines(keepends=True):
                    if line.endswith(b"\n"):
                        self._read += len(line)
                        self.lines.append(json.loads(line))
        return self.lines

    def of(self, kind: str) -> list[list[Any]]:
        """The lines of one kind, as [time, …]."""
        return [[line[0], *line[2:]] for line in self.read() if line[1] == kind]


@dataclass(slots=True)
class Findings:
    """Violations, and what else is worth reporting."""

    violations: list[str] = field(default_factory=list)
    accepted: int = 0
    copies: int = 0
    marked: int = 0
    excused: int = 0
    marked_unshown: int = 0


def _excused(restores: Sequence[Restore], sender: str, accepted: float, settled: float | None) -> bool:
    """Whether a message may be lost: it was written only into files that a restore threw away."""
    for restore in restores:
        if accepted > restore.restored:
            continue
        # What was settled by the broker whose work was thrown away is nowhere; anything else its sender still has.
        if restore.whose == "broker" and settled and restore.copied - SLACK_S < settled < restore.restored + SLACK_S:
            return True
        if restore.whose == sender and accepted > restore.copied - SLACK_S:
            return True
    return False


def check(
    senders: Sequence[Log],
    recipients: Sequence[Log],
    restores: Sequence[Restore],
    why: dict[str, dict[str, str]],
    until: float,
) -> Findings:
    """Compare everything. `why` maps a message id to each recipient's status; messages after `until` do not count."""
    found = Findings()
    bad = found.violations
    shown: dict[str, dict[str, int]] = {}
    key_of: dict[str, str] = {}
    for log in recipients:
        seen: dict[str, int] = shown.setdefault(log.name, {})
        lives = 0
        for line in log.read():
            kind = line[1]
            if kind == "start":
                lives += 1
            elif kind == "shown":
                ident, key, repeat = line[2], line[4], line[5]
                key_of[ident] = key
                if ident in seen:
                    if not repeat:
                        bad.append(f"{log.name}: {key} ({ident}) was shown again without a mark")
                    else:
                        found.marked += 1
                elif repeat:
                    found.marked_unshown += 1
                    if lives < 2:
                        bad.append(f"{log.name}: {key} ({ident}) is marked as a repeat, and nothing had crashed")
                seen[ident] = seen.get(ident, 0) + 1
    known: set[str] = set()
    for log in senders:
        settled: dict[str, float] = {}
        for at, ident, _code, copies in log.of("settled"):
            settled.setdefault(ident, at)
            for name, status, code in copies:
                if code not in (200, 202):
                    bad.append(f"{log.name}: {ident} to {name} came to {status} {code}")
        for at, key, ident in log.of("accepted"):
            known.add(ident)
            if at > until:
                continue
            found.accepted += 1
            for recipient in recipients:
                if ident in shown[recipient.name]:
                    found.copies += 1
                elif _excused(restores, log.name, at, settled.get(ident)):
                    found.excused += 1
                else:
                    bad.append(f"{log.name}: {key} ({ident}) was accepted, and {recipient.name} was never shown it")
        failed = {key: text for _, key, text in log.of("failed")}
        for ident, key in key_of.items():
            if key in failed:
                bad.append(f"{log.name}: {key} ({ident}) was shown, and its sender was told: {failed[key]}")
    for ident, copies in why.items():
        for name, status in copies.items():
            was = ident in shown.get(name, {})
            if status in SHOWN and not was:
                bad.append(f"why {ident}: {status} at {name}, who was never shown it")
            if was and status not in SHOWN and not any(r.whose in ("broker", name) for r in restores):
                bad.append(f"why {ident}: {status} at {name}, who was shown it")
    for ident, key in key_of.items():
        if (
            ident in known
            or key.startswith("closing")
            or any(key == k for log in senders for _, k in log.of("trying"))
        ):
            continue
        bad.append(f"{key} ({ident}) was shown, and nobody sent it")
    return found
