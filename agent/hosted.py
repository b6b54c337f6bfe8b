"""The supervisor's own agent: it serves the session of a program that has no talkbus of its own, in a thread.

It takes a seat and a name by the rules of every session, and delivers by the ladder; without an MCP server there are
no tools, so what reaches the program is typed. Another agent that begins to serve makes this one let go. Nothing may
be written to the terminal from here. It must not know terminals, nor when something may be typed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Mapping

from agent.delivery import clientfile
from agent.delivery.ladder import Ladder
from agent.delivery.terminal import Terminal
from agent.session import Session
from bus import logs
from bus.config import Config, Home
from bus.errors import BusError

log = logging.getLogger("talkbus.agent")

HAND_OVER_S = 2.0  # an agent that waits for the seat waits longer
BYE_S = 0.6
LOG_MAX = 1 << 20  # bytes of a seat's log; one older is kept
_OF_ANOTHER = ("CLAUDE_CODE_", "CLAUDE_PID", "CLAUDE_PROJECT_DIR", "CLAUDECODE")


class Hosted:
    """`begin` and `end` from the thread of the supervisor; neither waits."""

    def __init__(self, home: Home, config: Config, environ: Mapping[str, str], program: str) -> None:
        self._home, self._config, self._program = home, config, program
        # The supervisor may itself run inside a session, which is not the one that is served.
        self._environ = {name: value for name, value in environ.items() if not name.startswith(_OF_ANOTHER)}
        self._thread: threading.Thread | None = None
        self._asked = threading.Event()
        self._over = False
        self._leave: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self.name = ""

    def begin(self, client: int) -> None:
        """Serve the session of this client."""
        # What is not handled is printed by default, and there is a program on the terminal.
        root = logging.getLogger(logs.ROOT)
        root.addHandler(logging.NullHandler())
        root.propagate = False
        self._asked.clear()
        self._leave = None
        self._thread = threading.Thread(target=self._run, args=(client,), name="talkbus-hosted", daemon=True)
        self._thread.start()

    def end(self, over: bool) -> None:
        """Let go of the session; `over` when the program has ended, too."""
        self._over = over
        self._asked.set()
        leave = self._leave
        if leave is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended by itself
                leave[0].call_soon_threadsafe(leave[1].set)

    def ended(self) -> bool:
        """Whether nothing is held any more."""
        return self._thread is None or not self._thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait for that."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self, client: int) -> None:
        try:
            self._serve(client)
        except (BusError, OSError) as error:
            log.error("the session cannot be served: %s", error)
        except Exception:  # the program goes on without us
            log.exception("the agent of the session failed")

    def _serve(self, client: int) -> None:
        terminal = Terminal.open(self._home.maildirs, os.getpid())
        info = clientfile.read(client, clientfile.config_dir(self._environ))
        environ = {**self._environ, "CLAUDE_CODE_SESSION_ID": info.id} if info else self._environ
        session = Session(self._home, self._config, environ, client)
        session.named_by_client(self._program)
        kept = logs.to_file(session.seat.database.with_name("agent.jsonl"), self._config.log_level, LOG_MAX, 1)
        try:
            session.start()
            asyncio.run(self._deliver(session, terminal, client, environ))
        finally:
            session.stop(BYE_S)
            logs.close(kept)

    async def _deliver(self, session: Session, terminal: Terminal, client: int, environ: Mapping[str, str]) -> None:
        leave = asyncio.Event()
        self._leave = (asyncio.get_running_loop(), leave)
        if self._asked.is_set():
            return
        ladder = Ladder(
            session, self._home, self._config, environ, client, lambda _: False, terminal=terminal, hosted=True
        )
        await ladder.recover()
        climbing = asyncio.create_task(ladder.run())
        naming = asyncio.create_task(self._named(session))
        await leave.wait()
        if not self._over:
            with contextlib.suppress(BusError, OSError):
                await ladder.hand_over(HAND_OVER_S)
        for task in (climbing, naming):
            task.cancel()
        await asyncio.wait([climbing, naming], timeout=0.2)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ladder.close(remove=self._over), 0.3)

    async def _named(self, session: Session) -> None:
        """Keep the name up to date, for what is said at the end."""
        while True:
            beat = session.pulse.arm()
            status = session.loop.status()
            self.name = status.name or self.name
            await beat
