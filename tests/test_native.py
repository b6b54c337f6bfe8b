"""The inbox socket: frames, pacing, what a write proves, and the user's setting."""

from __future__ import annotations

import json
import socket
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.delivery import native
from agent.delivery.native import Inbound, NotPosted, Pacer, inbound, post

unix = pytest.mark.skipif(sys.platform == "win32", reason="AF_UNIX")


@given(steps=st.lists(st.integers(0, 20_000), min_size=1, max_size=60))
def test_never_more_than_the_burst_and_then_one_in_a_while(steps: list[int]) -> None:
    pacer, now, taken = Pacer(), 0, []
    for step in steps:
        now += step
        ready = pacer.ready_at(now)
        assert (ready == now) == pacer.take(now)
        if ready == now:
            taken.append(now)
    for i, first in enumerate(taken):
        for j in range(i, len(taken)):
            assert j - i + 1 <= native.BURST + (taken[j] - first) // native.EVERY_MS + 1


def test_the_pace() -> None:
    pacer = Pacer()
    assert [pacer.take(0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert pacer.ready_at(1000) == 5000 and not pacer.take(4999) and pacer.take(5000) and not pacer.take(5000)
    assert pacer.ready_at(100_000) == 100_000
    assert [pacer.take(100_000) for _ in range(6)] == [True] * 5 + [False]


@given(text=st.text(max_size=200))
def test_a_line_is_one_line_and_no_two_are_alike(text: str) -> None:
    marked, data = native.line(text, "n1")
    assert data.endswith(b"\n") and data.count(b"\n") == 1
    frame = json.loads(data)
    assert frame["message"] == {"role": "user", "content": marked} and marked.startswith(text)
    assert native.line(text, "n2")[0] != marked


class Inbox(threading.Thread):
    """A client that takes what comes; `polite` closes after it."""

    def __init__(self, path: Path, polite: bool) -> None:
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen()
        self.polite = polite
        self.got = b""
        self.held: list[socket.socket] = []
        self.start()

    def run(self) -> None:
        line, _ = self.socket.accept()
        while data := line.recv(65536):
            self.got += data
        if self.polite:
            line.close()
        else:
            self.held.append(line)


@unix
def test_taken_is_when_the_client_closes(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "a.sock", polite=True)
    attempt = post(str(tmp_path / "a.sock"), "hello", token="t0k")
    assert attempt.taken and attempt.nonce in attempt.text
    first, second = inbox.got.splitlines()
    assert json.loads(first) == {"type": "auth", "token": "t0k"}
    assert json.loads(second)["message"]["content"] == attempt.text
    again = Inbox(tmp_path / "b.sock", polite=False)
    assert not post(str(tmp_path / "b.sock"), "hello", timeout=0.05).taken
    assert again.got.count(b"\n") == 1


@unix
def test_what_did_not_get_there_is_certain(tmp_path: Path) -> None:
    for path, text in (("", "x"), (str(tmp_path / "none"), "x"), ("/" + "x" * 200, "x"), ("y", "z" * 600_000)):
        with pytest.raises(NotPosted) as failed:
            post(path, text)
        assert failed.value.certain


def setting(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"crossSessionInbound": value, "other": 1}))
    return path


def test_the_users_setting(tmp_path: Path) -> None:
    config, project = tmp_path / "config", tmp_path / "project"
    managed = tmp_path / "managed.json"

    def found() -> Inbound:
        return inbound(config, str(project), managed=[managed])

    assert found() == Inbound("accept") and found().open
    user = setting(config / "settings.json", "accept")
    assert found() == Inbound("accept", str(user))
    repo = setting(project / ".claude" / "settings.json", "hold")
    assert found() == Inbound("hold", str(repo)) and not found().open
    setting(user, "refuse")
    assert found().answer == "refuse"  # a repository may only tighten
    setting(user, "accept")
    setting(repo, "maybe")
    assert found().answer == "hold"  # as the client does with what it does not know
    repo.unlink()
    local = setting(project / ".claude" / "settings.local.json", "refuse")
    assert found() == Inbound("refuse", str(local))
    setting(managed, "accept")
    assert found() == Inbound("accept", str(managed))
    assert inbound(config, "", managed=[]).answer == "accept"


@pytest.mark.parametrize("broken", ["", "{", "[]", "\x00", "\ufeff{}"])
def test_a_broken_file_says_nothing(tmp_path: Path, broken: str) -> None:
    (tmp_path / "settings.json").write_text(broken, encoding="utf-8")
    assert inbound(tmp_path, str(tmp_path), managed=[]) == Inbound("accept")
