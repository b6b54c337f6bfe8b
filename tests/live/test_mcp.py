"""The MCP server as a client sees it: real agent processes, a real broker, the official client."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from tests.live.test_mcp_bed import Bed, agent, bed, bodies, ids, until

pytestmark = pytest.mark.timeout(90)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test as the one task of an event loop: the SDK's contexts may not change tasks."""

    @wraps(test)
    def run(**given: Any) -> None:
        asyncio.run(test(**given))

    return run


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bed]:
    with bed(tmp_path / "bus") as made:
        made.stop_mark()  # who kills a broker here wants it to stay dead
        yield made


@in_loop
async def test_two_sessions_talk_by_name_in_either_era_of_the_protocol(bus: Bed) -> None:
    async with agent(bus, "alice", mode="legacy") as alice, agent(bus, "bob", mode="auto") as bob:
        assert "alice@" in await alice.call("set_status")
        assert re.search(r"you: bob@.*\nalice@.*open", await bob.call("list_peers"))
        sent = await alice.call("send_message", to="bob", body="hello <bob>", tag="greeting")
        assert "bob@" in sent and "stored" in sent
        text = await bob.eventually("check_messages", "hello", wait_s=5)
        assert bodies(text) == ["hello <bob>"] and "tag greeting" in text
        assert await bob.call("check_messages") == "no unread messages"
        (ident,) = ids(sent)
        answered = await bob.call("send_message", to=["alice"], message="hi", reply_to=ident, kind="note")
        back = await alice.eventually("set_status", "hi", summary="testing")  # any tool's result carries it
        assert bodies(back) == ["hi"] and f"in reply to {ident}" in back and back.startswith("status set")
        status = await alice.eventually("message_status", "answered", id=ident)
        assert "injected" in status and "tool-result" in status
        assert "injected" in await bob.eventually("message_status", "injected", id=ids(answered)[0])
        assert 'says "testing"' in await bob.call("list_peers")


@in_loop
async def test_an_offline_recipient_gets_it_later_and_the_sender_knows(bus: Bed) -> None:
    async with agent(bus, "alice") as alice:
        async with agent(bus, "bob") as bob:
            await bob.call("set_status")
        sent = await alice.call("send_message", to="bob", body="for later")
        assert "stored" in sent and "offline" in sent
        assert "stored" in await alice.call("message_status", id=ids(sent)[0])
        async with agent(bus, "bob") as bob:
            assert bodies(await bob.eventually("check_messages", "for later", wait_s=5)) == ["for later"]


@in_loop
async def test_a_broker_that_dies_costs_nothing(bus: Bed) -> None:
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob:
        await bob.call("set_status")
        await alice.call("send_message", to="bob", body="one")
        bus.kill()
        text = await alice.eventually("send_message", "not reachable", to="bob", body="two")
        assert re.search(r"queued \(id [a-z2-7]{16}\): broker not reachable since", text) and "on disk" in text
        assert "not reachable" in await alice.fails("list_peers")
        assert "queued" in await alice.call("message_status", id=ids(text)[0])
        bus.up()
        seen: list[str] = []
        end = time.monotonic() + 15
        while not {"one", "two"} <= set(seen) and time.monotonic() < end:
            seen += bodies(await bob.call("check_messages", wait_s=2))
        # "two" was sent until an answer said "not reachable", so there may be several, each with an id of its own.
        assert seen.count("one") == 1 and set(seen) == {"one", "two"}
        assert "injected" in await alice.eventually("message_status", "injected", id=ids(text)[0])


@in_loop
async def test_an_ask_is_answered_and_the_answer_is_shown_by_the_call_alone(bus: Bed) -> None:
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob:
        await bob.call("set_status")
        asking = asyncio.create_task(alice.call("ask", to="bob", body="what port?", timeout_s=20))
        question = await bob.eventually("check_messages", "what port", wait_s=5)
        (ident, *_) = ids(question)
        await bob.call("send_message", to="alice", body="not the answer", reply_to="")
        await bob.call("send_message", to="alice", body="8080", reply_to=ident)
        answer = await asking
        assert answer.startswith(f"answer to {ident}") and sorted(bodies(answer)) == ["8080", "not the answer"]
        assert await alice.call("check_messages") == "no unread messages"


