"""A stand-in for the bus, so that commands can be tried without a broker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from agent.asks import Answer
from agent.cli.call import Call
from agent.cli.main import cli
from agent.effects import Settled
from agent.outbox import StoredRow
from agent.person import Outcome, checked
from bus.client import News
from bus.errors import BusError, Unreachable

ID = "k3v7h2qmx5azt4cd"
OTHERS = ("demo", "doctor", "install", "uninstall", "statusline", "claude")  # have tests of their own
EVIL = "\x1b[31mred\x07\u202e"


@dataclass
class Script:
    """What a stand-in for the bus answers, and what it was asked."""

    answers: dict[str, Any] = field(default_factory=dict)
    settled: Settled | None = None
    reason: str = ""
    events: list[Any] = field(default_factory=list)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    done: list[tuple[str, dict[str, Any], bytes]] = field(default_factory=list)
    stored: StoredRow | None = None
    unsent: list[StoredRow] = field(default_factory=list)
    raises: BusError | None = None

    def answer(self, what: str, args: dict[str, Any]) -> Answer:
        if self.raises is not None:
            raise self.raises
        self.asked.append((what, args))
        found = self.answers.get(what, [])
        if callable(found):
            found = found(args)
        return found if isinstance(found, Answer) else Answer(list(found), 200)


class FakePerson:
    """Stands for agent.person.Person."""

    name, kind, live = "me", "human", None

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Any] = []

    def submit(
        self,
        op: str,
        args: dict[str, Any],
        body: bytes = b"",
        queue: bool = True,
        raw: bool = False,
        by_itself: bool = False,
    ) -> Outcome:
        if self.script.raises is not None:
            raise self.script.raises
        self.script.done.append((op, args, body))
        return Outcome(ID, 1, 1_700_000_000_000, self.script.settled, self.script.reason)

    def do(self, op: str, args: dict[str, Any], body: bytes = b"") -> dict[str, Any]:
        outcome = self.submit(op, args, body)
        if outcome.settled is None:
            raise Unreachable("not there (try later)")
        checked(outcome.settled)
        return outcome.settled.result

    @contextmanager
    def asking(self) -> Iterator[Any]:
        if self.script.raises is not None:
            raise self.script.raises
        yield self

    id = "00c0ffee"

    def ask(self, what: str, args: dict[str, Any], timeout: float = 5.0) -> Answer:
        if what == "inbox" and "of" in args:  # whether exactly these are still unread: they are
            names = [ident.rpartition("/") for ident in args["ids"]]
            named = zip(names, args["of"], strict=True)
            rows = [({"id": i, "host": h, "fid": fid, "status": "offered"}, b"") for (h, _, i), fid in named]
            return Answer(rows, 200)
        return checked(self.script.answer(what, args))

    @contextmanager
    def reading(self, mailbox: str, timeout: float) -> Iterator[None]:
        yield

    def sent(self, ident: str) -> StoredRow | None:
        return self.script.stored

    def unsent(self, mailbox: str, name: str) -> list[StoredRow]:
        return self.script.unsent

    def queued(self) -> int:
        return 0

    def drain(self) -> None:
        return

    def refusal(self) -> None:
        return None


class FakeView:
    """Stands for bus.client.View."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def query(self, what: str, args: dict[str, Any], timeout: float) -> Answer:
        return self.script.answer(what, args)

    def events(self, topics: Sequence[str], timeout: float | None, pulse: float = float("inf")) -> Iterator[Any]:
        yield from (News(*step) for step in self.script.events)


class FakeCall(Call):
    """A Call over the script."""

    def __init__(self, script: Script) -> None:
        super().__init__(version="1.2.3")
        self.script = script
        self.__dict__["person"] = FakePerson(script)

    @contextmanager
    def view(self, start: bool = True) -> Iterator[Any]:  # type: ignore[override]
        if self.script.raises is not None:
            raise self.script.raises
        yield FakeView(self.script)

    def wake(self) -> None:
        return


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Script:
    monkeypatch.setenv("TALKBUS_HOME", str(tmp_path / "bus"))
    monkeypatch.delenv("TALKBUS_NAME", raising=False)
    return Script()


def run(script: Script, *args: str, stdin: str | bytes | None = None, command: click.Command = cli) -> Result:
    return CliRunner().invoke(command, list(args), obj=FakeCall(script), input=stdin)


def stored(*rows: dict[str, Any], code: int = 200, text: str = "") -> Settled:
    return Settled(1, code, {"to": list(rows)} if rows else {}, text)


def row(name: str, status: str = "stored", code: int = 200, **more: Any) -> dict[str, Any]:
    return {"name": name, "host": "h", "status": status, "code": code, **more}


def letter(ident: str = ID, **more: Any) -> dict[str, Any]:
    made = {"id": ident, "from": "api", "host": "h", "fid": "1", "to": "me", "kind": "task", "tag": "", "re": ""}
    return {**made, "thread": "", "ts": 1_700_000_000_000, "status": "stored", "again": False, "n": 1, **more}
