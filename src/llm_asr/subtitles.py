"""Writes transcripts as text, JSON, SubRip and WebVTT."""

import html
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from .processing.writing import count_columns, joint, split_units


# Usual limits of subtitles, in columns. Wide East Asian characters take two columns.
LINE_COLUMNS = 42
LINES_PER_CUE = 2

# A cue ends after this duration, or before a pause of this length, both in seconds.
CUE_SECONDS = 7.0
CUE_PAUSE = 0.8


def format_timestamp(milliseconds: int, decimal_marker: str = ".") -> str:
    """Format a time as `hh:mm:ss.mmm` for SubRip and WebVTT."""
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{decimal_marker}{milliseconds % 1000:03d}"


def join_words(words: Iterable[dict]) -> list[dict]:
    """
    Join words, or characters of scripts without spaces, to cues.

    Args:
        words (`Iterable[dict]`): `{"text": str, "timestamp": (start, end)}` in seconds, in order.

    Returns:
        `list[dict]`: Cues of the same form. A cue has at most two lines of 42 columns and 7 s, unless a single word is longer.
    """
    cues: list[dict] = []
    for word in words:
        start, end = word["timestamp"]
        if cues:
            cue = cues[-1]
            cue_start, cue_end = cue["timestamp"]
            text = cue["text"] + joint(cue["text"], word["text"]) + word["text"]
            fits = len(break_lines(text)) <= LINES_PER_CUE and end - cue_start <= CUE_SECONDS
            if fits and start - cue_end <= CUE_PAUSE:
                cues[-1] = {"text": text, "timestamp": (cue_start, end)}
                continue
        cues.append({"text": word["text"], "timestamp": (start, end)})
    return cues


def break_lines(text: str) -> list[str]:
    """
    Break a text into lines of at most 42 columns. Lines break between words or, in scripts without spaces, between characters.
    Only a word that is longer than a line is broken inside.
    """
    lines = [""]
    for space, unit in _spaced_units(text):
        for piece in _pieces(unit):
            if count_columns(lines[-1] + space + piece) <= LINE_COLUMNS or not lines[-1]:
                lines[-1] += (space if lines[-1] else "") + piece
            else:
                lines.append(piece)
            space = ""
    return lines if lines[0] else []


def _spaced_units(text: str) -> Iterator[tuple[str, str]]:
    """Yield the units of a text, each with the space before it."""
    # Players would read "-->" in a text as the times of a cue.
    for word in text.replace("-->", "→").split():
        for index, unit in enumerate(split_units(word)):
            yield " " if index == 0 else "", unit


def _pieces(unit: str) -> list[str]:
    """Split a unit into parts that fit on a line. Marks stay with their letters."""
    pieces = [""]
    for char in unit:
        if count_columns(pieces[-1] + char) > LINE_COLUMNS:
            pieces.append("")
        pieces[-1] += char
    return pieces


def split_cues(chunk: dict) -> list[tuple[int, int, list[str]]]:
    """
    Split a chunk into cues of at most two lines. Each cue gets time in proportion to its columns.

    Args:
        chunk (`dict`): `{"text": str, "timestamp": (start, end)}` in seconds.

    Returns:
        `list[tuple[int, int, list[str]]]`: Start and end in milliseconds, and lines. A cue lasts at least a millisecond.
        WebVTT forbids shorter cues, and players would not show them.
    """
    lines = break_lines(chunk["text"])
    start, end = (round(1000 * time) for time in chunk["timestamp"])
    groups = [lines[first : first + LINES_PER_CUE] for first in range(0, len(lines), LINES_PER_CUE)]
    end = max(end, start + len(groups))
    columns = [sum(map(count_columns, group)) for group in groups]
    cues: list[tuple[int, int, list[str]]] = []
    shown = 0
    for number, (group, width) in enumerate(zip(groups, columns, strict=True)):
        begin = cues[-1][1] if cues else start
        shown += width
        # Reserve a millisecond for each of the following cues.
        latest = end - (len(groups) - 1 - number)
        until = start + round((end - start) * shown / max(sum(columns), 1))
        cues.append((begin, min(max(until, begin + 1), latest), group))
    return cues


def _cues(chunks: Iterable[dict], decimal_marker: str, escape: Callable[[str], str] = str) -> list[str]:
    cues = []
    for chunk in chunks:
        for start, end, lines in split_cues(chunk):
            times = (format_timestamp(time, decimal_marker) for time in (start, end))
            cues.append("\n".join([" --> ".join(times), *map(escape, lines), ""]))
    return cues


def to_text(result: dict) -> str:
    """The transcript on one line."""
    return result["text"] + "\n"


def to_json(result: dict) -> str:
    """The complete result as JSON."""
    return json.dumps(result, ensure_ascii=False, indent=1) + "\n"


def to_srt(result: dict) -> str:
    """SubRip subtitles of `result["chunks"]`."""
    return "\n".join(f"{number}\n{cue}" for number, cue in enumerate(_cues(result["chunks"], ","), start=1))


def to_vtt(result: dict) -> str:
    """WebVTT subtitles of `result["chunks"]`."""
    # Escape the text, because `<` would start a tag.
    return "\n".join(["WEBVTT\n", *_cues(result["chunks"], ".", partial(html.escape, quote=False))])


WRITERS = {"txt": to_text, "json": to_json, "srt": to_srt, "vtt": to_vtt}
