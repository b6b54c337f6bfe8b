"""install and uninstall on settings files as users have them; no client and no broker."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agent import settings_files, settings_hooks, settings_plan
from agent.cli.call import Call
from agent.cli.install import install, uninstall
from agent.settings_client import places, server_entry
from bus.config import Home
from bus.config import home as home_of
from bus.errors import ConfigError

FOREIGN = {"type": "command", "command": "notify-send 'done' # not ours"}


class User:
    """A person with a home, who types commands there."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = root / "home"
        self.project = root / "project"
        for folder in (self.home / ".claude", self.project):
            folder.mkdir(parents=True)
        monkeypatch.setenv("HOME", str(self.home))
        monkeypatch.setenv("TALKBUS_HOME", str(root / "bus"))
        monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
        monkeypatch.chdir(self.project)
        self.settings = self.home / ".claude" / "settings.json"
        self.servers = self.home / ".claude.json"

    @property
    def bus(self) -> Home:
        return home_of()

    def install(self, *options: str, code: int = 0) -> Result:
        return self._run(install, options, code)

    def uninstall(self, *options: str, code: int = 0) -> Result:
        return self._run(uninstall, options, code)

    def parsed(self) -> dict[str, Any]:
        return dict(json.loads(self.settings.read_bytes().decode("utf-8-sig")))

    def files(self) -> dict[str, bytes]:
        """Everything below home and project, for comparing."""
        return {str(p): p.read_bytes() for top in (self.home, self.project) for p in top.rglob("*") if p.is_file()}

    def _run(self, command: Any, options: tuple[str, ...], code: int) -> Result:
        result = CliRunner().invoke(command, list(options), obj=Call(version="0"))
        assert result.exit_code == code, result.output
        return result


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> User:
    return User(tmp_path, monkeypatch)


def hooks_of(settings: dict[str, Any], event: str) -> list[Any]:
    return [hook for group in settings["hooks"][event] for hook in group["hooks"]]


SETTINGS: dict[str, bytes] = {
    "empty file": b"",
    "white space": b"\n\n",
    "empty object": b"{}",
    "empty object, spaced": b"{\n}\n",
    "as the client writes it": json.dumps({"model": "opus", "permissions": {"allow": ["Bash"]}}, indent=2).encode(),
    "tabs": b'{\n\t"model": "opus",\n\t"env": {"A": "1"}\n}\n',
    "four spaces": b'{\n    "hooks": {},\n    "env": {\n        "A": "1"\n    }\n}\n',
    "one line": b'{"model":"opus","hooks":{"Stop":[{"hooks":[{"type":"command","command":"x"}]}]}}',
    "one line, spaced": b'{"model": "opus", "permissions": {"allow": ["Read"], "deny": []}}\n',
    "CRLF": b'{\r\n  "model": "opus",\r\n  "statusLine": {"type": "command", "command": "date"}\r\n}\r\n',
    "byte order mark": b'\xef\xbb\xbf{\n  "model": "opus"\n}\n',
    "duplicate keys": b'{\n  "env": {"A": "1"},\n  "env": {"B": "2"},\n  "model": "x"\n}\n',
    "unicode and escapes": '{\n  "ä": "\\u00e9 é \\ud800",\n  "n": 1.50e+3, "b": 12345678901234567890\n}\n'.encode(),
    "comma first": b'{ "a": 1\n, "b": 2\n, "c": [ ]\n}\n',
    "null members": b'{\n  "statusLine": null,\n  "x": null\n}\n',
    "allowed already": b'{\n  "permissions": {\n    "allow": ["mcp__talkbus"]\n  }\n}\n',
    "hooks of others": json.dumps(
        {"hooks": {"Stop": [{"hooks": [FOREIGN]}], "PreToolUse": [{"matcher": "Bash", "hooks": [FOREIGN]}]}}, indent=2
    ).encode(),
    "odd groups": b'{"hooks": {"Stop": [null, {"hooks": 3}, "x", {}], "Other": 7}}',
}


