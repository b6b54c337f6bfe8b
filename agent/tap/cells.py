"""A screen as cells: texts put on it with a style, read back as rows of segments. Pure.

Characters of double width take two cells, those of none are left out, so that nothing a peer wrote can shift what
stands beside it.
"""

from __future__ import annotations

from rich.cells import get_character_cell_size

Segment = tuple[str, str]  # style, text

# Every sign of ours that is not ASCII, and one of the same width that is.
_PLAIN = str.maketrans(
    {
        "─": "-",
        "│": "|",
        "┌": "+",
        "┐": "+",
        "└": "+",
        "┘": "+",
        "├": "+",
        "┤": "+",
        "►": ">",
        "◄": "<",
        "▲": "^",
        "▼": "v",
        "›": ">",
        "‹": "<",
        "·": ".",
        "‿": "u",
        "…": "~",
        "→": ">",
        "✉": "#",
        "✓": "+",
        "✗": "x",
        "“": '"',
        "”": '"',
    }
)


def width(text: str) -> int:
    """How many cells a text takes."""
    return sum(get_character_cell_size(character) for character in text)


def fit(text: str, room: int) -> str:
    """The beginning of a text that fits into `room` cells, with a mark where it was cut."""
    if width(text) <= room:
        return text
    taken, used = [], 0
    for character in text:
        used += get_character_cell_size(character)
        if used > room - 1:
            break
        taken.append(character)
    return "".join(taken) + ("…" if room > 0 else "")


def plain(text: str) -> str:
    """The same in ASCII, as wide as before; what peers wrote in other letters becomes question marks."""
    made = text.translate(_PLAIN)
    return made if made.isascii() else "".join(c if c.isascii() else "?" * max(1, width(c)) for c in made)


class Canvas:
    """`wide` times `high` cells, blank at first. What lies outside is not drawn."""

    def __init__(self, wide: int, high: int) -> None:
        self.wide, self.high = wide, high
        self._cells: list[list[Segment]] = [[("", " ")] * wide for _ in range(high)]

    def put(self, x: int, y: int, text: str, style: str = "", room: int | None = None) -> int:
        """Write a text, cut to `room` cells; returns the column after it."""
        if room is not None:
            text = fit(text, max(0, room))
        if not 0 <= y < self.high:
            return x + width(text)
        row = self._cells[y]
        for character in text:
            size = get_character_cell_size(character)
            if size and x >= 0 and x + size <= self.wide:
                self._mend(row, x, size)
                row[x] = (style, character)
                for more in range(1, size):
                    row[x + more] = (style, "")
            x += size
        return x

    def box(self, x: int, y: int, wide: int, high: int, title: str, style: str = "frame") -> None:
        """A frame with a title in its upper edge."""
        if wide < 2 or high < 2:
            return
        self.put(x, y, "┌" + "─" * (wide - 2) + "┐", style)
        for row in range(y + 1, y + high - 1):
            self.put(x, row, "│", style)
            self.put(x + wide - 1, row, "│", style)
        self.put(x, y + high - 1, "└" + "─" * (wide - 2) + "┘", style)
        if title:
            self.put(x + 2, y, f" {fit(title, wide - 6)} ", "title")

    def rows(self, ascii_only: bool = False) -> list[list[Segment]]:
        """Each row as segments of one style."""
        made = []
        for row in self._cells:
            segments: list[Segment] = []
            for style, character in row:
                if segments and segments[-1][0] == style:
                    segments[-1] = (style, segments[-1][1] + character)
                else:
                    segments.append((style, character))
            made.append([(style, plain(text)) for style, text in segments] if ascii_only else segments)
        return made

    def _mend(self, row: list[Segment], x: int, size: int) -> None:
        """What is half overwritten is blank: a character of double width has no halves."""
        if row[x][1] == "" and x > 0:
            row[x - 1] = (row[x - 1][0], " ")
        end = x + size
        if end < self.wide and row[end][1] == "":
            row[end] = (row[end][0], " ")
