"""TBP/1 on the wire: limits, the commands as dataclasses, the COMMANDS table, encode and decode.

The only file of the broker's side that knows msgpack. It turns whatever comes in into one command or one RemoteError;
it knows nothing of what a command does. PROTOCOL.md §3, §4, §13.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import MISSING, field, fields
from typing import Any

import msgpack

from bus.errors import Code, LocalError, RemoteError
from bus.record import record

SIGNATURE = b"TB\x01"

HEAD_MAX = 4096
HEAD_ENTRIES = 32
BODY_MAX = 262144
RECIPIENTS_MAX = 16
MAILBOX_MESSAGES = 10000
MAILBOX_BYTES = 67108864
STATE_KEYS = 4096
STATE_VALUE_MAX = 65536
OPEN_REQUESTS = 64
WINDOW = 64
WINDOW_QUIET = 48
RATE_PER_S = 60
RATE_BURST = 600
HEARTBEAT_MS = 5000
LEASE_MS = 15000
WELCOME_WAIT_MS = 2000
RECEIPT_IDS = 64
ENROL_MS = 600000
ENROL_TRIES = 5

LIMITS = {name: value for name, value in list(globals().items()) if name.isupper() and isinstance(value, int)}

TEXT_MAX = 512
ANSWER_TEXT_MAX = 2048
NUM_MAX = 2**53

Ranges = Sequence[Sequence[int]]


@record
class Hello:
    mode: str
    inst: str
    ob: str = ""
    floor: int = 1
    name: str = ""
    term: int = 0
    take: int = 0
    hb: int = HEARTBEAT_MS
    meta: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    store: str = ""
    life: str = ""


@record
class Req:
    q: int
    floor: int
    op: str
    id: str
    args: dict[str, Any] = field(default_factory=dict)
    body: bytes = b""


@record
class Ack:
    ranges: Ranges
    proof: str = ""
    as_: str = "injected"
    resync: bool = False


@record
class Qry:
    r: int
    what: str
    args: dict[str, Any] = field(default_factory=dict)


@record
class Ping:
    k: int = 0
    st: str = ""


@record
class Bye:
    leave: bool = False
    begun: Ranges | None = None


@record
class Enroll:
    token: str = field(repr=False)
    label: str = ""


@record
class Welcome:
    name: str
    id: str
    term: int
    store: str
    seq: int
    chain: str
    high: int
    hb: int
    win: int
    now: int


@record
class Rep:
    q: int
    code: int
    result: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    body: bytes = b""


@record
class Msg:
    n: int
    prev: int
    id: str
    from_: str
    fid: str
    host: str
    to: str
    kind: str
    ts: int
    tag: str = ""
    re: str = ""
    thread: str = ""
    ttl: int = 0
    hops: int = 0
    again: bool = False
    quiet: bool = False
    body: bytes = b""


@record
class Part:
    r: int
    value: dict[str, Any]
    body: bytes = b""


@record
class Done:
    r: int
    code: int
    seq: int
    text: str = ""


@record
class Pong:
    k: int
    high: int
    open: Ranges
    more: int
    now: int


@record
class Err:
    code: int
    of: str = ""
    ref: int = 0
    want: int = 0
    term: int = 0
    by: dict[str, Any] = field(default_factory=dict)
    retry: int = 0
    text: str = ""


@record
class Gone:
    code: int
    term: int = 0
    by: str = ""
    text: str = ""


Command = (
    Hello | Req | Ack | Qry | Ping | Bye | Enroll | Welcome | Rep | Msg | Part | Done | Pong | Err | Gone
)  # every command of the table


def _num(value: Any) -> bool:
    return type(value) is int and 0 <= value <= NUM_MAX


def _text(value: Any) -> bool:
    return type(value) is str and len(value) <= TEXT_MAX


def _answer(value: Any) -> bool:
    return type(value) is str and len(value) <= ANSWER_TEXT_MAX


def _flag(value: Any) -> bool:
    return type(value) is bool


def _map(value: Any) -> bool:
    return type(value) is dict and all(type(key) is str for key in value)


def _ranges(value: Any) -> bool:
    if type(value) is not list or len(value) > WINDOW:
        return False
    end = -1
    for pair in value:
        if type(pair) is not list or len(pair) != 2 or not (_num(pair[0]) and _num(pair[1])):
            return False
        if pair[0] > pair[1] or pair[0] <= end:
            return False
        end = pair[1] + 1
    return True


CHECKS: dict[str, Callable[[Any], bool]] = dict(num=_num, text=_text, flag=_flag, map=_map, ranges=_ranges)


@record
class Field:
    """One key of a head: its type in the table, the attribute that carries it, and its default."""

    key: str
    attr: str
    type: str
    check: Callable[[Any], bool]
    required: bool
    default: Any


@record
class Spec:
    """One row of the table of commands."""

    name: str
    cls: type[Any]
    sender: str
    body: str
    fields: tuple[Field, ...]
    by_key: dict[str, Field]
    required: frozenset[str]  # keys
    rows: tuple[tuple[str, str, bool, Any], ...]  # key, attribute, required and default of each: quicker than fields


_TYPES = {"int": "num", "str": "text", "bool": "flag", "dict[str, Any]": "map"} | dict.fromkeys(
    ("Ranges", "Ranges | None"), "ranges"
)


def _spec(cls: type[Any], sender: str, body: str = "none") -> Spec:
    rows = []
    for f in fields(cls):
        if f.name == "body":
            continue
        kind = _TYPES[str(f.type)]
        check = _answer if kind == "text" and sender == "S" else CHECKS[kind]
        required = f.default is MISSING and f.default_factory is MISSING
        default = {} if kind == "map" else f.default
        rows.append(Field(f.name.rstrip("_"), f.name, kind, check, required, default))
    required_keys = frozenset(f.key for f in rows if f.required)
    by_key = {f.key: f for f in rows}
    plain = tuple((f.key, f.attr, f.required, f.default) for f in rows)
    return Spec(cls.__name__.upper(), cls, sender, body, tuple(rows), by_key, required_keys, plain)


COMMANDS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        _spec(Hello, "C"),
        _spec(Req, "C", "optional"),
        _spec(Ack, "C"),
        _spec(Qry, "C"),
        _spec(Ping, "C"),
        _spec(Bye, "C"),
        _spec(Enroll, "E"),
        _spec(Welcome, "S"),
        _spec(Rep, "S", "optional"),
        _spec(Msg, "S", "optional"),
        _spec(Part, "S", "optional"),
        _spec(Done, "S"),
        _spec(Pong, "S"),
        _spec(Err, "S"),
        _spec(Gone, "S"),
    )
}
_BY_CLASS: dict[type[Any], Spec] = {spec.cls: spec for spec in COMMANDS.values()}


def pack(value: Any) -> bytes:
    """msgpack of plain data. LocalError for what does not fit (a number beyond 64 bits, an unknown type)."""
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise LocalError(f"cannot be packed: {error}") from error
    return packed


def _no_ext(code: int, _data: bytes) -> Any:
    raise ValueError(f"ext type {code}")


def unpack(data: bytes, limit: int = HEAD_MAX) -> Any:
    """The one place where foreign msgpack is parsed; at most `limit` octets. RemoteError for anything else."""
    if len(data) > limit:
        raise RemoteError(Code.TOO_LARGE, f"head of {len(data)} octets, {limit} allowed")
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True, ext_hook=_no_ext)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise RemoteError(Code.MALFORMED, f"head is no msgpack map ({type(error).__name__})") from error


def encode(command: Any) -> list[bytes]:
    """Frames of one command; fields at their default are left out. LocalError when the head grows too big."""
    spec = _BY_CLASS[type(command)]
    head: dict[str, Any] = {"c": spec.name}
    for key, attr, required, default in spec.rows:
        value = getattr(command, attr)
        if required or value != default:
            head[key] = value
    packed = pack(head)
    if len(packed) > HEAD_MAX:
        raise LocalError(f"{spec.name} head of {len(packed)} octets, {HEAD_MAX} allowed")
    body: bytes = getattr(command, "body", b"")
    return [SIGNATURE, packed, body] if body else [SIGNATURE, packed]


def signed(frames: Sequence[bytes]) -> bool:
    """Whether frames claim to be TBP/1 at all; what does not is dropped unanswered."""
    return bool(frames) and frames[0] == SIGNATURE


def decode(frames: Sequence[bytes], sender: str) -> Any:
    """One command from the frames after the routing id; `sender` ("C" or "S") is who may have sent it.

    RemoteError with the code to answer when it is none.
    """
    if not 2 <= len(frames) <= 3:
        raise RemoteError(Code.MALFORMED, f"{len(frames)} frames, 2 or 3 allowed")
    body = frames[2] if len(frames) == 3 else b""
    if len(body) > BODY_MAX:
        raise RemoteError(Code.TOO_LARGE, f"body of {len(body)} octets, {BODY_MAX} allowed")
    head = unpack(frames[1])
    if not _map(head) or len(head) > HEAD_ENTRIES:
        raise RemoteError(Code.MALFORMED, "head is no map of at most 32 entries")
    name = head.get("c")
    spec = COMMANDS.get(name) if type(name) is str else None
    if spec is None or (spec.sender != sender and name != "BYE"):
        raise RemoteError(Code.UNKNOWN_COMMAND, f"unknown command {str(name)[:40]!r}")
    if body and spec.body == "none":
        raise RemoteError(Code.MALFORMED, f"{name} has no body")
    values: dict[str, Any] = {}
    for key, value in head.items():
        f = spec.by_key.get(key)
        if f is None:
            continue  # of a later version
        if not f.check(value):
            raise RemoteError(Code.MALFORMED, f"{name}.{key} is no {f.type}")
        values[f.attr] = value
    if not spec.required <= head.keys():
        raise RemoteError(Code.MALFORMED, f"{name} lacks {', '.join(sorted(spec.required - head.keys()))}")
    if body:
        values["body"] = body
    return spec.cls(**values)


def digest(op: str, ident: str, args: dict[str, Any], body: bytes) -> bytes:
    """What identifies a request beside its number (§6): 16 octets."""
    return hashlib.blake2b(pack([op, ident, args]) + body, digest_size=16).digest()


def ranges(numbers: Sequence[int]) -> list[list[int]]:
    """Rising numbers as the shortest list of [first, last]; at most WINDOW pairs, the rest comes later."""
    made: list[list[int]] = []
    for n in numbers:
        if made and made[-1][1] == n - 1:
            made[-1][1] = n
        elif len(made) == WINDOW:
            break
        else:
            made.append([n, n])
    return made


def clip(text: str, limit: int = ANSWER_TEXT_MAX) -> str:
    """A text that fits a field of an answer."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