@pytest.mark.parametrize("name", SETTINGS)
def test_install_keeps_everything_and_uninstall_gives_the_bytes_back(name: str, user: User) -> None:
    before = SETTINGS[name]
    user.settings.write_bytes(before)
    user.settings.chmod(0o640)
    user.install()
    after = user.parsed()
    for key, value in (json.loads(before.decode("utf-8-sig") or "{}") if before.strip() else {}).items():
        if key not in ("hooks", "permissions", "env", "statusLine"):
            assert after[key] == value
    for event in ("SessionStart", "UserPromptSubmit", "Stop", "SessionEnd"):
        groups = [g for g in after["hooks"][event] if isinstance(g, dict) and isinstance(g.get("hooks"), list)]
        assert any(settings_hooks.is_ours(hook) for group in groups for hook in group["hooks"])
    assert after["permissions"]["allow"].count("mcp__talkbus") == 1
    assert stat.S_IMODE(user.settings.stat().st_mode) == 0o640
    files = user.files()
    assert "nothing to do" in user.install().output
    assert user.files() == files
    user.uninstall()
    assert user.settings.read_bytes() == before
    assert stat.S_IMODE(user.settings.stat().st_mode) == 0o640
    assert not user.servers.exists()
    assert [p.name for p in user.settings.parent.iterdir()] == ["settings.json"]


def without_trace(before: bytes, name: str) -> dict[str, Any]:
    return dict(json.loads(before.decode("utf-8-sig"))) if before.strip() else {}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_file_that_was_changed_since_loses_our_entries_alone(name: str, user: User) -> None:
    before = SETTINGS[name]
    user.settings.write_bytes(before)
    user.install()
    text = user.settings.read_bytes()
    end = text.rindex(b"}")
    user.settings.write_bytes(text[:end].rstrip() + b', "later": [1]}\n')
    user.uninstall()
    left = user.parsed()
    assert left.pop("later") == [1]
    wanted = without_trace(before, name)
    if "statusLine" in wanted and wanted["statusLine"] is None:
        wanted.pop("statusLine")  # nothing and null are the same there
    assert left == wanted
    assert b"talkbus" not in user.settings.read_bytes().replace(b"mcp__talkbus", b"") or name == "allowed already"


@pytest.mark.parametrize("name", SETTINGS)
def test_without_the_record_our_entries_go_just_the_same(name: str, user: User) -> None:
    user.settings.write_bytes(SETTINGS[name])
    user.install()
    (user.bus.state / "install.json").unlink()
    user.uninstall()
    left, wanted = user.parsed(), without_trace(SETTINGS[name], name)
    if name not in ("allowed already", "null members", "four spaces"):  # an empty list or object may be ours
        assert left == wanted
    assert not any(word in user.settings.read_text() for word in ("deliver.sh", "TALKBUS_INSTALLED", "statusline.sh"))
    assert json.loads(user.servers.read_text()) == {}


def test_a_variable_of_the_users_own_stays(user: User) -> None:
    user.settings.write_text('{"env": {"TALKBUS_HOME": "/theirs"}}')
    assert "sessions go by that" in user.install().stderr
    assert user.parsed()["env"] == {"TALKBUS_HOME": "/theirs", "TALKBUS_INSTALLED": "1"}
    user.settings.write_text(json.dumps({**user.parsed(), "new": 1}))
    user.uninstall()
    assert user.parsed() == {"env": {"TALKBUS_HOME": "/theirs"}, "new": 1}


def test_the_indentation_of_the_file_is_taken(user: User) -> None:
    user.settings.write_bytes(SETTINGS["tabs"])
    user.install()
    lines = user.settings.read_text().splitlines()
    assert lines[:2] == ["{", '\t"model": "opus",'] and lines[2].startswith('\t"env": {"A": "1", "TALKBUS_HOME": ')
    assert '\t"permissions": {' in lines and '\t\t"allow": [' in lines
    user.settings.write_bytes(SETTINGS["CRLF"])
    user.install()
    assert user.settings.read_bytes().count(b"\n") == user.settings.read_bytes().count(b"\r\n")
    user.settings.write_bytes(SETTINGS["byte order mark"])
    user.install()
    assert user.settings.read_bytes().startswith(b"\xef\xbb\xbf{")


