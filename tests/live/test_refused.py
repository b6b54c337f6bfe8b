"""A machine the hub refuses, as an observer or as one that was revoked: it is told so, and nothing pretends to go."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bus.joined import Joined, remember
from bus.trust import roll_file
from tests.live.homes import ROOT, Home
from tests.live.test_mcp import in_loop
from tests.live.test_mcp_bed import Bed, agent, bodies, ids, until

pytestmark = [pytest.mark.timeout(180), pytest.mark.skipif(sys.platform == "win32", reason="POSIX")]

DONE, REFUSED, _, UNREACHABLE, _ = range(5)
NOT_PAIRED = "this machine is not paired with the hub"
OBSERVER = "an observer may look, not send or receive"
ID = "k3v7h2qmx5azt4cd"
CHANGES = (
    ("send", "api", "hello"),
    ("send", "--as", "ci", "api", "hello", "--json"),
    ("ask", "api", "hello?"),
    ("inbox",),
    ("ack", ID),
    ("busy", "5"),
    ("ready",),
    ("summary", "working"),
    ("rename", "other"),
    ("state", "set", "port", "1"),
    ("state", "delete", "port"),
    ("policy", "set", "accept"),
    ("hold", "list"),
    ("pause",),
    ("whoami",),
    ("lan", "revoke", "desk"),
)


class Hub:
    """The hub's machine, and a laptop that has joined it, with a key of its own."""

    def __init__(self, home: Home, laptop: Home) -> None:
        self.home, self.laptop = home, laptop
        laptop.root.mkdir(mode=0o700)
        assert home.keys.public and laptop.keys.public
        self._since = 0

    def up(self, role: str | None) -> None:
        """Start it with the laptop on the roll in this role, or not on it. It may listen elsewhere than before."""
        entry = f'[[key]]\npublic = "{self.laptop.keys.public}"\nlabel = "laptop"\nrole = "{role}"\n'
        roll_file(self.home.paths).write_text(entry if role else "")
        roll_file(self.home.paths).chmod(0o600)
        record = self.home.start()
        host, port = record.router.removeprefix("tcp://").rsplit(":", 1)
        events = int(record.xpub.rsplit(":", 1)[1])
        remember(self.laptop.paths, Joined(host, int(port), events, record.key, "laptop", self._since))

    def joined_anew(self) -> None:
        """What is remembered of an earlier pairing is not about the next one."""
        self._since += 1

    def down(self) -> None:
        self.home.kill()

    def sent(self) -> list[str]:
        """The texts of everything the hub has."""
        return [row["body"] for row in self.on_hub("history", "--json", "--limit", "100")]

    def on_hub(self, *args: str, code: int = DONE) -> Any:
        return run(self.home, *args, code=code)

    def on_laptop(self, *args: str, code: int = DONE) -> Any:
        return run(self.laptop, *args, code=code)

    def error(self, *args: str, code: int = REFUSED) -> str:
        """What a command on the laptop says that must fail, and print nothing but that."""
        done = ran(self.laptop, *args)
        assert (done.returncode, done.stdout) == (code, ""), (args, done)
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, (args, done.stderr)
        assert done.stderr.endswith(")\n"), (args, done.stderr)
        return done.stderr

    def queued(self) -> int:
        done = ran(self.laptop, "status", "--json")
        return int(json.loads(done.stdout)["queued"])


