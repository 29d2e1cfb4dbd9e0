"""Splitting a long recording at silences, while it is read."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from .audio import AudioStream
from .voice_activity import FRAME_SECONDS, VOICE_ACTIVITIES, frame_levels


# Samples are looked at in pieces of this length, however they are read, so that segments do not depend on it.
BLOCK_SECONDS = 10.0

# Silence that is kept on either side of a segment, if there is as much.
PADDING_SECONDS = 0.2

# What is shorter, and stands alone, is a click.
MIN_SPEECH_SECONDS = 0.1


@dataclass
class Segment:
    """
    A part of a recording.

    Attributes:
        start (`float`): Seconds from the start of the recording.
        waveform (`np.ndarray` of shape `(num_samples,)`): float32.
        sampling_rate (`int`): Samples per second.
    """

    start: float
    waveform: np.ndarray
    sampling_rate: int

    @property
    def end(self) -> float:
        """Seconds from the start of the recording."""
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

    A silence of `min_silence_s` ends a segment. Where none comes in time, it is cut in the middle of the longest silence of
    its second half or, without any, where that is quietest; such cuts leave out and repeat nothing. No more of the
    recording is held than a segment and a few seconds.

    Args:
        blocks (`Iterable[np.ndarray]`): Consecutive samples, float32 arrays of shape `(num_samples,)`.
        sampling_rate (`int`): Samples per second.
        max_segment_s (`float`, *optional*, defaults to 30.0): Longest segment, in seconds.
        min_silence_s (`float`, *optional*, defaults to 0.5): Shortest silence that always separates segments, in seconds.
        vad (`str`, *optional*, defaults to `"energy"`): What tells speech from silence: `"energy"`, or `"silero"`, a neural
            network, for recordings with noise or music.

    Returns:
        `Iterator[Segment]`: In order, not overlapping; none where there is no speech.

    Raises:
        `ValueError`: If an argument is impossible.
        `ImportError`: If `vad` needs a package that is not installed.
    """
    if vad not in VOICE_ACTIVITIES:
        raise ValueError(f"`vad` must be one of {sorted(VOICE_ACTIVITIES)}, got {vad!r}.")
    if not sampling_rate * FRAME_SECONDS >= 1:
        raise ValueError(f"`sampling_rate` must be positive and no lower than 32, got {sampling_rate}.")
    if not min_silence_s > 0:
        raise ValueError(f"`min_silence_s` must be positive, got {min_silence_s}.")
    if not 1.0 <= max_segment_s < math.inf:
        raise ValueError(f"The longest segment must have at least 1 s, and an end, got {max_segment_s}.")
    if max_segment_s <= min_silence_s:
        raise ValueError(
            f"The longest segment must be longer than `min_silence_s`, got {max_segment_s} and {min_silence_s}."
        )
    return _split(
        blocks, SplittingRules(sampling_rate, max_segment_s, min_silence_s), VOICE_ACTIVITIES[vad](sampling_rate)
    )


def read_segments(
    stream: AudioStream,
    sampling_rate: int,
    max_segment_s: float = 30.0,
    min_silence_s: float = 0.5,
    vad: str = "energy",
) -> Iterator[Segment]:
    """
    A recording as a whole, if it is known to be no longer than a segment may be, or split at silences while it is read.

    Args:
        stream ([`AudioStream`]): The recording, of which nothing has been read.
        sampling_rate (`int`): Samples per second of the stream.
        max_segment_s, min_silence_s, vad: See [`split_at_silences`].

    Returns:
        `Iterator[Segment]`: In order; none where a long recording has no speech.

    Raises:
        `ValueError`, `ImportError`: As [`split_at_silences`] and [`stream_audio`], before the first segment where it can be
            told.
    """
    if stream.duration is not None and stream.duration <= max_segment_s:
        waveform = np.concatenate([np.empty(0, np.float32), *stream.blocks])
        yield Segment(start=0.0, waveform=waveform, sampling_rate=sampling_rate)
        return
    # Of what is no recording the first block tells.
    first = list(itertools.islice(stream.blocks, 1))
    yield from split_at_silences(
        itertools.chain(first, stream.blocks), sampling_rate, max_segment_s, min_silence_s, vad
    )


@dataclass
class SplittingRules:
    """The rules of splitting, in frames."""

    sampling_rate: int
    max_segment_s: float
    min_silence_s: float

    def __post_init__(self):
        self.frame_length = round(FRAME_SECONDS * self.sampling_rate)
        seconds = self.frame_length / self.sampling_rate
        self.block = int(BLOCK_SECONDS / seconds)
        self.longest = int(self.max_segment_s / seconds)
        self.silence = max(1, round(self.min_silence_s / seconds))
        self.speech = round(MIN_SPEECH_SECONDS / seconds)
        # Both sides of a silence keep some of it.
        self.padding = max(1, min(round(PADDING_SECONDS / seconds), self.silence // 2))


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
            found = _next_segment(speech, levels, is_last, rules)
            if found is None:
                break
            first, end, is_cut = found
            waveform = samples[first * rules.frame_length : end * rules.frame_length]
            # Next to a cut even a short piece is part of speech.
            if speech[first:end].sum() >= (1 if was_cut or is_cut else rules.speech):
                yield Segment(
                    (start + first * rules.frame_length) / rules.sampling_rate, waveform, rules.sampling_rate
                )
            start += end * rules.frame_length
            samples = samples[end * rules.frame_length :]
            speech, levels, was_cut = speech[end:], levels[end:], is_cut


def _reblock(blocks: Iterable[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Blocks of `size` samples, and whether it is the last, which may be shorter."""
    held = np.empty(0, dtype=np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        # One is kept back: nobody knows yet whether it is the last.
        while len(held) > size:
            yield held[:size], False
            held = held[size:]
    if len(held):
        yield held, True


def _next_segment(
    speech: np.ndarray, levels: np.ndarray, is_last: bool, rules: SplittingRules
) -> tuple[int, int, bool] | None:
    """
    First and end of the next segment in frames, what precedes it being silence, and whether it is cut off there; `None` if
    more must be read.
    """
    spoken = np.flatnonzero(speech)
    if not len(spoken):
        # Silence, of which the next segment may want the end.
        end = len(speech) if is_last else len(speech) - rules.padding
        return (end, end, False) if end > 0 else None
    first = max(0, int(spoken[0]) - rules.padding)
    # A silence is a gap between spoken frames; the one at the end may go on.
    gaps = np.flatnonzero(np.diff(spoken) > rules.silence)
    last = int(spoken[gaps[0]] if len(gaps) else spoken[-1])
    if last - first >= rules.longest:
        return first, _best_cut(speech, levels, first + rules.longest // 2, first + rules.longest), True
    if len(gaps) or is_last or len(speech) - 1 - last >= rules.silence:
        return first, min(last + 1 + rules.padding, first + rules.longest, len(speech)), False
    return None


def _best_cut(speech: np.ndarray, levels: np.ndarray, low: int, high: int) -> int:
    """The middle of the longest silence between two frames, or where it is quietest."""
    silent = np.flatnonzero(~speech[low:high])
    if len(silent):
        runs = np.split(silent, np.flatnonzero(np.diff(silent) > 1) + 1)
        longest = max(runs, key=len)
        return low + int(longest[len(longest) // 2])
    # Over three frames, because a single one may be quiet within a word.
    smooth = np.convolve(levels[low - 1 : high + 1], np.ones(3) / 3, mode="valid")
    return low + int(smooth.argmin())


__all__ = ["Segment", "read_segments", "split_at_silences"]
