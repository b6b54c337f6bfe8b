"""The folder of a supervisor (`talkbus claude`, `talkbus run`), through which agents and commands talk to it.

`<maildirs>/<supervisor pid>-<start token>/`, gone when the supervisor is:

    client        pid and start of the client whose session is served, then of the agent that serves it; written by
                  that agent, whole. While that agent lives, the supervisor only types for it
    hosting       there while the supervisor's own agent serves the session, or is still letting go of its seat
    way           how a message can be typed at present: "terminal" (the message itself, pasted), "notice" (one line
                  that says where to read it), or nothing
    box-<pid>/    the texts of the agent of that pid; nobody else's are typed for it. In it `taken`: the name of the
                  last one of which it is proven that the model was given it
    reads/        what `talkbus inbox` asks the supervisor's own agent: to lend it messages that it is about to print
                  (the answer is `<request>.given`), and to mark as shown those it has printed

It is found by the processes above a client, so it needs no variable in the environment, and a client that runs inside
another client does not find it. Must not know messages nor the bus.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.delivery import clientfile
from agent.delivery.maildir import Box, Maildir
from bus import processes
from bus.private import private_dir

TERMINAL, NOTICE = "terminal", "notice"
WAYS = (TERMINAL, NOTICE)
WAITS = "talkbus: a message waits for this session, to read it run: talkbus inbox"
HANDOVER_S = 4.0  # how long an agent waits for the supervisor's own one to let go of the seat
READ_S = 3.0  # for the agent to answer a command that reads
READ_MAX = 64 * 1024  # bytes of one request
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Served:
    """Which client's session is served, and by which agent; start tokens as of `bus.processes`."""

    client: int
    client_start: str
    agent: int
    agent_start: str

    @property
    def living(self) -> bool:
        return processes.alive(self.agent, self.agent_start) and processes.alive(self.client, self.client_start)


@dataclass(frozen=True, slots=True)
class Request:
    """What a command that reads asks: to be lent messages, or that those it was lent are `printed`."""

    path: Path
    printed: bool
    keys: list[str]
    pid: int  # of the command
    start: str  # its start token, of `bus.processes`

    def answer(self, given: Mapping[str, bool | None]) -> bool:
        """Which of the messages it may print, as in `Terminal.lend`; False when it does not wait for that now."""
        place = self.path.with_suffix(".given")
        _write(place, json.dumps(given))
        try:
            self.path.unlink()
        except FileNotFoundError:
            place.unlink(missing_ok=True)
            return False
        return True

    def done(self) -> None:
        """It is carried out, or nobody waits for it any more."""
        self.path.unlink(missing_ok=True)


