"""Messages as the commands print them: JSON by contract, or made harmless for a terminal."""

from __future__ import annotations

from typing import Any

import click

from agent.cli import show
from agent.cli.call import Rows


def message(value: dict[str, Any], body: bytes) -> dict[str, Any]:
    """One message as every JSON listing gives it."""
    return {
        "id": value["id"],
        "from": sender(value),
        "to": value.get("to", ""),
        "kind": value.get("kind", ""),
        "tag": value.get("tag", ""),
        "reply_to": value.get("re", ""),
        "thread": value.get("thread", ""),
        "ts": value.get("ts", 0),
        "again": bool(value.get("again")),
        "body": body.decode("utf-8", "replace"),
    }


def sender(value: dict[str, Any]) -> str:
    """The sender's name."""
    return str(value.get("from", ""))


def print_letters(rows: Rows, statuses: bool = False, more: bool = False) -> None:
    """Each message whole, with an empty line between two, and before the first when there are `more` above."""
    from agent.render import Letter, render_terminal

    for number, (value, body) in enumerate(rows):
        letter = Letter(
            id=value["id"],
            from_=sender(value),
            host=str(value.get("host", "")),
            to=str(value.get("to", "")),
            kind=str(value.get("kind", "")),
            tag=str(value.get("tag", "")),
            re=str(value.get("re", "")),
            thread=str(value.get("thread", "")),
            ts=int(value.get("ts", 0)),
            body=body,
            repeat=bool(value.get("again")) and not statuses,
            answer=bool(value.get("answer")),
        )
        if number or more:
            click.echo()
        click.echo(render_terminal(letter, show.now_ms(), show.colour()))
        if statuses:
            click.echo(f"  -- to {show.safe(value.get('to', ''))}: {show.safe(value.get('status', ''))}")
