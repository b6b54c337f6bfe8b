"""Schedules for what seeds find too rarely, or for what is healed so soon that only a count shows it."""

from __future__ import annotations

from typing import Any

from agent.effects import Parked
from agent.outbox import Outbox
from bus import deliveries, wire
from tests.pair import Bench, Conn, Seat, Watch

VOLLEY = wire.OPEN_REQUESTS


class Counting(Watch):
    """Counts what links send."""

    def __init__(self) -> None:
        self.sent: dict[str, int] = {}
        self.resyncs = 0

    def up(self, seat: Seat, conn: Conn, command: object) -> None:
        name = type(command).__name__
        self.sent[name] = self.sent.get(name, 0) + 1
        self.resyncs += isinstance(command, wire.Ack) and command.resync


def opened(bench: Bench, *names: str) -> list[Seat]:
    """Seats with these names, all welcomed."""
    seats = [bench.seat(name) for name in names]
    bench.run(lambda: all(s.state == "open" for s in seats))
    return seats


def lost_request() -> None:
    """The only request in flight is lost; nothing behind it shows that."""
    bench = Bench()
    (seat,) = opened(bench, "api")
    row = seat.submit("status", {"summary": "one"})
    assert seat.conn is not None
    seat.conn.up.clear()
    bench.advance(10_000)
    assert row in seat.results, "a lost request was never sent again"


def lost_reply() -> None:
    """The only reply in flight is lost."""
    bench = Bench()
    (seat,) = opened(bench, "api")
    row = seat.submit("status", {"summary": "one"})
    assert seat.conn is not None
    bench.hub.feed(seat.conn)
    bench.hub.flush()
    seat.conn.down.clear()
    bench.advance(10_000)
    assert row in seat.results, "a lost reply was never asked for"


def lost_ack() -> None:
    """The only ACK in flight is lost."""
    bench = Bench()
    (seat,) = opened(bench, "api")
    seat.done("send", {"to": ["api"]}, b"one")
    bench.run()
    assert seat.read() == ["one"]
    assert seat.conn is not None
    seat.conn.up = type(seat.conn.up)(item for item in seat.conn.up if not isinstance(item[0], wire.Ack))
    bench.advance(10_000)
    (mailbox,) = bench.hub.alive.world.mailboxes.values()
    assert not mailbox.pending, "a message whose ACK was lost was never settled"


def lost_message() -> None:
    """The only message in flight is lost."""
    bench = Bench()
    (seat,) = opened(bench, "api")
    seat.submit("send", {"to": ["api"]}, b"one")
    assert seat.conn is not None
    bench.hub.feed(seat.conn)
    bench.hub.flush()
    seat.conn.down = type(seat.conn.down)(item for item in seat.conn.down if not isinstance(item[0], wire.Msg))
    bench.advance(10_000)
    assert seat.read() == ["one"], "a lost message was never pushed again"


def two_copies_ask_the_same() -> None:
    """An outbox and its copy each send the same words: that is two messages."""
    bench = Bench()
    (api,) = opened(bench, "api")
    api.done("send", {"to": ["api"]}, b"first")
    copy = bench.seat("copy", outbox=Outbox.from_dump(api.outbox.dump()))
    bench.run(lambda: copy.state == "open")
    results = [seat.done("send", {"to": ["api"]}, b"the same words") for seat in (api, copy)]
    assert [r.code for r in results] == [200, 200]
    bench.run()
    texts = [x.msg.body for x in api.link.inbox.waiting()]
    assert texts == [b"first", b"the same words", b"the same words"], f"two were told 200, these came: {texts}"


def restored_twice() -> None:
    """An outbox is restored, has to number a row anew, and is restored once more to before that: done once still."""
    bench = Bench()
    (api,) = opened(bench, "api")

    def restore(data: bytes) -> None:
        api.outbox = Outbox.from_dump(data)
        api.restart()

    def send(text: bytes) -> bytes:
        """The database after the row was written, before it was sent."""
        api.link.submit(bench.now, "send", {"to": ["api"]}, text)
        api.flush()
        return api.outbox.dump()

    api.done("send", {"to": ["api"]}, b"one")
    old = api.outbox.dump()
    api.done("send", {"to": ["api"]}, b"two")
    restore(old)
    older = send(b"three")
    bench.run(lambda: api.link.book.unsettled == 0)
    bench.now += 5
    restore(older)
    bench.run(lambda: api.link.book.unsettled == 0)
    assert bench.hub.alive.world.seq == 3, "a row was done twice"


