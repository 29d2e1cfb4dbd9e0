"""The Russian voice of Festival: one man reads literary sentences.

``etc/txt.done.data`` has a line for each recording of ``wav/``: ``( ru_0001 "text." )``. A ``+`` stands before a
stressed vowel, and a comma wherever the reader pauses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .clips import Clip


LINE = re.compile(r'^\(\s*(\S+)\s+"(.*)"\s*\)\s*$', re.MULTILINE)

SENTENCES_TOGETHER = 20
"""Sentences follow one another in a story; so many stay on one side of a split."""


def read_clips(folder: Path) -> Iterator[Clip]:
    """The recordings that ``folder`` has both sound and text of."""
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
