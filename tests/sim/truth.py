"""The checker: what really happened, kept apart from the code under test.

It sees what was written to the databases, what the broker was given, what applications were told and what was shown,
and says when that breaks a promise of PROTOCOL.md. It asks neither the broker nor a link what they believe, but for
the last look after draining.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from agent.book import AddRow, PutShown
from agent.book import Write as BookWrite
from agent.effects import Finished, News, Parked, Settled
from bus import wire
from bus.effects import (
    AddDelivery,
    AddMessage,
    AddOp,
    Batch,
    DropState,
    Event,
    Move,
    MoveById,
    PutMailbox,
    PutState,
    Release,
    Send,
)
from tests.pair import Conn, Hub, Seat, Watch, ledger_line
from tests.sim.person import Word

if TYPE_CHECKING:
    from tests.sim.app import AppSeat


class Violation(AssertionError):
    """A promise was broken. `kind` is one of the words the mutants are told apart by."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


ACKED = "acked"  # the proof that an acknowledgement is


def mark(ident: str, body: bytes) -> str:
    """What the checker calls a request or a message. Ids are used again by others here; no two texts are equal."""
    return f"{ident}:{blake2b(body, digest_size=4).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Row:
    """A request as its application made it, and where: the seat with the life of its database. `id` is its mark."""

    id: str
    source: tuple[str, int]
    row: int
    op: str
    args: dict[str, Any]
    body: bytes


@dataclass(frozen=True, slots=True)
class Applied:
    """What the journal says of a row."""

    code: int
    result: dict[str, Any]
    text: str


@dataclass(slots=True)
class Copy:
    """One delivery in one mailbox, from the writes; steps that are told by id as the disk has them then."""

    msg: str
    sender: str
    mark: str
    expires: int
    to: str = ""  # what its mailbox was called
    steps: dict[str, int] = field(default_factory=dict)
    settled: str = ""
    held: str = ""  # why
    wakes: bool = True
    asker: str = ""  # whose question it is, "" for none


@dataclass(slots=True)
class History:
    """What the present database of the broker has gone through. A restored one goes back to its own."""

    applied: dict[str, Applied] = field(default_factory=dict)
    copies: dict[tuple[str, int], Copy] = field(default_factory=dict)
    state: dict[str, tuple[int, int]] = field(default_factory=dict)  # key -> version, expires
    terms: dict[str, tuple[int, str]] = field(default_factory=dict)  # mailbox -> term, inst
    word: Word = field(default_factory=Word)
    asked: set[tuple[str, str, str]] = field(default_factory=set)  # (mailbox, question, mailbox that got it)


@dataclass(slots=True)
class Sight:
    """One message before the eyes of one ledger's reader."""

    times: int = 0
    proven: bool = False  # the proof is on the agent's disk
    fids: set[str] = field(default_factory=set)  # the mailboxes it was sent from when it was shown
    doubt: bool = False  # the agent cannot know whether it was seen


