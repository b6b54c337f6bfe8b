"""Which of our scripts the client runs, at which events: one table, in the two forms a client reads.

The plugin's form names the scripts by ${CLAUDE_PLUGIN_ROOT}, the installed one by their absolute path. Where both
are there the plugin's steps aside, by a variable that the installed settings give to every session. Must not know
what the scripts do, nor where the settings stand.

`python -m agent.settings_hooks` prints what hooks/hooks.json has to be; a test compares the two.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "hooks"
DELIVER, REWAKE, STATUSLINE = "deliver.sh", "rewake.sh", "statusline.sh"
SOURCED = "maildir.sh"  # read by the first two

INSTALLED = "TALKBUS_INSTALLED"  # in the environment of a session whose settings have the installed form
SERVER = "talkbus"
PERMISSION = f"mcp__{SERVER}"

# The comment tells ours from everybody else's, in this version and in all that come.
MARK = "# talkbus"
_OURS = re.compile(r"# talkbus\s*$")
_STEP_ASIDE = f'[ -z "${INSTALLED}" ] || exit 0; '

REFRESH_S = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One script at one event. `timeout` in seconds; `rewake`: it waits in the background, and wakes by its end."""

    event: str
    script: str
    timeout: int
    rewake: bool = False


_LONG_S = 86_400  # a waiter lives as long as its session, which is what it watches
TABLE = (
    Row("SessionStart", DELIVER, 5),
    Row("SessionStart", REWAKE, _LONG_S, rewake=True),
    Row("UserPromptSubmit", DELIVER, 5),
    Row("UserPromptSubmit", REWAKE, _LONG_S, rewake=True),
    Row("PreToolUse", DELIVER, 5),
    Row("PostToolUse", DELIVER, 5),
    Row("PostToolUse", REWAKE, _LONG_S, rewake=True),
    Row("PostToolUseFailure", DELIVER, 5),
    Row("Stop", DELIVER, 5),
    Row("Stop", REWAKE, _LONG_S, rewake=True),
    Row("Notification", DELIVER, 5),
    Row("SessionEnd", DELIVER, 2),
)


def plugin() -> dict[str, Any]:
    """The whole of the plugin's hooks/hooks.json."""

    def command(script: str) -> str:
        # A script that is not there would be exit code 2 under some shells, and that blocks every prompt.
        path = f'"${{CLAUDE_PLUGIN_ROOT}}"/hooks/{script}'
        return f"{_STEP_ASIDE}[ -f {path} ] || exit 0; exec sh {path}"

    return {"description": "talkbus: mail for this session", "hooks": _events(command)}


def installed(folder: Path = FOLDER) -> dict[str, list[dict[str, Any]]]:
    """The `hooks` of a settings file. A folder that has gone away since makes them do nothing."""

    def command(script: str) -> str:
        path = shlex.quote(str(folder / script))
        return f"[ -f {path} ] || exit 0; exec sh {path}"

    return _events(command)


def _events(command: Callable[[str], str]) -> dict[str, list[dict[str, Any]]]:
    events: dict[str, list[dict[str, Any]]] = {}
    for row in TABLE:
        hook: dict[str, Any] = {
            "type": "command",
            "command": f"{command(row.script)}{'' if row.rewake else ' ' + row.event} {MARK}",
            "timeout": row.timeout,
        }
        if row.rewake:
            hook |= {
                "asyncRewake": True,
                "rewakeMessage": "Mail on the talkbus:",
                "rewakeSummary": "Mail on the talkbus",
            }
        groups = events.setdefault(row.event, [{"hooks": []}])
        groups[0]["hooks"].append(hook)
    return events


def is_ours(hook: object) -> bool:
    """Whether one hook, or a statusLine, of a settings file was written by this or another version of us."""
    command = hook.get("command") if isinstance(hook, dict) else None
    return isinstance(command, str) and _OURS.search(command) is not None


def statusline(theirs: str = "", folder: Path = FOLDER) -> str:
    """The command of our status line, `theirs` before it. Without our script it is theirs alone."""
    path = shlex.quote(str(folder / STATUSLINE))
    if not theirs:
        return f"[ -f {path} ] || exit 0; exec sh {path} --quiet {MARK}"
    return (
        f"theirs={shlex.quote(theirs)}; "
        f'[ -f {path} ] || exec sh -c "$theirs"; exec sh {path} --quiet --after "$theirs" {MARK}'
    )


def theirs_in(command: str) -> str:
    """The user's own command that `statusline` put into ours; "" for none."""
    if not command.startswith("theirs="):
        return ""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=";")
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        return next(lexer).removeprefix("theirs=")
    except (StopIteration, ValueError):
        return ""


def scripts(settings: object) -> list[Path]:
    """Every script our commands in a settings file would run."""
    found: dict[Path, None] = {}
    hooks = settings.get("hooks") if isinstance(settings, dict) else None
    groups = [g for some in hooks.values() if isinstance(some, list) for g in some] if isinstance(hooks, dict) else []
    inner = [g.get("hooks") for g in groups if isinstance(g, dict)]
    commands = [h for some in inner if isinstance(some, list) for h in some]
    if isinstance(settings, dict):
        commands.append(settings.get("statusLine"))
    for hook in commands:
        if is_ours(hook):
            words = re.findall(r"exec sh ('(?:[^']|'\"'\"')*'|\S+)", hook["command"].rpartition("exec sh -c")[2])
            found.update({Path(shlex.split(word)[0]): None for word in words})
    return list(found)


if __name__ == "__main__":
    print(json.dumps(plugin(), indent=2))
