"""Writes a live transcript: committed text plain, and on a terminal the partial text dimmed after it."""

from typing import TextIO

from ..processing.writing import count_columns, split_units


DIM, PLAIN, ERASE = "\x1b[2m", "\x1b[0m", "\x1b[K"


class LiveText:
    """
    A live transcript, with a line for each segment.

    Args:
        file (`TextIO`): Where the text is written.
        columns (`int`, *optional*): Width of the terminal. `None` writes committed text alone.
    """

    def __init__(self, file: TextIO, columns: int | None):
        self.file = file
        self.columns = columns
        # Columns of the committed text on the last line.
        self._column = 0

    def write(self, committed: str, partial: str, is_finished: bool) -> None:
        """
        Write an event.

        Args:
            committed (`str`): New committed text, with the white space before it.
            partial (`str`): Text after it for now, with the white space before it.
            is_finished (`bool`): Whether the segment ends here.
        """
        written = ERASE if self.columns else ""
        for piece in _pieces(committed):
            width = count_columns(piece)
            if self.columns and self._column and self._column + width > self.columns:
                written += "\n"
                self._column = 0
            if not self._column:
                piece = piece.lstrip()
                width = count_columns(piece)
            written += piece
            self._column += width
        if is_finished:
            written += "\n" if self._column else ""
            self._column = 0
        elif self.columns:
            written += self._dimmed(partial)
        self.file.write(written)
        self.file.flush()

    def _dimmed(self, partial: str) -> str:
        """The beginning of the partial text that fits on the line. The cursor returns to its start."""
        assert self.columns is not None
        shown = partial if self._column else partial.lstrip()
        # The last column stays free: writing there would move the cursor to the next line.
        room = self.columns - self._column - 1
        while count_columns(shown) > max(room, 0):
            shown = shown[:-1]
        width = count_columns(shown)
        return f"{DIM}{shown}{PLAIN}\x1b[{width}D" if width else ""


def _pieces(text: str) -> list[str]:
    """The units of [`split_units`], each with the space before it, if there is one."""
    pieces = []
    for index, word in enumerate(text.split()):
        space = " " if index or text[0].isspace() else ""
        for number, unit in enumerate(split_units(word)):
            pieces.append(unit if number else space + unit)
    return pieces


__all__ = ["LiveText"]
