"""`talkbus send`: what is sent, to whom, and what became of it.

The options and the body are shared with `ask`. Knows the seat of whoever types; nothing of sockets.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli import exits, show
from agent.cli.call import Call, acting, as_json, pass_call
from agent.cli.finite import Finite
from agent.cli.keyboard import at_keyboard

if TYPE_CHECKING:
    from agent.person import Outcome

F = TypeVar("F", bound=Callable[..., Any])

BLOCKED = "blocked"  # on this disk, and the hub takes nothing from this machine


@dataclass(frozen=True, slots=True)
class Draft:
    """A message to be sent: the arguments of the operation and the text; `raw`: with the secrets in it."""

    args: dict[str, Any]
    body: bytes
    raw: bool = False


def drafting(command: F) -> F:
    """The arguments and options that make a message; they arrive as one mapping for `draft`."""
    for option in reversed(
        (
            click.argument("words", nargs=-1, metavar="TO BODY|-"),
            click.option("--to", multiple=True, metavar="TO", help="A recipient; may be repeated."),
            click.option("--file", "file", metavar="PATH", help="Take the text from a file (at most 256 KiB)."),
            click.option("--tag", metavar="T", help="A tag to filter by: handoff, question, status, error, …"),
            click.option("--reply-to", metavar="ID", help="The message this one answers."),
            click.option("--ttl", type=Finite(0.001), metavar="S", help="Expire unread after S seconds."),
            click.option("--new", is_flag=True, help="Open a mailbox for a name nobody has had."),
            click.option("--raw", is_flag=True, help="Send secrets in the text as they are. For a person only."),
        )
    ):
        command = option(command)
    return command


@click.command()
@drafting
@click.option("--kind", type=click.Choice(["task", "note"]), help="A task (default) wakes; a note only informs.")
@click.option("--note", is_flag=True, help="Short for --kind note.")
@click.option("--exclude", multiple=True, metavar="TO", help="Leave one out, as in: send '*' --exclude api.")
@acting
@as_json
@pass_call
def send(call: Call, /, as_json: bool, kind: str | None, note: bool, exclude: Sequence[str], **options: Any) -> int:
    """Send a message.

    TO is a name, an id, name@host, a folder, or '*' for all; several are joined by commas. BODY '-' reads the text
    from stdin. While the broker is away the message is queued on this disk and goes out with the next call. What
    looks like a key, token or password is redacted first; you are told.

    \b
    talkbus send api "the migration is in"
    talkbus send api,web --note "deploying at six"
    git diff | talkbus send reviewer --tag handoff -
    """
    from agent.person import Interrupted

    if note and kind == "task":
        raise click.UsageError("--note and --kind task contradict each other")
    made = draft(**options)
    made.args["kind"] = "note" if note else kind or "task"
    if exclude:
        made.args["exclude"] = [part for text in exclude for part in addresses(text)]
    try:
        outcome, redacted = post(call, made)
    except Interrupted as error:
        if as_json and error.outcome is not None:
            with suppress(OSError):  # the error names it as well
                show.document(report(error.outcome, made.args["to"]))
        raise
    told = report(outcome, made.args["to"]) | redacted
    if as_json:
        show.document(told)
    else:
        _show(told, outcome)
    if outcome.refused:
        exits.told(unconfirmed(outcome))
        return exits.REFUSED
    failed = [row for row in told["to"] if row["status"] == "refused"]
    for row in failed:
        unknown = row["code"] == 404 and not {"@", "*"} & set(row["name"])
        hint = " (--new opens a mailbox for it)" if unknown else ""
        exits.told(f"{row['name']}: {row.get('text') or row['code']}{hint}")
    return exits.REFUSED if failed or told["status"] == "refused" else exits.DONE


def post(call: Call, made: Draft) -> tuple[Outcome, dict[str, Any]]:
    """Send it; what became of it, and what was taken out of it before. Refused for `raw` where no person asks."""
    from agent.redact import outgoing

    if made.raw:
        person = at_keyboard(call, "send secrets as they are")
        return person.submit("send", made.args, made.body, raw=True), {}
    found = outgoing("send", made.args, made.body)[2]
    outcome = call.person.submit("send", made.args, made.body)
    if not found:
        return outcome, {}
    show.note(f"redacted before it was sent: {found} (a person may send it as it is, with --raw)")
    return outcome, {"redacted": found.kinds}


def draft(
    words: Sequence[str],
    to: Sequence[str],
    file: str | None,
    tag: str | None,
    reply_to: str | None,
    ttl: float | None,
    new: bool,
    raw: bool,
) -> Draft:
    """The message that was typed. UsageError for what is none, LocalError for a text that cannot be sent."""
    rest = list(words)
    text: str | None = None
    if file is None:
        if not rest:
            raise click.UsageError("there is no text (talkbus send TO BODY, or '-' for stdin)")
        text = rest.pop()
    if len(rest) > 1:
        raise click.UsageError("too many words (put the text in quotes; join recipients by commas)")
    recipients = [part for entry in (*rest, *to) for part in addresses(entry)]
    if not recipients:
        raise click.UsageError("there is no recipient (talkbus send TO BODY)")
    args: dict[str, Any] = {"to": recipients}
    if reply_to is not None:
        reply_to = message_id(reply_to, "--reply-to")
    optional = {"tag": tag, "re": reply_to, "ttl": int(ttl * 1000) if ttl else None, "new": new or None}
    args.update({key: value for key, value in optional.items() if value is not None})
    return Draft(args, _body(text, file), raw)


def message_id(text: str, option: str) -> str:
    """An id as it was typed for `option`. UsageError for what is none."""
    from bus.names import MESSAGE_ID

    ident = text.strip().lower()
    if not MESSAGE_ID.match(ident):
        raise click.UsageError(
            f"{option}: {ident[:40]!r} is no message id (16 of a-z 2-7, as inbox and history show it behind 'id')"
        )
    return ident


def addresses(text: str) -> list[str]:
    """The parts of a list of recipients."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _body(text: str | None, file: str | None) -> bytes:
    from bus.errors import LocalError
    from bus.wire import BODY_MAX

    source = file or "stdin"
    if file is not None:
        try:
            with Path(file).expanduser().open("rb") as opened:
                data = opened.read(BODY_MAX + 1)
        except OSError as error:
            raise LocalError(f"{file}: {error.strerror} (name a file you may read)") from error
    elif text == "-":
        data = sys.stdin.buffer.read(BODY_MAX + 1)
    else:
        source = "the text"
        data = (text or "").encode("utf-8", "surrogateescape")
    if len(data) > BODY_MAX:
        raise LocalError(f"{source} has more than {BODY_MAX} octets, the limit of a message (send less, or a path)")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LocalError(f"{source} is not UTF-8 text (octet {error.start})") from error
    if not data:
        raise LocalError(f"{source} is empty (a message needs a text)")
    return data


