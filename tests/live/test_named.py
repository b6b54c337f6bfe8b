"""Somebody uses the id of another's message on purpose: everybody is still told the truth about their own."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from typing import Any

import pytest

from bus import wire
from tests.live.homes import Home, Peer
from tests.live.taps import Tap
from tests.live.test_mcp import in_loop
from tests.live.test_mcp_bed import Bed, agent, bodies, ids
from tests.live.test_policy import hub_name, laptop, talkbus

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(sys.platform == "win32", reason="POSIX")]

__all__ = ["laptop"]  # the fixture


def again(peer: Peer, ident: str, to: str, text: str, **args: Any) -> None:
    """Send under the id of a message that exists already, as only a client that is not ours does."""
    peer.q += 1
    peer.say(wire.Req(peer.q, 1, "send", ident, {"to": [to], **args}, text.encode()))
    assert peer.hear(wire.Rep).code in (200, 202)


def member(stack: ExitStack, home: Home, laptop: Home, name: str) -> Peer:
    """A connection of the other machine."""
    peer = stack.enter_context(home.peer(keys=laptop.keys))
    peer.hello(name)
    return peer


def trusted(home: Home, laptop: Home) -> None:
    talkbus(laptop, "whoami", "--json")
    talkbus(home, "policy", "set", "accept", "--machine", "laptop")


def counters(home: Home) -> dict[str, int]:
    with home.view() as view:
        return dict(view.query("stats").rows[0][0]["counters"])


def test_why_of_a_message_whose_id_is_used_again(home: Home, laptop: Home, stack: ExitStack) -> None:
    """Another machine shows a message of its own under a public id; the sender of the true one is not told that."""
    stack.enter_context(home.session("bob"))
    sent = talkbus(home, "send", "bob", "the true one", "--json")
    eve, mallory = (member(stack, home, laptop, name) for name in ("eve", "mallory"))
    again(eve, sent["id"], "mallory@laptop", "another")
    msg = mallory.hear(wire.Msg)
    assert msg.id == sent["id"]
    mallory.say(wire.Ack([[msg.n, msg.n]], "transcript"))
    assert mallory.do("receipt", {"moved": [["acked", "tool", 0, [msg.id]]], "of": [msg.fid]}).code == 200
    for ident in (sent["id"], sent["id"][:6]):
        told = talkbus(home, "why", ident, "--json")
        (row,) = told["to"]
        assert (row["name"], row["status"]) == ("bob", "stored"), ident
        assert [step["status"] for step in row["history"]] == ["stored"]
    (row,) = talkbus(home, "why", f"laptop/{sent['id']}", "--json")["to"]
    assert (row["name"], row["status"]) == ("mallory", "acked"), "the other one, where it is asked for"
    told = talkbus(laptop, "why", sent["id"], "--json")
    assert told["from"] == "eve" and [row["name"] for row in told["to"]] == ["mallory"]


def test_an_id_that_is_several_messages_of_others_is_told_so(home: Home, laptop: Home, stack: ExitStack) -> None:
    """The hub's owner sees what others write; an id that two of them have used is not decided for either."""
    ann, eve, mallory = (member(stack, home, laptop, name) for name in ("ann", "eve", "mallory"))
    ident = ann.post("mallory@laptop", "one")
    again(eve, ident, "mallory@laptop", "two")
    said = talkbus(home, "why", ident, expect=1)
    assert f"ann@laptop/{ident}" in said and f"eve@laptop/{ident}" in said
    assert talkbus(home, "why", f"eve@laptop/{ident}", "--json")["from"] == "eve"
    mallory.hear(wire.Msg)


def test_the_command_line_acknowledges_what_was_shown(home: Home, laptop: Home, stack: ExitStack) -> None:
    """A clone is printed, and acknowledged by the id: the original is neither shown nor acknowledged by that."""
    trusted(home, laptop)
    box = talkbus(home, "whoami", "--json")["name"]
    sent = talkbus(home, "send", "--as", "ann", box, "the true one", "--json")
    eve = member(stack, home, laptop, "eve")
    again(eve, sent["id"], f"{box}@{hub_name(home)}", "a clone", tag="clone")
    refused = talkbus(home, "ack", sent["id"], expect=1)
    assert "has not been shown" in refused and "talkbus inbox" in refused
    assert "a clone" in talkbus(home, "inbox", "--tag", "clone")
    talkbus(home, "ack", sent["id"])
    assert talkbus(home, "why", "--as", "ann", sent["id"], "--json")["to"][0]["status"] == "stored"
    assert talkbus(laptop, "why", sent["id"], "--json")["to"][0]["status"] == "acked"
    assert [m["body"] for m in talkbus(home, "inbox", "--json")] == ["the true one"]
    assert "say which: " in talkbus(home, "ack", sent["id"], expect=1), "now both were shown"
    talkbus(home, "ack", f"{hub_name(home)}/{sent['id']}")
    assert talkbus(home, "why", "--as", "ann", sent["id"], "--json")["to"][0]["status"] == "acked"
    assert "no message" in talkbus(home, "ack", "z" * 16, expect=1)