def two_takers() -> None:
    """Two that saw the same term: the first takes, the second is told the present one."""
    bench = Bench()
    (holder,) = opened(bench, "api")
    rivals = [bench.seat("api", inst=inst) for inst in ("second", "third")]
    bench.run(lambda: all(r.state == "parked" for r in rivals))
    terms = {r.parked.term for r in rivals if isinstance(r.parked, Parked)}
    assert terms == {1}
    rivals[0].link.knock(bench.now, take=1)
    bench.run(lambda: rivals[0].state == "open")
    assert holder.state == "parked"
    rivals[1].link.knock(bench.now, take=1)
    rivals[1].parked = None
    bench.run(lambda: rivals[1].state in ("open", "parked"))
    assert rivals[1].state == "parked", "a take with the term of a former holder went through"
    assert rivals[1].parked is not None and rivals[1].parked.term == 2


def two_takers_by_operation() -> None:
    """The same by the operation."""
    bench = Bench()
    _, second, third = opened(bench, "api", "b", "c")
    assert second.done("take", {"name": "api", "term": 1}).code == 200
    late = third.done("take", {"name": "api", "term": 1})
    assert late.code == 409, "a take with the term of a former holder went through"
    assert late.result["term"] == 2


def old_reply_before_welcome() -> None:
    """A reply of the former connection, of other numbering, comes before WELCOME: nothing is settled by it."""
    bench = Bench()
    (seat,) = opened(bench, "api")
    seat.done("status", {"summary": "one"})
    seat.link.submit(bench.now, "status", {"summary": "two"})
    link = seat.link
    link.take(bench.now)
    link.sending.renumber(2)  # a broker was restored: the row is number 1 now, as another was before
    link.lost(bench.now)
    bench.now = max(bench.now, link.deadline() or 0)
    link.take(bench.now)
    link.connected(bench.now)
    link.take(bench.now)
    assert link.state == "greeting"
    link.receive(bench.now, wire.encode(wire.Rep(1, 409, {}, "of another request")))
    assert link.book.first == 2, "a reply of the former connection settled a row"


def leftover_gone() -> None:
    """GONE is on its way when the connection is given up; by the next one the name is free again, and it is got."""
    bench = Bench()
    (api,) = opened(bench, "api")
    rival = bench.seat("api", inst="rival")
    bench.run(lambda: rival.state == "parked")
    rival.link.knock(bench.now, take=1)
    rival.flush()
    while rival.state != "open":
        assert rival.conn is not None
        bench.hub.feed(rival.conn, len(rival.conn.up))
        bench.hub.flush()
        rival.take(9)
        rival.flush()
    rival.link.bye(leave=True)
    rival.flush()
    assert rival.conn is not None
    bench.hub.feed(rival.conn, 9)
    bench.hub.flush()
    assert api.conn is not None and any(isinstance(c, wire.Gone) for c, _ in api.conn.down)
    api.hang_up()
    api.link.lost(bench.now)
    bench.run(lambda: api.state in ("open", "parked"))
    assert api.state == "open", "a GONE of a former connection parked the rightful holder"


def _strangers() -> tuple[Bench, Seat, Seat, Seat, Seat]:
    """far at beta and api at alpha, whose machines know nothing of each other, and a person at each."""
    bench = Bench()
    seats = [bench.seat("far", host="beta"), bench.seat("api")]
    for host in ("beta", "alpha"):
        seats.append(bench.seat("person", mode="send", host=host, meta={"kind": "human"}))
    bench.run(lambda: all(s.state == "open" for s in seats))
    far, api, you, me = seats
    return bench, far, api, you, me


def another_persons_mail() -> None:
    """Who sent it cannot release it: that is for the person it is held for."""
    bench, far, api, you, me = _strangers()
    ident = "m" * 16
    far.submit("send", {"to": ["api"]}, b"let me in", ident)
    bench.run()
    assert you.done("hold.release", {"ids": [ident]}).code == 404, "the sender's person released it"
    assert api.read() == []
    assert me.done("hold.release", {"ids": [ident]}).code == 200
    bench.run()
    assert api.read() == ["let me in"]


