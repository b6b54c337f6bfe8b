"""How far may be pruned what no person ordered: the mail of before `prune.days`, by a clock that was seen for long.

A clock that is far ahead makes everything old. It shows by a hole in the mail, between what was written by the right
clock and by this one, and so does a holiday; so after a hole nothing goes until a day of mail stands behind it. Pure.
It must not know the disk nor sockets.
"""

from __future__ import annotations

DAY_MS = 86_400_000
STEADY_MS = DAY_MS  # for so long mail has to have been written by this clock
HOLE_MS = 7 * DAY_MS  # and no more than this, or half of what is kept, may lie between it and the mail before


def reach(now: int, keep: int, last: int, ordered: int) -> tuple[int, str]:
    """What is older may go, and why that is not what was configured ("" where it is). Times in ms since 1970.

    `last` is when the newest message was written that is older than STEADY_MS, 0 where there is none; `ordered` is
    how far the orders reach that were given.
    """
    hole = now - STEADY_MS - last
    if last and hole > min(HOLE_MS, max(keep // 2, DAY_MS)):
        days = (now - last) // DAY_MS
        return 0, f"the clock is {days} days ahead of the mail, so nothing is pruned by itself for a day"
    before = max(0, now - keep)
    if ordered > now:
        days = max(1, (ordered - now) // DAY_MS)
        return before, f"a clock that was {days} days or more ahead ordered a pruning, which is not carried out"
    return before, ""
