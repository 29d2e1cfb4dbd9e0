"""A recording and what it says, as a package holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Clip:
    """One recording of a package, before anything is checked.

    Attributes:
        id: unique in the whole corpus; begins with the source's name.
        source: key of :data:`.packages.SOURCES`.
        language: ISO 639-1 code.
        text: what is said, as the package spells it.
        group: what must stay on one side of a split: a dialogue, a level, a run of sentences.
        speaker: a role or a person, unique in the whole corpus; ``None`` where the package does not tell.
        file: holds the recording.
        start: the recording's first byte in ``file``.
        size: its bytes; ``None`` takes the rest of the file.
    """

    id: str
    source: str
    language: str
    text: str
    group: str
    speaker: str | None
    file: Path
    start: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """The recording as it is stored: MP3, Ogg Vorbis or WAV."""
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            return stream.read() if self.size is None else stream.read(self.size)
