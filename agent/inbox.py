"""The mailbox's side of a link: the prefetch, the ledger, and what is acknowledged (PROTOCOL.md §7, §8).

Sans-IO. It decides by message id what was shown; numbers only serve to acknowledge on this connection. It knows
nothing of requests, nor how a message is shown.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace

from agent.book import LEDGER_KEPT, Book, DropShown, PutShown, Shown, ledger_key
from agent.effects import Batch, Mail
from agent.questions import Questions
from bus import wire
from bus.record import record

FIRST_KEPT = 4096  # messages of which is known how they first came to this process
LEDGER_SLACK = 1000  # how far the ledger may outgrow its limit before it is trimmed

ASKS_KEPT = 256
LAPSED_KEPT = 4096  # beyond that the broker says by itself that a message has expired
REST_MS = 60_000  # an answer that no call of this process has taken by then is delivered like any message
PROOF_MAX = 64  # characters the broker keeps of a proof


@record
class Letter:
    """A message as it waits here. `deadline` is 0 or when it expires by this machine's clock, in ms.

    An answer `rests` until then, because a call waits for it; 0 when none does any more. A question is `matched` with
    answers until then.
    """

    msg: wire.Msg
    deadline: int
    repeat: bool = False  # it may have been seen already
    rests: int = 0
    matched: int = 0

    @property
    def key(self) -> str:
        """Its name in the ledger."""
        return ledger_key(self.msg.host, self.msg.fid, self.msg.id)

    @property
    def wakes(self) -> bool:
        """Whether it may start something: a task that the broker has not quieted, and no call waits for."""
        return self.msg.kind == "task" and not self.msg.quiet and not self.rests


def named(key: str) -> tuple[str, str]:
    """A name of the ledger as operations name a message: `host/id`, and the sender's mailbox ("": not known)."""
    host, _, rest = key.partition("/")
    fid, _, ident = rest.rpartition("/")
    return f"{host}/{ident}", fid