@in_loop
async def test_an_ask_that_times_out_says_so_and_the_late_answer_comes_as_a_message(bus: Bed) -> None:
    async with agent(bus, "alice", MCP_TOOL_TIMEOUT="7000") as alice, agent(bus, "bob") as bob:
        await bob.call("set_status")
        begun = time.monotonic()
        text = await alice.call("ask", to="bob", body="anyone?")
        assert 1.5 < time.monotonic() - begun < 4  # the client would give up at 7 s
        assert text.startswith("waiting") and "stored" in text
        (ident, *_) = ids(text)
        await bob.eventually("check_messages", "anyone", wait_s=5)
        await bob.call("send_message", to="alice", body="me", reply_to=ident)
        late = await alice.eventually("check_messages", "me", wait_s=5)
        assert bodies(late) == ["me"] and f"answer to {ident} from bob@" in late and "To reply" not in late


@in_loop
async def test_an_answer_that_races_the_time_out_is_shown_exactly_once(bus: Bed) -> None:
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob:
        await bob.call("set_status")
        for turn in range(12):
            asking = asyncio.create_task(alice.call("ask", to="bob", body=f"q{turn}", timeout_s=1))
            (ident, *_) = ids(await bob.eventually("check_messages", f"q{turn}", wait_s=5))
            await asyncio.sleep(0.82 + turn * 0.01)
            await bob.call("send_message", to="alice", body=f"a{turn}", reply_to=ident)
            shown = bodies(await asking)
            shown += bodies(await alice.call("check_messages", wait_s=0 if shown else 5))
            shown += bodies(await alice.call("check_messages"))
            assert shown == [f"a{turn}"]


@in_loop
async def test_an_ask_finds_its_answer_behind_a_full_window(bus: Bed) -> None:
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob:
        await alice.call("set_status")
        asking = asyncio.create_task(alice.call("ask", to="bob", body="deep?", timeout_s=30))
        (ident, *_) = ids(await bob.eventually("check_messages", "deep", wait_s=5))
        for number in range(70):
            await bob.call("send_message", to="alice", body=f"noise {number}", kind="note")
        await bob.call("send_message", to="alice", body="found", reply_to=ident)
        answer, *rest = bodies(await asking)
        assert answer == "found"
        while len(rest) < 70:
            rest += bodies(await alice.call("check_messages", wait_s=5))
        assert "found" not in rest


@in_loop
async def test_filters_look_through_a_hundred_unread_messages(bus: Bed) -> None:
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob:
        await bob.call("set_status")
        for number in range(100):
            tag = "rare" if number == 97 else "common"
            await alice.call("send_message", to="bob", body=f"message {number}", tag=tag)
        assert bodies(await bob.call("check_messages", tag="rare", peek=True)) == ["message 97"]
        found = await bob.call("check_messages", tag="rare", from_="alice")
        assert bodies(found)[0] == "message 97" and "possible repeat" not in found
        assert "no unread" in await bob.call("check_messages", tag="rare")
        few = await bob.call("check_messages", limit=3)
        assert bodies(few) == ["message 0", "message 1", "message 2"] and "more waiting" in few
        seen = bodies(few)
        while len(seen) < 99:
            more = bodies(await bob.call("check_messages", wait_s=5))
            assert more
            seen += more
        assert seen == [f"message {n}" for n in range(100) if n != 97]
        again = bodies(await bob.call("check_messages", unread_only=False, limit=2))
        assert again == ["message 98", "message 99"]


@in_loop
async def test_a_long_message_is_cut_and_its_rest_can_be_fetched(bus: Bed) -> None:
    long = "".join(f"{n:06d} " for n in range(4000))
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob:
        await bob.call("set_status")
        await alice.call("send_message", to="bob", body=long)
        text = await bob.eventually("check_messages", "left out", wait_s=5)
        got = bodies(text)[0]
        while more := re.search(r'check_messages\(id="([a-z2-7]+)", offset=(\d+)\)', text):
            text = await bob.call("check_messages", id=more[1], offset=int(more[2]))
            got += bodies(text)[0]
        assert got == long


