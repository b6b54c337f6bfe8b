"""An application over a link, as the simulation plays it: it sends, offers, shows, proves, crashes, comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.effects import Batch, News, Parked, Welcomed
from agent.inbox import Letter
from agent.outbox import Outbox
from bus.wire import Msg, Welcome
from tests.pair import Seat

if TYPE_CHECKING:
    from tests.sim.truth import Truth


@dataclass(slots=True)
class Hand:
    """A message a path has; `shown` once it is before somebody's eyes."""

    letter: Letter
    shown: bool = False

    @property
    def name(self) -> str:
        """What the checker calls it, whatever the ledger does."""
        return f"{self.letter.msg.host}/{self.letter.msg.id}"


@dataclass(frozen=True, slots=True)
class Saved:
    """A copy of an agent's database, with what the checker knew then."""

    data: bytes
    ids: dict[int, str]
    last_told: int


class AppSeat(Seat):
    """`ledger` counts the lives of the database: a restored or copied one is another ledger to the checker."""

    _ledgers = 0

    def __init__(self, *args: Any) -> None:
        self.ids: dict[int, str] = {}
        self.last_told = 0
        self.hands: dict[str, Hand] = {}
        self.known: set[str] = set()
        self.origin: dict[str, str] = {}
        self.names: dict[str, str] = {}  # a key of the ledger -> the checker's name
        self.mailbox = ""
        self.former: list[str] = []  # what a former life had shown, and could not prove
        self.moved = 0  # how often it got another mailbox
        self.taken_at: dict[str, int] = {}
        self.reads_transcript = False
        self.patient = False  # what wakes nobody waits here until a task comes
        self.left = False
        self.known_here = False  # this process was welcomed, so another name is no longer its own choice
        self.renamed = 0
        self.lives = 1
        self.unsure: set[str] = set()  # what was taken back from a path that may have shown it
        self.asked: set[int] = set()
        self.saves: list[Saved] = []
        self.ledgers: list[int] = []
        super().__init__(*args)
        self.new_ledger()

    @property
    def truth(self) -> Truth:
        return self.bench.watch  # type: ignore[return-value]

    @property
    def ledger(self) -> int:
        return self.ledgers[-1]

    def new_ledger(self) -> None:
        AppSeat._ledgers += 1
        self.ledgers.append(AppSeat._ledgers)
        self.known = set()

    # -- the shell -------------------------------------------------------------------------------------------------

    def hand(self, command: Any, frames: Sequence[bytes]) -> None:
        if isinstance(command, Welcome) and command.id != self.mailbox:
            self.mailbox = command.id
            self.moved += 1
        if isinstance(command, Msg):
            key = f"{command.host}/{command.id}"
            self.origin[key], self.taken_at[key] = self.mailbox, self.moved
        super().hand(command, frames)

    def commit(self, batch: Batch) -> None:
        super().commit(batch)
        if batch.writes:
            self.truth.wrote(self, batch.writes)

    def tell(self, news: News) -> None:
        super().tell(news)
        if isinstance(news, Welcomed):
            self.left = False
            self.known_here = True
        elif isinstance(news, Parked) and self.known_here and news.by.get("presence"):
            self.renamed += 1  # the database has forgotten it: it goes on as a newcomer does
            self.link.knock(self.bench.now, f"{self.profile.name[:40]}-{self.renamed + 1}")

    def restart(self) -> None:
        for key, hand in self.hands.items():
            if hand.shown:
                self.truth.doubt(self, hand.name)
                self.former.append(key)
        self.hands.clear()
        self.asked.clear()
        self.left = self.known_here = False
        self.lives += 1
        super().restart()

    # -- what people do --------------------------------------------------------------------------------------------

    def get(self, choose: Sequence[Letter], crash: str = "", ordered: bool = True) -> None:
        """Take letters in hand; after the commit they are handed out."""
        given = self.link.inbox.offer(self.bench.now, choose, "path")
        self.flush(crash)
        if crash:
            return
        for letter in given:
            hand = self.hands[letter.key] = Hand(letter)
            self.names[letter.key] = hand.name
            self.truth.offer(self, hand.name, letter.msg, ordered)

    def show(self, keys: Sequence[str]) -> None:
        """Before somebody's eyes, unless the transcript proves that it was there already."""
        for key in keys:
            hand = self.hands[key]
            sight = self.truth.sights.get((self.ledger, hand.name))
            if not hand.shown and not (hand.letter.repeat and self.reads_transcript and sight and sight.times):
                self.truth.show(self, hand.name, hand.letter.repeat)
            hand.shown = True

    def prove(self, keys: Sequence[str], crash: str = "") -> None:
        """There is proof."""
        self.link.inbox.shown(self.bench.now, keys, "proof")
        if not crash:
            for key in keys:
                self.hands.pop(key, None)
        self.flush(crash)

    def look_back(self) -> None:
        """Look for what a former life had shown; whoever can read the transcript finds it."""
        if self.former and self.reads_transcript:
            self.link.inbox.proven(self.bench.now, self.former, "found")
            self.flush()
        self.former.clear()

    def put_back(self, keys: Sequence[str], certain: bool) -> None:
        """It was not shown after all; `certain` only where that is true."""
        for key in keys:
            if self.hands[key].shown:
                self.truth.doubt(self, self.hands[key].name)
            if not certain:
                self.unsure.add(self.hands[key].name)
            del self.hands[key]
        self.link.inbox.unshown(keys, certain)
        self.flush()

    def choice(self) -> list[Letter]:
        """What waits and may be shown now."""
        waiting = self.link.inbox.waiting()
        return waiting if not self.patient or any(letter.wakes for letter in waiting) else []

    def see_all(self) -> bool:
        """Show and prove everything there is. False when there is nothing."""
        self.look_back()
        waiting = self.choice()
        if not waiting and not self.hands:
            return False
        if waiting:
            self.get(waiting)
        keys = list(self.hands)
        self.show(keys)
        self.prove(keys)
        return True

    # -- the database ----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Keep a copy of the database as it is now."""
        self.saves.append(Saved(self.outbox.dump(), dict(self.ids), self.last_told))

    def restore(self, saved: Saved) -> None:
        """The process ended; it begins again with an older database."""
        self.outbox.close()
        self.outbox = Outbox.from_dump(saved.data)
        self.ids = dict(saved.ids)
        self.last_told = saved.last_told
        self.restart()
        self.former.clear()
        self.new_ledger()
