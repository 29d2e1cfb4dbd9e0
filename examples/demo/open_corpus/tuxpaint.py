"""Reads the recordings of Tux Paint's stamps: people describe a picture in a few words.

``NAME_desc_LL.ogg`` is the recording in the language ``LL``; ``NAME.txt`` has a line ``LL.utf8=text``
for each language. Its first line is the English text. The files do not name the speakers. There is about one for each language.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from .clips import Clip


LETTERS = "alphabets"
"""The folder of stamps of letters. The recordings say names of letters, but the texts do not."""


def read_texts(file: Path) -> dict[str, str]:
    """Return the texts of a stamp by language."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return {
        code.removesuffix(".utf8"): text
        for code, separator, text in (line.partition("=") for line in lines[1:])
        if separator and code.endswith(".utf8")
    }


def read_clips(folder: Path, languages: Sequence[str]) -> Iterator[Clip]:
    """Yield the recordings of ``languages`` below ``folder`` whose text is known. A sound that occurs twice is used once."""
    for language in languages:
        heard = set()
        for sound in sorted(folder.rglob(f"*_desc_{language}.ogg")):
            stamp = sound.with_name(sound.name.removesuffix(f"_desc_{language}.ogg"))
            texts = stamp.with_name(f"{stamp.name}.txt")
            data = sound.read_bytes()
            text = read_texts(texts).get(language) if texts.is_file() else None
            if text is None or data in heard or LETTERS in stamp.parts:
                continue
            heard.add(data)
            yield Clip(
                id=f"tuxpaint-{language}-{'-'.join(stamp.relative_to(folder).parts)}",
                source="tuxpaint",
                language=language,
                text=text,
                group=stamp.parent.relative_to(folder).as_posix(),
                speaker=None,
                file=sound,
            )
