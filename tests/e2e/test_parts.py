"""The parts of the bed by themselves, without the client: the fake API, the screen, the proof."""

from __future__ import annotations

import http.client
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from . import client
from .api import FakeApi, says
from .messages import kind_of, text, tool_use
from .screen import Screen
from .transcript import digest, prove
from .wait import TooLate, until


def ask(api: FakeApi, words: str, stream: bool = False, label: str = "", **more: Any) -> Any:
    body = {"model": "m", "stream": stream, "tools": [{"name": "Bash"}], **more}
    body.setdefault("messages", [{"role": "user", "content": words}])
    line = http.client.HTTPConnection("127.0.0.1", api.port, timeout=10)
    path = api.url(label, "/a b/c").removeprefix(f"http://127.0.0.1:{api.port}") + "/v1/messages?beta=true"
    line.request("POST", path, json.dumps(body), {"X-Claude-Code-Session-Id": "s1", "x-claude-code-agent-id": "a1"})
    raw = line.getresponse().read().decode()
    line.close()
    if not stream:
        return json.loads(raw)
    return [json.loads(part.split("\ndata: ")[1]) for part in raw.strip().split("\n\n")]


def test_a_request_is_recorded_with_whose_it_is(api: FakeApi) -> None:
    assert ask(api, "hello", label="alice")["content"] == [text("ok")]
    [request] = api.requests
    assert (request.label, request.cwd, request.session, request.agent) == ("alice", "/a b/c", "s1", "a1")
    assert (request.kind, request.path, request.tools) == ("main", "/v1/messages", ["Bash"])


def test_rules_answer_in_order_and_are_used_up(api: FakeApi) -> None:
    api.on("hello", "first")
    api.on("hello", "second", times=2)
    api.on(says("hello", label="bob"), "for bob", times=None)
    said = [ask(api, "hello")["content"][0]["text"] for _ in range(4)]
    assert said == ["first", "second", "second", "ok"]
    assert ask(api, "hello", label="bob")["content"][0]["text"] == "for bob"


def test_only_what_is_new_to_the_model_is_matched(api: FakeApi) -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [text("inner")]}
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": [tool_use("Bash", command="unseen")]},
        {"role": "user", "content": [result]},
        {"role": "system", "content": "aside"},
    ]
    ask(api, "", messages=turns)
    [request] = api.requests
    assert (request.text, request.new) == ("hello\ninner\naside", "inner\naside")


def test_the_stream_has_the_events_of_the_real_api(api: FakeApi) -> None:
    call = tool_use("Bash", command="echo a rather long line")
    api.on("go", "I will", call)
    events = ask(api, "go", stream=True)
    kinds = [event["type"] for event in events]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
    pieces = [e["delta"]["partial_json"] for e in events if e.get("delta", {}).get("type") == "input_json_delta"]
    assert len(pieces) > 1 and json.loads("".join(pieces)) == call["input"]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_a_held_answer_waits_for_its_release(api: FakeApi) -> None:
    turn = api.on("hello", "at last", hold=True)
    got: list[Any] = []
    asking = threading.Thread(target=lambda: got.append(ask(api, "hello")))
    asking.start()
    api.wait("hello")
    assert got == []
    turn.release()
    asking.join(10)
    assert got[0]["content"] == [text("at last")]


def test_a_wait_that_fails_says_for_what(api: FakeApi) -> None:
    ask(api, "something else")
    with pytest.raises(TooLate, match=r"main says 'hello'.*something else(?s:.)*"):
        try:
            api.wait("hello", deadline=0.01)
        except TooLate as late:
            raise TooLate(str(late).replace("\n", " ")) from None
    with pytest.raises(TooLate, match="nothing"):
        api.wait("something", deadline=0.01, since=api.mark())
    with pytest.raises(TooLate, match="a miracle; last seen: False"):
        until(lambda: False, "a miracle", deadline=0.01)


SUMMARISE = "Your task is to create a detailed summary of the conversation so far"
ASIDE = "<system-reminder>This is a side question from the user. You must answer"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("title", {"output_config": {"format": {"schema": {"properties": {"title": {}}}}}}),
        ("hook", {"output_config": {"format": {"schema": {"properties": {"ok": {}, "reason": {}}}}}}),
        ("classifier", {"system": [text("answer <block>yes</block> or <block>no</block>")]}),
        ("compaction", {"tools": [{}], "messages": [{"content": SUMMARISE}]}),
        ("aside", {"tools": [{}], "messages": [{"content": ASIDE}]}),
        ("main", {"tools": [{}], "messages": [{"content": "hello"}], "output_config": {"effort": "medium"}}),
        ("other", {"messages": [{"content": "no tools, no schema"}]}),
    ],
)
def test_questions_on_the_side_are_told_apart(kind: str, body: dict[str, Any]) -> None:
    assert kind_of("POST", "/v1/messages", body) == kind


def test_what_is_not_a_message_is_answered_and_recorded(api: FakeApi) -> None:
    for method, path, status in (
        ("HEAD", "/api/hello", 200),
        ("POST", "/v1/messages/count_tokens", 200),
        ("CONNECT", "example.com:443", 403),
    ):
        line = http.client.HTTPConnection("127.0.0.1", api.port, timeout=10)
        line.request(method, path)
        assert line.getresponse().status == status
        line.close()
    assert [request.kind for request in api.all_requests] == ["other", "count", "other"]


def test_the_screen_shows_what_a_user_would_read() -> None:
    screen = Screen(4, 20)
    screen.feed(b"one\x1b[2Ctwo\r\n\x1b[31mred\x1b[0m \xe2\x9d")
    screen.feed(b"\xaf\x1b]0;title\x07\x1b[")
    screen.feed(b"1;1HO\x1b[3;1Hgone\x1b[2K\x1b[4;1Hlast\r\nscrolled")
    assert screen.text() == "red ❯\n\nlast\nscrolled"
    assert screen.history == ["One  two"]
    screen.feed(b"\x1b[H\x1b[Jnew")
    assert screen.text() == "new"


def test_a_proof_needs_all_three_links() -> None:
    said = {"role": "user", "content": "a heron — ☃"}
    content = {"type": "user", "message": said}
    request = {"type": "api-request", "id": "r1", "tail": ["x", digest(said)]}
    answer = {"type": "assistant", "requestRef": "r1"}
    failed = {"type": "assistant", "isApiErrorMessage": True}
    proof = prove([content, request, answer], "a heron — ☃")
    assert proof is not None and (proof.content, proof.request, proof.answer) == (content, request, answer)
    parts: list[list[dict[str, Any]]] = [
        [content, request],
        [content, answer],
        [request, answer],
        [content, request, failed],
    ]
    for part in parts:
        assert prove(part, "a heron") is None
    blob = {"type": "api-request-blob", "hash": "x", "message": {"role": "system", "content": [text("an owl")]}}
    assert prove([blob, request, answer], "an owl") is not None
    # A text block and a plain string of the same words have the same name; known from a real transcript.
    known = "2a5a7efc40bcfa91561d0b23cad840b8aa0dbaff5b022a97ba558c9f085c4909"
    assert digest({"role": "user", "content": "second prompt"}) == known
    assert digest({"role": "user", "content": [text("second prompt")]}) == known


def test_a_missing_client_is_a_skip_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(client.CACHE_VARIABLE, str(tmp_path))
    assert client.claude_binary() is None
    with pytest.raises(pytest.skip.Exception, match=r"2\.1\.329 is not in .*python -m tests\.e2e\.client"):
        client.need_client()
