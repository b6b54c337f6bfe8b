"""Who acts, and which outbox is his. No broker runs, so what is sent stays on the disk."""

from __future__ import annotations

from pathlib import Path

from agent.person import Person
from agent.seats import every
from bus.config import Home, home, load
from bus.private import private_dir


def stopped(root: Path) -> Home:
    """A bus that was told to stay down."""
    made = home({"TALKBUS_HOME": str(root)})
    private_dir(made.state)
    made.stop_mark.touch()
    return made


def script(on: Home, name: str) -> Person:
    return Person(on, load(on, {}), name, "script")


def test_every_name_has_an_outbox_of_its_own(tmp_path: Path) -> None:
    on = stopped(tmp_path / "bus")
    base = "a" * 59
    people = [script(on, name) for name in ("bob", base, f"{base}b", f"{base}c", f"{base}bcd")]
    sent = [person.submit("send", {"to": ["carol"], "new": True}, b"hello").id for person in people]
    assert [person.queued() for person in people] == [1] * len(people)
    for person in people:
        found = [person.sent(ident) for ident in sent]
        assert [row is not None for row in found] == [person is other for other in people]
    # Where names of up to 59 characters always had theirs.
    assert {"bob.cli", f"{base}.cli"} < {seat.name for seat in every(on)}
