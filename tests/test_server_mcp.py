"""The MCP side without a broker: what clients are told of the tools, and the wire that tells what was written."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
from typing import Any

import pytest
from mcp.shared.message import SessionMessage
from mcp_types import ErrorData, JSONRPCError, JSONRPCResponse

from agent.delivery.stdio import Place, Reader, Writer
from agent.server import definitions
from agent.tools import INSTRUCTIONS, table

LISTED_MAX = 6 * 1024

TOOLS = {
    "list_peers": {"scope", "active_within_min"},
    "send_message": {"to", "body", "kind", "tag", "reply_to", "exclude", "ttl_s"},
    "ask": {"to", "body", "timeout_s"},
    "read_history": {"peer", "query", "regex", "turn", "offset", "before", "limit"},
    "check_messages": {"id", "offset", "peek", "unread_only", "limit", "tag", "from", "wait_s"},
    "ack": {"ids", "note"},
    "message_status": {"id"},
    "set_status": {"summary", "name", "take", "busy_min", "metadata"},
    "get_state": {"key", "prefix"},
    "set_state": {"key", "value", "if_version", "ttl_s", "delete"},
}


def test_the_tools_are_those_of_the_contract() -> None:
    assert {name: set(tool.properties) for name, tool in table().items()} == TOOLS


def test_definitions_and_instructions_stay_small() -> None:
    listed = [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in definitions(table())]
    size = len(json.dumps(listed, separators=(",", ":"))) + len(json.dumps(INSTRUCTIONS))
    assert size < LISTED_MAX, size


def test_two_tools_are_always_loaded_and_none_has_an_output_schema() -> None:
    listed = [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in definitions(table())]
    always = {tool["name"] for tool in listed if tool.get("_meta") == {"anthropic/alwaysLoad": True}}
    assert always == {"send_message", "check_messages"}
    assert not any("outputSchema" in tool for tool in listed)


def _wire(test: Any) -> None:
    """Run `test(reader, writer, fates, ours, theirs)` over two pipes; `theirs` are the client's ends."""

    async def run() -> None:
        stdin, client_out = os.pipe()
        client_in, stdout = os.pipe()
        fates: list[tuple[Any, str]] = []
        reader = Reader(stdin)
        writer = Writer(stdout, reader, lambda ident, fate, place: fates.append((ident, fate)))
        await test(reader, writer, fates, client_in, client_out)
        await writer.aclose()

    asyncio.run(run())


def _response(ident: int, size: int = 1) -> SessionMessage:
    return SessionMessage(JSONRPCResponse(jsonrpc="2.0", id=ident, result={"x": "y" * size}))


def test_a_response_is_written_whether_it_is_read_or_not() -> None:
    async def test(reader: Reader, writer: Writer, fates: list[Any], client_in: int, client_out: int) -> None:
        await writer.send(_response(7))
        assert fates == [(7, "written")]
        assert json.loads(os.read(client_in, 4096))["id"] == 7

    _wire(test)


def test_an_error_in_place_of_a_response_shows_nothing() -> None:
    async def test(reader: Reader, writer: Writer, fates: list[Any], client_in: int, client_out: int) -> None:
        error = JSONRPCError(jsonrpc="2.0", id=8, error=ErrorData(code=1, message="no"))
        await writer.send(SessionMessage(error))
        assert fates == [(8, "never")]

    _wire(test)


def test_a_closed_stdin_or_a_closed_pipe_leaves_it_unsure() -> None:
    async def test(reader: Reader, writer: Writer, fates: list[Any], client_in: int, client_out: int) -> None:
        os.close(client_out)
        assert await asyncio.to_thread(reader.ended.wait, 5)
        await writer.send(_response(1))
        os.close(client_in)
        await writer.send(_response(2))
        await writer.send(_response(3))
        assert fates == [(1, "unsure"), (2, "unsure"), (3, "unsure")]

    _wire(test)