def held_too_long() -> None:
    """The time of a held message runs on: then it can be released no more."""
    bench, far, api, _, me = _strangers()
    ident = "m" * 16
    far.submit("send", {"to": ["api"], "ttl": 1000}, b"now or never", ident)
    bench.advance(20_000)
    assert me.done("hold.release", {"ids": [ident]}).code == 404, "what had expired was released"
    bench.run()
    assert api.read() == []


def full_disk_while_pushing() -> None:
    """What was pushed in a batch that could not be written comes again as a new chain, unasked."""
    bench = Bench()
    api, web = opened(bench, "api", "web")
    api.done("send", {"to": ["web"]}, b"one")
    bench.run()
    api.submit("send", {"to": ["web"]}, b"two")
    bench.hub.full = True
    bench.run()
    assert web.conn is not None and web.state == "open"
    assert [x.msg.body for x in web.link.inbox.waiting()] == [b"one"]
    assert web.link.inbox.waiting()[0].msg.n > 1, "the chain did not start anew"
    bench.hub.full = False
    bench.hub.alive.resume()
    bench.run(lambda: len(web.link.inbox.waiting()) == 2)


def full_disk_while_asking() -> None:
    """A query that was answered in a batch that could not be written is answered 503."""
    bench = Bench()
    (api,) = opened(bench, "api")
    bench.hub.full = True
    row = api.link.submit(bench.now, "status", {"summary": "one"})[0]
    r = api.link.ask("whoami", {})
    api.flush()
    bench.run()
    assert r in api.finished, "a query got lost in a batch that was undone"
    assert api.finished[r].code == 503 and row not in api.results
    bench.hub.full = False
    bench.hub.alive.resume()
    bench.run(lambda: row in api.results)


def _volley() -> tuple[Bench, Seat, Counting]:
    watch = Counting()
    bench = Bench(watch=watch, check_every=1000)
    (seat,) = opened(bench, "api")
    for i in range(VOLLEY):
        seat.link.submit(bench.now, "status", {"summary": str(i)})
    seat.flush()
    assert seat.conn is not None and len(seat.conn.up) == VOLLEY
    return bench, seat, watch


def _one_by_one(bench: Bench, seat: Seat, watch: Counting) -> None:
    """Every frame is a turn of its own, as it may be on a slow line; the volley may be sent about twice."""
    for _ in range(20 * VOLLEY):
        conn = seat.conn
        assert conn is not None
        if seat.link.book.unsettled == 0:
            break
        if conn.up:
            bench.hub.feed(conn)
            bench.hub.flush()
        if conn.down:
            seat.take()
            seat.flush()
        if not conn.up and not conn.down:
            bench.now += 1000
            seat.flush()
    assert seat.link.book.unsettled == 0, "the volley was not settled"
    assert watch.sent["Req"] <= 3 * VOLLEY, f"{watch.sent['Req']} requests for {VOLLEY} rows"


def renamed_by_the_dead() -> None:
    """An agent dies between the commit of its rename and the word of it; the next one on its seat goes on with it."""
    bench = Bench(check_every=1000)
    api, web = opened(bench, "api", "web")
    api.submit("rename", {"name": "docs"})
    assert api.conn is not None
    bench.hub.feed(api.conn)
    bench.hub.flush(crash="after")
    bench.seats.remove(api)
    api.hang_up()
    bench.hub.start()
    bench.advance(60_000)
    web.done("send", {"to": ["docs"]}, b"for whoever is docs now")
    heir = bench.seat("api", inst="next life", outbox=Outbox.from_dump(api.outbox.dump()))
    heir.profile.mailbox, heir.profile.store = api.called[1:]
    heir.link.book.term = 0
    bench.run(lambda: heir.state == "open")
    bench.run()
    assert heir.profile.name == "docs", f"it came back as {heir.profile.name}, the mail waits elsewhere"
    assert heir.read() == [b"for whoever is docs now".decode()]


def task_behind_notes() -> None:
    """A task comes when more notes wait than a window holds, and nothing shows a note before a task."""
    bench = Bench(check_every=1000)
    api, web = opened(bench, "api", "web")
    for i in range(100):
        api.submit("send", {"to": ["web"], "kind": "note"}, f"note {i}".encode())
    api.done("send", {"to": ["web"]}, b"the task")
    bench.run()
    waiting = [x.msg.body.decode() for x in web.link.inbox.waiting()]
    assert "the task" in waiting, f"{len(waiting)} notes fill the window, and the task is hidden behind them"
    assert waiting[:-1] == [f"note {i}" for i in range(48)]
    assert web.link.inbox.more == 52, "what waits beyond the window is told"
    shown = web.read()
    while len(shown) < 101:
        bench.run()
        shown += web.read()
    assert [text for text in shown if text != "the task"] == [f"note {i}" for i in range(100)]


