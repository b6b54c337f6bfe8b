"""The office: who sits where, who speaks to whom, in which mood; items and time in, a scene out. Pure.

Nothing here knows of a terminal. Everything that passes (a mood, a bubble, an arrow on its way) ends by the time that
is told, so the same items and times give the same scene.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from agent.render import safe
from agent.tap.items import Item, num, rows, text
from agent.tap.mail import FIRST, Copy, Mail, Message, settle

# All in ms.
TALKS = 2500
LISTENS = 2500
REFUSED = 4000
MISSED = 10_000
ARROW = 900
ARROW_GAP = 250  # between two arrows of one pair

ARROWS_MAX = 8
FEED_MAX = 200
KNOWN_MAX = 20_000  # messages, so that none is counted twice
TEXT_MAX = 200  # characters of a bubble or a line of the feed


@dataclass(slots=True)
class Person:
    """Who sits at a desk: one mailbox. Times are ms since 1970, 0 for never."""

    id: str
    name: str
    host: str
    kind: str = "session"
    presence: str = "gone"
    activity: str = ""
    unread: int = 0
    met: bool = False  # was here, spoke or was spoken to since we look
    talks_until: int = 0
    listens_until: int = 0
    refused_until: int = 0
    bubble: str = ""
    facing: str = ""  # the id of whom it turned to

    def mood(self, now: int, connected: bool) -> str:
        """One of idle, talking, listening, connecting, offline and refused."""
        if self.presence == "open" and not connected:
            return "connecting"
        for until, mood in (
            (self.refused_until, "refused"),
            (self.talks_until, "talking"),
            (self.listens_until, "listening"),
        ):
            if until > now and (self.presence == "open" or mood != "listening"):
                return mood
        return {"open": "idle", "lost": "connecting"}.get(self.presence, "offline")


@dataclass(slots=True)
class Entry:
    """One message in the feed, to however many it goes. `copies` has each recipient's, by the id of the mailbox."""

    ident: str
    at: int
    sender: str
    sender_host: str
    what: str
    copies: dict[str, Copy] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Desk:
    """A desk as it is to be drawn. `facing` is the id of another desk, or ""."""

    id: str
    name: str
    host: str
    mood: str
    activity: str
    unread: int
    bubble: str
    facing: str


