"""Two machines on one bus, as two homes with keys of their own: what reaches a session is what its person allows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bus.trust import roll_file
from tests.live.homes import ROOT, Home
from tests.live.test_cli import Bus
from tests.live.test_cli_session import Session
from tests.live.test_mcp import in_loop
from tests.live.test_mcp_bed import Bed, agent

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(sys.platform == "win32", reason="POSIX")]


@pytest.fixture
def laptop(home: Home, tmp_path: Path) -> Iterator[Home]:
    """A second machine, known to the hub as a member; nobody has made a rule about it."""
    with Home(tmp_path / "laptop") as other:
        other.root.mkdir(mode=0o700)
        entry = f'[[key]]\npublic = "{other.keys.public}"\nlabel = "laptop"\nrole = "member"\n'
        assert home.keys.public
        roll_file(home.paths).write_text(entry)
        roll_file(home.paths).chmod(0o600)
        record = home.start()
        other.environ["TALKBUS_HUB"] = f"{record.router.removeprefix('tcp://')}#{record.key}"
        yield other


def talkbus(home: Home, *args: str, expect: int = 0) -> Any:
    """The JSON document a command prints, else its lines."""
    command = [sys.executable, "-P", str(ROOT / "talkbus.py"), *args]
    done = subprocess.run(command, env=home.environ, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == expect, (args, done.stdout, done.stderr)
    return json.loads(done.stdout) if "--json" in args and not expect else done.stdout + done.stderr


def hub_name(home: Home) -> str:
    return str(talkbus(home, "whoami", "--json")["host"])


def told(home: Home, ident: str) -> list[str]:
    return [step["status"] for step in talkbus(home, "why", ident, "--json")["to"][0]["history"]]


def test_held_released_and_dropped_between_two_machines(home: Home, laptop: Home, stack: ExitStack) -> None:
    api = stack.enter_context(home.session("api"))
    first = talkbus(laptop, "send", "api", "do this for me", "--json")
    assert first["status"] == "held" and "decides" in first["to"][0]["text"]
    second = talkbus(laptop, "send", "api", "and that", "--json")
    assert told(laptop, first["id"]) == ["held"]
    status = talkbus(home, "status", "--json")
    assert (status["held"], status["paused"], status["breakers"]) == (2, 0, [])
    assert "2 for you to decide" in talkbus(home, "status")
    listed = talkbus(home, "hold", "list", "--json")
    assert [(row["id"], row["host"], row["to"], row["body"]) for row in listed] == [
        (first["id"], "laptop", "api", "do this for me"),
        (second["id"], "laptop", "api", "and that"),
    ]
    assert talkbus(laptop, "hold", "list", "--json") == [], "it is held for the hub's person"
    assert "nothing of that is held" in talkbus(laptop, "hold", "release", "--all", expect=1)
    assert talkbus(home, "hold", "release", first["id"][:6], "--json") == {"released": 1}
    talkbus(home, "hold", "drop", second["id"], "--reason", "not now")
    message = api.next()
    assert (message.body, message.host) == (b"do this for me", "laptop")
    assert told(laptop, first["id"])[:2] == ["held", "stored"] and told(laptop, second["id"]) == ["held", "failed"]
    assert "not now" in talkbus(laptop, "why", second["id"])
    assert talkbus(home, "audit", "verify", "--json")["ok"]


def test_rules_survive_the_broker_and_are_about_their_own_machine(home: Home, laptop: Home, stack: ExitStack) -> None:
    stack.enter_context(home.session("api"))
    talkbus(laptop, "whoami", "--json")
    rule = talkbus(home, "policy", "set", "accept", "--machine", "laptop", "--json")
    assert rule["host"] == "laptop" and rule["machine"] == laptop.keys.public
    assert "no machine is called 'tablet'" in talkbus(
        home, "policy", "set", "accept", "--machine", "tablet", expect=1
    )
    assert talkbus(laptop, "send", "api", "one", "--json")["status"] == "stored"
    talkbus(home, "policy", "set", "refuse", "--machine", "laptop", "--kind", "note")
    refused = talkbus(laptop, "send", "api", "--note", "two", expect=1)
    assert "takes no such mail" in refused
    home.kill()
    home.start()
    laptop.environ["TALKBUS_HUB"] = f"{home.record.router.removeprefix('tcp://')}#{home.record.key}"
    assert "takes no such mail" in talkbus(laptop, "send", "api", "--note", "three", expect=1)
    assert talkbus(laptop, "policy", "--json")["rules"] == [], "the hub's rules are not the laptop's"
    assert talkbus(laptop, "policy", "set", "refuse", "--machine", hub_name(home), "--json")["action"] == "refuse"
    assert talkbus(laptop, "send", "api", "four", "--json")["status"] == "stored"
    assert "laptop takes no such mail" in talkbus(
        home, "send", f"{talkbus(laptop, 'whoami', '--json')['name']}@laptop", "x", expect=1
    )


def test_a_pause_holds_the_machines_own_mail_too(home: Home, laptop: Home, stack: ExitStack) -> None:
    api = stack.enter_context(home.session("api"))
    assert "until 'talkbus resume'" in talkbus(home, "pause")
    assert talkbus(home, "send", "api", "mine", "--json")["status"] == "held"
    assert talkbus(laptop, "send", "api", "theirs", "--json")["status"] == "held"
    assert "since" in talkbus(home, "status") and talkbus(home, "status", "--json")["paused"]
    assert "went on" in talkbus(home, "resume")
    assert api.next().body == b"mine"
    assert [row["body"] for row in talkbus(home, "hold", "list", "--json")] == ["theirs"]


@in_loop
async def test_a_model_sees_nothing_of_what_is_held(home: Home, laptop: Home) -> None:
    """Neither by its tools nor by the id, until the person releases it."""
    place = Bed(home.root)
    async with agent(place, "api") as api:
        await api.eventually("set_status", "open")
        sent = talkbus(laptop, "send", "api", "the poisoned text", "--json")
        assert sent["status"] == "held"
        assert await api.call("check_messages") == "no unread messages"
        assert "held" in await api.fails("check_messages", id=sent["id"])
        assert "poisoned" not in await api.call("check_messages", unread_only=False, limit=50)
        assert "unread" not in await api.call("set_status")
        # This process is the agent's client: a command of its own would be one of the session's.
        with home.peer() as person:
            person.hello("me", mode="send", meta={"kind": "human"})
            assert person.do("hold.release", {"ids": [sent["id"]]}).code == 200
        assert "the poisoned text" in await api.eventually("check_messages", "poisoned")
    async with agent(place, "web") as web:
        tools = [tool.name for tool in (await web.client.list_tools()).tools]
        assert not [name for name in tools if any(word in name for word in ("policy", "hold", "pause", "release"))]


def test_a_session_cannot_decide_by_the_command_line(tmp_path: Path) -> None:
    """A model that runs talkbus in its shell is found by the ancestors of the command, under any name it takes."""
    (tmp_path / "projects").mkdir()
    bus = Bus(tmp_path / "bus", tmp_path / "projects")
    bus.ok("up")
    session = Session(bus, "api")
    try:
        for args in (
            ("policy", "set", "accept"),
            ("hold", "list"),
            ("hold", "release", "--all"),
            ("pause",),
            ("send", "api", "x", "--raw"),
        ):
            code, out, err = session.run(*args)
            assert (code, out) == (1, {}) and "inside the session api" in err, args
        code, _, err = session.run("send", "api", "x", "--raw", "--as", "somebody")
        assert code == 1 and "acts as somebody" in err
        assert bus.ok("policy", "--json").json["rules"] == []
        bus.ok("pause")
    finally:
        session.close()
        bus.run("down")
