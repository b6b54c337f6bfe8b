"""The broker's chores: new mail is found by search, the index stays in few parts, and nothing of it is done at once."""

from __future__ import annotations

from bus.chores import Chores
from bus.effects import PutMailbox, Read, Write
from bus.store import EVER, Store
from tests.test_store_reads import ANN, BOB, sent


class Measured:
    """A reader that is asked for nothing but sizes."""

    def __init__(self) -> None:
        self.asked = 0

    def measure(self) -> None:
        self.asked += 1


class Day:
    """Chores of a store in memory, with a clock that jumps to whatever is due."""

    def __init__(self) -> None:
        self.now = 0.0
        self.store = Store.memory()
        self.store.apply([PutMailbox(ANN), PutMailbox(BOB)])
        self.chores = Chores(self.store, Measured(), lambda: self.now, lambda: EVER)  # type: ignore[arg-type]

    def mail(self, number: int) -> None:
        writes: list[Write] = sent(f"m{number}", number, body=b"word%d and more" % number)
        self.store.apply(writes)
        self.chores.noticed(writes)

    def work(self) -> int:
        """Until nothing is due; how many slices that took."""
        for count in range(10_000):
            due = self.chores.due()
            if due is None:
                return count
            self.now = max(self.now, due)
            self.chores.work()
        raise AssertionError("the chores never end")

    def parts(self) -> int:
        """Of the index for search."""
        return int(self.store._db.execute("SELECT count(DISTINCT segid) FROM search_idx").fetchone()[0])

    def found(self, word: str) -> int:
        return len(list(self.store.read(Read(b"", 1, "search", {"query": word}, BOB.id, BOB.key, "owner"), 1)))


def test_mail_is_found_and_the_index_stays_in_few_parts() -> None:
    day = Day()
    for number in range(1, 101):
        day.mail(number)
        day.work()
    assert [day.found(f"word{number}") for number in (1, 50, 100)] == [1, 1, 1]
    assert day.parts() < 20


def test_a_piece_of_the_index_never_merges_what_is_there() -> None:
    """That took half a second at a time in a large store, and all mail waited."""
    store = Day().store
    for number in range(1, 41):
        store.apply(sent(f"m{number}", number, body=b"word%d" % number))
        assert store.index_piece() == 1
        assert store._db.execute("SELECT count(DISTINCT segid) FROM search_idx").fetchone()[0] == number
    while store.merge_piece():
        pass
    assert store._db.execute("SELECT count(DISTINCT segid) FROM search_idx").fetchone()[0] < 10
