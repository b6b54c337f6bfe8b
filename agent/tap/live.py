"""The bus as a tap sees it: what a view tells, as items, with texts of messages where they were asked for.

Joining, healing and connecting again are the view's; here it is put into words. Never starts a broker and changes
nothing. Texts are fetched by query, for as many messages a second as do not hurt the broker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from agent.tap.items import Item, text
from agent.tap.rejoin import Rejoined
from bus.errors import Code, Refused, Unreachable

BODIES_PER_S = 100  # a broker answers some thousand, but its work is another
BODIES_BURST = 200
BODY_S = 2.0  # to wait for one
# How long is asked for what was missed: when the stream was joined again, and between events or while there are none.
REJOINED_S, BETWEEN_S, IDLE_S = 1.0, 0.02, 0.2
REFRESH_SHARE = 50  # times what reading the peers anew took, until it is done again


class Looking(Protocol):
    """What is needed of bus.client.View."""

    def query(self, what: str, args: dict[str, Any], timeout: float) -> Any: ...

    def events(self, topics: Any, timeout: float | None, pulse: float) -> Iterator[Any]: ...


class Bodies:
    """Fetches the texts of messages. `role` is that of whoever looks, as the broker says."""

    def __init__(self, view: Looking) -> None:
        """Refused for an observer, who may read no message."""
        self._view = view
        self._left, self._at = float(BODIES_BURST), time.monotonic()
        rows = view.query("whoami", {}, BODY_S).rows
        self.role = text(rows[0][0], "role") if rows else ""
        if self.role == "observer":
            raise Refused(Code.FORBIDDEN, "an observer may not read messages (leave --bodies out, or ask the owner)")

    def added(self, event: dict[str, Any]) -> dict[str, Any]:
        """The event with "body" where it tells of a new message; with "no_body" and why, where it cannot be had."""
        if text(event, "class") != "msg" or text(event, "event") not in ("stored", "held"):
            return event
        now = time.monotonic()
        self._left = min(float(BODIES_BURST), self._left + BODIES_PER_S * (now - self._at))
        self._at = now
        if self._left < 1:
            return {**event, "no_body": "too many at once"}
        self._left -= 1
        try:
            answer = self._view.query("message", {"id": text(event, "id"), "of": text(event, "fid")}, BODY_S)
        except Unreachable:
            return {**event, "no_body": "the broker did not answer"}
        for value, body in answer.rows:
            # Two senders may have used one id, and an older broker may then answer with the other's message.
            if (value.get("from"), value.get("host")) == (event.get("from"), event.get("from_host")):
                return {**event, "body": body.decode("utf-8", "replace")}
        return {**event, "no_body": "not yours to read" if answer.code == Code.FORBIDDEN else "not there any more"}


def live(
    view: Looking,
    clock: Callable[[], int],
    *,
    timeout: float | None = None,
    bodies: Bodies | None = None,
    refresh: float = 0.0,
    rejoined: Rejoined | None = None,
    pulse: float = float("inf"),
) -> Iterator[Item | None]:
    """What happens, for `timeout` s or for ever. None comes at least every `pulse` s, when there is nothing else.

    `clock` tells ms since 1970. With `refresh` the peers are read anew about every so many s, with `rejoined` what
    became of messages during a gap is asked for after it. Unreachable, Refused as View.events.
    """
    boot = ""
    now = 0
    due = time.monotonic() + refresh
    for news in view.events((), timeout, min(pulse, refresh or pulse)):
        now = max(now, clock())
        if news.snapshot is not None:
            if news.gap:
                yield Item(now, "missed", {"restarted": text(news.snapshot, "boot") != boot})
            boot = text(news.snapshot, "boot")
            yield Item(now, "snapshot", news.snapshot)
            if rejoined is not None:
                rejoined.joined(news.snapshot, news.gap)
                yield from rejoined.learned(now, REJOINED_S)
        for event in news.events:
            if rejoined is not None:
                rejoined.heard(event)
            yield Item(now, "event", bodies.added(event) if bodies else event)
        if rejoined is not None and rejoined.pending and not news.lost:
            yield from rejoined.learned(now, BETWEEN_S if news.events else IDLE_S)
        if news.lost:
            yield Item(now, "lost", {"text": news.lost})
        elif refresh and boot and time.monotonic() >= due:
            began = time.monotonic()
            read = _peers(view, max(now, clock()))
            due = time.monotonic() + max(refresh, REFRESH_SHARE * (time.monotonic() - began))
            if read is not None:
                now = read.at
                yield read
        yield None


def _peers(view: Looking, now: int) -> Item | None:
    try:
        answer = view.query("peers", {"all": True}, BODY_S)
    except Unreachable:
        return None  # the stream will tell
    if answer.code >= 300:
        return None
    return Item(now, "peers", {"peers": [value for value, _ in answer.rows], "seq": answer.seq})
