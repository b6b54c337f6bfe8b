"""The broker's shell: sockets, disk, clock and signals around the pure Broker.

One thread, one poller. Drain what came in, commit what came of it, then speak, then publish; sleep until the next
deadline. It must not know a rule of the protocol: it carries effects out, in their order.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import secrets
import time
from collections.abc import Callable

import zmq

from bus import joined, listening, sockets, trust, wire
from bus.broker import Broker
from bus.chores import Chores
from bus.config import Config, Home
from bus.core import Settings, Who
from bus.daemon import Record, publish, refuse_a_second, spawned, stopped, unpublish
from bus.discovery import announced
from bus.effects import Admit, Batch, Cut, Greet, PutMeta, Shut
from bus.errors import BusError, LocalError, StoreError
from bus.listening import Door
from bus.private import private_dir
from bus.processes import FileLock, start_time
from bus.publishing import Publisher
from bus.reading import Reader
from bus.retention import DAY_MS, STEADY_MS, reach
from bus.speaking import Voice
from bus.store import Store
from bus.surroundings import Clock, Wake, be_private_and_wide, log_to_stderr

log = logging.getLogger("talkbus.broker")

MESSAGES_A_TURN = 128  # one commit pays for all of them
FRAMES_MAX = 6
MESSAGE_MAX = 1 << 20  # octets
STOP_LINGER_MS = 300
SLEEP_MAX_MS = 60_000  # a deadline is of the wall clock, and that may be set
REBIND_S = 0.5  # after which it is tried again to bind the port of activity
PROBE_S = (0.25, 5.0)  # how soon a full disk is tried again: doubling, up to the latter
PRUNE_ORDER_S = 3600.0

_NOW = int(zmq.NOBLOCK)  # a number is quicker than the library's enum


def serve(home: Home, config: Config, *, version: str = "", ready: Callable[[Record], None] | None = None) -> int:
    """Be the broker of `home` until SIGTERM or SIGINT; returns the exit code of the process.

    0 after a stop in good order; for one that was started by itself also when another broker holds the home, or it
    was stopped on purpose. 1 when it cannot serve, with the reason as one line in the log. `ready` is told the record
    when it is published.
    """
    log_to_stderr(config.log_level)
    try:
        private_dir(home.state)
        lock = FileLock(home.lock)
        if not lock.acquire():
            if spawned():
                return 0
            refuse_a_second(home)
            raise LocalError("the bus runs already, or ends just now (talkbus status; try again)")
        try:
            if spawned() and stopped(home):
                return 0
            hub = joined.joined(home)
            if hub is not None:
                # Two buses on one machine would be one too many: half of its sessions would not find the other half.
                raise LocalError(f"this machine uses the hub at {hub.where} (talkbus lan leave gives it its own bus)")
            return _serve(home, config, version, ready)
        finally:
            lock.release()
    except BusError as error:
        log.error("! %s", error)
        return 1
    except Exception:
        log.exception("! the broker ends for a fault of its own")
        return 1


def _serve(home: Home, config: Config, version: str, ready: Callable[[Record], None] | None) -> int:
    with contextlib.ExitStack() as stack:
        be_private_and_wide()
        wake = stack.enter_context(Wake())
        private_dir(home.runtime)
        keys = trust.ensure_keys(home)
        roll = trust.load_roll(home, keys.public, config.label)
        store = Store.open(home.bus_db)
        stack.callback(store.close)
        ctx: sockets.Context = zmq.Context()
        held: list[sockets.Socket | sockets.Monitor | None] = []
        stack.callback(lambda: sockets.close_all(ctx, held, STOP_LINGER_MS))
        door = Door(ctx, keys, roll, config.bind)
        held += [door.zap, door.router, door.xpub]
        door.open(config.port, listening.last_port(home))
        door.self_test()
        reader = Reader(ctx, store)
        stack.callback(reader.close)
        shell = Shell(home, door, store, reader, config, wake)
        listening.remember_port(home, door.port)
        router, xpub = door.endpoints()
        record = Record(os.getpid(), start_time(os.getpid()) or "", router, xpub, keys.public, version)
        publish(home, record)
        stack.callback(unpublish, home, record)
        log.info("%% serving on %s, activity on %s", router, xpub)
        if config.lan_announce:
            stack.enter_context(announced(door.roll, door.port))
        if ready is not None:
            ready(record)
        shell.run()
        log.info("% stopped")
    return 0


class Shell:
    """The loop. `run()` returns when `wake` was told to stop."""

    def __init__(self, home: Home, door: Door, store: Store, reader: Reader, config: Config, wake: Wake) -> None:
        self._home, self._door, self._store, self._reader, self._wake = home, door, store, reader, wake
        self._router = door.router
        self._clock = Clock()
        settings = Settings(**config.limits(), listens=f"{config.bind}:{door.port}")
        self.broker = Broker(store.load(), self._clock(), settings, door.roll)
        self._voice = Voice(door.router, self.broker, store, reader, self._clock)
        self._publisher = Publisher(door.xpub, secrets.token_hex(8))
        self._chores = Chores(store, reader, time.monotonic, self._pruned_to)
        self._prune_to = 0
        self._keep_ms = config.prune_days * DAY_MS
        self._order_at = time.monotonic()
        self._probe_at = 0.0
        self._probe_wait = PROBE_S[0]
        self._debug = log.isEnabledFor(logging.DEBUG)
        self._poller = zmq.Poller()
        for source in (door.router, door.zap, door.xpub, reader.socket, wake.fileno()):
            self._poller.register(source, zmq.POLLIN)
        # What was loaded stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()

    def run(self) -> None:
        """Serve until told to stop; what was committed by then is also sent. StoreError when the disk is broken."""
        self.broker.announce("bus.start")
        self._carry_out()
        while not self._wake.stopping:
            self._turn()
        self.broker.announce("bus.stop")
        self._carry_out()

    def _turn(self) -> None:
        ready = dict(self._poller.poll(self._timeout()))
        if self._door.zap in ready:
            self._door.answer_zap()
            self.broker.core.counters["door refused"] = self._door.refused
        if self._door.xpub in ready:
            self._publisher.read_subscriptions()
        if self._router in ready:
            self._drain()
        if self._door.enrolment in ready:
            self._hear_newcomers()
        if self._reader.socket in ready:
            self._voice.pass_on()
        if self._wake.fileno() in ready:
            self._wake.drain()
        self.broker.tick(self._clock())
        self._carry_out()
        self._between()

    def _timeout(self) -> int:
        """How long to sleep, in ms."""
        mono = time.monotonic()
        waits = [float(SLEEP_MAX_MS)]
        if self._door.events_closed:
            waits.append(REBIND_S * 1000)
        deadline = self.broker.deadline()
        if deadline is not None:
            waits.append(deadline - self._clock())
        if self.broker.core.writable:
            due = self._chores.due()
            waits += [(at - mono) * 1000 for at in (self._order_at, due) if at is not None]
        else:  # what is owed waits for the disk, too
            waits.append((self._probe_at - mono) * 1000)
        # Rounded up: a sleep that ends just before the deadline would be followed by others of 0 ms.
        return max(0, int(min(waits) + 0.999))

    # -- in --------------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Feed what came in to the broker, at most MESSAGES_A_TURN."""
        now = self._clock()
        recv, knows, receive = self._router.recv, self.broker.knows, self.broker.receive
        for _ in range(MESSAGES_A_TURN):
            try:
                route = recv(_NOW)
            except zmq.Again:
                return
            # A Frame knows by itself whether more follow, which is quicker than to ask the socket.
            frame: zmq.Frame = recv(copy=False)
            who = None if knows(route) else self._who(frame)
            frames = [frame.bytes]
            size = len(frames[0])
            while frame.more:
                frame = recv(copy=False)
                # What is beyond the limits is not kept; what is left is malformed for certain.
                if len(frames) < FRAMES_MAX and size <= MESSAGE_MAX:
                    part = frame.bytes
                    frames.append(part)
                    size += len(part)
            if self._debug:
                log.debug("< %s %d frames, %d octets", route.hex(), len(frames), size)
            receive(now, route, who, frames)

    def _who(self, frame: zmq.Frame) -> Who | None:
        """Whose key the connection of this frame has, as the transport says; None for one that is not on the roll."""
        public = self._key(frame)
        principal = self._door.roll.find(public) if public else None
        return Who(public, principal.label, principal.role) if public and principal else None

    def _key(self, frame: zmq.Frame) -> str | None:
        try:
            return str(frame.get("User-Id"))
        except zmq.ZMQError:
            return None

    def _hear_newcomers(self) -> None:
        """Feed what came in at the enrolment port to the broker."""
        now = self._clock()
        for route, frames in self._door.knocks():
            who = self._key(frames[0])
            if who is not None:
                self.broker.enroll(now, route, who, [frame.bytes for frame in frames])

    # -- out -------------------------------------------------------------------------------------------------------

    def _carry_out(self) -> None:
        """Everything the broker wants done, until nothing is left: commit, then speak, then publish."""
        while True:
            batch = self.broker.take()
            if batch.writes or batch.roll is not None:
                if not self._commit(batch):
                    continue
            elif not batch.sends and not batch.events and not batch.doors:
                return
            for door in batch.doors:
                self._at_the_door(door)
            if batch.sends:
                self._voice.speak(batch.sends)
            if batch.events:
                self._publisher.publish(batch.events)

    def _commit(self, batch: Batch) -> bool:
        """False when the disk is full; then the broker has gone back to what the disk knows."""
        begun = time.monotonic()
        try:
            if batch.roll is not None:
                # First: a machine that was taken off must be off before anybody is told so.
                trust.save_roll(self._home, batch.roll)
                self._door.roll, batch.former = batch.roll, None
            found = self._store.apply(batch.writes)
        except StoreError as error:
            if not error.full:
                raise
            log.warning("! %s", error)
            self.broker.undo(self._clock(), batch, self._store.load())
            self._probe_at = begun + self._probe_wait
            return False
        if self._debug:
            log.debug("= %d writes in %.2f ms", len(batch.writes), (time.monotonic() - begun) * 1000)
        self._probe_wait = PROBE_S[0]
        self._chores.noticed(batch.writes)
        self.broker.committed(batch, found)
        return True

    def _at_the_door(self, effect: Admit | Shut | Greet | Cut) -> None:
        """What the broker wants done about who may come in."""
        if isinstance(effect, Admit):
            port, problem = self._door.admit()
            if self._door.enrolment is not None:
                self._poller.register(self._door.enrolment, zmq.POLLIN)
            log.info("%% an invitation is open, enrolment on port %d", port)
            self.broker.enrolling(port, problem)
        elif isinstance(effect, Shut):
            if self._door.enrolment is not None:
                self._poller.unregister(self._door.enrolment)
            self._door.shut()
            log.info("% no invitation is open")
        elif isinstance(effect, Greet):
            self._door.greet(effect.route, wire.encode(effect.command))
        else:
            self._door.cut()

    # -- between batches -------------------------------------------------------------------------------------------

    def _between(self) -> None:
        """Chores, and the disk tried again when it was full."""
        mono = time.monotonic()
        if self._door.events_closed:
            self._door.cut()
        if not self.broker.core.writable:
            if self._probe_at <= mono:
                self._probe(mono)
            return
        if self._order_at <= mono:
            self._order_at = mono + PRUNE_ORDER_S
            self._order_prune()
        due = self._chores.due()
        if due is not None and due <= mono:
            self._chores.work()

    def _probe(self, mono: float) -> None:
        """Does the disk take a write again? SQLite writes no page that stays as it was, so the value is a new one."""
        try:
            self._store.apply([PutMeta("probed", time.time_ns())])
        except StoreError as error:
            if not error.full:
                raise
            self._probe_wait = min(PROBE_S[1], self._probe_wait * 2)
            self._probe_at = mono + self._probe_wait
            return
        # What is left of the room may be little, so the wait is not set back before a whole batch was written.
        self._probe_wait = min(PROBE_S[1], self._probe_wait * 2)
        log.info("% the disk takes writes again")
        self.broker.resume()
        self.broker.announce("bus.full", over=True)
        self._carry_out()

    def _pruned_to(self) -> int:
        """How far the orders are carried out. One that lies ahead is of a clock that was wrong."""
        ordered = self.broker.world.prune_before
        return ordered if ordered <= self._clock() else self._prune_to

    def _order_prune(self) -> None:
        """What a person configured is an order like any other, only nobody waits for its reply."""
        now, core, world = self._clock(), self.broker.core, self.broker.world
        before, doubt = reach(now, self._keep_ms, self._store.newest(now - STEADY_MS), world.prune_before)
        if doubt and doubt != core.prune_doubt:
            log.warning("! %s", doubt)
        core.prune_doubt, self._prune_to = doubt, before
        if world.prune_before > now:
            self._chores.prune()
        if before - world.prune_before < DAY_MS // 24:
            return
        write = PutMeta("prune_before", before)
        try:
            self._store.apply([write])
        except StoreError as error:
            if not error.full:
                raise
            return  # the next batch will find out, and deal with it
        world.prune_before = before
        self._chores.noticed([write])