def test_a_client_that_does_not_read_is_waited_for_and_a_cancelled_send_goes_on() -> None:
    async def test(reader: Reader, writer: Writer, fates: list[Any], client_in: int, client_out: int) -> None:
        sending = asyncio.create_task(writer.send(_response(1, 300_000)))
        await asyncio.sleep(0.05)
        assert not sending.done() and not fates and writer.holds(1)
        sending.cancel()
        got = b""
        while not got.endswith(b"\n"):
            got += await asyncio.to_thread(os.read, client_in, 65536)
        assert len(json.loads(got)["result"]["x"]) == 300_000
        while not fates:
            await asyncio.sleep(0.01)
        assert fates == [(1, "written")]

    _wire(test)


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_lines_arrive_whole_however_they_are_cut(cut: int) -> None:
    async def test(reader: Reader, writer: Writer, fates: list[Any], client_in: int, client_out: int) -> None:
        lines = b'{"jsonrpc":"2.0","method":"a"}\n\n{broken\n{"jsonrpc":"2.0","method":"b"}\r\n{"jsonrpc":"2.0","met'
        for start in range(0, len(lines), cut):
            os.write(client_out, lines[start : start + cut])
            await asyncio.sleep(0)
        os.close(client_out)
        got = [item async for item in reader]
        assert isinstance(got[1], ValueError)
        assert [item.message.method for item in got if isinstance(item, SessionMessage)] == ["a", "b"]  # type: ignore[union-attr]

    _wire(test)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what was read")
@pytest.mark.parametrize("sockets", [False, True])
def test_what_the_client_has_read_is_known(sockets: bool) -> None:
    async def run() -> None:
        if sockets:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                reader = await test(ours.fileno(), ours.fileno(), theirs.fileno(), theirs.fileno())
                theirs.close()
                assert reader.ended.wait(5)  # or it would read whatever gets the number of this descriptor next
        else:
            (stdin, client_out), (client_in, stdout) = os.pipe(), os.pipe()
            await test(stdin, stdout, client_in, client_out)

    async def test(stdin: int, stdout: int, client_in: int, client_out: int) -> Reader:
        places: list[Place] = []
        heard: list[tuple[int, int]] = []
        line = b'{"jsonrpc":"2.0","method":"a"}\n'
        reader = Reader(stdin, heard=lambda _message, begin, taken: heard.append((begin, taken)))
        writer = Writer(stdout, reader, lambda _ident, _fate, place: places.append(place))
        await writer.send(_response(1))
        end = places[0].end
        assert places == [Place(end, 0)] and writer.taken() == 0
        os.write(client_out, line)  # sent without having read
        await reader.receive()
        os.read(client_in, 65536)
        assert writer.taken() == end
        os.write(client_out, line + line)
        await reader.receive()
        await reader.receive()
        assert heard == [(0, 0), (len(line), end), (2 * len(line), end)]
        await writer.send(_response(2))
        assert places[1] == Place(2 * end, 3 * len(line))
        await writer.aclose()
        return reader

    asyncio.run(run())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what was read")
def test_a_client_that_answers_while_a_write_returns_is_heard_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        (stdin, client_out), (client_in, stdout) = os.pipe(), os.pipe()
        told: list[tuple[str, int, int]] = []
        line = b'{"jsonrpc":"2.0","method":"a"}\n'
        reader = Reader(stdin, heard=lambda _message, begin, taken: told.append(("heard", begin, taken)))
        writer = Writer(stdout, reader, lambda _ident, _fate, at: told.append(("written", at.sent, at.end)))
        write, taken, looked = os.write, reader.taken, threading.Event()

        def look() -> int:
            known = taken()
            looked.set()
            return known

        def slow(descriptor: int, data: bytes) -> int:
            """The client has read it, has answered, and is being heard by the time that this returns."""
            count = write(descriptor, data)
            if descriptor == stdout:
                os.read(client_in, 65536)
                write(client_out, line)
                looked.wait(0.2)  # in vain, unless the reader does not wait for this write
            return count

        reader.taken = look
        monkeypatch.setattr(os, "write", slow)
        sending = asyncio.create_task(writer.send(_response(1)))
        await reader.receive()
        await sending
        end = writer.taken()
        assert told == [("written", 0, end), ("heard", 0, end)] and end > 0
        await writer.aclose()

    asyncio.run(run())
