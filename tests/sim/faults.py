"""What may go wrong in one run, and the broker's side of it: databases that are restored, deleted, or full."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field

from bus.core import Settings
from bus.store import Store
from tests.pair import Hub, empty_store
from tests.sim.truth import History, Truth

DATABASES = ("none", "none", "none", "broker restored", "broker deleted", "agent restored", "agent copied")


@dataclass(slots=True)
class Faults:
    """Probabilities of one run. `database` is the one kind of fault of the databases it may have."""

    crash_broker: float = 0.0  # for each turn of the broker
    crash_agent: float = 0.0  # for each turn of an agent
    cut: float = 0.0  # for each step
    drop: float = 0.0  # for each step: one frame
    full: float = 0.0  # for each step
    takeover: float = 0.0
    flood: bool = False  # more notes than a window holds, to who shows none before a task comes
    database: str = "none"
    batch: int = 4  # frames a turn
    settings: Settings = field(default_factory=Settings)

    @classmethod
    def draw(cls, rng: random.Random) -> Faults:
        """Half of the runs lack each kind, so that long quiet stretches happen too."""

        def maybe(most: float) -> float:
            return rng.choice((0.0, most / 4, most))

        tight = rng.random() < 0.25
        flood = not tight and rng.random() < 0.1
        return cls(
            flood=flood,
            crash_broker=maybe(0.02),
            crash_agent=maybe(0.03),
            cut=maybe(0.02),
            drop=maybe(0.04),
            full=maybe(0.01),
            takeover=maybe(0.06),
            database=rng.choice(DATABASES),
            batch=rng.choice((1, 3, 8)),
            settings=Settings(rate=4, burst=6) if tight else Settings(),
        )


@dataclass(frozen=True, slots=True)
class Backup:
    """A copy of the broker's database with its history."""

    data: bytes
    history: History


class SimHub(Hub):
    """A broker whose database can be replaced. Copies made after a restored one are of another future: dropped."""

    backups: list[Backup]

    def start(self) -> None:
        """Nobody is there yet."""
        super().start()
        if isinstance(self.bench.watch, Truth):
            self.bench.watch.here.clear()

    @property
    def truth(self) -> Truth:
        assert isinstance(self.bench.watch, Truth)
        return self.bench.watch

    def save(self) -> None:
        """Keep a copy of the database as it is now."""
        self.backups.append(Backup(self.store.dump(), copy.deepcopy(self.truth.history)))

    def go_back(self, backup: Backup | None) -> None:
        """The broker ends and begins again with an older database, or with none."""
        if self.up:
            self.crash()
        self.store.close()
        if backup is None:
            self.store = empty_store()
            self.backups.clear()
        else:
            self.store = Store.from_dump(backup.data)
            del self.backups[self.backups.index(backup) + 1 :]
        self.truth.restore(backup.history if backup else History())
        self.full = False
        self.start()
