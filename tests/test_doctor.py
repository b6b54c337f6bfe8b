"""doctor: every fault that can be made here is named with its mend, and looking changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from agent import settings_hooks
from agent.cli import install_checks
from agent.cli.broker import config
from agent.cli.call import Call
from agent.cli.doctor import doctor
from agent.cli.install import install
from agent.cli.show import now_ms
from agent.seats import Live, take_seat
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


class World:
    """A home, a bus that answers as told, and the checks by name."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.user = root / "home"
        self.project = root / "project"
        self.bin = root / "bin"
        for folder in (self.user / ".claude", self.project, self.bin):
            folder.mkdir(parents=True)
        for name in [n for n in os.environ if n.startswith(("TALKBUS", "CLAUDE"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(self.user))
        monkeypatch.setenv("TALKBUS_HOME", str(root / "bus"))
        monkeypatch.setenv("PATH", f"{self.bin}{os.pathsep}/usr/bin{os.pathsep}/bin")
        monkeypatch.chdir(self.project)
        self.stats: dict[str, Any] = {"now": now_ms(), "writable": True}
        self.peers: list[dict[str, Any]] = []
        self.fails = False
        world = self

        @contextmanager
        def view(call: Call, start: bool = True) -> Iterator[Any]:
            assert start is False
            if world.fails:
                raise Unreachable("no answer (try again)")
            yield world

        monkeypatch.setattr(Call, "view", view)
        self.claude("2.1.329 (Claude Code)")

    def query(self, what: str, args: dict[str, Any], timeout: float) -> Rows:
        return Rows([(row, b"") for row in ([self.stats] if what == "stats" else self.peers)])

    def claude(self, version: str) -> None:
        (self.bin / "claude").write_text(f"#!/bin/sh\necho '{version}'\n")
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
        """The checks that are not ok: name -> "state: text -> mend"."""
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

    def _files(self) -> dict[str, tuple[bytes, int]]:
        files = [p for p in self.user.parent.rglob("*") if p.is_file()]
        return {str(p): (p.read_bytes(), p.stat().st_mode) for p in files}


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
    found = world.look()
    assert set(found) == {"mcp", "hooks", "statusline"}
    assert all(line.endswith("-> talkbus install") for lines in found.values() for line in lines)
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
    world.bus.record.unlink()
    (world.bus.state / "bus.json").unlink()
    world.bus.stop_mark.touch()
    assert world.look() == {"broker": ["warn: stopped with 'talkbus down'; mail waits -> talkbus up"]}


def test_a_port_that_somebody_else_has(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.install()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("TALKBUS_PORT", str(port))
        assert f"port {port} is taken" in world.look(1)["ports"][0]
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
        f"fail: {local}:2:3: not JSON: Expecting property name enclosed in double quotes"
        " -> mend that line, then try again"
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
    assert "disableAllHooks" in found["hooks"][0] and found["mcp"] == [
        "fail: no client starts the server -> talkbus install"
    ]


def test_the_plugin(world: World) -> None:
    settings = world.user / ".claude" / "settings.json"
    settings.write_text('{"enabledPlugins": {"talkbus@talkbus": true, "other@x": true}}')
    assert set(world.look()) == {"statusline"}
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
