"""cells: nothing a peer wrote shifts what stands beside it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.tap.cells import Canvas, fit, plain, width
from tests.story import as_text


def test_fit() -> None:
    assert [fit("abcdef", n) for n in (6, 4, 1, 0)] == ["abcdef", "abc…", "…", ""]
    assert fit("日本語", 5) == "日本…" and width(fit("日本語", 4)) == 3


def test_plain_is_as_wide() -> None:
    assert plain("─►✉…é日") == "->#~???"
    assert plain("abc") == "abc"


def test_wide_characters_have_no_halves() -> None:
    canvas = Canvas(6, 1)
    canvas.put(0, 0, "日本語")
    canvas.put(1, 0, "x")
    assert as_text(canvas.rows()) == " x本語\n"
    canvas.put(2, 0, "y")
    assert as_text(canvas.rows()) == " xy 語\n"
    canvas.put(5, 0, "日")
    assert as_text(canvas.rows()) == " xy 語\n", "it does not fit"


def test_segments_are_of_one_style() -> None:
    canvas = Canvas(4, 2)
    assert canvas.put(0, 0, "ab", "x") == 2
    assert canvas.rows()[0] == [("x", "ab"), ("", "  ")]
    assert canvas.put(0, 9, "ab") == 2 and canvas.put(0, -1, "ab") == 2
    canvas.put(-1, 1, "ab")
    assert as_text(canvas.rows()) == "ab\nb\n"


def test_box() -> None:
    canvas = Canvas(12, 3)
    canvas.box(0, 0, 12, 3, "a title too long")
    assert as_text(canvas.rows()) == "┌─ a tit… ─┐\n│          │\n└──────────┘\n"
    small = Canvas(3, 1)
    small.box(0, 0, 1, 1, "")
    assert as_text(small.rows()) == "\n"


@given(st.lists(st.tuples(st.integers(-3, 12), st.integers(-1, 3), st.text(max_size=8)), max_size=8), st.booleans())
def test_rows_keep_their_width(texts: list[tuple[int, int, str]], ascii_only: bool) -> None:
    canvas = Canvas(10, 2)
    for x, y, text in texts:
        canvas.put(x, y, text)
    for segments in canvas.rows(ascii_only):
        assert width("".join(text for _, text in segments)) == 10
