"""Reads the recordings of Festival's Russian voice: one man reads literary sentences.

``etc/txt.done.data`` has a line for each recording of ``wav/``: ``( ru_0001 "text." )``. A ``+`` precedes a
stressed vowel. A comma marks each pause of the reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .clips import Clip


LINE = re.compile(r'^\(\s*(\S+)\s+"(.*)"\s*\)\s*$', re.MULTILINE)

SENTENCES_TOGETHER = 20
"""Number of consecutive sentences in a group, because these belong to one story."""


def read_clips(folder: Path) -> Iterator[Clip]:
    """Yield the recordings that have both sound and text in ``folder``."""
    lines = LINE.findall((folder / "etc" / "txt.done.data").read_text(encoding="utf-8"))
    for index, (name, text) in enumerate(lines):
        sound = folder / "wav" / f"{name}.wav"
        if sound.is_file():
            yield Clip(
                id=f"festvox-{name}",
                source="festvox-ru",
                language="ru",
                text=text.replace("+", ""),
                group=f"sentences-{index // SENTENCES_TOGETHER:03d}",
                speaker="festvox-ru-msu",
                file=sound,
            )