def test_an_empty_home_gets_both_files_and_is_empty_again(user: User) -> None:
    (user.home / ".claude").rmdir()
    user.install()
    assert stat.S_IMODE(user.settings.stat().st_mode) == 0o600
    assert json.loads(user.servers.read_text())["mcpServers"]["talkbus"]["args"][-1] == "mcp"
    assert user.parsed()["env"] == {"TALKBUS_INSTALLED": "1:TALKBUS_HOME", "TALKBUS_HOME": str(user.bus.root)}
    assert not list(user.home.glob("**/*backup*"))
    user.uninstall()
    assert list(user.home.iterdir()) == []
    assert not (user.bus.state / "install.json").exists()


def test_the_clients_own_state_file_is_changed_in_one_place(user: User) -> None:
    state = {"numStartups": 3, "projects": {f"/p{i}": {"history": ["x" * 100] * 20} for i in range(1500)}}
    user.servers.write_text(json.dumps(state, indent=2))
    assert user.servers.stat().st_size > 3_000_000
    begin = time.monotonic()
    user.install()
    assert time.monotonic() - begin < 5
    changed = json.loads(user.servers.read_text())
    changed["numStartups"] = 4  # the client writes all the time
    user.servers.write_text(json.dumps(changed, indent=2))
    output = user.uninstall().output
    assert user.servers.read_text() == json.dumps({**state, "numStartups": 4}, indent=2)
    assert ".claude.json.talkbus-backup-" in output and "stays" in output


def test_a_backup_is_made_for_its_owner_alone_and_a_dry_run_makes_nothing(user: User) -> None:
    user.settings.write_bytes(SETTINGS["tabs"])
    before = user.files()
    shown = user.install("--dry-run").output
    assert shown.startswith(f"--- {user.settings}") and "+++ " in shown and "deliver.sh" in shown
    assert json.loads(user.install("--dry-run", "--json").stdout)["diff"] == shown
    assert user.files() == before and not user.bus.state.exists()
    told = json.loads(user.install("--json").stdout)
    [copy] = [Path(path) for path in told["backups"]]
    assert copy.parent == user.settings.parent and ".talkbus-backup-" in copy.name
    assert copy.read_bytes() == SETTINGS["tabs"] and stat.S_IMODE(copy.stat().st_mode) == 0o600
    after = user.files()
    assert "-" in user.uninstall("--dry-run").output
    assert user.files() == after


def test_installing_again_over_an_older_version_keeps_the_first_backup(user: User, tmp_path: Path) -> None:
    user.settings.write_bytes(SETTINGS["hooks of others"])
    plan = settings_plan.installing(user.bus, places("user", os.environ, user.project), os.environ)
    old = plan.changes[0].data
    assert old is not None
    moved = old.replace(str(settings_hooks.FOLDER).encode(), b"/opt/older/hooks").replace(
        b" Notification #", b" Gone #"
    )
    plan.changes[0] = settings_files.Change(plan.changes[0].file, moved)
    settings_plan.install(user.bus, plan)
    assert b"/opt/older" in user.settings.read_bytes()
    user.install()
    assert b"/opt/older" not in user.settings.read_bytes()
    assert len(list(user.settings.parent.glob("*backup*"))) == 1
    assert hooks_of(user.parsed(), "Stop")[0] == FOREIGN
    user.uninstall()
    assert user.settings.read_bytes() == SETTINGS["hooks of others"]


def test_a_file_changed_between_two_installations_is_never_put_back_to_the_byte(user: User) -> None:
    user.install()
    settings = user.parsed()
    settings["hooks"].pop("Stop")
    user.settings.write_text(json.dumps({**settings, "model": "opus"}))
    user.install()
    user.uninstall()
    assert user.parsed() == {"model": "opus"}


