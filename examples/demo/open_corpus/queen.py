"""Reads the recordings of Flight of the Amazon Queen (English): acted dialogue in one archive, `queen.1c`.

The archive's directory names voice clips (``.SB``, MP3) and scripts. A clip's name identifies its line:

- ``KKNNNNJs``: dialogue ``KK``, line ``NNNN`` (hexadecimal), spoken by Joe, the hero, or by the other person (``P``).
  The text is in a ``.DOG`` file, which contains the dialogue's number. ``SSSS`` and ``XXXX`` stand for greetings.
- ``CnnX_iis``: line ``ii`` of the cutaway ``CnnX.CUT``, padded with ``_``. The file does not name the speaker.
- ``JOEnnnns``: Joe describes an object. The texts are the first lines of ``QUEEN2.JAS``.

The last character, ``s``, is the number of the segment. Stage directions such as ``*FL`` or ``*14`` divide a line into segments.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from .clips import Clip


DIRECTORY_START = 15
DIRECTORY_ENTRY = struct.Struct(">12sBII")
BANK_HEADER = 20

DIRECTION = re.compile(r"\*(?:XY.{11}|..)", re.DOTALL)
"""A stage direction. The direction of a position has coordinates."""

FIRST_DESCRIPTION = 41
"""Joe's lines before this number are answers. Their texts are in other files."""

DESCRIPTIONS_TOGETHER = 20
"""Number of consecutive descriptions in a group, because these describe one place."""


def read_directory(archive: bytes) -> dict[str, tuple[int, int]]:
    """Return the start and the size in bytes of each file in ``archive``.

    Raises:
        ValueError: the file has another type.
    """
    if not archive.startswith(b"QTBL"):
        raise ValueError("the archive does not begin with the table of Flight of the Amazon Queen ('QTBL')")
    (count,) = struct.unpack_from(">H", archive, DIRECTORY_START - 2)
    table = archive[DIRECTORY_START : DIRECTORY_START + count * DIRECTORY_ENTRY.size]
    return {
        name.rstrip(b"\0").decode("ascii").upper(): (start, size)
        for name, _, start, size in DIRECTORY_ENTRY.iter_unpack(table)
    }


def read_string(script: bytes, offset: int, alignment: int = 2) -> tuple[str, int]:
    """Read a string that starts with its length. Return it and the offset after its padding."""
    length = script[offset]
    offset += 1
    if not length:
        return "", offset
    text = script[offset : offset + length].decode("cp437")
    return text, -(-(offset + length) // alignment) * alignment


def segments(line: str) -> list[str]:
    """Return the texts between stage directions. The position in the list is part of a clip's name."""
    return DIRECTION.split(line)


def read_dialogue(script: bytes) -> Iterator[tuple[str, str]]:
    """Yield clip names, without the segment, and lines of a ``.DOG`` file."""
    levels, _, key, joes, persons = struct.unpack_from(">5h", script)
    person_offset, _, greetings_offset = struct.unpack_from(">3H", script, 22)
    joe_offset = 32 + abs(levels) * 96
    for offset, count, speaker in ((joe_offset, joes, "J"), (person_offset, persons, "P")):
        for _ in range(count):
            _, number = struct.unpack_from(">2h", script, offset)
            line, offset = read_string(script, offset + 4, 4)
            if number:
                yield f"{key:02d}{number:04X}{speaker}", line
            elif speaker == "J":
                yield f"{key:02d}SSSSJ", line
    person_again, offset = read_string(script, greetings_offset)
    yield f"{key:02d}XXXXP", person_again
    yield f"{key:02d}XXXXJ", read_string(script, offset)[0]


def read_cutaway(script: bytes, name: str) -> Iterator[tuple[str, str]]:
    """Yield clip names, without the segment, and lines of the cutaway ``name``."""
    (objects,) = struct.unpack_from(">h", script, 2)
    (offset,) = struct.unpack_from(">H", script, 8)
    _, offset = read_string(script, offset)  # Joe's initial direction
    for index in range(1, abs(objects) + 1):
        line, offset = read_string(script, offset)
        yield f"{name:_<5}{index:02d}", line


def read_descriptions(lines: str) -> Iterator[tuple[str, str]]:
    """Yield clip names, without the segment, and lines of ``QUEEN2.JAS``. Some lines name a script instead of a text."""
    for index, line in enumerate(lines.split("\r\n")):
        if not line.upper().endswith((".CUT", ".DOG")):
            yield f"JOE{index + FIRST_DESCRIPTION:04d}", line


def read_clips(folder: Path) -> Iterator[Clip]:
    """Yield the recordings whose text is known.

    Args:
        folder: folder with ``queen.1c``.

    Yields:
        One clip for each voice file. If two lines have the same name, the first is used.
    """
    path = folder / "queen.1c"
    archive = path.read_bytes()
    directory = read_directory(archive)
    seen = set()

    def clips(lines: Iterator[tuple[str, str]], group: str, speakers: dict[str, str]) -> Iterator[Clip]:
        for line_number, (prefix, line) in enumerate(lines):
            for index, text in enumerate(segments(line), start=1):
                name = f"{prefix}{index:X}"
                if text.strip() and f"{name}.SB" in directory and name not in seen:
                    seen.add(name)
                    start, size = directory[f"{name}.SB"]
                    yield Clip(
                        id=f"queen-{name}",
                        source="queen",
                        language="en",
                        text=text,
                        group=group if group != "joe" else f"joe-{line_number // DESCRIPTIONS_TOGETHER}",
                        speaker=speakers.get(prefix[-1]),
                        file=path,
                        start=start,
                        size=size,
                    )

    for file, (start, size) in sorted(directory.items()):
        stem, _, kind = file.rpartition(".")
        script = archive[start : start + size]
        if kind == "DOG":
            person = stem.rstrip("0123456789").lower()
            yield from clips(read_dialogue(script[BANK_HEADER:]), person, {"J": "queen-joe", "P": f"queen-{person}"})
        elif kind == "CUT":
            scene = re.match(r"C\d+|", stem)[0] or stem
            yield from clips(read_cutaway(script[BANK_HEADER:], stem), scene.lower(), {})
        elif file == "QUEEN2.JAS":
            joe = dict.fromkeys("0123456789", "queen-joe")
            yield from clips(read_descriptions(script.decode("cp437")), "joe", joe)
