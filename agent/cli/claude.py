"""`talkbus claude` and `talkbus run`: a program in a pseudo-terminal, so that a message can be typed into it.

What follows the program's name is the program's, every option. Knows the supervisor and nothing of messages.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

import click

from agent.cli import exits
from agent.cli.call import Call, pass_call

HELP = ("-h", "--help")


class _Untouched(exits.OneLine):
    """A command that reads only what comes first: -h or --help, which is ours, and --, after which nothing is."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the rest for the program."""
        if args and args[0] in HELP:
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()
        ctx.args = list(args[1:] if args and args[0] == "--" else args)
        return []


@click.command(cls=_Untouched, add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.pass_context
@pass_call
def claude(call: Call, ctx: click.Context) -> int:
    """Run claude so that messages can be typed into it.

    A message is pasted in and sent while claude is idle, its input line is empty and the keyboard has been still. It
    is the way for sessions that no other path can wake, and needs nothing installed in the client: without an MCP
    server of ours this command joins the bus for the session.

    Every argument goes to claude, or to the program that the setting claude_bin (TALKBUS_CLAUDE_BIN) names. Only a
    first --help or -h is ours, and a first -- is taken away.

    \b
    talkbus claude --continue
    talkbus claude -- --help                    claude's own help
    """
    from bus.errors import ConfigError

    program = call.config.claude_bin or "claude"
    if shutil.which(program) is None:
        raise ConfigError(
            f"there is no program {program!r} (install Claude Code, or: talkbus config set claude_bin PATH)"
        )
    return _supervise(call, [program, *ctx.args], own_status=True, paste=False)


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--paste", is_flag=True, help="Paste the messages themselves, and press Enter: see above.")
@click.argument("command", metavar="CMD [ARGS]...", nargs=-1, type=click.UNPROCESSED, required=True)
@pass_call
def run(call: Call, command: Sequence[str], paste: bool) -> int:
    """Run any program so that it learns of messages.

    The session joins the bus under the name of this folder. Into a program that reads lines one line is typed, which
    says that a message waits: 'talkbus inbox', run inside the program, shows it. Into a program that reads keys
    nothing is typed, for Enter may confirm a dialog there. With --paste you say that it takes pasted text as text,
    not as commands, and asks nothing that Enter answers: then the message itself is typed in while it writes nothing.
    A program that reads lines gets the one line all the same.

    Everything after CMD goes to the program.

    \b
    talkbus run ./my-agent --verbose
    talkbus run --paste codex
    """
    from bus.errors import ConfigError

    if shutil.which(command[0]) is None:
        raise ConfigError(f"there is no program {command[0]!r} (check the name, or give its path)")
    status = os.path.basename(command[0]).startswith("claude")
    return _supervise(call, list(command), own_status=status, paste=paste)


def _supervise(call: Call, command: list[str], own_status: bool, paste: bool) -> int:
    from agent.delivery import pty
    from agent.hosted import Hosted
    from bus.private import private_dir

    os.getcwd()  # of a removed folder no name can be made: FileNotFoundError, as `exits` tells it
    private_dir(call.home.runtime)
    private_dir(call.home.maildirs)
    environ = dict(os.environ)
    host = Hosted(call.home, call.config, environ, os.path.basename(command[0]))
    return pty.run(command, call.home.maildirs, environ, host, own_status, paste)
