"""`talkbus statusline`: the badge of a session. The work is done by hooks/statusline.sh, which needs no Python; this
is the same under a name that is on the path, for a status line of the user's own.
"""

from __future__ import annotations

import os
import sys

import click

from agent.cli import exits


@click.command(cls=exits.OneLine)
@click.option("--quiet", is_flag=True, help="Say nothing where there is no session.")
@click.option("--after", metavar="COMMAND", default="", help="Run COMMAND first, and put this behind its output.")
def statusline(quiet: bool, after: str) -> None:
    """Print one line for the client's status line.

    It reads the client's JSON on stdin. 'talkbus install' sets it up, together with a status line of your own.

    \b
    talkbus statusline --quiet
    """
    from agent.statusline import SCRIPT

    if sys.platform == "win32":
        raise click.ClickException("the status line needs a POSIX shell (use WSL)")
    if not SCRIPT.is_file():
        raise click.ClickException(f"{SCRIPT} is missing (install talkbus again)")
    options = [*(["--quiet"] if quiet else []), *(["--after", after] if after else [])]
    os.execv("/bin/sh", ["sh", str(SCRIPT), *options])