def test_a_status_line_of_the_user_comes_first_and_comes_back(user: User) -> None:
    line = {"type": "command", "command": "sh -c 'cat >/dev/null; echo \"it'\\''s\"; exit 3'", "padding": 0}
    user.settings.write_text(json.dumps({"statusLine": line}))
    user.install()
    installed = user.parsed()["statusLine"]
    assert installed["padding"] == 0 and settings_hooks.theirs_in(installed["command"]) == line["command"]
    run = subprocess.run(["sh", "-c", installed["command"]], input="{}", capture_output=True, text=True, check=True)
    assert run.stdout == "it's\n"
    user.settings.write_text(json.dumps({**user.parsed(), "new": 1}))
    user.install()
    user.uninstall()
    assert user.parsed() == {"statusLine": line, "new": 1}


def test_a_status_line_that_ours_cannot_go_with_stays(user: User) -> None:
    for line in ({"type": "static", "text": "x"}, {"type": "command", "command": "talkbus statusline --quiet"}):
        user.settings.write_text(json.dumps({"statusLine": line}))
        assert "stays as it is" in user.install().stderr
        assert user.parsed()["statusLine"] == line
        user.uninstall()


def test_a_server_that_is_not_ours_stays(user: User) -> None:
    theirs = {"mcpServers": {"talkbus": {"command": "/usr/bin/true"}, "other": {"command": "x"}}}
    user.servers.write_text(json.dumps(theirs))
    assert "it stays as it is" in user.install().stderr
    assert json.loads(user.servers.read_text()) == theirs
    user.uninstall()
    assert json.loads(user.servers.read_text()) == theirs


def test_what_a_user_added_to_our_server_stays(user: User) -> None:
    user.install()
    listed = json.loads(user.servers.read_text())
    listed["mcpServers"]["talkbus"] |= {"command": "/old/talkbus", "timeout": 9000}
    listed["mcpServers"]["talkbus"]["env"]["TALKBUS_NAME"] = "api"
    user.servers.write_text(json.dumps(listed))
    user.install()
    entry = json.loads(user.servers.read_text())["mcpServers"]["talkbus"]
    assert (entry["timeout"], entry["env"]["TALKBUS_NAME"]) == (9000, "api") and entry["command"] != "/old/talkbus"


BROKEN = {
    b'{\n  "model": "opus",\n  "hooks": {,}\n}': ":3:13: not JSON",
    b'{\n  // a comment\n  "a": 1\n}': ":2:3: not JSON",
    b"[1, 2]": ":1:1: not a JSON object",
    b'{\n  "a": 1\n} trailing': ":3:3: not JSON",
    b'{"a": 1\n,"b": "\xff"}': ":2: not UTF-8",
    b'{"a": NaN}': "NaN is not JSON",
    b'{\n\n"hooks": [1]}': "hooks is no object",
    b'{"permissions": {"allow": "all"}}': "permissions.allow is no list",
    b'{\n"env": 3}': ":2: env is no object",
    b'{"hooks": {"Stop": {}}}': "hooks.Stop is no list",
}


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_broken_is_refused_with_its_line(text: bytes, user: User) -> None:
    user.settings.write_bytes(text)
    before = user.files()
    failed = user.install(code=1)
    assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
    assert str(user.settings) in failed.stderr and BROKEN[text] in failed.stderr
    assert user.files() == before


def test_a_broken_second_file_leaves_the_first_alone(user: User) -> None:
    user.servers.write_text('{"a": 1,}')
    before = user.files()
    assert ".claude.json:1:9: not JSON" in user.install(code=1).stderr
    assert user.files() == before


def test_a_link_is_followed_and_stays_a_link(user: User, tmp_path: Path) -> None:
    target = tmp_path / "dotfiles" / "claude.json"
    target.parent.mkdir()
    target.write_text("{}")
    user.settings.symlink_to(target)
    user.install()
    assert user.settings.is_symlink() and "deliver.sh" in target.read_text()
    user.uninstall()
    assert user.settings.is_symlink() and target.read_text() == "{}"
    user.settings.unlink()
    user.settings.symlink_to(tmp_path / "nowhere" / "x.json")
    assert "leads to a folder that does not exist" in user.install(code=1).stderr


