"""When something may be typed, and what; tests/e2e/test_pty.py has the terminals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.delivery import native, pty
from agent.delivery.pty import Reference, Typist, notice, pasted

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
        (b"half\x04", 4),  # a line editor deletes a character there, or nothing
        (b"\x1bOP\x1b[1;5C\x1b[D", 0),
        (b"\x1b[A", 1),  # an earlier line may stand there now
        (b"\x1b[A\r", 0),
        (b"ab\x1b[H\x7f\x7f", 2),  # the cursor is before them, so nothing was removed
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


@pytest.mark.parametrize(
    ("keys", "draft"),
    [
        (b"half\r", 0),
        (b"\x1b[Dhalf\r", 5),  # until a turn begins
        (b"half\x7f\x7f\x7f", 1),
        (b"half\x7f\x7f\x7f\x7f\x7f", 0),
        (b"half\\\r", 4),  # a newline in the draft
        (b"half\x1b\r", 4),
        (b"half\nmore", 8),
        (b"half\x15", 4),  # it clears one line of several
        (b"half\x03", 0),
        (b"half\x04", 4),  # it deletes a character at most
        (b"\x10", 1),
        (b"\x12", 1),
        (b"half\x12\x03", 4),  # it ends a search, and the line stays
        (b"half\x12\x03\x03", 0),
        (b"@RE\r", 3),  # it chooses from a list
        (b"/help\r", 5),
        (b"\x07", 1),  # an editor
        (b"\x1b[A", 1),
        (b"\x1b[A\x03", 0),
        (b"\x1b[112;5u", 1),  # Ctrl-P, as a keyboard says it that numbers its keys
        (b"\x1b[27;5;112~", 1),
        (b"\x1b[104u\x1b[105;1u\x1b[127u", 1),
        (b"\x1b[104u\x1b[105;1u\x1b[127;129u\x1b[127u", 0),
        (b"h\x1b[99;5u", 0),
        (b"h\x1b[99;5:3u", 1),  # let go
        (b"\x1b[57441;2u", 1),
        (b"\x1b[200~delete all\x1b[201~\x7f\x7f", 1),
        (b"\x1b[200~\x1b[201~", 0),
        (b"\x1b[I\x1b[O\x1b[<35;10;10M\x1b[?64;1;2c\x1b]11;rgb:00/00/00\x07\x1bP>|xterm\x1b\\\x1b[?1u\x1b[3;7R", 0),
    ],
)
def test_in_a_client_only_a_turn_or_what_is_plain_empties_the_line(keys: bytes, draft: int) -> None:
    whole, single = Typist(reads_status=True), Typist(reads_status=True)
    whole.keys(0, keys)
    for sequence in (keys,) if b"\x1b" in keys else (bytes([octet]) for octet in keys):
        single.keys(0, sequence)
    for typist in (whole, single):
        typist.says("idle")
        assert typist.draft == draft and typist.may(LATE) == (draft == 0)


@pytest.mark.parametrize(
    ("keys", "draft"),
    [
        (b"half", 4),
        (b"half\r", 0),
        (b"half\n", 0),
        (b"half\x03", 0),
        (b"half\x15", 0),
        (b"ab\x7f\x7f\x7f", 0),
        (b"\x04", 0),
        (b"half\x04", 4),  # the program has it and waits for the rest of the line
        (b"half\x04\x04", 4),
        (b"half\x04\x15", 4),
        (b"half\x04ab\x15", 4),
        (b"half\x04ab\x7f\x7f\x7f\x7f", 4),
        (b"half\x04\r", 0),
        (b"half\x04\n", 0),
        (b"half\x04\x03", 0),
        (b"half\x04\rab\x15", 0),
        (b"half\x16\x03", 6),  # quoted: it stands in the line
        (b"half\x16\r", 6),
        (b"half\x16\x15", 6),
        (b"ab\x08\x08", 4),  # not this terminal's erase character
        (b"\t", 1),
        (b"\x1b[D", 3),
        (b"\x1bOP", 3),
        (b"\x1b[H\x7f\x7f\x7f", 0),
        (b"\x1b[D\r", 0),
        (b"\x1b[200~touch a\rtouch b\x1b[201~", 13),
    ],
)
def test_what_stands_in_a_line_that_the_terminal_edits(keys: bytes, draft: int) -> None:
    whole, single = ready(), ready()
    whole.keys(0, keys, b"\x7f")
    for octet in keys:
        single.keys(0, bytes([octet]), b"\x7f")
    for typist in (whole, single):
        assert typist.draft == draft and typist.may(LATE) == (draft == 0)


def test_a_turn_takes_the_line_only_right_after_enter() -> None:
    for keys, gap, draft in ((b"\x10\r", 200, 0), (b"half", 200, 4), (b"\x10\rx", 200, 2), (b"/rewind\r", 9000, 7)):
        typist = Typist(reads_status=True)
        typist.says("idle", 1, 0)
        typist.keys(1000, keys)
        typist.says("busy", 2, 1000 + gap)
        typist.says("idle", 3, 20_000)
        assert typist.draft == draft, keys


def test_what_is_queued_behind_a_turn_has_left_the_line() -> None:
    typist = Typist(reads_status=True)
    typist.says("busy", 1, 0)
    typist.keys(0, b"and then the docs\r")
    typist.says("idle", 2, 9000)
    assert typist.may(LATE)


def test_a_stashed_draft_comes_back_after_the_next_prompt() -> None:
    typist = Typist(reads_status=True)
    typist.says("idle", 1, 0)
    typist.keys(0, b"put aside\x13other words\r")
    typist.says("busy", 2, 100)
    typist.says("idle", 3, 200)
    assert not typist.may(LATE)
    typist.keys(0, b"\x03")
    assert typist.may(LATE)


def test_a_dialog_has_its_keys_for_itself() -> None:
    typist = Typist(reads_status=True)
    typist.says("busy", 1, 0)
    typist.says("waiting", 2, 0)
    typist.keys(0, b"\x1b[B1")
    typist.says("busy", 3, 100)
    typist.says("idle", 4, 200)
    assert typist.may(LATE)
    typist.keys(0, b"/model\r")
    typist.says("waiting", 5, 200)
    typist.keys(0, b"\x1b")
    typist.says("idle", 6, 300)
    assert typist.may(LATE), "the command has left the line"


def test_a_conversation_that_was_cleared_begins_with_an_empty_line() -> None:
    typist = Typist(reads_status=True)
    typist.says("idle", 1, 0, "one")
    typist.keys(0, b"/clear\r")
    assert not typist.may(LATE)
    typist.says("idle", 1, 100, "two")
    assert typist.may(LATE)


def test_a_turn_that_is_broken_off_may_put_its_prompt_back() -> None:
    typist = Typist(reads_status=True)
    typist.says("busy")
    typist.keys(0, b"\x1b")
    typist.says("idle")
    assert not typist.may(LATE)
    typist.keys(0, b"\x03")
    assert typist.may(LATE)


def test_what_we_typed_stands_there_until_a_turn_takes_it() -> None:
    typist = Typist(reads_status=True)
    typist.output(0, b"\x1b[?2004h")
    typist.says("idle")
    typist.typed(0)
    assert not typist.may(LATE) and not typist.stuck(pty.SETTLE_MS - 1) and typist.stuck(pty.SETTLE_MS)
    typist.says("busy")
    typist.says("idle")
    assert typist.may(LATE) and not typist.stuck(LATE)
    typist.says("idle", 5)
    typist.typed(0)
    typist.says("idle", 6)  # a turn that was over before we looked
    assert typist.may(LATE) and not typist.stuck(LATE)
    typist.typed(LATE)
    typist.keys(LATE, b"x")  # the person goes on in that line: Enter is theirs
    assert not typist.stuck(2 * LATE) and not typist.may(2 * LATE)


def test_a_turn_of_a_slow_client_takes_our_text_after_the_second_enter_too() -> None:
    typist = Typist(reads_status=True)
    typist.output(0, b"\x1b[?2004h")
    typist.says("idle", 1)
    typist.typed(0)
    assert typist.stuck(pty.SETTLE_MS)
    typist.entered_again = True
    assert not typist.stuck(LATE) and not typist.may(LATE), "once, and the text may still stand there"
    typist.says("busy", 2)
    typist.says("idle", 3)
    assert typist.may(LATE)
    typist.typed(LATE)
    assert typist.stuck(2 * LATE), "each text has a second Enter"


def test_a_turn_that_no_status_tells_of_is_known_by_its_proof() -> None:
    """A client writes nothing down of a turn that is over at once; without this nothing more would be typed."""
    typist = Typist(reads_status=True)
    typist.output(0, b"\x1b[?2004h")
    typist.says("idle", 1)
    typist.typed(0)
    assert not typist.may(LATE)
    typist.proven()
    assert typist.may(LATE) and not typist.stuck(LATE)
    typist.typed(LATE)
    typist.keys(LATE, b"x")
    typist.proven()
    assert not typist.may(3 * LATE), "what the person has added stands there"


def test_a_status_that_cannot_be_read_ends_no_draft() -> None:
    typist = Typist(reads_status=True)
    typist.says("busy", 1)
    typist.keys(0, b"half")
    typist.says("")
    typist.keys(0, b"\x03")  # breaks the turn off, and leaves the line
    typist.says("idle", 2)
    assert typist.draft and not typist.may(LATE)


def test_a_turn_shows_although_the_status_was_being_written_at_one_look() -> None:
    typist = Typist(reads_status=True)
    typist.output(0, b"\x1b[?2004h")
    typist.says("idle", 1)
    typist.typed(0)
    typist.says("")
    assert not typist.may(LATE)
    typist.says("idle", 3)
    assert typist.may(LATE)


def test_a_program_that_starts_silently_is_given_time() -> None:
    typist = Typist(started_at=0)
    assert not typist.may(pty.SILENT_MS - 1) and typist.may(pty.SILENT_MS)


@pytest.mark.parametrize(
    ("status", "modes", "canonical", "echo", "paste", "way"),
    [
        ("idle", b"\x1b[?2004h", False, False, False, "terminal"),
        ("idle", b"", False, False, False, "notice"),
        ("idle", b"\x1b[?2004h\x1b[?2004l", False, False, False, ""),  # it has lent the terminal to an editor
        (None, b"\x1b[?2004h", False, False, False, ""),  # it has not said yet what it is doing
        ("", b"", True, True, False, "notice"),
        ("", b"", True, False, True, ""),  # a password
        ("", b"\x1b[?2004h", False, False, False, ""),  # Enter may confirm a dialog
        ("", b"\x1b[?2004h", False, False, True, "terminal"),
        ("", b"", False, False, True, ""),
        ("", b"\x1b[?2004h", True, True, True, "notice"),
    ],
)
def test_how_it_is_typed(
    status: str | None, modes: bytes, canonical: bool, echo: bool, paste: bool, way: str
) -> None:
    typist = Typist(reads_status=status is None)
    typist.output(0, modes)
    typist.says(status or "")
    assert typist.way(canonical, echo, paste) == way


def test_a_turn_that_begins_took_the_line() -> None:
    typist = ready()
    typist.says("idle")
    typist.keys(0, b"half")
    typist.says("busy")
    assert typist.draft == 4, "something else began it"
    typist.keys(0, b"\r")
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
    assert notice(False) == b"talkbus: a message waits for this session, to read it run: talkbus inbox\r"
    assert notice(True) == b"# " + notice(False) and b"\n" not in notice(True)
    assert not set(notice(True)) & set(b";&|<>$`'\"(){}[]*?!\\~")  # a word of a shell, and nothing more


NONCE = "0123456789ab"


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (b"> (talkbus delivery 0123456789ab)\r\n", True),
        (b"0123\x1b[0m\x1b[1;31m4567\x1b]8;;http://x\x1b\\89\x1b]0;title\x07ab", True),
        (b"0123456\r\n  \x1b[K\x1b(B789ab", True),
        (b"prompt> 0123456789a", False),
        (b"prompt> 0123456789a\x1b[b", False),
        (b"", False),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_a_reference_is_found_however_it_is_written(output: bytes, found: bool, size: int) -> None:
    reference = Reference(NONCE)
    text = b"\x1b[2Jx" * 1000 + output + b" and more"
    for at in range(0, len(text), size):
        reference.output(text[at : at + size])
    assert reference.found == found


def test_the_reference_of_a_text_is_the_one_that_we_put_there() -> None:
    forged = native.marked("hello", "f" * 12)
    assert native.reference(native.marked(forged, NONCE) + "\n(a remark)") == NONCE
    assert native.reference("hello") == "" and not Reference("").found
