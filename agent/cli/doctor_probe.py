"""How doctor proves a path: by using it, with a text, a server and a folder of its own that are gone afterwards.

A hook is run by the very command of the settings, with the environment a hook gets, and has to hand over a text that
lies where the agent would put it. The MCP server is started as configured, on a bus of its own that is stopped, so
it makes no mailbox and starts no broker. The client is asked by its own commands that cost no tokens. Every step has
a time limit. Must not know what is printed of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent import settings_hooks
from agent.delivery.maildir import Maildir
from agent.settings_block import Found, Server
from agent.settings_client import config_folder
from agent.settings_hooks import SERVER
from bus import processes
from bus.config import home
from bus.errors import BusError
from bus.private import private_dir, write_private

HOOK_S = 5.0
WAITER_S = 3.0  # one that finds its folder wakes at once; one that does not would look for half a minute
SERVER_S = 20.0  # a cold disk
CLIENT_S = 20.0
PLACE_S = 10.0
_TAIL = 300  # characters of what a program said that are worth showing
_ROOT = Path(__file__).resolve().parent.parent.parent
_PLACES = """. "$1/maildir.sh" || exit 0
candidate() { printf '%s\\n' "$candidate"; }
find_dir"""
_FOUND = """. "$1/maildir.sh" || exit 0
find_dir && printf '%s' "$dir\""""
_NOTES = ("Notification", "SessionEnd")  # these note what the session does, and deliver nothing
# So that asking the client leaves no log behind and reaches for no network.
_QUIET = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "npm_config_logs_max": "0",
    "npm_config_offline": "true",
}


@dataclass(frozen=True, slots=True)
class Hook:
    """One of our hooks as a settings file has it."""

    event: str
    command: str
    waits: bool  # in the background, and wakes by its end
    timeout: float = HOOK_S


@dataclass(slots=True)
class Hooked:
    """What running the hooks showed: how many did what, and one line for each that failed."""

    ran: int = 0
    delivered: int = 0
    noted: int = 0
    woke: int = 0
    faults: list[str] = field(default_factory=list)
    events: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Served:
    """What an MCP server answered, and how long its start took."""

    name: str
    tools: list[str]
    seconds: float


_running: set[subprocess.Popen[Any]] = set()


class Unproven(Exception):
    """It did not work; the text says how."""


def stop() -> None:
    """End what runs, in whatever thread, for nobody waits for it any more."""
    for program in list(_running):
        _kill(program)


def hooks_in(settings: Mapping[str, Any]) -> list[Hook]:
    """Our hooks in a settings file, or in a plugin's hooks.json."""
    found = []
    events = settings.get("hooks")
    for event, groups in events.items() if isinstance(events, dict) else ():
        inner = [g.get("hooks") for g in groups if isinstance(g, dict)] if isinstance(groups, list) else []
        for hook in (each for some in inner if isinstance(some, list) for each in some):
            if settings_hooks.is_ours(hook):
                timeout = hook.get("timeout")
                limit = float(timeout) if isinstance(timeout, int | float) and timeout > 0 else HOOK_S
                found.append(Hook(event, hook["command"], hook.get("asyncRewake") is True, min(limit, HOOK_S)))
    return found


def run_hooks(hooks: Sequence[Hook], place: Path, environ: Mapping[str, str], folder: Path) -> Hooked:
    """Run each different command once, with a text in `place`, the maildirs of the agent, that it has to find.

    Unproven when no such text can be laid there. What was put there is removed.
    """
    result = Hooked()
    env = {name: value for name, value in environ.items() if not name.startswith("CLAUDE_CODE_MESSAGING")}
    env |= {
        "CLAUDE_PID": str(os.getpid()),
        "CLAUDE_CODE_ENTRYPOINT": "cli",
        "CLAUDE_CODE_SESSION_ID": "talkbus-doctor",
        "CLAUDE_PROJECT_DIR": str(folder),
        "CLAUDECODE": "1",
    }
    with _stage(place) as maildir:
        for hook in dict.fromkeys(hooks):
            if hook.waits and any(hook.command == other.command for other in hooks[: hooks.index(hook)]):
                result.events.add(hook.event)
                continue
            result.ran += 1
            fault = _run_hook(hook, maildir, env, folder, result)
            if fault:
                result.faults.append(f"{hook.event}: {fault}")
            else:
                result.events.add(hook.event)
    return result


