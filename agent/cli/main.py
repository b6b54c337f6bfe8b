"""The command `talkbus`: its subcommands by name, each imported when it is called.

The short helps stand here, so that `--help` imports none of them; a test compares them with the commands' own.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import NoReturn

import click

from agent.cli import exits
from agent.cli.call import Call, acting

# name -> module beside this one, attribute, short help; in the order of --help
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("demo", "demo", "See it: agents, messages, crashes, and nothing lost."),
    "send": ("mail", "send", "Send a message."),
    "ask": ("ask", "ask", "Send a message and wait for the answer."),
    "inbox": ("inbox", "inbox", "Show unread mail, and mark it as shown."),
    "ack": ("inbox", "ack", "Say that messages were dealt with."),
    "why": ("trace", "why", "Tell what became of a message, with proof."),
    "peers": ("people", "peers", "List who is there."),
    "whoami": ("people", "whoami", "Tell who acts here: name, id, unread mail."),
    "rename": ("people", "rename", "Give this mailbox another name."),
    "take": ("people", "take", "Take over a name for this session."),
    "busy": ("people", "busy", "Tell the others that this session is busy."),
    "ready": ("people", "ready", "Tell the others that this session is free."),
    "summary": ("people", "summary", "Tell the others what this session works on."),
    "state": ("state", "state", "Read and write values that all sessions share."),
    "log": ("log", "log", "Show what the bus did, and what it does."),
    "history": ("trace", "history", "List messages that were sent and received."),
    "search": ("trace", "search", "Search the text of all messages."),
    "transcript": ("transcript", "transcript", "Read what was said and done in another session on this machine."),
    "policy": ("policy", "policy", "Say whose mail is accepted, held or refused."),
    "hold": ("hold", "hold", "See, release or drop what is held for you."),
    "pause": ("pause", "pause", "Hold all mail to the sessions of this machine."),
    "resume": ("pause", "resume", "End the pause: what only the pause held goes on."),
    "audit": ("audit", "audit", "Look whether the journal was tampered with."),
    "prune": ("prune", "prune", "Remove old messages that were read."),
    "lan": ("lan", "lan", "Make several machines one bus."),
    "up": ("broker", "up", "Start the bus."),
    "down": ("broker", "down", "Stop the bus, until 'talkbus up'."),
    "status": ("broker", "status", "Tell whether the bus runs, and how it is."),
    "doctor": ("doctor", "doctor", "Try every path, and say how to fix what does not work."),
    "config": ("broker", "config", "Show and change settings."),
    "install": ("install", "install", "Put talkbus into Claude Code's settings."),
    "uninstall": ("install", "uninstall", "Take talkbus out of Claude Code's settings."),
    "statusline": ("statusline", "statusline", "Print one line for the client's status line."),
    "claude": ("claude", "claude", "Run claude so that messages can be typed into it."),
    "run": ("claude", "run", "Run any program so that it learns of messages."),
    "mcp": ("mcp", "mcp", "Run as an MCP server, for a client to start."),
    "version": ("broker", "version", "Print the version."),
}

OWN_SIGNALS = ("up", "mcp", "claude", "run", "demo")  # they say themselves what a signal does


class Commands(exits.OneLine, click.Group):
    """The group: finds a command by name, and the nearest name for one that does not exist."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the one that was asked for."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        try:
            found = getattr(import_module(f"agent.cli.{module}"), attribute)
        except ModuleNotFoundError as error:
            if error.name != f"agent.cli.{module}":
                raise
            raise click.ClickException(f"'talkbus {cmd_name}' is not part of this installation") from error
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the nearest name in the error."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            _unknown(ctx, args[0])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without importing what it lists."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, short) for name, (_, _, short) in COMMANDS.items()])


def _unknown(ctx: click.Context, name: str) -> NoReturn:
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise click.UsageError(f"there is no command {name[:40]!r}{hint}", ctx)


def _version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"talkbus {ctx.ensure_object(Call).version}")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
@acting
@click.pass_context
def cli(ctx: click.Context) -> None:
    """A message bus for coding-agent sessions, and for the people beside them.

    \b
    talkbus peers                               who is there
    talkbus send api "the migration is in"      to the session called api
    talkbus inbox                               your own mail

    The broker starts by itself when it is needed. Exit codes: 0 done, 1 refused or failed, 2 usage, 3 broker not
    reachable, 4 timed out; 128 and the number of the signal that ended it.
    """
    if ctx.invoked_subcommand not in OWN_SIGNALS:
        exits.hear_signals()
