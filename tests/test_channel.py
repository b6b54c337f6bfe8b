"""The channel's rules without a client: what is declined, when it listens, and how long a failure is remembered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCNotification, JSONRPCRequest

from agent.delivery import channel
from agent.delivery.channel import LISTENS_AFTER_MS, REST_MAX_MS, REST_MS, Channel


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000
        monkeypatch.setattr(channel, "_now", lambda: self.now)


def asks(method: str) -> JSONRPCRequest:
    return JSONRPCRequest(jsonrpc="2.0", id=7, method=method)


def connected() -> tuple[Channel, list[Any]]:
    sent: list[Any] = []

    async def send(message: SessionMessage) -> None:
        sent.append(message.message)

    made = Channel()
    made.attach(send)
    return made, sent


def test_the_newer_opening_is_declined_so_that_the_client_falls_back() -> None:
    async def run() -> None:
        made, sent = connected()
        assert made.takes(asks("server/discover"))
        assert not made.takes(asks("initialize"))
        assert not made.takes(JSONRPCNotification(jsonrpc="2.0", method="server/discover"))
        await asyncio.sleep(0)
        assert [(answer.id, answer.error.code) for answer in sent] == [(7, -32601)]

    asyncio.run(run())


def test_it_opens_a_moment_after_the_tools_were_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    made, _ = connected()
    assert not made.open()
    assert not made.takes(asks("tools/list"))
    assert not made.open()
    clock.now += LISTENS_AFTER_MS
    assert made.open()


def test_a_failure_rests_it_longer_each_time_until_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    made, _ = connected()
    made.takes(asks("tools/list"))
    clock.now += LISTENS_AFTER_MS

    def rests() -> int:
        begun = clock.now
        made.failed()
        while not made.open():
            clock.now += REST_MS
        return clock.now - begun

    assert [rests() for _ in range(3)] == [REST_MS, 2 * REST_MS, 4 * REST_MS]
    assert max(rests() for _ in range(8)) == REST_MAX_MS
    made.worked()
    assert rests() == REST_MS


def test_a_notification_says_where_the_text_is() -> None:
    made, sent = connected()
    asyncio.run(made.push("hello"))
    assert (sent[0].method, sent[0].params["content"]) == ("notifications/claude/channel", "hello")
