"""The shell of the link: one thread that owns the socket, the clock and agent.db.

After each `link.take()`: commit the writes, then connect or close, then send, then tell the news. A disk that refuses
costs the batch: whoever asked is told, nothing of it is sent or shown, and the link is made anew from what the disk
has. Other threads hand functions in and get futures out. It must not know what a message says, nor MCP.
"""

from __future__ import annotations

import logging
import secrets
import threading
from base64 import b32encode
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from random import random
from typing import Any, TypeVar

import zmq

from agent.asks import Answer, Queries, Query, resolve
from agent.calls import Calls, Clock
from agent.dialing import Connection, Dialer
from agent.effects import Ended, Finished, Lost, News, Parked, Parted, SendRow, Settled, Welcomed
from agent.link import Link, Profile
from agent.outbox import Outbox
from bus import wire
from bus.config import Config, Home
from bus.errors import Code, StoreError, Unreachable
from bus.trust import ensure_keys

T = TypeVar("T")
log = logging.getLogger("talkbus.agent")

FRAMES_A_TURN = 128
BLOCKED_MS = 25  # what is still due after a tick waits for something else than time
DISK_BACKOFF_MS = (250, 4000)
TIDY_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class LoopStatus:
    """How the link stands. `since_ms` is when the connection was found or lost; `reason` why there is none."""

    connected: bool = False
    name: str = ""
    id: str = ""
    term: int = 0
    since_ms: int = 0
    parked: Parked | None = None
    reason: str = "connecting"