def test_what_cannot_be_written_is_refused(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    user.settings.write_text("{}")
    user.settings.chmod(0o400)
    assert "cannot be written (chmod u+w" in user.install(code=1).stderr
    user.settings.chmod(0o600)
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    assert f"belongs to user {real}, not to you" in user.install(code=1).stderr


def test_a_folder_in_place_of_the_file_is_refused(user: User) -> None:
    user.settings.mkdir()
    assert "is not a file" in user.install(code=1).stderr


def test_when_the_second_file_cannot_be_written_the_first_is_put_back(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    user.settings.write_bytes(SETTINGS["tabs"])
    user.servers.write_text("{}")
    before = user.files()
    replace = os.replace

    def refuse(source: Any, target: Any) -> None:
        if Path(target) == user.servers:
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    failed = user.install(code=1)
    assert f"cannot write {user.servers}: Permission denied" in failed.stderr
    assert user.files() == before


def test_a_change_by_somebody_else_in_between_is_noticed(user: User) -> None:
    user.settings.write_text("{}")
    plan = settings_plan.installing(user.bus, places("user", os.environ, user.project), os.environ)
    user.settings.write_text('{"theirs": 1}')
    with pytest.raises(ConfigError, match="changed by somebody else just now"):
        settings_plan.install(user.bus, plan)
    assert user.files() == {str(user.settings): b'{"theirs": 1}'}


def test_the_clients_lock_is_waited_for_and_an_old_one_is_not(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    user.servers.write_text("{}")
    lock = user.home / ".claude.json.lock"
    lock.mkdir()
    monkeypatch.setattr(settings_files, "_LOCK_S", 0.1)
    before = user.files()
    assert "is in use by the client" in user.install(code=1).stderr
    assert user.files() == before
    os.utime(lock, (1, 1))
    user.install()
    assert not lock.exists()


def test_a_project_gets_files_without_paths_of_its_servers(user: User) -> None:
    user.install("--scope", "project")
    assert json.loads((user.project / ".mcp.json").read_text())["mcpServers"]["talkbus"]["command"] == "talkbus"
    assert "statusLine" in json.loads((user.project / ".claude" / "settings.json").read_text())
    assert not user.settings.exists() and not user.servers.exists()
    user.uninstall("--scope", "project")
    assert list(user.project.iterdir()) == []


def test_a_project_does_not_hide_the_users_own_status_line(user: User) -> None:
    user.settings.write_text('{"statusLine": {"type": "command", "command": "date"}}')
    assert "your own settings have a statusLine" in user.install("--scope", "project").stderr
    assert "statusLine" not in json.loads((user.project / ".claude" / "settings.json").read_text())


def test_the_clients_other_places(user: User, tmp_path: Path) -> None:
    other = {"HOME": str(user.home), "CLAUDE_CONFIG_DIR": str(tmp_path / "cfg")}
    found = places("user", other, user.project)
    assert (found.settings, found.servers) == (tmp_path / "cfg" / "settings.json", tmp_path / "cfg" / ".claude.json")
    legacy = user.home / ".claude" / ".config.json"
    legacy.write_text("{}")
    assert places("user", {"HOME": str(user.home)}, user.project).servers == legacy
    user.servers.write_text("{}")
    assert places("user", {"HOME": str(user.home)}, user.project).servers == user.servers


def test_a_talkbus_that_may_be_gone_tomorrow_is_not_installed(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.prefix", str(user.home / ".cache/uv/archive-v0/abc"))
    assert "uv tool install talkbus" in user.install(code=1).stderr
    assert user.files() == {}


def test_the_server_is_started_by_this_very_talkbus(user: User) -> None:
    entry = server_entry("user")
    args = entry["args"]
    assert isinstance(args, list)
    said = subprocess.run(
        [str(entry["command"]), *args[:-1], "--version"], cwd=user.project, capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("talkbus ")
