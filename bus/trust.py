"""CURVE keys of this user and machine, the roll of known keys, and the verdict over who may connect.

The verdict is a pure function from the frames of a ZAP request (ZeroMQ RFC 27) to the frames of its reply.
Key files are two lines, 0600. A secret never stands in a repr, a log or an error.

Must not know sockets, sessions or mail. zmq is imported only where a pair is made or checked.
"""

from __future__ import annotations

import hashlib
import re
import socket
import tomllib
from base64 import b32encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from bus.config import Z85, Home, is_key
from bus.errors import ConfigError
from bus.private import check_private, private_dir, write_private

Role = Literal["owner", "member", "observer"]
ZAP_DOMAIN = b"talkbus"

_ROLES: tuple[Role, ...] = get_args(Role)
_NEW = "a new key is a new identity and owns no old mailbox"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE pair as z85 text, 40 characters each. Only `public` shows in a repr."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a key is: a machine's label, and what it may do."""

    label: str
    role: Role


def key_file(home: Home) -> Path:
    """Where the pair of this user and machine is kept."""
    return home.keys / "talkbus.key"


def roll_file(home: Home) -> Path:
    """Where the other machines' public keys are kept; need not exist."""
    return home.keys / "roll.toml"


def ensure_keys(home: Home) -> KeyPair:
    """The pair of this user and machine, made at the first call.

    Several processes may call at once: one makes it, all get the same. A broken file is never replaced:
    ConfigError names it, because its mailboxes belong to its key.
    """
    private_dir(home.config)
    private_dir(home.keys)
    path = key_file(home)
    if not path.exists():
        import zmq

        public, secret = zmq.curve_keypair()
        write_private(path, b"public %b\nsecret %b\n" % (public, secret), exclusive=True)
    return read_keys(home)


def read_keys(home: Home) -> KeyPair:
    """The pair as it stands on the disk. ConfigError when it is missing, broken or open to others."""
    path = key_file(home)
    check_private(path)
    try:
        text = path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read (restore it from a backup; {_NEW})") from error
    words = [line.split(" ") for line in text.split("\n")]
    if [w[0] for w in words] != ["public", "secret", ""] or not all(len(w) == 2 for w in words[:2]):
        raise ConfigError(f"{path} is no key file of two lines (restore it from a backup; {_NEW})")
    pair = KeyPair(words[0][1], words[1][1])
    if not (is_key(pair.public) and is_key(pair.secret) and _public_of(pair.secret) == pair.public):
        raise ConfigError(f"{path} holds keys that are no pair (restore it from a backup; {_NEW})")
    return pair


def fingerprint(public: str) -> str:
    """A form two people can compare aloud: 100 bits in five groups of four letters and digits."""
    text = b32encode(hashlib.sha256(public.encode("ascii")).digest()).decode("ascii").lower()
    return "-".join(text[i : i + 4] for i in range(0, 20, 4))


class Roll:
    """The known keys: z85 public key -> Principal. Whoever is not on it cannot connect."""

    __slots__ = ("_known",)

    def __init__(self, known: Mapping[str, Principal]) -> None:
        self._known = dict(known)

    @classmethod
    def load(cls, home: Home, own: str) -> Roll:
        """The own public key as owner, labelled by this host, and whoever keys/roll.toml lists.

        ConfigError names the file and the entry that is wrong.
        """
        known = _read_roll(roll_file(home))
        known[own] = Principal(host_label(), "owner")
        return cls(known)

    def find(self, public: str) -> Principal | None:
        """Who this key is, or None."""
        return self._known.get(public)

    def __contains__(self, public: object) -> bool:
        return public in self._known

    def __iter__(self) -> Iterator[tuple[str, Principal]]:
        return iter(self._known.items())

    def __len__(self) -> int:
        return len(self._known)


def host_label() -> str:
    """The short name of this host, lower case, letters, digits and dashes only."""
    short = socket.gethostname().split(".")[0].lower()
    return re.sub(r"[^a-z0-9]+", "-", short).strip("-") or "host"


def verdict(frames: list[bytes], roll: Roll) -> list[bytes]:
    """Answer one ZAP 1.0 request: 200 with the z85 key as user id for a known CURVE key, else 400.

    Takes the frames from the version on, as a REP socket hands them over, and gives those of the reply.
    Never raises, whatever comes in: a verdict that fails would leave every later handshake hanging.
    """
    request = frames[1] if len(frames) > 1 else b""
    if len(frames) != 7 or frames[0] != b"1.0":
        return _refuse(request, b"malformed request")
    domain, mechanism, credential = frames[2], frames[5], frames[6]
    if domain != ZAP_DOMAIN:
        return _refuse(request, b"unknown domain")
    if mechanism != b"CURVE" or len(credential) != 32:
        return _refuse(request, b"CURVE only")
    public = _z85(credential)
    if public not in roll:
        return _refuse(request, b"unknown key")
    return [b"1.0", request, b"200", b"OK", public.encode("ascii"), b""]


def _refuse(request: bytes, text: bytes) -> list[bytes]:
    # 400 and not 300: at 300 the client hangs and asks for ever, at 400 it is told (RFC 27).
    return [b"1.0", request, b"400", text, b"", b""]


def _z85(data: bytes) -> str:
    """Z85 (ZeroMQ RFC 32) of a multiple of four octets."""
    out: list[str] = []
    for i in range(0, len(data), 4):
        number = int.from_bytes(data[i : i + 4], "big")
        out += [Z85[number // 85**power % 85] for power in (4, 3, 2, 1, 0)]
    return "".join(out)


def _public_of(secret: str) -> str | None:
    import zmq

    try:
        return zmq.curve_public(secret.encode("ascii")).decode("ascii")
    except zmq.ZMQError:
        return None


def _read_roll(path: Path) -> dict[str, Principal]:
    if not path.exists():
        return {}
    check_private(path)
    try:
        entries = tomllib.loads(path.read_text("utf-8")).get("key", [])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error} (mend it, or move it away)") from error
    known: dict[str, Principal] = {}
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries], 1):
        fields = entry if isinstance(entry, dict) else {}
        public, label, role = (fields.get(name) for name in ("public", "label", "role"))
        if not (isinstance(public, str) and is_key(public) and isinstance(label, str) and role in _ROLES):
            raise ConfigError(
                f"{path}: [[key]] number {number} is wrong "
                f"(it needs public = 40 z85 characters, label, and role = {', '.join(_ROLES)})"
            )
        known[public] = Principal(label, role)
    return known
