"""A recording and its text, as they are stored in a package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Clip:
    """One recording of a package, before anything is checked.

    Attributes:
        id: unique in the whole corpus. It begins with the source's name.
        source: key of :data:`.packages.SOURCES`.
        language: ISO 639-1 code.
        text: the spoken text, in the package's spelling.
        group: a dialogue, a level or a sequence of sentences. All clips of a group are in the same split.
        speaker: a role or a person, unique in the whole corpus. ``None`` if the package does not name the speaker.
        file: the file that contains the recording.
        start: offset of the recording in ``file``, in bytes.
        size: size of the recording in bytes. ``None`` means the rest of the file.
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
        """Read the recording in its stored format: MP3, Ogg Vorbis or WAV."""
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            return stream.read() if self.size is None else stream.read(self.size)
