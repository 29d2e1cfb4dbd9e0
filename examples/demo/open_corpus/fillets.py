"""Reads the recordings of Fish Fillets (Czech, Dutch): acted dialogue of two fish and other characters.

A level's ``dialogs_LL.lua`` names its lines (``dialogId``), and ``sound/<level>/**/LL/<line>.ogg`` is the recording.
The font of a line tells its role.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .clips import Clip


STRING = r'"((?:[^"\\]|\\.)*)"'
LINE = re.compile(
    rf"^\s*dialogId\(\s*{STRING}\s*,\s*{STRING}\s*,\s*{STRING}\s*\)\s*dialogStr\(\s*{STRING}\s*\)", re.MULTILINE
)


def read_lines(script: str) -> Iterator[tuple[str, str, str]]:
    """Yield the name, the role and the text of each line of a ``dialogs_LL.lua``."""
    for name, font, _, text in LINE.findall(script):
        yield name, font.removeprefix("font_"), re.sub(r"\\(.)", r"\1", text.replace(r"\n", " "))


def read_clips(scripts: Path, sounds: Path, language: str) -> Iterator[Clip]:
    """Yield the recordings of one language whose text is known.

    Args:
        scripts: folder with ``<level>/*dialogs_<language>.lua``.
        sounds: folder with ``<level>/**/<language>/*.ogg``.
        language: ``"cs"`` or ``"nl"``.
    """
    source = f"fillets-{language}"
    lines: dict[str, dict[str, tuple[str, str]]] = {}
    for sound in sorted(sounds.rglob(f"{language}/*.ogg")):
        level = sound.relative_to(sounds).parts[0]
        if level not in lines:
            files = sorted((scripts / level).glob(f"*dialogs_{language}.lua"))
            read = (line for file in files for line in read_lines(file.read_text(encoding="utf-8")))
            lines[level] = {name: (role, text) for name, role, text in read}
        if sound.stem in lines[level]:
            role, text = lines[level][sound.stem]
            yield Clip(
                id=f"{source}-{level}-{sound.stem}",
                source=source,
                language=language,
                text=text,
                group=level,
                # "both" means that the two fish speak together.
                speaker=f"{source}-{role}" if role not in ("", "both") else None,
                file=sound,
            )
