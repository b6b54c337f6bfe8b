"""Who this agent is: project, name, seat and instance; which name it takes when the broker refuses; what to tell.

One Session is one link with its seat. It must not know MCP, nor how messages are shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent import left
from agent.effects import Lost, Mail, News, Parked, Welcomed
from agent.link import Profile
from agent.loop import Loop
from agent.outbox import Outbox
from agent.seats import Live, folder_name, take_seat
from bus import names
from bus.config import Config, Home
from bus.errors import BusError, Code
from bus.processes import alive, start_time
from bus.trust import host_label

log = logging.getLogger("talkbus.agent")

NAMES_TRIED = 50
_SWEEP_S = 0.2
_PATH_MAX = 300
_GIT_FILE_MAX = 256 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session works: `project` is the git remote where there is one, else the folder."""

    cwd: str
    project: str
    branch: str


@dataclass(frozen=True, slots=True)
class Identity:
    """What the environment says of us. `asked` is the name somebody chose, "" for none; `client` who started us.

    `once`: a run without a user (`claude -p`), which has a seat of its own that nobody comes back to.
    """

    asked: str
    inst: str
    place: Place
    client: str
    client_pid: int
    client_start: str
    once: bool = False


def find_place(folder: Path) -> Place:
    """The project of a folder, from git's files; git itself is not run."""
    for above in (folder, *folder.parents):
        git = _git_dir(above / ".git")
        if git is not None:
            common = _common_dir(git)
            return Place(_plain(str(folder)), _plain(_remote(common) or str(above)), _plain(_branch(git)))
    return Place(_plain(str(folder)), _plain(str(folder)), "")


def identify(config: Config, environ: Mapping[str, str], client: int | None = None) -> Identity:
    """Who we are, before anybody was asked; `client` is the process we serve, where that is not our parent.

    Refused (422) when the name somebody chose is not valid.
    """
    folder = environ.get("CLAUDE_PROJECT_DIR") or os.getcwd()
    parent = client or os.getppid()
    inst = environ.get("CLAUDE_CODE_SESSION_ID", "")
    place = find_place(Path(os.path.abspath(folder)))
    once = environ.get("CLAUDE_CODE_ENTRYPOINT") == "sdk-cli" and not config.name
    asked = names.check_name(config.name) if config.name else ""
    return Identity(
        _run_name(place) if once else asked,
        inst[:128] if inst else secrets.token_hex(16),
        place,
        "claude-code" if inst or environ.get("CLAUDECODE") else "",
        parent,
        start_time(parent) or "",
        once,
    )


def _plain(text: str) -> str:
    """Without the octets of a path that are no UTF-8: nothing that is sent could hold them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _run_name(place: Place) -> str:
    """`<folder>-run-<4 hex>`: nobody's yet."""
    base = names.canonical(folder_name(place.cwd))
    return f"{base[:54].rstrip('-._')}-run-{secrets.token_hex(2)}"


class Pulse:
    """Wakes coroutines of one event loop when another thread has news."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._armed: list[asyncio.Future[None]] = []

    def arm(self) -> asyncio.Future[None]:
        """A future of the next beat. Take it before looking, or a beat in between is missed."""
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = self._loop.create_future()
        self._armed.append(future)
        return future

    def beat(self) -> None:
        """There is news; from any thread."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits
                loop.call_soon_threadsafe(self._fire)

    def _fire(self) -> None:
        armed, self._armed = self._armed, []
        for future in armed:
            if not future.done():
                future.set_result(None)

    async def until(self, true: Callable[[], bool], timeout: float) -> bool:
        """Wait for a condition that only news can change, up to `timeout` s; whether it came."""
        end = asyncio.get_running_loop().time() + timeout
        while True:
            next_beat = self.arm()
            left = end - asyncio.get_running_loop().time()
            if true():
                return True
            if left <= 0:
                return False
            await asyncio.wait([next_beat], timeout=left)


@dataclass(slots=True)
class _Naming:
    """How far the choice of a name has come. Used in the thread of the link."""

    base: str
    number: int = 1
    settled: bool = False
    again: bool = False  # this session had a name, which the broker's database does not know as its own
    lost: bool = False  # the name that was wanted is kept for a session whose connection was lost
    taken: set[int] = field(default_factory=set)  # terms we tried to take from the dead


