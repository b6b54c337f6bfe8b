"""A rename that was done and not heard: by an agent that died, by a person whose call was over, by what was queued."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import visit
from agent.person import Person
from agent.session import Session as AgentSession
from bus.config import home, load
from bus.daemon import Record, published
from bus.trust import ensure_keys
from tests.live.homes import Peer
from tests.live.test_cli import UNREACHABLE, Bus, until
from tests.live.test_cli_session import Session
from tests.live.test_mcp_bed import bed, bodies
from tests.live.test_mcp_process import Raw

pytestmark = [pytest.mark.timeout(90), pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")]


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    cwd = tmp_path / "projects"
    cwd.mkdir()
    made = Bus(tmp_path / "bus", cwd)
    made.ok("up")
    yield made
    made.run("down")


def running(root: Path) -> Record:
    record = published(home({"TALKBUS_HOME": str(root)}))
    assert record is not None
    return record


@contextmanager
def deaf(bus: Bus) -> Iterator[None]:
    """The broker lives and says nothing."""
    pid = running(bus.root).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def rename(root: Path, name: str, new: str, text: str = "") -> None:
    """Somebody gives this mailbox another name, and writes to it."""
    record = running(root)
    with Peer(record.router, record.key, ensure_keys(home({"TALKBUS_HOME": str(root)}))) as peer:
        peer.hello(name, mode="send", inst="renamer")
        assert peer.do("rename", {"name": new}).code == 200
        if text:
            peer.post(new, text)


def names(bus: Bus) -> set[str]:
    return {row["name"] for row in bus.ok("peers", "--all", "--json").json}


def test_an_agent_that_died_before_the_word_of_its_rename_comes_back_under_the_new_name(tmp_path: Path) -> None:
    with bed(tmp_path / "bus") as on:
        on.stop_mark()
        first, again = Raw(on, "bob").hello(), None
        try:
            first.call("set_status")
            first.process.send_signal(signal.SIGSTOP)
            rename(on.root, "bob", "robert", "for robert")
            first.end()
            again = Raw(on, "bob").hello()
            text = again.call("set_status")
            assert "robert@" in text and bodies(text) == ["for robert"]
        finally:
            for raw in (first, again):
                if raw is not None:
                    raw.end()


@pytest.mark.parametrize(("asked", "says"), [("", True), ("api", False)])
def test_who_asks_for_a_name_means_the_name(tmp_path: Path, asked: str, says: bool) -> None:
    place = home({"TALKBUS_HOME": str(tmp_path / "bus")})
    config = load(place, {"TALKBUS_NAME": asked} if asked else {})
    for _ in range(2):
        one = AgentSession(place, config, {"CLAUDE_PROJECT_DIR": str(tmp_path / "api")})
        known = one.profile.mailbox
        one.seat.renamed("api", "0123abcd", "s")
        one.stop(0.1)
    assert known == ("0123abcd" if says else "")


def test_a_rename_that_cannot_reach_the_broker_is_not_done_later(bus: Bus) -> None:
    before = bus.ok("whoami", "--json").json["name"]
    with deaf(bus):
        refused = bus.run("rename", "ann")
    assert refused.code == UNREACHABLE and "nothing was written" in refused.err
    bus.ok("send", "--new", "web", "hello")
    assert bus.ok("inbox", "--as", "web", "--json").json[0]["from"] == before
    assert "ann" not in names(bus)


@pytest.mark.parametrize("first", [False, True])
def test_a_persons_rename_whose_reply_was_not_waited_for(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """Done at the broker, and the call was over: `first` when it was the first of this person at all."""
    place = home({"TALKBUS_HOME": str(bus.root)})
    config = load(place, {})
    if not first:
        Person(place, config, "me", "human").do("status", {"summary": "here"})
    monkeypatch.setattr(visit, "REPLY_S", 0.0)
    assert Person(place, config, "me", "human").submit("rename", {"name": "ann"}).settled is None
    monkeypatch.undo()
    until(lambda: "ann" in names(bus))
    again = Person(place, config, "me", "human")
    with again.asking() as asker:
        assert asker.name == "ann"
    assert again.do("send", {"to": ["web"], "new": True}, b"hello")["to"][0]["code"] == 200
    assert bus.ok("inbox", "--as", "web", "--json").json[0]["from"] == "ann"
    assert "me" not in names(bus)


def test_what_was_queued_inside_a_session_leaves_as_that_session(bus: Bus) -> None:
    api = Session(bus, "api")
    with deaf(bus):
        code, sent, _ = api.run("send", "--new", "web", "queued inside", "--json")
        assert (code, sent["status"]) == (0, "queued")
    rename(bus.root, "api", "api-docs")
    # Another one of the name must not get it either.
    other = Session(bus, "elsewhere/api")
    assert other.run("whoami", "--json")[1]["name"] == "api"
    until(lambda: api.run("whoami", "--json")[1]["name"] == "api-docs")
    (letter,) = bus.ok("inbox", "--as", "web", "--json").json
    assert (letter["from"], letter["body"]) == ("api-docs", "queued inside")
    for session in (api, other):
        session.close()
    assert {"api", "api-docs"} <= names(bus)