def _shown_and_restored(bench: Bench, web: Seat, saved: bytes) -> None:
    """The agent's database is replaced by a copy, and the next process goes on with that."""
    web.outbox = Outbox.from_dump(saved)
    web.restart()
    bench.run(lambda: web.state == "open")
    bench.run()
    (letter,) = web.link.inbox.waiting()
    assert letter.repeat, "it was shown, and comes again as if it were new"


def restored_before_it_was_reported() -> None:
    """An agent dies when it has shown a message and not yet said that it offers it; so does the broker."""
    bench = Bench(check_every=1000)
    api, web = opened(bench, "api", "web")
    saved = web.outbox.dump()
    api.done("send", {"to": ["web"]}, b"one")
    bench.run()
    assert not web.offer()[0].repeat
    bench.hub.crash()
    bench.hub.start()
    _shown_and_restored(bench, web, saved)


def asked_before_it_was_reported() -> None:
    """An agent dies when it has shown a message and not yet said so; then somebody asks for the mail of its mailbox."""
    bench = Bench(check_every=1000)
    api, web = opened(bench, "api", "web")
    api.done("send", {"to": ["web"]}, b"one")
    bench.run()
    core = bench.hub.alive.core
    (mailbox,) = (m for m in core.world.mailboxes.values() if m.name == "web")
    assert deliveries.maybe_seen(core, mailbox) == (0, 0), "a living holder tells what it begins to show"
    assert not web.offer()[0].repeat
    bench.hub.crash()
    bench.hub.start()
    core = bench.hub.alive.core
    (mailbox,) = (m for m in core.world.mailboxes.values() if m.name == "web")
    assert core.holder(mailbox) is None
    assert deliveries.maybe_seen(core, mailbox) == (1, 0), "it was pushed, and who had it is gone without a word"


def found_by_the_next_life() -> None:
    """An agent dies over a message; the next one finds the proof that it was shown, and does not show it again."""
    bench = Bench(check_every=1000)
    api, web = opened(bench, "api", "web")
    api.done("send", {"to": ["web"]}, b"one")
    bench.run()
    (letter,) = web.offer()
    web.restart()
    web.link.inbox.proven(bench.now, [letter.key], "transcript")
    bench.run(lambda: web.state == "open")
    bench.run()
    assert web.link.inbox.waiting() == [], "its ledger does not know that it was offered, so it is shown again"


def goodbye_before_it_was_reported() -> None:
    """An agent says goodbye when it has shown a message and not yet proved it."""
    bench = Bench()
    api, web = opened(bench, "api", "web")
    saved = web.outbox.dump()
    api.done("send", {"to": ["web"]}, b"one")
    bench.run()
    assert not web.offer()[0].repeat
    web.link.bye(leave=True)
    web.flush()
    assert web.conn is not None
    bench.hub.feed(web.conn, 9)
    bench.hub.flush()
    _shown_and_restored(bench, web, saved)


def goodbye_without_a_trace() -> None:
    """A session ends before it shows what waits: to its successor, whoever that is, this is new."""
    bench = Bench()
    api, web = opened(bench, "api", "web")
    for text in (b"one", b"two", b"three"):
        api.done("send", {"to": ["web"]}, text)
    bench.run()
    web.offer(web.link.inbox.waiting()[:1])
    web.link.bye(leave=True)
    bench.run(lambda: web.state == "parked")
    heir = bench.seat("web", inst="heir")
    bench.run(lambda: heir.state == "open")
    bench.run()
    repeats = [x.repeat for x in heir.link.inbox.waiting()]
    assert repeats == [True, False, False], f"only the first was begun to be shown: {repeats}"


