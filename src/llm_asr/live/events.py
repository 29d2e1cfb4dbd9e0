"""What a live transcription reports."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LiveWord:
    """
    A word, or a character in scripts without spaces.

    Attributes:
        text (`str`): The word without white space.
        start, end (`float`, *optional*): Times in seconds from the start of the stream. `None` without CIF, which gives the
            times of words.
    """

    text: str
    start: float | None
    end: float | None


@dataclass(frozen=True)
class LiveSegment:
    """
    A finished segment of speech.

    Attributes:
        start, end (`float`): Times in seconds from the start of the stream.
        text (`str`): The transcript that `generate` gives for the segment.
        language (`str`, *optional*): English name of the language, given by the caller or named by the model.
        words (`tuple[LiveWord, ...]`): All words of the segment.
    """

    start: float
    end: float
    text: str
    language: str | None
    words: tuple[LiveWord, ...]


@dataclass(frozen=True)
class LiveEvent:
    """
    A change of the transcript.

    Attributes:
        committed (`str`): New text with the white space before it. The `committed` of all events, joined without a
            separator, is the transcript so far. It is never taken back.
        words (`tuple[LiveWord, ...]`): The words of `committed`.
        partial (`str`): The text that follows the committed text for now. The next event replaces it.
        language (`str`, *optional*): English name of the language of the segment, given by the caller or named by the model.
        heard (`float`): Seconds of audio from the start of the stream that the event rests on.
        segment ([`LiveSegment`], *optional*): The segment that this event finishes.
    """

    committed: str
    words: tuple[LiveWord, ...]
    partial: str
    language: str | None
    heard: float
    segment: LiveSegment | None = None


__all__ = ["LiveEvent", "LiveSegment", "LiveWord"]
