"""The demonstration: its own counting, which must be able to fail, its plan, and one run with real processes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from agent import render
from agent.cli import demo as demo_module
from agent.cli import demo_find
from agent.cli.demo_agents import Counter, DemoFailed
from agent.cli.demo_count import Tally, sights
from agent.cli.demo_plan import plan
from agent.cli.demo_run import Show
from agent.cli.demo_show import Kill, Screen, agents_table, kills_table
from agent.cli.main import cli
from agent.tap.items import Item
from agent.tap.office import Office
from agent.tap.recording import Recording
from bus.config import home
from bus.private import private_dir
from tests.story import START, event

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("ada", "bob", "cleo")
ONE, TWO, THREE = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "cccccccccccccccc"


def letter(ident: str, body: str = "hello", **more: Any) -> render.Letter:
    fields: dict[str, Any] = {"id": ident, "from_": "ada", "host": "box", "to": "bob", "kind": "task", "tag": ""}
    return render.Letter(**fields | {"re": "", "thread": "", "ts": 1000, "body": body.encode()} | more)


def shown(*letters: render.Letter) -> str:
    return render.render(letters, now=2000)


# -- what counts as shown --------------------------------------------------------------------------------------------


def test_messages_are_found_in_any_result() -> None:
    text = "id zzzzzzzzzzzzzzzz; bob@box: stored\n\n" + shown(letter(ONE), letter(TWO, repeat=True))
    assert [(s.id, s.repeat) for s in sights(text)] == [(ONE, False), (TWO, True)]


@pytest.mark.parametrize("more", [{"tag": "t"}, {"re": TWO}, {"to": "*"}, {"host": ""}, {"kind": "note"}])
def test_every_form_of_header_is_found(more: dict[str, Any]) -> None:
    assert [s.id for s in sights(shown(letter(ONE, **more)))] == [ONE]


def test_a_body_cannot_look_like_a_message() -> None:
    inner = shown(letter(TWO, repeat=True))
    assert [s.id for s in sights(shown(letter(ONE, body=inner)))] == [ONE]


def test_a_result_without_messages_counts_nothing() -> None:
    tally = Tally(NAMES)
    assert tally.saw("bob", "no unread messages") == []
    assert (tally.sent, tally.shown, tally.lost, tally.twice) == (0, 0, 0, 0)


# -- the count -------------------------------------------------------------------------------------------------------


def test_a_missing_and_a_repeated_message_are_told() -> None:
    tally = Tally(NAMES)
    for ident in (ONE, TWO, THREE):
        tally.sending(ident, "ada", ["bob"])
    tally.saw("bob", shown(letter(ONE), letter(TWO)))
    tally.saw("bob", shown(letter(TWO, repeat=True)))
    assert tally.verdict == "sent 3, shown 2, lost 1, twice 1"
    assert not tally.good
    share = tally.share("bob")
    assert (share.shown, share.waiting, share.twice, share.repeats) == (2, 1, 1, 1)
    assert tally.missing("bob") == [THREE]
    found = demo_module.document(performed(tally), 3, 1)
    assert (found["ok"], found["lost"], found["twice"]) == (False, 1, 1)


def test_copies_count_one_for_each_recipient_in_whatever_order_results_come() -> None:
    tally = Tally(NAMES)
    tally.saw("cleo", shown(letter(ONE)))
    tally.sending(ONE, "ada", ["bob", "cleo"])
    assert tally.verdict == "sent 2, shown 1, lost 1, twice 0"
    tally.saw("bob", shown(letter(ONE)))
    assert tally.verdict == "sent 2, shown 2, lost 0, twice 0"
    assert tally.good
    assert [tally.share(name).sent for name in NAMES] == [2, 0, 0]
    assert tally.sender(ONE, "bob") == "ada"


def test_a_message_for_somebody_else_is_not_good() -> None:
    tally = Tally(NAMES)
    tally.sending(ONE, "ada", ["bob"])
    tally.saw("bob", shown(letter(ONE)))
    tally.saw("cleo", shown(letter(ONE)))
    assert (tally.lost, tally.twice, tally.strangers) == (0, 0, 1)
    assert not tally.good


@pytest.mark.parametrize(
    ("counter", "good"),
    [
        (Counter(raised=5, value=5), True),
        (Counter(raised=5, unsure=1, value=6), True),
        (Counter(raised=5, value=4), False),
        (Counter(raised=5, value=6), False),
        (Counter(raised=0, value=-2), False),
    ],
)
def test_the_counter_shows_lost_and_repeated_writes(counter: Counter, good: bool) -> None:
    assert counter.good is good


def performed(tally: Tally, counter: Counter | None = None) -> Any:
    """A demonstration that is over, as far as its end is concerned."""
    stage = SimpleNamespace(tally=tally, counter=counter or Counter(raised=1, value=1))
    return SimpleNamespace(stage=stage, screen=Screen(io.StringIO(), tally.sent), kills=[Kill("broker", 1.0, 0.3)])


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("repeated", [0, 1])
@pytest.mark.parametrize("unseen", [0, 1])
def test_the_command_fails_when_its_count_does(
    monkeypatch: pytest.MonkeyPatch, as_json: bool, repeated: int, unseen: int
) -> None:
    def perform(_home: Any, tally: Tally, _screen: Any, steps: Any, pause_s: float) -> Any:
        idents = []
        for sender, own in steps.items():
            for number, step in enumerate(own):
                ident = f"{sender}{number}"
                tally.sending(ident, sender, step.recipients)
                idents += [(ident, name) for name in step.recipients]
        for ident, name in idents[unseen:]:
            tally.saw(name, shown(letter(ident)))
        for ident, name in idents[-1:] * repeated:
            tally.saw(name, shown(letter(ident)))
        return performed(tally)

    monkeypatch.setattr(demo_module, "_perform", perform)
    args = ["--messages", "30", *(["--json"] if as_json else [])]
    result = CliRunner().invoke(demo_module.demo, args, standalone_mode=False)
    assert result.return_value == (1 if unseen or repeated else 0), result.output
    if as_json:
        found = json.loads(result.stdout)
        assert (found["lost"], found["twice"]) == (unseen, repeated)
    else:
        last = f"sent 30, shown {30 - unseen}, lost {unseen}, twice {repeated}"
        assert result.stdout.splitlines()[-1] == last


# -- the plan and the looks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 2, 3, 30, 1000])
def test_the_plan_has_exactly_the_copies_asked_for(copies: int) -> None:
    made = plan(NAMES, copies, 7)
    assert sum(len(step.recipients) for steps in made.values() for step in steps) == copies
    assert made == plan(NAMES, copies, 7)
    assert all(name not in step.recipients for name, steps in made.items() for step in steps)
    if copies == 1000:
        every = [step for steps in made.values() for step in steps]
        assert {step.kind for step in every} == {"task", "note"}
        assert {len(step.to) for step in every} == {1, 2}
        assert any(step.to == ("*",) for step in every)
        assert max(map(len, made.values())) < 400  # requests, well within the burst of a session


def test_progress_is_lines_where_nothing_can_be_rewritten() -> None:
    stream = io.StringIO()
    screen = Screen(stream, 10)
    tally = Tally(NAMES)
    tally.sending(ONE, "ada", ["bob"])
    for _ in range(3):
        screen.progress(tally, 1)
    screen.event("broker killed")
    screen.end()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("sent 1  stored 1  shown 0  of 10 copies")
    assert lines[1].endswith("broker killed")
    assert "\x1b" not in stream.getvalue()


def test_progress_is_one_line_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    screen = Screen(stream, 10)
    for _ in range(3):
        screen.progress(Tally(NAMES), 0)
    assert stream.getvalue().count("\r") == 3
    assert "\n" not in stream.getvalue()


def test_the_tables() -> None:
    tally = Tally(NAMES)
    tally.sending(ONE, "ada", ["bob"])
    assert agents_table(tally).splitlines()[1:] == [
        "ada       1      0        0                 0",
        "bob       0      0        1                 0",
        "cleo      0      0        0                 0",
    ]
    line = kills_table([Kill("broker", 1.25, 0.3, -1.0)]).splitlines()[1]
    assert line.split() == ["broker", "1.2", "s", "after", "0.30", "s", "never"]


@pytest.mark.parametrize(
    ("raised", "exit_code", "text"),
    [
        (ExceptionGroup("g", [ExceptionGroup("h", [DemoFailed("bob is mute")])]), 1, "stopped: bob is mute (run it"),
        (ValueError("odd"), 1, "stopped: ValueError: odd (run it"),
        (BaseExceptionGroup("g", [DemoFailed("as a consequence"), KeyboardInterrupt()]), 130, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_stops_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raised: BaseException, exit_code: int, text: str
) -> None:
    async def run(_self: Show) -> None:
        raise raised

    monkeypatch.setattr(Show, "run", run)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = CliRunner().invoke(cli, ["demo"])
    assert result.exit_code == exit_code, result.output
    assert text in result.stderr
    assert len(result.stderr.split("\n")) == 2  # click ends the line of an interrupted command
    assert list(tmp_path.iterdir()) == []


def test_a_tap_of_a_demo_hears_its_last_broker_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is marked as stopped before its broker is told to stop: what was published until then is not dropped."""
    bus = home({"TALKBUS_HOME": str(tmp_path)})
    private_dir(bus.state)
    alive = [object(), object(), None]
    monkeypatch.setattr(demo_find, "stopped", lambda _bus: True)
    monkeypatch.setattr(demo_find, "published", lambda _bus: alive.pop(0))
    last = [event(START, "msg.offered", id=ONE), event(START, "bus.stop"), event(START, "msg.acked", id=ONE)]
    assert list(demo_find.until_it_ends(iter([*last, None]), bus)) == last[:2]
    assert list(demo_find.until_it_ends(iter([None, None, last[0], None, last[0]]), bus)) == [
        None,
        None,
        last[0],
        None,
    ]
    lost = Item(START, "lost", {"text": "gone"})
    assert list(demo_find.until_it_ends(iter([last[0], lost, last[0]]), bus)) == last[:1]
    monkeypatch.setattr(demo_find, "stopped", lambda _bus: False)
    assert list(demo_find.until_it_ends(iter([lost, last[1], None]), bus)) == [lost, last[1], None]


