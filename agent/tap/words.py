"""What happened, for a person: each item as lines of segments, each segment a style and a text. Pure.

A style is a word ("id", "time", "step.stored", "name", …) that whoever prints it turns into a colour, or not. What
peers wrote was made harmless here, and stays on its line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agent.render import age, safe
from agent.tap.choosing import Choice, Known
from agent.tap.items import Item, full, num, rows, text

Segment = tuple[str, str]
Line = list[Segment]

TOPIC_WIDTH = 9
BODY_LINES = 12
BODY_WIDTH = 2000  # characters of one line of a body
WORDS_MAX = 160  # characters of a summary or a reason

_AWAY = {"lost": "cut off", "gone": "away"}
_LOST = {"open": "is here", "lost": "is cut off; it may come back", "gone": "has left"}


@dataclass(slots=True)
class Teller:
    """Turns items into lines. `clock` writes a time (ms since 1970); `arrow` is what stands between two names."""

    clock: Callable[[int], str]
    choice: Choice = field(default_factory=Choice)
    arrow: str = "→"
    bodies: bool = False
    several: bool = False  # machines: then names are told with theirs
    _hosts: set[str] = field(default_factory=set)

    def lines(self, item: Item) -> list[Line]:
        """One line or more; none for what nobody need see."""
        if item.what == "event":
            return self._event(item)
        if item.what == "snapshot":
            return self._picture(item)
        if item.what == "missed":
            what = "the broker was restarted" if item.told.get("restarted") is True else "events came too fast"
            return [self._remark(item.at, f"{what}: some of what happened was missed here; joined anew")]
        if item.what == "lost":
            return [self._remark(item.at, f"the connection is lost, it is tried again: {_short(item.told, 'text')}")]
        return []

    def _remark(self, at: int, words: str) -> Line:
        return [("time", self.clock(at)), ("", "  "), ("remark", words)]

    # -- the picture -----------------------------------------------------------------------------------------------

    def _picture(self, item: Item) -> list[Line]:
        told = self.choice.narrowed(item.told)
        peers = rows(told, "peers")
        self._hosts.update(text(row, "host") for row in rows(item.told, "peers"))
        self.several = len(self._hosts) > 1
        shown = [row for row in peers if text(row, "presence") != "gone" or num(row, "unread")]
        away = len(peers) - len(shown)
        lines = [self._remark(item.at, f"{_count(len(shown), 'peer')} here or with unread mail:")] if shown else []
        width = max((len(self._name(text(row, "name"), text(row, "host"))) for row in shown), default=0)
        lines += [self._peer(row, item.at, width) for row in shown]
        rest = [f"{_count(away, 'other mailbox', 'other mailboxes')} nobody holds"] if away else []
        keys = rows(told, "state")
        rest += [f"{_count(len(keys), 'state key')}"] if keys else []
        end = ", ".join(rest) if rest else "" if shown else "nobody is here yet"
        return [*lines, self._remark(item.at, end)] if end else lines

    def _peer(self, row: dict[str, Any], at: int, width: int) -> Line:
        name = self._name(text(row, "name"), text(row, "host"))
        presence = text(row, "presence")
        doing = (text(row, "activity") or "here") if presence == "open" else _AWAY.get(presence, presence)
        line: Line = [
            ("", "    "),
            ("name", safe(name).ljust(width)),
            ("", "  "),
            (f"presence.{presence}", safe(doing)),
        ]
        if num(row, "unread"):
            oldest = f", the oldest {age(at - num(row, 'oldest'))}" if num(row, "oldest") else ""
            line.append(("unread", f"  {num(row, 'unread')} unread{oldest}"))
        if text(row, "wake"):
            line.append(("dim", f"  reached by {_short(row, 'wake')}"))
        if text(row, "summary"):
            line.append(("", f"  {_short(row, 'summary')}"))
        return line

    # -- events ----------------------------------------------------------------------------------------------------

    def _event(self, item: Item) -> list[Line]:
        told = item.told
        kind, name = text(told, "class"), text(told, "event")
        head: Line = [
            ("time", self.clock(num(told, "ts") or item.at)),
            ("", "  "),
            (f"step.{name}" if kind == "msg" else kind, safe(name if kind == "msg" else kind).ljust(TOPIC_WIDTH)),
            ("", " "),
        ]
        tell = {"msg": self._message, "peer": self._about_peer, "state": self._about_state}.get(kind, self._other)
        return [head + tell(told, name), *(self._body(told) if self.bodies and kind == "msg" else [])]

    def _message(self, told: dict[str, Any], name: str) -> Line:
        known = (
            self.choice.known(told) if not text(told, "from") else Known(text(told, "from"), text(told, "from_host"))
        )
        to = ("name", self._name(text(told, "to"), text(told, "host")))
        line: Line = [to]
        if known.sender:
            line = [("name", self._name(known.sender, known.sender_host)), ("", f" {self.arrow} "), to]
        words = []
        if name in ("stored", "held"):
            words = [text(told, "kind"), f"{num(told, 'size')} B"]
            words += [f"#{text(told, 'tag')}"] if text(told, "tag") else []
            words += [f"re {text(told, 're')}"] if text(told, "re") else []
            words += ["waits for a person"] if name == "held" else []
        elif name == "refused":
            words = [f"{num(told, 'code')} {_short(told, 'text')}".strip()]
        elif name == "answered":
            words = [f"by {text(told, 'proof')}"] if text(told, "proof") else []
        elif text(told, "proof"):
            words = [f"proof {text(told, 'proof')}"]
        late = num(told, "ts") - num(told, "at") if num(told, "at") else 0
        if late >= 1000:
            words.append(f"told {late / 1000:.0f} s late")
        line += [("", f"  {safe(word)}") for word in words if word]
        return [*line, ("id", f"  {safe(text(told, 'id'))}")]

    def _about_peer(self, told: dict[str, Any], name: str) -> Line:
        self._hosts.add(text(told, "host"))
        self.several = len(self._hosts) > 1
        who = ("name", self._name(text(told, "name"), text(told, "host")))
        if name == "name":
            former = text(told, "former")
            return [who, ("", f" is the new name of {safe(former)}" if former else " is a new mailbox")]
        if name == "status":
            words = [text(told, "activity"), text(told, "summary")]
            words += [f"reached by {text(told, 'wake')}"] if text(told, "wake") else []
            return [
                who,
                ("", "".join(f"  {safe(word[:WORDS_MAX])}" for word in words if word) or "  has a new status"),
            ]
        return [who, ("", f" {_LOST.get(name, safe(name))}")]

    def _about_state(self, told: dict[str, Any], name: str) -> Line:
        by = f"  by {safe(text(told, 'by'))}" if text(told, "by") else "  its time ran out"
        key: Line = [("key", safe(text(told, "key")))]
        if name == "set":
            return [*key, ("", f" is at version {num(told, 'ver')}, {num(told, 'size')} B{by}")]
        return [*key, ("", f" is removed{by}")]

    def _other(self, told: dict[str, Any], name: str) -> Line:
        words = {
            "start": "the broker has started",
            "stop": "the broker is stopping",
            "full": "the disk takes writes again" if told.get("over") is True else "the broker's disk is full",
            "prune": "old mail is being removed",
        }
        return [("", words.get(name, safe(f"{text(told, 'class')}.{name}")))]

    def _body(self, told: dict[str, Any]) -> list[Line]:
        if text(told, "no_body"):
            return [[("dim", f"    (text not shown: {_short(told, 'no_body')})")]]
        body = text(told, "body")
        if not body:
            return []
        written = body.splitlines()
        lines: list[Line] = [[("bar", "    | "), ("body", safe(line[:BODY_WIDTH]))] for line in written[:BODY_LINES]]
        left = len(written) - BODY_LINES
        if left > 0:
            lines.append([("dim", f"    | … {_count(left, 'more line')}")])
        elif any(len(line) > BODY_WIDTH for line in written):
            lines.append([("dim", "    | … cut")])
        return lines

    def _name(self, name: str, host: str) -> str:
        return safe(full(name, host if self.several else ""))


def _short(told: dict[str, Any], key: str) -> str:
    return safe(text(told, key)[:WORDS_MAX])


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
