"""What a former life was offering: which text proves that which message was shown."""

from __future__ import annotations

from pathlib import Path

from agent.delivery.native import marked
from agent.delivery.recovery import proofs
from agent.render import Letter, render
from tests.test_transcript import answer, line, request, user

KEY, NONCE = "hub/0001/" + "m" * 16, "0123456789ab"


def rendered(nonce: str) -> str:
    return marked(render([Letter("m" * 16, "ann", "hub", "me", "task", "", "", "", 1, b"hello")], 2), nonce)


def said(text: str) -> bytes:
    message = user(text)
    return b"".join(line(r) + b"\n" for r in (message, request("r", message["message"]), answer("r")))


def test_the_same_message_carried_by_another_text_proves_nothing(tmp_path: Path) -> None:
    """Ids are public, so anybody may write a text that looks like the message; nobody knows the nonce."""
    current = tmp_path / "new.jsonl"
    current.write_bytes(said(rendered("ba9876543210")))
    assert proofs(current, "", {KEY: NONCE}, lives=False) == []
    current.write_bytes(said(rendered(NONCE)))
    assert proofs(current, "", {KEY: NONCE}, lives=False) == [KEY]


def test_only_the_sessions_that_sat_here_prove_what_was_shown(tmp_path: Path) -> None:
    """Another session of the folder may have been sent the same message, and shown it."""
    shown = said(rendered(NONCE))
    (tmp_path / "other.jsonl").write_bytes(shown)
    current = tmp_path / "new.jsonl"
    current.write_bytes(b"")
    for former in ("", "old", "../" + tmp_path.name + "/other"):
        assert proofs(current, former, {KEY: NONCE}, lives=False) == []
    (tmp_path / "old.jsonl").write_bytes(shown)
    assert proofs(current, "old", {KEY: NONCE}, lives=False) == [KEY]
    assert proofs(None, "old", {KEY: NONCE}, lives=False) == []
