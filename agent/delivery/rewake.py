"""Whether an idle session can be woken by its hook: is somebody waiting, and did a ring help.

The waiter is hooks/rewake.sh, started by the client with `asyncRewake`. It reads the bell of the maildir, claims the
waiting tasks and ends with exit code 2, which wakes the session with them; the next event of the session arms it
again. What it takes goes through the same folders as with every other hook, so there is nothing else to follow.

Must not know messages nor the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.delivery.maildir import Fate, Maildir

CLAIM_MS = 3_000  # a waiter that was rung claims within some ms; a machine that is asleep may need longer


@dataclass(slots=True)
class Wake:
    """One attempt to wake with a text that was put into the maildir; `now` is ms of any steady clock."""

    name: str
    at: int

    def verdict(self, maildir: Maildir, now: int) -> Fate | None:
        """What became of it; None while it is still worth waiting. WAITING means nobody came: withdraw it."""
        fate = maildir.box.fate(self.name)
        if fate in (Fate.WAITING, Fate.CLAIMED) and now - self.at < CLAIM_MS:
            return None
        return fate


def available(maildir: Maildir) -> bool:
    """Whether an idle session would be woken by a task now."""
    return maildir.waiter


def wake(maildir: Maildir, text: str, now: int, wall: int) -> Wake:
    """Put a task where the waiter finds it, and ring. `wall` is ms since 1970. OSError when the disk refuses."""
    return Wake(maildir.put(text, "task", wall), now)
