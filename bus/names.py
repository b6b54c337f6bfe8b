"""Grammar of names, addresses, keys and ids: parse, format, match (PROTOCOL.md §9, §10).

Knows the errors and nothing of sessions, wire or disk.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from bus.errors import Code, Refused

NAME_MAX = 63  # characters
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
KEY = re.compile(r"[A-Za-z0-9._:/@-]{1,200}\Z")
PEER_ID = re.compile(r"[0-9a-f]{4,8}\Z")
MESSAGE_ID = re.compile(r"[a-z2-7]{16}\Z")
TAG = re.compile(r"[A-Za-z0-9._:/-]{1,64}\Z")
RESERVED = frozenset({"all", "everyone", "bus", "broker"})


@dataclass(frozen=True, slots=True)
class Address:
    """One entry of `to`. `form` says which of the other fields carries it."""

    form: str  # "all" | "name" | "at" | "pool" | "folder"
    text: str
    name: str = ""
    host: str = ""


def canonical(text: str) -> str:
    """A name made to fit the grammar, from a folder or a person's name; "session" when nothing is left of it."""
    made = re.sub(r"[^a-z0-9._-]+", "-", text.strip().lower()).strip("-._")[:58].rstrip("-._")
    return f"{made}-1" if made in RESERVED else made or "session"


def check_name(text: str) -> str:
    """The canonical form of a name somebody chose. Refused (422) with what a name may be."""
    name = text.strip().lower()
    if not NAME.match(name) or name in RESERVED:
        raise Refused(
            Code.INVALID,
            f"{text[:80]!r} is no name (1 to 63 of a-z 0-9 . _ -, the first a letter or digit, "
            f"not {', '.join(sorted(RESERVED))})",
        )
    return name


def check_key(text: str) -> str:
    """A key of shared state, unchanged. Refused (422) with what a key may be."""
    if not KEY.match(text):
        raise Refused(Code.INVALID, f"{text[:80]!r} is no state key (1 to 200 of A-Z a-z 0-9 . _ : / @ -)")
    return text


def check_tag(text: str) -> str:
    """A tag, unchanged. Refused (422) with what a tag may be."""
    if not TAG.match(text):
        raise Refused(Code.INVALID, f"{text[:80]!r} is no tag (1 to 64 of A-Z a-z 0-9 . _ : / -)")
    return text


@lru_cache(1024)  # the same few come with every message
def parse_address(text: str) -> Address:
    """What an entry of `to` asks for. Refused (422) when it is no address at all."""
    raw = text.strip()
    if not raw or len(raw) > 512 or any(ord(c) < 32 for c in raw):
        raise Refused(Code.INVALID, f"{text[:80]!r} is no address (a name, an id, name@host, a folder, or *)")
    if raw in ("*", "@all"):
        return Address("all", raw)
    if raw.startswith("@"):
        return Address("pool", raw, raw[1:].lower())
    if "/" in raw or "\\" in raw or raw.startswith("~"):
        return Address("folder", raw)
    name, at, host = raw.lower().partition("@")
    if at:
        return Address("at", raw, name, host)
    return Address("name", raw, raw.lower())


def folder_matches(folder: str, cwd: str) -> bool:
    """Whether an address names this working directory: the whole path or its tail, case ignored."""
    want = [p for p in re.split(r"[/\\]+", folder.lower()) if p and p != "~"]
    have = [p for p in re.split(r"[/\\]+", cwd.lower()) if p]
    return bool(want) and have[-len(want) :] == want


def nearest(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The names most like one that was not found, best first."""
    return difflib.get_close_matches(name, sorted(set(known)), n=limit, cutoff=0.5)
