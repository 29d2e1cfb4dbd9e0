"""Tux Paint's stamps: people say in a few words what a picture shows.

``NAME_desc_LL.ogg`` is the recording in the language ``LL``; ``NAME.txt`` has the text in all, a line ``LL.utf8=text``
each, and in English in its first line. Who speaks is not written there; it is about one person a language.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from .clips import Clip


LETTERS = "alphabets"
"""The folder of stamps of letters, whose names are said and not written."""


def read_texts(file: Path) -> dict[str, str]:
    """The texts of a stamp by language."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return {
        code.removesuffix(".utf8"): text
        for code, separator, text in (line.partition("=") for line in lines[1:])
        if separator and code.endswith(".utf8")
    }


def read_clips(folder: Path, languages: Sequence[str]) -> Iterator[Clip]:
    """The recordings of ``languages`` in ``folder`` and below whose text is known; a sound that occurs twice comes once."""
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