class Truth(Watch):
    """Watches a bench. `only` names the kinds that count (for mutants); all of them when it is empty."""

    def __init__(self, only: Sequence[str] = (), trace: list[str] | None = None) -> None:
        self.only = frozenset(only)
        self.trace = trace
        self.history = History()
        self.rows: dict[str, Row] = {}
        self.forgotten: dict[str, list[Applied]] = {}
        self.told: dict[str, tuple[int, dict[str, Any]]] = {}
        self.sights: dict[tuple[int, str], Sight] = {}
        self.offered: dict[tuple[int, str, tuple[str, int], bool], int] = {}
        self.read: set[tuple[str, str, str]] = set()  # reader, mailbox, mark: whatever became of the database
        self.alike: dict[
            tuple[int, str], set[str]
        ] = {}  # ledger, host and id -> the messages of that name it was offered
        self.here: set[str] = set()  # mailboxes whose holder is connected, as the broker has told everybody
        self.holders: dict[str, set[str]] = {}  # mailbox -> whoever was welcomed to it
        self.granted: dict[str, set[int]] = {}  # mailbox -> the terms in which it was held
        self.aside: set[str] = set()  # mailboxes that were set aside by a takeover
        self.settling: dict[int, dict[str, None]] = {}  # ledger -> marks of what was shown from a query
        self.letters: dict[str, wire.Msg] = {}  # the checker's name -> the message
        self.meant: dict[str, tuple[str, str]] = {}  # mark of a request -> mailbox and mark of what it is about
        self.excused: set[int] = set()  # queries whose frames were dropped one by one
        self._fed: list[tuple[Conn, Any]] = []
        self._was: dict[str, tuple[int, int]] = {}
        self._numbers: dict[tuple[bytes, int], str] = {}
        self.owners: dict[str, str] = {}  # mailbox -> key
        self.held_once: set[str] = set()
        self.put: set[tuple[str, str, str]] = set()  # as History.asked, whatever became of the database
        self.hub: Hub | None = None
        self.restored = False
        self.dropped_frames = 0
        self._events = -1  # number of the last one that was published; -1: a gap is in order

    def fail(self, kind: str, text: str) -> None:
        if not self.only or kind in self.only:
            raise Violation(kind, text)

    def note(self, text: str) -> None:
        if self.trace is not None:
            now = self.hub.bench.now if self.hub else 0
            self.trace.append(f"{now % 10_000_000 / 1000:9.3f} {text}")

    # -- frames ----------------------------------------------------------------------------------------------------

    def up(self, seat: Seat, conn: Conn, command: Any) -> None:
        if self.trace is not None:
            self.note(f"  {seat.label} > {_brief(command)}")
        if conn.hello is None and not isinstance(command, wire.Hello) and not any(conn.up):
            self.fail("before hello", f"{seat.label} says {command} on a new connection")
        if isinstance(command, wire.Ack) and command.as_ == "injected":
            self._ack_on_disk(seat, conn, command)
            self._ack_overtakes(seat, conn, command)

    def _ack_overtakes(self, seat: Seat, conn: Conn, ack: wire.Ack) -> None:
        """What was offered is told first, unless the window is full; the broker would tell the steps the other way."""
        if seat.link.book.unsettled >= wire.OPEN_REQUESTS:
            return
        late = {key for status, _, _, key in seat.link.inbox.moves if status == "offered"}
        for first, last in ack.ranges:
            for n in range(first, last + 1):
                if self._numbers.get((conn.route, n)) in late:
                    self.fail("ack overtakes", f"{seat.label} acknowledges {n}, and has not told that it was offered")

    def _ack_on_disk(self, seat: Seat, conn: Conn, ack: wire.Ack) -> None:
        for first, last in ack.ranges:
            for n in range(first, last + 1):
                key = self._numbers.get((conn.route, n))
                line = ledger_line(seat.outbox, key) if key else None
                if key and (line is None or line.state != "shown"):
                    self.fail("ack before disk", f"{seat.label} acknowledges {n}, its ledger has {line} for {key}")

    def fed(self, conn: Conn, command: Any) -> None:
        if self.trace is not None:
            self.note(f"  broker < {conn.seat.label} {_brief(command)}")
        self._fed.append((conn, command))

    def down(self, conn: Conn, command: Any) -> None:
        if self.trace is not None:
            self.note(f"  broker > {conn.seat.label} {_brief(command)}")
        if isinstance(command, wire.Msg):
            self._numbers[conn.route, command.n] = f"{command.host}/{command.fid}/{command.id}"
            self._not_held(conn, command)
            self._marked(conn, command)

    def taken(self, seat: Seat, conn: Conn, command: Any) -> None:
        if self.trace is not None:
            self.note(f"  {seat.label} < {_brief(command)}")

    def _not_held(self, conn: Conn, msg: wire.Msg) -> None:
        session = self.hub.alive.core.sessions.get(conn.route) if self.hub else None
        for (mailbox, n), known in self.history.copies.items():
            same = (known.msg, known.sender) == (msg.id, msg.fid)
            if session is not None and mailbox == session.mailbox and same and known.held:
                self.fail("held shown", f"{conn.seat.label} is pushed {msg.id}, which is held as {n} ({known.held})")

    # -- the broker's disk -----------------------------------------------------------------------------------------

    def dropped(self) -> None:
        self._fed.clear()
        self._events = -1

    def published(self, events: Sequence[Event]) -> None:
        """Nothing is told that the disk does not have, and nothing is left out."""
        for event in events:
            if self._events >= 0 and event.seq != self._events + 1:
                self.fail("event gap", f"event {event.seq} ({event.topic}) after {self._events}")
            self._events = event.seq
            kind, _, step = event.topic.partition(".")
            if kind != "msg" or step == "refused":
                continue
            told = event.fields
            copies = [
                known
                for (mailbox, _), known in self.history.copies.items()
                if (mailbox, known.msg, known.sender) == (told["mailbox"], told["id"], told.get("fid"))
            ]
            if not any(step in ("stored", "held") or step in known.steps for known in copies):
                self.fail("event without row", f"{event.topic} {told}; there are {copies}")

    def committed(self, batch: Batch) -> None:
        now = self.hub.bench.now if self.hub else 0
        fresh: dict[tuple[str, int], Copy] = {}
        expiries = {mark(row.id, row.body): row for row in self._requests()}
        messages: dict[tuple[str, str], AddMessage] = {}
        for write in batch.writes:
            match write:
                case PutMailbox(box):
                    self.owners[box.id] = box.key
                    if box.meta.get("stale"):
                        self.aside.add(box.id)
                case AddMessage():
                    messages[write.sender, write.id] = write
                case AddOp():
                    self._op(write)
                case AddDelivery():
                    message = messages[write.sender, write.msg]
                    row = expiries.get(mark(write.msg, message.body))
                    ttl = row.args.get("ttl", 0) if row else 0
                    copy_ = Copy(write.msg, write.sender, mark(write.msg, message.body), now + ttl if ttl else 0)
                    copy_.to = write.name
                    copy_.wakes = message.kind == "task" and not write.quiet
                    copy_.asker = write.sender if message.ask else ""
                    self._by_policy(write, message)
                    if write.status == "held":
                        copy_.held = write.proof
                        self.held_once.add(copy_.mark)
                    else:
                        self._put(write.mailbox, copy_)
                    fresh[write.mailbox, write.n] = self.history.copies[write.mailbox, write.n] = copy_
                case Release():
                    self._release(write, fresh)
                case Move():
                    self._move(write, now)
                case MoveById():
                    self._answered(write)
                case PutState(entry):
                    self._was[entry.key] = self.history.state.get(entry.key, (0, 0))
                    self.history.state[entry.key] = (entry.ver, entry.expires)
                case DropState(key):
                    self.history.state.pop(key, None)
        for write in batch.writes:
            if isinstance(write, MoveById):
                self._named(write)
        opened = {str(event.fields["id"]) for event in batch.events if event.topic == "peer.open"}
        spoken: set[bytes] = set()
        for sent in batch.sends:
            if isinstance(sent, Send) and isinstance(sent.command, wire.Welcome):
                self._welcome(sent.route, sent.command)
            elif isinstance(sent, Send) and sent.route not in spoken:
                self._refused(sent, self.here | opened)
            spoken.add(sent.route)
        for event in batch.events:
            if event.topic == "peer.open":
                self.here.add(str(event.fields["id"]))
            elif event.topic in ("peer.lost", "peer.gone"):
                self.here.discard(str(event.fields["id"]))
        self._twice(fresh)
        self._fed.clear()

    def _requests(self) -> list[wire.Req]:
        return [command for _, command in self._fed if isinstance(command, wire.Req)]

    def _twice(self, fresh: dict[tuple[str, int], Copy]) -> None:
        for (mailbox, n), made in fresh.items():
            for (other, m), known in self.history.copies.items():
                if other == mailbox and known.mark == made.mark and m != n:
                    self.fail("applied twice", f"{made.msg} is in {mailbox} as {m} and {n}")

    def _op(self, op: AddOp) -> None:
        asked = [r for conn, r in self._fed if isinstance(r, wire.Req) and r.q == op.q and _ob(conn) == op.ob]
        if not asked:
            self.fail("made up", f"the journal has {op.ob[:4]} {op.q}, which nobody asked in this batch")
            return
        by_digest = [r for r in asked if wire.digest(r.op, r.id, r.args, r.body) == op.digest]
        req = (by_digest or asked)[0]
        result, text = wire.unpack(op.reply, 1 << 20)
        ident = mark(req.id, req.body)
        if ident in self.history.applied:
            self.fail("applied twice", f"row {ident} ({req.op}) was done again as {op.ob[:4]} {op.q}")
        self.history.applied[ident] = Applied(op.code, result, text)
        if op.code == 200:
            conn = next(conn for conn, r in self._fed if r is req)
            self.history.word.accepted(conn.seat.who.key, req)
        if req.op == "state.set":
            self._compare_and_set(op, req)
        if req.op == "send" and not req.args.get("re"):
            self._matched(op, req, result)

    def _compare_and_set(self, op: AddOp, req: wire.Req) -> None:
        """PutState of this request came before its AddOp, so what was there before is in `_was`."""
        key = req.args["key"]
        ver, expires = (self._was if op.code == 200 else self.history.state).get(key, (0, 0))
        ver = 0 if expires and expires <= op.at else ver
        if "ver" in req.args and (op.code == 200) != (ver == req.args["ver"]):
            self.fail("compare and set", f"{req.args} got {op.code} at version {ver}")

    def _by_policy(self, made: AddDelivery, message: AddMessage) -> None:
        """What became of a copy is what the person at the recipient's machine has said."""
        fate = self.history.word.fate(self.owners[made.mailbox], message)
        if fate != made.status:
            self.fail("policy", f"{made.msg} to {made.mailbox} is {made.status}; by the rules it is {fate}")

    def _named(self, move: MoveById) -> None:
        """A step that was told by id: the disk says which copies have it by now, and who spoke which it should be."""
        if self.hub is None:
            return
        sql = (
            f"SELECT d.n, m.sender, d.{move.status}_proof FROM deliveries d JOIN messages m ON m.row = d.msg "
            f"WHERE d.mailbox = ? AND m.id = ? AND d.{move.status}_at IS NOT NULL"
        )
        for n, sender, proof in self.hub.store._db.execute(sql, (move.mailbox, move.msg)).fetchall():
            known = self.history.copies.get((move.mailbox, n))
            if known is None or (known.msg, known.sender) != (move.msg, sender):
                self.fail(
                    "made up", f"the disk has {move.status} of {move.msg} from {sender} as {n}, here it is {known}"
                )
                continue
            if move.status in known.steps:
                continue
            known.steps[move.status] = move.ts
            if move.status in ("acked", "failed") and not {"offered", "injected"} & set(known.steps):
                self.fail("not offered", f"{known.mark} in {move.mailbox} is {move.status}, and was never offered")
            # The step names the reply that is the answer; another reply of the same batch has a question of its own.
            meant = [
                self.meant[ident]
                for _, r in self._fed
                if isinstance(r, wire.Req)
                and (ident := mark(r.id, r.body)) in self.meant
                and (move.status != "answered" or r.id == proof)
            ]
            if move.status in ("acked", "answered") and (move.mailbox, known.mark) not in meant:
                # What a restored database has lost cannot be told from what it still has by a name that is not exact.
                here = {c.mark for (box, _), c in self.history.copies.items() if box == move.mailbox}
                about = [
                    other
                    for mailbox, other in meant
                    if mailbox == move.mailbox and other.startswith(move.msg) and other in here
                ]
                if about:
                    self.fail("another meant", f"{known.mark} in {move.mailbox} is {move.status}; meant was {about}")

    def _asked_for(self, mailbox: str, known: Copy, op: str) -> bool:
        """Whether the person of this mailbox asked for that in this batch."""
        return any(
            ident.rpartition("/")[2] == known.msg and of in ("", known.sender)
            for conn, r in self._fed
            if isinstance(r, wire.Req) and r.op == op and conn.seat.who.key == self.owners[mailbox]
            for ident, of in zip(r.args["ids"], r.args.get("of") or [""] * len(r.args["ids"]), strict=True)
        )

    def _release(self, move: Release, fresh: dict[tuple[str, int], Copy]) -> None:
        known = self.history.copies.pop((move.mailbox, move.n), None)
        if known is None or not known.held or known.settled or (move.mailbox, move.to) in self.history.copies:
            self.fail("made up", f"{move} of {known}")
            return
        resumed = known.held == "paused" and self.owners[move.mailbox] not in self.history.word.paused
        resuming = any(
            isinstance(r, wire.Req) and r.op == "pause" and conn.seat.who.key == self.owners[move.mailbox]
            for conn, r in self._fed
        )
        if not self._asked_for(move.mailbox, known, "hold.release") and not (resumed or resuming):
            self.fail("released", f"{known.msg} in {move.mailbox} ({known.held}) went on, and nobody had said so")
        if known.held != "paused" and not self._asked_for(move.mailbox, known, "hold.release"):
            self.fail("released", f"{known.msg} in {move.mailbox} was held by a rule, and nobody released it")
        known.held = ""
        self._put(move.mailbox, known)
        self.history.copies[move.mailbox, move.to] = known
        if fresh.pop((move.mailbox, move.n), None) is not None:
            fresh[move.mailbox, move.to] = known

    def _move(self, move: Move, now: int) -> None:
        known = self.history.copies.get((move.mailbox, move.n))
        if known is None:
            self.fail("made up", f"{move} of no delivery")
            return
        if known.held:
            if move.status not in ("expired", "failed"):
                self.fail("held shown", f"{move} of what is held")
            if move.status == "failed" and not self._asked_for(move.mailbox, known, "hold.drop"):
                self.fail("released", f"{known.msg} in {move.mailbox} was dropped, and nobody had said so")
            known.held = ""
        known.steps.setdefault(move.status, now)
        if not move.settled:
            return
        if known.settled:
            self.fail("made up", f"{move} of a delivery that is {known.settled}")
        known.settled = move.status
        if move.status == "injected" and move.proof == ACKED and "offered" not in known.steps:
            self.fail("not offered", f"{known.mark} in {move.mailbox} is acknowledged, and was never offered")
        if move.status == "injected" and not self._seen(known.mark):
            self.fail("not shown", f"{known.mark} in {move.mailbox} is settled as shown; who says so never saw it")
        if move.status == "expired" and (not known.expires or now < known.expires):
            self.fail("early", f"{known.msg} expired at {now}, due at {known.expires}")

    def _seen(self, msg: str) -> bool:
        """Whether one of those who spoke in this batch has shown the message of this mark, with proof."""
        for seat in {id(conn.seat): conn.seat for conn, _ in self._fed}.values():
            for ledger in getattr(seat, "ledgers", ()):
                if any(s.proven for (led, key), s in self.sights.items() if led == ledger and key.endswith(msg)):
                    return True
                if msg in self.settling.get(ledger, {}):
                    return True
        return False

    def _welcome(self, route: bytes, welcome: wire.Welcome) -> None:
        conn = self.hub.bench.conns.get(route) if self.hub else None
        if conn is None or conn.hello is None or conn.hello.mode != "hold":
            return
        inst = conn.hello.inst
        term, holder = self.history.terms.get(welcome.id, (0, ""))
        if welcome.term < term:
            self.fail("term fell", f"{welcome.name} from {term} to {welcome.term}")
        if welcome.term == term and holder not in ("", inst):
            self.fail("same term", f"{welcome.name} term {term} for {holder} and {inst}")
        self.history.terms[welcome.id] = (welcome.term, inst)
        self.holders.setdefault(welcome.id, set()).add(inst)
        self.granted.setdefault(welcome.id, set()).add(welcome.term)

    def _refused(self, sent: Send, here: set[str]) -> None:
        """Who is told that another living session holds the name waits for a person: so that one must be there."""
        hello = next((said for conn, said in self._fed if conn.route == sent.route), None)
        command = sent.command
        if not isinstance(hello, wire.Hello):
            return
        if isinstance(command, wire.Gone):
            held = {box for box, (_, inst) in self.history.terms.items() if inst == command.by}
            never = all(box != hello.id or self.history.terms[box][0] <= hello.term for box in held)
            if hello.id and never and hello.id not in self.aside:
                self.fail("displaced by nobody", f"{hello} gets {command}; nobody took this mailbox from it")
        elif isinstance(command, wire.Err) and command.by.get("living"):
            held = {command.by["id"]}
        else:
            return
        if not held & here:
            self.fail("lost is not alive", f"{command} is told of a holder who is not there")

    def restore(self, history: History) -> None:
        """The broker's database is an older one from now on."""
        for ident, applied in self.history.applied.items():
            if ident not in history.applied:
                self.forgotten.setdefault(ident, []).append(applied)
        self.history = copy.deepcopy(history)
        self.restored = True

    # -- questions and answers: who was asked decides -------------------------------------------------------------

    def _put(self, mailbox: str, copy_: Copy) -> None:
        """A question came to a mailbox."""
        if copy_.asker:
            for known in (self.history.asked, self.put):
                known.add((copy_.asker, copy_.msg, mailbox))

    def _marked(self, conn: Conn, msg: wire.Msg) -> None:
        """A copy is stamped as an answer iff its sender's mailbox was put that question by this one."""
        session = self.hub.alive.core.sessions.get(conn.route) if self.hub else None
        mine = session.mailbox if session is not None else ""
        this = msg.id, msg.fid, msg.to
        copies = self.history.copies.items()
        if not any(box == mine and (known.msg, known.sender, known.to) == this for (box, _), known in copies):
            return  # it got another mailbox in the same batch
        if bool(msg.answer) != ((mine, msg.re, msg.fid) in self.history.asked):
            self.fail("answer", f"{conn.seat.label} is pushed {msg.id} with re {msg.re!r} and answer {msg.answer}")
        row = self.rows.get(mark(msg.id, msg.body))
        if msg.ask and row is not None and not row.args.get("ask"):
            self.fail("answer", f"{conn.seat.label} is pushed {msg.id} as a question, which it is not")

    def _answered(self, move: MoveById) -> None:
        """Only what came to the mailbox that asked answers it."""
        if move.status != "answered":
            return
        came = [
            c
            for (box, _), c in self.history.copies.items()
            if (box, c.msg, c.sender) == (move.sender, move.proof, move.mailbox)
        ]
        if not any(not c.held for c in came):
            self.fail("answered", f"{move}: {move.proof} has not come to {move.sender}")

    def _matched(self, op: AddOp, req: wire.Req, result: dict[str, Any]) -> None:
        """The one question of the recipient, or none, or a refusal where there are several."""
        offered = [(str(fid), str(ident)) for fid, ident in req.args.get("answers", [])]
        to = next((str(row["id"]) for row in result.get("to", []) if row.get("id")), "")
        fit = [ident for fid, ident in offered if fid == to]
        if to and (result.get("re", "") != (fit[0] if len(fit) == 1 else "") or len(fit) > 1):
            self.fail("matched", f"{req.args} got {op.code} {result}")

    def ended(self, seat: AppSeat, msg: wire.Msg) -> None:
        """A call took this for its answer."""
        if not any((ident, asked) == (msg.re, msg.fid) for _, ident, asked in self.put):
            self.fail(
                "stranger", f"{msg.id} of {msg.fid} ended the ask {msg.re} of {seat.label}, who had not asked it"
            )

    def _shown_before(self, seat: AppSeat, args: dict[str, Any]) -> None:
        """What a request names as the questions it may answer was proved to have been shown, and is such."""
        for fid, ident in args.get("answers", []):
            seen = [
                s
                for (led, key), s in self.sights.items()
                if led == seat.ledger and f"/{ident}:" in key and fid in s.fids
            ]
            if not any(sight.proven for sight in seen):
                self.fail("matched", f"{seat.label} answers {ident}, which is not proved to have been shown")
            # What it took itself for when its WELCOME of another mailbox was lost does not count.
            if not any((fid, ident, box) in self.put for box in {seat.mailbox, *self._held(seat)}):
                self.fail("matched", f"{seat.label} answers {ident}, which {fid} has not asked it")

    # -- the agents ------------------------------------------------------------------------------------------------

    def wrote(self, seat: AppSeat, writes: Sequence[BookWrite]) -> None:
        """A batch of a link is on its disk."""
        for write in writes:
            if isinstance(write, AddRow):
                args = wire.unpack(write.args)
                self._shown_before(seat, args)
                ident = mark(write.id, write.body)
                self.rows[ident] = Row(ident, (seat.label, seat.ledger), write.row, write.op, args, write.body)
                seat.ids[write.row] = ident
            elif isinstance(write, PutShown) and write.shown.state == "shown":
                name = seat.names.get(write.ident, write.ident)
                sight = self.sights.get((seat.ledger, name))
                if sight is None or not sight.times:
                    if not any((led, name) in self.sights for led in seat.ledgers):
                        self.fail("not shown", f"the ledger of {seat.label} says {write.ident} was shown")
                else:
                    sight.proven = True

    def news(self, seat: Seat, news: News) -> None:
        if self.trace is not None and not isinstance(news, Finished):
            self.note(f"  {seat.label} ! {_brief(news)}")
        if isinstance(news, Settled):
            self._settled(seat, news)
        elif isinstance(news, Parked) and news.by.get("inst") == seat.profile.inst:
            self.fail("parked by itself", f"{seat.label}: {news}")

    def _settled(self, seat: Any, news: Settled) -> None:
        ident = seat.ids[news.row]
        if news.row <= seat.last_told:
            self.fail("told out of order", f"{seat.label} row {news.row} after {seat.last_told}")
        seat.last_told = news.row
        possible = self.forgotten.get(ident, []) + [a for a in (self.history.applied.get(ident),) if a]
        if not possible:
            self.fail("told, not applied", f"{seat.label} row {news.row} ({ident}) was told {news.code}")
        elif not any(a.code == news.code and a.result == news.result and a.text == news.text for a in possible):
            self.fail("told another", f"{seat.label} row {news.row} {ident}: told {news}, applied {possible}")
        self.told[ident] = (news.code, news.result)

    # -- what is shown ---------------------------------------------------------------------------------------------

    def offer(self, seat: AppSeat, key: str, msg: wire.Msg, ordered: bool) -> None:
        """A message came into the hands of an application for the first time, or again."""
        row = self.rows.get(mark(msg.id, msg.body))
        if row is None:
            self.fail("another text", f"{seat.label} has {key} with {msg.body[:40]!r}, sent {row}")
            return
        # What wakes may go before what does not; each of the two comes in order. A seat whose WELCOME of another mailbox
        # was lost does not know that it holds that one: the name tells.
        wakes = msg.kind == "task" and not msg.quiet
        place = (seat.ledger, f"{seat.origin.get(key, '')} {msg.to}", row.source, wakes)
        if ordered and key not in seat.known:
            last = self.offered.get(place, 0)
            # What expired unshown before a crash comes once more, to expire again; it may be shown in that moment.
            # What a restored broker does again may meet other names.
            # A released message stands behind what came meanwhile.
            late = row.args.get("ttl") or row.id in self.held_once
            if row.row < last and not late and not self.restored:
                self.fail("order", f"{seat.label} is offered row {row.row} of {row.source} after {last}")
            if row.id not in self.held_once:
                self.offered[place] = max(last, row.row)
        seat.known.add(key)
        self.alike.setdefault((seat.ledger, key.partition(":")[0]), set()).add(key)

    def show(self, seat: AppSeat, key: str, repeat: bool) -> None:
        """A message is before somebody's eyes."""
        self.note(f"  {seat.label} shows {key}{' (repeat)' if repeat else ''}")
        sight = self.sights.setdefault((seat.ledger, key), Sight())
        mailbox = seat.origin.get(key, "")
        read = (seat.label, mailbox, key)
        if read in self.read and not repeat:
            self.fail("unmarked repeat", f"{seat.label} shows {key} as if it were new")
        # By the broker: a seat whose WELCOME of this mailbox was lost takes it for its former one.
        boxes = self._held(seat) & {
            box for (box, _), known in self.history.copies.items() if key.endswith(known.mark)
        }
        another = set().union(*(self.holders.get(box, ()) for box in boxes | {mailbox})) - {seat.label}
        # It had the mailbox before and gave it up: who had it meanwhile is not its to know.
        if any(len(self.granted.get(box, ())) > 1 for box in boxes | {mailbox}):
            another.add("")
        # A message that has the host and id of another one in the ledger may be that one, sent again.
        alike = {known for led in seat.ledgers for known in self.alike.get((led, key.partition(":")[0]), ())}
        another = another or alike - {key}
        if repeat and read not in self.read and seat.lives == 1 and not another and key not in seat.unsure:
            self.fail("marked without cause", f"{seat.label} shows {key} as a possible repeat; nothing had happened")
        self.read.add(read)
        if sight.times and not repeat:
            self.fail("shown twice unmarked", f"{seat.label} shows {key} again")
        fid = self.letters[key].fid if key in self.letters else ""
        # A sender that lost its mailbox with the broker's database sends again from another: that cannot be known.
        if sight.times and not sight.doubt and fid in sight.fids:
            self.fail("shown twice", f"{seat.label} shows {key} again, and nothing had happened")
        sight.times += 1
        sight.fids.add(fid)

    def told_by_query(self, box: str, name: str, again: bool) -> None:
        """Somebody reads a message of a mailbox that no session holds; `again` says that a model may have seen it."""
        shown = any(mailbox == box and key.endswith(name) for _, mailbox, key in self.read)
        if shown and not again and not self.restored:
            self.fail("unmarked repeat", f"a query tells {name} of {box} as if it were new")

    def _held(self, seat: AppSeat) -> set[str]:
        """The mailboxes this seat was welcomed to."""
        return {box for box, holders in self.holders.items() if seat.label in holders}

    def doubt(self, seat: AppSeat, key: str) -> None:
        """The agent cannot know any more whether this was seen."""
        sight = self.sights.get((seat.ledger, key))
        if sight is not None and not sight.proven:
            sight.doubt = True


def _ob(conn: Conn) -> str:
    return conn.hello.ob if conn.hello else ""


def _brief(command: Any) -> str:
    if isinstance(command, str):
        return command
    text = repr(command)
    return text if len(text) <= 230 else text[:229] + "…"
