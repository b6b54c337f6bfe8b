"""The Messages API as the client speaks it: what a request says, and how an answer is streamed.

Pure: JSON in, values out. It must not know about sockets, threads, scripts or the client's process.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

Json = dict[str, Any]
Block = dict[str, Any]

# Kinds of request. Only MAIN ones are turns of a conversation; the others are questions on the side.
MAIN = "main"  # the session's own loop, or a subagent's (then `agent` is set)
TITLE = "title"  # a name for the session: no tools, an output schema with a title
CLASSIFIER = "classifier"  # auto mode asks whether a tool call is safe; wants <block>no</block>
COMPACTION = "compaction"  # the main tools, and an instruction to summarise
ASIDE = "aside"  # /btw: the main tools, and a question that gets one answer
HOOK = "hook"  # a hook of type "prompt": an output schema with ok
COUNT = "count"  # count_tokens
OTHER = "other"  # anything else, also what is not the Messages API at all


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived, at `at` (time.monotonic()) and `wall` (time.time()).

    `label` and `cwd` come from the base URL of the session:
    the client tells the model its folder only in turns which the user began.
    """

    number: int
    at: float
    wall: float
    method: str
    path: str
    label: str
    cwd: str
    headers: Mapping[str, str] = field(repr=False)
    body: Json = field(repr=False)
    kind: str = OTHER
    session: str = ""
    agent: str = ""

    @property
    def text(self) -> str:
        """All that the model would read in this request, without the system prompt."""
        return texts(self)

    @property
    def new(self) -> str:
        """What it would read for the first time: the messages after its own last one."""
        return texts(self, newest=True)

    @property
    def tools(self) -> list[str]:
        return [str(tool.get("name")) for tool in self.body.get("tools") or []]


def text(words: str) -> Block:
    return {"type": "text", "text": words}


def tool_use(name: str, **given: Any) -> Block:
    """A call of a tool; the id is made here so that a test can look for its result."""
    return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": name, "input": given}


def texts(request: Request, newest: bool = False) -> str:
    """What the model would see: text of all roles (also "system") and of tool results, in order.

    Inputs of tool calls are left out: they are the model's own words, and a script that looks for a
    word in the result must not find it in the call.
    """
    messages = list(request.body.get("messages") or [])
    if newest:
        own = [n for n, message in enumerate(messages) if message.get("role") == "assistant"]
        messages = messages[own[-1] + 1 :] if own else messages
    return "\n".join(part for message in messages for part in _flat(message.get("content")))


def tool_results(request: Request) -> dict[str, str]:
    """The text of every tool result in the request, by the id of its call."""
    found: dict[str, str] = {}
    for message in request.body.get("messages") or []:
        content = message.get("content")
        for block in content if isinstance(content, list) else []:
            if block.get("type") == "tool_result":
                found[str(block.get("tool_use_id"))] = "\n".join(_flat(block.get("content")))
    return found


def _flat(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    for block in content if isinstance(content, list) else []:
        if block.get("type") == "text":
            yield str(block.get("text", ""))
        elif block.get("type") == "tool_result":
            yield from _flat(block.get("content"))


def prefix(label: str, cwd: str) -> str:
    """The path of a base URL that says from which session a request comes, whatever its id is by now."""
    return f"/s/{quote(label, safe='')}/{quote(cwd, safe='')}" if label else ""


def read_request(
    number: int, now: tuple[float, float], method: str, path: str, headers: Mapping[str, str], raw: bytes
) -> Request:
    """A request from its parts. `headers` by lower-case name; for the start of the path see `prefix`."""
    label = cwd = ""
    if path.startswith("/s/"):
        label, cwd, rest = [*path[3:].split("/", 2), "", ""][:3]
        path = "/" + rest
    try:
        parsed = json.loads(raw) if raw else {}
    except ValueError:
        parsed = {}
    body: Json = parsed if isinstance(parsed, dict) else {"value": parsed}
    route = path.split("?")[0]
    return Request(
        number=number,
        at=now[0],
        wall=now[1],
        method=method,
        path=route,
        label=unquote(label),
        cwd=unquote(cwd),
        headers=headers,
        body=body,
        kind=kind_of(method, route, body),
        session=headers.get("x-claude-code-session-id", ""),
        agent=headers.get("x-claude-code-agent-id", ""),
    )


def kind_of(method: str, route: str, body: Json) -> str:
    """Tell the main loop from the questions on the side."""
    if method == "POST" and route.endswith("/v1/messages/count_tokens"):
        return COUNT
    if method != "POST" or not route.endswith("/v1/messages"):
        return OTHER
    schema = (body.get("output_config") or {}).get("format", {}).get("schema", {}).get("properties", {})
    if "title" in schema:
        return TITLE
    if "ok" in schema:
        return HOOK
    if "<block>" in json.dumps(body.get("system", "")):
        return CLASSIFIER
    last = "\n".join(_flat((body.get("messages") or [{}])[-1].get("content")))
    if "create a detailed summary of the conversation" in last.lower():
        return COMPACTION
    if "<system-reminder>This is a side question from the user" in last:
        return ASIDE
    return MAIN if body.get("tools") else OTHER


def message(model: str, blocks: list[Block]) -> Json:
    """A whole answer, as it is given when streaming was not asked for."""
    calls = any(block["type"] == "tool_use" for block in blocks)
    return {
        "id": f"msg_{uuid.uuid4().hex[:24]}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": "tool_use" if calls else "end_turn",
        "stop_sequence": None,
        "usage": _usage(sum(len(json.dumps(block)) for block in blocks)),
    }


def stream(model: str, blocks: list[Block]) -> Iterator[bytes]:
    """The same answer as server-sent events, in the order in which the real API sends them."""
    whole = message(model, blocks)
    yield _event("message_start", message={**whole, "content": [], "stop_reason": None})
    for index, block in enumerate(blocks):
        yield from _block(index, block)
    stop = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield _event("message_delta", delta=stop, usage={"output_tokens": whole["usage"]["output_tokens"]})
    yield _event("message_stop")


def _block(index: int, block: Block) -> Iterator[bytes]:
    if block["type"] == "tool_use":
        yield _event("content_block_start", index=index, content_block={**block, "input": {}})
        pieces = [{"type": "input_json_delta", "partial_json": part} for part in _cut(json.dumps(block["input"]))]
    else:
        yield _event("content_block_start", index=index, content_block={"type": "text", "text": ""})
        pieces = [{"type": "text_delta", "text": part} for part in _cut(block["text"])]
    for piece in pieces:
        yield _event("content_block_delta", index=index, delta=piece)
    yield _event("content_block_stop", index=index)


def _cut(words: str) -> list[str]:
    """In pieces of a few words, as tokens come: so that slow streaming has something to be slow about."""
    return [words[at : at + 16] for at in range(0, len(words), 16)]


def _event(kind: str, **rest: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **rest})}\n\n".encode()


def _usage(characters: int) -> Json:
    return {
        "input_tokens": 100,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 1 + characters // 4,
    }
