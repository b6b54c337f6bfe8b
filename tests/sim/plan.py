"""One run: a schedule drawn from a seed, the faults, the draining, the last look."""

from __future__ import annotations

import random
from typing import Any

from agent.inbox import Letter
from agent.outbox import Outbox
from bus import deliveries, policy
from tests.pair import Bench, Conn
from tests.sim.app import AppSeat
from tests.sim.faults import Faults, SimHub
from tests.sim.last_look import idle, last_look, no_task_hidden
from tests.sim.person import decision, is_person, last_word
from tests.sim.truth import ACKED, Truth, mark

CHECK_EVERY = 16
DRAIN_MS = 240_000
CRASHES_OF_BROKER = ("before", "after", "mid")
CRASHES_OF_AGENT = ("before", "after", "sent")
KEYS = ("build", "plan", "lock")


class Run:
    """A seeded run. `faults` may be given to direct it; `hub` and `seat` may be a mutant's."""

    def __init__(
        self,
        seed: int,
        *,
        truth: Truth | None = None,
        hub: type[SimHub] = SimHub,
        seat: type[AppSeat] = AppSeat,
        check_every: int = CHECK_EVERY,
    ) -> None:
        self.rng = random.Random(seed)
        self.faults = Faults.draw(self.rng)
        self.truth = truth or Truth()
        self.seat_kind = seat
        self.bench = Bench(
            seed=seed,
            settings=self.faults.settings,
            watch=self.truth,
            hub=hub,
            check_every=check_every,
            keep_news=False,
        )
        assert isinstance(self.bench.hub, SimHub)
        self.hub = self.bench.hub
        self.hub.backups = []
        self.truth.hub = self.hub
        self.more = random.Random(f"answers {seed}")  # of its own, so that the rest of a seed stays as it was
        self.made = 0
        self.calm = False
        self.copied = False
        hosts = ("alpha", "beta") if self.rng.random() < 0.5 else ("alpha",)
        for i in range(self.rng.randint(2, 4)):
            self.add(f"s{i}", host=hosts[i % len(hosts)])
        if self.rng.random() < 0.5:
            self.add("s0", mode="send")
        self.hosts = hosts
        self.echoes = [self.add("echo", mode="send", host=host) for host in hosts]
        if len(hosts) > 1:
            for host in hosts:
                self.add("person", mode="send", host=host, meta={"kind": "human"})
            if self.rng.random() < 0.5:
                self._pair(*hosts)

    def _pair(self, one: str, other: str) -> None:
        """The two machines were paired before anything else."""
        policy.paired(self.hub.alive.core, f"key of {one}", f"key of {other}")
        self.hub.flush()
        for a, b in ((one, other), (other, one)):
            self.truth.history.word.rules[f"key of {a}", f"key of {b}", "", ""] = "accept"

    def add(
        self,
        name: str,
        mode: str = "hold",
        host: str = "alpha",
        outbox: Outbox | None = None,
        meta: dict[str, Any] | None = None,
    ) -> AppSeat:
        """One more agent."""
        self.made += 1
        inst = f"{'cli' if mode == 'send' else 'i'}{self.made}"
        seat = self.bench.seat(name, mode=mode, inst=inst, host=host, kind=self.seat_kind, outbox=outbox, meta=meta)
        assert isinstance(seat, AppSeat)
        seat.reads_transcript = self.rng.random() < 0.5
        seat.patient = self.faults.flood
        seat.link.book.name = seat.link.book.name or ""
        return seat

    @property
    def seats(self) -> list[AppSeat]:
        return [s for s in self.bench.seats if isinstance(s, AppSeat)]

    def go(self) -> None:
        """The whole run; raises Violation, or whatever the code under test raises."""
        for _ in range(self.rng.randint(40, 80)):
            self.act()
            for _ in range(self.rng.randint(0, 6)):
                self.step()
        self.drain()
        last_look(self.truth, self.seats)
        if self.truth.only:
            return
        self.hub.check()
        for seat in self.seats:
            seat.check()

    # -- single steps ----------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Move something, or let time pass; with luck something breaks."""
        rng, faults = self.rng, self.faults
        if rng.random() < faults.cut:
            self._cut()
        if rng.random() < faults.drop:
            self._drop()
        if rng.random() < faults.full:
            self.hub.full = True
        if not self.hub.up and rng.random() < 0.2:
            self.hub.start()
        if self.hub.full and rng.random() < 0.08:
            self._room()
        chance = rng.random()
        if chance < 0.4 and self._broker_turn():
            return
        if chance < 0.9 and self._agent_turn():
            return
        self._time()

    def _broker_turn(self) -> bool:
        rng = self.rng
        conns = [c for c in self.bench.conns.values() if c.up]
        if not conns or not self.hub.up:
            return False
        for conn in rng.sample(conns, rng.randint(1, len(conns))):
            self.hub.feed(conn, rng.randint(1, self.faults.batch))
            self._sweep(conn)
        crash = rng.choice(CRASHES_OF_BROKER) if rng.random() < self.faults.crash_broker else ""
        if crash:
            self.truth.note(f"the broker crashes ({crash} commit)")
        self.hub.flush(crash)
        return True

    def _sweep(self, conn: Conn) -> None:
        if not conn.up and conn.dead and conn.seat.conn is not conn:
            self.bench.conns.pop(conn.route, None)

    def _agent_turn(self) -> bool:
        rng = self.rng
        seats = [s for s in self.seats if s.conn is not None and s.conn.down]
        if not seats:
            return False
        seat = rng.choice(seats)
        seat.take(rng.randint(1, self.faults.batch))
        seat.flush(self._agent_crash(seat))
        return True

    def _agent_crash(self, seat: AppSeat) -> str:
        if self.calm or self.rng.random() >= self.faults.crash_agent:
            return ""
        crash = self.rng.choice(CRASHES_OF_AGENT)
        self.truth.note(f"{seat.label} crashes ({crash} commit)")
        return crash

    def _time(self) -> None:
        bench, rng = self.bench, self.rng
        due = bench.deadline()
        if due is not None and due > bench.now and rng.random() < 0.6:
            bench.now = due
        else:
            bench.now += rng.choice((1, 20, 20, 150, 150, 600, 600, 2_500, 16_000 if rng.random() < 0.2 else 700))
        self._due()

    def _due(self) -> None:
        bench = self.bench
        broker = self.hub.broker
        due = broker.deadline() if broker is not None else None
        if due is not None and due <= bench.now:
            self.hub.flush()
        for seat in self.seats:
            due = seat.link.deadline()
            if due is not None and due <= bench.now:
                seat.flush(self._agent_crash(seat))

    def _cut(self) -> None:
        conns = [s.conn for s in self.seats if s.conn is not None and not s.conn.dead]
        if conns:
            conn = self.rng.choice(conns)
            self.truth.note(f"{conn.seat.label} is cut off")
            self.bench.cut(conn, self.rng.randrange(len(conn.down) + 1), self.rng.random() < 0.5)

    def _drop(self) -> None:
        """One frame is lost, on its way up or down."""
        queues = [q for c in self.bench.conns.values() for q in (c.up, c.down) if q]
        if queues:
            queue = self.rng.choice(queues)
            at = self.rng.randrange(len(queue))
            if not isinstance(queue[at][0], str):
                self.truth.note(f"a frame is lost: {type(queue[at][0]).__name__}")
                self.truth.dropped_frames += 1
                del queue[at]

    def _room(self) -> None:
        """The disk takes writes again, or it looked so."""
        if self.rng.random() < 0.8:
            self.hub.full = False
        if self.hub.up:
            self.truth.note(f"the broker tries the disk (full: {self.hub.full})")
            self.hub.alive.resume()

    # -- what people do --------------------------------------------------------------------------------------------

    def act(self) -> None:
        """Somebody does something."""
        rng = self.rng
        seat = rng.choice(self.seats)
        chance = rng.random()
        if seat in self.echoes:
            self._clone(seat)
        elif is_person(seat) and chance < 0.9:
            self._submit(seat, *decision(rng, self.hub, seat, self.hosts))
        elif chance < 0.38:
            self._send(seat)
        elif chance < 0.48:
            self._set(seat)
        elif chance < 0.78:
            self._look(seat)
        elif chance < 0.84:
            self._receipt(seat)
        elif chance < 0.86:
            seat.link.ask(rng.choice(("whoami", "peers")), {})
            seat.flush()
        elif chance < 0.9:
            self._from_query(seat)
        elif chance < 0.92:
            seat.link.bye(rng.random() < 0.5)
            seat.flush()
        elif chance < 0.92 + self.faults.takeover:
            self._names(seat)
        else:
            self._databases(seat)
        self._parked(seat)

    def _submit(
        self, seat: AppSeat, op: str, args: dict[str, Any], body: bytes = b"", ident: str = "", about: str = ""
    ) -> None:
        """`about` is the checker's name of the message this speaks of."""
        self.truth.note(f"{seat.label} wants {op} {args}")
        row, ident = seat.link.submit(self.bench.now, op, args, body, ident)
        if about:
            self.truth.meant[mark(ident, body)] = (seat.mailbox, about.partition("/")[2])
        if args.get("ask"):
            seat.ask(ident, row)
        seat.flush(self._agent_crash(seat))

    def _flood(self, seat: AppSeat, name: str) -> None:
        """Notes, more than a window holds."""
        for _ in range(self.rng.randint(60, 75)):
            self._submit(seat, "send", {"to": [name], "kind": "note"}, f"note {self.rng.random()}".encode())

    def _clone(self, seat: AppSeat) -> None:
        """Somebody uses the ids of others again, for messages to the same recipients: each id once in this mailbox."""
        known = [row for row in self.truth.rows.values() if row.op == "send" and row.id[:16] not in seat.cloned]
        if known:
            row = self.rng.choice(known[-12:])
            seat.cloned.add(row.id[:16])
            to = row.args["to"] if self.rng.random() < 0.8 else [f"s{self.rng.randrange(5)}"]
            self._submit(seat, "send", {"to": to}, f"clone {self.rng.random()}".encode(), row.id[:16])

    def _send(self, seat: AppSeat) -> None:
        rng = self.rng
        if self.faults.flood and rng.random() < 0.06:
            self._flood(seat, f"s{rng.randrange(4)}")
        for _ in range(rng.choice((1, 1, 1, 1, 1, 3, 7))):
            names = [f"s{rng.randrange(5)}" for _ in range(rng.choice((1, 1, 1, 2, 3)))]
            args: dict[str, Any] = {"to": ["*"] if rng.random() < 0.08 else sorted(set(names))}
            if rng.random() < 0.3:
                args["kind"] = "note"
            if rng.random() < 0.25:
                args["ttl"] = rng.choice((300, 3_000, 20_000))
            about = self._read(seat) if rng.random() < 0.15 else ""
            if about:
                msg = self.truth.letters[about]
                args["re"], args["to"] = msg.id, [f"{msg.from_}@{msg.host}"]
            else:
                self._about_questions(seat, args)
            self._submit(seat, "send", args, f"text {rng.random()}".encode(), about=about)

    def _read(self, seat: AppSeat) -> str:
        """The checker's name of something this seat was shown in the mailbox it has; "" when there is nothing."""
        names = [
            name
            for (ledger, name), sight in self.truth.sights.items()
            if ledger == seat.ledger and sight.proven and seat.origin.get(name) == seat.mailbox
        ]
        return self.rng.choice(names) if names else ""

    def _about_questions(self, seat: AppSeat, args: dict[str, Any]) -> None:
        """It may ask, answer a question by what was shown, or say that it replies to one, true or not."""
        more, now = self.more, self.bench.now
        chance, shown = more.random(), seat.link.inbox.questions.shown(now, now)
        if chance < 0.3 and len(args["to"]) == 1 and args["to"] != ["*"]:
            args["ask"] = more.choice((300, 3_000, 20_000))
        elif chance < 0.6 and shown and seat.link.profile.mailbox:
            args["to"] = [more.choice(shown).fid]
            args["answers"] = [[x.fid, x.id] for x in shown]
        elif chance < 0.8 and self.truth.put:
            asker, args["re"], _ = more.choice(sorted(self.truth.put))
            if more.random() < 0.7:
                args["to"] = [asker]

    def _set(self, seat: AppSeat) -> None:
        rng = self.rng
        args: dict[str, Any] = {"key": rng.choice(KEYS)}
        if rng.random() < 0.5:
            entry = self.hub.alive.world.state.get(args["key"]) if self.hub.up else None
            args["ver"] = entry.ver if entry and rng.random() < 0.7 else rng.choice((0, 3))
        if rng.random() < 0.15:
            self._submit(seat, "state.delete", args)
            return
        if rng.random() < 0.2:
            args["ttl"] = rng.choice((500, 5_000))
        self._submit(seat, "state.set", args, b"1")

    def _look(self, seat: AppSeat) -> None:
        """Take letters, show them, prove it: each may be late, or never happen."""
        rng = self.rng
        if rng.random() < 0.3:
            seat.look_back()
        waiting = seat.choice() if rng.random() < 0.9 else seat.link.inbox.waiting()
        if waiting and rng.random() < 0.8:
            ordered = rng.random() < 0.8
            count = rng.randint(1, len(waiting))
            choose: list[Letter] = waiting[:count] if ordered else rng.sample(waiting, count)
            if not ordered:
                seat.known.update(x.key for x in waiting)
            seat.get(choose, self._agent_crash(seat), ordered)
        if not seat.hands or rng.random() < 0.15:
            return
        keys = [k for k in seat.hands if rng.random() < 0.8]
        chance = rng.random()
        if chance < 0.1:
            certain = all(not seat.hands[k].shown for k in keys) and rng.random() < 0.6
            seat.put_back(keys, certain)
            return
        seat.show(keys)
        if self.faults.database == "agent restored" and seat is self.seats[0] and rng.random() < 0.2:
            self._restore(seat)  # nothing of what was shown was reported yet
            return
        if chance < 0.2:
            crash = self._agent_crash(seat)
            if crash:
                seat.flush(crash)
        elif chance < 0.9:
            seat.prove([k for k in keys if seat.hands[k].shown], self._agent_crash(seat))

    def _receipt(self, seat: AppSeat) -> None:
        """What was shown is acknowledged: exactly, or by an id that others may use too; or somebody else's mail is."""
        rng = self.rng
        if rng.random() < 0.2 and self.truth.letters:
            msg = rng.choice(list(self.truth.letters.values()))
            status = rng.choice(("offered", "injected", "acked", "failed"))
            self._submit(seat, "receipt", {"moved": [[status, "lie", 0, [msg.id]]], "of": ["00000000"]})
        if name := self._read(seat):
            msg = self.truth.letters[name]
            args = rng.choice(
                (
                    {"moved": [["acked", ACKED, 10, [f"{msg.host}/{msg.id}"]]], "of": [msg.fid]},
                    {"moved": [["acked", ACKED, 10, [f"{msg.host}/{msg.id}"]]]},
                    {"moved": [["acked", ACKED, 10, [msg.id]]]},
                )
            )
            self._submit(seat, "receipt", args, about=name)

    def _from_query(self, seat: AppSeat) -> None:
        """A command line shows what waits for a mailbox that nobody holds, and marks it."""
        if seat.profile.mode != "send" or not self.hub.up or seat.state != "open":
            return
        for mailbox in self.hub.alive.world.mailboxes.values():
            if mailbox.name == seat.profile.name and mailbox.key == seat.who.key:
                boxes, some = self.hub.alive.world.mailboxes, list(mailbox.pending.values())[:5]
                read = [mark(p.msg, self.hub.store.message(p.sender, p.msg).body) for p in some]
                if self.hub.alive.core.holder(mailbox) is None:
                    waking, rest = deliveries.maybe_seen(self.hub.alive.core, mailbox)
                    for p, name in zip(some, read, strict=True):
                        again = p.status == "offered" or p.n <= (waking if p.wakes else rest)
                        self.truth.told_by_query(mailbox.id, name, again)
                self.truth.settling.setdefault(seat.ledger, {}).update(dict.fromkeys(read))
                idents = [f"{boxes[p.sender].host}/{p.msg}" for p in some]
                self._submit(seat, "settle", {"ids": idents, "proof": "printed", "of": [p.sender for p in some]})

    def _names(self, seat: AppSeat) -> None:
        rng = self.rng
        name = f"s{rng.randrange(5)}"
        if rng.random() < 0.4:
            self._submit(seat, "rename", {"name": name})
            return
        args: dict[str, Any] = {"name": name}
        if self.hub.up:
            found = [m for m in self.hub.alive.world.mailboxes.values() if m.name == name]
            if found:
                args["term"] = found[0].term
        if rng.random() < 0.2:
            args["fresh"] = True
        self._submit(seat, "take", args)

    def _parked(self, seat: AppSeat) -> None:
        """Who was parked takes the name back, or another."""
        rng = self.rng
        if seat.state == "parked" and rng.random() < 0.3:
            parked = seat.parked
            if parked is not None and parked.term and rng.random() < 0.4:
                self.truth.note(f"{seat.label} takes back {seat.profile.name}")
                seat.link.knock(self.bench.now, take=parked.term)
            else:
                self._rename_parked(seat)
            seat.flush()

    def _rename_parked(self, seat: AppSeat) -> None:
        self.made += 1
        name = f"p{self.made}" if self.rng.random() < 0.5 or self.calm else f"s{self.rng.randrange(5)}"
        self.truth.note(f"{seat.label} knocks as {name}")
        seat.link.knock(self.bench.now, name)

    def _databases(self, seat: AppSeat) -> None:
        rng, kind = self.rng, self.faults.database
        if kind in ("broker restored", "broker deleted"):
            if rng.random() < 0.5:
                self.hub.save()
            elif self.hub.backups or kind == "broker deleted":
                self.truth.note(f"the broker's database is {kind.split()[1]}")
                self.hub.go_back(rng.choice(self.hub.backups) if kind == "broker restored" else None)
        elif kind == "agent restored" and seat is self.seats[0]:
            if rng.random() < 0.5:
                seat.save()
            else:
                self._restore(seat)
        elif kind == "agent copied" and not self.copied and seat is self.seats[0]:
            self._copy(seat)

    def _restore(self, seat: AppSeat) -> None:
        if seat.saves:
            self.truth.note(f"{seat.label}'s database is restored")
            seat.restore(self.rng.choice(seat.saves[-2:]))
        else:
            seat.save()

    def _copy(self, seat: AppSeat) -> None:
        """The same database runs a second time, under another name."""
        self.copied = True
        self.made += 1
        name = f"c{self.made}"
        self.truth.note(f"{seat.label}'s database is copied for {name}")
        twin = self.add(name, host=seat.who.host, outbox=Outbox.from_dump(seat.outbox.dump()))
        twin.ids, twin.names, twin.last_told = dict(seat.ids), dict(seat.names), twin.link.book.first - 1
        twin.ledgers = [*seat.ledgers, twin.ledger]

    # -- the end ---------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Nothing breaks any more: everything must come to an end within bounded time."""
        self.calm = True
        self.truth.note("the faults stop")
        bench, hub = self.bench, self.hub
        hub.full = False
        if hub.up:
            hub.alive.resume()
        else:
            hub.start()
        if self.faults.flood:
            self._flooded()
        end, rest = bench.now + DRAIN_MS, 0
        while rest < 3:
            bench.run()
            moved = False
            for seat in self.seats:
                moved = seat.see_all() or moved
                if is_person(seat) and seat.state == "open" and not seat.link.book.unsettled:
                    word = last_word(self.hub, seat)
                    if word is not None:
                        self._submit(seat, *word)
                        moved = True
                if seat.state == "parked":
                    self._rename_parked(seat)
                    seat.flush()
                    moved = True
            if moved:
                continue
            rest = rest + 1 if idle(self.seats) else 0
            if rest == 2 and any(seat.patient for seat in self.seats):
                no_task_hidden(self.truth, self.seats)
                for seat in self.seats:
                    seat.patient = False
                rest = 0
            due = bench.deadline()
            if bench.now > end:
                self.truth.fail("stuck", "; ".join(_standing(s) for s in self.seats))
                return
            bench.now = max(bench.now + 1, due or 0) if rest == 0 else bench.now + 6_000

    def _flooded(self) -> None:
        """A task comes behind more notes than a window holds."""
        for seat in self.seats:
            if seat.profile.mode == "hold" and seat.state == "open":
                self._flood(seat, seat.profile.name)
                self._submit(seat, "send", {"to": [seat.profile.name]}, b"the task behind them")


def _standing(seat: AppSeat) -> str:
    book = seat.link.book
    return (
        f"{seat.label} is {seat.state}, rows {book.first}..{book.last}, waiting {len(seat.link.inbox.waiting())}, "
        f"hands {len(seat.hands)}"
    )