class Session:
    """The agent's side of one client session. `listeners` are called with news in the thread of the link."""

    def __init__(self, home: Home, config: Config, environ: Mapping[str, str], client: int | None = None) -> None:
        """Takes a seat and opens its agent.db. ConfigError, StoreError or Refused when that cannot be.

        `client` as for `identify`.
        """
        self.who = identify(config, environ, client)
        self.home, self.config = home, config
        self.host = host_label()
        project = "" if self.who.once else self.who.place.project  # so no later session finds it
        cwd = self.who.place.cwd
        self.seat = take_seat(home, self.who.asked or None, project, session=self.who.inst, folder=cwd)
        try:
            outbox = Outbox.open(self.seat.database)
        except BusError:
            self.seat.leave()
            raise
        self.former = self.seat.session  # the client's session that sat here before this one
        self.seat.remember(environ.get("CLAUDE_CODE_SESSION_ID", "")[:128])
        if self.who.once:
            left.mark(self.seat, left.Left(self.seat.name, left.RUN))
        self.profile = Profile("hold", self.who.inst, self.seat.name, meta=self._meta())
        if not self.who.asked:  # who asks for a name means that one, whatever the mailbox it once had is called now
            self.profile.mailbox, self.profile.store = self.seat.mailbox, self.seat.store
        self.loop = Loop(home, config, outbox, self.profile, on_news=self._heard)
        self.pulse = Pulse()
        self.listeners: list[Callable[[News], None]] = []
        self._naming = _Naming(self.who.asked or self.seat.name)
        self._once: list[str] = []
        self._announced = ("", "", "")
        self._sweep = left.Sweep(home, config)

    def start(self) -> None:
        """Begin to connect."""
        self.loop.start()

    def stop(self, timeout: float) -> None:
        """The session has ended: tell the broker, let go of the seat."""
        self._sweep.end()
        self.loop.stop(leave=True, timeout=timeout)
        self._sweep.join(_SWEEP_S)
        if self.who.once:
            left.finish(self.seat)
        with contextlib.suppress(OSError):
            self.seat.leave()

    def named_by_client(self, client: str) -> None:
        """What the client calls itself; peers see it from the next connection on."""
        self.profile.meta.setdefault("client", client[:60])

    def notices(self) -> list[str]:
        """What the next tool result has to say beside its own: once, or for as long as it is so."""
        once, self._once = self._once, []
        parked = self.loop.status().parked
        refused = self.loop.status().refused
        if parked is not None and self._naming.settled:
            once.append(self.off_the_bus(parked))
        elif refused is not None:
            once.append(f"This session is not on the bus: {refused.words()}; nothing is sent or received.")
        return once

    def off_the_bus(self, parked: Parked) -> str:
        """Why nothing is sent or received, and who can change that."""
        return _parked_text(self.profile.name, parked)

    async def asked_again(self, timeout: float) -> None:
        """Have the hub say once more whether it refuses this machine, where nothing but a question tells."""
        before = self.loop.status().parked
        if before is None or before.code != Code.FORBIDDEN:
            return
        await asyncio.wrap_future(self.loop.call(lambda link, now: link.knock(now)))
        status = self.loop.status
        await self.pulse.until(lambda: status().connected or status().parked is not before, timeout)

    async def known(self, timeout: float) -> bool:
        """Wait for the broker to say whether it knows us; whether we are connected then."""
        status = self.loop.status
        await self.pulse.until(lambda: status().connected or self._refused(), timeout)
        return status().connected

    def _refused(self) -> bool:
        status = self.loop.status()
        heard = status.refused is not None and status.refused.heard
        return heard or (status.parked is not None and self._naming.settled)

    def _meta(self) -> dict[str, Any]:
        who, pid = self.who, os.getpid()
        meta: dict[str, Any] = {
            "pid": pid,
            "start": start_time(pid) or "",
            "client_pid": who.client_pid,
            "host": self.host,
            "cwd": who.place.cwd[-_PATH_MAX:],
            "project": who.place.project[-_PATH_MAX:],
            "started": time.time_ns() // 1_000_000,
        }
        optional = {"branch": who.place.branch[:100], "client": who.client, "once": who.once}
        return meta | {key: value for key, value in optional.items() if value}

    # -- in the thread of the link ---------------------------------------------------------------------------------

    def _heard(self, news: News) -> None:
        if isinstance(news, Welcomed):
            self._welcomed(news)
        elif isinstance(news, Parked):
            self._parked(news)
        for listener in self.listeners:
            listener(news)
        if isinstance(news, Mail | Welcomed | Parked | Lost):
            self.pulse.beat()

    def _welcomed(self, news: Welcomed) -> None:
        naming, asked = self._naming, self.who.asked
        if not naming.settled and not naming.again and asked and news.name != asked:
            lost = "kept for a session whose connection was lost"
            self._once.append(
                f"This session is called {news.name!r}: "
                f"{asked!r} is {lost if naming.lost else 'in use by another living session'}. "
                f'To have it all the same: set_status(name="{asked}", take=true).'
            )
        if naming.again and not naming.settled and news.name != naming.base:
            self._once.append(
                f"This session is called {news.name!r} now: at the broker {naming.base!r} belongs to another session "
                "(its database was restored, or the name was taken while this session was away). Peers find this one "
                "under the new name."
            )
        naming.settled = True
        self._sweep.begin()
        known = (news.name, self.profile.mailbox, self.profile.store)
        if known == self._announced:
            return
        self._announced = known
        who, meta = self.who, self.profile.meta
        place = (who.inst, who.place.cwd, *known[1:])
        live = Live(meta["pid"], meta["start"], who.client_pid, who.client_start, news.name, *place)
        try:
            self.seat.renamed(*known)
            self.seat.announce(live)
        except BusError as error:
            log.error("the seat cannot be written: %s", error)

    def _parked(self, news: Parked) -> None:
        """At the start another name will do; later only the user or the model may decide. A broker that refuses the
        name as it does to a newcomer has forgotten this session: that is a start, too.
        """
        naming = self._naming
        if naming.settled and news.code == Code.CONFLICT and news.by.get("presence"):
            naming = self._naming = _Naming(self.profile.name, again=True)
        if naming.settled:
            with contextlib.suppress(BusError):
                self.seat.renamed(self.seat.name, self.profile.mailbox, self.profile.store)
            return
        if news.code == Code.FORBIDDEN:
            return  # the hub is asked again, and the name is chosen when it accepts this machine
        if news.code != Code.CONFLICT or naming.number >= NAMES_TRIED:
            naming.settled = True
            return
        if self._holder_is_dead(news.by) and news.term not in naming.taken:
            naming.taken.add(news.term)
            self.loop.call(lambda link, now: link.knock(now, take=news.term))
            return
        naming.lost = naming.lost or (naming.number == 1 and news.by.get("presence") == "lost")
        naming.number += 1
        name = numbered(naming.base, naming.number)
        self.loop.call(lambda link, now: link.knock(now, name))

    def _holder_is_dead(self, by: Mapping[str, Any]) -> bool:
        pid, start = by.get("pid"), by.get("start")
        if by.get("host") != self.host or type(pid) is not int or not isinstance(start, str) or not start:
            return False
        # An older broker tells only `living`, which is meant for a lost holder, too.
        held = by["presence"] != "gone" if "presence" in by else by.get("living") is True
        return held and not alive(pid, start)