def looked_in(scripts: Path, environ: Mapping[str, str]) -> list[str]:
    """The folders in which the hooks of `scripts` look for mail, * for any."""
    said = _shell(_PLACES, scripts, {**environ, "CLAUDE_PID": str(os.getpid())})
    return list(dict.fromkeys(str(Path(line).parent) for line in said.splitlines() if "/" in line))


def found_by(scripts: Path, environ: Mapping[str, str], pid: int) -> str:
    """The folder that the hooks of `scripts` find for the client `pid`; "" for none."""
    return _shell(_FOUND, scripts, {**environ, "CLAUDE_PID": str(pid)})


def agent_place(environ: Mapping[str, str]) -> Path:
    """Where an agent with this environment keeps its maildirs. Unproven when it has no place for them."""
    if dict(environ) == dict(os.environ):
        return home().maildirs
    code = "import sys; sys.path.insert(0, sys.argv[1]); from bus.config import home; print(home().maildirs)"
    done = _run([sys.executable, "-P", "-c", code, str(_ROOT)], environ, None, PLACE_S)
    if done.returncode or not done.stdout.strip():
        raise Unproven(f"an agent finds no place for mail: {_last(done.stderr)}")
    return Path(done.stdout.rstrip("\n"))


def environment_of(pid: int) -> dict[str, str] | None:
    """The environment with which a process was started; None where the system does not tell."""
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    pairs = (os.fsdecode(part).partition("=") for part in data.split(b"\0") if b"=" in part)
    return {name: value for name, _, value in pairs}


class ThrowAway:
    """A folder that is gone afterwards: a bus that is stopped, so that nothing starts its broker, and a client's own
    folder with what counts of the user's. The client writes to its folder at every start.
    """

    def __init__(self, found: Found) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="talkbus-doctor-"))
        self._found = found

    def __enter__(self) -> ThrowAway:
        try:
            self._fill()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _fill(self) -> None:
        private_dir(self.root / "bus" / "state")
        write_private(self.root / "bus" / "state" / "stopped", b"")
        for folder in ("client/plugins", "tmp", "empty"):
            (self.root / folder).mkdir(parents=True)
        config = config_folder(self._found.environ)
        kept = [Path("settings.json"), *(Path("plugins") / path.name for path in (config / "plugins").glob("*.json"))]
        for name in kept:
            with contextlib.suppress(OSError):
                write_private(self.root / "client" / name, (config / name).read_bytes())
        write_private(self.root / "client" / ".claude.json", json.dumps(self._state()).encode())

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def bus(self) -> dict[str, str]:
        """The variables that lead to its bus."""
        return {"TALKBUS_HOME": str(self.root / "bus"), "TALKBUS_HUB": ""}

    @property
    def empty(self) -> Path:
        """A folder without a project in it."""
        return self.root / "empty"

    def run(self, line: Sequence[str], environ: Mapping[str, str], folder: Path) -> str:
        """What one of the client's own commands says; its folder is named as the user's."""
        ours = re.compile(r"CLAUDE(CODE|_CODE_(SESSION|CHILD|MESSAGING))")
        env = {name: value for name, value in environ.items() if not ours.match(name)}
        env |= _QUIET | self.bus | {"CLAUDE_CONFIG_DIR": str(self.root / "client"), "TMPDIR": str(self.root / "tmp")}
        env |= {"XDG_CACHE_HOME": str(self.root / "tmp"), "npm_config_cache": str(self.root / "tmp")}
        done = _run(line, env, folder, CLIENT_S)
        return (done.stdout + done.stderr).replace(str(self.root / "client"), str(config_folder(self._found.environ)))

    def _state(self) -> dict[str, Any]:
        """Of the client's own state what decides about our server; no other server, and no key."""
        projects = self._found.state.get("projects")
        kept = ("disabledMcpServers", "enabledMcpjsonServers", "disabledMcpjsonServers", "hasTrustDialogAccepted")
        copied: dict[str, Any] = {}
        for name, project in projects.items() if isinstance(projects, dict) else ():
            if isinstance(project, dict):
                copied[name] = {key: project[key] for key in kept if key in project}
                copied[name]["mcpServers"] = _only_ours(project.get("mcpServers"))
        servers = _only_ours(self._found.state.get("mcpServers"))
        return {"hasCompletedOnboarding": True, "mcpServers": servers, "projects": copied}


