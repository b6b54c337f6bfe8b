"""`talkbus install` and `uninstall`: into a client's settings, and out again. The work is in agent/settings_*.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli import exits, show
from agent.cli.call import Call, as_json, pass_call

if TYPE_CHECKING:
    from agent.settings_client import Places
    from agent.settings_plan import Plan


def _options(command: Any) -> Any:
    """Those both commands have."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Print the change as a diff, and change nothing."),
        click.option("--client", type=click.Choice(["claude"]), default="claude", help="The client to install into."),
        click.option(
            "--scope",
            type=click.Choice(["user", "project"]),
            default="user",
            show_default=True,
            help="For all your sessions, or for those in this folder.",
        ),
    ):
        command = option(command)
    return command


@click.command(cls=exits.OneLine)
@_options
@as_json
@pass_call
def install(call: Call, scope: Any, client: str, dry_run: bool, as_json: bool) -> None:
    """Put talkbus into Claude Code's settings.

    The MCP server, the hooks, the permission to use its tools, and the status line. Every file is backed up first;
    what others wrote stays; a second time changes nothing.

    \b
    talkbus install --dry-run
    talkbus install
    """
    from agent import settings_plan

    where = _where(scope)
    plan = settings_plan.installing(call.home, where, os.environ)
    plan.notes += settings_plan.hindrances(where, os.environ, Path.home() if exits.nowhere() else Path.cwd())
    copies = [] if dry_run else settings_plan.install(call.home, plan)
    if not _shown(plan, where, dry_run, as_json, {"backups": [str(copy) for copy in copies]}):
        return
    for change in plan.pending:
        click.echo(f"changed {show.safe(change.file.path)}")
    for copy in copies:
        click.echo(f"backup  {show.safe(copy)}")
    if plan.pending:
        click.echo("start a new session to use it; 'talkbus doctor' checks it")
    else:
        click.echo("nothing to do: it is installed")


@click.command(cls=exits.OneLine)
@_options
@as_json
@pass_call
def uninstall(call: Call, scope: Any, client: str, dry_run: bool, as_json: bool) -> None:
    """Take talkbus out of Claude Code's settings.

    A file that nobody else changed since is as it was before, to the byte; of others only our entries go. Mail,
    settings and keys of talkbus stay.

    \b
    talkbus uninstall --dry-run
    talkbus uninstall
    """
    from agent import settings_plan

    where = _where(scope)
    plan = settings_plan.uninstalling(call.home, where)
    left = [] if dry_run else settings_plan.uninstall(call.home, plan)
    if not _shown(plan, where, dry_run, as_json, {"backups": [str(copy) for copy in left]}):
        return
    for change in plan.pending:
        word = "changed" if change.data is not None else "removed"
        click.echo(f"{word} {show.safe(change.file.path)}")
    for copy in left:
        click.echo(f"backup  {show.safe(copy)} stays, as the file was changed by others too")
    if not plan.pending:
        click.echo("nothing to do: it is not installed")


def _where(scope: Any) -> Places:
    from agent.settings_client import places

    if sys.platform == "win32":
        raise click.ClickException("hooks and status line need a POSIX shell (run both in WSL)")
    # What is the user's is the same from everywhere, also from a folder that was removed.
    return places(scope, os.environ, Path.home() if scope == "user" else Path.cwd())


def _shown(plan: Plan, where: Places, dry_run: bool, as_json: bool, more: dict[str, Any]) -> bool:
    """Print what is the same for both; whether there is more to be said."""
    if as_json:
        changed = [str(change.file.path) for change in plan.pending]
        told = {"scope": where.scope, "changed": changed, "notes": plan.notes, "dry_run": dry_run, **more}
        show.document({**told, "diff": plan.diff()} if dry_run else told)
        return False
    if dry_run:
        click.echo(plan.diff() or "nothing would change", nl=not plan.pending)
    for note in plan.notes:
        show.note(note)
    return not dry_run
