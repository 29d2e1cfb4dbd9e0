"""Splits speech at pauses while it is spoken."""

import numpy as np

from ..processing.segmentation import Segment, SplittingRules, next_segment
from ..processing.voice_activity import frame_levels, open_voice_activity


# Frames of voice activity detection that are analysed together: 128 ms.
FRAMES_PER_BLOCK = 4


class LiveSegmenter:
    """
    Splits a stream by the rules of [`split_at_silences`], but decides after every block of 128 ms. Voice activity therefore
    rests on what was heard so far, and segments may differ from those of a file.

    It keeps the samples of the unfinished segment alone.

    Args:
        sampling_rate (`int`): Samples per second.
        max_segment_s, min_silence_s, vad: See [`split_at_silences`].
        lead_s (`float`, *optional*): See [`SplittingRules`].
        threshold (`float`, *optional*, defaults to 0.5): Threshold of the voice activity detection, from 0 to 1.
        start (`int`, *optional*, defaults to 0): Number of the first sample.

    Attributes:
        block_length (`int`): Samples in a block.

    Raises:
        `ValueError`, `ImportError`: See [`split_at_silences`].
    """

    def __init__(
        self,
        sampling_rate: int,
        max_segment_s: float,
        min_silence_s: float,
        vad: str,
        lead_s: float | None = None,
        threshold: float = 0.5,
        start: int = 0,
    ):
        self.rules = SplittingRules(sampling_rate, max_segment_s, min_silence_s, lead_s)
        self.block_length = FRAMES_PER_BLOCK * self.rules.frame_length
        self._find_speech = open_voice_activity(vad, sampling_rate, threshold)
        self._start = start
        self._was_cut = False
        self._samples = np.empty(0, np.float32)
        self._speech, self._levels = np.empty(0, dtype=bool), np.empty(0)

    @property
    def end(self) -> int:
        """Number of the first sample that was not heard yet."""
        return self._start + len(self._samples)

    @property
    def open_start(self) -> int | None:
        """Number of the first sample of the unfinished segment. `None` while there is silence."""
        # Beside a cut, even a short sound is part of speech.
        if self._speech.sum() < (1 if self._was_cut else self.rules.speech):
            return None
        first = max(0, int(self._speech.argmax()) - self.rules.lead)
        return self._start + first * self.rules.frame_length

    @property
    def speech_end(self) -> int:
        """Number of the first sample after the last frame with speech, or of the first sample in memory without speech."""
        spoken = np.flatnonzero(self._speech)
        return self._start + (int(spoken[-1]) + 1 if len(spoken) else 0) * self.rules.frame_length

    def open_segment(self) -> Segment:
        """The unfinished segment so far, up to the longest; `open_start` must not be `None`."""
        assert self.open_start is not None
        first = self.open_start - self._start
        return self._segment(first, min(first + self.rules.longest * self.rules.frame_length, len(self._samples)))

    def hear(self, samples: np.ndarray, is_last: bool = False) -> list[Segment]:
        """
        Add samples.

        Args:
            samples (`np.ndarray` of shape `(block_length,)`): A block, float32. The last one may be shorter or empty.
            is_last (`bool`, *optional*, defaults to `False`): Whether the stream ends here.

        Returns:
            `list[Segment]`: Segments that are finished now.
        """
        frames = np.pad(samples, (0, -len(samples) % self.rules.frame_length)).reshape(-1, self.rules.frame_length)
        if len(frames):
            self._samples = np.concatenate([self._samples, samples])
            self._speech = np.concatenate([self._speech, self._find_speech(frames)])
            self._levels = np.concatenate([self._levels, frame_levels(frames)])
        finished = []
        while len(self._speech):
            found = next_segment(self._speech, self._levels, is_last, self.rules)
            if found is None:
                break
            first, end, is_cut = found
            if self._speech[first:end].sum() >= (1 if self._was_cut or is_cut else self.rules.speech):
                finished.append(self._segment(first * self.rules.frame_length, end * self.rules.frame_length))
            self._forget(end)
            self._was_cut = is_cut
        return finished

    def _segment(self, first: int, end: int) -> Segment:
        rate = self.rules.sampling_rate
        # A copy, because the segment may stay in memory longer than the samples after it.
        return Segment((self._start + first) / rate, self._samples[first:end].copy(), rate)

    def _forget(self, num_frames: int) -> None:
        num_samples = min(num_frames * self.rules.frame_length, len(self._samples))
        self._start += num_samples
        self._samples = self._samples[num_samples:].copy()
        self._speech, self._levels = self._speech[num_frames:], self._levels[num_frames:]


__all__ = ["LiveSegmenter"]
