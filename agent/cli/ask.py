"""`talkbus ask`: a message, and the wait for its answer.

The answer is an ordinary message of this mailbox. One that comes too late is found in the inbox.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from agent.cli import exits, show
from agent.cli.call import Call, Rows, acting, as_json, pass_call
from agent.cli.finite import Finite
from agent.cli.follow import following
from agent.cli.inbox import READER_S, left_this_process, mark
from agent.cli.letters import message, print_letters
from agent.cli.mail import Draft, draft, drafting, post, report

if TYPE_CHECKING:
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
    with ExitStack() as stack:
        asker = stack.enter_context(person.asking())
        view = stack.enter_context(call.view())
        rows = _exchange(call, asker, view, made, timeout)
        with person.reading(READER_S):
            if as_json:
                show.document(message(*rows[0]))
            else:
                print_letters(rows)
            left_this_process()
            _mark(person, asker, rows)


def _exchange(call: Call, asker: Asker, view: View, made: Draft, timeout: float) -> Rows:
    """Send once the events are joined, so that no answer is missed; then wait for it.

    Only the mailbox that was asked can answer; `re` alone may be anybody's.
    """
    ident = ""
    asked: Asked | None = None
    for event in following(view, ("msg.stored",), timeout):
        if not ident:
            ident, asked = _send(call, made)
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
    from bus.errors import Code, Refused, Unreachable

    outcome, _ = post(call, made)
    if outcome.settled is None:
        raise Unreachable(f"{outcome.reason} (queued as {outcome.id}; an answer will be in the inbox)")
    told = report(outcome, made.args["to"])
    if told["status"] == "refused":
        row = told["to"][0]
        raise Refused(Code.NOT_FOUND, f"{row['name']}: {row.get('text') or row['code']}")
    if told["status"] == "held":
        show.note(f"{outcome.id} is held until a person releases it")
    return outcome.id, Asked.of(outcome.settled.result)


def _mark(person: Person, asker: Asker, rows: Rows) -> None:
    """The session this runs in shows its own mail, the answer too, and says so itself."""
    told = asker.ask("whoami", {}).rows
    if told and told[0][0].get("presence") == "open":
        show.note("the session that this runs in will be shown the answer too")
    else:
        mark(person, rows)
