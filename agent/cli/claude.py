"""`talkbus claude`: the client in a pseudo-terminal, so that a message can be typed into it.

Every argument is the client's, also --help. Knows the terminal's supervisor and nothing of messages.
"""

from __future__ import annotations

import os
import shutil

import click

from agent.cli import exits
from agent.cli.call import Call, pass_call


class _Untouched(exits.OneLine):
    """A command that reads no option of its own, not even -- and --help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep all of them for the program."""
        ctx.args = list(args)
        return []


@click.command(cls=_Untouched, add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.pass_context
@pass_call
def claude(call: Call, ctx: click.Context) -> int:
    """Run claude so that messages can be typed into it.

    Only for sessions that no other path can wake. Every argument goes to claude, or to the program that the setting
    claude_bin (TALKBUS_CLAUDE_BIN) names.

    \b
    talkbus claude --continue
    """
    from agent.delivery import pty
    from bus.errors import ConfigError
    from bus.private import private_dir

    program = call.config.claude_bin or "claude"
    if shutil.which(program) is None:
        raise ConfigError(f"there is no program {program!r} (install it, or set TALKBUS_CLAUDE_BIN to where it is)")
    private_dir(call.home.runtime)
    private_dir(call.home.maildirs)
    return pty.run([program, *ctx.args], call.home.maildirs, dict(os.environ))
