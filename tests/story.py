"""A small story on a bus, as a tap is told it: literal items that the tests of lines, office and table share.

Two machines, four sessions; one message to one, one to three, one that is refused; a session that is cut off.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agent.tap.cells import Segment
from agent.tap.items import Item

START = 1_700_000_000_000
SCREENS = Path(__file__).parent / "screens"
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[31m\u202egnirts\u2066\x9b6n\r\n\x1b[10;10HX"


def row(ident: str, name: str, host: str = "mars", **more: Any) -> dict[str, Any]:
    """A mailbox as `peers` and `snapshot` tell it."""
    made = {
        "id": ident,
        "name": name,
        "host": host,
        "kind": "session",
        "presence": "open",
        "activity": "",
        "until": 0,
    }
    return {**made, "unread": 0, "oldest": 0, "wake": "", "summary": "", "last_active": START, "term": 1, **more}


PEERS = [
    row("a1", "ada", activity="busy", wake="native", summary="the migration"),
    row("b2", "bob", wake="hooks"),
    row("c3", "cleo", "venus", wake="tools", unread=1, oldest=START - 90_000),
    row("d4", "dan", "venus", presence="gone"),
]
STATE = [{"key": "api:port", "ver": 7, "by": "ada@mars", "ts": START, "size": 4}]


def snapshot(at: int = START, seq: int = 10, boot: str = "b1", peers: Any = PEERS) -> Item:
    return Item(at, "snapshot", {"peers": peers, "state": STATE, "seq": seq, "boot": boot})


def event(at: int, topic: str, seq: int = 0, /, **fields: Any) -> Item:
    kind, _, name = topic.partition(".")
    told = {"class": kind, "event": name, "seq": seq or 11, "boot": "b1", "ts": at}
    return Item(at, "event", {**told, **fields})


def stored(at: int, ident: str, to: str = "bob", host: str = "mars", box: str = "b2", /, **more: Any) -> Item:
    """ada sends to somebody."""
    known = {
        "from_host": "mars",
        "to": to,
        "host": host,
        "mailbox": box,
        "kind": "task",
        "tag": "",
        "re": "",
        "size": 31,
    }
    return event(at, "msg.stored", id=ident, **{"from": "ada", **known, **more})


def step(
    at: int, name: str, ident: str, to: str = "bob", host: str = "mars", box: str = "b2", /, **more: Any
) -> Item:
    told = {"to": to, "host": host, "mailbox": box, "at": at, "proof": "tool-result", **more}
    return event(at, f"msg.{name}", id=ident, **told)


ONE = "k3v7h2qmx5azt4cd"
MANY = "aaaabbbbccccdddd"
LOST = "zzzzyyyyxxxxwwww"
STORY = [
    snapshot(),
    stored(START + 1000, ONE, tag="db", body="the migration is in; please run the tests of the api"),
    step(START + 1400, "injected", ONE, **{"from": "ada", "from_host": "mars", "kind": "task"}),
    event(START + 1600, "peer.open", id="d4", name="dan", host="venus", term=2, kind="session"),
    *(
        stored(START + 2000, MANY, to, host, box, kind="note", body="deploying at noon, please hold your pushes")
        for to, host, box in (("bob", "mars", "b2"), ("cleo", "venus", "c3"), ("dan", "venus", "d4"))
    ),
    event(
        START + 2100,
        "msg.refused",
        id=LOST,
        **{
            "from": "bob",
            "from_host": "mars",
            "to": "nobody",
            "host": "",
            "kind": "task",
            "code": 404,
            "text": "nobody is called so",
        },
    ),
    event(START + 2200, "peer.lost", id="c3", name="cleo", host="venus"),
]


def as_text(rows: Iterable[Iterable[Segment]]) -> str:
    """A drawing without its styles, as lines."""
    return "\n".join("".join(text for _, text in row).rstrip() for row in rows) + "\n"


def compare(name: str, text: str) -> None:
    """With the screen that is kept; TALKBUS_NEW_SCREENS=1 keeps this one."""
    path = SCREENS / f"{name}.txt"
    if os.environ.get("TALKBUS_NEW_SCREENS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path} shows another screen"
