"""`talkbus hold`: what waits for a person, and what the person says to it.

The text of what is held is a stranger's, and no session has seen it: it is printed escaped, and only here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from agent.cli import exits, show
from agent.cli.call import Call, Rows, as_json, pass_call
from agent.cli.keyboard import at_keyboard, sender_options, whose
from agent.cli.letters import message, print_letters
from agent.named import forms, on_the_wire, typed

if TYPE_CHECKING:
    from agent.person import Person

PAGE = 200
AT_ONCE = 32  # ids of one request: its head has 4096 octets
FIRST_WORDS = 60


@click.group()
def hold() -> None:
    """See, release or drop what is held for you.

    Mail from machines without a rule, or with one that says so, waits here until you decide. No session sees it
    before.

    \b
    talkbus hold list
    talkbus hold release k3v7h2qm
    talkbus hold drop --machine laptop
    """


@hold.command("list")
@click.option("--full", is_flag=True, help="Print each message whole.")
@sender_options
@as_json
@pass_call
def list_(call: Call, full: bool, sender: str | None, machine: str | None, as_json: bool) -> None:
    """List what is held, the oldest first.

    \b
    talkbus hold list
    talkbus hold list --full --machine laptop
    """
    person = at_keyboard(call, "see what is held")
    rows = _chosen(_all(person), sender, machine)
    if as_json:
        show.document([_document(value, body) for value, body in rows])
    elif not rows:
        show.note("nothing is held")
    elif full:
        print_letters(rows)
    else:
        cells = [
            (
                value["id"],
                show.clock(int(value["since"])),
                f"{value['from']}@{value['host']}",
                value["to"],
                value["kind"],
                value["why"],
                _first_words(body),
            )
            for value, body in rows
        ]
        show.table(("id", "since", "from", "to", "kind", "why", "says"), cells)


def _document(value: dict[str, Any], body: bytes) -> dict[str, Any]:
    return {**message(value, body), "host": value["host"], "since": value["since"], "why": value["why"]}


def _first_words(body: bytes) -> str:
    text = " ".join(body.decode("utf-8", "replace").split())
    return text if len(text) <= FIRST_WORDS else text[: FIRST_WORDS - 1] + "…"


def _all(person: Person) -> Rows:
    """Everything that is held for this machine."""
    found: Rows = []
    with person.asking() as asker:
        while True:
            args: dict[str, Any] = {"limit": PAGE}
            if found:
                args["after"] = int(found[-1][0]["at"])
            page = asker.ask("held", args).rows
            found += page
            if len(page) < PAGE:
                return found


def _chosen(rows: Rows, sender: str | None, machine: str | None) -> Rows:
    who = whose(sender, machine)
    name, host = who.get("name"), who.get("machine", "").lower()
    return [
        (value, body)
        for value, body in rows
        if (not name or value["from"] == name) and (not host or str(value["host"]).lower() == host)
    ]


def _picked(
    person: Person, idents: Sequence[str], everything: bool, sender: str | None, machine: str | None
) -> list[dict[str, Any]]:
    """What was meant. Refused (404, 409) for an id that fits nothing, or several."""
    from bus.errors import Code, Refused

    if sum((bool(idents), everything, bool(sender or machine))) != 1:
        raise click.UsageError("say which: ids, or --from or --machine, or --all")
    rows = _all(person)
    if not idents:
        rows = _chosen(rows, sender, machine)
        if not rows:
            raise Refused(Code.NOT_FOUND, "nothing of that is held (talkbus hold list)")
        return [value for value, _ in rows]
    picked = []
    for text in idents:
        wanted = typed(text)
        fit = [value for value, _ in rows if wanted.fits(value)]
        if len(fit) != 1 or len(wanted.ident) < 4:
            code = Code.CONFLICT if fit else Code.NOT_FOUND
            many = f"fits {len(fit)} held messages: {forms(fit)}" if fit else "is not held"
            raise Refused(code, f"{text.strip()[:60]!r} {many}; nothing was done (talkbus hold list)")
        picked.append(fit[0])
    return picked


def _decide(person: Person, op: str, picked: Sequence[dict[str, Any]], more: dict[str, Any]) -> int:
    from bus.errors import BusError

    done = 0
    for start in range(0, len(picked), AT_ONCE):
        try:
            done += int(person.do(op, {**on_the_wire(picked[start : start + AT_ONCE]), **more})["done"])
        except BusError as error:
            if done:
                error.args = (f"{done} of {len(picked)} are done, then: {error}",)
            raise
    return done


ALL = click.option("--all", "everything", is_flag=True, help="Everything that is held.")
IDS = click.argument("idents", metavar="[ID...]", nargs=-1)


@hold.command("release")
@IDS
@ALL
@sender_options
@as_json
@pass_call
def release(
    call: Call, idents: Sequence[str], everything: bool, sender: str | None, machine: str | None, as_json: bool
) -> int:
    """Let held messages go on.

    They come after what came meanwhile. An id may be cut to its first characters; HOST/ID or NAME@HOST/ID says which
    of several is meant.

    \b
    talkbus hold release k3v7h2qm
    talkbus hold release --from api@laptop
    """
    person = at_keyboard(call, "release what is held")
    done = _decide(person, "hold.release", _picked(person, idents, everything, sender, machine), {})
    if as_json:
        show.document({"released": done})
    else:
        click.echo(f"released {done}")
    return exits.DONE


@hold.command("drop")
@IDS
@ALL
@sender_options
@click.option("--reason", metavar="TEXT", help="What the sender is told, at most 40 characters.")
@as_json
@pass_call
def drop(
    call: Call,
    idents: Sequence[str],
    everything: bool,
    sender: str | None,
    machine: str | None,
    reason: str | None,
    as_json: bool,
) -> int:
    """Settle held messages unshown.

    Their senders see 'failed' with the reason (talkbus why).

    \b
    talkbus hold drop k3v7h2qm --reason "not now"
    talkbus hold drop --machine laptop
    """
    person = at_keyboard(call, "drop what is held")
    more = {"reason": reason} if reason else {}
    done = _decide(person, "hold.drop", _picked(person, idents, everything, sender, machine), more)
    if as_json:
        show.document({"dropped": done})
    else:
        click.echo(f"dropped {done}")
    return exits.DONE
