"""A whole bus for the real client: a home of its own, the agent as the session's MCP server, the hooks, the command.

The commands run as a user's would, in processes of their own. It must not know what a test sends, nor how a message
comes into a session.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil  # type: ignore[import-untyped]

from agent.settings_hooks import installed

from .api import FakeApi
from .messages import Block, Request, tool_use
from .session import KEEP_VARIABLE, Home, Tui, mcp
from .wait import until

ROOT = Path(__file__).parents[2]
TALKBUS = [sys.executable, str(ROOT / "talkbus.py")]
TOOL = "mcp__talkbus__"
LIMIT = 20.0  # seconds for a command
ID = re.compile(r'<peer-message id="([a-z0-9]+)"')

Json = dict[str, Any]


class Bus:
    """One bus and the client's home beside it. `hooks`: ours are in the settings, in the installed form."""

    def __init__(self, home: Home, *, hooks: bool = False, native: bool = True, **settings: Any) -> None:
        self.home = home
        self.api: FakeApi = home.api
        self.root = Path(tempfile.mkdtemp(prefix="tbe2e-bus-", dir="/tmp")).resolve()
        permissions = {"defaultMode": "default", "allow": ["Bash", TOOL.rstrip("_")]}
        self.hooks = installed() if hooks else {}
        home.settings(permissions=permissions, hooks=self.hooks, **settings)
        if not native:
            self.run("config", "set", "delivery.native", "false")

    def __enter__(self) -> Bus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tui in self.home.tuis:
            tui.close()
        self.run("down", check=False)
        if not os.environ.get(KEEP_VARIABLE):
            shutil.rmtree(self.root, ignore_errors=True)

    # --- sessions

    @property
    def env(self) -> dict[str, str]:
        """What a session needs to be on this bus."""
        return {"TALKBUS_HOME": str(self.root), "TALKBUS_LOG": "debug"}

    @property
    def arguments(self) -> list[str]:
        """The agent as an MCP server; what it says on stderr is kept beside the bus."""
        line = f'exec "$@" 2>>{self.root}/agents.log'
        return mcp(talkbus=["/bin/sh", "-c", line, "sh", *TALKBUS, "mcp"])

    def tui(
        self,
        folder: Path,
        *arguments: str,
        label: str = "",
        wake: str = "native",
        env: Mapping[str, str] | None = None,
    ) -> Tui:
        """A session that is on the bus, and can be woken as `wake` says ("" for: at its prompt, no more)."""
        tui = self.home.tui(folder, *self.arguments, *arguments, label=label, env={**self.env, **(env or {})})
        if wake:
            self.reachable(tui, wake)
        return tui

    def reachable(self, tui: Tui, wake: str = "native") -> str:
        """The name of this session, once the bus says that it can be woken so."""

        def found() -> str:
            live = self.live(tui)
            rows = [row for row in self.peers() if live and row["name"] == live["name"]]
            return str(rows[0]["name"]) if rows and rows[0]["wake"] == wake else ""

        return until(found, f"a session that is woken by {wake}", 15.0)

    def live(self, tui: Tui) -> Json:
        """Who serves this session, from the seat; {} for nobody."""
        for path in (self.root / "state" / "agents").glob("*/live.json"):
            try:
                said = dict(json.loads(path.read_text()))
            except (OSError, ValueError):
                continue
            if said["client_pid"] == tui.pid and psutil.pid_exists(said["pid"]):
                return said
        return {}

    def kill_broker(self) -> None:
        """SIGKILL, and wait for its end."""
        pid = int(self.json("status")["pid"])
        broker = psutil.Process(pid)
        broker.send_signal(signal.SIGKILL)
        broker.wait(5)

    # --- commands

    def run(self, *words: str, given: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One talkbus command."""
        env = {**os.environ, **self.env}
        done = subprocess.run(
            [*TALKBUS, *words], input=given, env=env, capture_output=True, text=True, timeout=LIMIT, cwd=self.root
        )
        assert not check or done.returncode == 0, f"talkbus {words}: {done.stderr}"
        return done

    def json(self, *words: str, given: str | None = None) -> Any:
        return json.loads(self.run(*words, "--json", given=given).stdout)

    def send(self, to: str, body: str, *options: str) -> str:
        """A message from the command line; its id."""
        return str(self.json("send", to, "-", *options, given=body)["id"])

    def peers(self, *options: str) -> list[Json]:
        return [row for row in self.json("peers", *options) if row["client"]]

    def peer(self, name: str) -> Json:
        """What peers see of a session; {} when it is not there."""
        return next((row for row in self.peers() if row["name"] == name), {})

    def why(self, ident: str, name: str) -> list[tuple[str, str]]:
        """How a message has come to one of its recipients: each status with its proof."""
        steps = [one["history"] for one in self.json("why", ident)["to"] if one["name"] == name]
        return [(step["status"], step["proof"]) for some in steps for step in some]

    def wait_why(self, ident: str, name: str, status: str, proof: str = "") -> None:
        """Until a message has come that far, with that proof."""

        def there() -> bool:
            return any(said == status and proof in ("", how) for said, how in self.why(ident, name))

        until(there, f"{ident} {status} {proof}", 15.0)

    # --- what the models saw

    def showings(self, words: str, label: str = "") -> list[Request]:
        """The requests in which these words are new to a model."""
        return [r for r in self.api.requests if words in r.new and (not label or r.label == label)]

    def shown_once(self, ident: str, name: str, label: str, proof: str = "transcript") -> Request:
        """A message was new in one request of one session, once, and the bus knows it."""
        mark = f'<peer-message id="{ident}"'
        self.api.wait(mark)
        self.wait_why(ident, name, "injected", proof)
        seen = self.showings(mark)
        assert [r.label for r in seen] == [label], [(r.label, r.new) for r in seen]
        assert all(r.text.count(mark) <= 1 for r in self.api.requests)
        return seen[0]

    def ids(self, label: str) -> list[list[str]]:
        """The ids of the messages that were new, for each request of a session that had some."""
        found = [ID.findall(r.new) for r in self.api.requests if r.label == label]
        return [some for some in found if some]


def call(name: str, **given: Any) -> Block:
    """A call of one of our tools by the model."""
    return tool_use(TOOL + name, **given)