def serve(server: Server, environ: Mapping[str, str], folder: Path, away: ThrowAway) -> Served:
    """Start the server as configured, on the bus of `away`; ask who it is and for its tools. Unproven."""
    command = server.command(environ)
    if not command:
        raise Unproven("is not a program that the client starts")
    env = {name: value for name, value in environ.items() if not name.startswith("CLAUDE")}
    env |= server.variables(environ) | away.bus | {"CLAUDE_CONFIG_DIR": str(away.empty)}
    began = time.monotonic()
    asked: list[dict[str, Any]] = [
        {
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "clientInfo": {"name": "talkbus-doctor", "version": "1"},
            },
        },
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/list", "params": {}},
    ]
    with tempfile.TemporaryFile() as errors:
        try:
            program = subprocess.Popen(
                command,
                env=env,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as error:
            raise Unproven(f"{command[0]} cannot be started: {error.strerror or error}") from error
        with _ended(program), ThreadPoolExecutor(1) as pool:
            answers = pool.submit(_answers, program, asked)
            try:
                answers.result(SERVER_S)
            except TimeoutError:
                _kill(program)  # its end is the end of the reading
                raise Unproven(f"did not answer within {SERVER_S:.0f} s") from None
            except (OSError, ValueError) as error:
                errors.seek(0)
                said = _last(errors.read().decode("utf-8", "replace"))
                raise Unproven(f"does not speak MCP{f': {said}' if said else f': {error}'}") from None
            hello, listed = answers.result()
    info = _at(hello, "serverInfo", "name")
    tools = _at(listed, "tools")
    names = [tool["name"] for tool in tools if isinstance(tool, dict) and isinstance(tool.get("name"), str)]
    return Served(str(info), names, time.monotonic() - began)


def ask_about(program: str, name: str, environ: Mapping[str, str], folder: Path, away: ThrowAway) -> tuple[str, str]:
    """What the client itself says of an MCP server: its status, and the scope from which it takes it.

    The status is "connected", "absent", or the client's words. Unproven when it does not answer as expected.
    """
    settings = json.dumps({"env": away.bus})  # goes before the user's own variables
    said = away.run([program, "--settings", settings, "mcp", "get", name], environ, folder)
    status = re.search(r"^\s*Status: *(.+)$", said, re.MULTILINE)
    if status is None:
        if f'No MCP server named "{name}"' in said or "No MCP server found" in said:
            return "absent", ""
        raise Unproven(f"'claude mcp get {name}' did not tell: {_last(said)}")
    scope = re.search(r"^\s*Scope: *(\w+)", said, re.MULTILINE)
    issue = re.search(r"^\s*Issue: *(.+)$", said, re.MULTILINE)
    words = status[1].strip() + (f" ({issue[1].strip()})" if issue else "")
    return "connected" if re.search(r"\bConnected\b", words) else words[:_TAIL], scope[1].lower() if scope else ""


def ask_about_settings(
    program: str, environ: Mapping[str, str], folder: Path, away: ThrowAway
) -> list[tuple[str, str]]:
    """What the client finds wrong with its settings: file and complaint. Unproven when it does not tell."""
    said = away.run([program, "doctor"], environ, folder)
    if "doctor" not in said.lower():
        raise Unproven(f"'claude doctor' did not tell: {_last(said)}")
    section = re.search(r"^Invalid settings\n((?:[ \t]*\S.*\n?)*)", said, re.MULTILINE)
    found = []
    for line in section[1].splitlines() if section else ():
        complaint = re.match(r"- (/.+?|[A-Z]:\\.+?)(?: › (.+?))?: (.*)", line)
        if complaint:
            found.append((complaint[1], f"{complaint[2]}: {complaint[3]}" if complaint[2] else complaint[3]))
    return found


def knock(path: str) -> str:
    """Whether a session's own inbox takes connections, without a word to it; "" if it does, else why not."""
    if sys.platform == "win32":
        return "this system has no such sockets"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
        wire.settimeout(2.0)
        try:
            wire.connect(path)
        except OSError as error:
            return error.strerror or str(error)
    return ""


@contextlib.contextmanager
def _stage(place: Path) -> Iterator[Maildir]:
    """A maildir as an agent of this very process would make it; removed afterwards."""
    start = processes.start_time(os.getpid())
    made = [above for above in (place, *place.parents) if not above.exists()]
    try:
        maildir = Maildir.open(place, os.getpid(), start or "")
    except (BusError, OSError) as error:
        raise Unproven(f"no text can be laid into {place}: {error}") from error
    try:
        yield maildir
    finally:
        maildir.close()
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def _run_hook(hook: Hook, maildir: Maildir, env: Mapping[str, str], folder: Path, result: Hooked) -> str:
    """Run one; what is wrong, or ""."""
    nonce = secrets.token_hex(6)
    box = maildir.box
    name = box.put(f"talkbus doctor {nonce}", "task", time.time_ns() // 1_000_000)
    (maildir.path / "activity").unlink(missing_ok=True)
    payload = {
        "session_id": "talkbus-doctor",
        "transcript_path": "",
        "cwd": str(folder),
        "hook_event_name": hook.event,
        "notification_type": "idle_prompt",
        "stop_hook_active": False,
    }
    given = json.dumps(payload, separators=(",", ":"))
    try:
        done = _run(["/bin/sh", "-c", hook.command], env, folder, WAITER_S if hook.waits else hook.timeout, given)
    except Unproven as error:
        return str(error) if not hook.waits else f"did not find the mail ({error})"
    finally:
        box.withdraw(name)
        box.forget(name)
    activity = maildir.activity()
    if hook.waits:
        if done.returncode == 2 and nonce in done.stderr:
            result.woke += 1
            return ""
    elif nonce in _context(done.stdout, hook.event):
        result.delivered += 1
        return ""
    elif hook.event in _NOTES and done.returncode == 0 and activity is not None and activity.event == hook.event:
        result.noted += 1
        return ""
    said = _last(done.stderr)
    if done.returncode or said:
        return f"exit code {done.returncode}{f': {said}' if said else ''}"
    return "did not find the mail" if activity is None or hook.waits else "did not hand over the mail"


def _context(said: str, event: str) -> str:
    """What of a hook's output the client would give to the model."""
    with contextlib.suppress(ValueError):
        output = json.loads(said).get("hookSpecificOutput", {})
        if output.get("hookEventName") == event:
            return str(output.get("additionalContext", ""))
    return ""


def _only_ours(servers: object) -> dict[str, Any]:
    return {SERVER: servers[SERVER]} if isinstance(servers, dict) and SERVER in servers else {}


def _shell(code: str, scripts: Path, environ: Mapping[str, str]) -> str:
    try:
        return _run(["/bin/sh", "-c", code, "sh", str(scripts)], environ, None, HOOK_S).stdout
    except Unproven:
        return ""


def _run(
    line: Sequence[str], environ: Mapping[str, str], folder: Path | None, limit: float, given: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program, ended with all it started when `limit` s are over. Unproven when it does not start or end."""
    try:
        program = subprocess.Popen(
            line,
            env=dict(environ),
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise Unproven(f"{line[0]} cannot be started: {error.strerror or error}") from error
    _running.add(program)
    with program:
        try:
            output, errors = program.communicate(given, limit)
        except subprocess.TimeoutExpired:
            _kill(program)
            raise Unproven(f"did not end within {limit:.0f} s") from None
        finally:
            _running.discard(program)
    return subprocess.CompletedProcess(line, program.returncode, output, errors)


def _answers(program: subprocess.Popen[bytes], asked: Sequence[dict[str, Any]]) -> list[Any]:
    """The results of those messages that have an id; ValueError for what is not an answer to them."""
    assert program.stdin is not None and program.stdout is not None
    results = []
    for message in asked:
        program.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        program.stdin.flush()
        while "id" in message:
            line = program.stdout.readline()
            if not line:
                raise ValueError("it ended")
            try:
                answer = json.loads(line)
            except ValueError:
                continue  # a client skips what is not JSON too
            if isinstance(answer, dict) and answer.get("id") == message["id"]:
                results.append(_at(answer, "result"))
                break
    return results


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise Unproven(f"answered without {key}")
        value = value[key]
    return value


@contextlib.contextmanager
def _ended(program: subprocess.Popen[bytes]) -> Iterator[None]:
    """Its end, by the end of its input as the client does it, else by force."""
    _running.add(program)
    try:
        yield
    finally:
        _running.discard(program)
        assert program.stdin is not None and program.stdout is not None
        with contextlib.suppress(OSError):
            program.stdin.close()
        try:
            program.wait(3.0)
        except subprocess.TimeoutExpired:
            _kill(program)
            program.wait()
        program.stdout.close()


def _kill(program: subprocess.Popen[Any]) -> None:
    """It and what it started."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            program.kill()
        else:
            os.killpg(program.pid, signal.SIGKILL)


def _last(text: str) -> str:
    """The last line of what a program said."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_TAIL] if lines else ""
