"""Sessions by traffic: how much each sends and gets, what waits for it, and how it can be reached. Pure.

Rates are of copies (a message to three is three), over the last second and the last minute, or as long as it was
looked. What waits is as of the last reading of the peers, and counted on from there by events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.render import age, safe
from agent.tap.cells import Canvas, Segment, width
from agent.tap.items import Item, num, rows, text
from agent.tap.office_scene import name_style

# In ms.
SHORT = 1000
LONG = 60_000
BUCKET = 100
SLOW = 60_000  # mail that waits longer for somebody who is here is worth a look

SORTS = ("traffic", "unread", "oldest", "name")
# How a session can be reached -> (what that means, whether a message wakes it)
PATHS = {
    "native": ("inbox, wakes at once", True),
    "rewake": ("hooks, wakes", True),
    "channel": ("channel, wakes", True),
    "terminal": ("typed in, wakes", True),
    "notice": ("a notice typed in", True),
    "hooks": ("hooks, next turn", False),
    "tools": ("tool calls only", False),
    "inbox": ("talkbus inbox only", False),
    "": ("not told", False),
}


class Rate:
    """How often something happened, in buckets of 100 ms."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: deque[list[int]] = deque()  # [time of the bucket, how often]

    def add(self, now: int) -> None:
        at = now - now % BUCKET
        if self._buckets and self._buckets[-1][0] == at:
            self._buckets[-1][1] += 1
        else:
            self._buckets.append([at, 1])
        self._forget(now)

    def count(self, now: int, span: int) -> int:
        """How often in the last `span` ms, at most the last minute."""
        self._forget(now)
        return sum(times for at, times in self._buckets if at > now - span)

    def _forget(self, now: int) -> None:
        while self._buckets and self._buckets[0][0] <= now - LONG:
            self._buckets.popleft()


