"""The ladder of paths into a running session: its own inbox, then its hooks, then a supervisor that types; a waiting
task wakes.

Whoever delivers asks the ledger first and tells it last: `offering` is on the disk before a text leaves, `shown` only
with the proof of flights.py. A note starts nothing: it rides with a task, or waits for a hook or a tool
result. Must not know frames or MCP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from agent import render
from agent.delivery import clientfile, native, recovery, transcript
from agent.delivery.flights import Flight, Verdict, judge_hook, judge_native, judge_result, judge_resumed, judge_typed
from agent.delivery.maildir import Box, Fate, Maildir, sweep
from agent.delivery.piggyback import counted, fitting, plain
from agent.delivery.readers import Readers
from agent.delivery.terminal import NOTICE, TERMINAL, WAITS, Terminal
from agent.inbox import Letter
from agent.link import Link
from agent.session import Session
from agent.statusline import StatusFile
from bus import joined
from bus.config import Config, Home
from bus.errors import BusError, StoreError, Unreachable
from bus.processes import start_time

if TYPE_CHECKING:
    from agent.delivery.channel import Channel

T = TypeVar("T")
log = logging.getLogger("talkbus.agent")

BUSY_S, CALM_S = 0.1, 0.5  # between two looks: while something is on its way, and otherwise
RECENT_MS = 60_000  # how long a proof is looked for that often
LAST_LOOK_S = 0.2  # for the proof of a tool result, when the client has ended
NATIVE_BUDGET, HOOK_BUDGET = 9000, 8600
GATHER_MS = 400  # for each line but one of the last seconds, the next one gathers messages for so long
TYPED_KEPT = 4096
REST_MS = 60_000  # a path that failed is left alone for this long
PEERS_MS = 10_000  # how old the number of peers in the status line may get


class Ladder:
    """The deliverer of one session. `reserved` says which letters an open `ask` waits for."""

    def __init__(
        self,
        session: Session,
        home: Home,
        config: Config,
        environ: Mapping[str, str],
        client: int,
        reserved: Callable[[Letter], bool],
        channel: Channel | None = None,
        terminal: Terminal | None = None,
        hosted: bool = False,
    ) -> None:
        """ConfigError when the maildir cannot be made. `client` is the pid of the client.

        `terminal` is the supervisor above it, if there is one; `hosted`: this is the supervisor's own agent. It is no
        child of the client, so the client's inbox is not used: that holds lines from outside in some modes.
        """
        self._session, self._reserved, self._channel = session, reserved, channel
        self._terminal, self._hosted = terminal, hosted
        self._box = terminal.box(os.getpid()).make() if terminal is not None else None
        # Not to be typed again in this life: it left no trace, or a notice of it was typed. The newest of them.
        self._typed: dict[str, None] = {}
        self._notice: tuple[str, set[str]] | None = None  # its name in the box, and whom it is about
        self._typing_rests_until = 0
        self._records = False  # the client has a session file, so its transcript can prove something
        # Only a session without tools is read by commands inside it.
        self._readers = Readers(terminal, self._call, self._not_typed) if hosted and terminal is not None else None
        self._reply_tool = render.SHELL if hosted else "send_message"
        self._handing = False  # over to another agent: nothing more is offered
        self._loop = session.loop
        self._config_dir = clientfile.config_dir(environ)
        self._token = environ.get("CLAUDE_CODE_MESSAGING_TOKEN", "")
        self._socket = environ.get("CLAUDE_CODE_MESSAGING_SOCKET", "")
        self._native_allowed = config.delivery_native and not hosted
        self._pid = client
        sweep(home.maildirs)
        start = start_time(client) or "0"
        self._lives = Maildir.place(home.maildirs, client, start).exists()  # another agent served this client before
        self._maildir = Maildir.open(home.maildirs, client, start)
        self._follower = transcript.Follower()
        self._parser = transcript.Parser()
        self._pacer = native.Pacer()
        self._flights: list[Flight] = []
        self._native_rests_until = 0
        self._lines: list[int] = []  # when the last ones were written
        self._info: clientfile.Session | None = None
        self._sits = ""
        self._former = session.former
        self._turning = asyncio.Lock()
        self._told: tuple[str, str, int] = ("", "", 0)
        self._status = StatusFile(home, client, hub=joined.hub(home, config) is not None)
        self._peers, self._peers_at, self._held = 0, 0, 0
        self._counted: tuple[str, int] = ("", 0)
        earlier = self._loop.on_rebuilt

        def rebuilt(link: Link) -> None:
            """The book was read from the disk again: what is on its way stays on its way."""
            if earlier is not None:
                earlier(link)
            for flight in list(self._flights):
                link.inbox.hold(flight.letters)
                link.inbox.resume(flight.resumed)
            if self._readers is not None:
                link.inbox.resume(self._readers.keys)

        self._loop.on_rebuilt = rebuilt

    # -- life ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Deliver until cancelled. A disk that refuses is tried again."""
        while True:
            beat = self._session.pulse.arm()
            try:
                async with self._turning:
                    await self._turn()
            except Unreachable:
                return
            except (BusError, OSError) as error:
                log.warning("delivery: %s", error)
            except Exception:  # nobody starts us again, and mail would wait for ever
                log.exception("delivery failed, and is tried again")
            await asyncio.wait([beat], timeout=BUSY_S if self._urgent() else CALM_S)
            if self._flights:
                await asyncio.sleep(BUSY_S / 4)  # a busy bus does not make this spin

    async def recover(self) -> None:
        """What a former life was offering: proof is looked for before anything is offered again. What the client has
        taken in, and its model was not asked yet, stays on its way.
        """
        keys = await self._call(
            lambda link, now: {
                key: line.nonce for key, line in link.book.ledger.items() if line.state == "offering" and line.nonce
            }
        )
        async with self._turning:
            await self._recover(keys)

    async def _recover(self, keys: dict[str, str]) -> None:
        if not keys:
            self._look()
        printed = recovery.empty(self._maildir.box, keys)
        boxes = self._terminal.left() if self._terminal is not None else []
        taken = [key for box in boxes for key in recovery.empty(box, keys)]
        if not keys:
            return
        self._look_at_client()
        past = await asyncio.to_thread(recovery.look_back, self._transcript(), self._former, keys, self._lives)
        if past.tail is not None and self._follower.path is None:
            self._follower.go_on(past.tail)
        for proof in set(past.shown.values()):
            await self._proven([key for key, one in past.shown.items() if one == proof], proof)
        for nonce, held in past.held.items():
            await self._resume(past.parser, nonce, held)
        self._look()
        proven = {*past.shown, *(key for held in past.held.values() for key in held)}
        if self._follower.path is None:  # else the transcript would say that the model was told what a hook printed
            printed = [key for key in printed if key not in proven]
            await self._proven(printed, "hook-output")
        if not self._records:
            taken = [key for key in taken if key not in proven]
            await self._proven(taken, TERMINAL)

    async def _proven(self, keys: Collection[str], proof: str) -> None:
        await self._call(lambda link, now: link.inbox.proven(now, keys, proof))

    async def _resume(self, parser: transcript.Parser, nonce: str, keys: list[str]) -> None:
        session = self._info.id if self._info else ""
        self._parser.resume(parser, nonce)
        self._flights.append(Flight([], "resumed", nonce, self._now(), session, resumed=keys))
        await self._call(lambda link, _now: link.inbox.resume(keys))

    async def close(self, remove: bool = True) -> None:
        """The session has ended: what nobody claimed comes back; the rest is proven or repeated by a successor.

        Without `remove` it goes on with another agent, which may use the maildir already.
        """
        async with self._turning:
            with contextlib.suppress(BusError, OSError):
                await self._last_look()
                await self._take_back()
            self._maildir.close(remove)
            with contextlib.suppress(OSError):
                self._status.clear()

    async def hand_over(self, timeout: float) -> None:
        """Another agent is to serve: take back what was not typed, wait up to `timeout` s for traces of the rest."""
        end, self._handing = self._now() + int(timeout * 1000), True
        while True:
            async with self._turning:
                self._look()
                await self._take_back()
                typed = [self._parser.seen(f.nonce) for f in self._flights if f.path == TERMINAL]
            if all(seen >= transcript.Seen.TAKEN for seen in typed) or self._now() >= end:
                return
            await asyncio.sleep(BUSY_S)

    async def give_way(self) -> None:
        """Have the texts that wait for a hook or the supervisor come back: a tool result is about to carry them. A
        model that calls again may have been told what an earlier result carried: that is looked up.
        """
        if any(f.path in ("hook", TERMINAL) for f in self._flights):
            async with self._turning:
                await self._take_back()
        if any(f.path == "tool-result" for f in self._flights):
            async with self._turning:
                self._look()
                await self._judge_results()

    # -- what tool results carry -----------------------------------------------------------------------------------

    @property
    def reads_transcript(self) -> bool:
        """Whether the session has a transcript, which then decides what was shown."""
        return self._follower.path is not None

    def carry(self, letters: Iterable[Letter], nonce: str) -> None:
        """A tool result is about to be written with these, which were offered, and with the nonce at its end.

        To be called before it can be in the transcript.
        """
        now, session = self._now(), self._info.id if self._info else ""
        for letter in letters:
            flight = Flight([letter], "tool-result", f"{nonce} {letter.key}", now, session)
            self._flights.append(flight)
            self._parser.watch(flight.nonce, nonce)

    def carried(self, keys: Iterable[str], taken: bool = False) -> None:
        """Their result was written in full; with `taken` the client has read it."""
        wanted = set(keys)
        for flight in self._flights:
            if flight.path == "tool-result" and flight.letters[0].key in wanted:
                flight.written = True
                flight.taken = flight.taken or taken

    def let_go(self, keys: Iterable[str]) -> list[str]:
        """The caller decides what becomes of these; those of them that are still without a verdict."""
        wanted = set(keys)
        found = [f for f in self._flights if f.path == "tool-result" and f.letters[0].key in wanted]
        for flight in found:
            self._parser.unwatch(flight.nonce)
            self._flights.remove(flight)
        return [flight.letters[0].key for flight in found]

    def _urgent(self) -> bool:
        now = self._now()
        if self._readers is not None and self._readers.keys:
            return True
        return any(now - flight.since < RECENT_MS for flight in self._flights)

    async def _judge_results(self) -> None:
        for flight in [f for f in self._flights if f.path == "tool-result"]:
            await self._judge(flight, self._now())

    async def _last_look(self) -> None:
        """A client that ends writes the end of its transcript in that moment."""
        end = self._now() + int(LAST_LOOK_S * 1000)
        while any(f.path == "tool-result" and f.written for f in self._flights):
            self._look()
            await self._judge_results()
            if self._now() >= end:
                return
            await asyncio.sleep(LAST_LOOK_S / 10)

    async def catch_up(self) -> None:
        """Take in what the client's transcript proves by now."""
        async with self._turning:
            now = self._now()
            self._look()
            for flight in list(self._flights):
                await self._judge(flight, now)

    def path(self) -> str:
        """How this session can be reached, best first: "native", "rewake", "channel", "terminal", "notice", "hooks",
        "tools"; "inbox" for one without tools.
        """
        if self._native_open(self._now()):
            return "native"
        hooked = self._maildir.hooked()
        if hooked and self._maildir.waiter:
            return "rewake"
        if self._channel is not None and self._channel.open():
            return "channel"
        return self._typing() or ("hooks" if hooked else "inbox" if self._hosted else "tools")

    def _typing(self) -> str:
        """How the supervisor can type for us now; "" when it cannot, or does so for another agent."""
        if self._terminal is None or self._now() < self._typing_rests_until:
            return ""
        if not self._hosted and not self._terminal.mine(self._pid):
            return ""
        return self._terminal.way

    # -- one look --------------------------------------------------------------------------------------------------

    async def _turn(self) -> None:
        now = self._now()
        self._maildir = self._maildir.kept()
        self._look()
        for flight in list(self._flights):
            await self._judge(flight, now)
        await self._take_back_late()
        if any(f.path == "hook" and f.task for f in self._flights) and self._native_open(now):
            await self._take_back()  # the waiter was sent away, and nobody would ring
        elsewhere = self.path() != TERMINAL or (self._maildir.hooked() and not self._type_instead())
        if elsewhere and any(f.path == TERMINAL for f in self._flights):
            await self._take_back(paths=(TERMINAL,))
        if any(f.path == "hook" and f.task for f in self._flights) and self._type_instead():
            await self._take_back()
        if self._readers is not None:
            await self._readers.look()
        await self._look_at_notice()
        waiting = await self._call(self._waiting)
        if self._handing:
            return
        if any(letter.wakes for letter in waiting):
            await self._deliver(waiting, now)
        elif waiting and self._maildir.hooked():
            await self._leave_for_hook(waiting, now, task=False)
        await self._tell_activity()
        await self._tell_line()

    def _look(self) -> None:
        """What the client says of itself, and what its transcript has that is new."""
        self._look_at_client()
        now = self._now()
        self._follower.follow(now, self._transcript())
        self._parser.feed(self._follower.poll(now))

    def _look_at_client(self) -> None:
        self._info = clientfile.read(self._pid, self._config_dir)
        self._records = self._records or self._info is not None
        if self._info is not None and self._info.id != self._sits:
            if self._sits:  # a conversation that was cleared: its questions are not in the context any more
                self._loop.call(lambda link, _now: link.inbox.questions.forget())
            self._sits = self._info.id
            self._session.seat.remember(self._sits)  # resumed later, it comes back to this mailbox

    def _transcript(self) -> Path | None:
        info = self._info
        return clientfile.transcript_path(self._config_dir, info.id, info.cwd) if info else None

    def _waiting(self, link: Link, _now: int) -> list[Letter]:
        return [letter for letter in link.inbox.waiting() if not self._reserved(letter)]

    # -- paths -----------------------------------------------------------------------------------------------------

    def _native_open(self, now: int) -> bool:
        """Whether a line may be written to the session's own inbox at all."""
        open_now = (
            self._native_allowed
            and self._info is not None
            and bool(self._inbox_path())
            and now >= self._native_rests_until
            and native.inbound(self._config_dir, self._info.cwd).open
        )
        self._maildir.native(open_now)
        return open_now

    def _inbox_path(self) -> str:
        named = self._info.socket if self._info else ""
        path = named or self._socket
        return path if path and os.path.exists(path) else ""

    async def _deliver(self, waiting: Sequence[Letter], now: int) -> None:
        path = self.path()
        if path == "native":
            self._lines = [at for at in self._lines if now - at < native.EVERY_MS]
            gathered = not self._lines or now - self._lines[-1] >= GATHER_MS * (len(self._lines) - 1)
            if gathered and self._pacer.ready_at(now) <= now:
                await self._take_back(notes_only=True)
                await self._post(await self._call(self._waiting), now)
        elif path == "channel":
            await self._push(waiting, now)
        elif path == TERMINAL and self._type_instead():
            await self._type(waiting, now)
        elif path == NOTICE:
            self._notify(waiting)
        elif self._maildir.hooked():
            await self._leave_for_hook(waiting, now, task=True)

    async def _push(self, waiting: Sequence[Letter], now: int) -> None:
        """One notification at a time: the next one goes when this one was taken for a turn, or its fate is known."""
        if self._channel is None or self._untaken("channel"):
            return
        await self._take_back()
        letters, left, nonce = await self._offer(await self._call(self._waiting), NATIVE_BUDGET, "channel")
        if not letters:
            return
        flight = self._begin(letters, "channel", now, nonce)
        self._parser.watch(flight.nonce, flight.nonce, native=True)
        await self._channel.push(native.marked(self._text(letters, left, NATIVE_BUDGET), flight.nonce))

    def _untaken(self, path: str) -> bool:
        """Whether something is on this path that no turn has taken yet. What one has taken and not told its model,
        as after an error of the client's, goes out with the next turn.
        """
        sent = [flight for flight in self._flights if flight.path == path]
        return any(self._parser.seen(flight.nonce) < transcript.Seen.TAKEN for flight in sent)

    async def _post(self, waiting: Sequence[Letter], now: int) -> None:
        """One line with all that fits."""
        letters, left, nonce = await self._offer(waiting, NATIVE_BUDGET, "native")
        if not letters or not self._pacer.take(now):
            await self._back([letter.key for letter in letters], certain=True)
            return
        self._lines.append(now)
        flight = self._begin(letters, "native", now, nonce)
        text = self._text(letters, left, NATIVE_BUDGET)
        self._parser.watch(flight.nonce, flight.nonce, native=True)
        try:
            await asyncio.to_thread(native.post, self._inbox_path(), text, self._token, nonce=flight.nonce)
        except native.NotPosted as error:
            log.info("the session's inbox: %s", error)
            if error.certain:
                await self._end(flight, Verdict("back", certain=True, blame=True), now)

    async def _leave_for_hook(self, waiting: Sequence[Letter], now: int, task: bool) -> None:
        """A finished text in the maildir; a task rings whoever waits to wake the session."""
        if task:
            await self._take_back(notes_only=True)
            waiting = await self._call(self._waiting)
        letters, left, nonce = await self._offer(waiting, HOOK_BUDGET, "hook")
        if not letters:
            return
        flight = self._begin(letters, "hook", now, nonce)
        flight.task = any(letter.wakes for letter in letters)
        text = native.marked(self._text(letters, left, HOOK_BUDGET), flight.nonce)
        self._parser.watch(flight.nonce, flight.nonce)
        wall = time.time_ns() // 1_000_000
        until = flight.until and wall + flight.until - await self._call(lambda _link, at: at)
        try:
            flight.name = self._maildir.put(text, "task" if flight.task else "note", wall, until)
        except (OSError, ValueError) as error:
            log.warning("the maildir: %s", error)
            await self._end(flight, Verdict("back", certain=True), now)

    def _type_instead(self) -> bool:
        """Whether the supervisor is to type now, and not a hook or tool of a running turn: what is not offered yet is
        free for those.
        """
        busy = self._info is not None and bool(self._info.status) and not self._info.idle
        return self.path() == TERMINAL and not busy

    async def _type(self, waiting: Sequence[Letter], now: int) -> None:
        """One text at a time for the supervisor, with all that fits. What comes before it was typed goes along."""
        fresh = any(letter.wakes and letter.key not in self._typed for letter in waiting)
        if not fresh:
            return
        await self._take_back()
        if self._untaken(TERMINAL):
            return
        waiting = [letter for letter in await self._call(self._waiting) if letter.key not in self._typed]
        letters, left, nonce = await self._offer(waiting, HOOK_BUDGET, TERMINAL)
        if not letters or self._box is None:
            return
        flight = self._begin(letters, TERMINAL, now, nonce)
        text = render.inert(native.marked(self._text(letters, left, HOOK_BUDGET), flight.nonce))
        self._parser.watch(flight.nonce, flight.nonce, typed=True)
        wall = time.time_ns() // 1_000_000
        try:
            flight.name = self._box.put(text, "task", wall)
        except (OSError, ValueError) as error:
            log.warning("the terminal: %s", error)
            await self._end(flight, Verdict("back", certain=True, blame=True), now)

    def _notify(self, waiting: Sequence[Letter]) -> None:
        """Have the supervisor say that something waits, once for each task. Nothing is offered by that: it shows
        nothing of a message, and whatever does may do so meanwhile.
        """
        fresh = {letter.key for letter in waiting if letter.wakes} - self._typed.keys()
        if fresh and not self._notice and self._box is not None:
            name = self._box.put(WAITS, "task", time.time_ns() // 1_000_000)
            self._notice = (name, fresh)

    async def _look_at_notice(self) -> None:
        """What became of the notice; one that is no longer true is taken back."""
        if self._notice is None or self._box is None:
            return
        name, keys = self._notice
        fate = self._box.fate(name)
        if fate is Fate.CLAIMED:
            return
        if fate is Fate.WAITING:
            wait = {letter.key for letter in await self._call(self._waiting)}
            if (keys & wait and self.path() == NOTICE) or not self._box.withdraw(name):
                return
        elif fate is not Fate.GONE:
            self._not_again(keys)
        self._box.forget(name)
        self._notice = None

    async def _not_typed(self, keys: set[str]) -> None:
        """Take back what is to be typed of these. What the supervisor has begun to type stays typed."""
        for flight in [x for x in self._flights if x.path == TERMINAL and keys & set(x.keys)]:
            if self._box_of(flight).withdraw(flight.name):
                await self._end(flight, Verdict("back", certain=True), self._now())

    async def _shown(self, keys: Collection[str], proof: str) -> None:
        await self._call(lambda link, at: link.inbox.shown(at, keys, proof))

    async def _offer(self, waiting: Sequence[Letter], budget: int, path: str) -> tuple[list[Letter], int, str]:
        """`offering` on the disk for as many letters as fit; how many are left; and the nonce for their text."""
        nonce = secrets.token_hex(6)

        def offer(link: Link, now: int) -> tuple[list[Letter], int, str]:
            fit = fitting(waiting, now, budget, self._reply_tool)
            return link.inbox.offer(now, fit, path, nonce), len(waiting) - len(fit) + link.inbox.more, nonce

        return await self._call(offer)

    def _begin(self, letters: list[Letter], path: str, now: int, nonce: str) -> Flight:
        flight = Flight(letters, path, nonce, now, self._info.id if self._info else "")
        self._flights.append(flight)
        return flight

    def _text(self, letters: Sequence[Letter], left: int, budget: int) -> str:
        shown = render.render(plain(letters), time.time_ns() // 1_000_000, budget, self._reply_tool)
        more = counted(left) if not self._hosted else f"({left} more waiting)" if left > 0 else ""
        return "\n\n".join(part for part in (shown, more) if part)

    # -- verdicts --------------------------------------------------------------------------------------------------

    async def _judge(self, flight: Flight, now: int) -> None:
        seen = self._parser.seen(flight.nonce)
        session = self._info.id if self._info else ""
        if flight.path == "tool-result":
            recorded, transcript = self._parser.recorded(flight.nonce), self.reads_transcript
            verdict = judge_result(flight, seen, recorded, now, session, self._doing(), transcript)
        elif flight.path == TERMINAL:
            fate = self._box_of(flight).fate(flight.name)
            verdict = judge_typed(flight, seen, fate, now, session, self._turn_state(), self._records)
        elif flight.path == "resumed":
            verdict = judge_resumed(flight, seen, now, session)
        elif flight.path != "hook":
            verdict = judge_native(flight, seen, now, session)
        else:
            verdict = judge_hook(flight, seen, self._maildir.box.fate(flight.name), now, self._turn_state())
        if verdict.end and flight in self._flights:  # a result may have been let go meanwhile
            await self._end(flight, verdict, now)

    def _turn_state(self) -> str:
        """Whether a turn runs, as the client says; "" where it does not, or has no transcript that could prove it."""
        return self._doing() if self._follower.path is not None else ""

    def _doing(self) -> str:
        if self._info is None or not self._info.status:
            return ""
        return "over" if self._info.idle else "runs"

    async def _end(self, flight: Flight, verdict: Verdict, now: int) -> None:
        if verdict.end == "shown":
            if flight.path == TERMINAL:
                with contextlib.suppress(OSError):
                    self._box_of(flight).tell_taken(flight.name)
            await self._shown(flight.keys, verdict.proof)
        else:
            await self._back(flight.keys, verdict.certain)
        if verdict.blame and flight.path == "native":
            self._native_rests_until = now + REST_MS
        if flight.path == "channel" and self._channel is not None:
            if verdict.blame:
                self._channel.failed()
            elif verdict.end == "shown":
                self._channel.worked()
        if flight.path == TERMINAL and verdict.blame:
            self._not_again(flight.keys)
            if not verdict.certain:  # a notice worked as it should
                self._typing_rests_until = now + REST_MS
        if flight.name:
            self._box_of(flight).forget(flight.name)
        self._parser.unwatch(flight.nonce)
        if flight in self._flights:
            self._flights.remove(flight)

    def _not_again(self, keys: Iterable[str]) -> None:
        self._typed.update(dict.fromkeys(keys))
        while len(self._typed) > TYPED_KEPT:
            del self._typed[next(iter(self._typed))]

    def _box_of(self, flight: Flight) -> Box:
        return self._box if flight.path == TERMINAL and self._box is not None else self._maildir.box

    async def _back(self, keys: Sequence[str], certain: bool) -> None:
        if keys:
            await self._call(lambda link, now: link.inbox.unshown(keys, certain))

    async def _take_back_late(self) -> None:
        """Withdraw what may not be shown any more; the link then tells that it has expired."""
        if any(f.path in ("hook", TERMINAL) and f.until for f in self._flights):
            await self._take_back(late=await self._call(lambda _link, at: at))

    async def _take_back(
        self, notes_only: bool = False, late: int = 0, paths: Sequence[str] = ("hook", TERMINAL)
    ) -> None:
        """Withdraw what no hook or supervisor has claimed; nobody has seen that. With `late`, what was to be shown by
        then.
        """
        for flight in list(self._flights):
            if flight.path not in paths or (notes_only and flight.task) or (late and not 0 < flight.until <= late):
                continue
            box = self._box_of(flight)
            waits = box.fate(flight.name) is Fate.WAITING
            if waits and box.withdraw(flight.name):
                await self._end(flight, Verdict("back", certain=True), self._now())

    # -- words -----------------------------------------------------------------------------------------------------

    async def _tell_activity(self) -> None:
        """What peers see of the session: busy, idle or waiting, and how it can be woken."""
        state = ""
        if self._info is not None and self._info.status:
            state = "idle" if self._info.idle else self._info.status
        elif (doing := self._maildir.activity()) is not None:
            state = {"asking": "waiting", "ended": ""}.get(doing.doing, doing.doing)
        if state:
            await self._call(lambda link, now: link.status(state))
        path, status = self.path(), self._loop.status()
        told = (path, status.id, status.term)
        if told != self._told and status.connected:
            await self._call(lambda link, now: link.submit(now, "status", {"wake": path}))
            self._told = told

    async def _tell_line(self) -> None:
        """The status line's file: who we are, how many others live, how many messages no model has seen."""
        now, status = self._now(), self._loop.status()
        who = (status.id, status.term)
        if status.connected and (who != self._counted or now - self._peers_at >= PEERS_MS):
            self._counted, self._peers_at = who, now
            answer = await asyncio.to_thread(self._loop.ask, "peers", {}, 2.0)
            if answer.code < 300:
                rows = [row for row, _ in answer.rows]
                living = [r for r in rows if r.get("presence") == "open" and r.get("kind") == "session"]
                self._peers = len([row for row in living if row.get("id") != status.id])
                self._held = next((int(row.get("held", 0)) for row in rows if row.get("id") == status.id), 0)
        unread = await self._call(lambda link, _now: len(link.inbox.waiting()) + link.inbox.more)
        unread += sum(len(flight.keys) for flight in self._flights)
        off = status.refused is not None or status.parked is not None
        if name := status.name or (self._session.profile.name if off else ""):
            self._status.write(name, self._peers, unread, self._held, off)

    async def _call(self, fn: Callable[[Link, int], T]) -> T:
        while True:
            try:
                return await asyncio.wrap_future(self._loop.call(fn))
            except StoreError as error:
                log.warning("the ledger cannot be written yet: %s", error)
                await asyncio.sleep(BUSY_S * 5)

    @staticmethod
    def _now() -> int:
        return time.monotonic_ns() // 1_000_000
