"""doctor: every fault that can be made here is named with its mend, and looking changes nothing."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from agent import settings_block, settings_hooks
from agent.cli import doctor as doctor_command
from agent.cli import doctor_probe, install_checks
from agent.cli.broker import config
from agent.cli.call import Call
from agent.cli.doctor import doctor
from agent.cli.doctor_probe import Served, Unproven
from agent.cli.install import install
from agent.cli.show import now_ms
from agent.delivery.maildir import Maildir
from agent.seats import Live, take_seat
from agent.settings_block import Server
from agent.tools import table
from bus.client import News
from bus.config import Home
from bus.config import home as home_of
from bus.daemon import Record, publish
from bus.errors import Unreachable
from bus.private import private_dir, write_private
from bus.processes import start_time
from bus.store import Store
from bus.store_look import look

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes and hooks are POSIX's")


class Rows(NamedTuple):
    rows: list[tuple[dict[str, Any], bytes]]


UNASKED = "skip: clock, version and how open sessions are reached were not asked -> talkbus up; talkbus doctor"


@cache
def tools() -> Path:
    """The system's programs, without a client that the machine of the tests may have."""
    folder = Path(tempfile.mkdtemp(prefix="tb-tools-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for place in ("/usr/bin", "/bin"):
        for name in os.listdir(place):
            if name != "claude" and not (folder / name).is_symlink():
                (folder / name).symlink_to(f"{place}/{name}")
    return folder


class World:
    """A home, a bus that answers as told, and the checks by name."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.user = root / "home"
        self.project = root / "project"
        self.bin = root / "bin"
        temp = root / "temp"
        for folder in (self.user / ".claude", self.project, self.bin, temp):
            folder.mkdir(parents=True)
        for name in [n for n in os.environ if n.startswith(("TALKBUS", "CLAUDE"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(self.user))
        monkeypatch.setenv("TALKBUS_HOME", str(root / "bus"))
        monkeypatch.setenv("PATH", f"{self.bin}{os.pathsep}{tools()}")
        monkeypatch.setattr(tempfile, "tempdir", str(temp))  # what is left there is this test's alone
        monkeypatch.chdir(self.project)
        self.stats: dict[str, Any] = {"writable": True}
        self.peers: list[dict[str, Any]] = []
        self.fails = False
        self.news = News({}, [], False)
        world = self

        @contextmanager
        def view(call: Call, start: bool = True) -> Iterator[Any]:
            assert start is False
            if world.fails:
                raise Unreachable("no answer (try again)")
            yield world

        monkeypatch.setattr(Call, "view", view)
        self.served: Served | Unproven = Served("talkbus", list(table()), 0.1)
        monkeypatch.setattr(doctor_probe, "serve", self.serve)  # a start costs a second; one test has a real one
        self.claude("2.1.329 (Claude Code)")

    def serve(self, *_: object) -> Served:
        if isinstance(self.served, Unproven):
            raise self.served
        return self.served

    def events(self, topics: tuple[str, ...], timeout: float) -> Iterator[Any]:
        yield self.news

    def query(self, what: str, args: dict[str, Any], timeout: float) -> Rows:
        # The clock is that of the query, unless a test has set it: the test itself may take a while.
        stats = {"now": now_ms(), **self.stats}
        return Rows([(row, b"") for row in ([stats] if what == "stats" else self.peers)])

    def claude(self, version: str, get: str = "Scope: User\\nStatus: ✔ Connected", doctor: str = "") -> None:
        """A client that says its version, what it thinks of our server, and of its settings."""
        says = f"printf '%b\\n' 'Claude Code doctor' '{doctor}'"
        cases = f"*'mcp get'*) printf '%b\\n' '{get}' ;;\n*doctor*) {says} ;;\n*) echo '{version}' ;;"
        (self.bin / "claude").write_text(f"#!/bin/sh\ncase $* in\n{cases}\nesac\n", "utf-8")
        (self.bin / "claude").chmod(0o755)

    def broker(self, version: str = "1") -> None:
        record = Record(os.getpid(), start_time(os.getpid()) or "", "tcp://127.0.0.1:7717", "x", "k", version)
        publish(self.bus, record)

    @property
    def bus(self) -> Home:
        return home_of()

    def install(self) -> None:
        assert CliRunner().invoke(install, [], obj=Call(version="1")).exit_code == 0

    def look(self, code: int = 0) -> dict[str, list[str]]:
        """The checks that are not ok: name -> "state: text -> mend". Without a broker a last line says what was not
        asked, and it is left out here.
        """
        found = self.all(code)
        if UNASKED in found.get("sessions", []):
            assert not any(name in found for name in ("clock", "version"))
            found["sessions"].remove(UNASKED)
            if not found["sessions"]:
                del found["sessions"]
        return found

    def all(self, code: int = 0) -> dict[str, list[str]]:
        """As look, with that line."""
        before = self._files()
        result = CliRunner().invoke(doctor, ["--json"], obj=Call(version="1", look=look))
        assert result.exit_code == code, result.output
        assert self._files() == before
        told = json.loads(result.stdout)
        assert told["ok"] is (code == 0)
        found: dict[str, list[str]] = {}
        for check in told["checks"]:
            assert bool(check["mend"]) == (check["state"] != "ok")
            if check["state"] != "ok":
                found.setdefault(check["name"], []).append(f"{check['state']}: {check['text']} -> {check['mend']}")
        return found

    def told(self, name: str) -> str:
        """The text of the last check of that name."""
        checks = json.loads(CliRunner().invoke(doctor, ["--json"], obj=Call(version="1", look=look)).stdout)["checks"]
        return [str(check["text"]) for check in checks if check["name"] == name][-1]

    def _files(self) -> dict[str, tuple[bytes, int]]:
        files = self.user.parent.rglob("*")
        return {str(p): (p.read_bytes() if p.is_file() else b"", p.stat().st_mode) for p in files}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_nothing_is_wrong_after_an_installation(world: World) -> None:
    world.install()
    assert world.look() == {}
    world.broker()
    assert world.look() == {}
    text = CliRunner().invoke(doctor, [], obj=Call(version="1")).stdout
    assert "all is well" in text and "ok    broker" in text


def test_before_an_installation_it_says_what_is_missing(world: World) -> None:
    found = world.look(1)
    assert set(found) == {"mcp", "hooks", "statusline", "delivery"}
    assert all("-> talkbus install" in line for lines in found.values() for line in lines)
    assert found["delivery"][0].startswith("fail: no mail would reach")
    assert not (world.bus.state).exists()


def test_the_broker(world: World) -> None:
    world.install()
    world.broker("0")
    assert world.look() == {
        "version": ["warn: 0 runs, and 1 is installed -> talkbus down && talkbus up (nothing is lost)"]
    }
    world.broker()
    world.stats["writable"] = False
    assert "cannot write" in world.look(1)["broker"][0]
    world.stats = {"now": now_ms() - 60_000}
    assert "warn: 60 s beside the broker's" in world.look()["clock"][0]
    world.fails = True
    assert "does not answer: no answer" in world.look(1)["broker"][0]
    assert "were not asked" in world.all(1)["sessions"][0]
    world.bus.record.unlink()
    (world.bus.state / "bus.json").unlink()
    world.bus.stop_mark.touch()
    assert world.all() == {
        "broker": ["warn: stopped with 'talkbus down'; mail waits -> talkbus up"],
        "sessions": [UNASKED],
    }
    world.bus.stop_mark.unlink()
    assert world.all() == {"sessions": [UNASKED]}


def test_a_port_that_somebody_else_has(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.install()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("TALKBUS_PORT", str(port))
        assert f"port {port} is in use" in world.look(1)["ports"][0]
    assert world.look() == {}


def test_directories_and_keys(world: World) -> None:
    world.install()
    world.bus.keys.mkdir(parents=True)
    world.bus.config.chmod(0o700)
    world.bus.keys.chmod(0o700)
    key = world.bus.keys / "secret"
    key.write_text("x")
    key.chmod(0o644)
    world.bus.state.chmod(0o755)
    state, secret = world.look(1)["directories"]
    assert f"chmod 700 '{world.bus.state}'" in state and f"chmod 600 '{key}'" in secret


def test_the_config_file(world: World) -> None:
    world.install()
    world.bus.config.mkdir(mode=0o700)
    world.bus.config_file.write_text('nmae = "x"\n')
    assert "nmae in " in world.look()["config"][0]
    world.bus.config_file.write_text("port = true\n")
    assert "config.toml:1: port must be" in world.look(1)["config"][0]


def test_the_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.install()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    assert "1 B free" in world.look(1)["disk"][0]


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("2.1.100 (Claude Code)", "has no inbox"),
        ("hello", "does not tell its version"),
        ("2.1.224", ""),
        ("3.0.0", ""),
    ],
)
def test_the_client(version: str, says: str, world: World) -> None:
    world.install()
    world.claude(version)
    found = world.look()
    assert (says in found["client"][0]) if says else found == {}


def test_a_client_that_is_not_there(world: World) -> None:
    world.install()
    (world.bin / "claude").write_text("#!/nonexistent/interpreter\n")
    assert "does not run" in world.look(1)["client"][0]
    (world.bin / "claude").unlink()
    assert "not on the path" in world.look()["client"][0]


def test_settings_that_cannot_be_read(world: World) -> None:
    world.install()
    local = world.project / ".claude" / "settings.local.json"
    local.parent.mkdir()
    local.write_text("{\n  x}")
    assert world.look(1)["settings"] == [
        f"fail: {local}:2:3: not JSON: Expecting property name enclosed in double quotes; the client takes nothing"
        " from it -> mend that line, then try again"
    ]


def test_hooks_that_do_not_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.install()
    settings = world.user / ".claude" / "settings.json"
    installed = settings.read_text()
    settings.write_text(installed.replace(str(settings_hooks.FOLDER), "/opt/gone"))
    gone = world.look(1)["hooks"]
    assert len(gone) == 3 and all("/opt/gone/" in line and "-> talkbus install" in line for line in gone)
    folder = world.user / "hooks"
    shutil.copytree(settings_hooks.FOLDER, folder)
    monkeypatch.setattr(settings_hooks, "FOLDER", folder)
    settings.write_text(installed.replace(str(settings_hooks.FOLDER), str(folder)))
    world.install()
    (folder / "deliver.sh").chmod(0o644)
    assert any(f"chmod u+rx '{folder / 'deliver.sh'}'" in line for line in world.look(1)["hooks"])
    (folder / "deliver.sh").chmod(0o755)
    (folder / "maildir.sh").unlink()
    assert len(world.look(1)["hooks"]) >= 3


def test_hooks_switched_off_and_a_server_that_was_removed(world: World) -> None:
    world.install()
    settings, servers = world.user / ".claude" / "settings.json", world.user / ".claude.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "disableAllHooks": True}))
    servers.write_text("{}")
    found = world.look(1)
    assert "disableAllHooks" in found["statusline"][0]
    assert "disableAllHooks" in found["hooks"][0] and found["mcp"] == [
        "fail: no client starts the server -> talkbus install"
    ]


def test_the_plugin(world: World) -> None:
    settings = world.user / ".claude" / "settings.json"
    settings.write_text('{"enabledPlugins": {"talkbus@talkbus": true, "other@x": true}}')
    found = world.look(1)
    assert "skip: the plugin talkbus@talkbus brings them; its folder is not found" in found["hooks"][0]
    assert "no server of it is found -> claude plugin install talkbus@talkbus" in found["mcp"][0]
    markets = world.user / ".claude" / "plugins" / "known_marketplaces.json"
    markets.parent.mkdir()
    markets.write_text(json.dumps({"talkbus": {"installLocation": str(settings_hooks.FOLDER.parent)}}))
    world.claude("2.1.329", get="Scope: Dynamic config\\nStatus: ✔ Connected")
    assert set(world.look()) == {"statusline"}
    assert "hooks.json: ran all 9 as configured; 6 delivered a probe, 1 woke" in world.told("hooks")
    world.claude("2.1.329")
    world.install()
    assert "steps aside -> claude plugin disable talkbus@talkbus" in world.look()["plugin"][0]
    changed = json.loads(settings.read_text())
    del changed["env"]["TALKBUS_INSTALLED"]
    settings.write_text(json.dumps(changed))
    assert "TALKBUS_INSTALLED is missing" in world.look()["plugin"][0]


def test_the_status_line_and_the_inbox(world: World) -> None:
    settings = world.user / ".claude" / "settings.json"
    world.install()
    for setting in ("hold", "refuse"):
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "crossSessionInbound": setting}))
        assert install_checks.INBOUND[setting] in world.look()["inbound"][0]
    line = {"type": "command", "command": "date"}
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "statusLine": line}))
    assert "yours alone" in world.look()["statusline"][0]
    world.install()
    assert "statusline" not in world.look()


def test_how_each_living_session_is_reached(world: World) -> None:
    world.install()
    world.broker()
    for name in ("api", "web", "ops"):
        seat = take_seat(world.bus, name, f"/p/{name}")
        seat.announce(Live(os.getpid(), start_time(os.getpid()) or "", 0, "", name, "i", "/p"))
    world.peers = [{"name": "api", "wake": "native"}, {"name": "web", "wake": ""}]
    found = world.look()
    assert set(found) == {"session web", "session ops"}
    assert "nothing wakes it" in found["session web"][0] and "is not on the bus" in found["session ops"][0]


def test_a_session_of_another_machine_proves_nothing(world: World) -> None:
    world.install()
    world.broker()
    for name in ("api", "web"):
        start = start_time(os.getpid()) or ""
        seat = take_seat(world.bus, name, f"/p/{name}")
        seat.announce(Live(os.getpid(), start, 0, "", name, "i", "/p", mailbox=f"0000{name}"))
    world.peers = [
        {"id": "ffffffff", "name": "api", "host": "far", "wake": "native"},
        {"id": "0000api", "name": "api", "host": "here", "wake": "tools"},
        {"id": "0000web", "name": "web", "host": "here", "wake": "terminal"},
    ]
    assert "nothing wakes it" in world.look()["session api"][0]
    assert world.told("session web").startswith("is woken by typing")
    assert "(no open session proves it)" in world.told("delivery"), "typing proves no inbox"


def test_a_client_whose_agent_was_killed(world: World) -> None:
    """Whether or not the broker runs; not where another agent serves it by now, nor where the client has ended too."""
    world.install()
    with subprocess.Popen(["sleep", "60"]) as client, subprocess.Popen(["sleep", "60"]) as agent:
        ends = [(process.pid, start_time(process.pid) or "") for process in (agent, client)]
        take_seat(world.bus, "api", "/p/api").announce(Live(*ends[0], *ends[1], "api", "i", "/p"))
        assert world.look() == {}
        agent.kill()
        agent.wait()
        (told,) = world.look(1)["session api"]
        assert f"process {agent.pid}, has died" in told and f"process {client.pid}, gets no mail" in told
        assert "Reconnect" in told
        successor = take_seat(world.bus, "api-2", "/p/api")
        successor.announce(Live(os.getpid(), start_time(os.getpid()) or "", *ends[1], "api-2", "i", "/p"))
        assert world.look() == {}
        successor.leave()
        assert world.look(1)
        client.kill()
        client.wait()
        assert world.look() == {}


@pytest.mark.parametrize("stopped", [False, True])
def test_a_database_that_cannot_be_opened(world: World, stopped: bool) -> None:
    world.install()
    path = world.bus.bus_db
    private_dir(path.parent)
    if stopped:
        write_private(world.bus.stop_mark, b"")
    Store.open(path).close()
    good = path.read_bytes()
    assert "database" not in world.look()
    broken = {
        "is another program's database": good[:68] + b"\0\0\0\1" + good[72:],
        "has schema 99": good[:60] + b"\0\0\0\x63" + good[64:],
        "not a database": b"hello, this is a text and no database" * 100,
        "malformed": good[:4096] + b"\xff" * (len(good) - 4096),
    }
    for words, data in broken.items():
        path.write_bytes(data)
        (told,) = world.look(1)["database"]
        assert told.startswith("fail: ") and words in told and "move the file away" in told


def test_a_database_whose_broker_was_killed_is_read_with_its_log(world: World) -> None:
    world.install()
    private_dir(world.bus.bus_db.parent)
    store = Store.open(world.bus.bus_db)
    log = world.bus.bus_db.with_name(world.bus.bus_db.name + "-wal")
    assert log.stat().st_size and "database" not in world.look()
    store.close()


def test_the_channel_says_what_else_it_needs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.install()
    monkeypatch.setenv("DISABLE_TELEMETRY", "1")
    assert world.look() == {}
    assert CliRunner().invoke(config, ["set", "delivery.channel", "true"], obj=Call()).exit_code == 0
    assert "DISABLE_TELEMETRY" in world.look()["channel"][0]
    monkeypatch.delenv("DISABLE_TELEMETRY")
    assert world.look() == {}
    settings = world.user / ".claude" / "settings.json"
    env = json.loads(settings.read_text())["env"]
    changed(settings, env=env | {"DISABLE_TELEMETRY": "1"})
    assert "DISABLE_TELEMETRY" in world.look()["channel"][0]
    changed(settings, env=env)
    managed = world.user / "managed"
    for enabled, state in ((False, "warn"), (None, "warn"), (True, "ok")):
        write(managed / "managed-settings.json", {"channelsEnabled": enabled})
        found = settings_block.read({"HOME": str(world.user)}, world.project, managed)
        assert doctor_command._channel(found).state == state
    shutil.rmtree(managed)
    assert "dangerously-load-development-channels" in CliRunner().invoke(doctor, [], obj=Call(version="1")).stdout


def test_from_a_folder_that_was_removed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = world.user.parent / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    world.install()
    assert list(world.look()) == ["folder"] and "cd to one" in world.look()["folder"][0]
    refused = CliRunner().invoke(install, ["--scope", "project"], obj=Call(version="1"))
    assert refused.exit_code == 1
    assert refused.stderr == "error: the current folder was removed (cd to one that is there)\n"


def test_why_nothing_is_pruned(world: World) -> None:
    world.install()
    world.broker()
    world.stats["prune_doubt"] = "the clock is 400 days ahead of the mail"
    (told,) = world.look()["pruning"]
    assert told.startswith("warn: the clock is 400 days ahead of the mail -> set the broker's clock")


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def changed(path: Path, **keys: Any) -> None:
    write(path, {**(json.loads(path.read_text()) if path.exists() else {}), **keys})


def test_the_hooks_are_run_as_configured(world: World) -> None:
    world.install()
    settings = world.user / ".claude" / "settings.json"
    assert world.told("hooks") == (
        f"{settings}: ran all 9 as configured; 6 delivered a probe, 1 woke with it, 2 noted what the session does"
    )
    told = json.loads(settings.read_text())
    broken = told["hooks"]["PostToolUse"][0]["hooks"][0]
    broken["command"] = "echo broken >&2; exit 3 # talkbus"
    del told["hooks"]["Stop"]
    write(settings, told)
    fails, warns = world.look(1)["hooks"]
    assert "PostToolUse: exit code 3: broken" in fails
    assert warns.startswith("warn: ") and "not all of ours at Stop -> talkbus install" in warns


def test_a_hook_that_does_not_end_is_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.install()
    settings = world.user / ".claude" / "settings.json"
    told = json.loads(settings.read_text())
    told["hooks"]["Stop"][0]["hooks"][0] |= {"command": "sleep 600 # talkbus", "timeout": 0.2}
    write(settings, told)
    assert "Stop: did not end within" in world.look(1)["hooks"][0]


def test_a_maildir_that_the_hooks_do_not_find(world: World) -> None:
    """The agent's entry sends it to another bus than the hooks look at: both places are told."""
    world.install()
    state = world.user / ".claude.json"
    told = json.loads(state.read_text())
    other = world.user / "other"
    told["mcpServers"]["talkbus"]["env"]["TALKBUS_HOME"] = str(other)
    write(state, told)
    found = world.look(1)
    (line,) = found["hooks"]
    assert f"the agent puts mail into {other}/run/maildirs, and the hooks look in {world.bus.maildirs}" in line
    assert "TALKBUS_HOME" in line.rpartition(" -> ")[2]
    assert found["mcp"][0].startswith("skip: the client was not asked")


@pytest.mark.skipif(sys.platform != "linux", reason="where the runtime directory lies is the platform's")
def test_a_place_that_depends_on_the_environment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that finds mail in one environment does not in another: what counts is the client's own."""
    for name in ("TALKBUS_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    runtime = world.user / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(world.user / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(world.user / "state"))
    world.install()
    assert world.look() == {}
    elsewhere = world.user / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    state = world.user / ".claude.json"
    told = json.loads(state.read_text())
    told["mcpServers"]["talkbus"]["env"]["XDG_RUNTIME_DIR"] = str(elsewhere)
    write(state, told)
    (elsewhere / "talkbus").mkdir(mode=0o700)
    (line,) = world.look(1)["hooks"]
    assert f"puts mail into {elsewhere}/talkbus/maildirs" in line and str(runtime) in line


@pytest.mark.parametrize(
    ("says", "code", "told"),
    [
        ("Status: ⊘ Disabled for this project", 1, "fail: the client says of talkbus: ⊘ Disabled for this project"),
        ('No MCP server named "talkbus". Run', 1, "fail: the client says: no MCP server talkbus"),
        ("Status: ✘ Failed to connect\\nIssue: closed", 1, "fail: the client says of talkbus: ✘ Failed to connect"),
        ("Status: ⏸ Pending approval", 0, "warn: the client says of talkbus: ⏸ Pending approval"),
        ("hello", 0, "skip: 'claude mcp get talkbus' did not tell: hello"),
    ],
)
def test_what_the_client_itself_says_of_the_server(world: World, says: str, code: int, told: str) -> None:
    world.install()
    world.claude("2.1.329", get=says)
    found = world.look(code)
    assert found["mcp"][0].startswith(told) and set(found) <= {"mcp", "delivery"}
    text = CliRunner().invoke(doctor, [], obj=Call(version="1")).stdout
    assert "all is well" not in text
    assert text.endswith(f"{1 + ('did not tell' in told)} not tried\n")  # no broker runs here


def test_the_client_takes_another_server_of_our_name(world: World) -> None:
    world.install()
    world.claude("2.1.329", get="Scope: Local config\\nStatus: ✔ Connected")
    assert "takes the server of scope local" in world.look()["mcp"][0]


def test_what_the_client_itself_says_of_its_settings(world: World) -> None:
    world.install()
    local = world.project / ".claude" / "settings.local.json"
    complaints = (
        f"\\nInvalid settings\\n- {local} › foo.bar: Expected string\\n  Suggested fix: x\\n\\nOther\\n- a: b"
    )
    world.claude("2.1.329", doctor=complaints)
    assert world.look(1)["settings"] == [
        f"fail: {local}: the client takes nothing from it: foo.bar: Expected string -> correct that entry"
    ]
    world.claude("2.1.329", doctor=f"\\nInvalid settings\\n- {local} › foo: bad; entry ignored.")
    assert world.look()["settings"] == [f"warn: {local}: foo: bad; entry ignored. -> correct that entry"]


def test_a_setting_that_blocks_us_is_named(world: World) -> None:
    world.install()
    settings, local = world.user / ".claude" / "settings.json", world.project / ".claude" / "settings.local.json"
    changed(settings, deniedMcpServers=[{"serverName": "talkbus"}])
    write(local, {"permissions": {"deny": ["mcp__talkbus__ask"]}})
    found = world.look(1)
    assert found["mcp"] == [
        f"fail: {settings}: deniedMcpServers names talkbus, so the client does not start it -> remove that entry from it"
    ]
    assert f"warn: {local}: permissions.deny has mcp__talkbus__ask" in found["tools"][0]
    assert "no mail would reach" in found["delivery"][0]


def test_a_foreign_entry_that_drops_our_hooks(world: World) -> None:
    world.install()
    settings = world.user / ".claude" / "settings.json"
    told = json.loads(settings.read_text())
    told["hooks"]["PreToolUse"].append({"matcher": {"tools": ["Bash"]}, "hooks": []})
    write(settings, told)
    found = world.look(1)
    assert f"{settings}: hooks.PreToolUse[1].matcher is not a text" in found["settings"][0]
    assert f"takes none from {settings}" in found["hooks"][0]


def test_a_server_that_does_not_work(world: World) -> None:
    world.install()
    world.served = Unproven("did not answer within 20 s")
    assert "the server did not answer" in world.look(1)["mcp"][0]
    world.served = Served("talkbus", [], 0.1)
    assert "has no tools" in world.look(1)["mcp"][0]
    world.served = Served("other", ["x"], 0.1)
    assert "is another program, 'other'" in world.look(1)["mcp"][0]
    world.served = Served("talkbus", ["ask"], 40.0)
    assert "MCP_TIMEOUT" in world.look(1)["mcp"][0]


def test_nothing_of_an_untrusted_project_is_run(world: World) -> None:
    """A folder that somebody sent: our mark on a hook is anybody's to write."""
    world.install()
    evil = world.user / "evil"
    hook = {"type": "command", "command": f"touch {evil} # talkbus"}
    write(
        world.project / ".claude" / "settings.json", {"hooks": {"Stop": [{"hooks": [hook]}]}, "env": {"PATH": "/x"}}
    )
    write(world.project / ".mcp.json", {"mcpServers": {"talkbus": {"command": "/bin/touch", "args": [str(evil)]}}})
    found = world.look()
    assert "were not run: this folder is not trusted" in found["hooks"][0] and not evil.exists()
    assert "mcp" not in found, "the user's own server is the one that starts"


def test_a_server_that_waits_for_its_approval(world: World) -> None:
    assert CliRunner().invoke(install, ["--scope", "project"], obj=Call(version="1")).exit_code == 0
    found = world.look()
    assert "you have not approved it yet" in found["mcp"][0]
    assert [line.partition(":")[0] for line in found["mcp"]] == ["warn", "skip", "skip"]
    assert found["delivery"][0].startswith("skip: ")


def test_the_activity_of_the_broker(world: World) -> None:
    world.install()
    world.broker()
    world.news = News(None, [], False)
    assert "does not tell what happens" in world.look(1)["activity"][0]


def test_a_path_that_does_not_wake_is_not_called_one(world: World) -> None:
    world.install()
    world.broker()
    for name in ("api", "web"):
        take_seat(world.bus, name, f"/p/{name}").announce(
            Live(os.getpid(), start_time(os.getpid()) or "", 0, "", name, "i", "/p")
        )
    world.peers = [{"name": "api", "wake": "hooks"}, {"name": "web", "wake": "tools"}]
    found = world.look()
    assert "at its next prompt or tool" in found["session api"][0]
    assert "talkbus's own tools" in found["session web"][0]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the environment of a process")
def test_an_open_session_whose_hooks_look_elsewhere(world: World) -> None:
    world.install()
    world.broker()
    base = dict(os.environ)
    with (
        subprocess.Popen(["sleep", "60"], env=base | {"TALKBUS_HOME": str(world.user / "b")}) as agent,
        subprocess.Popen(["sleep", "60"], env=base) as client,
    ):
        try:
            ends = [(process.pid, start_time(process.pid) or "") for process in (agent, client)]
            take_seat(world.bus, "api", "/p/api").announce(Live(*ends[0], *ends[1], "api", "i", str(world.project)))
            world.peers = [{"name": "api", "wake": "rewake"}]
            there = Maildir.open(world.user / "b" / "run" / "maildirs", *ends[1])
            changed(world.user / ".claude" / "settings.json", env={"TALKBUS_INSTALLED": "1"})
            (line,) = world.look(1)["session api"]
            assert f"puts mail into {there.path}, and its hooks find no such folder" in line
            there.close()
            here = Maildir.open(world.bus.maildirs, *ends[1])
            assert "session api" not in world.look()
            here.close()
        finally:
            agent.kill()
            client.kill()


def test_the_inbox_of_an_open_session_is_tried(world: World) -> None:
    world.install()
    world.broker()
    path = world.user / "s.sock"
    with subprocess.Popen(["sleep", "60"]) as client:
        try:
            start = start_time(client.pid) or ""
            live = Live(os.getpid(), start_time(os.getpid()) or "", client.pid, start, "api", "i", str(world.project))
            take_seat(world.bus, "api", "/p/api").announce(live)
            world.peers = [{"name": "api", "wake": "native"}]
            assert "it has none" in world.look(1)["session api"][0]
            ticks = start.rpartition("-")[2]
            said = {
                "pid": client.pid,
                "procStart": ticks,
                "sessionId": "s",
                "cwd": "/",
                "messagingSocketPath": str(path),
            }
            write(world.user / ".claude" / "sessions" / f"{client.pid}.json", said)
            assert "does not take anything" in world.look(1)["session api"][0]
            with socket.socket(socket.AF_UNIX) as inbox:
                inbox.bind(str(path))
                inbox.listen()
                assert world.look() == {}
                assert inbox.accept()[0].recv(100) == b"", "not a word was written"
        finally:
            client.kill()


def test_an_administrators_setting(world: World) -> None:
    """In a namespace of its own, where /etc/claude-code can be made."""
    world.install()
    layers = world.user.parent / "layers"
    layers.mkdir()
    mounts = (
        'mount --make-rprivate / && mount -t tmpfs t "$0" && mkdir "$0/u" "$0/w" "$0/u/claude-code" && '
        'printf %s "$1" >"$0/u/claude-code/managed-settings.json" && '
        'mount -t overlay o -o lowerdir=/etc,upperdir="$0/u",workdir="$0/w" /etc && shift && exec "$@"'
    )
    inside = ["unshare", "-m", "sh", "-c", mounts, str(layers), json.dumps({"allowManagedHooksOnly": True})]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace here")
    talkbus = [sys.executable, "-P", str(Path(install_checks.__file__).parents[2] / "talkbus.py"), "doctor", "--json"]
    done = subprocess.run([*inside, *talkbus], capture_output=True, text=True, timeout=60)
    told = {check["text"]: check["state"] for check in json.loads(done.stdout)["checks"]}
    where = "/etc/claude-code/managed-settings.json"
    assert told[f"{where}: allowManagedHooksOnly is set, so only hooks of managed settings run"] == "fail"
    # This one has the server started for real.
    assert done.returncode == 1 and any("started as configured" in text for text in told)


def test_a_real_server(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours answers with its tools and leaves nothing behind; another one is known by its name."""
    monkeypatch.undo()
    environ = {"HOME": str(world.user), "PATH": os.environ["PATH"]}
    found = settings_block.read(environ, world.project)
    root = Path(install_checks.__file__).parents[2]

    def served(command: list[str]) -> Served:
        server = Server("user", world.user / ".claude.json", {"command": command[0], "args": command[1:]})
        with doctor_probe.ThrowAway(found) as away:
            return doctor_probe.serve(server, environ, world.project, away)

    before = world._files()
    answer = served([sys.executable, "-P", str(root / "talkbus.py"), "mcp"])
    assert answer.name == "talkbus" and set(answer.tools) == set(table())
    assert served([sys.executable, str(root / "tests" / "e2e" / "probe_server.py")]).name == "probe"
    for command, words in {
        "/no/such/program": "cannot be started",
        "/bin/false": "does not speak MCP",
        "/bin/true": "does not speak MCP",
    }.items():
        with pytest.raises(Unproven, match=words):
            served([command])
    monkeypatch.setattr(doctor_probe, "SERVER_S", 0.2)
    with pytest.raises(Unproven, match="did not answer within"):
        served(["/bin/sleep", "600"])
    assert world._files() == before


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_install_warns_and_still_installs(world: World, options: list[str]) -> None:
    settings = world.user / ".claude" / "settings.json"
    write(settings, {"disableAllHooks": True, "permissions": {"deny": ["mcp__talkbus"]}})
    write(world.project / ".claude" / "settings.local.json", {"deniedMcpServers": [{"serverName": "talkbus"}]})
    done = CliRunner().invoke(install, options, obj=Call(version="1"))
    assert done.exit_code == 0
    for words in (
        f"warning: {settings}: disableAllHooks is set, so no hook runs (remove disableAllHooks from it)",
        f"warning: {settings}: permissions.deny has mcp__talkbus, so the model does not get any tool of talkbus",
        f"warning: {world.project}/.claude/settings.local.json: deniedMcpServers names talkbus",
    ):
        assert words in done.stderr
    assert (settings_hooks.INSTALLED in settings.read_text()) is not bool(options)
    listed = CliRunner().invoke(install, [*options, "--json"], obj=Call(version="1"))
    assert any("disableAllHooks" in note for note in json.loads(listed.stdout)["notes"])


def test_what_is_tried_is_shown_on_a_terminal_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.install()
    quiet = CliRunner().invoke(doctor, [], obj=Call(version="1", look=look))
    assert quiet.stderr == ""
    monkeypatch.setattr(doctor_command, "_on_terminal", lambda: True)
    shown = CliRunner().invoke(doctor, [], obj=Call(version="1", look=look))
    assert "\rrunning the hooks ..." in shown.stderr and shown.stderr.endswith(" \r")
    assert shown.stdout == quiet.stdout


def test_without_a_safe_temporary_folder(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs none is still tried, and nothing else is called well."""
    world.install()
    open_to_all = world.user / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(open_to_all))
    found = world.look()
    assert set(found) == {"probe", "mcp", "delivery"} and found["delivery"][0].startswith("skip: ")
    assert list(open_to_all.iterdir()) == []
