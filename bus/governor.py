"""What keeps a bus full of models from running away: rates, hops, exchanges of mere thanks, wakes an hour.

It counts and says no; what then becomes of a message is decided by whoever asks. A restart forgets everything here:
it protects attention and disk, not truth. Pure: time comes in, and neither the core nor the disk is known.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass

HOPS_MAX = 64
THANKS_MAX = 4
WAKES_PER_HOUR = 60
MACHINE_FACTOR = 10
HELD_MESSAGES = 1000
HELD_BYTES = 8388608
POLICY_RULES = 1000

DEFAULTS = {name: value for name, value in list(globals().items()) if name.isupper() and isinstance(value, int)}

KNOWN_MAX = 20_000  # messages and pairs remembered
BUCKETS_MAX = 4_096
BREAKERS_MAX = 4_096
HOUR_MS = 3_600_000
WAKE_TOGETHER_MS = 10_000  # tasks so soon after one that was counted ride along: a burst is one wake
THANKS_MS = 600_000  # an exchange of thanks that pauses longer is over
HOPS_MS = 60_000
RATE_MS = 10_000
THANKS_TEXT_MAX = 120  # octets

# Phrases and not words: "do it" is an order, and "yes", "no" and "done" are answers, so none of them is here.
_TEXT = (
    "ok|okay|k|kk|thanks|thank you|thanks again|thanks a lot|thank you again|thank you so much|"
    "thank you very much|thanks so much|many thanks|thx|ty|cheers|great|good|nice|cool|perfect|excellent|awesome|"
    "wonderful|super|fine|noted|understood|acknowledged|ack|received|got it|roger|copy that|will do|sounds good|"
    "you're welcome|youre welcome|you are welcome|welcome|no problem|no worries|np|anytime|my pleasure|"
    "glad to help|happy to help|glad i could help|much appreciated|appreciated|likewise|same here|same to you|"
    "you too|have a nice day|have a good day|have a great day|bye|goodbye|all good"
)
_PHRASES = frozenset(tuple(phrase.split()) for phrase in _TEXT.split("|"))
_LONGEST = max(map(len, _PHRASES))
_MARKS = b".,!;:()"
_FIRST = frozenset(phrase[0].encode() for phrase in _PHRASES) | {b""}
_DECORATION = re.compile("[\\s.,!;:()\u2026\U0001f44d\U0001f64f\U0001f44c\U0001f642\U0001f60a\U0001f389\u2728]+")


@dataclass(slots=True)
class Breaker:
    """A limit that was hit: `what` is "rate", "hops", "thanks" or "wakes", `until` in ms, `count` how often."""

    what: str
    mailbox: str
    until: int
    count: int = 0


class Governor:
    """The counters of one broker; ids of mailboxes and messages as text, times in ms that do not run backwards."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, int]] = {}
        # By recipient and id: the first message of this id, and each by its sender. Ids are chosen by senders.
        self._first: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._hops: OrderedDict[tuple[str, str, str], int] = OrderedDict()
        self._thanks: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        self._talks: OrderedDict[tuple[str, str], tuple[str, int, int]] = OrderedDict()
        self._wakes: OrderedDict[str, deque[int]] = OrderedDict()  # the one that was asked for last is last
        self._breakers: dict[tuple[str, str], Breaker] = {}

    # -- rate ------------------------------------------------------------------------------------------------------

    def within(self, now: int, buckets: dict[str, tuple[int, int]]) -> bool:
        """Take a token of each bucket (name -> rate in 1/s, burst), or of none: False when one is empty."""
        filled = []
        enough = True
        for name, (rate, burst) in buckets.items():
            tokens, since = self._buckets.get(name, (float(burst), now))
            tokens = min(float(burst), tokens + (now - since) * rate / 1000)
            filled.append((name, tokens))
            enough = enough and tokens >= 1
        for name, tokens in filled:
            self._buckets[name] = (tokens - 1 if enough else tokens, now)
        if len(self._buckets) > BUCKETS_MAX:
            self._forget_buckets(now)
        return enough

    def _forget_buckets(self, now: int) -> None:
        """The half that was used longest ago: most of them are full again."""
        oldest = sorted(self._buckets, key=lambda name: self._buckets[name][1])
        for name in oldest[: BUCKETS_MAX // 2]:
            del self._buckets[name]

    # -- hops ------------------------------------------------------------------------------------------------------

    def hops(self, sender: str, re_: str, said: int, to: Collection[str] = ()) -> int:
        """How many messages stand before this one in its chain of replies; `said` is what its sender knows of it.

        The message it replies to is that of one of its recipients `to`, else the first of that id.
        """
        if not re_:
            return said
        known = [self._hops[sender, re_, box] for box in to if (sender, re_, box) in self._hops]
        return max(said, (max(known) if known else self._first.get((sender, re_), 0)) + 1)

    def delivered(self, sender: str, recipient: str, msg: str, hops: int, thanks: bool) -> None:
        """Remember what a reply to this copy would count from."""
        self._first.setdefault((recipient, msg), hops)
        self._hops.setdefault((recipient, msg, sender), hops)
        if thanks:
            self._thanks[recipient, msg, sender] = None
        for known in (self._first, self._hops, self._thanks):
            if len(known) > KNOWN_MAX:
                known.popitem(last=False)

    # -- thanks ----------------------------------------------------------------------------------------------------

    def thanks(self, now: int, sender: str, recipient: str, mere: bool, re_: str) -> int:
        """How many messages of mere thanks have gone back and forth between these two, this one included.

        0 for one that says something. One that answers a message which said something begins anew, and so does the
        second of two from the same side: each may answer a question of its own.
        """
        pair = (sender, recipient) if sender < recipient else (recipient, sender)
        if not mere:
            if self._talks:
                self._talks.pop(pair, None)
            return 0
        last, run, at = self._talks.get(pair, ("", 0, 0))
        answers = bool(re_) and (sender, re_, recipient) not in self._thanks
        run = run + 1 if last == recipient != sender and not answers and now - at < THANKS_MS else 1
        self._talks[pair] = (sender, run, now)
        self._talks.move_to_end(pair)
        if len(self._talks) > KNOWN_MAX:
            self._talks.popitem(last=False)
        return run

    # -- wakes -----------------------------------------------------------------------------------------------------

    def wake(self, now: int, mailbox: str, limit: int) -> bool:
        """Whether a task may wake this session. Those that come together count once."""
        times = self._wakes.setdefault(mailbox, deque())
        self._wakes.move_to_end(mailbox)
        if len(self._wakes) > KNOWN_MAX:
            self._wakes.popitem(last=False)
        while times and now - times[0] >= HOUR_MS:
            times.popleft()
        if times and now - times[-1] < WAKE_TOGETHER_MS:
            return True
        if len(times) >= limit:
            return False
        times.append(now)
        return True

    def next_wake(self, now: int, mailbox: str) -> int:
        """When one more is free."""
        times = self._wakes.get(mailbox)
        return times[0] + HOUR_MS if times else now

    # -- breakers --------------------------------------------------------------------------------------------------

    def trip(self, now: int, what: str, mailbox: str, until: int) -> bool:
        """A limit was hit. True when it had not been just before: then it is news."""
        known = self._breakers.get((what, mailbox))
        fresh = known is None or known.until <= now
        if known is None or fresh:
            known = self._breakers[what, mailbox] = Breaker(what, mailbox, until)
            if len(self._breakers) > BREAKERS_MAX:
                self._forget_breakers(now)
        known.until = max(known.until, until)
        known.count += 1
        return fresh

    def breakers(self, now: int) -> list[Breaker]:
        """Those that are open, the longest first."""
        for key in [key for key, known in self._breakers.items() if known.until <= now]:
            del self._breakers[key]
        return sorted(self._breakers.values(), key=lambda known: -known.until)

    def _forget_breakers(self, now: int) -> None:
        """Those that are closed, then those that close first; half of them stay."""
        for known in self.breakers(now)[BREAKERS_MAX // 2 :]:
            del self._breakers[known.what, known.mailbox]


def is_thanks(body: bytes) -> bool:
    """Whether a text says nothing but thanks or that something arrived: phrases of a short list, decorated at most.

    Anything else in it, a digit, a question mark, one other word, and it is a message like any other.
    """
    if len(body) > THANKS_TEXT_MAX:
        return False
    first = body.split(None, 1)[0] if body.strip() else b""
    if first.isascii() and first.strip(_MARKS).lower() not in _FIRST:
        return False  # most messages, and this is on the way of each
    text = body.decode("utf-8", "replace").lower().replace("\u2019", "'")
    words = _DECORATION.sub(" ", text).split()
    if not words:
        return bool(text.strip(" .,!;:()\r\n\t"))  # a thumb
    at = 0
    while at < len(words):
        most = min(_LONGEST, len(words) - at)
        size = next((n for n in range(most, 0, -1) if tuple(words[at : at + n]) in _PHRASES), 0)
        if not size:
            return False
        at += size
    return True
