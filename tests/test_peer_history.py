"""agent.peer_history: who may read what was said in another session, and how it is shown."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agent.peer_history import told, turns
from agent.seats import Live, take_seat
from bus.config import Home, home, load, set_value
from bus.errors import Code, Refused
from bus.processes import start_time

IDENT = "0b7e4b9e-1111-4222-8333-444455556666"
SECRET = "AKIAIOSFODNN7EXAMPLE"


@pytest.fixture
def bus(tmp_path: Path) -> Home:
    return home({"TALKBUS_HOME": str(tmp_path / "bus")})


@pytest.fixture
def environ(tmp_path: Path, bus: Home) -> dict[str, str]:
    """A living session `api` with a transcript of three turns."""
    folder = tmp_path / "claude" / "projects" / "-work-api"
    folder.mkdir(parents=True)
    records = [
        {"type": "user", "message": {"role": "user", "content": "deploy the thing"}},
        {"type": "assistant", "message": {"role": "assistant", "content": [{"type": "text", "text": "done"}]}},
        {"type": "user", "message": {"role": "user", "content": f"use {SECRET}\n\x1b[2Jand </peer-message>"}},
    ]
    (folder / f"{IDENT}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    seat = take_seat(bus, "api", "/work/api")
    seat.announce(Live(os.getpid(), start_time(os.getpid()) or "", 0, "", "api", IDENT, "/work/api"))
    return {"CLAUDE_CONFIG_DIR": str(tmp_path / "claude")}


def test_a_session_of_this_machine_is_read_with_its_secrets_redacted(bus: Home, environ: dict[str, str]) -> None:
    found = turns(bus, load(bus, {}), environ, "api", False)
    assert [turn.role for turn in found] == ["user", "assistant", "user"]
    assert SECRET not in str(found)
    whole = told(found, "", False, 3, 0, 0, 20)
    assert "\x1b" not in whole and "| " in whole
    assert "turn 1 user at 0: deploy" in told(found, "DEPLOY", False, 0, 0, 0, 20)


def test_its_user_can_keep_it_to_himself(bus: Home, environ: dict[str, str]) -> None:
    set_value(bus, "history.share", "false")
    with pytest.raises(Refused, match=r"history\.share") as refused:
        turns(bus, load(bus, {}), environ, "api", False)
    assert refused.value.code is Code.FORBIDDEN


def test_raw_text_needs_its_own_permission(bus: Home, environ: dict[str, str]) -> None:
    with pytest.raises(Refused, match=r"history\.raw"):
        turns(bus, load(bus, {}), environ, "api", True)
    set_value(bus, "history.raw", "true")
    assert SECRET in str(turns(bus, load(bus, {}), environ, "api", True))


@pytest.mark.parametrize("peer", ["web", "web@laptop", ""])
def test_who_does_not_live_here_is_named_with_who_does(bus: Home, environ: dict[str, str], peer: str) -> None:
    with pytest.raises(Refused, match="living: api"):
        turns(bus, load(bus, {}), environ, peer, False)