@in_loop
async def test_a_model_acknowledges_what_it_was_shown(home: Home, laptop: Home) -> None:
    """Two mailboxes of one host, and another machine, use one id."""
    trusted(home, laptop)
    host = hub_name(home)
    async with agent(Bed(home.root), "alice") as alice, agent(Bed(home.root), "bob") as bob:
        await bob.call("set_status")
        with ExitStack() as stack:
            said = await alice.call("send_message", to="bob", body="the true one", kind="note")
            (ident,) = ids(said)
            cy = stack.enter_context(home.session("cy"))
            again(cy, ident, "bob", "from beside", tag="beside", kind="note")
            eve = member(stack, home, laptop, "eve")
            again(eve, ident, f"bob@{host}", "from afar", kind="note")
        assert bodies(await bob.eventually("check_messages", "from beside", tag="beside")) == ["from beside"]
        said = await bob.eventually("ack", "acknowledged", ids=ident)
        assert "acknowledged 1" in said
        assert sorted(bodies(said)) == ["from afar", "the true one"], "the others ride on the result: they are shown"
        assert "acked" not in await alice.eventually("message_status", "injected", id=ident)
        refused = await bob.fails("ack", ids=[ident])
        assert f"alice@{host}/{ident}" in refused and f"eve@laptop/{ident}" in refused
        assert "acknowledged 1" in await bob.call("ack", ids=f"alice@{host}/{ident}")
        assert "acked" in await alice.eventually("message_status", "acked", id=ident)
        with home.view() as view:
            (row,) = [v for v, _ in view.query("why", {"id": f"laptop/{ident}"}).rows]
            assert row["status"] == "injected", "that one was shown, and not acknowledged"
        assert "no message" in await bob.fails("ack", ids="z" * 16)


@in_loop
async def test_what_a_model_was_not_shown_is_not_acknowledged(home: Home) -> None:
    """It may know the id from elsewhere, or have looked with peek."""
    home.start()
    async with agent(Bed(home.root), "alice") as alice, agent(Bed(home.root), "bob") as bob:
        await bob.call("set_status")
        (ident,) = ids(await alice.call("send_message", to="bob", body="please", kind="note"))
        assert bodies(await bob.eventually("check_messages", "please", peek=True)) == ["please"]
        said = await bob.fails("ack", ids=ident)
        assert f"message {ident} has not been shown yet" in said and "nothing was acknowledged" in said
        assert bodies(said) == ["please"], "but now it was"
        assert "acknowledged 1" in await bob.eventually("ack", "acknowledged", ids=ident)
        assert "acked" in await alice.eventually("message_status", "acked", id=ident)


def test_the_tap_tells_no_step_that_the_disk_does_not_have(home: Home, laptop: Home, stack: ExitStack) -> None:
    trusted(home, laptop)
    bob = stack.enter_context(home.session("bob"))
    ada = stack.enter_context(home.session("ada"))
    eve = member(stack, home, laptop, "eve")
    tap = stack.enter_context(Tap(home, "--json"))
    tap.event("snapshot")
    ident = ada.post("bob", "please")
    fid = bob.hear(wire.Msg).fid
    for status in ("injected", "acked", "offered", "failed"):
        moved = [[status, "transcript", 0, [ident]], [status, "transcript", 0, [f"{hub_name(home)}/{ident}"]]]
        assert eve.do("receipt", {"moved": moved, "of": ["", fid]}).code == 200
    eve.do("send", {"to": ["eve"], "re": ident}, b"I answer what I was never asked")
    bob.do("receipt", {"moved": [["offered", "hook", 0, [ident]], ["acked", "tool", 0, [ident]]], "of": [fid, fid]})
    tap.event("acked", id=ident)
    told = [json.loads(line) for line in tap.lines]
    steps = [(e["event"], e["to"]) for e in told if e["class"] == "msg" and e["id"] == ident]
    assert steps == [("stored", "bob"), ("offered", "bob"), ("injected", "bob"), ("acked", "bob")]
    numbers = [e["seq"] for e in told if "seq" in e]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "and no number is left out"
    assert counters(home)["receipt unknown"] == 8
