"""`talkbus pause` and `talkbus resume`: hold everything that comes to the sessions of this machine, and go on."""

from __future__ import annotations

import click

from agent.cli import show
from agent.cli.call import Call, as_json, pass_call
from agent.cli.keyboard import at_keyboard


@click.command()
@as_json
@pass_call
def pause(call: Call, as_json: bool) -> None:
    """Hold all mail to the sessions of this machine.

    From any sender, this machine's own sessions included, from now on; what a mailbox has already goes on. Senders
    are told that it is held.

    \b
    talkbus pause
    """
    at_keyboard(call, "pause").do("pause", {"on": True})
    if as_json:
        show.document({"paused": True})
    else:
        click.echo("paused: all mail to the sessions of this machine is held until 'talkbus resume'")


@click.command()
@as_json
@pass_call
def resume(call: Call, as_json: bool) -> None:
    """End the pause: what only the pause held goes on.

    What the policy holds stays held (talkbus hold list).

    \b
    talkbus resume
    """
    released = int(at_keyboard(call, "resume").do("pause", {"on": False})["released"])
    if as_json:
        show.document({"paused": False, "released": released})
    else:
        click.echo(f"resumed; {released} held message{'s' * (released != 1)} went on")
