"""Transcripts as text, JSON, SubRip and WebVTT."""

import html
import json
import textwrap
from collections.abc import Callable, Iterable
from functools import partial


# As subtitles are set, in characters.
LINE_LENGTH = 42
LINES_PER_CUE = 2

# Words go on one cue for so long, and until a pause of so long, both in seconds.
CUE_SECONDS = 7.0
CUE_PAUSE = 0.8


def format_timestamp(seconds: float, decimal_marker: str = ".") -> str:
    """`hh:mm:ss.mmm`, the way SubRip and WebVTT write times."""
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{decimal_marker}{milliseconds % 1000:03d}"


def join_words(words: Iterable[dict]) -> list[dict]:
    """
    Words gathered to cues.

    Args:
        words (`Iterable[dict]`): `{"text": str, "timestamp": (start, end)}` in seconds, in order.

    Returns:
        `list[dict]`: Of the same form, none longer than two lines of 42 characters and 7 s unless a single word is.
    """
    cues: list[dict] = []
    for word in words:
        start, end = word["timestamp"]
        if cues:
            cue = cues[-1]
            cue_start, cue_end = cue["timestamp"]
            text = f"{cue['text']} {word['text']}"
            fits = len(_lines(text)) <= LINES_PER_CUE and end - cue_start <= CUE_SECONDS
            if fits and start - cue_end <= CUE_PAUSE:
                cues[-1] = {"text": text, "timestamp": (cue_start, end)}
                continue
        cues.append({"text": word["text"], "timestamp": (start, end)})
    return cues


def _lines(text: str) -> list[str]:
    # A blank line would end the cue, and an arrow would be taken for its times.
    return textwrap.wrap(" ".join(text.split()).replace("-->", "→"), LINE_LENGTH)


def _cues(chunks: Iterable[dict], decimal_marker: str, escape: Callable[[str], str] = str) -> list[str]:
    cues = []
    for chunk in chunks:
        start, end = chunk["timestamp"]
        # A cue that ends when it starts is never shown, and WebVTT forbids it.
        times = (format_timestamp(time, decimal_marker) for time in (start, max(end, start + 0.001)))
        if lines := _lines(chunk["text"]):
            cues.append("\n".join([" --> ".join(times), *map(escape, lines), ""]))
    return cues


def to_text(result: dict) -> str:
    """The transcript, on one line."""
    return result["text"] + "\n"


def to_json(result: dict) -> str:
    """All that is known."""
    return json.dumps(result, ensure_ascii=False, indent=1) + "\n"


def to_srt(result: dict) -> str:
    """SubRip, of `result["chunks"]`."""
    return "\n".join(f"{number}\n{cue}" for number, cue in enumerate(_cues(result["chunks"], ","), start=1))


def to_vtt(result: dict) -> str:
    """WebVTT, of `result["chunks"]`."""
    # A `<` would begin a tag.
    return "\n".join(["WEBVTT\n", *_cues(result["chunks"], ".", partial(html.escape, quote=False))])


WRITERS = {"txt": to_text, "json": to_json, "srt": to_srt, "vtt": to_vtt}
