"""A small terminal emulator: enough escape sequences to know what a user would read.

Programs that redraw only what changed, and jump over blanks with cursor movements, cannot be searched
in their raw output. Colours are dropped. Pure: bytes in, text out; it must not know where they come from.
"""

from __future__ import annotations

import codecs
import re

_SEQUENCE = re.compile(
    r"\x1b\[([0-?]*)[ -/]*([@-~])"  # CSI: parameters, final
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC, such as a window title
    r"|\x1b[PX^_][^\x1b]*\x1b\\"  # DCS and the like
    r"|\x1b[ -/]+[0-~]"  # with an intermediate, such as a character set
    r"|\x1b([0-Z\\`-~])"  # one character
)
_UNFINISHED = 4096  # characters of an open sequence that are kept for the next feed; longer is garbage


class Screen:
    """Feed output, then read `text()`. Lines that scroll off the top stay in `text()` only as `history`."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.history: list[str] = []
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._rest = ""
        self._saved = (0, 0)
        self._row = self._column = 0
        self._cells = [self._blank() for _ in range(rows)]

    def text(self) -> str:
        return "\n".join("".join(line).rstrip() for line in self._cells).rstrip("\n")

    def feed(self, output: bytes) -> None:
        todo = self._rest + self._decode(output)
        self._rest = ""
        at = 0
        while at < len(todo):
            if todo[at] != "\x1b":
                self._put(todo[at])
                at += 1
                continue
            found = _SEQUENCE.match(todo, at)
            if found:
                self._obey(found.group(1), found.group(2) or "", found.group(3) or "")
                at = found.end()
            elif len(todo) - at < _UNFINISHED:
                self._rest = todo[at:]
                return
            else:
                at += 1

    def _blank(self) -> list[str]:
        return [" "] * self.columns

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._down()
        elif character == "\b":
            self._column = max(0, self._column - 1)
        elif character == "\t":
            self._column = min(self.columns - 1, (self._column // 8 + 1) * 8)
        elif character >= " ":
            if self._column >= self.columns:
                self._column = 0
                self._down()
            self._cells[self._row][self._column] = character
            self._column += 1

    def _down(self) -> None:
        if self._row < self.rows - 1:
            self._row += 1
            return
        self.history.append("".join(self._cells.pop(0)).rstrip())
        self._cells.append(self._blank())

    def _obey(self, parameters: str | None, final: str, single: str) -> None:
        if single == "7":
            self._saved = (self._row, self._column)
        elif single == "8":
            self._row, self._column = self._saved
        elif single == "M":
            self._row = max(0, self._row - 1)
        elif single == "c":
            self._cells = [self._blank() for _ in range(self.rows)]
        if not final or parameters is None or parameters[:1] in ("?", "<", "=", ">"):
            return
        given = [int(part) if part.isdigit() else 0 for part in parameters.split(";")]
        self._move(final, given)
        self._erase(final, given)

    def _move(self, final: str, given: list[int]) -> None:
        step = max(1, given[0])
        if final == "A":
            self._row -= step
        elif final in "BE":
            self._row += step
        elif final == "F":
            self._row -= step
        elif final == "C":
            self._column += step
        elif final == "D":
            self._column -= step
        elif final == "G":
            self._column = step - 1
        elif final == "d":
            self._row = step - 1
        elif final in "Hf":
            self._row, self._column = step - 1, max(1, [*given, 1][1]) - 1
        if final in "EF":
            self._column = 0
        self._row = min(self.rows - 1, max(0, self._row))
        self._column = min(self.columns, max(0, self._column))

    def _erase(self, final: str, given: list[int]) -> None:
        how = given[0]
        line = self._cells[self._row]
        here = min(self._column, self.columns)
        if final == "K":
            first, last = {0: (here, self.columns), 1: (0, here + 1)}.get(how, (0, self.columns))
            line[first:last] = [" "] * (min(last, self.columns) - first)
        elif final == "X":
            last = min(self.columns, here + max(1, how))
            line[here:last] = [" "] * (last - here)
        elif final == "J":
            if how == 0:
                line[here:] = [" "] * (self.columns - here)
            first, last = {0: (self._row + 1, self.rows), 1: (0, self._row)}.get(how, (0, self.rows))
            self._cells[first:last] = [self._blank() for _ in range(first, last)]
