"""Answers are matched to their questions: real agents, a real broker, the official client."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.test_mcp import in_loop
from tests.live.test_mcp_bed import Agent, Bed, agent, bed, bodies, until

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bed]:
    with bed(tmp_path / "bus") as made:
        made.stop_mark()
        yield made


def asking(of: Agent, to: str, body: str, timeout_s: int = 20) -> asyncio.Task[str]:
    return asyncio.create_task(of.call("ask", to=to, body=body, timeout_s=timeout_s))


async def shown(to: Agent, *questions: str) -> list[str]:
    """The ids of questions, once each was shown."""
    text = ""
    while not all(question in text for question in questions):
        text += await to.eventually("check_messages", "peer-message", wait_s=5)
    found = dict(re.findall(r'<peer-message id="([a-z2-7]+)"[^>]*>\n(.*)\n', text))
    return [next(ident for ident, body in found.items() if body == question) for question in questions]


def steps(bus: Bed, ident: str) -> set[str]:
    """What the broker's disk says of the copies of a message."""
    with sqlite3.connect(f"{bus.home.bus_db.as_uri()}?mode=ro", uri=True) as db:
        rows = db.execute(
            "SELECT injected_at, answered_at FROM deliveries d JOIN messages m ON m.row = d.msg WHERE m.id = ?",
            (ident,),
        ).fetchall()
    names = ("injected", "answered")
    return {name for row in rows for name, at in zip(names, row, strict=True) if at}


@in_loop
async def test_a_message_without_reply_to_answers_the_question_that_was_shown(bus: Bed) -> None:
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob:
        await bob.call("set_status")
        call = asking(alice, "bob", "what port?")
        (ident,) = await shown(bob, "what port?")
        said = await bob.call("send_message", to="alice", body="8080")
        assert said.endswith(f"; sent as the answer to {ident}")
        answer = await call
        assert answer.startswith(f"answer to {ident}") and bodies(answer) == ["8080"]
        assert re.search(rf"\nanswer to {ident} from bob@\S+, id ", answer)
        assert "To reply" not in answer and "in reply to" not in answer and "task from" not in answer
        assert await alice.call("check_messages") == "no unread messages"
        assert steps(bus, ident) == {"injected", "answered"}
        # The question has its answer, so the next message is one of its own.
        more = await bob.call("send_message", to="alice", body="by the way")
        assert "sent as the answer" not in more
        assert "task from bob" in await alice.eventually("check_messages", "by the way", wait_s=5)


@in_loop
async def test_a_strangers_reply_to_ends_nothing_and_is_ordinary_mail(bus: Bed) -> None:
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob, agent(bus, "eve") as eve:
        await bob.call("set_status")
        await eve.call("set_status")
        call = asking(alice, "bob", "what port?")
        (ident,) = await shown(bob, "what port?")
        await eve.call("send_message", to="alice", body="6666", reply_to=ident)
        text = await alice.eventually("check_messages", "6666", wait_s=5)
        assert "task from eve" in text and "To reply" in text and "answer to" not in text
        await bob.call("set_status")  # what comes after the question proves that it was read
        until(lambda: steps(bus, ident) == {"injected"})
        assert not call.done()
        await bob.call("send_message", to="eve", body="to another one", reply_to=ident)
        assert steps(bus, ident) == {"injected"}
        await bob.call("send_message", to="alice", body="8080", reply_to=ident)
        assert bodies(await call) == ["8080"]
        assert "answered" in await alice.eventually("message_status", "answered", id=ident)


@in_loop
async def test_a_reply_to_that_goes_to_another_says_that_the_question_is_open(bus: Bed) -> None:
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob, agent(bus, "eve") as eve:
        for one in (alice, bob, eve):
            await one.call("set_status")
        call = asking(alice, "bob", "what port?")
        (ident,) = await shown(bob, "what port?")
        said = await bob.call("send_message", to="eve", body="8080", reply_to=ident)
        assert re.search(rf"\({ident} is a question of alice@\S+, still open\)", said)
        assert "sent as the answer" in await bob.call("send_message", to="alice", body="8080")
        assert bodies(await call) == ["8080"]


@in_loop
async def test_of_two_open_questions_the_model_must_say_which(bus: Bed) -> None:
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob:
        await bob.call("set_status")
        calls = [asking(alice, "bob", body) for body in ("which port?", "which host?")]
        port, host = await shown(bob, "which port?", "which host?")
        text = await bob.fails("send_message", to="alice", body="8080")
        assert port in text and host in text and 'reply_to=""' in text
        # Also by an address that only the broker can resolve.
        text = await bob.fails("send_message", to=str(bus.root / "projects" / "alice"), body="8080")
        assert port in text and host in text and "several questions of alice@" in text
        assert not any(call.done() for call in calls)
        plain = await bob.call("send_message", to="alice", body="a moment", reply_to="")
        assert "sent as the answer" not in plain and not any(call.done() for call in calls)
        await bob.call("send_message", to="alice", body="8080", reply_to=port)
        assert "8080" in bodies(await calls[0])
        assert f"sent as the answer to {host}" in await bob.call("send_message", to="alice", body="here")
        assert "here" in bodies(await calls[1])


@in_loop
async def test_what_prevents_matching(bus: Bed) -> None:
    """A kind, several recipients, reply_to="", and a question that was not shown."""
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob, agent(bus, "carol") as carol:
        await bob.call("set_status")
        await carol.call("set_status")
        call = asking(alice, "bob", "what port?")
        (ident,) = await shown(bob, "what port?")
        for given in ({"kind": "task"}, {"kind": "note"}, {"to": ["alice", "carol"]}, {"reply_to": ""}):
            said = await bob.call("send_message", **{"to": "alice", "body": "x", **given})
            assert "sent as the answer" not in said, given
        assert "sent as the answer" not in await carol.call("send_message", to="alice", body="x")
        assert not call.done()
        said = await bob.call("send_message", to=["alice"], body="8080")
        assert f"sent as the answer to {ident}" in said and "8080" in bodies(await call)


@in_loop
async def test_a_question_outlives_the_broker_and_the_answer_too(bus: Bed) -> None:
    async with agent(bus, "alice") as alice, agent(bus, "bob") as bob:
        await bob.call("set_status")
        call = asking(alice, "bob", "what port?", 55)
        await bob.eventually("check_messages", "what port?", peek=True, wait_s=5)
        bus.kill()
        bus.up()
        (ident,) = await shown(bob, "what port?")
        await alice.eventually("list_peers", "bob@")  # connected again
        await bob.eventually("list_peers", "alice@")
        assert f"sent as the answer to {ident}" in await bob.call("send_message", to="alice", body="8080")
        answer = await call
        assert bodies(answer) == ["8080"] and f"\nanswer to {ident} from bob@" in answer