def numbered(base: str, number: int) -> str:
    """`base-number`, as a name of at most 63 characters."""
    return f"{base[: 62 - len(str(number))].rstrip('-._')}-{number}"


def _parked_text(name: str, parked: Parked) -> str:
    if parked.code == Code.CONFLICT:
        return (
            f"This session is not on the bus: its name {name!r} is held by another session now, and nothing is sent "
            f"or received. Choose another with set_status(name=…), or take it back with "
            f'set_status(name="{name}", take=true).'
        )
    return (
        f"This session is not on the bus: {parked.text} (code {parked.code}; nothing is sent or received; "
        "it is tried again by itself)."
    )


def _git_dir(path: Path) -> Path | None:
    """The git directory that `.git` is or, in a worktree or submodule, names."""
    if path.is_dir():
        return path
    text = _text(path)
    if not text.startswith("gitdir:"):
        return None
    return path.parent / text.removeprefix("gitdir:").strip()


def _common_dir(git: Path) -> Path:
    common = _text(git / "commondir").strip()
    return git / common if common else git


def _branch(git: Path) -> str:
    head = _text(git / "HEAD").strip()
    return head.removeprefix("ref: refs/heads/") if head.startswith("ref: ") else head[:8]


def _remote(git: Path) -> str:
    """The url of origin, else of the first remote, without user and password."""
    found: dict[str, str] = {}
    section = ""
    for line in _text(git / "config").splitlines():
        heading = re.match(r'\s*\[(?:remote "(.*)"|.*)\]', line)
        url = re.match(r"\s*url\s*=\s*(.+?)\s*$", line)
        if heading:
            section = heading[1] or ""
        elif url and section:
            found.setdefault(section, url[1])
    url_text = found.get("origin") or next(iter(found.values()), "")
    return re.sub(r"^([a-z][a-z0-9+.-]*://)[^/@]*@", r"\1", url_text, flags=re.IGNORECASE)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_GIT_FILE_MAX).decode("utf-8", "replace")
    except OSError:
        return ""
