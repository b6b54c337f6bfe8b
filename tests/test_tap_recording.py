"""recording: what was told comes back as it was, at its pace; another file is refused with the line that is wrong."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.tap.items import WHATS, Item
from agent.tap.recording import Recorder, Recording
from bus.errors import LocalError
from tests.story import HOSTILE, START, STORY

HEAD = '{"talkbus":"recording","version":1,"at":100}\n'
GOOD = '{"at":100,"what":"event","told":{}}\n'


def record(path: Path, items: list[Item]) -> None:
    with Recorder(path, START) as recorder:
        for item in items:
            recorder.write(item)


def test_what_was_recorded_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "day.tap"
    record(path, STORY)
    recording = Recording(path)
    assert list(recording.items()) == STORY and recording.count == len(STORY) and recording.began == START
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(HOSTILE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TOLD = st.dictionaries(st.text(max_size=5), JSON, max_size=4)


@given(st.lists(st.tuples(st.integers(0, 1000), st.sampled_from(WHATS), TOLD), max_size=6))
def test_any_items_come_back(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, str, dict[str, object]]]
) -> None:
    path = tmp_path_factory.mktemp("r") / "x"
    items, at = [], START
    for later, what, told in parts:
        at += later
        items.append(Item(at, what, told))
    record(path, items)
    assert list(Recording(path).items()) == items
    assert path.read_text("ascii").count("\n") == len(items) + 1, "one line each, whatever is in it"


def test_pace(tmp_path: Path) -> None:
    path = tmp_path / "x"
    record(path, [Item(START + 1000, "event", {}), Item(START + 1000, "event", {}), Item(START + 4000, "event", {})])

    def slept(speed: float) -> list[float]:
        waits: list[float] = []

        def wait(seconds: float) -> bool:
            waits.append(seconds)
            return False

        assert len(list(Recording(path).played(speed, wait))) == 3
        return waits

    assert slept(1) == [1, 3] and slept(2) == [0.5, 1.5] and slept(0) == []
    assert len(list(Recording(path).played(1, lambda _: True))) == 0, "told to end"
    assert slept(0.0005) == [2000.0, 3600.0, 2400.0], "a long sleep in steps"


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("", 1, "the file is empty"),
        ("hello\n", 1, "no JSON"),
        ("[1]\n", 1, "no recording"),
        ('{"a":1}\n', 1, "no recording"),
        ('{"talkbus":"recording","version":3,"at":1}\n', 1, "version 3"),
        ('{"talkbus":"recording","version":1}\n', 1, "its time"),
        (HEAD + GOOD + '{"at":100,"what":"ev', 3, "cut off"),
        (HEAD + "null\n", 2, "no item"),
        (HEAD + '{"at":100,"what":"dance","told":{}}\n', 2, "none of snapshot"),
        (HEAD + '{"at":100,"what":"event","told":[]}\n', 2, "none of snapshot"),
        (HEAD + GOOD + '{"at":99,"what":"event","told":{}}\n', 3, "before the line above"),
        (HEAD + '{"at":true,"what":"event","told":{}}\n', 2, "its time"),
        (HEAD + "[" * 100_000 + "\n", 2, "no JSON"),
        ("\x00\xff\n", 1, "no JSON"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_line(tmp_path: Path, text: str, line: int, why: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(LocalError) as raised:
        Recording(path)
    assert f"{path}:{line}: " in str(raised.value) and why in str(raised.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="does not exist"):
        Recording(tmp_path / "none")
    with pytest.raises(LocalError, match="no file"):
        Recording(tmp_path)


def test_what_is_appended_meanwhile_is_not_played(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text(HEAD + GOOD)
    recording = Recording(path)
    path.write_text(HEAD + GOOD + "nonsense")
    assert len(list(recording.items())) == 1


def test_nothing_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("mine")
    with pytest.raises(LocalError, match="not written over"):
        Recorder(path, START)
    assert path.read_text() == "mine"
    with pytest.raises(LocalError, match="cannot record"):
        Recorder(tmp_path / "no" / "where", START)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_said() -> None:
    with pytest.raises(LocalError, match=r"the recording ends here, /dev/full takes no more: No space left"):
        Recorder(Path("/dev/full"), START)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_disk_that_fills_leaves_whole_lines(tmp_path: Path) -> None:
    import resource
    import signal

    path = tmp_path / "x"
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, former[1]))
        with Recorder(path, START) as recorder, pytest.raises(LocalError, match="the recording ends here"):
            for number in range(1000):
                recorder.write(Item(START + number, "event", {"x": "y" * 50}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, ignored)
    assert Recording(path).count > 10 and json.loads(path.read_text().splitlines()[-1])
