"""CURVE keys of this user and machine, the file of the roll, and the verdict over who may connect.

The verdict is a pure function from the frames of a ZAP request (ZeroMQ RFC 27) to the frames of its reply.
Key files are two lines, 0600. A secret never stands in a repr, a log or an error.

Must not know sockets, sessions or mail. zmq is imported only where a pair is made or checked.
"""

from __future__ import annotations

import re
import socket
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from bus import roll as rolls
from bus import z85
from bus.config import LABEL_MAX, Home, is_key
from bus.errors import ConfigError, StoreError
from bus.private import check_private, private_dir, write_private
from bus.roll import Roll

ZAP_DOMAIN = b"talkbus"
ENROL_DOMAIN = b"talkbus-enroll"  # of the port that is bound while an invitation is open; any key may knock there

_NEW = "a new key is a new identity and owns no old mailbox"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE pair as z85 text, 40 characters each. Only `public` shows in a repr."""

    public: str
    secret: str = field(repr=False)


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


def load_roll(home: Home, own: str, label: str = "") -> Roll:
    """The own public key as owner, labelled by `label` or this host, and whoever keys/roll.toml lists.

    ConfigError names the file and the entry that is wrong.
    """
    path = roll_file(home)
    others = Roll({})
    if path.exists():
        check_private(path)
        try:
            others = rolls.parse(path.read_text("utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} cannot be read: {error} (mend it, or move it away)") from error
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror} (mend it, or move it away)") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8 (mend it, or move it away)") from error
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error
    return rolls.with_own(others, own, label or host_label())


def save_roll(home: Home, roll: Roll) -> None:
    """Write keys/roll.toml; on the disk when this returns. StoreError (full) when the disk does not take it."""
    try:
        write_private(roll_file(home), rolls.text(roll).encode("utf-8"))
    except ConfigError as error:
        raise StoreError(str(error), full=True) from error


def host_label() -> str:
    """The short name of this host, lower case, letters, digits and dashes only."""
    short = socket.gethostname().split(".")[0].lower()
    return re.sub(r"[^a-z0-9]+", "-", short)[:LABEL_MAX].strip("-") or "host"


def verdict(frames: list[bytes], roll: Roll, inviting: bool = False) -> list[bytes]:
    """Answer one ZAP 1.0 request: 200 with the z85 key as user id for a known CURVE key, else 400.

    At the enrolment port any CURVE key is let in while `inviting`: there is nothing behind it but the one command.
    Takes the frames from the version on, as a REP socket hands them over, and gives those of the reply.
    Never raises, whatever comes in: a verdict that fails would leave every later handshake hanging.
    """
    request = frames[1] if len(frames) > 1 else b""
    if len(frames) != 7 or frames[0] != b"1.0":
        return _refuse(request, b"malformed request")
    domain, mechanism, credential = frames[2], frames[5], frames[6]
    enrolling = domain == ENROL_DOMAIN and inviting
    if domain != ZAP_DOMAIN and not enrolling:
        return _refuse(request, b"unknown domain")
    if mechanism != b"CURVE" or len(credential) != 32:
        return _refuse(request, b"CURVE only")
    public = z85.encode(credential)
    if public not in roll and not enrolling:
        return _refuse(request, b"unknown key")
    return [b"1.0", request, b"200", b"OK", public.encode("ascii"), b""]


def _refuse(request: bytes, text: bytes) -> list[bytes]:
    # 400 and not 300: at 300 the client hangs and asks for ever, at 400 it is told (RFC 27).
    return [b"1.0", request, b"400", text, b"", b""]


def _public_of(secret: str) -> str | None:
    import zmq

    try:
        return zmq.curve_public(secret.encode("ascii")).decode("ascii")
    except zmq.ZMQError:
        return None
