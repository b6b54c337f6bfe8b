"""A model that answers a question without saying so: the real client proves that it had seen the question."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from .api import FakeApi, says
from .buses import Bus, call
from .messages import tool_results
from .session import Home
from .wait import until

pytestmark = pytest.mark.e2e


@pytest.fixture
def bus(home: Home) -> Iterator[Bus]:
    with Bus(home) as made:
        yield made


def test_a_message_without_reply_to_answers_the_question_that_woke_the_session(
    api: FakeApi, home: Home, bus: Bus
) -> None:
    alice = bus.tui(home.project("alice"))
    bus.tui(home.project("bob"))
    ask = call("ask", to="bob", body="which port does the api use?")
    api.on(says("ask bob", label="alice"), ask)
    back = call("send_message", to="alice", body="it is 8080")
    api.on(says("which port", label="bob"), back)
    alice.submit("please ask bob")
    asked = api.wait(says("which port", label="bob"))
    (ident,) = re.findall(r'<peer-message id="([a-z0-9]+)"', asked.new)
    told = tool_results(api.wait(lambda r: back["id"] in tool_results(r)))[back["id"]]
    assert f"sent as the answer to {ident}" in told
    answer = tool_results(api.wait(lambda r: ask["id"] in tool_results(r)))[ask["id"]]
    assert answer.startswith(f"answer to {ident}") and "it is 8080" in answer and "To reply" not in answer
    bus.wait_why(ident, "bob", "answered")
    assert not bus.showings("it is 8080", "alice")[1:]


def test_a_question_that_was_cleared_away_is_not_answered_by_accident(api: FakeApi, home: Home, bus: Bus) -> None:
    bus.tui(home.project("alice"))
    bob = bus.tui(home.project("bob"))
    ident = bus.run("--as", "carol", "ask", "bob", "which port?", "--timeout", "0.5", check=False)
    assert "no answer" in ident.stderr
    api.wait(says("which port", label="bob"))
    (asked,) = bus.showings("which port", "bob")
    (question,) = re.findall(r'<peer-message id="([a-z0-9]+)"', asked.new)
    bus.wait_why(question, "bob", "injected", "transcript")
    before = bob.session
    bob.submit("/clear")
    until(lambda: bob.session not in ("", before), "a new session")
    back = call("send_message", to="carol", body="good morning")
    api.on(says("greet carol", label="bob"), back)
    bob.submit("please greet carol")
    told = tool_results(api.wait(lambda r: back["id"] in tool_results(r)))[back["id"]]
    assert "sent as the answer" not in told
