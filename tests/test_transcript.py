"""The proof in a transcript: its records in any order, the queue's, and a file that grows, turns over, is cut."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.delivery import transcript
from agent.delivery.transcript import Follower, Parser, Seen, digest, scan
from tests.e2e import transcript as bed

WORDS = '<peer-message id="abc"'


def line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def user(text: str) -> dict[str, Any]:
    return {"type": "user", "message": {"role": "user", "content": text}}


def request(ident: str, *messages: dict[str, Any]) -> dict[str, Any]:
    return {"type": "api-request", "id": ident, "tail": [digest(m) for m in messages]}


def answer(ident: str) -> dict[str, Any]:
    return {"type": "assistant", "requestRef": ident, "message": {"role": "assistant", "content": "ok"}}


def blob(message: dict[str, Any]) -> dict[str, Any]:
    return {"type": "api-request-blob", "hash": digest(message), "message": message}


def queue(operation: str, content: str | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "queue-operation", "operation": operation, **({"content": content} if content else {}), **more}


def told(text: str) -> dict[str, Any]:
    return {"type": "system", "subtype": "informational", "content": text}


def parser(native: bool = True) -> Parser:
    made = Parser()
    made.watch("k", WORDS, native)
    return made


def after(*records: dict[str, Any], native: bool = True) -> Seen:
    made = parser(native)
    made.feed(map(line, records))
    return made.seen("k")


BODY = f'head\n{WORDS} from="x">\nhello é\n</peer-message>'


@given(order=st.permutations(range(3)), as_blob=st.booleans())
def test_the_three_records_prove_in_any_order(order: list[int], as_blob: bool) -> None:
    message = {"role": "system" if as_blob else "user", "content": [{"type": "text", "text": BODY}]}
    chain = [blob(message) if as_blob else {"type": "user", "message": message}, request("r", message), answer("r")]
    made = parser()
    for index in order[:2]:
        made.feed([line(chain[index])])
        assert made.seen("k") in (Seen.NOTHING, Seen.TAKEN)
    assert made.feed([line(chain[order[2]])]) == {"k": Seen.INJECTED}
    assert made.feed([line(chain[0])]) == {}


def test_any_link_missing_proves_nothing() -> None:
    message = user(BODY)["message"]
    other = {"role": "user", "content": "other"}
    for native, seen in ((True, Seen.TAKEN), (False, Seen.NOTHING)):
        assert after(user(BODY), request("r", message), native=native) is seen
        assert after(user(BODY), answer("r"), native=native) is seen
        assert after(user(BODY), request("r", other), answer("r"), native=native) is seen
        assert after(user(BODY), request("r", message), answer("s"), native=native) is seen
        assert after(user(BODY), request("r", message), {"type": "assistant", "message": {}}, native=native) is seen
    spoken = {"role": "assistant", "content": [{"type": "text", "text": BODY}]}
    assert after(blob(spoken), request("r", spoken), answer("r")) is Seen.NOTHING
    called = {"role": "user", "content": [{"type": "tool_use", "input": {"x": BODY}}]}
    assert after(blob(called), request("r", called), answer("r")) is Seen.NOTHING


def test_the_result_of_a_tool_counts() -> None:
    block = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": BODY}]}
    message = {"role": "user", "content": [block]}
    assert (
        after({"type": "user", "message": message}, request("r", message), answer("r"), native=False) is Seen.INJECTED
    )


def test_the_digest_is_that_of_the_bed() -> None:
    message = {"role": "user", "content": "é \ud800 </x>"}
    assert digest(message) == bed.digest(message)
    marked = {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}
    assert digest(marked) == digest({"role": "user", "content": "x"})


def test_the_queue() -> None:
    assert after(queue("enqueue", BODY)) is Seen.ENQUEUED
    assert after(queue("enqueue", BODY), queue("remove", BODY, reason="absorbed_mid_turn")) is Seen.TAKEN
    assert after(queue("enqueue", BODY), queue("remove", BODY)) is Seen.ENQUEUED
    assert after(queue("enqueue", BODY), queue("dequeue")) is Seen.ENQUEUED  # it may have been another one
    assert after(queue("enqueue", BODY), queue("dequeue"), user(BODY)) is Seen.TAKEN
    assert after(queue("enqueue", BODY), native=False) is Seen.NOTHING
    message = user(BODY)["message"]
    chain = [queue("enqueue", BODY), user(BODY), request("r", message), answer("r"), queue("dequeue")]
    assert after(*chain) is Seen.INJECTED


def spoke(ident: str, **more: Any) -> dict[str, Any]:
    """What the model says, in a transcript that keeps no requests."""
    return {"type": "assistant", "message": {"role": "assistant", "id": ident, "content": "ok"}, **more}


def test_without_requests_an_answer_that_began_after_the_text_was_taken_is_the_proof() -> None:
    assert after(user(BODY), spoke("a")) is Seen.ANSWERED
    assert after(queue("enqueue", BODY), spoke("a")) is Seen.ENQUEUED
    absorbed = [spoke("a"), queue("enqueue", BODY), queue("remove", BODY, reason="absorbed_mid_turn")]
    assert after(*absorbed, spoke("a")) is Seen.TAKEN  # the rest of what it was saying before
    assert after(*absorbed, spoke("a"), spoke("b")) is Seen.ANSWERED
    assert after(user(BODY), spoke("a", isApiErrorMessage=True), spoke("b", isSidechain=True)) is Seen.TAKEN
    synthetic = spoke("c")
    synthetic["message"]["model"] = "<synthetic>"
    assert after(user(BODY), synthetic) is Seen.TAKEN
    made = Parser()
    made.feed([line(spoke("a"))])
    made.watch("k", WORDS, native=True)
    made.feed(map(line, [user(BODY), spoke("a")]))
    assert made.seen("k") is Seen.TAKEN


def test_what_a_tool_quotes_was_not_taken_for_a_turn() -> None:
    block = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": BODY}]}
    quoted = {"type": "user", "message": {"role": "user", "content": [block]}}
    assert after(queue("enqueue", BODY), quoted, spoke("a")) is Seen.ENQUEUED


def linked(record: dict[str, Any], ident: str, before: str | None, **more: Any) -> dict[str, Any]:
    return {**record, "uuid": ident, "parentUuid": before, **more}


def test_what_the_person_has_taken_out_of_the_conversation_is_left_behind() -> None:
    """As Esc does, which puts the prompt back into the line."""
    taken = [linked(user(BODY), "b", "a"), linked({"type": "attachment"}, "c", "b")]
    assert after(*taken, linked(user("[interrupted]"), "d", "c"), linked(user("on"), "e", "d")) is Seen.TAKEN
    assert after(*taken, linked(user("something else"), "d", "a")) is Seen.LEFT
    assert after(*taken, linked(user("something else"), "d", None)) is Seen.LEFT
    assert after(*taken, linked(user("of a helper"), "d", None, isSidechain=True)) is Seen.TAKEN
    again = linked(user(BODY), "d", "a")  # the person has sent it after all
    assert after(*taken, again, linked(user("on"), "e", "d")) is Seen.TAKEN
    boundary = linked({"type": "system"}, "d", None, logicalParentUuid="c")  # compacted: the summary is what is left
    assert after(*taken, boundary, linked(user("a summary"), "e", "d")) is Seen.LEFT
    message = user(BODY)["message"]
    answered = [request("r", message), answer("r")]
    assert after(*taken, *answered, linked(user("something else"), "d", "a")) is Seen.INJECTED


def test_a_retry_and_a_later_request_hold_what_the_first_one_brought() -> None:
    """A request lists only what is new; what failed is tried again with nothing new."""
    message, other = user(BODY)["message"], {"role": "user", "content": "other"}
    first = [user(BODY), {**request("a", other, message), "keep": 0}]
    retry = {"type": "api-request", "id": "b", "base": "a", "keep": 2, "tail": []}
    later = {"type": "api-request", "id": "c", "base": "b", "keep": 2, "tail": [digest(other)]}
    assert after(*first, retry) is Seen.TAKEN
    assert after(*first, retry, answer("b")) is Seen.INJECTED
    assert after(*first, retry, later, answer("c")) is Seen.INJECTED
    without = {**retry, "keep": 1}  # from before it
    assert after(*first, without, answer("b")) is Seen.TAKEN
    assert after(*first, without, {**later, "keep": 9}, answer("c")) is Seen.TAKEN


def test_what_the_person_takes_out_of_the_queue_is_what_the_next_prompt_says_it_is() -> None:
    def typed(*records: dict[str, Any]) -> Seen:
        made = Parser()
        made.watch("k", WORDS, typed=True)
        made.feed(map(line, records))
        return made.seen("k")

    popped = [queue("enqueue", BODY), queue("popAll", BODY)]
    assert typed(*popped) is Seen.ENQUEUED
    assert typed(*popped, linked(user("something else"), "b", "a", promptSource="typed")) is Seen.LEFT
    assert typed(*popped, linked(user(BODY), "b", "a", promptSource="typed")) is Seen.TAKEN
    interrupted = linked(user("[Request interrupted by user]"), "b", "a")
    assert typed(*popped, interrupted) is Seen.ENQUEUED
    assert typed(*popped, interrupted, linked(user(BODY), "c", "b", promptSource="typed")) is Seen.TAKEN
    queued = [queue("enqueue", BODY), linked(user("of before"), "c", "b", promptSource="typed")]
    assert typed(*popped, *queued) is Seen.ENQUEUED


def test_a_result_is_left_behind_with_its_call_only() -> None:
    def result(text: str) -> dict[str, Any]:
        block = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": text}]}
        return {"type": "user", "message": {"role": "user", "content": [block]}}

    def call(ident: str, before: str) -> dict[str, Any]:
        return linked({"type": "assistant", "requestRef": "r", "message": {"role": "assistant"}}, ident, before)

    calls = [call("a1", "a"), call("a2", "a1"), call("a3", "a2")]
    for held in (1, 2, 3):
        for order in ((1, 2, 3), (3, 2, 1)):
            results = [linked(result(BODY if n == held else "x"), f"r{n}", f"a{n}") for n in order]
            on = [linked(user("[interrupted]"), "e", f"r{order[-1]}"), linked(user("on"), "f", "e")]
            assert after(*calls, *results, *on, native=False) is Seen.NOTHING, (held, order)
            assert after(*calls, *results, linked(user("something else"), "e", "a"), native=False) is Seen.LEFT


def test_a_watch_goes_on_in_another_parser() -> None:
    message = user(BODY)["message"]
    former = parser()
    former.feed(map(line, [user(BODY), request("r", message)]))
    made = Parser()
    made.resume(former, "k")
    made.resume(former, "unknown")
    assert made.seen("k") is Seen.TAKEN
    assert made.feed([line(answer("r"))]) == {"k": Seen.INJECTED}


def test_results_of_calls_side_by_side_may_come_partly_to_the_former_parser() -> None:
    def result(text: str) -> dict[str, Any]:
        return {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": text}]}

    def record(*blocks: dict[str, Any]) -> dict[str, Any]:
        return {"type": "user", "message": {"role": "user", "content": list(blocks)}}

    both = record(result(BODY), result("of the other"))["message"]
    former = parser(native=False)
    former.feed([line(record(result(BODY)))])
    made = Parser()
    made.resume(former, "k")
    made.feed(map(line, [record(result("of the other")), request("r", both), answer("r")]))
    assert made.seen("k") is Seen.INJECTED


def test_dropped_and_held() -> None:
    drop = told("Dropped a peer message from unknown: sender exceeded the peer message rate limit.")
    held = told(f"Held peer message — from x; preview: «{WORDS} …» — not delivered to Claude (1 held).")
    assert after(drop) is Seen.DROPPED
    assert after(drop, native=False) is Seen.NOTHING
    assert after(queue("enqueue", BODY), drop) is Seen.ENQUEUED
    assert after(held) is Seen.HELD
    assert after(told("Held peer message — from x; preview: «short»")) is Seen.HELD
    assert after(held, queue("enqueue", BODY)) is Seen.ENQUEUED
    assert after(told("something else")) is Seen.NOTHING


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"type":"api-request"}',
        b'{"type":"api-request","id":1,"tail":3}',
        b'{"type":"user","message":3}',
        b"\xff\xfe",
        b"[" * 100_000 + b'"api-request"',
        b'{"type":"queue-operation","operation":"dequeue"}',
        b'{"type":"queue-operation","content":{"a":1}}',
        b'{"type":"assistant","requestRef":5}',
        line({"type": "user", "message": {"role": "user", "content": [3, {"type": "text"}, BODY]}}),
    ],
)
def test_garbage_is_passed_over(garbage: bytes) -> None:
    made = parser()
    assert made.feed([garbage]) == {}


def test_unwatch_and_watch() -> None:
    made = parser()
    made.unwatch("k")
    assert made.seen("k") is Seen.NOTHING
    with pytest.raises(ValueError, match="nothing"):
        made.watch("k", "")


def test_what_is_remembered_is_bounded() -> None:
    made = parser()
    made.feed(line(request(f"r{n}")) for n in range(5000))
    made.feed(line(answer(f"r{n}")) for n in range(5000))
    assert len(made._requests) == len(made._answered) == transcript.KEPT


# --- the file


@given(pieces=st.lists(st.binary(min_size=1, max_size=30), max_size=20), seed=st.integers(0, 99))
def test_whole_lines_come_once_however_they_are_written(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], seed: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "x.jsonl"
    path.write_bytes(b"before\n")
    follower = Follower()
    assert follower.follow(0, path) and not follower.follow(0, path)
    dice, seen, data = random.Random(seed), [], b"".join(pieces)
    for piece in pieces:
        with open(path, "ab") as file:
            file.write(piece)
        if dice.random() < 0.6:
            seen += follower.poll(0)
    seen += follower.poll(0)
    assert seen == [part for part in data.split(b"\n")[:-1] if part]


def test_another_file_is_read_from_its_start_and_the_left_one_to_its_end(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"old\n")
    follower = Follower()
    follower.follow(0, first)
    second.write_bytes(b"one\n")
    assert follower.follow(1000, second) and follower.path == second
    with open(first, "ab") as file:
        file.write(b"late\n")
    assert follower.poll(2000) == [b"late", b"one"]
    with open(first, "ab") as file:
        file.write(b"too late\n")
    assert follower.poll(1000 + transcript.GRACE_MS) == []


def test_the_first_file_of_a_new_session_is_read_from_its_start(tmp_path: Path) -> None:
    follower = Follower()
    assert not follower.follow(0, None) and follower.poll(0) == []
    path = tmp_path / "a"
    path.write_bytes(b"one\n")
    assert follower.follow(0, path) and follower.poll(0) == [b"one"]


def test_a_file_that_is_cut_replaced_or_gone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one\n")
    follower = Follower()
    follower.follow(0, path)
    path.write_bytes(b"2\n")
    assert follower.poll(0) == [b"2"]
    path.unlink()
    assert follower.poll(0) == []
    (tmp_path / "b").write_bytes(b"three three\n")
    (tmp_path / "b").rename(path)
    assert follower.poll(0) == [b"three three"]


def test_a_line_too_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcript, "LINE_MAX", 100)
    monkeypatch.setattr(transcript, "TURN_MAX", 64)
    path = tmp_path / "a"
    path.write_bytes(b"")
    follower = Follower()
    follower.follow(0, path)
    path.write_bytes(b"x" * 1000 + b"\nshort\n")
    seen: list[bytes] = []
    for _ in range(20):
        seen += follower.poll(0)
    assert seen == [b"short"]


def test_a_typed_text_is_taken_with_its_prompt_and_can_be_queued_but_not_dropped() -> None:
    parser = Parser()
    parser.watch("typed", WORDS, typed=True)
    parser.watch("hook", WORDS)
    parser.feed([line(user(BODY))])
    assert parser.seen("typed") is Seen.NOTHING  # no prompt: it may be what a hook or tool said
    dropped = {"type": "system", "subtype": "informational", "content": "Dropped a peer message from x"}
    parser.feed([line(dropped), line({"type": "queue-operation", "operation": "enqueue", "content": BODY})])
    assert (parser.seen("typed"), parser.seen("hook")) == (Seen.ENQUEUED, Seen.NOTHING)
    parser.feed([line({**user(BODY), "promptSource": "typed"})])
    assert (parser.seen("typed"), parser.seen("hook")) == (Seen.TAKEN, Seen.NOTHING)


def test_scan_looks_back(tmp_path: Path) -> None:
    path = tmp_path / "a"
    message = user(BODY)["message"]
    path.write_bytes(b"".join(line(r) + b"\n" for r in (user(BODY), request("r", message), answer("r"))))
    found, tail = scan(path, [WORDS, "nothing of it"])
    assert (found.seen(WORDS), found.seen("nothing of it")) == (Seen.INJECTED, Seen.NOTHING)
    assert scan(tmp_path / "none", [WORDS])[0].seen(WORDS) is Seen.NOTHING
    follower = Follower()
    follower.go_on(tail)
    assert not follower.follow(0, path) and follower.poll(0) == [], "it was read to its end"
    with open(path, "ab") as file:
        file.write(b'{"more":1}\n')
    assert follower.poll(0) == [b'{"more":1}']


def _said(ref: str) -> bytes:
    return json.dumps({"type": "assistant", "requestRef": ref, "message": {"role": "assistant"}}).encode()


def _result(ident: str, text: str) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": ident, "content": [{"type": "text", "text": text}]}
    return {"type": "user", "message": {"role": "user", "content": [block]}}


@pytest.mark.parametrize("ours", [0, 1, 2])
@pytest.mark.parametrize("late", [False, True])
def test_results_of_calls_side_by_side_are_one_message(ours: int, late: bool) -> None:
    """Each has a record of its own, the first ones perhaps before anybody looked for ours, and no blob has them all."""
    results = [_result(f"t{n}", f"<m {n}> words" if n == ours else "other") for n in range(3)]
    whole = {"role": "user", "content": [x["message"]["content"][0] for x in results]}
    request = {"type": "api-request", "id": "r2", "tail": [transcript.digest(whole)]}
    lines = [json.dumps(x).encode() for x in results]
    parser = Parser()
    parser.feed([json.dumps(_result("t", "of an earlier turn")).encode(), _said("r1")])
    parser.feed(lines[:ours] if late else [])
    parser.watch("k", f"<m {ours}")
    # The second call of the same message is told after the first result.
    parser.feed([*(lines[ours:] if late else [lines[0], _said("r1"), *lines[1:]]), json.dumps(request).encode()])
    assert parser.recorded("k") and parser.seen("k") is Seen.NOTHING
    parser.feed([_said("r2")])
    assert parser.seen("k") is Seen.INJECTED
