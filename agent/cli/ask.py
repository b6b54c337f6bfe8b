"""`talkbus ask`: a message, and the wait for its answer.

The answer is an ordinary message of this mailbox. One that comes too late is found in the inbox.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from agent.cli import exits, show
from agent.cli.call import Call, Rows, acting, as_json, pass_call
from agent.cli.finite import Finite
from agent.cli.follow import following
from agent.cli.inbox import READER_S, hosted, left_this_process, mark, offer, unread
from agent.cli.letters import message, print_letters
from agent.cli.mail import Draft, draft, drafting, post, report, unconfirmed
from bus.errors import BusError

if TYPE_CHECKING:
    from agent.delivery.terminal import Terminal
    from agent.person import Asker, Person
    from agent.questions import Asked
    from bus.client import View


@click.command()
@drafting
@click.option("--timeout", type=Finite(0), default=45.0, show_default=True, metavar="S", help="How long.")
@acting
@as_json
@pass_call
def ask(call: Call, /, as_json: bool, timeout: float, **options: Any) -> None:
    """Send a message and wait for the answer.

    Ends with 4 and the message's id when no answer came in time; a late one is found in the inbox.

    \b
    talkbus ask api "which port do you listen on?"
    talkbus ask api --timeout 300 --file question.md
    """
    from bus.wire import ASK_MAX_MS

    made = draft(**options)
    if len(made.args["to"]) != 1 or made.args["to"][0] in ("*", "@all"):
        raise click.UsageError("ask has one recipient (send asks several)")
    made.args["ask"] = max(1, int(min(timeout * 1000, ASK_MAX_MS)))
    person = call.person
    sent = _Sent()
    with sent.named(), ExitStack() as stack:
        asker = stack.enter_context(person.asking())
        view = stack.enter_context(call.view())
        rows = _exchange(call, asker, view, made, timeout, sent)
        with person.reading(asker.id, READER_S):
            terminal = hosted(person)
            ours = terminal is not None or not _shown_elsewhere(asker)
            if ours:
                rows = _offered(person, asker, rows, terminal)
            if as_json:
                show.document(message(*rows[0]))
            else:
                print_letters(rows)
            left_this_process()
            if ours:
                mark(person, rows, terminal)
            else:
                show.note("the session that this runs in will be shown the answer too")


def _offered(person: Person, asker: Asker, rows: Rows, terminal: Terminal | None) -> Rows:
    """The answer once it may be printed; as a possible repeat where a session of this mailbox has shown it."""
    kept, _ = offer(person, asker, rows, terminal, hint="talkbus inbox shows the answer")
    if kept and unread(kept[0][0]):
        return kept
    show.note(f"{asker.name} was shown the answer before")
    return [({**value, "status": "injected", "again": True}, body) for value, body in rows]


@dataclass(slots=True)
class _Sent:
    """The id of the question, once it is sent: whatever ends the call after that has to name it."""

    ident: str = ""

    @contextmanager
    def named(self) -> Iterator[None]:
        """What ends the wait says where the answer will be."""
        from agent.person import Interrupted
        from agent.refusals import with_remedy

        try:
            yield
        except BusError as error:
            if self.ident and self.ident not in str(error):
                error.args = (with_remedy(str(error), self._later()),)
            raise
        except Interrupted:
            raise
        except KeyboardInterrupt as error:
            if self.ident:
                raise Interrupted(f"interrupted after {self.ident} was sent ({self._later()})") from error
            raise

    def _later(self) -> str:
        return f"the answer to {self.ident} will be in the inbox; talkbus why {self.ident}"


def _exchange(call: Call, asker: Asker, view: View, made: Draft, timeout: float, sent: _Sent) -> Rows:
    """Send once the events are joined, so that no answer is missed; then wait for it.

    Only the mailbox that was asked can answer; `re` alone may be anybody's.
    """
    ident = ""
    asked: Asked | None = None
    for event in following(view, ("msg.stored",), timeout):
        if not ident:
            ident, asked = _send(call, made)
            sent.ident = ident
        if asked is not None and (event is None or _may_be(event, asker.id, ident)):
            query = {"re": ident, "unread": False, "oldest": True, "limit": 1, **asked.query()}
            rows = [row for row in asker.ask("inbox", query).rows if _is_of(asked, row[0])]
            if rows:
                return rows
    if not ident:
        raise exits.TimedOut("the bus was too slow to follow (nothing was sent; wait longer)")
    raise exits.TimedOut(f"no answer to {ident} within {timeout:g} s (it will be in the inbox; talkbus why {ident})")


def _may_be(event: dict[str, Any], mailbox: str, ident: str) -> bool:
    """Whether an event may tell of the answer; that of a released message does not say what it replies to."""
    return event.get("mailbox") == mailbox and (event.get("re") == ident or event.get("released") is True)


def _is_of(asked: Asked, value: dict[str, Any]) -> bool:
    return asked.sent(str(value.get("fid", "")), str(value.get("from", "")), str(value.get("host", "")))


def _send(call: Call, made: Draft) -> tuple[str, Asked | None]:
    from agent.questions import Asked
    from agent.refusals import with_remedy
    from bus.errors import Code, Refused, Unreachable

    outcome, _ = post(call, made)
    if outcome.refused:
        raise Refused(Code.FORBIDDEN, unconfirmed(outcome))
    if outcome.settled is None:
        raise Unreachable(with_remedy(outcome.reason, f"queued as {outcome.id}; an answer will be in the inbox"))
    told = report(outcome, made.args["to"])
    if told["status"] == "refused":
        only = told["to"][0]
        raise Refused(Code.NOT_FOUND, f"{only['name']}: {only.get('text') or only['code']}")
    if told["status"] == "held":
        show.note(f"{outcome.id} is held until a person releases it")
    return outcome.id, Asked.of(outcome.settled.result)


def _shown_elsewhere(asker: Asker) -> bool:
    """Whether the session this runs in lives: it shows its own mail, the answer too, and says so itself."""
    told = asker.ask("whoami", {}).rows
    return bool(told) and told[0][0].get("presence") == "open"