def ran(home: Home, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", str(ROOT / "talkbus.py"), *args]
    return subprocess.run(command, env=home.environ, capture_output=True, text=True, timeout=60, cwd=ROOT)


def run(home: Home, *args: str, code: int = DONE) -> Any:
    """The JSON document a command prints, else its lines."""
    done = ran(home, *args)
    assert done.returncode == code, (args, done.stdout, done.stderr)
    return json.loads(done.stdout) if "--json" in args else done.stdout + done.stderr


@pytest.fixture
def hub(home: Home, tmp_path: Path, stack: ExitStack) -> Iterator[Hub]:
    """It runs, the laptop is a member whose mail is accepted, and the mailbox api is there."""
    laptop = stack.enter_context(Home(tmp_path / "laptop"))
    made = Hub(home, laptop)
    made.up("member")
    home.session("api").close()
    made.on_laptop("whoami", "--json")
    made.on_hub("policy", "set", "accept", "--machine", "laptop")
    yield made
    if home.process is not None and home.process.poll() is None:
        made.down()


@pytest.mark.parametrize(("role", "words"), [("observer", OBSERVER), (None, NOT_PAIRED)], ids=["observer", "revoked"])
def test_every_command_says_so_at_once_and_leaves_nothing(hub: Hub, role: str | None, words: str) -> None:
    assert hub.on_laptop("send", "api", "as a member", "--json")["status"] == "stored"
    if role:
        hub.on_hub("lan", "role", "laptop", role)
    else:
        hub.on_hub("lan", "revoke", "laptop")
    for command in CHANGES:
        assert words in hub.error(*command), command
    assert hub.queued() == 0
    status = ran(hub.laptop, "status", "--json")
    assert (status.returncode, role or "") == (DONE if role else REFUSED, json.loads(status.stdout).get("role", ""))
    assert "observer" in json.loads(status.stdout)["refused"] if role else words in status.stderr
    doctor = ran(hub.laptop, "doctor").stdout
    assert ("is an observer" if role else "not paired") in doctor
    # Not even when the hub takes it back: what was refused was never written.
    if role:
        hub.on_hub("lan", "role", "laptop", "member")
    else:
        hub.down()
        hub.up("member")
    assert hub.on_laptop("send", "api", "as a member again", "--json")["status"] == "stored"
    assert sorted(hub.sent()) == ["as a member", "as a member again"]
    assert hub.on_laptop("state", "list", "--json") == []


@pytest.mark.parametrize(("role", "words"), [("observer", OBSERVER), (None, NOT_PAIRED)], ids=["observer", "revoked"])
def test_it_is_remembered_while_the_hub_is_away(hub: Hub, role: str | None, words: str) -> None:
    hub.down()
    assert hub.on_laptop("send", "api", "one", "--json")["status"] == "queued", "nobody has refused it yet"
    hub.up(role)
    assert words in hub.error("send", "api", "two")
    hub.down()
    for command in (("send", "--as", "ci", "api", "three", "--json"), ("state", "set", "port", "1")):
        said = hub.error(*command)
        assert words in said and "cannot be reached now" in said
    assert words in json.loads(ran(hub.laptop, "status", "--json").stdout)["refused"]
    assert words in ran(hub.laptop, "doctor").stdout
    assert hub.queued() == 1
    hub.up("member")
    assert hub.on_laptop("send", "api", "four", "--json")["status"] == "stored"
    hub.down()
    assert hub.on_laptop("send", "api", "five", "--json")["status"] == "queued", "the hub has accepted it since"
    assert json.loads(ran(hub.laptop, "status", "--json").stdout)["refused"] == ""
    hub.up("member")
    hub.on_laptop("peers")
    assert sorted(hub.sent()) == ["five", "four", "one"]


def test_another_pairing_is_a_new_chance(hub: Hub) -> None:
    hub.down()
    hub.up(None)
    assert NOT_PAIRED in hub.error("send", "api", "one")
    hub.down()
    hub.joined_anew()
    hub.up(None)
    hub.down()
    assert hub.on_laptop("send", "api", "two", "--json")["status"] == "queued"


@pytest.mark.parametrize(("role", "words"), [("observer", OBSERVER), (None, NOT_PAIRED)], ids=["observer", "revoked"])
def test_what_was_queued_before_is_seen_to_be_blocked_and_goes_out_when_it_may(
    hub: Hub, role: str | None, words: str
) -> None:
    hub.down()
    ident = hub.on_laptop("send", "api", "written before", "--json")["id"]
    assert hub.on_laptop("why", ident, "--json")["to"][0]["status"] == "queued"
    hub.up(role)
    (told,) = hub.on_laptop("why", ident, "--json")["to"]
    assert [step["status"] for step in told["history"]] == ["queued", "blocked"] and told["status"] == "blocked"
    assert words in told["history"][1]["proof"]
    assert "1 that cannot be sent" in ran(hub.laptop, "status").stdout
    assert words in hub.error("send", "api", "written after")
    hub.down()
    assert "blocked" in hub.on_laptop("why", ident)
    hub.up("member")
    hub.on_laptop("peers")
    assert hub.on_laptop("why", ident, "--json")["to"][0]["status"] == "stored"
    assert hub.sent() == ["written before"]


def test_an_error_because_the_hub_is_away_leaves_nothing_that_is_done_later(hub: Hub) -> None:
    hub.down()
    for command in (("state", "set", "port", "1"), ("summary", "working"), ("rename", "other")):
        assert "talkbus why" not in hub.error(*command, code=UNREACHABLE)
    hub.up("member")
    hub.on_laptop("peers")
    assert hub.on_laptop("state", "list", "--json") == []
    assert hub.on_laptop("whoami", "--json")["summary"] == ""


# -- an agent over stdio ---------------------------------------------------------------------------------------------

TOOLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("send_message", {"to": "api", "body": "hello"}),
    ("ask", {"to": "api", "body": "hello?", "timeout_s": 5}),
    ("set_state", {"key": "port", "value": 1}),
    ("get_state", {"key": "port"}),
    ("ack", {"ids": ID}),
    ("ack", {"ids": ID, "note": "done"}),
    ("set_status", {"summary": "working"}),
    ("set_status", {"name": "other"}),
    ("list_peers", {}),
    ("check_messages", {"tag": "x"}),
)


