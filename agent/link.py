"""The client's end of one session, without a socket (PROTOCOL.md §5–§9).

    submit(now, op, args, body) -> row     connected(now)   receive(now, frames)   lost(now)   tick(now)
    deadline()   take() -> Batch

`now` is ms of one clock that does not run backwards. After `take()` the caller commits the writes, then does
`connect`, then sends, then tells the news, in this order. `connect` "open" asks for a new socket and one of
`connected` or `lost`; "close" drops the present one. Nothing but HELLO leaves before WELCOME.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.book import Book, PutBook
from agent.effects import Batch, Ended, Finished, Lost, Parked, Parted, Welcomed
from agent.inbox import Inbox
from agent.redact import outgoing
from agent.sending import Sending
from bus import wire
from bus.errors import Code, LocalError, RemoteError

_IGNORED = dict.fromkeys(
    ("connected", "WELCOME", "REP", "ERR", "MSG", "PART", "DONE", "PONG", "GONE", "BYE", "lost"), "ignore"
)
LINK: dict[str, dict[str, str]] = {
    "down": _IGNORED,
    "dialing": {**_IGNORED, "connected": "greet", "lost": "back off"},
    "greeting": {**_IGNORED, "WELCOME": "adopt", "ERR": "refused", "GONE": "park", "lost": "back off"},
    "open": {
        "connected": "ignore",
        "WELCOME": "reseat",
        "REP": "settle",
        "ERR": "complaint",
        "MSG": "take in",
        "PART": "part",
        "DONE": "done",
        "PONG": "compare",
        "GONE": "park",
        "BYE": "end",
        "lost": "back off",
    },
    "parked": _IGNORED,
}

BACKOFF_MS = (50, 1000)
STALL_MS = 1000
DIAL_MS = 5000
RECEIPT_DELAY_MS = 200
RECEIPT_SIZE = 3000  # octets of one receipt's arguments, well below the head's limit
UNCONFIRMED_MAX = 256
REFUSED_MS = 60_000  # what only somebody else can change is asked for again, seldom
Make = Callable[[], str]
_PASSING = (Code.UNKNOWN_SESSION, Code.TOO_MANY, Code.BUSY)


@dataclass(slots=True)
class Profile:
    """Who this link says it is. `mode` as in PROTOCOL.md §5; `hb` in ms; `raw`: a person wants nothing redacted.

    `mailbox` is the id of what was known as `name` in database `store`, "" for none; every WELCOME sets the three.
    `life` is a word for this process: what an earlier one was sent, that one may have shown.
    """

    mode: str
    inst: str
    name: str = ""
    hb: int = wire.HEARTBEAT_MS
    meta: dict[str, Any] = field(default_factory=dict)
    activity: str = ""
    raw: bool = False
    mailbox: str = ""
    store: str = ""
    life: str = ""


class Link:
    """All rules of the client's side. Not thread-safe; one owner feeds it.

    `new_row_id` makes row ids (16 of a-z 2-7), `jitter` a float in 0…1.
    """

    def __init__(self, book: Book, profile: Profile, new_row_id: Make, jitter: Callable[[], float]) -> None:
        self.book = book
        self.profile = profile
        self.state = "down"
        self.batch = Batch()
        self.sending = Sending(book, lambda: self.batch)
        self.inbox = Inbox(book, lambda: self.batch)
        self._new_row_id = new_row_id
        self._jitter = jitter
        self._take = 0
        self._dial_at = 0
        self._failures = 0
        self._give_up_at = 0
        self._hb = profile.hb
        self._ping_at = 0
        self._k = 0
        self._pinged: dict[int, int] = {}  # k -> highest row sent before it
        self._queries: set[int] = set()
        self._r = 0
        self._receipts: dict[int, list[str]] = {}  # row of a receipt -> what it says was injected
        self._receipt_at: int | None = None
        self._actions: dict[str, Callable[[int, Any], None]] = {
            "greet": self._greet,
            "adopt": self._adopt,
            "reseat": self._adopt,
            "refused": self._refused,
            "settle": self._settle,
            "complaint": self._complaint,
            "take in": self._take_in,
            "part": self._part,
            "done": self._done,
            "compare": self._compare,
            "park": self._park,
            "end": self._end,
            "back off": self._back_off,
            "ignore": lambda now, command: None,
        }

    # -- the application -------------------------------------------------------------------------------------------

    def submit(self, now: int, op: str, args: dict[str, Any], body: bytes = b"", ident: str = "") -> tuple[int, str]:
        """A request that will be done once, whatever happens. Returns its row and its id (for `send` the message id).

        LocalError when it cannot be sent at all: nothing is written then.
        """
        if not self.profile.raw:
            args, body, _ = outgoing(op, args, body)
        if len(body) > wire.BODY_MAX:
            raise LocalError(f"the text has {len(body)} octets, {wire.BODY_MAX} are allowed (send a file or less)")
        ident = ident or self._new_row_id()
        wire.encode(wire.Req(wire.NUM_MAX, wire.NUM_MAX, op, ident, args, body))
        return self.sending.add(now, op, args, body, ident), ident

    def ask(self, what: str, args: dict[str, Any]) -> int:
        """A query; its PARTs and its end come as news. Only while open: elsewhere it ends at once with 503.

        LocalError when it is too large to be asked.
        """
        query = wire.Qry(self._r + 1, what, args)
        wire.encode(query)
        self._r += 1
        if self.state != "open":
            self.batch.news.append(Finished(self._r, Code.BUSY, 0, "the broker is not reachable"))
            return self._r
        self._queries.add(self._r)
        self.batch.sends.append(query)
        return self._r

    def knock(self, now: int, name: str = "", take: int = 0) -> None:
        """Leave the parked state: try again, under another name, or taking over the term `take`."""
        if name and name != self.profile.name:
            self.profile.name, self.profile.mailbox = name, ""
            self._forget_term()
        self._take = take
        if self.state == "parked":
            self.state = "down"
            self._dial_at = now
            self._failures = 0

    def bye(self, leave: bool) -> None:
        """Say goodbye; `leave` when the session has ended. The news is Ended, or Lost.

        Nothing is offered any more: what was never begun to be shown will be news to the next process.
        """
        if self.state == "open":
            self.batch.sends.append(wire.Bye(leave, self.inbox.leave(self._k)))

    def status(self, activity: str) -> None:
        """Busy, idle or waiting: told with the next PING, which is now."""
        if activity != self.profile.activity:
            self.profile.activity = activity
            self._ping_at = 0

    # -- in --------------------------------------------------------------------------------------------------------

    def connected(self, now: int) -> None:
        """The socket that `connect` asked for has shaken hands."""
        self._actions[LINK[self.state]["connected"]](now, None)

    def receive(self, now: int, frames: Sequence[bytes]) -> None:
        """One message of the broker. What is none is dropped: the barrier heals what it cost."""
        if not wire.signed(frames):
            return
        try:
            command = wire.decode(frames, "S")
            self._actions[LINK[self.state][type(command).__name__.upper()]](now, command)
        except RemoteError:
            return

    def lost(self, now: int, text: str = "") -> None:
        """The socket is dead, or could not be made."""
        self._actions[LINK[self.state]["lost"]](now, text)

    def tick(self, now: int) -> None:
        """Do what is due."""
        if self.state == "parked" and 0 < self._dial_at <= now:
            self.state = "down"
        if self.state == "down" and now >= self._dial_at:
            self.state = "dialing"
            self._give_up_at = now + DIAL_MS
            self.batch.connect = "open"
        elif self.state in ("dialing", "greeting") and now >= self._give_up_at:
            self._back_off(now, "no answer in time")
        self.inbox.expire(now)
        self.sending.resume(now)
        if self.state == "open":
            self._flush_receipts(now)
            self.sending.flow(now)
            self.inbox.acknowledge()
            self._ping(now)

    def deadline(self) -> int | None:
        """When `tick` is wanted next, in ms; None when nothing waits for time."""
        if self.state == "down":
            return self._dial_at
        times = [self.inbox.next_expiry()]
        if self.state == "parked":
            times.append(self._dial_at or None)
        if self.state in ("dialing", "greeting"):
            times.append(self._give_up_at)
        if self.state == "open":
            times += [self._ping_at, self.sending.paused_until or None]
            if self.book.unsettled < wire.OPEN_REQUESTS:
                times.append(self._receipt_at)
            if self.book.first <= self.sending.sent:
                times.append(max(self.sending.progress, self._ping_at - self._hb) + STALL_MS)
        return min((t for t in times if t is not None), default=None)

    def take(self, now: int) -> Batch:
        """Everything to be done since the last call, with what became sendable."""
        self.tick(now)
        batch, self.batch = self.batch, Batch()
        return batch

    # -- timers ----------------------------------------------------------------------------------------------------

    def _ping(self, now: int) -> None:
        stalled = self.book.first <= self.sending.sent and now - self.sending.progress >= STALL_MS
        early = stalled and now >= self._ping_at - self._hb + STALL_MS
        early = early or (self.inbox.unconfirmed > UNCONFIRMED_MAX and not self._pinged)
        if now < self._ping_at and not early:
            return
        self._k += 1
        self._pinged[self._k] = self.sending.sent
        self._ping_at = now + self._hb
        self.batch.sends.append(wire.Ping(self._k, self.profile.activity))

    def _flush_receipts(self, now: int) -> None:
        """Receipts queue behind mail, and travel many at a time."""
        moves = self.inbox.moves
        if not moves:
            self._receipt_at = None
            return
        if self._receipt_at is None or self.inbox.urgent:
            self._receipt_at = now if self.inbox.urgent else now + RECEIPT_DELAY_MS
            self.inbox.urgent = False
        full = len(moves) >= wire.RECEIPT_IDS
        if (now < self._receipt_at and not full) or self.book.unsettled >= wire.OPEN_REQUESTS:
            return
        rows: dict[tuple[str, str, int], list[str]] = {}
        taken, size = 0, 0
        for status, proof, at, key in moves[: wire.RECEIPT_IDS]:
            group = (status, proof, max(0, now - at))
            size += len(key.encode()) + (0 if group in rows else len(proof.encode()) + 40) + 3
            if taken and size > RECEIPT_SIZE:
                break
            rows.setdefault(group, []).append(key)
            taken += 1
        injected = [key for status, _, _, key in moves[:taken] if status == "injected"]
        self.inbox.moves = moves[taken:]
        self._receipt_at = now if self.inbox.moves else None
        moved = [[status, proof, ago, keys] for (status, proof, ago), keys in rows.items()]
        row, _ = self.submit(now, "receipt", {"moved": moved})
        if injected:
            self._receipts[row] = injected

    # -- actions of the table --------------------------------------------------------------------------------------

    def _greet(self, now: int, _command: Any) -> None:
        book, profile = self.book, self.profile
        self.state = "greeting"
        self._give_up_at = now + wire.WELCOME_WAIT_MS
        term = book.term if book.name == profile.name else 0
        ob = "" if profile.mode == "view" else book.ob
        who = (profile.name, term, self._take, profile.hb, profile.meta, profile.mailbox, profile.store, profile.life)
        hello = wire.Hello(profile.mode, profile.inst, ob, book.number(book.first), *who)
        self.batch.sends.append(hello)

    def _adopt(self, now: int, welcome: wire.Welcome) -> None:
        book = self.book
        first = self.state == "greeting"
        book.name, book.term, book.store = welcome.name, welcome.term, welcome.store
        book.seq, book.chain = welcome.seq, welcome.chain
        self.batch.writes.append(PutBook(book))
        self.profile.name = welcome.name or self.profile.name
        self.profile.mailbox, self.profile.store = welcome.id, welcome.store
        self._take = 0
        if first and self.profile.mode != "view" and self.sending.stale(welcome.high):
            self.sending.renumber(book.first)
            self._again(now)
            return
        self.state = "open"
        self._failures = 0
        self._hb = welcome.hb
        if first:
            self._pinged.clear()
            self._ping_at = now + self._hb
            self.sending.connected(now, welcome.high)
        self.inbox.connected((welcome.id, welcome.term))
        self.batch.news.append(Welcomed(welcome.name, welcome.id, welcome.term))

    def _again(self, now: int) -> None:
        """A new connection at once: this one speaks for an outbox id we no longer use."""
        self._drop_queries("connecting again")
        self._close()
        self.state = "down"
        self._dial_at = now

    def _refused(self, now: int, err: wire.Err) -> None:
        if err.code in _PASSING:
            self._back_off(now, err.text)
            self._dial_at = max(self._dial_at, now + min(err.retry, 60_000))
            return
        self._stop(Parked(err.code, err.term, err.by, err.text))
        if err.code != Code.CONFLICT:
            self._dial_at = now + REFUSED_MS

    def _park(self, now: int, gone: wire.Gone) -> None:
        self.profile.mailbox = ""  # another's from now on, under whatever name
        self._stop(Parked(gone.code, gone.term, {"inst": gone.by}, gone.text))

    def _stop(self, parked: Parked) -> None:
        self._drop_queries(parked.text)
        self.inbox.connected()
        self.state = "parked"
        self._dial_at = 0
        self._forget_term()
        self._take = 0
        self._close()
        self.batch.news.append(parked)

    def _forget_term(self) -> None:
        if self.book.term:
            self.book.term = 0
            self.batch.writes.append(PutBook(self.book))

    def _close(self) -> None:
        """Drop the connection, and what was to be sent on it."""
        self.batch.sends.clear()
        self.batch.connect = "close"

    def _back_off(self, now: int, text: Any) -> None:
        self._drop_queries("the connection was lost")
        self.state = "down"
        least, most = BACKOFF_MS
        span = min(most, least * 2 ** min(self._failures, 10))
        self._failures += 1
        self._dial_at = now + int(span * (1 + self._jitter()))
        self._close()
        self.batch.news.append(Lost(str(text or "")))

    def _drop_queries(self, text: str) -> None:
        for r in sorted(self._queries):
            self.batch.news.append(Finished(r, Code.BUSY, 0, text))
        self._queries.clear()

    def _settle(self, now: int, rep: wire.Rep) -> None:
        first = self.book.first
        self.sending.settle(now, rep)
        for row in range(first, self.book.first):
            if idents := self._receipts.pop(row, None):
                self.inbox.reported(idents)

    def _complaint(self, now: int, err: wire.Err) -> None:
        if err.of == "REQ":
            if self.sending.complaint(now, err):
                self._again(now)
        elif err.code == Code.UNKNOWN_SESSION:
            self._back_off(now, err.text)
        elif err.of == "QRY" and err.ref in self._queries:
            self._queries.discard(err.ref)
            self.batch.news.append(Finished(err.ref, err.code, 0, err.text))

    def _take_in(self, now: int, msg: wire.Msg) -> None:
        self.inbox.take_in(now, msg, self._k)

    def _part(self, now: int, part: wire.Part) -> None:
        if part.r in self._queries:
            self.batch.news.append(Parted(part.r, part.value, part.body))

    def _done(self, now: int, done: wire.Done) -> None:
        if done.r in self._queries:
            self._queries.discard(done.r)
            self.batch.news.append(Finished(done.r, done.code, done.seq, done.text))

    def _compare(self, now: int, pong: wire.Pong) -> None:
        sent = self._pinged.pop(pong.k, None)
        for k in [k for k in self._pinged if k < pong.k]:
            del self._pinged[k]
        if sent is not None and self.profile.mode != "view":
            self.sending.compare(sent, pong.high)
        self.inbox.compare(pong.k, pong, self._k)

    def _end(self, now: int, _command: Any) -> None:
        self._drop_queries("goodbye")
        self.state = "parked"
        self._dial_at = 0
        self._close()
        self.batch.news.append(Ended())
