"""The client's session file: found above us, believed only when it is of the living process, tolerant of garbage."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.delivery import clientfile
from agent.delivery.clientfile import Session, find_client, read, transcript_path
from bus import processes

PARENT = os.getppid()


def said(pid: int, **more: Any) -> dict[str, Any]:
    start = processes.start_time(pid) or ""
    return {
        "pid": pid,
        "sessionId": "1598f5dd-033e-4654",
        "cwd": "/work/api",
        "startedAt": 1e14,
        "procStart": start.rpartition("-")[2],
        "status": "idle",
        "statusUpdatedAt": 17952365,
        "messagingSocketPath": f"/tmp/cc-socks/{pid}.sock",
        **more,
    }


def write(config: Path, pid: int, text: str) -> Path:
    path = config / "sessions" / f"{pid}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_a_living_client_says(tmp_path: Path) -> None:
    write(tmp_path, PARENT, json.dumps(said(PARENT)))
    seen = read(PARENT, tmp_path)
    assert seen is not None
    assert (seen.id, seen.cwd, seen.status, seen.status_at) == ("1598f5dd-033e-4654", "/work/api", "idle", 17952365)
    assert seen.socket.endswith(f"{PARENT}.sock") and seen.idle and seen.start == processes.start_time(PARENT)
    write(tmp_path, PARENT, json.dumps(said(PARENT, sessionId="after-clear", status="busy")))
    seen = read(PARENT, tmp_path)
    assert seen is not None and (seen.id, seen.idle) == ("after-clear", False)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", "[" * 60_000, "\x00", json.dumps({"pid": PARENT}), json.dumps(said(1))],
)
def test_garbage_is_not_there(tmp_path: Path, text: str) -> None:
    write(tmp_path, PARENT, text)
    assert read(PARENT, tmp_path) is None


def test_a_file_of_another_process_with_our_pid_is_not_believed(tmp_path: Path) -> None:
    if sys.platform == "linux":
        write(tmp_path, PARENT, json.dumps(said(PARENT, procStart="1")))
        assert read(PARENT, tmp_path) is None
    assert read(999_999_999, tmp_path) is None
    write(tmp_path, PARENT, json.dumps(said(PARENT, sessionId="../../etc")))
    assert read(PARENT, tmp_path) is None


@given(st.dictionaries(st.sampled_from(sorted(said(1))), st.none() | st.integers() | st.text() | st.lists(st.none())))
def test_wrong_kinds_never_raise(tmp_path_factory: pytest.TempPathFactory, wrong: dict[str, Any]) -> None:
    config = tmp_path_factory.mktemp("c")
    write(config, PARENT, json.dumps({**said(PARENT), **wrong}))
    seen = read(PARENT, config)
    assert seen is None or isinstance(seen, Session)


def test_the_client_is_found_over_a_shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"CLAUDE_CONFIG_DIR": str(tmp_path)}
    above = processes.ancestors(os.getpid())
    assert find_client(environ) is None
    # By the environment, as long as it is above us.
    assert find_client({**environ, "CLAUDE_CODE_MESSAGING_SOCKET": f"/t/cc-socks/{above[-1]}.sock"}) == above[-1]
    assert find_client({**environ, "CLAUDE_PID": str(above[0])}) == above[0]
    assert find_client({**environ, "CLAUDE_PID": "999999999"}) is None
    # A file that is true goes before it: the environment may be inherited.
    write(tmp_path, above[0], json.dumps(said(above[0])))
    assert find_client({**environ, "CLAUDE_PID": str(above[-1])}) == above[0]
    monkeypatch.setattr(processes, "ancestors", lambda pid: [999_999_998, *above])
    assert find_client(environ) == above[0]


@pytest.mark.parametrize("bad", ["", "x", "/t/x.sock", "/t/12.socket", "١٢.sock"])
def test_the_socket_names_a_pid_or_nothing(bad: str) -> None:
    assert clientfile.named_pid({"CLAUDE_CODE_MESSAGING_SOCKET": bad}) in (None, 12)
    assert clientfile.named_pid({"CLAUDE_PID": bad}) is None


def test_the_outermost_client_below_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = {500: [400, 300], 400: [300], 600: [300], 700: [1]}
    monkeypatch.setattr(processes, "ancestors", lambda pid: parents.get(pid, []))
    monkeypatch.setattr(processes, "start_time", lambda pid: f"boot-{pid}")
    assert clientfile.below(300, tmp_path) is None
    for pid in (500, 400, 700):
        write(tmp_path, pid, json.dumps(said(pid, procStart=str(pid))))
    write(tmp_path, 600, json.dumps(said(600, procStart="600", entrypoint="sdk-cli")))
    (tmp_path / "sessions" / "x.json").touch()
    found = clientfile.below(300, tmp_path)
    assert found is not None and found.pid == 400
    assert clientfile.below(600, tmp_path) is None and (clientfile.below(700, tmp_path) or found).pid == 700


def test_where_the_configuration_is() -> None:
    assert clientfile.config_dir({"CLAUDE_CONFIG_DIR": "/x"}) == Path("/x")
    assert clientfile.config_dir({}) == Path.home() / ".claude"


def test_where_the_transcript_lies(tmp_path: Path) -> None:
    assert transcript_path(tmp_path, "s1", "/work/a_b.c") is None
    plain = tmp_path / "projects" / "-work-a-b-c" / "s1.jsonl"
    plain.parent.mkdir(parents=True)
    plain.touch()
    assert transcript_path(tmp_path, "s1", "/work/a_b.c") == plain == transcript_path(tmp_path, "s1", "/elsewhere")
    assert transcript_path(tmp_path, "*", "/work/a_b.c") is None and transcript_path(tmp_path, "../x") is None
