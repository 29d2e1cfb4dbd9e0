"""Splits a long recording at silences while it is read."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from .audio import AudioStream
from .voice_activity import FRAME_SECONDS, frame_levels, open_voice_activity


# Samples are analysed in blocks of this length, so that segments do not depend on the sizes in which samples are read.
BLOCK_SECONDS = 10.0

# Silence to keep on either side of a segment, if it is long enough.
PADDING_SECONDS = 0.2

# Shorter isolated sounds are clicks.
MIN_SPEECH_SECONDS = 0.1

# Shortest rest after a cut. Speech encoders refuse recordings that are shorter than one of their frames.
MIN_REST_SECONDS = 0.4


@dataclass
class Segment:
    """
    A part of a recording.

    Attributes:
        start (`float`): Start of the segment, in seconds from the start of the recording.
        waveform (`np.ndarray` of shape `(num_samples,)`): Samples, float32.
        sampling_rate (`int`): Samples per second.
    """

    start: float
    waveform: np.ndarray
    sampling_rate: int

    @property
    def end(self) -> float:
        """End of the segment, in seconds from the start of the recording."""
        return self.start + len(self.waveform) / self.sampling_rate


def split_at_silences(
    blocks: Iterable[np.ndarray],
    sampling_rate: int,
    max_segment_s: float = 30.0,
    min_silence_s: float = 0.5,
    vad: str = "energy",
) -> Iterator[Segment]:
    """
    Split a recording into segments with speech.

    A silence of `min_silence_s` ends a segment. If a segment reaches `max_segment_s`, it is cut in the middle of the longest
    silence in its second half, or at the quietest place there. Such cuts neither drop nor repeat samples. Only one segment and
    a few more seconds are kept in memory.

    Args:
        blocks (`Iterable[np.ndarray]`): Consecutive samples, float32 arrays of shape `(num_samples,)`.
        sampling_rate (`int`): Samples per second.
        max_segment_s (`float`, *optional*, defaults to 30.0): Longest segment in seconds.
        min_silence_s (`float`, *optional*, defaults to 0.5): Shortest silence in seconds that always separates segments.
        vad (`str`, *optional*, defaults to `"energy"`): Voice activity detection: `"energy"`, or `"silero"`, a neural network
            for recordings with noise or music.

    Returns:
        `Iterator[Segment]`: Segments in order, without overlap. A recording without speech has none.

    Raises:
        `ValueError`: If an argument has an invalid value.
        `ImportError`: If `vad` needs a package that is not installed.
    """
    rules = SplittingRules(sampling_rate, max_segment_s, min_silence_s)
    return _split(blocks, rules, open_voice_activity(vad, sampling_rate))


def read_segments(
    stream: AudioStream,
    sampling_rate: int,
    max_segment_s: float | None = 30.0,
    min_silence_s: float = 0.5,
    vad: str = "energy",
) -> Iterator[Segment]:
    """
    Read the segments of a recording. A recording whose duration is known and at most `max_segment_s` is one segment. Any other
    recording is split at silences while it is read.

    Args:
        stream ([`AudioStream`]): The recording. Nothing may have been read from it.
        sampling_rate (`int`): Samples per second of the stream.
        max_segment_s (`float`, *optional*, defaults to 30.0): Longest segment in seconds. `None` disables splitting.
        min_silence_s, vad: See [`split_at_silences`].

    Returns:
        `Iterator[Segment]`: Segments in order. A recording without speech has none.

    Raises:
        `ValueError`, `ImportError`: See [`split_at_silences`] and [`stream_audio`]. If possible, they are raised before the
            first segment.
    """
    if max_segment_s is None or (stream.duration is not None and stream.duration <= max_segment_s):
        waveform = np.concatenate([np.empty(0, np.float32), *stream.blocks])
        # The speech encoder decides whether it accepts a recording that is too short for voice activity detection.
        is_short = len(waveform) < MIN_SPEECH_SECONDS * sampling_rate
        if is_short or any(split_at_silences([waveform], sampling_rate, min_silence_s=min_silence_s, vad=vad)):
            yield Segment(start=0.0, waveform=waveform, sampling_rate=sampling_rate)
        return
    # Read the first block now, so that an unusable recording raises its error here.
    first = list(itertools.islice(stream.blocks, 1))
    yield from split_at_silences(
        itertools.chain(first, stream.blocks), sampling_rate, max_segment_s, min_silence_s, vad
    )


@dataclass
class SplittingRules:
    """
    The rules of splitting, in frames.

    Args:
        sampling_rate (`int`): Samples per second.
        max_segment_s (`float`): Longest segment in seconds.
        min_silence_s (`float`): Shortest silence in seconds that always separates segments.
        lead_s (`float`, *optional*): Silence in seconds that a segment keeps before its speech. Defaults to 0.2, or half of
            `min_silence_s` if that is less, as much as it keeps after its speech.

    Raises:
        `ValueError`: If an argument has an invalid value.
    """

    sampling_rate: int
    max_segment_s: float
    min_silence_s: float
    lead_s: float | None = None

    def __post_init__(self):
        if not self.sampling_rate * FRAME_SECONDS >= 1:
            raise ValueError(f"`sampling_rate` must be positive and no lower than 32, got {self.sampling_rate}.")
        if not self.min_silence_s > 0:
            raise ValueError(f"`min_silence_s` must be positive, got {self.min_silence_s}.")
        if not 1.0 <= self.max_segment_s < math.inf:
            raise ValueError(f"The longest segment must be finite and last at least 1 s, got {self.max_segment_s}.")
        if self.max_segment_s <= self.min_silence_s:
            raise ValueError(
                f"The longest segment must be longer than `min_silence_s`, got {self.max_segment_s} and "
                f"{self.min_silence_s}."
            )
        self.frame_length = round(FRAME_SECONDS * self.sampling_rate)
        if self.lead_s is not None and not 0 <= self.lead_s < self.max_segment_s / 2:
            raise ValueError(
                f"`lead_s` must not be negative, and must be less than half of the longest segment, got {self.lead_s}."
            )
        seconds = self.frame_length / self.sampling_rate
        self.block = int(BLOCK_SECONDS / seconds)
        self.longest = int(self.max_segment_s / seconds)
        self.silence = max(1, round(self.min_silence_s / seconds))
        self.speech = round(MIN_SPEECH_SECONDS / seconds)
        self.rest = min(round(MIN_REST_SECONDS / seconds), self.longest // 2 - 1)
        # The segments on both sides of a silence share it.
        self.padding = max(1, min(round(PADDING_SECONDS / seconds), self.silence // 2))
        self.lead = self.padding if self.lead_s is None else round(self.lead_s / seconds)


def _split(blocks: Iterable[np.ndarray], rules: SplittingRules, find_speech) -> Iterator[Segment]:
    samples = np.empty(0, dtype=np.float32)
    speech, levels = np.empty(0, dtype=bool), np.empty(0)
    start, was_cut = 0, False
    for block, is_last in _reblock(blocks, rules.block * rules.frame_length):
        frames = np.pad(block, (0, -len(block) % rules.frame_length)).reshape(-1, rules.frame_length)
        samples = np.concatenate([samples, block])
        speech = np.concatenate([speech, find_speech(frames)])
        levels = np.concatenate([levels, frame_levels(frames)])
        while len(speech):
            found = next_segment(speech, levels, is_last, rules)
            if found is None:
                break
            first, end, is_cut = found
            waveform = samples[first * rules.frame_length : end * rules.frame_length]
            # Beside a cut, even a short sound is part of speech.
            if speech[first:end].sum() >= (1 if was_cut or is_cut else rules.speech):
                yield Segment(
                    (start + first * rules.frame_length) / rules.sampling_rate, waveform, rules.sampling_rate
                )
            start += end * rules.frame_length
            samples = samples[end * rules.frame_length :]
            speech, levels, was_cut = speech[end:], levels[end:], is_cut


def _reblock(blocks: Iterable[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield blocks of `size` samples, and whether each is the last one, which may be shorter."""
    held = np.empty(0, dtype=np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        # Keep one block back, because it may be the last one.
        while len(held) > size:
            yield held[:size], False
            held = held[size:]
    if len(held):
        yield held, True


def next_segment(
    speech: np.ndarray, levels: np.ndarray, is_last: bool, rules: SplittingRules
) -> tuple[int, int, bool] | None:
    """
    Find the next segment: its first frame and its end in frames, and whether it ends with a cut. Frames before it are silence.
    `None` if more of the recording must be read first.
    """
    spoken = np.flatnonzero(speech)
    if not len(spoken):
        # Everything is silence. Keep its end, which may become the padding of the next segment.
        end = len(speech) if is_last else len(speech) - rules.lead
        return (end, end, False) if end > 0 else None
    first = max(0, int(spoken[0]) - rules.lead)
    # A silence is a gap between frames with speech. A silence at the end may continue in the next block.
    gaps = np.flatnonzero(np.diff(spoken) > rules.silence)
    last = int(spoken[gaps[0]] if len(gaps) else spoken[-1])
    if last - first >= rules.longest:
        end = first + rules.longest
        if len(speech) < end + rules.rest and not is_last:
            return None
        # The rest after the cut must be long enough for the speech encoder.
        return first, _best_cut(speech, levels, first + rules.longest // 2, min(end, len(speech) - rules.rest)), True
    if len(gaps) or is_last or len(speech) - 1 - last >= rules.silence:
        return first, min(last + 1 + rules.padding, first + rules.longest, len(speech)), False
    return None


def _best_cut(speech: np.ndarray, levels: np.ndarray, low: int, high: int) -> int:
    """The middle of the longest silence from frame `low` to `high`. Without a silence, the quietest place."""
    silent = np.flatnonzero(~speech[low:high])
    if len(silent):
        runs = np.split(silent, np.flatnonzero(np.diff(silent) > 1) + 1)
        longest = max(runs, key=len)
        return low + int(longest[len(longest) // 2])
    # Average over three frames, because a single frame inside a word may be quiet.
    smooth = np.convolve(levels[low - 1 : high + 1], np.ones(3) / 3, mode="valid")
    return low + int(smooth.argmin())


__all__ = ["Segment", "SplittingRules", "next_segment", "read_segments", "split_at_silences"]