def report(outcome: Outcome, recipients: Sequence[str]) -> dict[str, Any]:
    """The document of `send --json`: the top status is the worst of the recipients'."""
    settled = outcome.settled
    if settled is None:
        status = BLOCKED if outcome.refused else "queued"
        rows = [{"name": name, "status": status, "code": 0} for name in recipients]
        return {"id": outcome.id, "status": status, "to": rows, "since": outcome.at, "reason": outcome.reason}
    rows = settled.result.get("to") or [
        {"name": name, "status": "refused", "code": settled.code, "text": settled.text} for name in recipients
    ]
    worst = max(rows, key=lambda row: int(row["code"]))
    return {"id": outcome.id, "status": worst["status"], "to": rows}


def unconfirmed(outcome: Outcome) -> str:
    """The error for a message that is on this disk when the hub takes nothing from this machine any more."""
    from agent.refusals import with_remedy

    told = f"{outcome.id} is on this disk, and nobody knows whether it has left it: {outcome.reason}"
    return with_remedy(told, f"talkbus why {outcome.id}")


def _show(told: dict[str, Any], outcome: Outcome) -> None:
    if outcome.queued:
        names = ", ".join(row["name"] for row in told["to"])
        click.echo(f"{told['id']}  {told['status']} for {show.safe(names)} since {show.clock(outcome.at)}")
        if outcome.refused:
            return
        show.note(f"it is sent with the next call once the bus runs: {outcome.reason}")
        return
    for row in told["to"]:
        if row["status"] != "refused":
            where = f"{row['name']}@{row['host']}" if row.get("host") else row["name"]
            extra = f" ({row['text']})" if row.get("text") else ""
            click.echo(f"{told['id']}  {show.safe(row['status'])}  {show.safe(where + extra)}")
