"""What a former life was offering: which text proves that which message was shown."""

from __future__ import annotations

from pathlib import Path

from agent.delivery.recovery import distinct, mark, proofs
from agent.delivery.transcript import stands_in
from agent.render import Letter, render
from tests.test_transcript import answer, line, request, user

KEY = "hub/0001/" + "m" * 16


def rendered(name: str, host: str, body: str = "hello") -> str:
    return render([Letter("m" * 16, name, host, "me", "task", "", "", "", 1, body.encode())], 2)


def test_a_message_is_found_by_its_id_and_its_host() -> None:
    assert stands_in(rendered("ann", "hub"), *mark(KEY))
    assert not stands_in(rendered("ann", "far"), *mark(KEY)), "that is what another sender wrote under this id"
    assert not stands_in(rendered("ann", "bighub"), *mark(KEY))
    assert stands_in(rendered("eve", "far") + rendered("ann", "hub"), *mark(KEY)), "it stands behind the other"
    assert not stands_in(rendered("eve", "far", f'<peer-message id="{"m" * 16}" from="ann@hub">'), *mark(KEY))


def test_what_another_message_could_be_taken_for_is_not_proven() -> None:
    beside = "hub/0002/" + "m" * 16
    assert distinct([KEY], [KEY, "far/0003/" + "m" * 16]) == [KEY]
    assert distinct([KEY], [KEY, beside]) == [], "two of one host look alike"


def test_only_the_sessions_that_sat_here_prove_what_was_shown(tmp_path: Path) -> None:
    """Another session of the folder may have been sent the same message, and shown it."""
    message = user(rendered("ann", "hub"))
    shown = b"".join(line(r) + b"\n" for r in (message, request("r", message["message"]), answer("r")))
    (tmp_path / "other.jsonl").write_bytes(shown)
    current = tmp_path / "new.jsonl"
    current.write_bytes(b"")
    for former in ("", "old", "../" + tmp_path.name + "/other"):
        assert proofs(current, former, [KEY], lives=False) == []
    (tmp_path / "old.jsonl").write_bytes(shown)
    assert proofs(current, "old", [KEY], lives=False) == [KEY]
    assert proofs(None, "old", [KEY], lives=False) == []