class Loop:
    """A link with its thread. Every method may be called from any thread but the loop's own, `call` from that too.

    The outbox belongs to the loop from start() on. `on_news` is called in the loop thread, after the commit.
    `on_rebuilt`, if set, is called there when the link was made anew: what is being shown must be held again.
    """

    def __init__(
        self,
        home: Home,
        config: Config,
        outbox: Outbox,
        profile: Profile,
        *,
        autostart: bool = True,
        on_news: Callable[[News], None] | None = None,
    ) -> None:
        self.outbox = outbox
        self.profile = profile
        self.clock = Clock()
        self.on_rebuilt: Callable[[Link], None] | None = None
        self._home, self._config, self._autostart = home, config, autostart
        self._on_news = on_news
        self._status = LoopStatus(since_ms=self.clock())
        self._calls = Calls()
        self._waiters: dict[int, list[Future[Settled]]] = {}
        self._queries = Queries()
        self._connection: Connection | None = None
        self._broken: StoreError | None = None
        self._disk_failures = 0
        self._retry_at = 0
        self._tidy_at = 0
        self._leaving: tuple[bool, int] | None = None  # (leave, until when BYE is waited for)
        self._said_bye = self._told_bye = False
        self._ended = False
        self._thread: threading.Thread | None = None

    # -- for other threads -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Read agent.db and begin to connect. StoreError or ConfigError when that cannot be."""
        keys = ensure_keys(self._home)
        self.profile.life = self.profile.life or secrets.token_hex(8)
        self._link = self._new_link()
        self._link.book.term = 0  # another process is another session, which has not lost what its forerunner held
        self._context = zmq.Context()
        self._dialer = Dialer(self._home, self._config, keys, self._context, self._calls.wake, self._autostart)
        self._poller = zmq.Poller()
        self._poller.register(self._calls.fileno(), zmq.POLLIN)
        self._thread = threading.Thread(target=self._main, name="talkbus-link", daemon=True)
        self._thread.start()

    def call(self, fn: Callable[[Link, int], T]) -> Future[T]:
        """Run `fn(link, now)` in the loop thread; its result comes when the batch it belongs to is on disk.

        StoreError when the disk refused the batch: then nothing of it happened. Unreachable after stop().
        """
        return self._calls.put(fn)

    def submit(self, op: str, args: dict[str, Any], body: bytes = b"", ident: str = "") -> tuple[int, str]:
        """A request, as Link.submit; returns row and id when it is on disk."""
        return self.call(lambda link, now: link.submit(now, op, args, body, ident)).result()

    def settled(self, row: int) -> Future[Settled]:
        """The broker's reply to a row, also to one that has it already. It may take as long as an outage."""
        future: Future[Settled] = Future()

        def look(link: Link, _now: int) -> None:
            if row < link.book.first:
                stored = self.outbox.row(row)
                if stored.code is not None:
                    resolve(future, Settled(row, stored.code, stored.result, stored.text))
                    return
            self._waiters.setdefault(row, []).append(future)

        def failed(done: Future[None]) -> None:
            error = done.exception()
            if error is not None and future.set_running_or_notify_cancel():
                future.set_exception(error)

        self.call(look).add_done_callback(failed)
        return future

    def asking(self, what: str, args: dict[str, Any], timeout: float) -> Future[Answer]:
        """A query; one that loses its connection is asked again until `timeout` (s) is over, then code 503."""
        future: Future[Answer] = Future()

        def ask(link: Link, now: int) -> None:
            query = Query(what, args, now + int(timeout * 1000), future)
            self._queries.ask(link, query, self._status.reason)

        def failed(done: Future[None]) -> None:
            error = done.exception()
            if error is not None:
                resolve(future, Answer([], Code.BUSY, text=str(error)))

        self.call(ask).add_done_callback(failed)
        return future

    def ask(self, what: str, args: dict[str, Any], timeout: float) -> Answer:
        """As asking(), waited for."""
        return self.asking(what, args, timeout).result()

    def status(self) -> LoopStatus:
        """How the link stands at this moment."""
        return self._status

    def stop(self, leave: bool, timeout: float = 1.0) -> None:
        """Say BYE (`leave` when the session has ended), wait for the answer up to `timeout` s, close everything.

        Whoever still waits gets Unreachable. The second call does nothing.
        """
        if self._thread is None:
            return
        self._leaving = self._leaving or (leave, self.clock() + int(timeout * 1000))
        self._calls.wake()
        self._thread.join(timeout + 2)
        self._thread = None

    # -- the loop --------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        while not self._ended:
            try:
                self._turn()
            except StoreError as error:
                self._disk_failed(error)
            except Exception as error:  # the client does not start an agent again, so this one must not die
                log.exception("the link failed and is made anew")
                self._disk_failed(StoreError(f"the agent failed: {type(error).__name__} (see its log)"))
        self._close()

    def _turn(self) -> None:
        now = self.clock()
        if self._broken is not None and not self._mended(now):
            return
        link = self._link
        self._calls.run(link, now)
        self._read(link, now)
        self._expire_queries(now)
        batch = link.take(now)
        self.outbox.apply(batch.writes)
        if batch.writes:
            self._disk_failures = 0
        self._calls.committed()
        if batch.connect:
            # What was to be sent was meant for the former connection.
            self._hang_up()
            if batch.connect == "open":
                self._dialer.dial(max(self._retry_at, now))
        else:
            self._send(link, batch.sends, now)
        for news in batch.news:
            self._tell(link, news, now)
        self._dialed(link, now)
        if not self._leave(link, now):
            self._wait(link, now)

    def _read(self, link: Link, now: int) -> None:
        connection = self._connection
        if connection is None:
            return
        up, down = connection.happened()
        if up:
            link.connected(now)
        # What came before the end of a connection is read before its end is told.
        for frames in connection.frames(0 if down is not None else FRAMES_A_TURN):
            link.receive(now, frames)
        if down is not None:
            self._dialer.refused(now, down)
            link.lost(now, down)

    def _send(self, link: Link, sends: list[wire.Command | SendRow], now: int) -> None:
        for item in sends:
            if isinstance(item, SendRow):
                stored = self.outbox.row(item.row)
                command: wire.Command = wire.Req(item.q, item.floor, stored.op, stored.id, stored.args, stored.body)
            else:
                command = item
            if self._connection is None or not self._connection.send(wire.encode(command)):
                link.lost(now, "the broker takes nothing more")
                return

    def _dialed(self, link: Link, now: int) -> None:
        """What became of an attempt to find the broker."""
        self._dialer.work(now)
        found = self._dialer.take()
        if isinstance(found, Connection):
            self._connection = found
            for source in found.sources:
                self._poller.register(source, zmq.POLLIN)
        elif found is not None:
            link.lost(now, found)

    def _hang_up(self) -> None:
        self._dialer.forget()
        connection, self._connection = self._connection, None
        if connection is not None:
            for source in connection.sources:
                self._poller.unregister(source)
            connection.close()

    def _wait(self, link: Link, now: int) -> None:
        until = self._leaving[1] if self._leaving else None
        times = [link.deadline(), self._dialer.deadline(), self._queries.deadline(), until]
        if link.book.first > link.book.last and now >= self._tidy_at:
            self._tidy_at = now + (0 if self.outbox.tidy(now) else TIDY_MS)
        due = min((t for t in times if t is not None), default=None)
        now = self.clock()
        batch = link.batch  # a query that waited for WELCOME is in it by now, too
        if self._calls or batch.connect or batch.news or batch.writes or batch.sends:
            timeout: int | None = 0
        elif due is None:
            timeout = None
        else:
            timeout = due - now if due > now else BLOCKED_MS
        self._poll(timeout)

    def _poll(self, timeout: int | None) -> None:
        if any(source == self._calls.fileno() for source, _ in self._poller.poll(timeout)):
            self._calls.woken()

    # -- the news --------------------------------------------------------------------------------------------------

    def _tell(self, link: Link, news: News, now: int) -> None:
        status = self._status
        match news:
            case Settled():
                for waiter in self._waiters.pop(news.row, ()):
                    resolve(waiter, news)
            case Parted():
                self._queries.parted(news)
            case Finished():
                self._queries.finished(link, news, status.reason)
            case Welcomed():
                since = status.since_ms if status.connected else now
                self._status = LoopStatus(True, news.name, news.id, news.term, since, None, "")
                self._queries.welcomed(link)
            case Parked():
                self._status = replace(status, connected=False, since_ms=now, parked=news, reason=news.text)
            case Lost():
                since = now if status.connected else status.since_ms
                reason = news.text or status.reason or "the connection was lost"
                self._status = replace(status, connected=False, since_ms=since, parked=None, reason=reason)
            case Ended():
                self._status = replace(status, connected=False, since_ms=now, reason="the broker said goodbye")
                self._told_bye = True
                if self._leaving is None:
                    link.knock(now)
        if self._on_news is not None:
            self._on_news(news)

    def _expire_queries(self, now: int) -> None:
        silent = "the broker did not answer in time"
        self._queries.expire(now, silent if self._status.connected else self._status.reason)

    # -- the disk --------------------------------------------------------------------------------------------------

    def _new_link(self) -> Link:
        book = self.outbox.load(_new_id)
        return Link(book, self.profile, new_row_id, random)

    def _disk_failed(self, error: StoreError) -> None:
        """Memory has run ahead of the disk, and the disk is right: forget the batch and begin again from there."""
        log.error("agent.db: %s", error)
        now = self.clock()
        self._hang_up()
        self._calls.failed(error)
        self._queries.forgotten()
        least, most = DISK_BACKOFF_MS
        self._retry_at = now + min(most, least << min(self._disk_failures, 10))
        self._disk_failures += 1
        since = now if self._status.connected else self._status.since_ms
        self._status = replace(self._status, connected=False, since_ms=since, parked=None, reason=str(error))
        self._broken = error
        self._mended(now, first=True)

    def _mended(self, now: int, first: bool = False) -> bool:
        if not first and now < self._retry_at:
            assert self._broken is not None
            self._calls.refuse(self._broken)
            self._expire_queries(now)
            if self._leaving is not None:
                self._ended = True
                return False
            self._poll(self._retry_at - now)
            return False
        former = self._link.inbox
        try:
            self._link = self._new_link()
            self._link.inbox.inherit(former)
        except StoreError as error:
            self._broken = error
            self._retry_at = max(self._retry_at, now + DISK_BACKOFF_MS[1])
            return False
        self._broken = None
        if self.on_rebuilt is not None:
            self.on_rebuilt(self._link)
        return True

    # -- the end ---------------------------------------------------------------------------------------------------

    def _leave(self, link: Link, now: int) -> bool:
        """True when the loop has ended. BYE comes after everything that was to be sent before it."""
        if self._leaving is None:
            return False
        leave, until = self._leaving
        if link.state != "open" or self._told_bye or now >= until:
            self._ended = True
            return True
        if not self._said_bye:
            self._said_bye = True
            link.bye(leave)
            self._send(link, link.batch.sends, now)
            link.batch.sends.clear()
        return False

    def _close(self) -> None:
        self._hang_up()
        self._calls.close(_ending())
        self._queries.close(str(_ending()))
        for waiters in self._waiters.values():
            for waiter in waiters:
                if waiter.set_running_or_notify_cancel():
                    waiter.set_exception(_ending())
        self._dialer.close()
        self._context.term()
        self.outbox.close()


def _ending() -> Unreachable:
    return Unreachable("the agent is ending (nothing more is taken)")


def _new_id() -> str:
    return secrets.token_hex(16)


def new_row_id() -> str:
    """The id of a request, which for a send is the message id."""
    return b32encode(secrets.token_bytes(10)).decode("ascii").lower()
