"""How arguments are read, where a session finds itself, and how the answer to an ask is kept for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.book import Book
from agent.delivery.piggyback import BUDGET, fitting, letter_of
from agent.inbox import Letter
from agent.link import Link, Profile
from agent.reservations import Reservations
from agent.session import find_place, numbered
from agent.tooling import Args, ToolError
from agent.tools import table
from agent.tools_ask import longest
from agent.tools_mail import message_id, recipients
from bus import wire
from bus.wire import Msg


def args(tool: str, **given: Any) -> Args:
    return Args(table()[tool], given)


def test_the_body_has_three_names_and_a_recipient_two_forms() -> None:
    for name in ("body", "message", "text"):
        made = args("send_message", to="a", **{name: "hi"})
        assert made.body() == "hi"
    for to in ("a, b", ["a", "b"], '["a", "b"]', "a,b,"):
        assert recipients(args("send_message", to=to, body="x"), "to") == ["a", "b"]
    assert recipients(args("send_message", to="/home/x/a, b", body="x"), "to") == ["/home/x/a, b"]


def test_values_are_taken_as_models_write_them() -> None:
    made = args("check_messages", limit="5", peek="true", wait_s=2.4, tag=None, id=17)
    assert (made.number("limit", 1, 1, 9), made.flag("peek"), made.number("wait_s", 0, 0, 9)) == (5, True, 2)
    assert not made.has("tag") and made.text("id") == "17"


@pytest.mark.parametrize(
    ("tool", "given", "what"),
    [
        ("send_message", {"body": "x"}, "'to' is missing"),
        ("send_message", {"to": "a"}, "'body' is missing"),
        ("send_message", {"to": "a", "body": "x", "cc": "b"}, "no argument 'cc'"),
    ],
)
def test_what_is_missing_or_unknown_is_named(tool: str, given: dict[str, Any], what: str) -> None:
    with pytest.raises(ToolError, match=what):
        args(tool, **given)


def test_wrong_types_and_bounds_are_named() -> None:
    made = args("check_messages", limit=True, peek="maybe", tag=["x"], wait_s=float("nan"))
    for read in (
        lambda: made.number("limit", 1, 1, 9),
        lambda: made.flag("peek"),
        lambda: made.text("tag"),
        lambda: made.number("wait_s", 0, 0, 9),
        lambda: args("send_message", to=[1], body="x").texts("to"),
        lambda: args("send_message", to="x", body=" \n").body(),
        lambda: message_id("abc", "id"),
    ):
        with pytest.raises(ToolError):
            read()


def test_a_lone_surrogate_does_not_break_a_message() -> None:
    assert args("send_message", to="a", body="x\ud800y").body() == "x?y"


def test_an_ask_ends_before_the_client_gives_up() -> None:
    assert longest({}) == 55
    assert longest({"MCP_TOOL_TIMEOUT": "30000"}) == 25
    assert longest({"MCP_TOOL_TIMEOUT": "3000"}) == 1
    assert longest({"MCP_TOOL_TIMEOUT": "600000"}) == 55
    assert longest({"MCP_TOOL_TIMEOUT": "x"}) == longest({"MCP_TOOL_TIMEOUT": "0"}) == 55


def test_numbered_names_fit_the_grammar() -> None:
    assert numbered("api", 2) == "api-2"
    assert len(numbered("a" * 63, 10)) == 63 and numbered("a" * 60 + "-b", 2) == "a" * 60 + "-2"


def test_the_project_is_the_remote_without_secrets_or_else_the_folder(tmp_path: Path) -> None:
    assert find_place(tmp_path).project == str(tmp_path)
    repo, tree = tmp_path / "repo", tmp_path / "tree"
    (repo / "deep").mkdir(parents=True)
    tree.mkdir()
    own = repo / ".git" / "worktrees" / "tree"
    own.mkdir(parents=True)
    (repo / ".git" / "HEAD").write_text("ref: refs/heads/topic/x\n")
    assert find_place(repo / "deep").project == str(repo)
    (repo / ".git" / "config").write_text(
        '[core]\n\turl = none\n[remote "other"]\n\turl = git@host:other.git\n'
        '[remote "origin"]\n\turl = https://user:token@host/org/api.git\n\tfetch = +refs/heads/*\n'
    )
    place = find_place(repo / "deep")
    assert (place.project, place.branch) == ("https://host/org/api.git", "topic/x")
    # A linked worktree: a file names its own directory, which names the common one.
    (tree / ".git").write_text(f"gitdir: {own}\n")
    (own / "commondir").write_text("../..\n")
    (own / "HEAD").write_text("0123456789abcdef\n")
    place = find_place(tree)
    assert (place.project, place.branch) == ("https://host/org/api.git", "01234567")


def letter(ident: str, kind: str = "note", re: str = "", body: bytes = b"x") -> Letter:
    return Letter(Msg(1, 0, ident, "web", "0001", "h", "api", kind, 1, re=re, body=body), 0)


def test_what_wakes_is_chosen_before_what_came_earlier() -> None:
    notes = [letter(f"n{i:015}", body=b"x" * 200_000) for i in range(40)]
    task = letter("t" * 16, "task")
    chosen = fitting([*notes, task, letter("later" + "n" * 11)], 1, BUDGET)
    assert chosen[-1] is task and chosen[:-1] == notes[: len(chosen) - 1] and len(chosen) > 5
    assert fitting(notes[:3], 1, BUDGET) == notes[:3]


def test_one_answer_is_kept_for_an_ask_and_the_others_are_ordinary() -> None:
    """Else anybody could fill the window of a session with what nothing shows."""
    asks = Reservations(SimpleNamespace(loop=None, listeners=[]))  # type: ignore[arg-type]
    asks.open("q" * 16, 1)
    first, second = letter("a" * 16, re="q" * 16), letter("b" * 16, re="q" * 16)
    assert asks.reserved(first) and asks.reserved(second), "whose is the answer is not known yet"
    asks._open["q" * 16].settled({"to": [{"name": "web", "host": "h", "id": "0001", "status": "stored"}]})
    assert asks.reserved(first) and asks.reserved(second), "which one comes first is not known yet"
    stranger = replace(first, msg=replace(first.msg, fid="0002"))
    assert not asks.reserved(stranger), "it was not asked"
    inbox = SimpleNamespace(waiting=lambda: [first, second], more=0)
    asks._session.pulse = SimpleNamespace(beat=lambda: None)  # type: ignore[misc, assignment]
    asks._look(SimpleNamespace(inbox=inbox), 0)  # type: ignore[arg-type]
    assert asks.reserved(first) and not asks.reserved(second)


def test_what_is_in_a_paths_hands_stays_there_when_the_book_is_read_again() -> None:
    link = Link(Book("ob"), Profile("hold", "i", "n"), lambda: "id", lambda: 0.0)
    value = {"id": "a" * 16, "from": "bob", "fid": "f", "host": "h", "kind": "task", "ts": 1}
    letter = letter_of(value, b"x", 0)
    assert link.inbox.offer(0, [letter], "tool-result") == [letter]
    again = Link(link.book, link.profile, lambda: "id", lambda: 0.0)
    again.inbox.take_in(1, wire.Msg(1, 0, "a" * 16, "bob", "f", "h", "n", "task", 1, body=b"x"), 0)
    assert len(again.inbox.waiting()) == 1
    again.inbox.hold([letter])
    assert not again.inbox.waiting() and not again.inbox.offer(1, [letter], "other")
    again.inbox.shown(1, [letter.key], "tool-result")
    assert again.book.ledger[letter.key].state == "shown"
    again.inbox.hold([letter])
    assert again.inbox.offer(2, [letter], "other") == []
