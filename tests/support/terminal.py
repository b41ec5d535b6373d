"""A terminal that shows what is written to it, and breaks long lines anew when its width changes, as most do."""

import re
import unicodedata

_CODES = re.compile(r"\x1b\[\??([\d;]*)([A-Za-z])|\x1b\][^\x07]*\x07|([^\x1b])")


class Terminal:
    """The rows of a screen of unlimited height.

    Attributes:
        width: Columns.
        cursor_shown: Whether the cursor can be seen.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.cursor_shown = True
        self._rows = [""]
        self._goes_on = [False]  # whether a row is the rest of a line that was too long for the row before
        self._row = self._column = 0

    def write(self, text: str) -> None:
        """Obey the codes that the display uses; others are errors."""
        for code, command, character in _CODES.findall(text):
            if character:
                self._put(character)
            elif command == "A":
                self._row = max(0, self._row - int(code))
            elif command == "K":
                assert code == "2", code
                self._rows[self._row] = ""
            elif command in ("h", "l"):
                assert code == "25", code
                self.cursor_shown = command == "h"
            else:
                assert command in ("m", ""), command

    def resize(self, width: int) -> None:
        """Change the width: lines are broken anew, and the cursor stays in its place of the text."""
        lines: list[str] = []
        cursor = 0, 0
        for row, (text, goes_on) in enumerate(zip(self._rows, self._goes_on, strict=True)):
            lines = lines if goes_on else [*lines, ""]
            if row == self._row:
                cursor = len(lines) - 1, len(lines[-1]) + self._column
            lines[-1] += text.ljust(self.width) if self._is_continued(row) else text
        self.width = width
        self._rows, self._goes_on = [], []
        for number, line in enumerate(lines):
            parts = [line[start : start + width] for start in range(0, max(1, len(line)), width)]
            if number == cursor[0]:
                place = min(cursor[1] // width, len(parts) - 1)
                self._row, self._column = len(self._rows) + place, cursor[1] - place * width
            self._rows += parts
            self._goes_on += [False] + [True] * (len(parts) - 1)

    def lines(self) -> list[str]:
        """Return the rows without the spaces at their ends."""
        return [row.rstrip() for row in self._rows]

    @property
    def has_broken_lines(self) -> bool:
        """Return whether a line is longer than a row of the screen."""
        return any(self._goes_on)

    def _is_continued(self, row: int) -> bool:
        return row + 1 < len(self._goes_on) and self._goes_on[row + 1]

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._next_row(goes_on=False)
        else:
            assert unicodedata.category(character) != "Cc", repr(character)
            if self._column >= self.width:
                self._next_row(goes_on=True)
                self._column = 0
            row = self._rows[self._row].ljust(self._column)
            self._rows[self._row] = row[: self._column] + character + row[self._column + 1 :]
            self._column += 1

    def _next_row(self, *, goes_on: bool) -> None:
        self._row += 1
        if self._row == len(self._rows):
            self._rows.append("")
            self._goes_on.append(goes_on)
        if not goes_on:
            self._column = 0
        self._goes_on[self._row] = goes_on
