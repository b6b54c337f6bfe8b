"""Which path is taken, and what a supervisor is given to type: the ladder over a stand-in for the session."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.book import Book, Shown
from agent.delivery import ladder as module
from agent.delivery import readers
from agent.delivery.ladder import Ladder
from agent.delivery.maildir import Box
from agent.delivery.terminal import NOTICE, TERMINAL, WAITS, Terminal
from agent.effects import Batch
from agent.inbox import Inbox
from bus import processes
from bus.config import Home, load
from bus.wire import Msg
from tests.e2e.wait import until
from tests.test_transcript import answer, line, request, user

OWN = os.getpid()


class Loop:
    """The ledger of a link, without the link."""

    def __init__(self) -> None:
        self.on_rebuilt: Callable[..., None] | None = None
        self.book = Book(ob="o")
        self.batch = Batch()
        self.inbox = Inbox(self.book, lambda: self.batch)
        self.submitted: list[tuple[str, dict[str, Any]]] = []
        self._n = 0

    def call(self, fn: Callable[[Any, int], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(self, 1000))
        return future

    def submit(self, _now: int, op: str, args: dict[str, Any]) -> None:
        self.submitted.append((op, args))

    def status(self, *_: object) -> Any:
        return SimpleNamespace(connected=True, name="bob", id="b1", term=1, refused=None, parked=None)

    def ask(self, *_: object) -> Any:
        return SimpleNamespace(code=503)

    def comes(self, ident: str, kind: str = "task", body: bytes = b"do it") -> str:
        self._n += 1
        self.inbox.take_in(0, Msg(self._n, self._n - 1, ident, "ada", "f1", "vm", "bob", kind, 5, body=body), 0)
        return f"vm/f1/{ident}"


class Bed:
    """A ladder of this very process as the client, below a supervisor that is this process, too."""

    def __init__(self, root: Path, *, hosted: bool = False, supervised: bool = True) -> None:
        self.home = Home(root / "config", root / "state", root / "run")
        self.config = root / "claude"
        (self.config / "sessions").mkdir(parents=True)
        self.loop = Loop()
        seat = SimpleNamespace(remember=lambda _: None)
        session: Any = SimpleNamespace(loop=self.loop, seat=seat, pulse=None, former="")
        (root / "run").mkdir(mode=0o700)
        self.terminal = Terminal.open(self.home.maildirs, OWN)
        environ = {"CLAUDE_CONFIG_DIR": str(self.config)}
        above = self.terminal if supervised else None
        self.another = lambda: Ladder(
            session, self.home, load(self.home), environ, OWN, lambda _: False, terminal=above, hosted=hosted
        )
        self.ladder = self.another()
        self.maildir = self.ladder._maildir.path

    def says(self, status: str, **more: Any) -> None:
        start = str(processes.start_time(OWN)).rpartition("-")[2]
        said = {"pid": OWN, "procStart": start, "sessionId": "s1", "cwd": "/x", "status": status, **more}
        (self.config / "sessions" / f"{OWN}.json").write_text(json.dumps(said))

    def turn(self) -> None:
        asyncio.run(self.ladder._turn())

    @property
    def box(self) -> Box:
        return self.terminal.box(OWN)

    def lend(self, *keys: str) -> Any:
        """As `talkbus inbox` asks, which is this process as well."""
        self.terminal.host(True)
        with ThreadPoolExecutor() as pool:
            lent = pool.submit(self.terminal.lend, keys, 10.0)
            until(lambda: self.terminal.requests() or lent.done(), "the request")
            self.turn()
            return lent.result()

    def asks(self, what: str, *keys: str, start: str = "") -> None:
        """A request of a command that is not waited for here."""
        said = {"ask": what, "keys": keys, "pid": OWN, "start": start or processes.start_time(OWN)}
        (self.terminal.path / "reads" / what).write_text(json.dumps(said))

    def text(self) -> str:
        (name,) = self.box.waiting()
        return self.box.text(name)

    def typed(self, shown: bool = True) -> None:
        """As the supervisor does."""
        for name in self.box.waiting():
            claim = self.box.claim(name)
            assert claim is not None
            self.box.finish(claim, shown)


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


# -- the rank ----------------------------------------------------------------------------------------------------------


def test_the_rank(bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ladder = bed.ladder
    assert ladder.path() == "tools"  # the supervisor does not say how it could type
    (bed.maildir / "activity").write_text("idle Stop\n")
    assert ladder.path() == "hooks"
    bed.terminal.say(NOTICE)
    assert ladder.path() == "notice"
    bed.terminal.say(TERMINAL)
    assert ladder.path() == "terminal"
    ladder._channel = channel = SimpleNamespace(open=lambda: True)  # type: ignore[assignment]
    assert ladder.path() == "channel"
    (bed.maildir / "waiter").write_text(f"{OWN}\n")
    assert ladder.path() == "rewake"
    monkeypatch.setattr(module.native, "inbound", lambda *_: SimpleNamespace(open=True))
    socket = tmp_path / "s"
    socket.touch()
    bed.says("idle", messagingSocketPath=str(socket))
    ladder._look()
    assert ladder.path() == "native"
    assert channel.open()


def test_only_where_supervised(tmp_path: Path) -> None:
    bed = Bed(tmp_path, supervised=False)
    bed.terminal.say(TERMINAL)
    assert bed.ladder.path() == "tools"


def test_another_agent_that_serves_is_typed_for(bed: Bed) -> None:
    bed.terminal.say(TERMINAL)
    other, start = os.getppid(), processes.start_time(os.getppid())
    own = processes.start_time(OWN)
    (bed.terminal.path / "client").write_text(f"{OWN} {own} {other} {start}\n")
    assert bed.ladder.path() == "tools"
    (bed.terminal.path / "client").write_text(f"{OWN} {own} {other} long-ago\n")  # it has ended
    assert bed.ladder.path() == "terminal"


def test_the_supervisors_own_agent_leaves_the_clients_inbox_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed = Bed(tmp_path, hosted=True)
    monkeypatch.setattr(module.native, "inbound", lambda *_: SimpleNamespace(open=True))
    socket = tmp_path / "s"
    socket.touch()
    bed.says("idle", messagingSocketPath=str(socket))
    bed.ladder._look()
    assert bed.ladder.path() == "inbox"
    bed.terminal.say(TERMINAL)
    assert bed.ladder.path() == "terminal"


# -- what is typed -----------------------------------------------------------------------------------------------------


def test_a_task_is_offered_to_an_idle_session_and_shown_with_proof_only(bed: Bed) -> None:
    bed.terminal.say(TERMINAL)
    bed.says("busy")
    key = bed.loop.comes("a" * 16)
    bed.turn()
    assert not bed.box.waiting() and key not in bed.loop.book.ledger
    bed.says("idle")
    bed.turn()
    assert bed.text().startswith("From other agent sessions") and f'<peer-message id="{"a" * 16}"' in bed.text()
    assert bed.loop.book.ledger[key].state == "offering" and bed.loop.book.ledger[key].way == "terminal"
    bed.typed()
    bed.turn()
    assert bed.loop.book.ledger[key].state == "offering" and not bed.box.waiting()


def test_what_comes_before_it_was_typed_goes_along_and_a_note_starts_nothing(bed: Bed) -> None:
    bed.terminal.say(TERMINAL)
    bed.loop.comes("n" * 16, "note")
    bed.turn()
    assert not bed.box.waiting()
    bed.loop.comes("a" * 16)
    bed.turn()
    bed.loop.comes("b" * 16)
    bed.turn()
    assert all(f'<peer-message id="{letter * 16}"' in bed.text() for letter in "nab")


def test_of_a_program_without_records_the_terminal_is_the_proof(bed: Bed) -> None:
    bed.terminal.say(TERMINAL)
    key = bed.loop.comes("a" * 16)
    bed.turn()
    (name,) = bed.box.waiting()
    bed.typed()
    assert not bed.box.was_taken(name)
    bed.turn()
    line = bed.loop.book.ledger[key]
    assert (line.state, line.proof) == ("shown", "terminal")
    assert bed.box.was_taken(name) and not bed.box.was_taken("another"), "who typed it is told"


def test_without_a_trace_it_is_not_typed_again_in_this_life(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic_ns() // 1_000_000
    monkeypatch.setattr(Ladder, "_now", staticmethod(lambda: now))
    bed.terminal.say(TERMINAL)
    bed.says("idle")
    key = bed.loop.comes("a" * 16)
    bed.turn()
    bed.typed()
    bed.turn()
    now += 20_000
    bed.turn()
    assert [(letter.key, letter.repeat) for letter in bed.loop.inbox.waiting()] == [(key, True)]
    now += module.REST_MS
    bed.turn()
    assert bed.ladder.path() == "terminal" and not bed.box.waiting()
    bed.loop.comes("b" * 16)
    bed.turn()
    assert "b" * 16 in bed.text() and "a" * 16 not in bed.text()


def test_a_notice_is_given_once_and_offers_nothing(bed: Bed) -> None:
    bed.terminal.say(NOTICE)
    key = bed.loop.comes("a" * 16)
    bed.turn()
    assert bed.text() == WAITS and key not in bed.loop.book.ledger
    bed.typed(shown=False)
    bed.turn()
    bed.turn()
    assert not bed.box.waiting() and key not in bed.loop.book.ledger
    bed.loop.comes("b" * 16)
    bed.turn()
    assert bed.text() == WAITS


def test_a_notice_of_what_was_read_meanwhile_is_taken_back(tmp_path: Path) -> None:
    bed = Bed(tmp_path, hosted=True)
    bed.terminal.say(NOTICE)
    key = bed.loop.comes("a" * 16)
    bed.turn()
    assert bed.box.waiting()
    assert bed.lend(key) == {key: False}
    bed.terminal.printed([key], timeout=0)
    bed.turn()
    line = bed.loop.book.ledger[key]
    assert (line.state, line.proof) == ("shown", "printed")
    bed.turn()
    assert not bed.box.names() and not bed.terminal.requests()


def test_what_was_to_be_typed_and_is_read_meanwhile_is_not_typed(tmp_path: Path) -> None:
    bed = Bed(tmp_path, hosted=True)
    bed.terminal.say(TERMINAL)
    read = bed.loop.comes("a" * 16)
    bed.loop.comes("b" * 16)
    bed.turn()
    assert bed.box.waiting()
    assert bed.lend(read) == {read: False}, "it was typed nowhere, so this is no repeat"
    assert bed.loop.book.ledger[read].state == "offering"
    assert "b" * 16 in bed.text() and "a" * 16 not in bed.text()
    bed.terminal.printed([read], timeout=0)
    bed.turn()
    line = bed.loop.book.ledger[read]
    assert (line.state, line.proof) == ("shown", "printed") and not bed.terminal.requests()


def test_what_the_supervisor_types_already_is_not_lent(tmp_path: Path) -> None:
    bed = Bed(tmp_path, hosted=True)
    bed.terminal.say(TERMINAL)
    key = bed.loop.comes("a" * 16)
    bed.turn()
    assert bed.box.claim(bed.box.waiting()[0]) is not None
    assert bed.lend(key) == {}


def test_a_reader_that_ends_without_a_word_leaves_possible_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed = Bed(tmp_path, hosted=True)
    bed.terminal.say(TERMINAL)
    bed.says("busy")
    key, beyond = bed.loop.comes("a" * 16), "vm/f1/" + "b" * 16
    assert bed.lend(key, beyond) == {key: False, beyond: None}
    bed.loop.comes("b" * 16)
    assert bed.loop.inbox.waiting() == [], "while it lives, both are its own"
    monkeypatch.setattr(readers, "alive", lambda *_: False)
    bed.turn()
    assert [(letter.key, letter.repeat) for letter in bed.loop.inbox.waiting()] == [(key, True), (beyond, True)]
    bed.asks("lend", key)
    bed.turn()
    assert bed.loop.inbox.waiting() and not list((bed.terminal.path / "reads").iterdir()), "nobody waits for it"


def test_the_next_reader_gets_what_a_killed_one_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(tmp_path, hosted=True)
    bed.says("busy")
    key, beyond = bed.loop.comes("a" * 16), "vm/f1/" + "b" * 16
    bed.asks("lend", key, beyond, start="first")
    monkeypatch.setattr(readers, "alive", lambda _pid, start: True)
    bed.turn()
    monkeypatch.setattr(readers, "alive", lambda _pid, start: start != "first")
    assert bed.lend(key, beyond) == {key: True, beyond: True}
    bed.loop.comes("b" * 16)
    bed.turn()
    assert bed.loop.inbox.waiting() == [], "both are in the hands of the second"


def test_what_was_printed_stays_shown_when_its_reader_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(tmp_path, hosted=True)
    bed.says("busy")
    printed, other = bed.loop.comes("a" * 16), bed.loop.comes("b" * 16)
    assert bed.lend(printed, other) == {printed: False, other: False}
    bed.asks("printed", printed)
    monkeypatch.setattr(readers, "alive", lambda *_: False)
    bed.turn()
    assert bed.loop.book.ledger[printed].state == "shown"
    assert [(letter.key, letter.repeat) for letter in bed.loop.inbox.waiting()] == [(other, True)]


def test_what_a_former_agent_had_lent_is_marked_all_the_same(tmp_path: Path) -> None:
    bed = Bed(tmp_path, hosted=True)
    bed.says("busy")
    key = bed.loop.comes("a" * 16)
    assert bed.lend(key) == {key: False}
    bed.ladder = bed.another()
    bed.loop.inbox.unshown([key], certain=False)  # as after a restart: it waits, and was offered
    bed.asks("printed", key)
    bed.turn()
    assert bed.loop.book.ledger[key].state == "shown"


def test_a_reader_that_does_not_wait_any_more_is_lent_nothing(tmp_path: Path) -> None:
    bed = Bed(tmp_path, hosted=True)
    bed.says("busy")
    key = bed.loop.comes("a" * 16)
    bed.asks("lend", key)
    (request,) = bed.terminal.requests()
    request.path.unlink()
    bed.terminal.requests = lambda: [request]  # type: ignore[method-assign]
    bed.turn()
    assert [(letter.key, letter.repeat) for letter in bed.loop.inbox.waiting()] == [(key, False)]
    assert not list((bed.terminal.path / "reads").iterdir())


def test_a_turn_that_failed_does_not_hold_up_the_next_text(bed: Bed) -> None:
    """As with an error of the model's provider: the text is in the conversation, and its model was told nothing."""
    bed.terminal.say(TERMINAL)
    bed.says("idle")
    place = bed.config / "projects" / "-x" / "s1.jsonl"
    place.parent.mkdir(parents=True)
    place.touch()
    first = bed.loop.comes("a" * 16)
    bed.turn()
    text = bed.text()
    bed.typed()
    bed.loop.comes("b" * 16)
    bed.turn()
    assert not bed.box.waiting(), "it may still stand in the line"
    place.write_bytes(line({**user(text), "promptSource": "typed"}) + b"\n")
    bed.turn()
    assert "b" * 16 in bed.text() and bed.loop.book.ledger[first].state == "offering"