@dataclass(frozen=True, slots=True)
class Arrow:
    """A message on its way between two desks: 0 has just left, 1 has arrived."""

    sender: str
    to: str
    way: float


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that is to be seen. `desks` by machine, then name; `feed` oldest first."""

    desks: tuple[Desk, ...]
    arrows: tuple[Arrow, ...]
    feed: tuple[Entry, ...]
    here: int
    messages: int
    remark: str


class Office:
    """Call `take` for each item, in order, and `scene` whenever it is to be drawn."""

    def __init__(self) -> None:
        self.connected = False
        self.remark = "connecting"
        self.messages = 0
        self._missed, self._missed_until = "", 0
        self._seq = 0  # the last event the peers were read after
        self._since = 0  # what was sent before is not in the feed
        self._people: dict[str, Person] = {}
        self._arrows: deque[tuple[str, str, int]] = deque(maxlen=ARROWS_MAX)
        self._feed: deque[Entry] = deque(maxlen=FEED_MAX)
        self._mail = Mail(KNOWN_MAX, safe)

    def take(self, item: Item) -> None:
        """Let one item have happened."""
        if item.what == "event":
            kind = text(item.told, "class")
            if kind == "msg":
                self._message(item.at, item.told)
            elif kind == "peer":
                self._peer(item.told)
            return
        if item.what in ("snapshot", "peers"):
            self._sit(rows(item.told, "peers"))
            self._seq = num(item.told, "seq")
        if item.what == "snapshot":
            self.connected, self.remark = True, ""
            self._since = self._since or num(item.told, "ts")
        elif item.what == "learned":
            self._learned(item)
        elif item.what == "missed":
            self._mail.missed()
            again = item.told.get("restarted") is True
            self._missed = "the broker was restarted" if again else "something was missed, it went too fast"
            self._missed_until = item.at + MISSED
        elif item.what == "lost":
            self.connected, self.remark = False, "the connection is lost, trying again"

    def over(self, remark: str) -> None:
        """There will be no more items."""
        self.remark = remark

    def moving(self, now: int) -> bool:
        """Whether the scene changes by time alone."""
        return (
            self._missed_until + ARROW > now
            or any(max(p.talks_until, p.listens_until, p.refused_until) + ARROW > now for p in self._people.values())
            or any(began + ARROW > now for _, _, began in self._arrows)
        )

    def scene(self, now: int) -> Scene:
        """How it looks at that time, ms since 1970 by the clock of the items."""
        seated = sorted((p for p in self._people.values() if _shown(p)), key=lambda p: (p.host, p.name, p.id))
        desks = tuple(self._desk(person, now) for person in seated)
        places = {desk.id for desk in desks}
        arrows = tuple(
            Arrow(sender, to, (now - began) / ARROW)
            for sender, to, began in self._arrows
            if 0 <= now - began <= ARROW and sender in places and to in places
        )
        here = sum(p.presence == "open" and p.kind == "session" for p in seated)
        remark = self.remark or (self._missed if self._missed_until > now else "")
        return Scene(desks, arrows, tuple(self._feed), here, self.messages, remark)

    def _desk(self, p: Person, now: int) -> Desk:
        mood = p.mood(now, self.connected)
        busy = max(p.talks_until, p.listens_until) > now
        bubble = p.bubble if max(p.talks_until, p.refused_until) > now else ""
        return Desk(p.id, p.name, p.host, mood, p.activity, p.unread, bubble, p.facing if busy else "")

    # -- who is there ----------------------------------------------------------------------------------------------

    def _sit(self, found: list[dict[str, Any]]) -> None:
        former, self._people = self._people, {}
        for row in found:
            ident = text(row, "id")
            if not ident or text(row, "kind") == "stale":
                continue
            p = former.get(ident) or Person(ident, "", "")
            p.name, p.host = safe(text(row, "name")), safe(text(row, "host"))
            p.kind, p.presence = text(row, "kind") or "session", text(row, "presence")
            p.activity, p.unread = safe(text(row, "activity")), num(row, "unread")
            p.met = p.met or (p.presence != "gone" and p.kind == "session")
            self._people[ident] = p

    def _peer(self, told: dict[str, Any]) -> None:
        ident, name = text(told, "id"), text(told, "event")
        if not ident:
            return
        p = self._people.setdefault(ident, Person(ident, "", "", text(told, "kind") or "session"))
        p.name, p.host = safe(text(told, "name")), safe(text(told, "host"))
        if name in ("open", "lost", "gone"):
            p.presence = name
            p.kind = text(told, "kind") or p.kind
            p.met = p.met or p.kind != "human"
        if name == "status" and "activity" in told:
            p.activity = safe(text(told, "activity"))

    def _find(self, name: str, host: str) -> Person | None:
        name, host = safe(name), safe(host)
        return next((p for p in self._people.values() if p.name == name and p.host == host), None)

    # -- who says what ---------------------------------------------------------------------------------------------

    def _message(self, at: int, told: dict[str, Any]) -> None:
        step = text(told, "event")
        about = self._mail.heard(told)
        if about is None:
            return  # several may be meant, and a wrong status is worse than an old one
        message, copy = about
        waits = copy.waits(told)
        news = copy.climb(step)
        entry = self._entry(message, at, told) if step in FIRST else None
        target = self._people.get(text(told, "mailbox")) or self._find(copy.name, copy.host)
        sender = self._find(text(told, "from"), text(told, "from_host")) if text(told, "from") else None
        if target is not None and num(told, "seq") > self._seq:
            target.unread = max(0, target.unread + waits)
        if step in ("stored", "held") and news and sender and target and entry:
            self._speak(at, sender, target, entry)
        elif step == "refused" and sender and entry:
            sender.refused_until, sender.met = at + REFUSED, True
            sender.bubble = f"✗ {copy.name}: {safe(text(told, 'text')[:TEXT_MAX]) or 'refused'}"
        elif step == "injected" and news and target is not None:
            target.listens_until = max(target.listens_until, at + LISTENS // 2)

    def _learned(self, item: Item) -> None:
        """What was asked of one message after something was missed; who waits for what is in the picture already."""
        found = self._mail.learned(item.told)
        if found is None:
            return
        message, copies = found
        for copy, row in copies:
            settle(copy, row)
        if message.counted or num(item.told, "sent") >= self._since:
            self._entry(message, num(item.told, "sent") or item.at, item.told)

    def _speak(self, at: int, sender: Person, target: Person, entry: Entry) -> None:
        sender.talks_until, sender.bubble, sender.met = at + TALKS, entry.what, True
        sender.facing, sender.refused_until = target.id, 0
        target.met = True
        target.listens_until = at + ARROW + LISTENS
        if target.talks_until <= at:
            target.facing = sender.id
        recent = any((s, r) == (sender.id, target.id) and at - began < ARROW_GAP for s, r, began in self._arrows)
        if not recent and sender is not target:
            self._arrows.append((sender.id, target.id, at))

    def _entry(self, message: Message, at: int, told: dict[str, Any]) -> Entry | None:
        """The message in the feed; put there where it is the first that is heard of it. None: it left the feed."""
        if message.counted:
            return next((entry for entry in reversed(self._feed) if entry.copies is message.copies), None)
        message.counted = True
        self.messages += 1
        sender, host = safe(message.sender), safe(message.sender_host)
        self._feed.append(Entry(message.ident, at, sender, host, _what(told), message.copies))
        return self._feed[-1]


def _shown(p: Person) -> bool:
    return bool(p.name) and (p.met or (p.unread > 0 and p.kind == "session"))


def _what(told: dict[str, Any]) -> str:
    """What is said: the first line of the text where it is known, else what is known of it."""
    for line in text(told, "body").splitlines():
        if line.strip():
            return safe(line.strip()[:TEXT_MAX])
    size = f"{num(told, 'size')} B" if num(told, "size") else ""
    tag = f"#{text(told, 'tag')}" if text(told, "tag") else ""
    return safe(" ".join(word for word in (text(told, "kind") or "message", tag, size) if word))
