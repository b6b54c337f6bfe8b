"""Variants that lack exactly one rule each, and how each is found: by seeds, or by a directed schedule where it is
rare or another rule heals it in time (then a count or a state on the way shows it).
"""

from __future__ import annotations

import time

from agent import inbox, link, questions, reservations, sending
from bus import broker, deliveries, policy, requests, sessions, store, store_reads, wire
from bus.effects import Push
from bus.ops import mail, naming
from tests import pair
from tests.sim import directed, shells
from tests.sim.app import AppSeat
from tests.sim.faults import SimHub
from tests.sim.mutation import Edit, Mutant


class EagerHub(SimHub):
    """Answers before it commits. Messages follow, for their text is on the disk only then."""

    def flush(self, crash: str = "") -> None:
        hub_broker = self.alive
        hub_broker.tick(self.bench.now)
        batch = hub_broker.take()
        later = [effect for effect in batch.sends if isinstance(effect, Push)]
        batch.sends = [effect for effect in batch.sends if not isinstance(effect, Push)]
        self.speak(batch, len(batch.sends))
        if crash == "before":
            self.crash()
            return
        self.full = False
        self.commit(batch)
        batch.sends = later
        self.speak(batch, len(later))
        if crash:
            self.crash()


class EagerAckSeat(AppSeat):
    """Acknowledges before its ledger is on disk."""

    def flush(self, crash: str = "") -> None:
        batch = self.link.take(self.bench.now)
        acks = [c for c in batch.sends if isinstance(c, wire.Ack)]
        self.link.batch = batch
        if not batch.connect and self.conn is not None and self.conn.ready:
            for ack in acks:
                self.post(ack)
            batch.sends = [c for c in batch.sends if not isinstance(c, wire.Ack)]
        super().flush(crash)


class EagerTellSeat(AppSeat):
    """Tells results before they are on disk."""

    def flush(self, crash: str = "") -> None:
        batch = self.link.take(self.bench.now)
        for news in batch.news:
            self.tell(news)
        batch.news = []
        self.link.batch = batch
        super().flush(crash)


_INBOX, _SENDING = inbox.Inbox, sending.Sending