# -- a former agent of this client -------------------------------------------------------------------------------------


def test_what_a_former_agent_handed_over_stays_on_its_way_until_its_turn_is_answered(bed: Bed) -> None:
    bed.says("busy")
    place = bed.config / "projects" / "-x" / "s1.jsonl"
    place.parent.mkdir(parents=True)
    taken = user("a text (talkbus delivery cafe00cafe00)")
    place.write_bytes(line(taken) + b"\n" + line(request("r", taken["message"])) + b"\n")
    key = "vm/f1/" + "a" * 16
    bed.loop.book.ledger[key] = Shown("offering", "native cafe00cafe00")
    bed.ladder = bed.another()
    asyncio.run(bed.ladder.recover())
    bed.loop.comes("a" * 16)
    bed.turn()
    assert bed.loop.inbox.waiting() == [] and bed.loop.book.ledger[key].state == "offering"
    bed.loop.inbox = Inbox(bed.loop.book, lambda: bed.loop.batch)
    assert bed.loop.on_rebuilt is not None
    bed.loop.on_rebuilt(bed.loop)  # the book was read from the disk again
    bed.loop._n = 0
    bed.loop.comes("a" * 16)
    bed.turn()
    assert bed.loop.inbox.waiting() == []
    with open(place, "ab") as file:
        file.write(line(answer("r")) + b"\n")
    bed.turn()
    told = bed.loop.book.ledger[key]
    assert (told.state, told.proof) == ("shown", "transcript")


