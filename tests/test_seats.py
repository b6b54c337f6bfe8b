"""seats: nobody shares one, each project finds its own again, and only the living are believed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent import seats
from agent.seats import Live, Seat, living, session_of, take_seat, wait_seat
from bus.config import Home
from bus.errors import Code, ConfigError, Refused, StoreError
from bus.processes import FileLock, ancestors, start_time

ROOT = Path(__file__).resolve().parent.parent
TAKE = """
import sys
from pathlib import Path
from agent.seats import take_seat, wait_seat
from bus.config import Home
root, name, project, kind = sys.argv[1:]
home = Home(Path(root, "config"), Path(root, "state"), Path(root, "run"))
sys.stdin.readline()
if kind == "session":
    seat = take_seat(home, name or None, project)
else:
    seat = wait_seat(home, name, kind, 30)
    log = seat.folder / "log"
    before = log.read_text() if log.exists() else ""
    log.write_text(before + "in\\n")
    log.write_text(before + "in\\nout\\n")
    seat.leave()
print(seat.folder.name, seat.name, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "config", tmp_path / "state", tmp_path / "run")


def start(home: Home, name: str, project: str, kind: str = "session") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TAKE, str(home.state.parent), name, project, kind],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def go(*children: subprocess.Popen[str]) -> list[list[str]]:
    for child in children:
        assert child.stdin
        child.stdin.write("\n")
        child.stdin.flush()
    return [child.stdout.readline().split() for child in children if child.stdout]


def live(seat: Seat, **more: object) -> Live:
    me, parent = os.getpid(), os.getppid()
    made = Live(me, start_time(me) or "", parent, start_time(parent) or "", seat.name, "inst", "/x")
    return replace(made, **more)  # type: ignore[arg-type]


