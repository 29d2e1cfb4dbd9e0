"""Which frames of a recording hold speech, told piece by piece."""

from collections import deque
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch


# Samples in a frame, at 16 kHz; what Silero's model works on. Other sampling rates have frames of the same duration.
FRAME_SECONDS = 0.032

# What is below is silence in any recording.
SILENCE_DB = -60.0


def frame_levels(frames: np.ndarray) -> np.ndarray:
    """Level of frames of shape `(num_frames, frame_length)`, in decibels below full scale: shape `(num_frames,)`."""
    return 10 * np.log10(np.square(frames, dtype=np.float64).mean(axis=1) + 1e-12)


class EnergyActivity:
    """
    Speech is what is loud, for a recording: a frame whose level is above 30 % of the way from the noise floor to the speech
    level, which are the 5th and the 95th percentile of the last half minute.

    Where the two are close together nothing says what is noise, and everything above -60 dB is taken for speech, so that
    none of it is lost.

    Args:
        sampling_rate (`int`): Samples per second.
    """

    # Percentiles over less than the longest segment would follow its own loudness.
    WINDOW_SECONDS = 30.0
    # Speech is no further above its own pauses than this; a floor further down is that of a silent room or file.
    MAX_CONTRAST_DB = 50.0
    MIN_CONTRAST_DB = 6.0

    def __init__(self, sampling_rate: int):
        self.levels: deque[float] = deque(maxlen=int(self.WINDOW_SECONDS / FRAME_SECONDS))

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """
        Args:
            frames (`np.ndarray` of shape `(num_frames, frame_length)`): Consecutive frames of samples.

        Returns:
            `np.ndarray` of shape `(num_frames,)`, bool.
        """
        levels = frame_levels(frames)
        self.levels.extend(levels)
        floor, speech = np.percentile(self.levels, (5, 95))
        floor = max(floor, speech - self.MAX_CONTRAST_DB)
        threshold = floor + 0.3 * (speech - floor) if speech - floor > self.MIN_CONTRAST_DB else SILENCE_DB
        return levels > max(threshold, SILENCE_DB)


class SileroActivity:
    """
    Speech by Silero's neural network (https://github.com/snakers4/silero-vad), whose package ships its weights.

    Args:
        sampling_rate (`int`): Samples per second; 16000.

    Raises:
        `ImportError`: If the package is not installed.
        `ValueError`: If the sampling rate is another.
    """

    THRESHOLD = 0.5

    def __init__(self, sampling_rate: int):
        if sampling_rate != 16000:
            raise ValueError(f"`vad='silero'` works at 16000 samples per second, got {sampling_rate}; use 'energy'.")
        package = find_spec("silero_vad")
        if package is None:
            raise ImportError("`vad='silero'` needs a package that is not installed: `pip install llm-asr[vad]`.")
        # Importing the package would set the number of threads of the whole process to one.
        self.model = torch.jit.load(Path(package.submodule_search_locations[0]) / "data/silero_vad.jit", "cpu").eval()
        self.model.reset_states()
        self.sampling_rate = sampling_rate

    @torch.no_grad()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """See [`EnergyActivity.__call__`]."""
        num_threads = torch.get_num_threads()
        # Its layers are so small that several threads only wait for each other.
        torch.set_num_threads(1)
        try:
            probabilities = [self.model(frame[None], self.sampling_rate).item() for frame in torch.from_numpy(frames)]
        finally:
            torch.set_num_threads(num_threads)
        return np.array(probabilities) > self.THRESHOLD


VOICE_ACTIVITIES = {"energy": EnergyActivity, "silero": SileroActivity}


__all__ = ["FRAME_SECONDS", "VOICE_ACTIVITIES", "EnergyActivity", "SileroActivity", "frame_levels"]
