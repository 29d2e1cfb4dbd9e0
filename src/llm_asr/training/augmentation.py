"""Augmentation of recordings. It differs between epochs and is the same in a resumed run."""

import zlib
from collections.abc import MutableMapping, Sequence

import numpy as np
import torch

from ..processing.processing_llm_asr import LlmAsrProcessor
from ..processing.waveforms import resample


class SpecAugment:
    """
    Masks random spans of time and of frequency in features (Park et al. 2019, https://arxiv.org/abs/1904.08779).

    The defaults are the paper's, except for `max_time_share`. Its default comes from the paper's policies for telephone
    speech, because two masks of one second each would cover most of a short utterance. There is no time warping, which helped
    least in the paper. Masked features get the mean of the recording. The paper uses zero, which is the mean of its features
    but not of Whisper's.

    Args:
        processor ([`LlmAsrProcessor`]):
            The processor that computes the features. It gives their layout, their rate and the number of mel frames that are
            stacked into one.
        num_time_masks (`int`, *optional*, defaults to 2):
            Number of time masks in a recording. They may overlap.
        max_time_seconds (`float`, *optional*, defaults to 1.0):
            Longest time mask in seconds.
        max_time_share (`float`, *optional*, defaults to 0.2):
            Longest time mask as a share of the recording. The smaller of the two limits applies.
        num_frequency_masks (`int`, *optional*, defaults to 2):
            Number of frequency masks in a recording. They may overlap.
        max_frequency_share (`float`, *optional*, defaults to 0.3375):
            Widest frequency mask as a share of the mel bins. The default is 27 of 80.
        on_hidden_states (`bool`, *optional*, defaults to `False`):
            Whether to mask saved hidden states of the speech encoder instead of features. Channels take the place of mel
            bins, as in wav2vec 2.0 (https://arxiv.org/abs/2006.11477, appendix B).
    """

    def __init__(
        self,
        processor: LlmAsrProcessor,
        num_time_masks: int = 2,
        max_time_seconds: float = 1.0,
        max_time_share: float = 0.2,
        num_frequency_masks: int = 2,
        max_frequency_share: float = 0.3375,
        on_hidden_states: bool = False,
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
        self.on_hidden_states = on_hidden_states
        if processor.feature_layout == "waveform" and not on_hidden_states:
            raise ValueError(
                "SpecAugment masks mel features, but the speech encoder of `processor` takes waveforms; use speed perturbation "
                "instead."
            )
        self.is_time_last = processor.feature_layout == "mel_first" and not on_hidden_states
        self.num_mel_bins = None if on_hidden_states else processor.feature_extractor.feature_size
        samples_per_position = processor.samples_per_frame if on_hidden_states else processor.samples_per_feature
        self.max_time_frames = int(max_time_seconds * processor.sampling_rate / samples_per_position)

    @property
    def num_draws(self) -> int:
        """Number of random numbers for one recording."""
        return 2 * (self.num_time_masks + self.num_frequency_masks)

    def __call__(
        self, input_features: torch.Tensor, input_features_mask: torch.Tensor, draws: torch.Tensor
    ) -> torch.Tensor:
        """
        Mask the features of a batch.

        Args:
            input_features (`torch.Tensor`): Features of shape `(num_recordings, num_mel_bins, num_frames)` or
                `(num_recordings, num_frames, num_stacked * num_mel_bins)`, depending on the processor's `feature_layout`; or
                hidden states of shape `(num_recordings, num_frames, hidden_size)`.
            input_features_mask (`torch.Tensor` of shape `(num_recordings, num_frames)`): Non-zero for real frames. Padding
                must be at the end.
            draws (`torch.Tensor` of shape `(num_recordings, num_draws)`): Uniform random numbers in [0, 1). Each row
                determines the masks of one recording.

        Returns:
            `torch.Tensor`: Masked features of the same shape. Padding does not change.
        """
        features = input_features if self.is_time_last else input_features.transpose(1, 2)
        real = input_features_mask.bool()
        num_frames = real.sum(1)
        num_bins = features.shape[1] if self.num_mel_bins is None else self.num_mel_bins
        num_stacked = features.shape[1] // num_bins
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
        hidden_bins = hidden_bins.repeat(1, num_stacked)
        hidden = (hidden_frames[:, None, :] | hidden_bins[:, :, None]) & real[:, None]
        features = torch.where(hidden, mean[:, None, None], features)
        return features if self.is_time_last else features.transpose(1, 2)


def _spans(
    widths: torch.Tensor, offsets: torch.Tensor, widest: torch.Tensor, sizes: torch.Tensor, num_positions: int
) -> torch.Tensor:
    """
    Place spans at random positions.

    Args:
        widths, offsets (`torch.Tensor` of shape `(num_recordings, num_spans)`): Uniform random numbers in [0, 1).
        widest (`torch.LongTensor` of shape `(num_recordings,)`): Largest width, inclusive.
        sizes (`torch.LongTensor` of shape `(num_recordings,)`): Number of positions that spans may cover.
        num_positions (`int`): Number of all positions.

    Returns:
        `torch.BoolTensor` of shape `(num_recordings, num_positions)`: True inside a span.
    """
    widths = (widths * (widest[:, None] + 1)).long()
    starts = (offsets * (sizes[:, None] - widths + 1)).long()
    positions = torch.arange(num_positions, device=widths.device)
    inside = (positions >= starts[..., None]) & (positions < (starts + widths)[..., None])
    return inside.any(1)


class SpeedPerturbation:
    """
    Changes the speed, and with it the pitch, of a recording (Ko et al. 2015,
    https://www.isca-archive.org/interspeech_2015/ko15_interspeech.html).

    Args:
        factors (`Sequence[float]`, *optional*, defaults to `(0.9, 1.0, 1.1)`):
            Speeds, all equally likely. A factor multiplies the duration of a recording by `1 / factor`.
    """

    def __init__(self, factors: Sequence[float] = (0.9, 1.0, 1.1)):
        if not factors or not all(0 < factor < float("inf") for factor in factors):
            raise ValueError(f"`factors` must be one or more positive speeds, got {factors!r}.")
        self.factors = tuple(factors)

    def __call__(
        self, waveform: np.ndarray, draw: float, min_samples: int = 1, max_samples: int | None = None
    ) -> np.ndarray:
        """
        Change the speed of a recording.

        Args:
            waveform (`np.ndarray` of shape `(num_samples,)`): The recording.
            draw (`float`): Uniform random number in [0, 1).
            min_samples, max_samples (`int`, *optional*): Bounds of the resulting length. Factors that would violate them are
                not drawn. Without any possible factor, the recording does not change.

        Returns:
            `np.ndarray` of shape `(num_samples / factor,)`.
        """
        factors = [
            factor
            for factor in self.factors
            # The resampler may round up or down.
            if len(waveform) // factor >= min_samples
            and (max_samples is None or np.ceil(len(waveform) / factor) <= max_samples)
        ]
        return resample(waveform, factors[int(draw * len(factors))], 1.0) if factors else waveform


class Augmentation:
    """
    Draws the random numbers of [`SpeedPerturbation`] and [`SpecAugment`] for each row.

    The random numbers depend only on seed, epoch and row. A row therefore gets the same augmentation in any batch, process or
    worker of the data loader, and in a resumed run. A row that occurs several times in an epoch gets the same augmentation
    each time.

    Args:
        speed_perturbation ([`SpeedPerturbation`], *optional*): Augmentation of waveforms.
        spec_augment ([`SpecAugment`], *optional*): Augmentation of features.
        seed (`int`, *optional*, defaults to 0): Seed of all random numbers.
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
        # Persistent workers of the data loader have copies of this object. Shared memory tells them the new epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of all following draws. Call this before iterating over the epoch's data loader."""
        self._epoch.fill_(epoch)

    def perturb(
        self, waveform: np.ndarray, key: str, min_samples: int = 1, max_samples: int | None = None
    ) -> np.ndarray:
        """
        Change the speed of a recording.

        Args:
            waveform (`np.ndarray` of shape `(num_samples,)`): The recording.
            key (`str`): Unique key of its row.
            min_samples, max_samples (`int`, *optional*): Bounds of the resulting length.

        Returns:
            `np.ndarray` of shape `(num_perturbed_samples,)`.
        """
        if self.speed_perturbation is None:
            return waveform
        return self.speed_perturbation(waveform, self._draw("speed", key, 1).item(), min_samples, max_samples)

    def mask(self, batch: MutableMapping[str, torch.Tensor], keys: Sequence[str]) -> None:
        """
        Mask `input_features` or `audio_hidden_states` of a batch.

        Args:
            batch (`MutableMapping[str, torch.Tensor]`): A batch with `input_features` and `input_features_mask`, or with
                `audio_hidden_states` and `audio_hidden_states_mask`.
            keys (`Sequence[str]` of length `num_recordings`): Unique key of each row.
        """
        if self.spec_augment is None:
            return
        draws = torch.stack([self._draw("mask", key, self.spec_augment.num_draws) for key in keys])
        name = "audio_hidden_states" if self.spec_augment.on_hidden_states else "input_features"
        batch[name] = self.spec_augment(batch[name], batch[f"{name}_mask"], draws)

    def _draw(self, purpose: str, key: str, num_draws: int) -> torch.Tensor:
        entropy = [self.seed, int(self._epoch), zlib.crc32(f"{purpose} {key}".encode())]
        # Keep float64: rounding to float32 could give 1.
        return torch.from_numpy(np.random.default_rng(entropy).random(num_draws))


__all__ = ["Augmentation", "SpecAugment", "SpeedPerturbation"]
