"""What a former life was offering: which text proves that which message was shown."""

from __future__ import annotations

from pathlib import Path

from agent.delivery.native import marked
from agent.delivery.recovery import look_back
from agent.delivery.transcript import Seen
from agent.render import Letter, render
from tests.test_transcript import answer, line, linked, request, user

KEY, NONCE = "hub/0001/" + "m" * 16, "0123456789ab"


def rendered(nonce: str) -> str:
    return marked(render([Letter("m" * 16, "ann", "hub", "me", "task", "", "", "", 1, b"hello")], 2), nonce)


def said(text: str) -> bytes:
    message = user(text)
    return b"".join(line(r) + b"\n" for r in (message, request("r", message["message"]), answer("r")))


def shown(current: Path | None, former: str, keys: dict[str, str]) -> dict[str, str]:
    return look_back(current, former, keys, lives=False).shown


def test_the_same_message_carried_by_another_text_proves_nothing(tmp_path: Path) -> None:
    """Ids are public, so anybody may write a text that looks like the message; nobody knows the nonce."""
    current = tmp_path / "new.jsonl"
    current.write_bytes(said(rendered("ba9876543210")))
    assert shown(current, "", {KEY: NONCE}) == {}
    current.write_bytes(said(rendered(NONCE)))
    assert shown(current, "", {KEY: NONCE}) == {KEY: "transcript"}


def test_only_the_sessions_that_sat_here_prove_what_was_shown(tmp_path: Path) -> None:
    """Another session of the folder may have been sent the same message, and shown it."""
    records = said(rendered(NONCE))
    (tmp_path / "other.jsonl").write_bytes(records)
    current = tmp_path / "new.jsonl"
    current.write_bytes(b"")
    for former in ("", "old", "../" + tmp_path.name + "/other"):
        assert shown(current, former, {KEY: NONCE}) == {}
    (tmp_path / "old.jsonl").write_bytes(records)
    assert shown(current, "old", {KEY: NONCE}) == {KEY: "transcript"}
    assert shown(None, "old", {KEY: NONCE}) == {}


def test_what_a_living_client_has_taken_in_is_neither_shown_nor_offered_again(tmp_path: Path) -> None:
    """Its turn goes on; that of a client that was killed does not."""
    current = tmp_path / "new.jsonl"
    message = user(rendered(NONCE))
    current.write_bytes(line(message) + b"\n" + line(request("r", message["message"])) + b"\n")
    for lives in (False, True):
        past = look_back(current, "", {KEY: NONCE, "hub/0001/other": "ffffffffffff"}, lives)
        assert past.shown == {} and past.held == ({NONCE: [KEY]} if lives else {})
    assert past.parser.feed([line(answer("r"))]) == {NONCE: Seen.INJECTED}


def test_a_result_that_is_recorded_waits_for_the_next_request(tmp_path: Path) -> None:
    current = tmp_path / "new.jsonl"
    block = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": rendered(NONCE)}]}
    current.write_bytes(line({"type": "user", "message": {"role": "user", "content": [block]}}) + b"\n")
    assert look_back(current, "", {KEY: NONCE}, lives=True).held == {NONCE: [KEY]}


def test_what_was_taken_out_of_the_conversation_is_not_held(tmp_path: Path) -> None:
    current = tmp_path / "new.jsonl"
    records = [linked(user(rendered(NONCE)), "b", "a"), linked(user("something else"), "c", "a")]
    current.write_bytes(b"".join(line(record) + b"\n" for record in records))
    past = look_back(current, "", {KEY: NONCE}, lives=True)
    assert past.shown == {} and past.held == {}
