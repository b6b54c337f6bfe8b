"""What an installation changes, and how it is taken back: both files of a scope, all or nothing, with their record.

A plan is made without writing anything, so that it can be shown. Must not know the command line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent import settings_block
from agent import settings_files as files
from agent.settings_client import Places, places, server_entry, session_environment
from agent.settings_entries import Put, put_server, put_settings, take_server, take_settings
from agent.settings_files import Change, File, Kept
from agent.settings_text import parse
from bus.config import Home
from bus.errors import ConfigError

_CHANGED = "changed by others in between"  # in place of a digest: there is no way back to the byte


@dataclass(slots=True)
class Plan:
    """Both files as they will be, what is to be remembered of each, and what was left as it was."""

    changes: list[Change]
    puts: list[Put] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def pending(self) -> list[Change]:
        """Those that change something."""
        return [change for change in self.changes if change.real]

    def diff(self) -> str:
        return "".join(change.diff() for change in self.pending)


def installing(home: Home, where: Places, environ: Mapping[str, str]) -> Plan:
    """The plan to put us in. ConfigError names the file, and the line where one is wrong."""
    shared = where.scope == "project"
    settings, servers = files.read(where.settings, shared=shared), files.read(where.servers, shared=shared)
    notes = []
    line = True
    if shared and _status_line_of_user(environ):
        line = False
        notes.append("your own settings have a statusLine, so the project gets none (talkbus install --scope user)")
    text, put = put_settings(settings.text, str(settings.path), env=session_environment(home), line=line)
    listed, entry = put_server(servers.text, str(servers.path), server_entry(where.scope))
    plan = Plan([_change(settings, text), _change(servers, listed)], [put, entry])
    plan.notes = notes + put.notes + entry.notes
    return plan


def hindrances(where: Places, environ: Mapping[str, str], folder: Path) -> list[str]:
    """What would keep the installed entries from working in a session in `folder`, one line each."""
    from agent.tools import table

    found = settings_block.read(environ, folder)
    server = settings_block.Server(where.scope, where.servers, dict(server_entry(where.scope)))
    blocks = [
        *found.refused,
        *settings_block.hook_blocks(found, {where.scope}),
        *settings_block.server_blocks(found, server),
        *settings_block.tool_blocks(found, server.prefix, list(table())),
    ]
    lines = [f"{'warning' if block.hard else 'note'}: {block}" for block in blocks]
    for other in found.servers():
        before = other.scope not in (where.scope, "user")
        if before and (other.scope != "project" or settings_block.approval(found, other) == "approved"):
            lines.append(
                f"warning: {other.path}: an MCP server talkbus of scope {other.scope} goes before the one installed "
                "(remove it there, or give it another name)"
            )
    return list(dict.fromkeys(lines))


def install(home: Home, plan: Plan) -> list[Path]:
    """Carry it out; the backups made. Nothing is written when nothing changes."""
    pending = plan.pending
    if not pending:
        return []
    record = files.load(home)
    folders = [not change.file.real.parent.exists() for change in pending]
    copies = files.apply(pending, backups=True)
    for change, copy, folder in zip(pending, copies, folders, strict=True):
        put = plan.puts[plan.changes.index(change)]
        _remember(record, change, copy, put, folder)
    files.save(home, record)
    return [copy for copy in copies if copy is not None]


def uninstalling(home: Home, where: Places) -> Plan:
    """The plan to take us out: the very bytes from before where nobody else touched them, else our entries alone."""
    record = files.load(home)
    changes = []
    for path in (where.settings, where.servers):
        file = files.read(path)
        kept = record.get(str(file.real))
        back = files.original(file, kept)
        if back is None:
            back = _without(file, kept, path == where.settings)
        changes.append(back)
    return Plan(changes)


def uninstall(home: Home, plan: Plan) -> list[Path]:
    """Carry it out; the backups that stay, since what they hold is not what is there now."""
    record = files.load(home)
    files.apply(plan.pending, backups=False)
    left = []
    for change in plan.changes:
        kept = record.pop(str(change.file.real), None)
        if kept is None:
            continue
        if kept.backup and files.digest(change.data) == kept.before:
            Path(kept.backup).unlink(missing_ok=True)
        elif kept.backup and Path(kept.backup).exists():
            left.append(Path(kept.backup))
        if kept.folder and change.data is None:
            with contextlib.suppress(OSError):  # something else is in it by now
                change.file.real.parent.rmdir()
    files.save(home, record)
    return left


def _change(file: File, text: str) -> Change:
    return Change(file, file.data if text == file.text and file.data is not None else file.encoded(text))


def _without(file: File, kept: Kept | None, settings: bool) -> Change:
    if file.data is None:
        return Change(file, None)
    put = Put(kept.made, kept.added) if kept else None
    take = take_settings if settings else take_server
    text = take(file.text, str(file.path), put)
    if kept is not None and not kept.before and not parse(text, str(file.path)):
        return Change(file, None)  # it was made by us, and nobody else put anything in
    return Change(file, file.data if text == file.text else file.encoded(text))


def _remember(record: dict[str, Kept], change: Change, copy: Path | None, put: Put, folder: bool) -> None:
    """What was there before us is what was there before the first of several installations in a row."""
    name = str(change.file.real)
    before = record.get(name)
    kept = Kept(
        before=files.digest(change.file.data),
        after=files.digest(change.data),
        backup=str(copy or ""),
        made=put.made,
        added=put.added,
        line=put.line,
        folder=folder,
    )
    if before is not None and kept.before != before.before:
        kept.made = sorted({*before.made, *put.made})
        kept.added = sorted({*before.added, *put.added})
        kept.line = put.line or before.line
        kept.folder = before.folder
        if kept.before == before.after:
            kept.before = before.before
            if copy is not None:
                copy.unlink(missing_ok=True)  # it holds our own entries; the first one is the user's
                kept.backup = before.backup
        else:
            kept.before = _CHANGED
    record[name] = kept


def _status_line_of_user(environ: Mapping[str, str]) -> bool:
    try:
        file = files.read(places("user", environ, Path()).settings)
        return bool(parse(file.text, str(file.path)).get("statusLine"))
    except ConfigError:
        return False