class Inbox:
    """What came in, what is being shown, what was shown."""

    def __init__(self, book: Book, batch: Callable[[], Batch]) -> None:
        self._book = book
        self._batch = batch
        self._got = 0
        self._numbers: dict[int, str] = {}  # taken on this connection, not known to be settled
        self._at: dict[str, int] = {}  # the same, the other way round
        self._waiting: dict[str, Letter] = {}
        self._offering: dict[str, Letter] = {}
        self._resumed: set[str] = set()  # on their way since a former life of this agent, also before they come in
        self._lapsed: dict[str, None] = {}  # expired here, unshown; the newest
        self._owed: dict[tuple[str, str], list[int]] = {}  # (as, proof) -> numbers to acknowledge
        self._resync_after = -1  # k of the last PING before our resync; -1 = none outstanding
        self._asked_here: dict[str, None] = {}  # questions whose `ask` has ended in this process, the newest
        self.questions = Questions(book)
        self.moves: list[tuple[str, str, int, str]] = []  # (status, proof, at, key) for a receipt
        self.more = 0
        self.urgent = False  # among `moves` is one that the broker does not know to have come here
        self._left_after = -1  # k of the last PING before our BYE on this connection; -1 = none was said
        self._term: tuple[str, int] | None = None  # mailbox and term of the last WELCOME
        # Whether each message was marked `again` when this process saw it first. What was not, no one before it had.
        self.first: OrderedDict[str, bool] = OrderedDict()
        # How many lines of the ledger have this host and id: a sender that lost its mailbox sends again from another.
        self._alike = Counter(named(key)[0] for key in book.ledger)

    # -- the connection --------------------------------------------------------------------------------------------

    def connected(self, term: tuple[str, int] | None = None) -> None:
        """WELCOME, to this term of a mailbox, or the end of one: numbers begin anew; what is being shown stays being
        shown. What the broker may have taken for expired but was shown is reported.
        """
        if term is None or term != self._term:
            self.first.clear()  # somebody else may have held it meanwhile
        self._term = term
        self._begin()
        self._left_after = self._resync_after = -1
        waiting = {key for status, _, _, key in self.moves if status == "injected"}
        for key, line in self._book.ledger.items():
            if line.state == "shown" and not line.told and key not in waiting:
                self.moves.append(("injected", line.proof, line.at, key))

    def _begin(self) -> None:
        self._got = 0
        self._numbers.clear()
        self._at.clear()
        self._owed.clear()
        self._waiting.clear()

    def leave(self, pinged: int) -> wire.Ranges | None:
        """BYE: nothing more is taken in or offered on this connection. The numbers of what this process began to show
        and does not know to be settled; None when something of that has no number here, or there are more ranges than
        one BYE holds. `pinged` as in `take_in`.
        """
        ledger = self._book.ledger
        untold = {key for key, line in ledger.items() if line.state == "shown" and not line.told}
        begun = {*self._offering, *(key for _, _, _, key in self.moves), *untold}
        begun |= {key for key in self._at if key in ledger}
        self._left_after = pinged
        self._waiting.clear()
        known = sorted(self._at[key] for key in begun if key in self._at)
        pairs = wire.ranges(known)
        whole = len(known) == len(begun) and (not known or pairs[-1][1] == known[-1])
        return pairs if whole else None

    def take_in(self, now: int, msg: wire.Msg, pinged: int) -> None:
        """One MSG. `pinged` is the `k` of the last PING sent."""
        if self._left_after >= 0:
            return
        if msg.prev == 0:
            self._begin()
            self._resync_after = -1
        elif msg.prev != self._got or self._resync_after >= 0:
            self._resync(pinged)
            return
        self._got = msg.n
        self.more = max(0, self.more - 1)  # it was one of those beyond the window, if there were any
        until = now + msg.ask if msg.ask else 0
        letter = Letter(msg, now + msg.ttl if msg.ttl else 0, msg.again, self._rests(now, msg), until)
        key = letter.key
        if not self._first_seen(key, msg.again):
            letter = replace(letter, repeat=False)  # it is marked for what this process itself did with it
        self._numbers[msg.n] = key
        self._at[key] = msg.n
        line = self.line(letter)
        if line is not None and line.state == "shown":
            self._owe(msg.n, "injected", line.proof)
        elif key in self._lapsed and msg.ttl == 1:
            self._owe(msg.n, "expired", "")
        elif key not in self._offering:
            self._lapsed.pop(key, None)  # with time to go it is another copy: the broker was restored
            known = line is not None or self._alike[named(key)[0]] > 0
            here = self._offering if key in self._resumed else self._waiting
            here[key] = replace(letter, repeat=True) if known else letter
            self._batch().news.append(Mail(self.more))

    def _first_seen(self, key: str, again: bool) -> bool:
        """Whether a message was marked when it came to this process first, which may be now."""
        if len(self.first) >= FIRST_KEPT and key not in self.first:
            self.first.popitem(last=False)
        return self.first.setdefault(key, again)

    def inherit(self, former: Inbox) -> None:
        """Go on from an inbox of this process, which was given up because the disk refused a batch."""
        self.first, self._term = former.first, former._term
        self._asked_here = former._asked_here
        self.questions.inherit(former.questions)

    def _rests(self, now: int, msg: wire.Msg) -> int:
        # Whether a call of another process still waits nobody tells us: it may have been ended long before its time.
        return now + min(msg.answer, REST_MS) if msg.answer > 1 and msg.re not in self._asked_here else 0

    def over(self, ident: str) -> None:
        """The `ask` of this question has ended here, sooner than others know: its answer is mail like any other."""
        self._asked_here[ident] = None
        while len(self._asked_here) > ASKS_KEPT:
            del self._asked_here[next(iter(self._asked_here))]
        self._rouse([x for x in self._waiting.values() if x.rests and x.msg.re == ident])

    def _rouse(self, letters: Iterable[Letter]) -> None:
        for letter in letters:
            self._waiting[letter.key] = replace(letter, rests=0)
            self._batch().news.append(Mail(self.more))

    def _resync(self, pinged: int) -> None:
        if self._resync_after >= 0:
            return
        self._waiting.clear()
        self._resync_after = pinged
        self._batch().sends.append(wire.Ack([], resync=True))

    def compare(self, k: int, pong: wire.Pong, pinged: int) -> None:
        """PONG (§8): acknowledge again, ask again, drop what was settled elsewhere."""
        if pong.more and pong.more != self.more:
            self._batch().news.append(Mail(pong.more))
        self.more = pong.more
        if k == 0:
            return  # it answers no PING: an ACK on its way would look lost
        if self._left_after >= 0:
            if k > self._left_after:
                self._left_after = -1  # the BYE was lost: its answer would have come first
                self._resync(pinged)
            return
        if self._resync_after >= 0:
            if k > self._resync_after:
                self._resync_after = -1
                if pong.open:
                    self._resync(pinged)
            return
        held = {n for a, b in pong.open for n in range(a, min(b, a + wire.WINDOW) + 1)}
        for n in sorted(held):
            key = self._numbers.get(n)
            if key is None:
                self._resync(pinged)
                return
            line = self._book.ledger.get(key)
            if line is not None and line.state == "shown":
                self._owe(n, "injected", line.proof)
            elif key in self._lapsed:
                self._owe(n, "expired", "")
        self._confirm(held)

    def _confirm(self, held: set[int]) -> None:
        """What the broker no longer holds is on its disk, or was settled elsewhere."""
        owed = {n for numbers in self._owed.values() for n in numbers}
        for n in [n for n in self._numbers if n not in held and n not in owed]:
            key = self._numbers.pop(n)
            self._at.pop(key, None)
            lapsed = key in self._lapsed
            self._lapsed.pop(key, None)
            line = self._book.ledger.get(key)
            if line is not None and line.state == "shown":
                if not lapsed:
                    self._told(key, line)
            else:
                self._waiting.pop(key, None)

    def _told(self, key: str, line: Shown) -> None:
        if not line.told:
            line.told = True
            self._batch().writes.append(PutShown(key, line))

    def reported(self, keys: Iterable[str]) -> None:
        """A receipt that said `injected` for these is settled."""
        for key in keys:
            line = self._book.ledger.get(key)
            if line is not None and line.state == "shown":
                self._told(key, line)

    @property
    def unconfirmed(self) -> int:
        """How many are acknowledged or held, and not known to be settled at the broker."""
        return len(self._numbers)

    # -- showing ---------------------------------------------------------------------------------------------------

    def line(self, letter: Letter) -> Shown | None:
        """What the ledger knows of this message."""
        return self._book.ledger.get(letter.key)

    def waiting(self) -> list[Letter]:
        """What could be offered now, in order."""
        return list(self._waiting.values())

    def offer(self, now: int, letters: Iterable[Letter], path: str, nonce: str = "") -> list[Letter]:
        """Write `offering` for these and hand them out, once the batch is on disk. `nonce` is in the text that
        carries them and nowhere else, so that a later life can prove that it was shown.

        What is expired, shown or in another path's hands is left out.
        """
        path = path[:PROOF_MAX]
        given: list[Letter] = []
        if self._left_after >= 0:
            return given
        for letter in letters:
            key = letter.key
            line = self.line(letter)
            if key in self._offering or key in self._lapsed or (line is not None and line.state == "shown"):
                continue
            known = self._waiting.pop(key, letter)
            if known.deadline and known.deadline <= now:
                self._lapse(known)
                continue
            if line is not None or self._alike[named(key)[0]]:
                known = replace(known, repeat=True)
            self._offering[key] = known
            self.questions.offered(now, known.msg, known.matched)
            self._write_offering(now, key, f"{path} {nonce}" if nonce else path)
            self.moves.append(("offered", path, now, key))
            self.urgent = self.urgent or key not in self._at
            given.append(known)
        self._trim()
        return given

    def _write_offering(self, now: int, key: str, path: str) -> None:
        if key not in self._book.ledger:
            self._alike[named(key)[0]] += 1
        line = self._book.ledger[key] = Shown("offering", path, at=now)
        self._batch().writes.append(PutShown(key, line))

    def known(self, letter: Letter) -> Letter:
        """A message that a query told, marked as a repeat only where that is so by this side's ledger: what is in a
        path's hands here, or was shown here, is read once more and not shown twice.
        """
        held = self._offering.get(letter.key)
        if held is not None:
            return replace(letter, repeat=held.repeat)
        line = self.line(letter)
        return replace(letter, repeat=False) if line is not None and line.state == "shown" else letter

    def _trim(self) -> None:
        """Forget the oldest lines the broker has on disk; agent.db keeps them longer."""
        ledger = self._book.ledger
        if len(ledger) > LEDGER_KEPT + LEDGER_SLACK:
            excess = len(ledger) - LEDGER_KEPT
            for key in [key for key, line in ledger.items() if line.told][:excess]:
                del ledger[key]
            self._alike = Counter(named(key)[0] for key in ledger)

    def shown(self, now: int, keys: Iterable[str], proof: str) -> None:
        """There is proof that these were shown: the ledger says so, then the broker is told."""
        proof = proof[:PROOF_MAX]
        for key in keys:
            letter = self._offering.pop(key, None)
            line = self._book.ledger.get(key)
            if key in self._resumed:
                self._resumed.discard(key)
                if letter is None:
                    self.proven(now, [key], proof)  # it has not come in yet
            if letter is None or line is None:
                continue
            line.state, line.proof, line.at = "shown", proof, now
            self._batch().writes.append(PutShown(key, line))
            n = self._at.get(key)
            if n is not None:
                self._owe(n, "injected", proof)
            else:
                self.moves.append(("injected", proof, now, key))

    def proven(self, now: int, keys: Iterable[str], proof: str) -> None:
        """A former life was offering these, and there is proof now that they were shown."""
        proof = proof[:PROOF_MAX]
        for key in keys:
            line = self._book.ledger.get(key)
            if line is None or line.state != "offering" or key in self._offering:
                continue
            line.state, line.proof, line.at = "shown", proof, now
            self._batch().writes.append(PutShown(key, line))
            self._waiting.pop(key, None)
            # What was said to have expired is settled at the broker: only a receipt corrects that.
            n = None if key in self._lapsed else self._at.get(key)
            if n is not None:
                self._owe(n, "injected", proof)
            else:
                self.moves.append(("injected", proof, now, key))

    def unshown(self, keys: Iterable[str], certain: bool) -> None:
        """These were not shown after all.

        `certain` when nothing can have reached anybody; else they come again marked as a possible repeat.
        """
        back = {}
        for key in keys:
            letter = self._offering.pop(key, None)
            self._resumed.discard(key)
            if letter is None:
                continue
            if certain and not letter.repeat:
                if self._book.ledger.pop(key, None) is not None:
                    self._alike[named(key)[0]] -= 1
                self._batch().writes.append(DropShown(key))
            back[key] = letter if certain else replace(letter, repeat=True)
        if back and self._left_after < 0:  # after a BYE nothing waits here: it is pushed anew, to whoever comes next
            # Each in its old place: paths give back in any order. What has no number came from beyond the window.
            merged = {**back, **self._waiting}
            order = sorted(merged, key=lambda key: self._at.get(key, wire.NUM_MAX))
            self._waiting = {key: merged[key] for key in order}
            self._batch().news.append(Mail(self.more))

    def hold(self, letters: Iterable[Letter]) -> None:
        """These are in a path's hands already: the book was read from the disk again meanwhile."""
        for letter in letters:
            line = self.line(letter)
            if line is not None and line.state == "offering":
                self._waiting.pop(letter.key, None)
                self._offering[letter.key] = letter

    def lend(self, now: int, keys: Iterable[str], path: str) -> dict[str, bool | None]:
        """Write `offering` for these and leave them to a command of this session that is about to print them, also
        those that have not come in. By key, whether each may have been seen before; None where only the broker may
        know. What was shown, is expired here or in a path's hands is left out.
        """
        path, lent = path[:PROOF_MAX], dict[str, bool | None]()
        if self._left_after >= 0:
            return lent
        for key in keys:
            if key in self._waiting:
                lent |= {letter.key: letter.repeat for letter in self.offer(now, [self._waiting[key]], path)}
                continue
            line = self._book.ledger.get(key)
            elsewhere = key in self._offering or key in self._resumed
            if elsewhere or key in self._lapsed or (line is not None and line.state == "shown"):
                continue
            lent[key] = True if line is not None else None
            if line is None:
                self._write_offering(now, key, path)
            self._resumed.add(key)
        return lent

    def resume(self, keys: Iterable[str]) -> None:
        """A former life of this agent gave these to a client that still has them: they are on their way, and are not
        offered, until `shown` or `unshown` tells what became of them.
        """
        for key in keys:
            line = self._book.ledger.get(key)
            if line is None or line.state != "offering" or key in self._offering:
                continue
            self._resumed.add(key)
            if (letter := self._waiting.pop(key, None)) is not None:
                self._offering[key] = letter

    def expire(self, now: int) -> None:
        """Drop what nobody began to show in time. What rests long enough does so no more."""
        self._rouse([x for x in self._waiting.values() if 0 < x.rests <= now])
        for letter in [x for x in self._waiting.values() if x.deadline and x.deadline <= now]:
            del self._waiting[letter.key]
            self._lapse(letter)

    def _lapse(self, letter: Letter) -> None:
        self._lapsed[letter.key] = None
        while len(self._lapsed) > LAPSED_KEPT:
            del self._lapsed[next(iter(self._lapsed))]
        n = self._at.get(letter.key)
        if n is not None:
            self._owe(n, "expired", "")

    def next_expiry(self) -> int | None:
        """When `expire` is wanted next, in ms."""
        return min((at for x in self._waiting.values() for at in (x.deadline, x.rests) if at), default=None)

    # -- acknowledging ---------------------------------------------------------------------------------------------

    def _owe(self, n: int, status: str, proof: str) -> None:
        self._owed.setdefault((status, proof), []).append(n)

    def overtaken(self) -> bool:
        """Whether an acknowledgement is due for a message whose `offered` still waits for a receipt."""
        if not self._owed or not self.moves:
            return False
        owed = {self._numbers.get(n) for numbers in self._owed.values() for n in numbers}
        return any(status == "offered" and key in owed for status, _, _, key in self.moves)

    def acknowledge(self) -> None:
        """ACK for everything that became settled since; the batch's writes are on disk before it is sent."""
        for (status, proof), numbers in self._owed.items():
            pairs = wire.ranges(sorted(set(numbers)))
            self._batch().sends.append(wire.Ack(pairs, proof, status))
        self._owed.clear()
