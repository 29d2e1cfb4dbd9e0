"""Finds the frames of a recording with speech, block by block."""

from collections import deque
from importlib.util import find_spec
from pathlib import Path

import numpy as np


# Duration of a frame: Silero's model needs 512 samples at 16 kHz.
FRAME_SECONDS = 0.032

# A lower level is silence in any recording.
SILENCE_DB = -60.0


def frame_levels(frames: np.ndarray) -> np.ndarray:
    """Levels of frames of shape `(num_frames, frame_length)`, in decibels relative to full scale: shape `(num_frames,)`."""
    return 10 * np.log10(np.square(frames, dtype=np.float64).mean(axis=1) + 1e-12)


class EnergyActivity:
    """
    Detects speech by its loudness. The noise floor and the speech level are the 5th and the 95th percentile of the levels in
    the last half minute. By default a frame is speech if its level is more than 30 % of the way from the noise floor to the
    speech level.

    If the two levels are close together, noise and speech cannot be distinguished. Everything above -60 dB then counts as
    speech, so that no speech is lost.

    Args:
        sampling_rate (`int`): Samples per second.
        threshold (`float`, *optional*, defaults to 0.5): From 0 to 1; with a higher one, speech must be louder. It is 60 % of
            this part of the way from the noise floor to the speech level.
    """

    # Speech is quieter at its edges than at its loudest, so a threshold of 1 is not the speech level itself.
    SCALE = 0.6

    # The window must be as long as the longest segment. Otherwise the percentiles would follow the loudness of one segment.
    WINDOW_SECONDS = 30.0
    # Largest difference of speech and its own pauses. A lower floor comes from digital silence or a silent room.
    MAX_CONTRAST_DB = 50.0
    MIN_CONTRAST_DB = 6.0

    def __init__(self, sampling_rate: int, threshold: float = 0.5):
        self.part = self.SCALE * threshold
        self.levels: deque[float] = deque(maxlen=int(self.WINDOW_SECONDS / FRAME_SECONDS))

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """
        Find the frames with speech.

        Args:
            frames (`np.ndarray` of shape `(num_frames, frame_length)`): Consecutive frames of samples.

        Returns:
            `np.ndarray` of shape `(num_frames,)`, bool: True for speech.
        """
        levels = frame_levels(frames)
        self.levels.extend(levels)
        floor, speech = np.percentile(self.levels, (5, 95))
        floor = max(floor, speech - self.MAX_CONTRAST_DB)
        threshold = floor + self.part * (speech - floor) if speech - floor > self.MIN_CONTRAST_DB else SILENCE_DB
        return levels > max(threshold, SILENCE_DB)


class SileroActivity:
    """
    Detects speech with Silero's neural network (https://github.com/snakers4/silero-vad). Its package contains the weights.

    Args:
        sampling_rate (`int`): Samples per second. It must be 16000.
        threshold (`float`, *optional*, defaults to 0.5): Probability of speech, from 0 to 1, above which a frame is speech.

    Raises:
        `ImportError`: If the package is not installed.
        `ValueError`: If the sampling rate is not 16000.
    """

    def __init__(self, sampling_rate: int, threshold: float = 0.5):
        if sampling_rate != 16000:
            raise ValueError(f"`vad='silero'` works at 16000 samples per second, got {sampling_rate}; use 'energy'.")
        package = find_spec("silero_vad")
        if package is None or package.submodule_search_locations is None:
            raise ImportError("`vad='silero'` needs a package that is not installed: `pip install \"llm-asr[vad]\"`.")
        # Importing PyTorch is slow, and the command line needs the names of `VOICE_ACTIVITIES` without delay.
        import torch

        # Importing the package would set the number of threads of the whole process to one.
        self.model = torch.jit.load(Path(package.submodule_search_locations[0]) / "data/silero_vad.jit", "cpu").eval()
        self.model.reset_states()
        self.sampling_rate = sampling_rate
        self.threshold = threshold

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """See [`EnergyActivity.__call__`]."""
        import torch

        # Keep the number of threads: changing it would affect all threads of a server.
        with torch.no_grad():
            probabilities = [self.model(frame[None], self.sampling_rate).item() for frame in torch.from_numpy(frames)]
        return np.array(probabilities) > self.threshold


VOICE_ACTIVITIES: dict[str, type[EnergyActivity] | type[SileroActivity]] = {
    "energy": EnergyActivity,
    "silero": SileroActivity,
}


def open_voice_activity(name: str, sampling_rate: int, threshold: float = 0.5) -> EnergyActivity | SileroActivity:
    """
    Open the voice activity detection `name`, one of `VOICE_ACTIVITIES`, for one recording.

    Raises:
        `ValueError`: If there is none of this name, it does not support `sampling_rate`, or `threshold` is not from 0 to 1.
        `ImportError`: If it needs a package that is not installed.
    """
    if name not in VOICE_ACTIVITIES:
        raise ValueError(f"`vad` must be one of {sorted(VOICE_ACTIVITIES)}, got {name!r}.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` must be from 0 to 1, got {threshold}.")
    return VOICE_ACTIVITIES[name](sampling_rate, threshold)


__all__ = [
    "FRAME_SECONDS",
    "VOICE_ACTIVITIES",
    "EnergyActivity",
    "SileroActivity",
    "frame_levels",
    "open_voice_activity",
]
