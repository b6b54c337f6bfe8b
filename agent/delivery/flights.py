"""What becomes of letters that were handed to a path: the rules by which an attempt ends, and with which proof.

Pure: what the transcript and the maildir say, and the time, come in; a verdict goes out. The promise is exactly once
where the transcript can be read: while it shows a line queued, nothing else is tried, however long that takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.delivery.maildir import Fate
from agent.delivery.transcript import Seen
from agent.inbox import Letter

TRACE_MS = 10_000  # a line that was written and of which the transcript says nothing by then did not arrive
PROOF_MS = 30_000  # after a hook has printed where no client says whether its turn is over
SESSION_MS = 10_000  # a queue does not outlive its session for longer
OVER_MS = 5_000  # a turn that ended without the text in a request did not show what a hook had printed
CLAIM_MS = 10_000  # a hook that claimed a text prints it within milliseconds


@dataclass(slots=True)
class Flight:
    """One attempt. `nonce` stands in its text and nowhere else; times in ms of any steady clock."""

    letters: list[Letter]
    path: str  # "native" | "channel" | "hook" | "terminal" | "tool-result" | "resumed"
    nonce: str
    since: int
    session: str  # the client's session id then
    name: str = ""  # of the text in the maildir
    task: bool = True
    weak_at: int = 0  # when a hook or the supervisor said that it was printed
    left_at: int = 0  # when the session went on under another id, or its turn ended
    written: bool = False  # a tool result was written in full
    taken: bool = False  # and the client has read it
    resumed: list[str] = field(default_factory=list)  # what a former life of the agent handed over; no letters here

    @property
    def keys(self) -> list[str]:
        return [*self.resumed, *(letter.key for letter in self.letters)]

    @property
    def until(self) -> int:
        """When the time of the first of them is over, in ms of the link's clock; 0 for never."""
        return min((letter.deadline for letter in self.letters if letter.deadline), default=0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`end` is "shown" with its proof, "back" (to be offered again; `certain` when nobody saw it), or "" to wait on.

    `blame`: the path did not work and is better not used for a while.
    """

    end: str = ""
    proof: str = ""
    certain: bool = False
    blame: bool = False


WAIT = Verdict()


def judge_native(flight: Flight, seen: Seen, now: int, session: str) -> Verdict:
    """A line in the session's own inbox. `session` is the id the client goes by now, "" when it is gone."""
    if seen == Seen.DROPPED:
        return Verdict("back", certain=True, blame=True)
    if seen != Seen.NOTHING:
        return judge_resumed(flight, seen, now, session)
    return Verdict("back", blame=True) if now - flight.since >= TRACE_MS else WAIT


def judge_resumed(flight: Flight, seen: Seen, now: int, session: str) -> Verdict:
    """What a client has, also if a former agent of it had handed that over: it shows the text at a turn of this
    session, however long that takes, unless its person has taken it out of the conversation.
    """
    if verdict := told(seen):
        return verdict
    if session == flight.session:
        flight.left_at = 0
        return WAIT
    flight.left_at = flight.left_at or now
    return Verdict("back") if now - flight.left_at >= SESSION_MS else WAIT


def told(seen: Seen) -> Verdict | None:
    """What the transcript alone decides, on every path but a hook's; None where it does not."""
    if seen >= Seen.ANSWERED:
        return Verdict("shown", "transcript" if seen == Seen.INJECTED else "queue")
    return Verdict("back") if seen == Seen.LEFT else None


def judge_typed(
    flight: Flight, seen: Seen, fate: Fate, now: int, session: str, turn: str = "", records: bool = True
) -> Verdict:
    """A text for the supervisor, which types it into the terminal; or a notice of it, where it may not be typed.

    `records`: the client has a transcript. Then only that proves anything; else `fate` says whether the program has
    itself written the reference to its terminal, which is all that can be known. `turn` as for a hook. While the
    client's record says that it took the text, or that it stands in its queue, it is not typed again, however long
    the proof takes.
    """
    if verdict := told(seen):
        return verdict
    if fate in (Fate.WAITING, Fate.CLAIMED):
        return WAIT
    if fate is not Fate.PRINTED:
        return Verdict("back", certain=fate is Fate.NOTICED, blame=fate is not Fate.GONE)
    if not records:
        return Verdict("shown", "terminal")
    if not flight.weak_at:
        flight.weak_at, flight.session = now, session or flight.session
    if session != flight.session:
        flight.left_at = flight.left_at or now
        return Verdict("back") if now - flight.left_at >= SESSION_MS else WAIT
    if seen >= Seen.ENQUEUED or turn == "runs":
        flight.left_at = 0
        return WAIT
    flight.left_at = flight.left_at or now
    return Verdict("back", blame=True) if now - flight.left_at >= TRACE_MS else WAIT


def judge_hook(flight: Flight, seen: Seen, fate: Fate, now: int, turn: str = "") -> Verdict:
    """A text in the maildir, for whichever hook comes first.

    `turn` says whether one "runs" or is "over", "" where the client's status or transcript cannot be read. Printed is
    not shown: what a hook says before a tool call that the user breaks off is lost without a trace.
    """
    if seen == Seen.INJECTED:
        return Verdict("shown", "transcript")
    if fate is Fate.WAITING:
        return WAIT
    if fate in (Fate.PRINTED, Fate.CLAIMED):
        flight.weak_at = flight.weak_at or now
        if fate is Fate.CLAIMED:
            return Verdict("back", blame=True) if now - flight.weak_at >= CLAIM_MS else WAIT
        if not turn:
            return Verdict("shown", "hook-output") if now - flight.weak_at >= PROOF_MS else WAIT
        flight.left_at = 0 if turn == "runs" else flight.left_at or now
        return Verdict("back") if flight.left_at and now - flight.left_at >= OVER_MS else WAIT
    return Verdict("back", certain=fate is Fate.NOTICED, blame=fate is Fate.LOST)


def judge_result(
    flight: Flight, seen: Seen, recorded: bool, now: int, session: str, turn: str, transcript: bool
) -> Verdict:
    """The result of a tool call. `recorded`: the transcript has it, be it in a request yet or not; `turn` says
    whether one "runs" or is "over", "" where the client does not say; `transcript` whether there is one by now.

    That the client has read a result does not say that its model was given it: where there is a transcript, that
    decides, and a client that says what it does has one by the end of its first turn, if it keeps any. A result that
    is in it goes out with the session's next request, however long that takes.
    """
    if verdict := told(seen):
        return verdict
    if not flight.written:
        return WAIT
    if not transcript and not flight.session:
        return Verdict("shown", "tool-result") if flight.taken else WAIT
    if turn != "over" or (recorded and session == flight.session):
        flight.left_at = 0
        return WAIT
    flight.left_at = flight.left_at or now
    if now - flight.left_at < OVER_MS:
        return WAIT
    if not transcript:
        return Verdict("shown", "tool-result") if flight.taken else WAIT
    return Verdict("back")