class Terminal:
    """One supervisor's folder, from either side. Methods that write may raise OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, maildirs: Path, pid: int) -> Terminal:
        """Make the folder of the supervisor `pid`. ConfigError when that cannot be."""
        private_dir(maildirs)
        made = cls(Maildir.place(maildirs, pid, processes.start_time(pid) or "0"))
        private_dir(made.path)
        private_dir(made.path / "reads")
        return made

    @property
    def supervised(self) -> bool:
        """Whether the supervisor lives."""
        pid, _, start = self.path.name.partition("-")
        return pid.isdecimal() and processes.alive(int(pid), start) and self.path.is_dir()

    def box(self, agent: int) -> Box:
        """The texts of one agent."""
        return Box(self.path / f"box-{agent}")

    def left(self) -> list[Box]:
        """For the agent that serves now: the boxes of former ones, and its own."""
        supervisor, found = self.path.name.partition("-")[0], []
        with suppress(OSError):
            for path in sorted(self.path.glob("box-*")):
                pid = path.name.removeprefix("box-")
                if not pid.isdecimal():
                    continue  # not ours
                former = pid in (supervisor, str(os.getpid())) or processes.start_time(int(pid)) is None
                found += [Box(path)] if former else []
        return found

    # -- who serves ------------------------------------------------------------------------------------------------

    def served(self) -> Served | None:
        """What the last agent wrote; it may be dead by now."""
        try:
            client, client_start, agent, agent_start = (self.path / "client").read_text("ascii").split()
            return Served(int(client), client_start, int(agent), agent_start)
        except (OSError, ValueError):
            return None

    def attach(self, client: int) -> None:
        """Have this process serve the session of `client`. Until it ends no other agent does."""
        own, start = os.getpid(), processes.start_time(client) or "0"
        text = f"{client} {start} {own} {processes.start_time(own)}\n"
        _write(self.path / "client", text)

    def mine(self, client: int) -> bool:
        """Whether this process serves; it takes over from an agent that has ended."""
        served = self.served()
        if served is not None and served.living:
            return served.agent == os.getpid()
        with suppress(OSError):
            self.attach(client)
            return True
        return False

    @property
    def hosting(self) -> bool:
        return (self.path / "hosting").exists()

    def host(self, on: bool) -> None:
        """For the supervisor: its own agent begins, or has let go of everything."""
        if on:
            (self.path / "hosting").touch(0o600)
        else:
            (self.path / "hosting").unlink(missing_ok=True)

    def wait_free(self, timeout: float = HANDOVER_S) -> bool:
        """After `attach`: wait until the supervisor's own agent has let go of the seat; whether it has."""
        end = time.monotonic() + timeout
        while self.hosting and self.supervised:
            if time.monotonic() >= end:
                return False
            time.sleep(_POLL_S)
        return True

    # -- how it can be typed ---------------------------------------------------------------------------------------

    @property
    def way(self) -> str:
        """ "terminal", "notice", or "" while nothing can be typed or the supervisor is gone."""
        try:
            said = (self.path / "way").read_text("ascii").strip()
        except (OSError, ValueError):
            return ""
        return said if said in WAYS and self.supervised else ""

    def say(self, way: str) -> None:
        """For the supervisor."""
        _write(self.path / "way", way)

    # -- what was read elsewhere -----------------------------------------------------------------------------------

    def lend(self, keys: Sequence[str], timeout: float = READ_S) -> dict[str, bool | None] | None:
        """For a command that is about to print these messages, and while it lives: those that it may print, by key;
        True for a possible repeat, None for one of which the broker alone knows that. What is missing was shown, or
        is being typed. None in place of all when the supervisor's agent does not answer: then nothing may be printed.
        """
        name = self._ask("lend", keys, timeout)
        given = name.with_suffix(".given")
        try:
            name.unlink()
            return None  # nobody has taken it, and nobody will
        except FileNotFoundError:
            pass
        try:
            said = json.loads(given.read_text("ascii"))
        except (OSError, ValueError):
            return None
        finally:
            given.unlink(missing_ok=True)
        return {key: value for key, value in said.items() if key in keys} if isinstance(said, dict) else None

    def printed(self, keys: Sequence[str], timeout: float = READ_S) -> bool:
        """For a command that has printed these messages: have the supervisor's agent mark them; whether it did."""
        return not self._ask("printed", keys, timeout).exists()

    def _ask(self, what: str, keys: Sequence[str], timeout: float) -> Path:
        """Write a request and wait until the agent has taken it, which may not come to pass; its place."""
        pid = os.getpid()
        name = self.path / "reads" / secrets.token_hex(6)
        said = {"ask": what, "keys": list(keys), "pid": pid, "start": processes.start_time(pid) or ""}
        _write(name, json.dumps(said))
        end = time.monotonic() + timeout
        while name.exists() and self.hosting and self.supervised and time.monotonic() < end:
            time.sleep(_POLL_S)
        return name

    def requests(self) -> list[Request]:
        """For the supervisor's agent: what commands ask. One that cannot be read is dropped."""
        found = []
        with suppress(OSError):
            for path in sorted((self.path / "reads").iterdir()):
                if path.suffix:
                    continue
                try:
                    with open(path, "rb") as file:
                        said = json.loads(file.read(READ_MAX))
                    keys = [key for key in said["keys"] if isinstance(key, str)]
                    request = Request(path, said["ask"] == "printed", keys, int(said["pid"]), str(said["start"]))
                except (ValueError, TypeError, KeyError):
                    path.unlink(missing_ok=True)
                    continue
                found.append(request)
        return found


def _write(path: Path, text: str) -> None:
    """A file, whole or not at all."""
    temp = path.with_name(f"{path.name}.{secrets.token_hex(6)}")
    temp.write_text(text, "ascii")
    os.replace(temp, path)


def above(maildirs: Path, client: int, environ: Mapping[str, str]) -> Terminal | None:
    """The folder of the supervisor in whose terminal the client `client` runs; None without one.

    A client below another client runs inside that one's turn and not at the keyboard: it has none.
    """
    if not maildirs.is_dir():
        return None
    config = clientfile.config_dir(environ)
    for pid in processes.ancestors(client):
        found = Terminal(Maildir.place(maildirs, pid, processes.start_time(pid) or "0"))
        if (found.path / "reads").is_dir():
            return found
        if clientfile.read(pid, config) is not None:
            return None
    return None