def cut_off_and_back() -> None:
    """A link is cut, the broker begins anew: what this process did not show, or took back unseen, is not a repeat."""
    bench = Bench()
    api, web = opened(bench, "api", "web")
    api.done("send", {"to": ["web"]}, b"taken back")
    bench.run()
    web.offer()
    bench.advance(1000)  # the receipt is through
    web.link.inbox.unshown(["alpha/" + web.link.inbox._numbers[1].partition("/")[2]], certain=True)
    web.flush()
    api.submit("send", {"to": ["web"]}, b"lost in the cut")
    assert api.conn is not None and web.conn is not None
    bench.hub.feed(api.conn, 9)
    bench.hub.flush()
    bench.cut(web.conn)
    bench.run(lambda: web.state == "open")
    bench.hub.crash()
    bench.hub.start()
    bench.run(lambda: web.state == "open" and len(web.link.inbox.waiting()) == 2)
    repeats = [x.repeat for x in web.link.inbox.waiting()]
    assert repeats == [False, False], f"nobody has seen them: {repeats}"


def _same_id(*names: str) -> tuple[Bench, Seat, list[Seat], dict[str, Any]]:
    """A command line at the mailbox web, which nobody holds; seats of one host, of which each has sent it a message of
    the same id; and how the last of these messages is named exactly.
    """
    bench = Bench()
    web, *senders = opened(bench, "web", *names)
    web.link.bye(leave=True)
    bench.run(lambda: web.state == "parked")
    person = bench.seat("web", mode="send")
    bench.run(lambda: person.state == "open")
    for sender in senders:
        sender.submit("send", {"to": ["web"]}, b"of " + sender.profile.name.encode(), "m" * 16)
        bench.run()
    return bench, person, senders, {"ids": ["alpha/" + "m" * 16], "of": [senders[-1].profile.mailbox]}


def _waiting(bench: Bench) -> list[str]:
    """The mailboxes whose mail waits for web."""
    (mailbox,) = (m for m in bench.hub.alive.world.mailboxes.values() if m.name == "web")
    return [pending.sender for pending in mailbox.pending.values()]


def settled_by_the_name_of_another() -> None:
    """Two messages have the same id; a command line has printed the second and says so exactly."""
    bench, person, (api, db), exact = _same_id("api", "db")
    assert person.done("settle", {**exact, "proof": "printed"}).result == {"settled": 1}
    assert _waiting(bench) == [api.profile.mailbox], f"{db.profile.mailbox}'s was printed; {_waiting(bench)}'s waits"


def settled_by_a_name_that_was_of_another() -> None:
    """A message has the id of one that was printed, and is not named exactly."""
    bench, person, (api,), exact = _same_id("api")
    result = person.done("settle", {"ids": exact["ids"], "proof": "printed"}).result
    assert _waiting(bench) == [api.profile.mailbox], "nobody has said that this one was printed"
    assert result == {"settled": 0}


def acknowledged_before_it_was_offered() -> None:
    """A message is acknowledged, and nobody has said that it was offered."""
    bench, person, _, exact = _same_id("api")
    for of in ({}, {"of": exact["of"]}):
        assert person.done("receipt", {"moved": [["acked", "lie", 0, exact["ids"]]], **of}).code == 200
    ((acked,),) = bench.hub.store._db.execute("SELECT acked_at FROM deliveries").fetchall()
    assert acked is None, "what nobody was offered is acknowledged"


def first_request_lost() -> None:
    """The first request of a full window is lost: 63 times 412, and one volley more."""
    bench, seat, watch = _volley()
    assert seat.conn is not None
    seat.conn.up.popleft()
    _one_by_one(bench, seat, watch)


def first_reply_lost() -> None:
    """The first reply of a full window is lost: 63 replies beyond the lowest row, and one volley more."""
    bench, seat, watch = _volley()
    assert seat.conn is not None
    bench.hub.feed(seat.conn, VOLLEY)
    bench.hub.flush()
    seat.conn.down.popleft()
    _one_by_one(bench, seat, watch)


def first_message_lost() -> None:
    """A gap is followed by many messages: one resync."""
    watch = Counting()
    bench = Bench(watch=watch, check_every=1000)
    api, web = opened(bench, "api", "web")
    for i in range(20):
        api.link.submit(bench.now, "send", {"to": ["web"]}, str(i).encode())
    api.flush()
    assert api.conn is not None and web.conn is not None
    bench.hub.feed(api.conn, 20)
    bench.hub.flush()
    web.conn.down.popleft()
    while web.conn.down:
        web.take()
        web.flush()
    bench.run()
    assert watch.resyncs == 1, f"{watch.resyncs} resyncs for one gap"
    assert web.read() == [str(i) for i in range(20)]
