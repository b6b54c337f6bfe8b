"""What happened, for a person: each item as lines of segments, each segment a style and a text. Pure.

A style is a word ("id", "time", "step.stored", "name", …) that whoever prints it turns into a colour, or not. What
peers wrote was made harmless here, and stays on its line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agent.render import age, safe
from agent.tap.choosing import Choice
from agent.tap.items import Item, full, num, rows, text
from agent.tap.mail import RUNGS, settle

Segment = tuple[str, str]
Line = list[Segment]

TOPIC_WIDTH = 9
BODY_LINES = 12
BODY_WIDTH = 2000  # characters of one line of a body
WORDS_MAX = 160  # characters of a summary or a reason

# Limits of the governor that are hit, after the name of the session.
BREAKERS = {
    "rate": "sends more than its rate; it is slowed down",
    "hops": "is in a chain of replies without end; it is refused",
    "thanks": "is in an exchange of mere thanks; it is refused",
    "wakes": "was woken often enough; tasks wait for what comes next",
}
_CLOSED = {
    "replaced": "another one takes its place",
    "expired": "its time is over",
    "tries": "too many wrong tokens",
    "used": "it was used",
    "withdrawn": "it was withdrawn",
}
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
        if item.what == "learned":
            return self._learned(item)
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
        if kind == "msg":
            return self._step(item.at, told, name)
        tell = {"peer": self._about_peer, "state": self._about_state, "lan": self._about_machines}.get(
            kind, self._about_bus
        )
        return [self._head(item.at, told, kind, kind) + tell(told, name)]

    def _head(self, at: int, told: dict[str, Any], style: str, word: str) -> Line:
        return [
            ("time", self.clock(num(told, "ts") or at)),
            ("", "  "),
            (style, safe(word).ljust(TOPIC_WIDTH)),
            ("", " "),
        ]

    def _step(self, at: int, told: dict[str, Any], name: str) -> list[Line]:
        """One step of a copy; nothing for one that is told a second time."""
        sender, host, after = text(told, "from"), text(told, "from_host"), ""
        about = self.choice.known(told)
        if about is not None:
            message, copy = about
            sender, host = (sender, host) if sender else (message.sender, message.sender_host)
            if RUNGS.get(name, 0) < RUNGS.get(copy.step, 0):
                after = copy.step
            if not copy.climb(name):
                return []
        line = self._head(at, told, f"step.{name}", name) + self._message(told, name, sender, host, after)
        return [line, *(self._body(told) if self.bodies else [])]

    def _learned(self, item: Item) -> list[Line]:
        """What was asked of one message, after something was missed: the steps that were not told."""
        told = item.told
        if told.get("more") is True:
            return [self._remark(item.at, "more messages were missed than are told here (talkbus history has them)")]
        lines = []
        for row in rows(told, "to"):
            step = {
                **{key: told.get(key) for key in ("id", "from", "from_host", "kind", "tag", "re", "size", "body")},
                **{"to": row.get("name"), "host": row.get("host"), "mailbox": row.get("mailbox")},
            }
            about = self.choice.known(step)
            for made in settle(about[1], row) if about else []:
                name = text(made, "status")
                step |= {"ts": num(made, "ts"), "proof": made.get("proof")}
                step |= {"code": row.get("code"), "text": row.get("text")}
                line = self._head(item.at, step, f"step.{name}", name)
                line += self._message(step, name, text(told, "from"), text(told, "from_host"), "")
                lines.append([*line, ("dim", "  (missed, and asked for)")])
                lines += self._body(step) if self.bodies and name in ("stored", "held") else []
        return lines

    def _message(self, told: dict[str, Any], name: str, sender: str, sender_host: str, after: str) -> Line:
        """What is said of one step. `after` is the higher one that was told before it."""
        to = ("name", self._name(text(told, "to"), text(told, "host")))
        line: Line = [to]
        if sender:
            line = [("name", self._name(sender, sender_host)), ("", f" {self.arrow} "), to]
        words = []
        if name in ("stored", "held"):
            words = [text(told, "kind"), f"{num(told, 'size')} B" if num(told, "size") else ""]
            words += [f"#{text(told, 'tag')}"] if text(told, "tag") else []
            words += [f"re {text(told, 're')}"] if text(told, "re") else []
            words += ["waits for a person"] if name == "held" else []
            words += ["released after it was held"] if told.get("released") is True else []
        elif name == "refused":
            words = [f"{num(told, 'code')} {_short(told, 'text')}".strip()]
        elif name in ("offered", "answered"):
            words = [f"by {text(told, 'proof')}"] if text(told, "proof") else []
        elif name in ("expired", "failed"):
            words = [_short(told, "proof")]
        elif text(told, "proof"):
            words = [f"proof {text(told, 'proof')}"]
        late = num(told, "ts") - num(told, "at") if num(told, "at") else 0
        if late >= 1000:
            words.append(f"told {late / 1000:.0f} s late")
        if after:
            words.append(f"told after {after}")
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

    def _about_bus(self, told: dict[str, Any], name: str) -> Line:
        host = safe(text(told, "host")) or "this machine"
        words = {
            "start": "the broker has started",
            "stop": "the broker is stopping",
            "full": "the disk takes writes again" if told.get("over") is True else "the broker's disk is full",
            "prune": "old mail is being removed" + self._time(told, "before", ", from before "),
            "policy": f"the rules about mail to {host} were changed",
            "pause": f"mail to {host} is held until it resumes (talkbus resume)"
            if told.get("on") is True
            else f"mail to {host} is no longer held by a pause",
        }
        if text(told, "class") == "bus" and name == "breaker":
            what = text(told, "what")
            until = self._time(told, "until", " (until ") + ")" if num(told, "until") else ""
            who = ("name", self._name(text(told, "name"), text(told, "host")))
            return [who, ("", f" {BREAKERS.get(what, 'has met a limit: ' + _short(told, 'what'))}{until}")]
        if text(told, "class") == "bus" and name in words:
            return [("", words[name])]
        return [("", safe(f"{text(told, 'class')}.{name}"))]

    def _about_machines(self, told: dict[str, Any], name: str) -> Line:
        host, role = ("name", safe(text(told, "host"))), safe(text(told, "role")) or "member"
        if name == "invited":
            return [("", f"an invitation is open, for one machine as {role}{self._time(told, 'until', ', until ')}")]
        if name == "closed":
            why = _CLOSED.get(text(told, "why"), _short(told, "why"))
            return [("", "no invitation is open any more" + (f": {why}" if why else ""))]
        if name == "refused":
            left = _count(num(told, "left"), "try is", "tries are")
            return [("", f"a machine came with a wrong token; {left} left")]
        words = {"joined": f" has joined as {role}", "revoked": " was taken off the bus", "role": f" is {role} now"}
        return [host, ("", words[name])] if name in words else [("", safe(f"lan.{name}"))]

    def _time(self, told: dict[str, Any], key: str, before: str) -> str:
        return f"{before}{self.clock(num(told, key))}" if num(told, key) else ""

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
