"""What the hub said against this machine: that it is not paired, or that its role may neither send nor receive.

Remembered in the state directory, for every process of this user and over restarts, until the hub accepts the machine
again or another pairing replaces the one it was said about. Knows nothing of links.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bus import joined
from bus.config import Config, Home
from bus.errors import BusError
from bus.private import private_dir, write_private

log = logging.getLogger("talkbus.agent")

_TEXT_MAX = 4096
_FILE_MAX = 4 * _TEXT_MAX


@dataclass(frozen=True, slots=True)
class Refusal:
    """`text` is one line, `what (what to do)`; `at` is when it was said (ms since 1970).

    `heard`: the hub said so when it was last asked. If not, it was said before, and nobody can ask the hub now.
    """

    text: str
    at: int
    heard: bool = True

    def words(self) -> str:
        """One line for the user, which says where nobody could ask the hub again."""
        if self.heard:
            return self.text
        what, bracket, remedy = self.text.rpartition(" (")
        said = "that is what the hub last said, and it cannot be reached now"
        return f"{what}; {said} ({remedy}" if bracket else f"{self.text}; {said} (try again when it can be reached)"


def recall(home: Home, config: Config) -> Refusal | None:
    """What the hub that is used now last said against this machine; None when it said nothing. Never raises."""
    try:
        with _file(home).open("rb") as file:
            kept = json.loads(file.read(_FILE_MAX))
        if kept["about"] == _about(home, config) is not None:
            return Refusal(str(kept["text"])[:_TEXT_MAX], int(kept["at"]), heard=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, BusError) as error:
        log.warning("what the hub said against this machine cannot be read: %s", error)
    return None


def remember(home: Home, config: Config, refusal: Refusal) -> None:
    """Keep it. Best effort: without it a later process asks the hub again."""
    try:
        about = _about(home, config)
        known = recall(home, config)
        if about is None or (known is not None and known.text == refusal.text):
            return
        kept = {"about": about, "text": refusal.text[:_TEXT_MAX], "at": refusal.at}
        private_dir(home.state)
        write_private(_file(home), json.dumps(kept).encode() + b"\n")
    except (OSError, BusError) as error:
        log.warning("what the hub said against this machine cannot be kept: %s", error)


def forget(home: Home) -> None:
    """The hub has accepted this machine."""
    with suppress(OSError):
        _file(home).unlink(missing_ok=True)


def with_remedy(text: str, remedy: str) -> str:
    """A line of the form `what (what to do)`, with one more thing to do."""
    return f"{text[:-1]}; {remedy})" if text.endswith(")") else f"{text} ({remedy})"


def again(former: Refusal | None, text: str, at: int) -> Refusal:
    """The refusal that was heard now; one that is repeated keeps its time."""
    if former is not None and former.text == text:
        return replace(former, heard=True)
    return Refusal(text, at)


def _about(home: Home, config: Config) -> str | None:
    """The pairing it is about: the hub's key, and since when this machine has joined it. None without a hub."""
    hub = joined.hub(home, config)
    if hub is None:
        return None
    known = joined.joined(home)
    return f"{hub.key} {known.since if known is not None else 0}"


def _file(home: Home) -> Path:
    return home.state / "refused.json"
