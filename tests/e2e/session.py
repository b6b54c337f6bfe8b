"""Drives the real client: a scratch home, scratch projects, a TUI in a pseudo-terminal, `-p` runs.

The home is prepared so that the TUI starts at its prompt, the environment is made from nothing, and the
only address the client can reach is the fake API. It must not know what a test wants from a session,
nor what a message bus is.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil  # type: ignore[import-untyped]

from .api import FakeApi
from .terminal import Terminal
from .transcript import Record, Transcript
from .wait import DEADLINE, TooLate, until

KEY = "sk-ant-fake"  # never leaves the machine; short, since the client stores approval of a short key as it is
KEEP_VARIABLE = "TALKBUS_E2E_KEEP"  # when set, scratch homes stay for reading after the run
PRINT_LIMIT = 30.0  # seconds for a `-p` run

Json = dict[str, Any]


class Home:
    """A scratch HOME with projects in it, for one or more sessions. Use as a context manager.

    The folder is short and under /tmp on purpose: sockets of the client live in its TMPDIR, and the path
    of a socket has about 100 bytes.
    """

    def __init__(self, api: FakeApi, binary: Path) -> None:
        self.api = api
        self.binary = binary
        self.root = Path(tempfile.mkdtemp(prefix="tbe2e-", dir="/tmp")).resolve()
        self.path = self.root / "home"
        self.tmp = self.root / "t"
        for folder in (self.path / ".claude", self.tmp):
            folder.mkdir(parents=True)
        self.tuis: list[Tui] = []
        self.prints: list[subprocess.Popen[str]] = []
        self.state(hasCompletedOnboarding=True, hasSeenAutoDefaultNudge=True, projects={})
        self.state(customApiKeyResponses={"approved": [KEY], "rejected": []})
        self.settings(permissions={"defaultMode": "default", "allow": ["Bash"]})
        self.settings(skipDangerousModePermissionPrompt=True)  # a dialog at each start in bypassPermissions

    def __enter__(self) -> Home:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tui in self.tuis:
            tui.close()
        for process in self.prints:
            with process:  # closes its pipes and waits
                if process.poll() is None:
                    process.kill()
        if not os.environ.get(KEEP_VARIABLE):
            shutil.rmtree(self.root, ignore_errors=True)

    # --- files the client reads

    def project(self, name: str = "project") -> Path:
        """A trusted project folder. Make all of them before the first session: the client rewrites its state."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        projects = json.loads((self.path / ".claude.json").read_text())["projects"]
        self.state(projects={**projects, str(folder): {"hasTrustDialogAccepted": True}})
        return folder

    def settings(self, **given: Any) -> None:
        """Set keys of the user's settings.json, e.g. hooks=… or permissions=…; other keys stay."""
        _merge(self.path / ".claude" / "settings.json", given)

    def state(self, **given: Any) -> None:
        """Set keys of the client's own state, .claude.json; other keys stay. Before the first session."""
        _merge(self.path / ".claude.json", given)

    def environment(self, cwd: Path, label: str, extra: Mapping[str, str | None]) -> dict[str, str]:
        """From nothing: no variable of whoever runs the tests gets in but PATH. `extra` None removes one."""
        dead = f"http://127.0.0.1:{self.api.port}"  # as a proxy it records the wish, and refuses it
        made: dict[str, str | None] = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.path),
            "TMPDIR": str(self.tmp),
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "SHELL": "/bin/sh",
            "ANTHROPIC_API_KEY": KEY,
            "ANTHROPIC_BASE_URL": self.api.url(label or cwd.name, str(cwd)),
            "HTTPS_PROXY": dead,
            "NO_PROXY": "127.0.0.1,localhost",
            "DISABLE_AUTOUPDATER": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "IS_SANDBOX": "1" if os.geteuid() == 0 else None,
            **extra,
        }
        return {name: value for name, value in made.items() if value is not None}

    # --- sessions

    def session_file(self, pid: int) -> Json:
        """What the client of this pid says about itself; empty when it says nothing."""
        try:
            return dict(json.loads((self.path / ".claude" / "sessions" / f"{pid}.json").read_text()))
        except (OSError, ValueError):  # not there, or in the middle of being written
            return {}

    def transcript_file(self, session: str) -> Path | None:
        found = list((self.path / ".claude" / "projects").glob(f"*/{session}.jsonl"))
        return found[0] if found else None

    def transcript(self, session: str) -> Transcript:
        return Transcript(lambda: self.transcript_file(session))

    def tui(self, cwd: Path, *arguments: str, label: str = "", env: Mapping[str, str | None] | None = None) -> Tui:
        """Start an interactive session and wait until it takes a prompt. Its label is the folder's name."""
        tui = self.start(cwd, *arguments, label=label, env=env)
        tui.wait_ready()
        return tui

    def start(self, cwd: Path, *arguments: str, label: str = "", env: Mapping[str, str | None] | None = None) -> Tui:
        """The same without waiting: for sessions that begin with a dialog."""
        tui = Tui(self, cwd, arguments, self.environment(cwd, label, env or {}))
        self.tuis.append(tui)
        return tui

    def run_print(
        self,
        cwd: Path,
        prompt: str,
        *arguments: str,
        label: str = "",
        env: Mapping[str, str | None] | None = None,
        deadline: float = PRINT_LIMIT,
    ) -> subprocess.CompletedProcess[str]:
        """One `claude -p` run to its end."""
        process = self.start_print(cwd, prompt, *arguments, label=label, env=env)
        try:
            output, errors = process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired as late:
            process.kill()
            raise TooLate(f"not within {deadline:g} s: the end of -p {prompt!r}: {process.communicate()}") from late
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def start_print(
        self,
        cwd: Path,
        prompt: str,
        *arguments: str,
        label: str = "",
        env: Mapping[str, str | None] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[str]:
        """The same without waiting. The prompt goes first: some options swallow what follows them.

        An empty prompt is left out: for `--input-format stream-json` with stdin=subprocess.PIPE.
        """
        process = subprocess.Popen(
            [str(self.binary), "-p", *([prompt] if prompt else []), *arguments],
            cwd=cwd,
            env=self.environment(cwd, label, env or {}),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.prints.append(process)
        return process


class Tui:
    """One interactive session. `terminal` has the screen and the raw output."""

    def __init__(self, home: Home, cwd: Path, arguments: tuple[str, ...], env: Mapping[str, str]) -> None:
        self.home = home
        self.cwd = cwd
        self.terminal = Terminal([str(home.binary), *arguments], cwd, env)
        self.pid = self.terminal.pid
        self._children: list[psutil.Process] = []

    # --- what it says about itself

    @property
    def info(self) -> Json:
        return self.home.session_file(self.pid)

    @property
    def session(self) -> str:
        """The id of the session as it is now; /clear changes it."""
        return str(self.info.get("sessionId", ""))

    @property
    def status(self) -> str:
        """idle, busy, waiting (for the user) or shell (something runs in the background)."""
        return str(self.info.get("status", ""))

    @property
    def transcript(self) -> Transcript:
        """Of the session as it is now."""
        return self.home.transcript(self.session)

    def wait_status(self, wanted: str, deadline: float = DEADLINE) -> None:
        self._wait(lambda: self.status == wanted, f"status {wanted}", deadline)

    def wait_ready(self, deadline: float = DEADLINE) -> None:
        """Until a prompt can be typed: it calls itself idle, and reads single keys."""
        self._wait(lambda: self.status == "idle" and self.terminal.reads_keys(), "readiness", deadline)

    def wait_idle(self, deadline: float = DEADLINE) -> None:
        """Until the turn of the session's last request is over.

        The status alone may still be the one from before the turn: so its change has to be younger than
        the request.
        """
        own = [request for request in self.home.api.requests if request.session == self.session]
        since = own[-1].wall * 1000 if own else 0.0

        def over() -> bool:
            info = self.info
            return info.get("status") == "idle" and float(info["statusUpdatedAt"]) >= since

        self._wait(over, "the end of the turn", deadline)

    def wait_transcript(self, fits: Callable[[Record], bool], deadline: float = DEADLINE) -> Record:
        return self.transcript.wait(fits, deadline)

    def wait_screen(self, words: str | Callable[[str], bool], deadline: float = DEADLINE) -> str:
        return self.terminal.wait_screen(words, deadline)

    def _wait(self, look: Callable[[], bool], what: str, deadline: float) -> None:
        try:
            until(lambda: look() or not self.terminal.alive, what, deadline)
        except TooLate as late:
            raise TooLate(f"{late}\nsession file: {self.info}\nscreen:\n{self.terminal.screen}") from None
        if not self.terminal.alive:
            raise TooLate(f"{what}: the client ended\nscreen:\n{self.terminal.screen}")

    # --- what a user does

    def type(self, text: str) -> None:
        """Keys into the input box, not submitted."""
        self.terminal.write(text)

    def submit(self, text: str = "") -> None:
        """Text and Enter."""
        self.terminal.write(text + "\r")

    def interrupt(self) -> None:
        """Esc."""
        self.terminal.write("\x1b")

    def exit(self, deadline: float = DEADLINE) -> int:
        """/exit, and the exit code."""
        self.submit("/exit")
        return self.terminal.wait_end(deadline)

    # --- what other processes do

    def post(self, words: str, deadline: float = DEADLINE) -> None:
        """Put a message on the session's inbox socket, as a process from outside would.

        Returns when the client has closed the connection: the line is taken then, not delivered.
        """
        post(str(self.info["messagingSocketPath"]), words, deadline)

    # --- its end

    def kill(self) -> None:
        """SIGKILL for the client alone; what it had started lives on until `close`."""
        self._remember()
        self.terminal.signal(signal.SIGKILL)
        self.terminal.wait_end()

    def close(self) -> None:
        """End whatever is left of the session, and what it had started."""
        self._remember()
        self.terminal.signal(signal.SIGKILL)
        for child in self._children:
            if child.is_running():  # also compares the start time: never a stranger with the same pid
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        self.terminal.wait_end()
        self.terminal.hang_up()

    def _remember(self) -> None:
        if self.terminal.alive:
            self._children = psutil.Process(self.pid).children(recursive=True)


def post(path: str, words: str, deadline: float = DEADLINE) -> None:
    """One frame on an inbox socket: a line of JSON, half-close, and wait for the other side to close."""
    frame = {"type": "user", "message": {"role": "user", "content": words}}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(deadline)
        line.connect(path)
        line.sendall(json.dumps(frame).encode() + b"\n")
        line.shutdown(socket.SHUT_WR)
        while line.recv(4096):
            pass


def mcp(**servers: list[str]) -> list[str]:
    """Arguments that give a session these stdio servers: name=[command, argument, …]."""
    entries = {name: {"command": line[0], "args": line[1:]} for name, line in servers.items()}
    return ["--strict-mcp-config", "--mcp-config", json.dumps({"mcpServers": entries})]


def _merge(path: Path, given: Mapping[str, Any]) -> None:
    old = json.loads(path.read_text()) if path.exists() else {}
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps({**old, **given}))
    fresh.replace(path)