def test_a_project_finds_its_own_seat_again(home: Home) -> None:
    one = take_seat(home, None, "/home/ann/API Server")
    assert (one.name, one.kind, one.project) == ("api-server", "session", "/home/ann/API Server")
    assert one.created > 1_600_000_000_000 and one.database.parent == one.folder.resolve()
    if sys.platform != "win32":
        assert stat.S_IMODE(one.folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((one.folder / "seat.json").stat().st_mode) == 0o600
    two = take_seat(home, None, "/home/ann/API Server")
    assert two.name == "api-server-2" and two.folder != one.folder
    two.leave()
    one.renamed("server")
    one.leave()
    again = take_seat(home, None, "/home/ann/API Server")
    assert (again.folder, again.name) == (one.folder, "server")
    assert take_seat(home, None, "/home/ann/API Server").folder == two.folder


def test_a_seat_remembers_name_and_mailbox_together(home: Home) -> None:
    one = take_seat(home, "api", "/p")
    assert (one.mailbox, one.store) == ("", "")
    one.renamed("api", "0123abcd", "s1")
    one.leave()
    again = take_seat(home, "api", "/p")
    assert (again.folder, again.mailbox, again.store, again.asked) == (one.folder, "0123abcd", "s1", "")
    again.renamed("web", "0123abcd", "s2")
    again.leave()
    (found,) = seats.every(home)
    assert (found.name, found.mailbox, found.store, found.asked) == ("web", "0123abcd", "s2", "api")


def test_who_has_to_take_another_name_has_another_mailbox(home: Home) -> None:
    one, two = take_seat(home, "api", "/p"), take_seat(home, "web", "/p")
    one.renamed("api", "0123abcd", "s")
    one.leave()
    two.renamed("api", "0123abcd", "s")  # it took the name over
    again = take_seat(home, "api", "/p")
    assert again.folder == one.folder and (again.name, again.mailbox) == ("api-2", "")


def test_a_seat_of_an_earlier_talkbus_is_taken(home: Home) -> None:
    one = take_seat(home, "api", "/p")
    file = one.folder / "seat.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({name: kept[name] for name in ("name", "project", "kind", "created", "asked")}))
    one.leave()
    again = take_seat(home, "api", "/p")
    assert again.folder == one.folder and (again.mailbox, again.store) == ("", "")
    again.announce(live(again))
    told = again.folder / "live.json"
    kept = json.loads(told.read_text())
    told.write_text(json.dumps({name: value for name, value in kept.items() if name not in ("mailbox", "store")}))
    assert [who.mailbox for who in living(home)] == [""]


def test_another_projects_seat_is_never_taken_unless_by_name(home: Home) -> None:
    one = take_seat(home, None, "/orgA/api")
    one.leave()
    two = take_seat(home, None, "/orgB/api")
    assert two.name == "api-2"
    two.leave()
    assert take_seat(home, None, "/orgB/api").folder == two.folder
    named = take_seat(home, " API ", "/orgC/web")
    assert named.folder == one.folder and named.project == "/orgA/api"
    # The name is taken by a living one now, and api-2 is another project's.
    third = take_seat(home, "api", "/orgC/web")
    assert third.name == "api-3"
    third.leave()
    assert take_seat(home, "api", "/orgC/web").folder == third.folder
    with pytest.raises(Refused):
        take_seat(home, "no name", "/x")


def test_the_seat_used_last_comes_first(home: Home) -> None:
    one, two, three = (take_seat(home, None, "/p/api") for _ in range(3))
    for seat, when in ((one, 10), (two, 30), (three, 20)):
        seat.leave()
        for file in seat.folder.iterdir():
            os.utime(file, (when, when))
    three.database.touch()
    os.utime(three.database, (40, 40))
    assert [take_seat(home, None, "/p/api").folder for _ in range(3)] == [three.folder, two.folder, one.folder]


def test_kinds_do_not_mix(home: Home) -> None:
    session = take_seat(home, None, "/p/dev")
    session.leave()
    human = wait_seat(home, "dev", "human", 1)
    assert (human.name, human.kind, human.asked, human.project) == ("dev-2", "human", "dev", "")
    human.leave()
    assert wait_seat(home, "dev", "human", 1).folder == human.folder
    script = wait_seat(home, "dev", "script", 1)
    assert script.name == "dev-3"
    assert take_seat(home, "dev-2", "/p/other").kind == "session"


def test_a_renamed_person_is_found_by_the_old_name(home: Home) -> None:
    seat = wait_seat(home, "ann", "human", 1)
    seat.renamed("ann")
    seat.renamed("anna")
    seat.renamed("annabel")
    seat.leave()
    again = wait_seat(home, "ann", "human", 1)
    assert (again.folder, again.name) == (seat.folder, "annabel")
    with pytest.raises(Refused, match=f"annabel is in use by process {os.getpid()}") as error:
        wait_seat(home, "annabel", "human", 0.05)
    assert error.value.code == Code.BUSY


def test_a_waiter_sees_what_the_holder_changed(home: Home) -> None:
    seat = wait_seat(home, "ann", "human", 1)
    got: list[Seat] = []
    thread = threading.Thread(target=lambda: got.append(wait_seat(home, "ann", "human", 20)))
    thread.start()
    time.sleep(0.05)
    seat.renamed("anna")
    seat.leave()
    thread.join()
    assert got[0].name == "anna" and not FileLock(seat.lock.path).acquire()


def test_two_seats_of_one_name_do_not_sit_at_once(home: Home) -> None:
    one = take_seat(home, None, "/a/api")
    two = take_seat(home, None, "/b/web")
    two.renamed("api")  # it took the mailbox over
    two.leave()
    again = take_seat(home, None, "/b/web")
    assert (again.folder, again.name) == (two.folder, "api-2")
    again.renamed("api")
    again.leave()
    one.leave()
    assert take_seat(home, "api", "/b/web").folder == two.folder
    assert take_seat(home, None, "/a/api").name == "api-2"


def test_a_rename_that_cannot_be_written_lets_go(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    take_seat(home, None, "/a/api")
    two = take_seat(home, None, "/b/web")
    two.renamed("api")
    two.leave()

    def full(*_: object) -> bool:
        raise StoreError("no room", full=True)

    monkeypatch.setattr(seats, "write_private", full)
    with pytest.raises(StoreError):
        take_seat(home, None, "/b/web")
    assert two.lock.acquire()


@pytest.mark.parametrize(
    ("project", "name"),
    [
        ("", "session"),
        ("/", "session"),
        ("git@github.com:ann/Big API.git", "big-api"),
        ("C:\\work\\api\\", "api"),
        ("/x/all", "all-1"),
        ("/x/" + "y" * 300, "y" * 58),
    ],
)
def test_default_names(home: Home, project: str, name: str) -> None:
    assert take_seat(home, None, project).name == name
    assert take_seat(home, None, project).name == f"{name}-2"


def test_the_longest_name_has_room_for_its_number(home: Home) -> None:
    made = [take_seat(home, "n" * 63, "/x") for _ in range(11)]
    assert len({seat.name for seat in made}) == 11
    assert made[1].name == "n" * 61 + "-2" and made[10].name == "n" * 60 + "-11"
    made[10].leave()
    assert take_seat(home, "n" * 63, "/x").folder == made[10].folder


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"name": 1, "project": "", "kind": "session", "created": 1, "asked": ""}']
    + [
        json.dumps({"name": name, "project": "/p/api", "kind": kind, "created": 1, "asked": ""}).encode()
        for name, kind in (("../x", "session"), ("api", "king"))
    ],
)
def test_a_folder_that_is_no_seat_is_left_alone(home: Home, content: bytes) -> None:
    first = take_seat(home, None, "/p/zzz")
    first.leave()
    (first.folder / "seat.json").write_bytes(content)
    (home.agents / "unfinished").mkdir()
    seat = take_seat(home, None, "/p/api")
    assert seat.name == "api" and seat.folder != first.folder


