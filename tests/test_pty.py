"""When something may be typed, and what; tests/e2e/test_pty.py has the terminals."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.delivery import pty
from agent.delivery.maildir import Box
from agent.delivery.pty import Typist, notice, pasted
from bus import processes

LATE = 1_000_000


def ready(**status: str) -> Typist:
    typist = Typist()
    typist.output(0, b"hello\x1b[?2004h")
    return typist


def test_a_quiet_program_may_be_typed_to() -> None:
    typist = ready()
    assert not typist.may(pty.QUIET_MS - 1) and typist.may(pty.QUIET_MS)
    typist.output(5000, b".")
    assert not typist.may(5000 + pty.QUIET_MS - 1)


def test_one_that_says_its_status_is_believed() -> None:
    typist = ready()
    typist.says("idle")
    assert typist.may(1)
    for status in ("busy", "waiting", ""):
        typist.says(status)
        assert not typist.may(LATE)
    typist.says("shell")
    assert typist.may(LATE)


def test_one_that_should_say_and_does_not_is_left_alone() -> None:
    typist = Typist(reads_status=True)
    typist.output(0, b"Do you trust this folder?")
    assert not typist.may(LATE)


def test_the_keyboard_has_to_be_still() -> None:
    typist = ready()
    typist.keys(LATE, b"\r")
    assert not typist.may(LATE + pty.STILL_MS - 1) and typist.may(LATE + pty.STILL_MS)


def test_after_typing_it_settles() -> None:
    typist = ready()
    typist.typed(LATE)
    assert not typist.may(LATE + pty.SETTLE_MS - 1) and typist.may(LATE + pty.SETTLE_MS)


@pytest.mark.parametrize(
    ("keys", "draft"),
    [
        (b"half", 4),
        ("hé".encode(), 2),
        (b"half\r", 0),
        (b"half\rx", 1),
        (b"ab\x7f\x7f\x7f", 0),
        (b"half\x15", 0),
        (b"half\x03", 0),
        (b"\x1b[A\x1b[B\x1bOP\x1b[1;5C", 0),
        (b"\x1b[I\x1b[O\x1b[<35;10;10M", 0),
        (b"\x1b[?64;1;2c\x1b]11;rgb:00/00/00\x07\x1bP>|xterm\x1b\\", 0),
        (b"\x1b[200~line\r\ntwo\x1b[201~", 1),
        (b"\x1b[200~line\r\ntwo\x1b[201~\r", 0),
        (b"\x1b[200~open", 1),
    ],
)
def test_what_seems_to_stand_in_the_line(keys: bytes, draft: int) -> None:
    typist = ready()
    typist.keys(0, keys)
    assert typist.draft == draft and typist.may(LATE) == (draft == 0)


def test_a_turn_that_begins_took_the_line() -> None:
    typist = ready()
    typist.says("idle")
    typist.keys(0, b"half")
    typist.says("busy")
    assert typist.draft == 0
    typist.keys(0, b"next")
    typist.says("busy")
    typist.says("idle")
    assert typist.draft == 4


@given(st.lists(st.sampled_from([b"\x1b[?2004h", b"\x1b[?2004l", b"\x1b[?1049;25h", b"x", b"\x1b[2J"])), st.data())
def test_modes_are_seen_however_the_output_is_cut(parts: list[bytes], data: st.DataObject) -> None:
    whole, cut = Typist(), Typist()
    text = b"".join(parts)
    whole.output(0, text)
    while text:
        size = data.draw(st.integers(1, len(text)))
        cut.output(0, text[:size])
        text = text[size:]
    assert cut.modes == whole.modes
    last = [part for part in parts if b"2004" in part][-1:]
    assert whole.pastes == (last == [b"\x1b[?2004h"])


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_ends_its_paste_or_presses_a_key(text: str) -> None:
    typed = pasted(text)
    assert typed.startswith(b"\x1b[200~") and typed.endswith(b"\x1b[201~\r")
    inner = typed[6:-7]
    assert not any((octet < 32 and octet not in b"\n\t") or octet == 127 for octet in inner)
    assert not any(0x80 <= ord(c) < 0xA0 for c in inner.decode())


def test_a_notice_is_one_line() -> None:
    assert notice(1) == b"talkbus: a message for this session; to read: talkbus inbox\r"
    assert notice(2).startswith(b"talkbus: 2 messages") and notice(2).count(b"\r") == 1 and b"\n" not in notice(2)


def test_whose_box_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getpid()
    box = Box(tmp_path / f"{own}-x" / "pty").make()
    environ = {pty.BOX_VARIABLE: str(box.path), "CLAUDE_CONFIG_DIR": str(tmp_path)}
    assert pty.box_above(own, environ) is None  # nobody looks into it
    (box.path / "owner").write_text(f"{own} {processes.start_time(own)}\n")
    found = pty.box_above(own, environ)
    assert found is not None and found.path == box.path
    assert pty.box_above(own, {}) is None and pty.box_above(os.getppid(), environ) is None
    # A shim between the two does no harm, another client does.
    monkeypatch.setattr(processes, "ancestors", lambda pid: [77, own])
    assert pty.box_above(78, environ) is not None
    monkeypatch.setattr(pty.clientfile, "read", lambda pid, config: object() if pid == 77 else None)
    assert pty.box_above(78, environ) is None
    (box.path / "owner").write_text(f"{own} older\n")
    assert not pty.supervised(box)
    pty.attach(box, 78)
    assert (box.path / "client").read_text() == "78\n"
