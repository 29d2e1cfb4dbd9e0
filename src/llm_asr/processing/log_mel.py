"""Whisper's log-mel features without the future: clipped below the loudest value so far, not that of the whole recording."""

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperFeatureExtractor


# What the clipping of log-mel values is relative to.
LOG_MEL_MAXIMA = ("recording", "running")

# Of Whisper's feature extractor: smallest power, and the range of base-10 logarithms below the maximum.
MIN_POWER, DYNAMIC_RANGE = 1e-10, 8.0


def check_log_mel_maximum(log_mel_maximum: str, feature_extractor) -> None:
    """Raise a `ValueError` if `log_mel_maximum` of [`LlmAsrProcessor`] is unknown, or does not fit the feature extractor."""
    if log_mel_maximum not in LOG_MEL_MAXIMA:
        raise ValueError(f"`log_mel_maximum` must be one of {list(LOG_MEL_MAXIMA)}, got {log_mel_maximum!r}.")
    if log_mel_maximum == "recording":
        return
    if not isinstance(feature_extractor, WhisperFeatureExtractor):
        raise ValueError(
            "`log_mel_maximum='running'` is for Whisper's feature extractor, and this one is a "
            f"{type(feature_extractor).__name__}; use 'recording'."
        )
    if feature_extractor.dither:
        raise ValueError("`log_mel_maximum='running'` has no dither; set `dither` of the feature extractor to zero.")


class StreamingLogMel:
    """
    Whisper's log-mel features of a stream. Values are clipped to 8 below the largest base-10 logarithm up to their own frame.
    Frame `t` needs the 12.5 ms of samples after `t * 10 ms`.

    Spectra are computed in float64, so that a frame does not depend on the frames that are computed with it.

    Args:
        feature_extractor ([`WhisperFeatureExtractor`]): Its sizes and mel filters.
    """

    def __init__(self, feature_extractor: WhisperFeatureExtractor):
        self.hop_length, self.n_fft = feature_extractor.hop_length, feature_extractor.n_fft
        self._filters = torch.from_numpy(np.asarray(feature_extractor.mel_filters, dtype=np.float64))
        self._window = torch.hann_window(self.n_fft, dtype=torch.float64)
        # Samples from half a window before the next frame on. The first half window is mirrored.
        self._samples = torch.zeros(0, dtype=torch.float64)
        self._has_begun = False
        self._num_samples = self._num_frames = 0
        self._maximum = torch.tensor(-torch.inf, dtype=torch.float64)

    def push(self, samples: np.ndarray, is_last: bool = False) -> torch.Tensor:
        """
        Args:
            samples (`np.ndarray` of shape `(num_samples,)`): The next samples, float32, at the feature extractor's rate. There
                may be none.
            is_last (`bool`, *optional*, defaults to `False`): Whether they are the last ones. Silence follows them.

        Returns:
            `torch.FloatTensor` of shape `(num_mel_bins, num_frames)`: The frames that are complete now.
        """
        half = self.n_fft // 2
        # A copy: the caller may use its memory again.
        self._samples = torch.cat([self._samples, torch.tensor(samples, dtype=torch.float64)])
        self._num_samples += len(samples)
        num_frames = -(-self._num_samples // self.hop_length) - self._num_frames
        if is_last:
            self._samples = torch.nn.functional.pad(self._samples, (0, self.n_fft))
        if not self._has_begun:
            if len(self._samples) <= half:
                return torch.zeros(self._filters.shape[1], 0)
            self._samples = torch.cat([self._samples[1 : half + 1].flip(0), self._samples])
            self._has_begun = True
        if not is_last:
            num_frames = max(0, (len(self._samples) - self.n_fft) // self.hop_length + 1)
        if not num_frames:
            return torch.zeros(self._filters.shape[1], 0)
        frames = self._samples.unfold(0, self.n_fft, self.hop_length)[:num_frames]
        self._samples = self._samples[num_frames * self.hop_length :].clone()
        self._num_frames += num_frames
        power = torch.fft.rfft(frames * self._window).abs().square() @ self._filters
        log_mel = power.clamp(min=MIN_POWER).log10()
        maxima = torch.maximum(log_mel.amax(-1), self._maximum).cummax(0).values
        self._maximum = maxima[-1]
        log_mel = torch.maximum(log_mel, maxima[:, None] - DYNAMIC_RANGE)
        return ((log_mel + 4.0) / 4.0).T.float()


def extract_running_log_mel(
    feature_extractor: WhisperFeatureExtractor, waveforms: list[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    [`StreamingLogMel`] of whole recordings.

    Returns:
        `tuple(torch.Tensor)`: Features of shape `(num_recordings, num_mel_bins, num_frames)`, zero in padding, and a mask of
        shape `(num_recordings, num_frames)`, int64.
    """
    rows = [StreamingLogMel(feature_extractor).push(waveform, is_last=True).T for waveform in waveforms]
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return pad_sequence(rows, batch_first=True).transpose(1, 2), mask.long()


__all__ = ["LOG_MEL_MAXIMA", "StreamingLogMel", "check_log_mel_maximum", "extract_running_log_mel"]