def test_who_is_living(home: Home) -> None:
    assert living(home) == []
    one, two = take_seat(home, None, "/p/one"), take_seat(home, None, "/p/two")
    one.announce(live(one))
    two.announce(live(two, client_pid=0, client_start=""))
    os.utime(one.folder / "live.json", (10, 10))
    assert [who.name for who in living(home)] == ["two", "one"]
    assert session_of(home, ancestors(os.getpid())) == live(one)
    assert session_of(home, [2**22 + 1]) is None and session_of(home, []) is None
    # Nobody is believed whose process, or whose client, is another by now.
    one.announce(live(one, start="other"))
    assert [who.name for who in living(home)] == ["two"]
    one.announce(live(one, client_start="other"))
    assert session_of(home, ancestors(os.getpid())) is None
    (one.folder / "live.json").write_text('{"pid": true}')
    assert [who.name for who in living(home)] == ["two"]
    two.leave()
    assert living(home) == [] and not (two.folder / "live.json").exists()


def test_the_nearest_client_counts_and_of_its_agents_the_latest(home: Home) -> None:
    inner, outer, old = (take_seat(home, None, f"/p/{name}") for name in ("inner", "outer", "old"))
    pids = ancestors(os.getpid())
    outer.announce(live(outer, client_pid=pids[1], client_start=start_time(pids[1])))
    assert (session_of(home, pids) or live(old)).name == "outer"
    inner.announce(live(inner))
    old.announce(live(old))
    os.utime(old.folder / "live.json", (10, 10))
    assert (session_of(home, pids) or live(old)).name == "inner"


def test_processes_at_once_never_share_a_seat(home: Home) -> None:
    take_seat(home, None, "/p/api").leave()
    children = [start(home, "", "/p/api") for _ in range(4)] + [start(home, "api", "/p/web") for _ in range(2)]
    got = go(*children)
    assert len({folder for folder, _ in got}) == 6
    assert {name for _, name in got} == {"api", *(f"api-{n}" for n in range(2, 7))}
    for child in children:
        child.kill()  # a lock ends with its holder, however that dies
        child.communicate()
    again = [take_seat(home, None, "/p/api") for _ in range(3)]
    assert {seat.folder.name for seat in again} <= {folder for folder, _ in got}


def test_commands_side_by_side_take_turns(home: Home) -> None:
    children = [start(home, "ann", "", "human") for _ in range(5)]
    got = go(*children)
    for child in children:
        child.communicate("\n")
    ((folder, name),) = {tuple(line) for line in got}
    assert name == "ann"
    assert (home.agents / folder / "log").read_text() == "in\nout\n" * 5


def test_a_stopped_holder_of_the_directory_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    take_seat(home, None, "/p/api")
    lock = FileLock(home.agents / "lock")
    assert lock.acquire()
    monkeypatch.setattr(seats, "_TAKING_S", 0.05)
    with pytest.raises(ConfigError, match=f"locked by process {os.getpid()}"):
        take_seat(home, None, "/p/api")
    lock.release()


def test_two_folders_of_one_repository_are_two_seats(home: Home) -> None:
    remote = "git@example.org:org/mono.git"
    api = take_seat(home, None, remote, folder="/src/mono/api")
    assert api.name == "api"
    api.leave()
    web = take_seat(home, None, remote, folder="/src/mono/web")
    assert (web.name, web.folder == api.folder) == ("web", False)
    web.leave()
    api.renamed("backend")
    again = take_seat(home, None, remote, folder="/src/mono/api")
    assert (again.name, again.folder) == ("backend", api.folder)
    again.leave()
