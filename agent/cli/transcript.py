"""What was said in another session on this machine: transcript PEER."""

from __future__ import annotations

import os
from dataclasses import asdict

import click

from agent.cli import show
from agent.cli.call import Call, as_json, pass_call


@click.command()
@click.argument("peer", metavar="PEER")
@click.option("--turn", "number", type=click.IntRange(1), metavar="N", help="One turn, whole.")
@click.option("--search", "query", default="", metavar="TEXT", help="Where TEXT occurs.")
@click.option("--regex", is_flag=True, help="TEXT is a regular expression.")
@click.option("--before", type=click.IntRange(0), default=0, metavar="N", help="Only turns before turn N.")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many turns.")
@click.option("--offset", type=click.IntRange(0), default=0, metavar="N", help="With --turn: begin at character N.")
@click.option("--raw", is_flag=True, help="Do not redact secrets, where history.raw allows it.")
@as_json
@pass_call
def transcript(
    call: Call,
    peer: str,
    number: int | None,
    query: str,
    regex: bool,
    before: int,
    limit: int,
    offset: int,
    raw: bool,
    as_json: bool,
) -> None:
    """Read what was said and done in another session on this machine.

    Prompts, the model's words, and each call of a tool with its result; what happens inside a subagent is left out.
    Secrets are redacted. Sessions of other machines are not read. 'talkbus config set history.share false' keeps all
    sessions of this machine to themselves.

    \b
    talkbus transcript api
    talkbus transcript api --search migration
    talkbus transcript api --turn 12
    """
    from agent.delivery import history
    from agent.peer_history import told, turns

    found = turns(call.home, call.config, os.environ, peer, raw)
    if not as_json:
        click.echo(told(found, query, regex, number or 0, offset, before, limit))
    elif number:
        show.document(asdict(history.turn(found, number, offset)))
    elif query:
        show.document(asdict(history.search(found, query, regex, before, limit)))
    else:
        show.document(asdict(history.page(found, before, limit)))