@dataclass(slots=True)
class Peer:
    """What is known of one mailbox."""

    id: str
    name: str = ""
    host: str = ""
    kind: str = "session"
    presence: str = "gone"
    activity: str = ""
    wake: str = ""
    unread: int = 0
    oldest: int = 0
    sent: Rate = field(default_factory=Rate)
    got: Rate = field(default_factory=Rate)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Rates are per second; `waits` is the age of the oldest unread, in ms."""

    name: str
    host: str
    id: str
    presence: str
    activity: str
    sent_1s: float
    sent_60s: float
    got_1s: float
    got_60s: float
    unread: int
    waits: int
    wake: str
    health: str  # "ok", "warn" or "bad"


@dataclass(frozen=True, slots=True)
class Table:
    """The table at one moment; `looked` is for how many ms was looked."""

    at: int
    rows: tuple[Row, ...]
    copies_1s: float
    copies_60s: float
    unread: int
    waits: int
    here: int
    looked: int
    remark: str


class Top:
    """Call `take` for each item, in order, and `table` whenever it is to be shown."""

    def __init__(self) -> None:
        self.sort = SORTS[0]
        self._peers: dict[str, Peer] = {}
        self._all = Rate()
        self._since = 0
        self._seq = 0  # the last event the peers were read after
        self._remark = "connecting"

    def take(self, item: Item) -> None:
        """Let one item have happened."""
        self._since = self._since or item.at
        told = item.told
        if item.what in ("snapshot", "peers"):
            self._read(item)
        elif item.what == "lost":
            self._remark = "the connection is lost, trying again"
        elif item.what == "event" and text(told, "class") == "msg":
            self._message(item)
        elif item.what == "event" and text(told, "class") == "peer":
            self._presence(item)

    def over(self, remark: str) -> None:
        """There will be no more items."""
        self._remark = remark

    def next_sort(self) -> None:
        """Sort by something else."""
        self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]

    def table(self, now: int) -> Table:
        """How it stands, ms since 1970 by the clock of the items."""
        looked = min(LONG, max(SHORT, now - self._since)) if self._since else SHORT
        listed = [p for p in self._peers.values() if p.presence != "gone" or p.unread or p.sent.count(now, LONG)]
        made = [self._row(p, now, looked) for p in listed]
        made.sort(key=_ORDER[self.sort])
        return Table(
            now,
            tuple(made),
            float(self._all.count(now, SHORT)),
            self._all.count(now, LONG) * 1000 / looked,
            sum(row.unread for row in made),
            max((row.waits for row in made), default=0),
            sum(p.presence == "open" and p.kind == "session" for p in listed),
            looked,
            self._remark,
        )

    def _row(self, p: Peer, now: int, looked: int) -> Row:
        waits = max(0, now - p.oldest) if p.unread and p.oldest else 0
        health = "ok" if PATHS.get(p.wake, ("", False))[1] else "warn"
        if p.unread and (p.presence != "open" or waits > SLOW):
            health = "bad"
        elif p.presence != "open" or p.kind == "human":
            health = "warn" if p.presence == "lost" else "ok"
        return Row(
            p.name,
            p.host,
            p.id,
            p.presence,
            p.activity,
            float(p.sent.count(now, SHORT)),
            p.sent.count(now, LONG) * 1000 / looked,
            float(p.got.count(now, SHORT)),
            p.got.count(now, LONG) * 1000 / looked,
            p.unread,
            waits,
            p.wake,
            health,
        )

    # -- what happens ----------------------------------------------------------------------------------------------

    def _read(self, item: Item) -> None:
        former, self._peers = self._peers, {}
        for row in rows(item.told, "peers"):
            p = former.get(text(row, "id")) or Peer(text(row, "id"))
            p.name, p.host = safe(text(row, "name")), safe(text(row, "host"))
            p.kind, p.presence = text(row, "kind") or "session", text(row, "presence")
            p.activity, p.wake = safe(text(row, "activity")), safe(text(row, "wake"))
            p.unread, p.oldest = num(row, "unread"), num(row, "oldest")
            self._peers[p.id] = p
        self._seq = num(item.told, "seq")
        self._remark = ""

    def _message(self, item: Item) -> None:
        told, step = item.told, text(item.told, "event")
        target = self._peers.get(text(told, "mailbox"))
        told_already = num(told, "seq") <= self._seq  # what waits is read with these in it
        if step in ("stored", "held"):
            self._all.add(item.at)
            name, host = safe(text(told, "from")), safe(text(told, "from_host"))
            for p in self._peers.values():
                if p.name == name and p.host == host:
                    p.sent.add(item.at)
            if target is not None:
                target.got.add(item.at)
        if target is None or told_already:
            return
        if step in ("stored", "held"):
            target.oldest = target.oldest if target.unread else num(told, "ts")
            target.unread += 1
        elif step in ("injected", "expired", "failed"):
            target.unread = max(0, target.unread - 1)

    def _presence(self, item: Item) -> None:
        told, step = item.told, text(item.told, "event")
        ident = text(told, "id")
        if not ident:
            return
        p = self._peers.setdefault(ident, Peer(ident))
        p.name, p.host = safe(text(told, "name")), safe(text(told, "host"))
        p.kind = text(told, "kind") or p.kind
        if step in ("open", "lost", "gone"):
            p.presence = step
        if "wake" in told:
            p.wake = safe(text(told, "wake"))
        if "activity" in told:
            p.activity = safe(text(told, "activity"))


_ORDER: dict[str, Callable[[Row], tuple[object, ...]]] = {
    "traffic": lambda row: (-(row.sent_60s + row.got_60s), -row.unread, row.name, row.host),
    "unread": lambda row: (-row.unread, -row.waits, row.name, row.host),
    "oldest": lambda row: (-row.waits, -row.unread, row.name, row.host),
    "name": lambda row: (row.name, row.host),
}


# -- drawn -----------------------------------------------------------------------------------------------------------

# Title, width, and from which screen width on it is shown. The name takes what is left.
_COLUMNS = (
    ("is", 11, 40),
    ("sent/s", 7, 60),
    ("60 s", 7, 80),
    ("got/s", 7, 60),
    ("60 s", 7, 80),
    ("unread", 7, 24),
    ("oldest", 12, 60),
    ("reached by", 22, 100),
)
_STYLES = {"ok": "mood.talking", "warn": "mood.connecting", "bad": "alarm"}


def draw_top(table: Table, sort: str, wide: int, high: int, ascii_only: bool = False) -> list[list[Segment]]:
    """The table on a screen of `wide` times `high` cells; a high of 0 is as high as it must be."""
    high = high or len(table.rows) + 3
    canvas = Canvas(wide, high)
    x = canvas.put(1, 0, "talkbus top", "title")
    span = "minute" if table.looked >= LONG else f"{table.looked // 1000} s"
    totals = (
        f"  {table.here} here, {_per_s(table.copies_1s)} copies/s now, "
        f"{_per_s(table.copies_60s)} over the last {span}, {table.unread} unread"
    )
    x = canvas.put(x, 0, totals, "dim", wide - x - 1)
    if table.remark:
        canvas.put(max(0, min(x + 2, wide - width(table.remark) - 3)), 0, f"  {table.remark}", "alarm")
    columns = [(title, size) for title, size, least in _COLUMNS if wide >= least]
    name_wide = max(8, wide - 2 - sum(size for _, size in columns))
    canvas.put(0, 1, " " * wide, "head")
    x = canvas.put(1, 1, "session", "head")
    x = 1 + name_wide
    for title, size in columns:
        at = x if title in ("is", "reached by") else x + size - 2 - len(title)
        canvas.put(at, 1, title, "head")
        x += size
    several = len({row.host for row in table.rows}) > 1
    room = high - 3
    for number, row in enumerate(table.rows[:room]):
        _draw_row(canvas, row, 2 + number, name_wide, wide, several)
    more = f"and {len(table.rows) - room} more" if len(table.rows) > room else ""
    canvas.put(1, high - 1, f"q quits   s sorts by another column (now {sort})", "dim", wide - (20 if more else 2))
    canvas.put(wide - 16, high - 1, more, "alarm")
    return canvas.rows(ascii_only)


def _draw_row(canvas: Canvas, row: Row, y: int, name_wide: int, wide: int, several: bool) -> None:
    name = f"{row.name}@{row.host}" if several and row.host else row.name
    canvas.put(1, y, name, name_style(row.name), name_wide - 1)
    doing = (row.activity or "here") if row.presence == "open" else {"lost": "cut off"}.get(row.presence, "away")
    cells = (
        (doing, "mood.talking" if row.presence == "open" else "dim"),
        (_per_s(row.sent_1s), ""),
        (_per_s(row.sent_60s), "dim"),
        (_per_s(row.got_1s), ""),
        (_per_s(row.got_60s), "dim"),
        (str(row.unread or "-"), "unread" if row.unread else "dim"),
        (age(row.waits) if row.waits else "-", _STYLES[row.health] if row.waits else "dim"),
        (PATHS.get(row.wake, (row.wake, False))[0], _STYLES[row.health]),
    )
    x = 1 + name_wide
    for (title, size, least), (value, style) in zip(_COLUMNS, cells, strict=True):
        if wide < least:
            continue
        left = title in ("is", "reached by")
        canvas.put(x if left else x + max(0, size - 2 - width(value)), y, value, style, size - 1)
        x += size


def _per_s(rate: float) -> str:
    """A rate in at most five characters."""
    if not rate:
        return "-"
    return f"{rate:.1f}" if rate < 100 else f"{rate:.0f}"