MUTANTS: dict[str, Mutant] = {
    "reply not saved": Mutant(
        "a repeated request is told that it was done, but not its result",
        ("told another",),
        (
            Edit(
                requests,
                "_again",
                "core.send(session.route, answer_again(q, saved, digest))",
                "core.send(session.route, wire.Rep(q, 200))",
            ),
        ),
    ),
    "no digest comparison": Mutant(
        "any request under a number that is done gets that number's reply",
        ("told another", "told, not applied"),
        (
            Edit(requests, "answer_again", "saved.digest != digest", "False"),
            Edit(requests, "_again", "saved.digest == digest", "True"),
        ),
    ),
    "digest without id": Mutant(
        "two equal requests of two copies of an outbox count as one",
        edits=(Edit(wire, "digest", "[op, ident, args]", "[op, args]"),),
        schedule=directed.two_copies_ask_the_same,
    ),
    "answer before commit": Mutant(
        "REP leaves before the transaction is on disk", ("told, not applied", "told another"), hub=EagerHub, start=110
    ),
    "told before written": Mutant(
        "the application hears a result that a crash takes back", ("told out of order",), seat=EagerTellSeat, start=6
    ),
    "rows settled out of order": Mutant(
        "a reply beyond the lowest row is taken for an answer to all before it",
        ("told another", "told, not applied"),
        (
            Edit(
                _SENDING,
                "settle",
                """    if row > book.first:
        if not self._deaf:
            self._back(book.first)
        return
""",
                """    while book.first < row:
        self._batch().writes.append(SettleRow(book.first, rep.code, wire.pack(rep.result), rep.text, now))
        self._batch().news.append(Settled(book.first, rep.code, rep.result, rep.text))
        book.first += 1
""",
            ),
        ),
    ),
    "no renumbering": Mutant(
        "a broker restored from an older copy is asked for numbers it has not reached",
        ("stuck",),
        (
            Edit(_SENDING, "stale", "return high < self._book.number(self._book.first) - 1", "return False"),
            Edit(_SENDING, "connected", "if high < book.number(book.first) - 1:", "if False:"),
        ),
        start=19,
    ),
    "number before it not proved": Mutant(
        "a copy whose first rows are refused has a later one done, and numbers it anew with the others",
        ("applied twice",),
        (Edit(requests, "request", "req.floor <= box.high and session.mine < box.high", "False"),),
        seeds=1500,
    ),
    "next outbox id of its own": Mutant(
        "the same database, restored twice, numbers its rows anew under two ids",
        edits=(
            Edit(
                _SENDING,
                "renumber",
                'seed = f"{book.ob}/{book.number(row)}".encode()',
                'seed = f"{book.ob}/{self.progress}".encode()',
            ),
        ),
        schedule=directed.restored_twice,
    ),
    "replies dropped early": Mutant(
        "the broker keeps the last reply only and does not look into its journal",
        ("told another",),
        (
            Edit(requests, "_do", "floor = min(max(box.floor, req.floor), req.q)", "floor = req.q"),
            Edit(
                requests,
                "_again",
                "core.batch.sends.append(Recall(session.route, box.id, q, digest))",
                "core.send(session.route, answer_again(q, None, digest))",
            ),
        ),
    ),
    "ledger by number": Mutant(
        "what was shown is remembered by the number it had on its connection",
        ("not shown", "never shown"),
        (Edit(inbox.Letter, "key", "self.msg.id)", "str(self.msg.n))"),),
    ),
    "ledger by host and id": Mutant(
        "two mailboxes of one host use the same id, and what the second says counts as shown",
        ("not shown", "never shown"),
        (Edit(inbox.Letter, "key", "self.msg.fid", '""'),),
    ),
    "acknowledged, not offered": Mutant(
        "an acknowledgement settles a copy of which nobody has said that it was offered",
        ("not offered",),
        (Edit(deliveries, "step", 'pending.status != "offered" and status != "injected"', "False"),),
        start=385,
    ),
    "acknowledged by id": Mutant(
        "the acknowledgement of a clone settles the original, which waits under the same id",
        ("not shown", "another meant"),
        (
            Edit(
                deliveries,
                "step",
                'core.numbers_of(mailbox, "", name.msg, name.sender) if name.sender else []',
                "core.numbers_of(mailbox, name.host, name.msg)",
            ),
        ),
    ),
    "a step for every message of an id": Mutant(
        "the disk gives a step to all messages of this mailbox that have the id",
        ("another meant",),
        (
            Edit(
                store,
                "_resolve",
                """    if len({row[0] for row in found}) != 1:
        return Resolved(w, "ambiguous")
""",
                "",
            ),
        ),
    ),
    "settled by id": Mutant(
        "what a command line has printed settles another message of the same id",
        edits=(
            Edit(
                mail,
                "settle_ids",
                "core.numbers_of(mailbox, name.host, name.msg, name.sender)",
                "core.numbers_of(mailbox, name.host, name.msg)[:1]",
            ),
        ),
        schedule=directed.settled_by_the_name_of_another,
    ),
    "settled by any name": Mutant(
        "a name that is not exact settles the message that has it by now",
        edits=(Edit(mail, "settle_ids", "if not name.sender:", "if False:"),),
        schedule=directed.settled_by_a_name_that_was_of_another,
    ),
    "offered goes first": Mutant(
        "of several messages of an id the one that the disk knows to be offered gets the step",
        ("another meant",),
        (
            Edit(
                store,
                "_resolve",
                "    if len({row[0] for row in found}) != 1:",
                """    if w.status != "offered":
        found = [row for row in found if row[7]] or found
    if len({row[0] for row in found}) != 1:""",
            ),
        ),
        start=2368,
    ),
    "a step by id, offered or not": Mutant(
        "an acknowledgement by id counts for a message that was not offered",
        edits=(Edit(store, "_resolve", "if not offered and w.status in _ONLY_OFFERED:", "if False:"),),
        schedule=directed.acknowledged_before_it_was_offered,
    ),
    "an event for every receipt": Mutant(
        "a receipt for a message that was never here is told as a step of it",
        ("event without row",),
        (Edit(deliveries, "resolved", "if not found.fresh or mailbox is None:", "if mailbox is None:"),),
    ),
    "told before it is known": Mutant(
        "a step by id is told with the batch, before the disk has said which message it is of",
        ("event without row", "event gap"),
        (
            Edit(
                deliveries,
                "step",
                "core.write(MoveById(mailbox.id, name.msg, status, when, proof, name.host, name.sender))\n        return",
                "core.write(MoveById(mailbox.id, name.msg, status, when, proof, name.host, name.sender))\n"
                '        core.emit(f"msg.{status}", id=name.msg, fid=name.sender, mailbox=mailbox.id)\n        return',
            ),
        ),
    ),
    "offering not written": Mutant(
        "a message is handed out before the ledger says so",
        edits=(Edit(_INBOX, "_write_offering", "self._batch().writes.append(PutShown(key, line))", "pass"),),
        schedule=directed.found_by_the_next_life,
    ),
    "ack before ledger": Mutant("ACK leaves before the ledger is on disk", ("ack before disk",), seat=EagerAckSeat),
    "resync answered by anything": Mutant(
        "after a gap the next message is taken, whatever it follows",
        ("order",),
        (
            Edit(
                _INBOX,
                "take_in",
                "elif msg.prev != self._got or self._resync_after >= 0:",
                "elif msg.prev != self._got and self._resync_after < 0:",
            ),
        ),
        seeds=1500,
        start=25,
    ),
    "no resync": Mutant(
        "a gap is seen, and nobody is told",
        ("never shown",),
        (Edit(_INBOX, "_resync", "self._batch().sends.append(wire.Ack([], resync=True))", "pass"),),
    ),
    "barrier: lost request": Mutant(
        "PONG does not tell that a request was lost",
        edits=(Edit(_SENDING, "compare", "self._back(done + 1)", "pass"),),
        schedule=directed.lost_request,
    ),
    "barrier: lost reply": Mutant(
        "PONG does not tell that a reply was lost",
        edits=(Edit(_SENDING, "compare", "if book.first <= min(done, sent):", "if False:"),),
        schedule=directed.lost_reply,
    ),
    "barrier: lost ack": Mutant(
        "PONG does not tell that an ACK was lost",
        edits=(Edit(_INBOX, "compare", 'self._owe(n, "injected", line.proof)', "pass"),),
        schedule=directed.lost_ack,
    ),
    "receipt behind the ack": Mutant(
        "what is acknowledged leaves its receipt behind, so it is shown before it was offered",
        ("ack overtakes",),
        (Edit(link.Link, "_flush_receipts", "while self.inbox.overtaken() and", "while False and"),),
    ),
    "barrier: lost message": Mutant(
        "PONG does not tell that a message was lost",
        edits=(Edit(_INBOX, "compare", "self._resync(pinged)\n            return", "continue"),),
        schedule=directed.lost_message,
    ),
    "numbers of the mailbox": Mutant(
        "deliveries are numbered by the mailbox, so an ACK that crosses a takeover fits another message",
        ("not shown",),
        (Edit(deliveries, "push", "session.pushed += 1", "session.pushed = n"),),
        start=29,
    ),
    "same instance refused": Mutant(
        "a session that comes back on a new connection is taken for a stranger",
        ("parked by itself",),
        (Edit(sessions, "hold", "elif mailbox.inst == session.inst and mailbox.inst:", "elif False:"),),
    ),
    "renamed unheard": Mutant(
        "a session that lost the WELCOME of its new name comes back under the old one",
        ("astray",),
        (
            Edit(
                sessions,
                "hold",
                "if hello.term and (mailbox is None or mailbox.inst != session.inst) else None",
                "if False else None",
            ),
            Edit(sessions, "occupy", "held_by(core, session) if rise else None", "None"),
        ),
        start=4,
    ),
    "renamed by the dead": Mutant(
        "the id of the mailbox in a HELLO counts for nothing",
        edits=(Edit(sessions, "_name_now", "if hello.store == core.world.store else None", "if False else None"),),
        schedule=directed.renamed_by_the_dead,
    ),
    "lost holder taken for living": Mutant(
        "the holder of an older copy, who is not connected, parks the one who held the mailbox later",
        ("lost is not alive",),
        (
            Edit(
                sessions,
                "hold",
                "presence = core.presence(mailbox)",
                'presence = {"lost": "open"}.get(core.presence(mailbox), core.presence(mailbox))',
            ),
        ),
    ),
    "displaced by nobody": Mutant(
        "a session that an older copy does not know is parked as if somebody had taken its mailbox",
        ("displaced by nobody",),
        (Edit(sessions, "hold", "was_displaced(core, mailbox, hello)", "True"),),
        start=380,
    ),
    "notes fill the window": Mutant(
        "what wakes nobody may take the whole window",
        ("window",),
        (Edit(deliveries, "_next", "if len(session.quiet) < wire.WINDOW_QUIET:", "if True:"),),
    ),
    "a task behind notes": Mutant(
        "the oldest is pushed or nothing is",
        edits=(
            Edit(deliveries, "_next", "return todo.popleft() if todo", "return todo.popleft() if todo and not quiet"),
        ),
        schedule=directed.task_behind_notes,
    ),
    "again only when it was reported": Mutant(
        "what was pushed to an agent that died is new to the next one",
        ("unmarked repeat",),
        (
            Edit(
                deliveries,
                "_seen_before",
                " or n <= (mailbox.former if wakes else mailbox.former_quiet)",
                "",
            ),
        ),
    ),
    "query knows only what was reported": Mutant(
        "what an agent that died was shown is new to whoever asks",
        edits=(
            Edit(
                deliveries,
                "maybe_seen",
                "return mailbox.pushed, mailbox.pushed_quiet",
                "return mailbox.former, mailbox.former_quiet",
            ),
        ),
        schedule=directed.asked_before_it_was_reported,
    ),
    "marks in memory only": Mutant(
        "a restart of the broker forgets what was pushed",
        edits=(Edit(store.Store, "load", "mailbox.former, mailbox.former_quiet = row[9:]", "_, _ = '', 0, 0, 0, 0"),),
        schedule=directed.restored_before_it_was_reported,
    ),
    "goodbye forgets what was begun": Mutant(
        "a goodbye makes new again what was begun to be shown",
        edits=(Edit(deliveries, "end_life", 'offered(core, mailbox, pending, core.now, "")', "pass"),),
        schedule=directed.goodbye_before_it_was_reported,
    ),
    "goodbye forgets nothing": Mutant(
        "what a session left unshown comes to the next one as a possible repeat",
        edits=(Edit(sessions, "goodbye", "if bye.begun is not None:", "if False:"),),
        schedule=directed.goodbye_without_a_trace,
    ),
    "each connection a life": Mutant(
        "what was lost with a connection comes again as a possible repeat",
        ("marked without cause",),
        (Edit(sessions, "admit", "hello.life[:64] or session.inst", "route.hex()"),),
    ),
    "first sight forgotten": Mutant(
        "what this process itself took back unseen comes again as a possible repeat",
        edits=(Edit(_INBOX, "take_in", "if not self._first_seen(key, msg.again):", "if False:"),),
        schedule=directed.cut_off_and_back,
    ),
    "loser not told": Mutant(
        "who is displaced is neither told nor parked",
        ("not holding",),
        (Edit(sessions, "displace", "core.send(former.route, former.parked)", "former.parked = None"),),
        start=7,
    ),
    "term does not rise": Mutant(
        "a takeover keeps the term",
        ("same term",),
        (Edit(sessions, "occupy", "mailbox.term += 1 if rise else 0", "mailbox.term = mailbox.term or 1"),),
        start=7,
    ),
    "expired in living hands": Mutant(
        "the broker expires what a living session holds",
        ("late truth",),
        (Edit(deliveries, "expire", "if session is not None and n in session.open:", "if False:"),),
        start=2,
    ),
    "late truth kept": Mutant(
        "what was shown while nobody could be told is not reported",
        ("late truth",),
        (
            Edit(
                _INBOX, "connected", 'if line.state == "shown" and not line.told and key not in waiting:', "if False:"
            ),
        ),
        seeds=1500,
        start=9,
    ),
    "held mail is pushed": Mutant(
        "what is held for a person reaches the session",
        ("held shown", "not shown"),
        (Edit(policy, "hold_back", "mailbox.held[pending.n] = pending", "arrive(core, mailbox, pending)"),),
    ),
    "strangers accepted": Mutant(
        "mail of another key is accepted without a rule",
        ("policy",),
        (Edit(policy, "verdict", 'else Verdict("hold", NO_RULE)', "else ACCEPT"),),
    ),
    "least specific first": Mutant(
        "a rule for a machine goes before one for a name there",
        ("policy",),
        (Edit(policy, "verdict", "for about in tried if", "for about in tried[::-1] if"),),
    ),
    "rule not written": Mutant(
        "a rule is in memory only",
        ("policy",),
        (Edit(policy, "put_rule", "core.write(PutRule(rule))", "pass"),),
    ),
    "pause not written": Mutant(
        "a restart ends the pause",
        ("policy",),
        (Edit(policy, "set_pause", "core.write(PutPause(key, core.now))", "pass"),),
    ),
    "pause makes mail of refused": Mutant(
        "what is refused is held while paused, and released with the rest",
        ("policy", "released"),
        (Edit(policy, "verdict", 'found.action == "accept" and recipient', "recipient"),),
    ),
    "the end of a pause releases all": Mutant(
        "what a rule holds goes on when a pause ends",
        ("released",),
        (Edit(policy, "set_pause", "if pending.why == PAUSED", "if True"),),
    ),
    "release not written": Mutant(
        "after a crash a released message is held again, and settled as another",
        ("made up", "held shown", "never shown"),
        (Edit(policy, "release", "core.write(Release(mailbox.id, former, pending.n, core.now, proof))", "pass"),),
    ),
    "released, not pushed": Mutant(
        "a released message waits for the next connection",
        ("never shown",),
        (Edit(policy, "release", "arrive(core, mailbox, pending)", "mailbox.pending[pending.n] = pending"),),
    ),
    "dropped, and kept": Mutant(
        "a dropped message is settled on disk, and in memory it waits to be shown",
        ("made up", "held shown", "not shown"),
        (Edit(policy, "drop", "del mailbox.held[pending.n]", "arrive(core, mailbox, mailbox.held.pop(pending.n))"),),
    ),
    "any person decides": Mutant(
        "the person of one machine releases what is held at another",
        edits=(Edit(policy, "held_of", "if mailbox.key == key:", "if True:"),),
        schedule=directed.another_persons_mail,
    ),
    "held mail does not expire": Mutant(
        "what is held outlives its time",
        edits=(Edit(policy, "expire", "0 < pending.expires <= core.now", "False"),),
        schedule=directed.held_too_long,
    ),
    "any reply ends an ask": Mutant(
        "who names the question in `re` ends the call, whoever was asked",
        ("stranger",),
        (Edit(reservations.Open, "ends", "return msg.answer > 0 or", "return True or"),),
    ),
    "any reply is an answer": Mutant(
        "the broker stamps as an answer what names a question, whoever was asked",
        ("answer", "stranger"),
        (Edit(store_reads, "marks", "return matched, 0", "return matched, int(bool(re_))"),),
    ),
    "matched unseen": Mutant(
        "a message is matched with a question that nobody has proved to be shown",
        ("matched",),
        (
            Edit(
                questions.Questions,
                "shown",
                'line.state == "shown" and (line.proof == TRANSCRIPT or line.at <= by)',
                "True",
            ),
        ),
    ),
    "matched with one of several": Mutant(
        "where several questions are open, the first is taken to be answered",
        ("matched",),
        (Edit(mail, "_matched", "if len(found) > 1:", "if False:"),),
    ),
    "answered while it is held": Mutant(
        "a question is told as answered though its sender has not got the answer",
        ("answered",),
        (Edit(mail, "_one", "if not held:", "if True:"),),
    ),
    "queries of an undone batch": Mutant(
        "a full disk swallows queries",
        edits=(
            Edit(
                broker,
                "_asked",
                'return ("QRY", command.r) if isinstance(command, wire.Done) else None',
                "return None",
            ),
        ),
        schedule=directed.full_disk_while_asking,
    ),
    "take without its term": Mutant(
        "whoever takes gets it, also with a term that is over",
        edits=(Edit(sessions, "hold", "elif hello.take != mailbox.term:", "elif not hello.take:"),),
        schedule=directed.two_takers,
    ),
    "op take without its term": Mutant(
        "the operation takes with any term",
        edits=(Edit(naming, "take", 'req.args.get("term", 0) != wanted.term', 'not req.args.get("term", 0)'),),
        schedule=directed.two_takers_by_operation,
    ),
    "not deaf before WELCOME": Mutant(
        "a link in greeting takes replies of its former connection",
        edits=(
            Edit(
                link.Link, "receive", "LINK[self.state]", 'LINK["open" if self.state == "greeting" else self.state]'
            ),
        ),
        schedule=directed.old_reply_before_welcome,
    ),
    "socket used again": Mutant(
        "frames of the former connection arrive on the new one",
        edits=(
            Edit(
                shells.Seat,
                "hang_up",
                "self.bench.close(self.conn)",
                "self.left_over = [i for i in self.conn.down if i[0] != 'lost']; self.bench.close(self.conn)",
            ),
            Edit(
                pair.Bench,
                "dial",
                'conn.down.append(("connected", []))',
                'conn.down.extend([("connected", []), *getattr(seat, "left_over", [])])',
            ),
        ),
        schedule=directed.leftover_gone,
    ),
    "no chain after undo": Mutant(
        "what was pushed in an undone batch is not pushed again (a PONG would heal it, a heartbeat later)",
        edits=(Edit(broker.Broker, "undo", "deliveries.start_chain(core, session, mailbox)", "pass"),),
        schedule=directed.full_disk_while_pushing,
    ),
    "not deaf after 412": Mutant(
        "each 412 of a volley sends the volley again",
        edits=(Edit(_SENDING, "complaint", "if not self._deaf:", "if True:"),),
        schedule=directed.first_request_lost,
    ),
    "not deaf after a gap of replies": Mutant(
        "each reply of a volley whose first was lost sends the volley again",
        edits=(Edit(_SENDING, "settle", "if not self._deaf:", "if True:"),),
        schedule=directed.first_reply_lost,
    ),
    "many resyncs": Mutant(
        "every message after a gap asks for a resync",
        edits=(Edit(_INBOX, "_resync", "if self._resync_after >= 0:", "if False:"),),
        schedule=directed.first_message_lost,
    ),
}


def report() -> int:
    """Print how each mutant is found; 1 when one is not."""
    missed = 0
    for name, mutant in MUTANTS.items():
        began = time.monotonic()
        found = mutant.found()
        missed += not found
        print(f"{name:34} {time.monotonic() - began:6.1f} s  {found[:150] or 'NOT FOUND'}", flush=True)
    return bool(missed)
