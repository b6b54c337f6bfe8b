"""Whether a journal is the one that was written: its chain, its gaps, its outboxes, and the heads agents remember.

Reads one database, beside a running broker or without one, and changes nothing. It finds what was changed, removed,
inserted or cut off after it was written; the texts of messages are not part of the journal. Must not know agents.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bus import database
from bus.errors import StoreError
from bus.journal import START, chain, early_chain
from bus.store_schema import APPLICATION, MIGRATIONS, connect

FAULTS_MAX = 200  # told; beyond them the journal is no journal

_OPS = "SELECT seq, chain, at, ob, q, op, digest, code, reply, who FROM ops ORDER BY seq"
_RUNS = "SELECT first, seq, chain, at, removed FROM checkpoints ORDER BY seq"
_LOST = (
    "SELECT b.id, b.high FROM outboxes b LEFT JOIN ops o ON o.ob = b.id AND o.q = b.high "
    "WHERE b.high > 0 AND o.seq IS NULL"
)
_STRANGE = "SELECT o.seq FROM ops o LEFT JOIN outboxes b ON b.id = o.ob WHERE b.id IS NULL OR o.q > b.high"


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a journal as somebody was told it: `who` remembers it, `chain` in hex."""

    who: str
    store: str
    seq: int
    chain: str


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind` is "changed", "removed", "inserted", "truncated" or "rewritten"; `seq` the operation it shows at."""

    kind: str
    seq: int
    text: str


@dataclass(slots=True)
class Audit:
    """What was looked at, and what is wrong with it. `heads` were compared, `unknown` ones lie in what was pruned,
    `others` are of another database; `unproved` records stand alone after a pruning by an older talkbus.
    """

    store: str = ""
    first: int = 0
    last: int = 0
    chain: str = ""
    records: int = 0
    pruned: int = 0
    heads: int = 0
    unknown: int = 0
    others: int = 0
    unproved: int = 0
    faults: list[Fault] = field(default_factory=list)

    def fault(self, kind: str, seq: int, text: str) -> None:
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(Fault(kind, seq, text))


@dataclass(frozen=True, slots=True)
class Run:
    """Operations that were pruned, as the checkpoint says. `first` is 0 in one of an older talkbus."""

    first: int
    last: int
    chain: bytes
    at: int
    removed: int


def verify(path: Path, heads: Sequence[Head] = ()) -> Audit:
    """Read the whole journal of a database. Collect `heads` before, or one may be newer than what is read here.

    StoreError when it cannot be read, or is no database of ours.
    """
    where = str(path)
    if not path.exists():
        raise StoreError(f"{where} does not exist (name the broker's database, bus.db, or a copy)")
    with database.told(where, "read"):
        db = connect(where, readonly=True)
    try:
        with database.told(where, "read"):
            if database.version(db, where, APPLICATION, len(MIGRATIONS)) < len(MIGRATIONS):
                raise StoreError(f"{where} was written by an older talkbus (start the bus once with this one)")
            db.execute("BEGIN")  # one picture, whatever the broker does meanwhile
            return _audit(db, heads)
    finally:
        db.close()


def _audit(db: sqlite3.Connection, heads: Sequence[Head]) -> Audit:
    meta = dict(db.execute("SELECT name, value FROM meta"))
    told = Audit(store=str(meta["store"]))
    runs = [Run(*row) for row in db.execute(_RUNS)]
    wanted = {head.seq: "" for head in heads if head.store == told.store}
    wanted.update((run.last, run.chain.hex()) for run in runs if run.last in wanted)
    for run in runs:
        told.pruned += run.removed
        if run.at >= int(meta["prune_before"]):
            told.fault("removed", run.last, "a checkpoint covers what no pruning was ordered for")
    _walk(db.execute(_OPS), runs, int(meta["audited"]), told, wanted)
    for ob, high in db.execute(_LOST):
        told.fault("removed", 0, f"outbox {ob[:8]} has done request {high}, of which there is no record")
    for (seq,) in db.execute(_STRANGE):
        told.fault("inserted", seq, "its outbox never did this request")
    _compare(heads, wanted, told)
    return told


def _walk(rows: Iterable[sqlite3.Row], runs: list[Run], audited: int, told: Audit, wanted: dict[int, str]) -> None:
    """Every record follows from the one before, or from the checkpoint in its place."""
    before, link = 0, START
    proved: bytes | None
    for seq, chained, *fields in rows:
        at, ob, q, op, digest, code, reply, who = fields
        proved = link
        if seq != before + 1:
            proved = _across(before + 1, seq, runs, told)
        if any(0 < run.first <= seq <= run.last for run in runs):
            told.fault("inserted", seq, "a checkpoint says that it was pruned")
        if proved is None:
            told.unproved += 1
        else:
            early = seq <= audited
            made = (
                early_chain(proved, seq, at, ob, q, op, digest)
                if early
                else chain(proved, seq, at, ob, q, op, digest, code, reply, who)
            )
            if made != chained:
                told.fault("changed", seq, "it does not follow from the one before: one of them was changed")
        if seq in wanted:
            wanted[seq] = chained.hex()
        told.first = told.first or seq
        told.records += 1
        before, link = seq, chained
    told.last, told.chain = before, link.hex()
    if runs and runs[-1].last >= before:
        told.fault("truncated", before, f"what was pruned reaches to {runs[-1].last}, and nothing stands after it")


def _across(first: int, seq: int, runs: list[Run], told: Audit) -> bytes | None:
    """The chain before `seq`, where first…seq-1 are not there: from the checkpoints that cover them."""
    link: bytes | None = None
    at = first
    for run in _between(first, seq, runs):
        if run.first > at:
            told.fault("removed", at, f"operations {at} to {run.first - 1} are missing")
        at, link = run.last + 1, run.chain
    if at == seq:
        return link
    if not any(run.first == 0 and run.last >= seq for run in runs):  # an older talkbus left such gaps
        told.fault("removed", at, f"operations {at} to {seq - 1} are missing" if at < seq - 1 else f"{at} is missing")
    return None


def _between(first: int, seq: int, runs: list[Run]) -> Iterator[Run]:
    return (run for run in runs if first <= run.last < seq)


def _compare(heads: Sequence[Head], wanted: dict[int, str], told: Audit) -> None:
    """What agents were told must still be there."""
    for head in heads:
        if head.store != told.store:
            told.others += 1
        elif head.seq > told.last:
            told.fault(
                "truncated", told.last, f"{head.who} remembers operation {head.seq}, which is not there any more"
            )
        elif not wanted[head.seq]:
            told.unknown += 1
        else:
            told.heads += 1
            if wanted[head.seq] != head.chain:
                told.fault("rewritten", head.seq, f"{head.who} was told of another history up to here")
