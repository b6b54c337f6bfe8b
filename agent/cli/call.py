"""What one call of the command knows: directories, settings, who acts; and the options every command shares.

Nothing is read before it is asked for, so `version` and `--help` touch no file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli.exits import Asked

if TYPE_CHECKING:
    from pathlib import Path

    from agent.person import Person
    from bus.client import View
    from bus.config import Config, Home, Hub

F = TypeVar("F", bound=Callable[..., Any])

VIEW_S = 5.0


@dataclass
class Call:
    """Made once by talkbus.py, which alone knows the broker's side: `serve` runs the broker in this process, `unread`
    and `moved` read the mail of a bus that does not run, and mark it as moved, `look` tells whether its database can
    be opened (StoreError), `audit` looks through a journal.
    """

    version: str = ""
    serve: Callable[[Home, Config], int] | None = None
    unread: Callable[[Home], list[dict[str, Any]]] | None = None
    moved: Callable[[Home, list[dict[str, Any]]], None] | None = None
    look: Callable[[Path], None] | None = None
    audit: Callable[[Path, list[RememberedHead]], dict[str, Any]] | None = None
    as_name: str = ""

    @cached_property
    def home(self) -> Home:
        """The directories of this bus."""
        from bus.config import home

        return home()

    @cached_property
    def config(self) -> Config:
        """What is set; ConfigError names the line that is wrong."""
        from bus.config import load

        return load(self.home)

    @cached_property
    def person(self) -> Person:
        """Who acts: the session around this call, the name that was asked for, or the person at the keyboard."""
        from agent.person import find

        return find(self.home, self.config, self.as_name, os.environ.get("TALKBUS_NAME", ""))

    def requests(self) -> list[Asked]:
        """What may have gone out in this call."""
        person: Person | None = self.__dict__.get("person")  # not found only to be asked
        return [Asked(*one) for one in person.requests] if person is not None else []

    def view(self, start: bool = True) -> AbstractContextManager[View]:
        """A look at the bus that changes nothing. Unreachable.

        With `start` the broker is started at need, and what earlier calls left behind is sent.
        """
        from bus.client import View

        if start:
            self.wake()
            self.person.drain()
        return View.open(self.home, self.config, timeout=VIEW_S)

    def wake(self) -> None:
        """Have the broker run. Unreachable when it was stopped on purpose, or does not come up."""
        if self.hub is None:
            from bus.daemon import ensure_broker

            ensure_broker(self.home)

    @property
    def hub(self) -> Hub | None:
        """The broker of another machine that this one uses, if it does."""
        from bus.joined import hub

        return hub(self.home, self.config)


RememberedHead = tuple[str, str, int, str]  # who remembers it, store, number and chain of the last operation
Rows = list[tuple[dict[str, Any], bytes]]


def fetch(view: View, what: str, args: dict[str, Any], timeout: float = 10.0) -> Rows:
    """The rows of a query. Refused with the broker's words; what it remarks on its answer goes to stderr."""
    from agent.cli.show import note
    from agent.person import checked

    answer = checked(view.query(what, args, timeout))
    if answer.text:
        note(answer.text)
    return list(answer.rows)


pass_call = click.make_pass_decorator(Call, ensure=True)


def _set_name(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    from bus.errors import Refused
    from bus.names import check_name

    try:
        ctx.ensure_object(Call).as_name = check_name(value)
    except Refused as error:
        raise click.BadParameter(str(error), ctx=ctx) from error


def acting(command: F) -> F:
    """The option --as NAME; what it says is found in Call.person."""
    option = click.option(
        "--as",
        "as_name",
        metavar="NAME",
        expose_value=False,
        callback=_set_name,
        help="Act as NAME, a seat of its own (or set TALKBUS_NAME).",
    )
    return option(command)


def as_json(command: F) -> F:
    """The option --json, as the argument `as_json`."""
    option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
    return option(command)
