"""The supervisor's folder: who finds it, who serves, who waits for whom."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from agent.delivery import terminal
from agent.delivery.maildir import sweep
from agent.delivery.terminal import Terminal, above
from bus import processes
from tests.e2e.wait import until

OWN, PARENT = os.getpid(), os.getppid()


@pytest.fixture
def maildirs(tmp_path: Path) -> Path:
    return tmp_path / "maildirs"


def test_it_is_found_by_ancestry_and_not_through_another_client(
    maildirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"CLAUDE_CONFIG_DIR": str(tmp_path)}
    assert above(maildirs, OWN, environ) is None
    made = Terminal.open(maildirs, PARENT)
    found = above(maildirs, OWN, environ)
    assert found is not None and found.path == made.path and found.supervised
    assert above(maildirs, PARENT, environ) is None
    monkeypatch.setattr(processes, "ancestors", lambda _: [77, PARENT])
    assert above(maildirs, 78, environ) is not None  # a shim between the two does no harm
    monkeypatch.setattr(terminal.clientfile, "read", lambda pid, _: object() if pid == 77 else None)
    assert above(maildirs, 78, environ) is None


def test_a_folder_lives_as_long_as_its_supervisor(maildirs: Path) -> None:
    made = Terminal.open(maildirs, OWN)
    made.say(terminal.TERMINAL)
    assert made.way == "terminal" and sweep(maildirs) == 0
    dead = Terminal(made.path.rename(maildirs / f"{OWN}-older"))
    assert not dead.supervised and dead.way == ""
    assert sweep(maildirs) == 1


def test_who_serves_stays_until_it_ends(maildirs: Path) -> None:
    made = Terminal.open(maildirs, OWN)
    assert made.served() is None and made.mine(OWN)
    served = made.served()
    assert served is not None and (served.client, served.agent, served.living) == (OWN, OWN, True)
    start = processes.start_time(OWN)
    (made.path / "client").write_text(f"{OWN} {start} {PARENT} {processes.start_time(PARENT)}\n")
    assert not made.mine(OWN)
    (made.path / "client").write_text(f"{OWN} {start} {PARENT} older\n")
    assert made.mine(OWN) and (made.served() or served).agent == OWN
    (made.path / "client").write_text("half a li")
    assert made.served() is None


def test_an_agent_waits_for_the_supervisors_own_one(maildirs: Path) -> None:
    made = Terminal.open(maildirs, OWN)
    assert made.wait_free(0)
    made.host(True)
    assert not made.wait_free(0)
    threading.Timer(0.05, made.host, [False]).start()
    assert made.wait_free(10)


def test_what_a_command_asks_is_told_whole(maildirs: Path) -> None:
    made = Terminal.open(maildirs, OWN)
    assert not made.printed(["vm/a", "vm/b"], timeout=0)
    (request,) = made.requests()
    assert (request.printed, request.keys, request.pid) == (True, ["vm/a", "vm/b"], OWN)
    assert request.start == processes.start_time(OWN)
    for garbage in ('{"not": "a request"}', "[]", "{", '{"ask": "lend", "keys": 3, "pid": 1, "start": ""}'):
        request.path.write_text(garbage)
        assert made.requests() == [] and not request.path.exists()


def test_a_command_prints_only_what_the_agent_has_lent_it(maildirs: Path) -> None:
    made = Terminal.open(maildirs, OWN)
    assert made.lend(["vm/a"], timeout=0) is None and not made.requests(), "nobody answered, and nobody asks any more"
    made.host(True)
    said: list[dict[str, bool | None] | None] = []
    command = threading.Thread(target=lambda: said.append(made.lend(["vm/a", "vm/b"])))
    command.start()
    until(made.requests, "the request")
    made.requests()[0].answer({"vm/a": None, "vm/c": True})
    command.join()
    assert said == [{"vm/a": None}] and not list((made.path / "reads").iterdir())


def test_the_boxes_of_living_agents_are_theirs(maildirs: Path) -> None:
    made = Terminal.open(maildirs, PARENT)
    mine, supervisors = made.box(OWN).make(), made.box(PARENT).make()
    made.box(1).make()  # init lives
    dead = made.box(2**22 + 1).make()
    assert {box.path for box in made.left()} == {mine.path, supervisors.path, dead.path}
