"""Who is on the bus: sessions join without a word, keep their mailbox, and leave; what peers see of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .api import FakeApi
from .buses import Bus
from .messages import tool_results, tool_use
from .session import Home, Tui
from .wait import until

pytestmark = pytest.mark.e2e


@pytest.fixture
def bus(home: Home) -> Iterator[Bus]:
    with Bus(home) as made:
        yield made


def line(bus: Bus, tui: Tui) -> str:
    """What the status line of this session would say, from the file its agent keeps."""
    path = bus.root / "run" / "status" / f"{tui.pid}.line"
    return path.read_text().strip() if path.exists() else ""


def hello(api: FakeApi, tui: Tui, words: str) -> None:
    tui.submit(words)
    api.wait(words)
    tui.wait_idle()


def test_it_joins_by_the_name_of_its_folder_and_leaves(api: FakeApi, home: Home, bus: Bus) -> None:
    folder = home.project("api")
    tui = bus.tui(folder)
    peer = bus.peer("api")
    assert (peer["cwd"], peer["client"], peer["presence"]) == (str(folder), "claude-code", "open")
    assert api.requests == []
    until(lambda: line(bus, tui) == "api", "the status line")
    assert tui.exit() == 0
    until(lambda: not bus.peer("api"), "the end of the peer")
    assert line(bus, tui) == "" and not list((bus.root / "run" / "maildirs").glob(f"{tui.pid}-*"))


def test_clear_and_resume_keep_the_mailbox(api: FakeApi, home: Home, bus: Bus) -> None:
    folder = home.project("api")
    tui = bus.tui(folder)
    ident = bus.peer("api")["id"]
    before = tui.session
    hello(api, tui, "good morning")
    tui.submit("/clear")
    until(lambda: tui.session not in ("", before), "a new session")
    first = bus.send("api", "after the clear")
    assert bus.shown_once(first, "api", "api").session == tui.session
    tui.wait_idle()
    session = tui.session
    assert bus.peer("api")["id"] == ident and tui.exit() == 0
    second = bus.send("api", "while you were away")
    again = home.tui(folder, *bus.arguments, "--resume", session, env=bus.env)
    assert again.session == session
    bus.shown_once(second, "api", "api")
    assert bus.peer("api")["id"] == ident


def test_two_in_one_folder_have_two_seats_and_each_finds_its_own_again(api: FakeApi, home: Home, bus: Bus) -> None:
    folder = home.project("api")
    tuis = [bus.tui(folder, label=label) for label in ("one", "two")]
    names = [str(bus.live(tui)["name"]) for tui in tuis]
    assert names == ["api", "api-2"]
    sessions = []
    for number, tui in enumerate(tuis):
        hello(api, tui, f"hello {number}")
        sessions.append(tui.session)
    for tui in tuis:  # so the second one was the last in use
        assert tui.exit() == 0
    again = home.tui(folder, *bus.arguments, "--resume", sessions[0], label="one", env=bus.env)
    until(lambda: bus.live(again), "its seat")
    other = home.tui(folder, *bus.arguments, "--resume", sessions[1], label="two", env=bus.env)
    until(lambda: bus.live(other), "its seat")
    assert [bus.live(tui)["name"] for tui in (again, other)] == names


def test_a_subagent_is_no_peer(api: FakeApi, home: Home, bus: Bus) -> None:
    tui = bus.tui(home.project("api"))
    job = "count the herons"
    start = tool_use("Agent", subagent_type="general-purpose", description="count", prompt=job)
    api.on("delegate it", start)
    asked = api.on(job, "four", hold=True)
    tui.submit("delegate it")
    assert api.wait(job).agent
    api.wait(lambda request: start["id"] in tool_results(request))
    assert [row["name"] for row in bus.peers("--all")] == ["api"]
    asked.release()
    api.wait("<task-notification>")


def test_a_run_without_a_user_has_a_seat_of_its_own(api: FakeApi, home: Home, bus: Bus) -> None:
    folder = home.project("api")
    tui = bus.tui(folder)
    assert tui.exit() == 0
    until(lambda: not bus.peer("api"), "the end of the first")
    ident = bus.send("api", "for the session with a user")
    runs = [_run(api, bus, folder, words) for words in ("first run", "second run")]
    assert len(set(runs)) == 2 and all(re.fullmatch(r"api-run-[0-9a-f]{4}", name) for name in runs)
    assert bus.showings(ident) == []
    again = home.tui(folder, *bus.arguments, env=bus.env)
    bus.shown_once(ident, "api", "api")
    assert bus.live(again)["name"] == "api"


def _run(api: FakeApi, bus: Bus, folder: Path, words: str) -> str:
    """One `claude -p` to its end; its name on the bus."""
    turn = api.on(words, "done", hold=True)
    process = bus.home.start_print(folder, words, *bus.arguments, env=bus.env)
    api.wait(words)
    names = until(lambda: [row["name"] for row in bus.peers()], "the run on the bus")
    turn.release()
    assert process.wait(10) == 0
    until(lambda: bus.peers() == [], "the end of the run on the bus")
    return str(names[0])


def test_peers_see_what_it_is_doing(api: FakeApi, home: Home, bus: Bus) -> None:
    home.settings(permissions={"defaultMode": "default", "allow": []})
    tui = bus.tui(home.project("api"))

    def doing(wanted: str) -> None:
        until(lambda: bus.peer("api")["activity"] == wanted, wanted)

    doing("idle")
    turn = api.on("make a file", tool_use("Bash", command="touch made", description="make"), hold=True)
    tui.submit("make a file")
    api.wait("make a file")
    doing("busy")
    turn.release()
    tui.wait_status("waiting")
    doing("waiting")
    tui.interrupt()
    doing("idle")


def test_the_status_line_follows(api: FakeApi, home: Home, bus: Bus) -> None:
    folders = [home.project(name) for name in ("api", "web")]
    tui = bus.tui(folders[0])
    until(lambda: line(bus, tui) == "api", "alone")
    bus.send("api", "the build is green", "--note")
    until(lambda: line(bus, tui) == "api · ✉1", "a message")
    other = bus.tui(folders[1])
    until(lambda: line(bus, other) == "web · 1 peer", "the other's line")
    until(lambda: line(bus, tui) == "api · 1 peer · ✉1", "a peer", 15.0)
    tui.kill()
    until(lambda: line(bus, tui) == "", "the end of the line")