# -- with real processes ---------------------------------------------------------------------------------------------


def running_in(folder: Path) -> list[str]:
    """Processes whose TALKBUS_HOME lies in this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TALKBUS_HOME", "").startswith(str(folder)):
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found


def demo_process(folder: Path, *args: str) -> subprocess.Popen[str]:
    return started(folder, [sys.executable, str(ROOT / "talkbus.py"), "demo", *args])


def tap_process(folder: Path, *args: str) -> subprocess.Popen[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import talkbus; talkbus.tap()"
    return started(folder, [sys.executable, "-P", "-c", code, *args])


def started(folder: Path, command: list[str]) -> subprocess.Popen[str]:
    environ = os.environ | {"TMPDIR": str(folder), "TALKBUS_NAME": "not-for-the-demo", "TALKBUS_PORT": "1"}
    return subprocess.Popen(command, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_nothing_is_lost_and_nothing_comes_twice(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tap = tap_process(tmp_path, "--demo", "--json", "--bodies")
    kept = tmp_path_factory.mktemp("kept") / "demo.tap"
    lines = tap_process(tmp_path, "--demo", "--record", str(kept))
    process = demo_process(tmp_path, "--messages", "120", "--json", "--seed", "3", "--pace", "60")
    out, err = process.communicate(timeout=100)
    watched, remarks = tap.communicate(timeout=30)
    seen, _ = lines.communicate(timeout=30)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert found["ok"] is True
    assert (found["sent"], found["shown"], found["lost"], found["twice"]) == (120, 120, 0, 0)
    assert sorted(kill["what"] for kill in found["kills"]) == ["agent bob", "broker", "broker"]
    assert all(kill["recovered_s"] >= 0 for kill in found["kills"])
    assert found["state"]["ok"] and found["state"]["raised"] > 0
    assert "broker killed" in err and "broker back after" in err and "zmq-tap --demo" in err
    assert tap.returncode == 0 and "the demo has ended" in remarks, "the tap finds it, and its end"
    told = [json.loads(line) for line in watched.splitlines()]
    assert {"snapshot", "lost", "missed", "stored", "injected"} <= {line["event"] for line in told}
    assert any(line.get("body") for line in told)
    assert_whole(seen, kept, 120)
    assert list(tmp_path.iterdir()) == []
    assert running_in(tmp_path) == []


def assert_whole(seen: str, kept: Path, copies: int) -> None:
    """Lines and office have every copy of the demonstration, every step of it once and in order, whatever was killed."""
    office = Office()
    for item in Recording(kept).items():
        office.take(item)
    feed = office.scene(0).feed
    statuses = [copy.status for entry in feed for copy in entry.copies.values()]
    assert statuses == ["injected"] * copies, "every copy was shown, and is said to be"
    assert office.messages == len(feed) == len({entry.ident for entry in feed}), "a message counts once"
    for entry in feed:
        for copy in entry.copies.values():
            found = [line for line in seen.splitlines() if entry.ident in line and f" {copy.name}  " in line]
            assert [line.split()[1] for line in found] == ["stored", "offered", "injected"], found


def test_told_to_end_it_leaves_nothing_behind(tmp_path: Path) -> None:
    process = demo_process(tmp_path, "--json")
    assert process.stderr is not None
    for line in process.stderr:
        if "agents joined" in line:
            break
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []
    assert running_in(tmp_path) == []
