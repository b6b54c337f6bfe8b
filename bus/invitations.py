"""The one line that invites a machine: where the hub is, its key, and a token that is good once.

    talkbus:HOST:PORT,EVENTS,ENROLMENT:DATA

DATA is url-safe base64 of the hub's key (32 octets), the token (16) and a check over all of it (3), so nothing in the
line means anything to a shell, and a line that was not copied whole is told from one that is wrong. Pure.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field

from bus import z85
from bus.errors import LocalError

SCHEME = "talkbus"
TOKEN_SIZE = 16  # octets: 128 random bits
DIGEST_SIZE = 32
_CHECK_SIZE = 3
_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,255}\Z")
_PORTS = re.compile(r"([0-9]{1,5}),([0-9]{1,5}),([0-9]{1,5})\Z")


@dataclass(frozen=True, slots=True)
class Line:
    """What an invitation says. The token shows in no repr."""

    host: str
    port: int
    events: int
    enrolment: int
    key: str
    token: str = field(repr=False)  # hex

    def text(self) -> str:
        """The line."""
        front = f"{SCHEME}:{self.host}:{self.port},{self.events},{self.enrolment}:"
        secret = z85.decode_key(self.key) + bytes.fromhex(self.token)
        data = secret + _check(front.encode("ascii") + secret)
        return front + urlsafe_b64encode(data).decode("ascii")


def digest(token: str) -> bytes:
    """What of a token may be kept and sent: it is random, so its hash tells nothing."""
    return hashlib.blake2b(token.encode("utf-8", "replace"), digest_size=DIGEST_SIZE).digest()


def parse(text: str) -> Line:
    """Take a line apart. LocalError says what is wrong with it, without repeating what is secret in it."""
    line = "".join(text.split()).strip("'\"")
    if line.lower().startswith(("http:", "https:")):
        raise LocalError(f"{_HTTP} {_WANTED}")
    head, _, data = line.rpartition(":")
    scheme, _, rest = head.partition(":")
    host, _, ports = rest.rpartition(":")
    found = _PORTS.match(ports)
    if scheme.lower() != SCHEME or not found or not _HOST.match(host):
        raise LocalError(f"this is no invitation {_WANTED}")
    try:
        raw = urlsafe_b64decode(data)
    except ValueError:
        raw = b""
    secret, check = raw[:-_CHECK_SIZE], raw[-_CHECK_SIZE:]
    front = f"{SCHEME}:{host}:{ports}:"
    if len(raw) != 32 + TOKEN_SIZE + _CHECK_SIZE or _check(front.encode("ascii") + secret) != check:
        raise LocalError("the invitation is damaged (copy the line whole, or ask for another)")
    port, events, enrolment = (_port(part) for part in found.groups())
    return Line(host, port, events, enrolment, z85.encode(secret[:32]), secret[32:].hex())


def address(text: str) -> tuple[str, int]:
    """Host and port of what a person gives as an address: HOST, HOST:PORT or tcp://HOST:PORT; port 0 = not given.

    LocalError for what TCP cannot reach, an HTTP tunnel above all.
    """
    plain = text.strip()
    scheme, mark, rest = plain.partition("://")
    if mark and scheme.lower() in ("http", "https", "ws", "wss"):
        raise LocalError(f"{text[:80]!r}: {_HTTP} {_TCP}")
    if mark and scheme.lower() != "tcp":
        raise LocalError(f"{text[:80]!r} is no address of TCP (give HOST or HOST:PORT)")
    plain = rest if mark else plain
    if plain.startswith("["):
        host, _, port = plain[1:].partition("]")
        port = port.removeprefix(":")
    elif plain.count(":") > 1:
        host, port = plain, ""
    else:
        host, _, port = plain.partition(":")
    if not _HOST.match(host):
        raise LocalError(f"{text[:80]!r} is no host name or address (give HOST or HOST:PORT)")
    return host, _port(port) if port else 0


_WANTED = "(give the whole line that 'talkbus lan invite' printed)"
_HTTP = "an HTTP tunnel does not carry this bus, which is TCP"
_TCP = (
    "(open a TCP tunnel instead, for example 'ngrok tcp PORT', and give its host and port: "
    "talkbus lan invite --host 0.tcp.ngrok.io --port 12345)"
)


def _port(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else 0
    if not 0 < number < 65536:
        raise LocalError(f"{text[:20]!r} is no port (1 to 65535)")
    return number


def _check(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECK_SIZE).digest()