def test_a_hook_of_a_running_turn_goes_before_typing(bed: Bed) -> None:
    bed.terminal.say(TERMINAL)
    (bed.maildir / "activity").write_text("busy PreToolUse\n")
    bed.says("busy")
    bed.loop.comes("a" * 16)
    bed.turn()
    assert Box(bed.maildir).waiting() and not bed.box.waiting()
    bed.says("idle")  # the turn ended, and no hook took it
    bed.turn()
    assert not Box(bed.maildir).waiting() and bed.box.waiting()
    bed.says("busy")
    bed.turn()
    assert Box(bed.maildir).waiting() and not bed.box.waiting()


def test_a_tool_result_takes_what_was_not_typed(bed: Bed) -> None:
    bed.terminal.say(TERMINAL)
    key = bed.loop.comes("a" * 16)
    bed.turn()
    asyncio.run(bed.ladder.give_way())
    assert [letter.key for letter in bed.loop.inbox.waiting()] == [key] and not bed.box.names()
    assert key not in bed.loop.book.ledger


def test_the_next_agent_gets_what_was_not_typed_and_nothing_more_is_offered(bed: Bed) -> None:
    bed.terminal.say(TERMINAL)
    bed.loop.comes("a" * 16)
    bed.turn()
    asyncio.run(bed.ladder.hand_over(5))
    assert not bed.box.names()
    bed.turn()
    assert not bed.box.names() and not bed.loop.book.ledger


def test_a_successor_finds_what_a_program_without_records_has_taken(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    bed.terminal.say(TERMINAL)
    keys = [bed.loop.comes(letter * 16) for letter in "ab"]
    bed.turn()
    bed.typed()
    bed.loop.inbox = Inbox(bed.loop.book, lambda: bed.loop.batch)  # of another process
    asyncio.run(bed.another().recover())
    assert [(bed.loop.book.ledger[key].state, bed.loop.book.ledger[key].proof) for key in keys] == [
        ("shown", "terminal")
    ] * 2


def test_no_body_is_too_long_to_be_typed(bed: Bed) -> None:
    bed.terminal.say(TERMINAL)
    for n, body in enumerate((b" @" * 9000, b"/a.png " * 9000, "\U0001f600 @".encode() * 9000)):
        bed.loop.comes(f"{n}" * 16, body=body)
    for _ in range(3):
        bed.turn()
        if bed.box.waiting():
            bed.typed()
    bed.turn()
    assert [line.state for line in bed.loop.book.ledger.values()] == ["shown"] * 3
