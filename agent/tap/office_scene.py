"""The office drawn: a scene becomes rows of styled segments for a screen of any size from 60 columns up. Pure.

The room takes what the feed leaves. Desks are as large as lets all of them in; when even the smallest do not fit,
those who are offline go first, and it is said how many are not to be seen.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.tap.cells import Canvas, Segment, fit, width
from agent.tap.mail import RUNGS, UNKNOWN
from agent.tap.office import Desk, Entry, Scene

NARROW = 36  # below, a message in the feed goes without its time
WIDE = 100  # from here on the feed stands beside the room
NAME_STYLES = 8

_FACES = {
    "idle": "(·_·)",
    "talking": "(·o·)",
    "listening": "(·‿·)",
    "connecting": "(·~·)",
    "offline": "(-_-)",
    "refused": "(x_x)",
}
_SEEN = ("injected", "acked", "answered")
_BAD = ("refused", "expired", "failed")


@dataclass(frozen=True, slots=True)
class Size:
    """How much room a desk takes, and what is shown of it."""

    wide: int
    high: int
    bubble: bool = True
    mood: bool = True


SIZES = (Size(18, 5), Size(17, 4), Size(18, 3), Size(18, 2, bubble=False), Size(18, 1, bubble=False, mood=False))
_GROWN = 34  # columns a desk takes at most where there is room


@dataclass(frozen=True, slots=True)
class Place:
    """Where a desk stands: its left upper corner, and that of its face."""

    desk: Desk
    x: int
    y: int
    wide: int
    face_x: int
    face_y: int


def draw(
    scene: Scene, wide: int, high: int, clock: Callable[[int], str], ascii_only: bool = False
) -> list[list[Segment]]:
    """The whole screen, `high` rows of `wide` cells. `clock` writes a time, ms since 1970."""
    canvas = Canvas(wide, high)
    _head(canvas, scene)
    beside = wide >= WIDE
    feed_wide = min(64, wide * 2 // 5) if beside else wide
    feed_high = high - 2 if beside else max(4, (high - 2) // 3)
    room_wide = wide - feed_wide if beside else wide
    room_high = high - 2 if beside else high - 2 - feed_high
    size = _room(canvas, scene, room_wide, room_high)
    corner = (room_wide, 1) if beside else (0, 1 + room_high)
    _feed(canvas, scene.feed, *corner, feed_wide, feed_high, clock)
    canvas.put(1, high - 1, "q quits", "dim")
    legend_at = 11
    for mood in _FACES if size is None or size.mood else ():
        end = legend_at + width(_FACES[mood]) + len(mood) + 3
        if end <= wide:
            legend_at = canvas.put(legend_at, high - 1, f"{_FACES[mood]} {mood}", f"mood.{mood}") + 2
    return canvas.rows(ascii_only)


def name_style(name: str) -> str:
    """The style of a name, always the same."""
    return f"name.{zlib.crc32(name.encode('utf-8', 'replace')) % NAME_STYLES}"


def _head(canvas: Canvas, scene: Scene) -> None:
    machines = len({desk.host for desk in scene.desks})
    x = canvas.put(1, 0, "talkbus office", "title")
    counts = (
        f"  {_count(scene.here, 'session')} on {_count(machines, 'machine')}, {_count(scene.messages, 'message')}"
    )
    state = fit(scene.remark or "live", canvas.wide - x - 3)
    at = canvas.wide - width(state) - 1
    canvas.put(x, 0, counts, "dim", at - x - 1)
    canvas.put(at, 0, state, "alarm" if scene.remark else "mood.talking")


# -- the room --------------------------------------------------------------------------------------------------------


def _room(canvas: Canvas, scene: Scene, wide: int, high: int) -> Size | None:
    if not scene.desks:
        canvas.box(0, 1, wide, high, "nobody is here")
        canvas.put(3, 3, "Sessions take their desks as they join.", "dim", wide - 6)
        return None
    size, shown = _fitting(scene.desks, wide - 2, high)
    machines = _by_machine(shown)
    left = high - sum(2 + _lines(len(desks), wide - 2, size.wide) * size.high for _, desks in machines)
    y = 1
    places: list[Place] = []
    for number, (host, desks) in enumerate(machines):
        extra = left // len(machines) + (number < left % len(machines))
        tall = 2 + _lines(len(desks), wide - 2, size.wide) * size.high + extra
        canvas.box(0, y, wide, tall, host or "?")
        places += _seats(desks, 1, y + 1, wide - 2, tall - 2, size)
        y += tall
    hidden = len(scene.desks) - len(shown)
    if hidden:
        note = f" and {hidden} more "
        canvas.put(max(0, wide - 2 - len(note)), y - 1, note, "alarm")
    _occupy(canvas, scene, places, size)
    return size


def _fitting(desks: Sequence[Desk], wide: int, high: int) -> tuple[Size, list[Desk]]:
    """The largest desks that all have room, and who then sits there."""
    for size in SIZES:
        if _needed(desks, wide, size) <= high:
            return size, list(desks)
    size = SIZES[-1]
    order = sorted(range(len(desks)), key=lambda i: (desks[i].mood == "offline", i))
    for count in range(len(desks) - 1, 0, -1):
        kept = [desks[i] for i in sorted(order[:count])]
        if _needed(kept, wide, size) <= high:
            return size, kept
    return size, [desks[order[0]]]


def _needed(desks: Sequence[Desk], wide: int, size: Size) -> int:
    return sum(2 + _lines(len(group), wide, size.wide) * size.high for _, group in _by_machine(desks))


def _lines(count: int, wide: int, desk_wide: int) -> int:
    return -(-count // max(1, wide // desk_wide))


def _by_machine(desks: Sequence[Desk]) -> list[tuple[str, list[Desk]]]:
    found: dict[str, list[Desk]] = {}
    for desk in desks:
        found.setdefault(desk.host, []).append(desk)
    return list(found.items())


def _seats(desks: list[Desk], x: int, y: int, wide: int, high: int, size: Size) -> list[Place]:
    """Rows of desks, spread over the room of their machine."""
    per_row = max(1, min(len(desks), wide // size.wide))
    lines = -(-len(desks) // per_row)
    per_row = -(-len(desks) // lines)
    step = max(size.wide if size.wide <= wide else wide, min(_GROWN, wide // per_row))
    apart = (high - lines * size.high) // (lines + 1)
    margin = max(0, (wide - step * per_row) // 2)
    face = 1 if size.bubble else 0
    made = []
    for number, desk in enumerate(desks):
        line, column = divmod(number, per_row)
        left = x + margin + column * step
        top = y + apart + line * (size.high + apart)
        made.append(Place(desk, left, top, step, left + 2, top + face))
    return made


def _occupy(canvas: Canvas, scene: Scene, places: list[Place], size: Size) -> None:
    """Arrows first: their way goes behind the desks; their heads last."""
    by_id = {place.desk.id: place for place in places}
    heads = []
    for arrow in scene.arrows:
        if arrow.sender in by_id and arrow.to in by_id:
            sender = by_id[arrow.sender]
            way = _way(sender, by_id[arrow.to], places, size)
            heads.append(_arrow(canvas, way, arrow.way, name_style(sender.desk.name)))
    for place in places:
        _desk(canvas, place, by_id.get(place.desk.facing), size)
    for x, y, sign, style in heads:
        canvas.put(x, y, sign, style)
    for place in places:
        if size.bubble and place.desk.bubble:
            _bubble(canvas, place, places)


def _desk(canvas: Canvas, place: Place, other: Place | None, size: Size) -> None:
    desk = place.desk
    style = f"mood.{desk.mood}"
    canvas.put(place.face_x, place.face_y, _FACES[desk.mood], style)
    if other is not None:
        right = other.face_x > place.face_x or (other.face_x == place.face_x and other.face_y > place.face_y)
        canvas.put(place.face_x + (5 if right else -1), place.face_y, "›" if right else "‹", style)
    unread = f" ✉{desk.unread}" if desk.unread else ""
    if size.high <= 2 or (size.high == 3 and size.bubble):
        x = canvas.put(place.face_x + 6, place.face_y, desk.name, name_style(desk.name), place.wide - 9 - len(unread))
        canvas.put(x, place.face_y, unread, "unread")
        if size.mood:
            canvas.put(place.face_x + 6, place.face_y + 1, _doing(desk), style, place.wide - 9)
        return
    x = canvas.put(place.face_x, place.face_y + 1, desk.name, name_style(desk.name), place.wide - 4 - len(unread))
    canvas.put(x, place.face_y + 1, unread, "unread")
    canvas.put(place.face_x, place.face_y + 2, _doing(desk), style, place.wide - 4)


def _doing(desk: Desk) -> str:
    """The mood; for who is idle what it says itself, if that is more."""
    return desk.activity if desk.mood == "idle" and desk.activity else desk.mood


def _bubble(canvas: Canvas, place: Place, places: list[Place]) -> None:
    """Over the head of who speaks, as wide as the next bubble or the wall lets it be."""
    right = [p.x for p in places if p.y == place.y and p.x > place.x and p.desk.bubble]
    last = max(p.x + p.wide for p in places)
    room = (min(right) if right else last) - place.x - 2
    canvas.put(place.x + 1, place.face_y - 1, "“" + fit(place.desk.bubble, room - 3) + "”", "bubble")


def _arrow(canvas: Canvas, way: list[tuple[int, int]], done: float, style: str) -> tuple[int, int, str, str]:
    """What was gone of the way already; returns the head, with its sign and style."""
    last = len(way) - 1
    gone = round(last * min(1.0, max(0.0, done)))
    for x, y in way[:gone]:
        canvas.put(x, y, "·", style)
    (x, y), (before_x, before_y) = way[gone], way[max(0, gone - 1)]
    if gone == 0:
        before_x, before_y = 2 * x - way[min(1, last)][0], 2 * y - way[min(1, last)][1]
    if abs(x - before_x) >= abs(y - before_y):
        return x, y, "►" if x >= before_x else "◄", style
    return x, y, "▼" if y > before_y else "▲", style


def _way(sender: Place, to: Place, places: Sequence[Place], size: Size) -> list[tuple[int, int]]:
    """The cells from one face to the other: straight, but under the desks where somebody sits between."""
    x0, y0, x1, y1 = sender.face_x + 2, sender.face_y, to.face_x + 2, to.face_y
    if y0 != y1:
        side = 1 if y1 > y0 else -1
        return _straight(x0, y0 + side, x1, y1 - side)
    between = any(p.face_y == y0 and min(x0, x1) < p.face_x + 2 < max(x0, x1) for p in places)
    if between and size.high == SIZES[0].high:
        low = y0 + 3
        return [
            *_straight(x0, y0 + 2, x0, low),
            *_straight(x0, low, x1, low)[1:],
            *_straight(x1, low, x1, y1 + 2)[1:],
        ]
    return _straight(x0 + 5, y0, x1 - 4, y1) if x1 > x0 else _straight(x0 - 5, y0, x1 + 4, y1)


def _straight(x0: int, y0: int, x1: int, y1: int) -> list[tuple[int, int]]:
    steps = max(1, abs(x1 - x0), abs(y1 - y0))
    return [(x0 + round((x1 - x0) * n / steps), y0 + round((y1 - y0) * n / steps)) for n in range(steps + 1)]


# -- the feed --------------------------------------------------------------------------------------------------------


def _feed(
    canvas: Canvas, feed: Sequence[Entry], x: int, y: int, wide: int, high: int, clock: Callable[[int], str]
) -> None:
    canvas.box(x, y, wide, high, "messages")
    hosts = {host for entry in feed for host in (entry.sender_host, *(c.host for c in entry.copies.values()))}
    several = len(hosts - {""}) > 1
    for row, entry in enumerate(feed[len(feed) - min(len(feed), high - 2) :]):
        _entry(canvas, entry, x + 2, y + 1 + row, wide - 4, clock, several)


def _entry(
    canvas: Canvas, entry: Entry, x: int, y: int, wide: int, clock: Callable[[int], str], several: bool
) -> None:
    """Time, who to whom, what; and at the right end what became of it."""
    end = x + wide
    fate, style = _fate(entry)
    canvas.put(end - width(fate), y, fate, style)
    end -= width(fate) + 1
    if wide >= NARROW:
        x = canvas.put(x, y, clock(entry.at), "dim") + 1
    sender = _at(entry.sender, entry.sender_host, several)
    x = canvas.put(x, y, sender, name_style(entry.sender), min(end - x, wide // 4))
    x = canvas.put(x, y, " → ", "dim", end - x)
    names = [_at(copy.name, copy.host, several) for copy in entry.copies.values()]
    told = ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"
    one = name_style(next(iter(entry.copies.values())).name) if len(names) == 1 else ""
    x = canvas.put(x, y, told, one, min(end - x, max(wide // 4, 10)))
    canvas.put(x, y, f"  {entry.what}", "body", end - x)


def _at(name: str, host: str, several: bool) -> str:
    return f"{name}@{host}" if several and host else name


def _fate(entry: Entry) -> tuple[str, str]:
    """What became of it, in a word or two: the worst that is certain first."""
    states = [copy.status for copy in entry.copies.values()]
    several = len(states) > 1
    bad = [state for state in states if state in _BAD]
    if bad:
        return f"✗ {bad[0]} {states.count(bad[0])}/{len(states)}" if several else f"✗ {bad[0]}", "alarm"
    seen = sum(state in _SEEN for state in states)
    if UNKNOWN in states:
        # Something was missed, and nobody tells what became of it: neither seen nor waiting may be claimed.
        return f"✓ seen {seen}/{len(states)}, ? {states.count(UNKNOWN)}" if seen else "? not known", "dim"
    if not seen:
        return min(states, key=lambda state: RUNGS.get(state, 0), default=""), "dim"
    if several:
        return f"✓ seen {seen}/{len(states)}", "mood.talking" if seen == len(states) else "dim"
    return ("✓ answered" if states[0] == "answered" else "✓ seen"), "mood.talking"


def _count(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"
