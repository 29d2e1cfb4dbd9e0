"""Recordings altered as they are read, differently in every epoch and alike in a resumed run."""

import zlib
from collections.abc import MutableMapping, Sequence

import numpy as np
import torch
from transformers import WhisperFeatureExtractor
from transformers.feature_extraction_utils import FeatureExtractionMixin

from ..processing.audio import resample


class SpecAugment:
    """
    Masks random spans of time and of frequency in features (Park et al. 2019, https://arxiv.org/abs/1904.08779).

    The defaults are the paper's, but for `max_time_share`, which is that of its policies for telephone speech: short
    utterances would not survive two masks of a second each. Features are not warped in time, which the paper found to help
    least. Masked features take the mean of the recording, which is what the paper's zero stands for: its features have a
    mean of zero, and Whisper's do not.

    Args:
        feature_extractor (`FeatureExtractionMixin`):
            That makes the features; it tells their layout, their rate and how many frames it stacks into one.
        num_time_masks (`int`, *optional*, defaults to 2):
            Time masks of a recording; they may overlap.
        max_time_seconds (`float`, *optional*, defaults to 1.0):
            Longest time mask, in seconds.
        max_time_share (`float`, *optional*, defaults to 0.2):
            Longest time mask, as a share of the recording. The smaller of the two counts.
        num_frequency_masks (`int`, *optional*, defaults to 2):
            Frequency masks of a recording; they may overlap.
        max_frequency_share (`float`, *optional*, defaults to 0.3375):
            Widest frequency mask, as a share of the mel bins: 27 of 80.
    """

    def __init__(
        self,
        feature_extractor: FeatureExtractionMixin,
        num_time_masks: int = 2,
        max_time_seconds: float = 1.0,
        max_time_share: float = 0.2,
        num_frequency_masks: int = 2,
        max_frequency_share: float = 0.3375,
    ):
        for name, number in (("num_time_masks", num_time_masks), ("num_frequency_masks", num_frequency_masks)):
            if number < 0:
                raise ValueError(f"`{name}` must not be negative, got {number}.")
        for name, share in (("max_time_share", max_time_share), ("max_frequency_share", max_frequency_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"`{name}` must be a share in [0, 1], got {share}.")
        if not max_time_seconds >= 0:
            raise ValueError(f"`max_time_seconds` must not be negative, got {max_time_seconds}.")
        self.num_time_masks = num_time_masks
        self.max_time_share = max_time_share
        self.num_frequency_masks = num_frequency_masks
        self.max_frequency_share = max_frequency_share
        self.is_time_last = isinstance(feature_extractor, WhisperFeatureExtractor)
        self.num_stacked = getattr(feature_extractor, "stride", 1)
        sampling_rate = feature_extractor.sampling_rate
        # Those that do not tell make a frame of 10 ms.
        hop_length = getattr(feature_extractor, "hop_length", sampling_rate // 100)
        self.max_time_frames = int(max_time_seconds * sampling_rate / (hop_length * self.num_stacked))

    @property
    def num_draws(self) -> int:
        """Random numbers that a recording takes."""
        return 2 * (self.num_time_masks + self.num_frequency_masks)

    def __call__(
        self, input_features: torch.Tensor, input_features_mask: torch.Tensor, draws: torch.Tensor
    ) -> torch.Tensor:
        """
        Args:
            input_features (`torch.Tensor`): Of shape `(num_recordings, num_mel_bins, num_frames)` for Whisper, and of shape
                `(num_recordings, num_frames, num_stacked * num_mel_bins)` else.
            input_features_mask (`torch.Tensor` of shape `(num_recordings, num_frames)`): Non-zero for real frames, which
                come first.
            draws (`torch.Tensor` of shape `(num_recordings, num_draws)`): Uniform in [0, 1). What becomes of a recording
                depends on its own row alone.

        Returns:
            `torch.Tensor`: Masked features, of the same shape. Padding stays as it is.
        """
        features = input_features if self.is_time_last else input_features.transpose(1, 2)
        real = input_features_mask.bool()
        num_frames = real.sum(1)
        num_bins = features.shape[1] // self.num_stacked
        widths, offsets = draws.to(features.device).unflatten(1, (-1, 2)).unbind(2)

        longest = (self.max_time_share * num_frames).long().clamp(max=self.max_time_frames)
        time_draws = slice(None, self.num_time_masks)
        hidden_frames = _spans(widths[:, time_draws], offsets[:, time_draws], longest, num_frames, real.shape[1])
        widest = torch.full_like(num_frames, int(self.max_frequency_share * num_bins))
        frequency_draws = slice(self.num_time_masks, None)
        hidden_bins = _spans(
            widths[:, frequency_draws],
            offsets[:, frequency_draws],
            widest,
            torch.full_like(num_frames, num_bins),
            num_bins,
        )

        total = features.float().masked_fill(~real[:, None], 0.0).sum(dim=(1, 2))
        mean = (total / (num_frames.clamp(min=1) * features.shape[1])).to(features.dtype)
        hidden_bins = hidden_bins.repeat(1, self.num_stacked)
        hidden = (hidden_frames[:, None, :] | hidden_bins[:, :, None]) & real[:, None]
        features = torch.where(hidden, mean[:, None, None], features)
        return features if self.is_time_last else features.transpose(1, 2)


def _spans(
    widths: torch.Tensor, offsets: torch.Tensor, widest: torch.Tensor, sizes: torch.Tensor, num_positions: int
) -> torch.Tensor:
    """
    Args:
        widths, offsets (`torch.Tensor` of shape `(num_recordings, num_spans)`): Uniform in [0, 1).
        widest (`torch.LongTensor` of shape `(num_recordings,)`): Largest width, inclusive.
        sizes (`torch.LongTensor` of shape `(num_recordings,)`): Positions that a span may cover.
        num_positions (`int`): Positions in all.

    Returns:
        `torch.BoolTensor` of shape `(num_recordings, num_positions)`: True in a span.
    """
    widths = (widths * (widest[:, None] + 1)).long()
    starts = (offsets * (sizes[:, None] - widths + 1)).long()
    positions = torch.arange(num_positions, device=widths.device)
    inside = (positions >= starts[..., None]) & (positions < (starts + widths)[..., None])
    return inside.any(1)


class SpeedPerturbation:
    """
    Plays a recording slower or faster, which changes its pitch too (Ko et al. 2015,
    https://www.isca-archive.org/interspeech_2015/ko15_interspeech.html).

    Args:
        factors (`Sequence[float]`, *optional*, defaults to `(0.9, 1.0, 1.1)`):
            Speeds, all equally likely. A recording lasts `1 / factor` times as long.
    """

    def __init__(self, factors: Sequence[float] = (0.9, 1.0, 1.1)):
        if not factors or not all(0 < factor < float("inf") for factor in factors):
            raise ValueError(f"`factors` must be one or more positive speeds, got {factors!r}.")
        self.factors = tuple(factors)

    def __call__(
        self, waveform: np.ndarray, draw: float, min_samples: int = 1, max_samples: int | None = None
    ) -> np.ndarray:
        """
        Args:
            waveform (`np.ndarray` of shape `(num_samples,)`): The recording.
            draw (`float`): Uniform in [0, 1).
            min_samples, max_samples (`int`, *optional*): Shortest and longest recording wanted. Factors that would leave
                these bounds are not drawn; where all would, the recording stays as it is.

        Returns:
            `np.ndarray` of shape `(num_samples / factor,)`.
        """
        factors = [
            factor
            for factor in self.factors
            # A resampler may round either way.
            if len(waveform) // factor >= min_samples
            and (max_samples is None or np.ceil(len(waveform) / factor) <= max_samples)
        ]
        return resample(waveform, factors[int(draw * len(factors))], 1.0) if factors else waveform


class Augmentation:
    """
    Draws what [`SpeedPerturbation`] and [`SpecAugment`] do to each row.

    Numbers are drawn by seed, epoch and row, and from no generator's state, so that a row looks the same whichever batch,
    process or worker of the data loader it is in, and in a resumed run. A row that comes several times in an epoch looks the
    same each time.

    Args:
        speed_perturbation ([`SpeedPerturbation`], *optional*): For waveforms.
        spec_augment ([`SpecAugment`], *optional*): For features.
        seed (`int`, *optional*, defaults to 0): Of all draws.
    """

    def __init__(
        self,
        speed_perturbation: SpeedPerturbation | None = None,
        spec_augment: SpecAugment | None = None,
        seed: int = 0,
    ):
        if seed < 0:
            raise ValueError(f"`seed` must not be negative, got {seed}.")
        self.speed_perturbation = speed_perturbation
        self.spec_augment = spec_augment
        self.seed = seed
        # Workers of the data loader that live on from epoch to epoch keep their own copy of everything else.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw for epoch `epoch` from now on; to be called before the epoch's data loader is iterated."""
        self._epoch.fill_(epoch)

    def perturb(
        self, waveform: np.ndarray, key: str, min_samples: int = 1, max_samples: int | None = None
    ) -> np.ndarray:
        """
        Args:
            waveform (`np.ndarray` of shape `(num_samples,)`): A recording.
            key (`str`): What tells its row from others.
            min_samples, max_samples (`int`, *optional*): Shortest and longest recording wanted.

        Returns:
            `np.ndarray` of shape `(num_perturbed_samples,)`.
        """
        if self.speed_perturbation is None:
            return waveform
        return self.speed_perturbation(waveform, self._draw("speed", key, 1).item(), min_samples, max_samples)

    def mask(self, batch: MutableMapping[str, torch.Tensor], keys: Sequence[str]) -> None:
        """
        Mask `input_features` of a batch.

        Args:
            batch (`MutableMapping[str, torch.Tensor]`): With `input_features` and `input_features_mask`.
            keys (`Sequence[str]` of length `num_recordings`): What tells each row from others.
        """
        if self.spec_augment is None:
            return
        draws = torch.stack([self._draw("mask", key, self.spec_augment.num_draws) for key in keys])
        batch["input_features"] = self.spec_augment(batch["input_features"], batch["input_features_mask"], draws)

    def _draw(self, purpose: str, key: str, num_draws: int) -> torch.Tensor:
        entropy = [self.seed, int(self._epoch), zlib.crc32(f"{purpose} {key}".encode())]
        # Rounded to float32, a number could be 1.
        return torch.from_numpy(np.random.default_rng(entropy).random(num_draws))


__all__ = ["Augmentation", "SpecAugment", "SpeedPerturbation"]
