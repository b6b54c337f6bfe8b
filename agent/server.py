"""The agent of one client session: an MCP server on stdio in front of a link.

The link connects while the SDK is still being imported, which takes most of the start. The only importer of mcp
beside delivery.stdio. It leaves when stdin ends, the parent dies or a signal says so, and takes at most a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any, NoReturn

from agent.session import Session
from agent.tooling import Args, Desk, Tool, ToolError
from agent.tools import INSTRUCTIONS, table
from bus import logs
from bus.config import Config, Home
from bus.errors import BusError, StoreError
from bus.processes import alive

if TYPE_CHECKING:
    import mcp_types as types
    from mcp.server import ServerRequestContext

    from agent.delivery.channel import Channel
    from agent.delivery.ladder import Ladder
    from agent.delivery.piggyback import Call
    from agent.delivery.stdio import Fate, Place, Writer

log = logging.getLogger("talkbus.agent")

NAME = "talkbus"
PARENT_S = 0.5
MEET_S = 2.0  # the first call may come before the broker is up
SETTLE_S = 1.0
BYE_S = 0.6
LOG_MAX = 1 << 20  # octets of a seat's log; one older is kept
# A client that is killed, or whose window is closed, takes its process group along by SIGHUP.
ENDINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


def run(home: Home, config: Config, environ: Mapping[str, str]) -> int:
    """Serve until the client has gone; the exit code. What goes wrong at the start is one line on stderr."""
    from agent.delivery.takeover import take_over

    _log_to_stderr(config.log_level)
    with _signals():
        try:
            _attach(home, environ)
            session = Session(home, config, environ)
        except BusError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        kept = logs.to_file(session.seat.database.with_name("agent.jsonl"), config.log_level, LOG_MAX, 1)
        log.debug("%% serving as %s", session.seat.name)
        try:
            # Nothing of ours may print between the lines of the wire, so it is taken before anything runs.
            wire = take_over()
            session.start()
            _load_sdk()
            asyncio.run(Agent(session, home, config, environ).serve(wire))
        except BusError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except SystemExit:
            log.info("told to end during the start")
        finally:
            session.stop(BYE_S)
            logs.close(kept)
            gc.freeze()  # what the SDK left is not worth a last look: it is most of the time the end takes
    return 0


def _attach(home: Home, environ: Mapping[str, str]) -> None:
    """Below a supervisor: have its own agent let go of the seat first, for one agent serves a session."""
    from agent.delivery import clientfile, terminal

    client = clientfile.find_client(environ) or os.getppid()
    if environ.get("CLAUDE_CODE_ENTRYPOINT") == clientfile.ONCE:
        return
    above = terminal.above(home.maildirs, client, environ)
    if above is None:
        return
    try:
        above.attach(client)
    except OSError as error:
        log.warning("the supervisor cannot be told that this agent serves: %s", error)
    else:
        if not above.wait_free():
            log.warning("the supervisor's own agent does not end")


def _load_sdk() -> None:
    """Import what takes most of the start, without the collector: of all that this makes nothing is garbage."""
    gc.disable()
    try:
        for name in ("mcp.server.lowlevel", "agent.delivery.stdio"):
            import_module(name)
    finally:
        gc.freeze()
        gc.enable()


class Agent:
    """The MCP side of a session."""

    def __init__(self, session: Session, home: Home, config: Config, environ: Mapping[str, str]) -> None:
        from agent.delivery.piggyback import Piggyback
        from agent.delivery.results import Results
        from agent.reservations import Reservations
        from agent.tools_ask import longest

        self._session, self._home, self._config, self._environ = session, home, config, environ
        self._asks = Reservations(session)
        self._mail = Piggyback(session.loop, self._asks.reserved)
        self._ask_max = longest(environ)
        self._tools = table()
        self._met = False
        self._results = Results(self._mail, lambda: self._ladder)
        self._legacy = False  # the connection began with `initialize`: either side may ping the other
        self._leave = asyncio.Event()
        self._ladder: Ladder | None = None
        self._channel: Channel | None = None

    async def serve(self, wire: tuple[int, int]) -> None:
        """Answer the client until one of the reasons to leave."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError):  # Windows
            for number in ENDINGS:
                loop.add_signal_handler(number, self._leave.set)
        from agent.delivery.channel import CAPABILITIES
        from agent.delivery.stdio import Reader, Writer

        climbing = await self._climb()
        server = self._server()
        channel = self._channel
        reader = Reader(wire[0], self._takes, self._heard)
        writer = Writer(wire[1], reader, self._answered)
        self._results.attach(writer, lambda ident: self._ping(writer, ident))
        if channel is not None:
            channel.attach(writer.send)
        options = server.create_initialization_options(experimental_capabilities=CAPABILITIES if channel else None)
        serving = asyncio.create_task(server.run(reader, writer, options))
        reasons = {serving, asyncio.create_task(self._leave.wait()), asyncio.create_task(self._orphaned())}
        await asyncio.wait(reasons, return_when=asyncio.FIRST_COMPLETED)
        for task in reasons:
            task.cancel()
        await asyncio.wait(reasons, timeout=0.2)
        if serving.done() and not serving.cancelled() and serving.exception():
            log.error("the MCP server ended with %r", serving.exception())
        await self._mail.settled(0.2)
        if climbing is not None and self._ladder is not None:
            climbing.cancel()
            await asyncio.wait([climbing], timeout=0.2)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ladder.close(), 0.3)

    async def _climb(self) -> asyncio.Task[None] | None:
        """Where the client is a Claude Code session, deliver into it; elsewhere tool results carry the mail."""
        from agent.delivery import terminal
        from agent.delivery.clientfile import ONCE, find_client

        client = find_client(self._environ)
        above = None
        if self._environ.get("CLAUDE_CODE_ENTRYPOINT") != ONCE:
            above = terminal.above(self._home.maildirs, client or self._session.who.client_pid, self._environ)
        if client is None and above is not None:
            client = self._session.who.client_pid
        if client is None:
            return None
        from agent.delivery.channel import Channel
        from agent.delivery.ladder import Ladder

        session = self._session
        self._channel = Channel() if self._config.delivery_channel else None
        try:
            self._ladder = Ladder(
                session, self._home, self._config, self._environ, client, self._asks.reserved, self._channel, above
            )
            await self._ladder.recover()
        except (BusError, OSError) as error:
            log.error("messages cannot be delivered into the session: %s", error)
            self._ladder = self._channel = None
            return None
        return asyncio.create_task(self._ladder.run())

    async def _orphaned(self) -> None:
        """Returns when the process that started us has gone."""
        who = self._session.who
        while True:
            gone = not alive(who.client_pid, who.client_start) if sys.platform == "win32" else False
            if gone or (sys.platform != "win32" and os.getppid() != who.client_pid):
                return
            await asyncio.sleep(PARENT_S)

    def _server(self) -> Any:
        import mcp_types as types
        from mcp.server.lowlevel import Server

        async def list_tools(_ctx: Any, _params: Any) -> types.ListToolsResult:
            return types.ListToolsResult(tools=definitions(self._tools))

        async def call_tool(
            ctx: ServerRequestContext[Any, Any], params: types.CallToolRequestParams
        ) -> types.CallToolResult:
            info = ctx.session.client_params
            if info is not None:
                self._session.named_by_client(info.client_info.name)
            text, failed = await self._call(ctx.request_id, params.name, params.arguments or {})
            return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=failed)

        return Server(
            NAME, version=_version(), instructions=INSTRUCTIONS, on_list_tools=list_tools, on_call_tool=call_tool
        )

    async def _call(self, request: Any, name: str, given: Mapping[str, Any]) -> tuple[str, bool]:
        """The text of a result, and whether it is an error. What became of what it carries, results.py finds out."""
        from agent.delivery import native
        from agent.delivery.piggyback import Call

        await self._mail.settled(SETTLE_S)  # what this request proves to have been read is on the disk
        if not self._met:
            self._met = True
            await self._session.known(MEET_S)
        if self._ladder is not None:
            with contextlib.suppress(BusError, OSError):
                await self._ladder.give_way()
        call = Call()
        answered = False
        try:
            text, failed, whole = await self._run(call, name, given)
            if failed and call.letters:  # the text of an error carries none of them
                self._mail.release(call, certain=True)
                call = Call()
            parts = [text, *self._session.notices()]
            if not whole:
                parts.append(await self._rest(call, sum(map(len, parts))))
            answered = True
        finally:
            if not answered:  # cancelled: there will be no response, so nothing was shown
                self._mail.release(call, certain=True)
        whole_text = "\n\n".join(part for part in parts if part)
        if call.letters:
            self._results.leaving(request, call)
            whole_text = native.marked(whole_text, call.nonce)
        return whole_text, failed

    async def _run(self, call: Call, name: str, given: Mapping[str, Any]) -> tuple[str, bool, bool]:
        """Text, whether it failed, and whether it has the waiting messages already."""
        catch_up = self._ladder.catch_up if self._ladder is not None else None
        desk = Desk(self._session, self._mail, self._asks, call, self._ask_max, catch_up)
        try:
            tool = self._tools.get(name)
            if tool is None:
                raise ToolError(f"there is no tool {name[:40]!r} (one of {', '.join(self._tools)})")
            return await tool.run(desk, Args(tool, given)), False, tool.own_mail
        except BusError as error:
            if isinstance(error, StoreError):
                await self._mail.refused(call)
            return f"error: {error}", True, False

    async def _rest(self, call: Call, before: int) -> str:
        """What waits, behind `before` characters of a result. What the client might cut off is not offered."""
        from agent.delivery.piggyback import BUDGET, RESULT_MAX, counted

        try:
            if before + BUDGET > RESULT_MAX:
                return counted(await self._mail.left_waiting())
            text, _, left = await self._mail.waiting(call)
        except BusError as error:
            if isinstance(error, StoreError):
                await self._mail.refused(call)
            return f"(waiting messages cannot be shown: {error})"
        return "\n\n".join(part for part in (text, counted(left)) if part)

    def _answered(self, request: Any, fate: Fate, place: Place) -> None:
        if fate == "written":
            self._results.written(request, place.end, place.sent)
        else:
            self._results.lost(request, certain=fate == "never")

    def _heard(self, message: object, begin: int, taken: int) -> None:
        """Every message of the client, before the SDK has it."""
        from mcp_types import JSONRPCNotification, JSONRPCRequest

        if isinstance(message, JSONRPCRequest) and message.method == "initialize":
            self._legacy = True
        if isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            self._results.cancelled((message.params or {}).get("requestId"))
        self._results.heard(begin, taken)

    def _takes(self, message: object) -> bool:
        """Messages that are not the SDK's: answers to our pings, and what the channel answers itself."""
        from mcp_types import JSONRPCError, JSONRPCResponse

        from agent.delivery.results import PING_ID

        if isinstance(message, JSONRPCResponse | JSONRPCError) and str(message.id).startswith(PING_ID):
            self._results.ponged(str(message.id))
            return True
        return self._channel is not None and self._channel.takes(message)

    async def _ping(self, writer: Writer, ident: str) -> None:
        from mcp.shared.message import SessionMessage
        from mcp_types import JSONRPCRequest

        if self._legacy:
            await writer.send(SessionMessage(JSONRPCRequest(jsonrpc="2.0", id=ident, method="ping")))


def definitions(tools: Mapping[str, Tool]) -> list[types.Tool]:
    """The table as the SDK wants it."""
    import mcp_types as types

    made = []
    for tool in tools.values():
        meta = {"anthropic/alwaysLoad": True} if tool.always else None
        fields = {"name": tool.name, "description": tool.description, "inputSchema": tool.schema, "_meta": meta}
        made.append(types.Tool.model_validate({key: value for key, value in fields.items() if value is not None}))
    return made


def _version() -> str:
    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        return "0"


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("talkbus: %(levelname)s %(message)s"))
    logger = logging.getLogger(NAME)
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Until the event loop listens itself, a signal ends the start in good order."""

    def end(_number: int, _frame: Any) -> NoReturn:
        raise SystemExit(0)

    for number in ENDINGS:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ENDINGS:
            signal.signal(number, signal.SIG_IGN)  # what is left takes a moment, and is not to be torn