@in_loop
async def test_an_agents_tools_say_so_and_work_again_when_they_may(hub: Hub, stack: ExitStack) -> None:
    async with agent(Bed(hub.laptop.root), "web") as web:
        assert "stored" in await web.call("send_message", to="api", body="as a member")
        for refuse, words, accept in (
            (("lan", "role", "laptop", "observer"), OBSERVER, ("lan", "role", "laptop", "member")),
            (("lan", "revoke", "laptop"), NOT_PAIRED, ()),
        ):
            hub.on_hub(*refuse)
            await web.eventually("set_status", words)
            for tool, given in TOOLS:
                assert words in await web.fails(tool, **given), tool
            said = await web.call("check_messages")
            assert said.startswith("no unread messages here, and nothing comes in") and words in said
            if accept:
                hub.on_hub(*accept)
                assert "stored" in await web.call("send_message", to="api", body="again")
        hub.down()
        hub.joined_anew()
        hub.up("member")
        await web.eventually("set_status", ", connected since")
        assert "stored" in await web.call("send_message", to="api", body="at last")
    assert sorted(hub.sent()) == ["again", "as a member", "at last"]


@in_loop
async def test_an_agent_tells_what_becomes_of_what_it_queued(hub: Hub) -> None:
    async with agent(Bed(hub.laptop.root), "web") as web:
        await web.eventually("set_status", ", connected since")
        hub.down()
        sent = await web.eventually("send_message", "queued.*not reachable", to="api", body="written before")
        waiting = [ident for ident in ids(sent)][:1]
        hub.up(None)
        told = await web.eventually("message_status", NOT_PAIRED, id=waiting[0])
        assert f"not confirmed (id {waiting[0]})" in told and "stays on this disk" in told
        assert NOT_PAIRED in await web.fails("send_message", to="api", body="written after")
        hub.down()
        hub.joined_anew()
        hub.up("member")
        await web.eventually("message_status", "stored", id=waiting[0])
    assert set(hub.sent()) == {"written before"}


@in_loop
async def test_an_agent_that_starts_refused_knows_it_from_before(hub: Hub) -> None:
    hub.down()
    hub.up("observer")
    assert OBSERVER in hub.error("send", "api", "one")
    hub.down()
    async with agent(Bed(hub.laptop.root), "web") as web:
        assert OBSERVER in await web.fails("send_message", to="api", body="two")
        hub.up("member")
        text = await web.eventually("send_message", "stored", to="api", body="three")
        assert not bodies(text)
    assert set(hub.sent()) == {"three"}


def test_the_status_line_does_not_count_what_is_not_known(tmp_path: Path) -> None:
    from agent.statusline import text

    assert text("web", 3, 2, 1, off=True) == "web · not on the bus"


def test_a_new_agent_name_is_chosen_when_the_machine_is_accepted(hub: Hub) -> None:
    """An observer's session has no mailbox; the name it would have had is not lost to it."""
    hub.on_hub("lan", "role", "laptop", "observer")

    @in_loop
    async def session() -> None:
        async with agent(Bed(hub.laptop.root), "web") as web:
            assert OBSERVER in await web.fails("list_peers")
            hub.on_hub("lan", "role", "laptop", "member")
            assert "you: web@laptop" in await web.call("list_peers")

    session()


def test_rows_of_several_seats_are_blocked_and_go_out_together(hub: Hub) -> None:
    hub.down()
    for name in ("ci", "cron"):
        assert hub.on_laptop("send", "--as", name, "api", f"from {name}", "--json")["status"] == "queued"
    hub.up("observer")
    for name in ("ci", "cron"):
        assert OBSERVER in hub.error("send", "--as", name, "api", "no")
    hub.on_hub("lan", "role", "laptop", "member")
    hub.on_laptop("send", "api", "from me")
    until(lambda: sorted(hub.sent()) == ["from ci", "from cron", "from me"])
