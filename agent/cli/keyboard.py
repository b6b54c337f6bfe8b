"""Commands that are for a person alone: what they change decides what a session gets, so no session may run them.

Kept out are sessions and whatever they start, found by the ancestors of this process and by the marks a client leaves
in the environment, and names that scripts act under. It is a fence for models, not a wall against programs: whoever
runs as this user without being a session's child is this user.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli.call import Call

if TYPE_CHECKING:
    from agent.person import Person

F = TypeVar("F", bound=Callable[..., Any])

MARKS = ("CLAUDECODE", "CLAUDE_CODE_SESSION_ID")  # a client sets them for what its session runs


def at_keyboard(call: Call, what: str) -> Person:
    """The person who acts; Refused (403) where that is no person. `what` is what only a person may do."""
    from bus.errors import Code, Refused

    person = call.person
    mark = next((name for name in MARKS if os.environ.get(name)), "")
    if person.kind == "session" or mark:
        where = (
            f"inside the session {person.name}" if person.kind == "session" else f"inside a session ({mark} is set)"
        )
        raise Refused(Code.FORBIDDEN, f"only a person may {what}, and this runs {where} (use a terminal of your own)")
    if person.kind != "human":
        raise Refused(
            Code.FORBIDDEN,
            f"only a person may {what}, and this acts as {person.name} (unset TALKBUS_NAME, leave out --as)",
        )
    return person


def sender_options(command: F) -> F:
    """--from and --machine: whose mail is meant; `whose` reads them."""
    for option in (
        click.option("--machine", metavar="MACHINE", help="All of a machine, by its label or its key."),
        click.option("--from", "sender", metavar="NAME[@MACHINE]", help="One name at a machine."),
    ):
        command = option(command)
    return command


def whose(sender: str | None, machine: str | None) -> dict[str, str]:
    """`name` and `machine` as an operation takes them; UsageError where the two contradict each other."""
    name, _, host = (sender or "").strip().partition("@")
    if sender and machine and host:
        raise click.UsageError("the machine is named twice (--from NAME@MACHINE, or --from NAME --machine MACHINE)")
    return {key: text for key, text in (("name", name.lower()), ("machine", host or machine or "")) if text}