@in_loop
async def test_a_session_that_lost_its_name_says_so_until_it_has_another(bus: Bed) -> None:
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob:
        await alice.call("set_status")
        await bob.call("set_status")
        assert "is taken" in await bob.fails("set_status", name="alice")
        assert "called 'alice' now" in await bob.call("set_status", name="alice", take=True)
        text = await alice.eventually("check_messages", "not on the bus")
        assert 'set_status(name="alice", take=true)' in text
        assert "not on the bus" in await alice.call("send_message", to="alice", body="queued then")
        assert "is called 'carol' now" in await alice.call("set_status", name="carol")
        assert "not on the bus" not in await alice.call("set_status")
        assert "is called 'dora' now" in await bob.call("set_status", name="dora")
        assert "taken" in await bob.fails("set_status", name="carol")


@in_loop
async def test_a_name_that_is_taken_back_from_a_parked_state(bus: Bed) -> None:
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob:
        await alice.call("set_status")
        await bob.call("set_status", name="alice", take=True)
        await alice.eventually("check_messages", "not on the bus")
        assert "is called 'alice' now" in await alice.call("set_status", name="alice", take=True)
        assert "not on the bus" in await bob.eventually("check_messages", "not on the bus")


@in_loop
async def test_who_asks_for_a_name_in_use_gets_the_next_one_and_is_told(bus: Bed) -> None:
    async with agent(bus, "one", TALKBUS_NAME="boss") as one, agent(bus, "two", TALKBUS_NAME="boss") as two:
        assert "boss@" in await one.call("set_status")
        text = await two.call("list_peers")
        assert "This session is called 'boss-2'" in text and "take=true" in text
        assert "called 'boss-2'" not in await two.call("list_peers")


@in_loop
async def test_shared_state(bus: Bed) -> None:
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob:
        assert "version" in await alice.call("set_state", key="web/port", value={"n": [1, "ü"]}, if_version=0)
        assert 'web/port = {"n": [1, "ü"]}' in await bob.call("get_state", key="web/port")
        assert "at version" in await bob.fails("set_state", key="web/port", value=2, if_version=0)
        await bob.call("set_state", key="web/host", value="h", ttl_s=100)
        text = await alice.call("get_state", prefix="web/")
        assert "web/host" in text and "web/port" in text and "expires in" in text
        assert await alice.call("set_state", key="web/port", delete=True) == "web/port deleted"
        assert "no state web/port" in await alice.fails("get_state", key="web/port")
        assert await alice.call("get_state", prefix="nothing/") == "no such keys"


@in_loop
async def test_acknowledging_with_a_note(bus: Bed) -> None:
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob:
        await bob.call("set_status")
        (ident,) = ids(await alice.call("send_message", to="bob", body="please"))
        await bob.eventually("check_messages", "please", wait_s=5)
        said = await bob.call("ack", ids=[ident], note="done")
        assert "acknowledged 1" in said and "note id" in said
        note = await alice.eventually("check_messages", "done", wait_s=5)
        assert bodies(note) == ["done"] and note.count("note from bob") == 1
        assert "acked" in await alice.eventually("message_status", "acked", id=ident)
        assert "no message" in await bob.fails("ack", ids="aaaaaaaaaaaaaaaa")


FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("list_peers", {"scope": "galaxy"}, "scope"),
    ("list_peers", {"active_within_min": "soon"}, "must be a number"),
    ("send_message", {"to": "bob"}, "'body' is missing"),
    ("send_message", {"body": "x"}, "'to' is missing"),
    ("send_message", {"to": [], "body": "x"}, "'to' is empty"),
    ("send_message", {"to": "nobody-here", "body": "x"}, "nobody is called"),
    ("send_message", {"to": "alice", "body": "  "}, "empty"),
    ("send_message", {"to": "alice", "body": "x", "kind": "order"}, "task or note"),
    ("send_message", {"to": "alice", "body": "x", "tag": "a b"}, "no tag"),
    ("send_message", {"to": "alice", "body": "x", "reply_to": "17"}, "no message id"),
    ("send_message", {"to": "alice", "body": "x" * 300_000}, "262144"),
    ("send_message", {"to": "alice", "body": "x", "subject": "y"}, "no argument 'subject'"),
    ("send_message", {"to": [f"n{n}" for n in range(17)], "body": "x"}, "16 are allowed"),
    ("ask", {"to": "*", "body": "x"}, "one recipient"),
    ("ask", {"to": "nobody-here", "body": "x"}, "nobody is called"),
    ("check_messages", {"id": "zzzz"}, "no message"),
    ("check_messages", {"offset": 5}, "goes with 'id'"),
    ("check_messages", {"limit": 0}, "from 1 to"),
    ("ack", {}, "'ids' is missing"),
    ("ack", {"ids": ["nonsense"]}, "no message id"),
    ("message_status", {"id": "aaaaaaaaaaaaaaaa"}, "no message"),
    ("set_status", {"name": "Bad Name!"}, "is no name"),
    ("set_status", {"take": True}, "goes with 'name'"),
    ("set_status", {"metadata": "x"}, "must be an object"),
    ("get_state", {}, "one of 'key' and 'prefix'"),
    ("get_state", {"key": "no spaces allowed"}, "is no state key"),
    ("set_state", {"key": "k", "value": "x" * 70_000}, "65536"),
    ("set_state", {"key": "k", "delete": True}, "unchanged"),
    ("no_such_tool", {}, "there is no tool"),
]


@in_loop
async def test_every_tool_says_what_is_wrong_and_what_to_do(bus: Bed) -> None:
    async with agent(bus, "alice") as alice:
        for tool, given, pattern in FAULTS:
            text = await alice.fails(tool, **({"from_": given.pop("from")} if "from" in given else {}), **given)
            assert pattern in text, (tool, given, text)
            assert text.startswith("error: ") and "\n" not in text.strip(), (tool, text)


@in_loop
async def test_a_cancelled_call_gives_its_messages_back_unmarked(bus: Bed) -> None:
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob:
        await bob.call("set_status")
        waiting = asyncio.create_task(bob.client.call_tool("check_messages", {"wait_s": 30}))
        await asyncio.sleep(0.3)
        waiting.cancel()  # the client sends notifications/cancelled
        await asyncio.gather(waiting, return_exceptions=True)
        await alice.call("send_message", to="bob", body="still there")
        text = await bob.eventually("check_messages", "still there", wait_s=5)
        assert bodies(text) == ["still there"] and "possible repeat" not in text


@in_loop
async def test_many_calls_at_once_show_each_message_once(bus: Bed) -> None:
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob:
        await bob.call("set_status")
        for number in range(40):
            await alice.call("send_message", to="bob", body=f"m{number}")
        seen: list[str] = []
        end = time.monotonic() + 15
        while len(seen) < 40 and time.monotonic() < end:
            texts = await asyncio.gather(*(bob.call("check_messages") for _ in range(4)))
            seen += [body for text in texts for body in bodies(text)]
        assert sorted(seen) == sorted(f"m{n}" for n in range(40))


@in_loop
async def test_a_session_that_leaves_is_gone_at_once_and_its_successor_inherits(bus: Bed) -> None:
    async with agent(bus, "alice") as alice:
        async with agent(bus, "bob") as bob:
            await bob.call("set_status")
        text = await alice.eventually("list_peers", "bob@.*gone", scope="all")
        assert "active" in text
    until(lambda: not list(bus.home.agents.glob("*/live.json")))


@in_loop
async def test_no_tool_lets_a_secret_out_and_the_model_is_told(bus: Bed) -> None:
    token = "ghp_" + "a1" * 18
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob:
        await bob.call("set_status")
        for text in (
            await alice.call("send_message", to="bob", body=f"use {token}"),
            await alice.call("set_state", key="k", value={"token": token}),
            await alice.call("set_status", summary=f"with {token}"),
        ):
            assert "redacted before it left: GitHub token" in text
        assert "[redacted GitHub token]" in await bob.eventually("check_messages", "redacted")
        assert "[redacted GitHub token]" in await bob.call("get_state", key="k")
        assert "[redacted GitHub token]" in await bob.call("list_peers")
        assert "no argument 'raw'" in await alice.fails("send_message", to="bob", body="x", raw=True)
    for path in (bus.home.bus_db, *bus.home.agents.glob("*/agent.db*"), *bus.home.state.glob("bus.db-*")):
        assert token.encode() not in path.read_bytes(), path
