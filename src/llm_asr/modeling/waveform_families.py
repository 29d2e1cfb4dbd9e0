"""Encoders that take waveforms: convolutions over samples, then a Transformer."""

from collections.abc import Sequence

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .speech_encoder import WAVEFORM, SpeechEncoder, run_by_length


class Wav2Vec2Family(SpeechEncoder):
    """
    Wav2Vec2 and what was made from it.

    Where the convolutions are normalised by layer, the encoder's own mask hides padding. A group normalisation takes the
    mean over time, data2vec convolves positions several times, and the blocks of Wav2Vec2-Conformer convolve without a
    mask: there padding would change what recordings become, so that recordings of equal length are encoded together and
    without padding.
    """

    model_types = (
        "wav2vec2",
        "wav2vec2-conformer",
        "hubert",
        "wavlm",
        "unispeech",
        "unispeech-sat",
        "data2vec-audio",
    )
    # Checkpoints that were fine-tuned without masks lack it.
    optional_weights = ("masked_spec_embed",)
    feature_layout = WAVEFORM

    def check(self, audio_config: PreTrainedConfig) -> None:
        if getattr(audio_config, "add_adapter", False):
            raise ValueError(
                "`audio_config` has `add_adapter=True`, whose convolutions read padding; set it to False, the projector "
                "downsamples."
            )

    def run(
        self, tower: PreTrainedModel, features: torch.Tensor, mask: torch.Tensor, padding: str, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if reads_padding(tower.config):
            return run_by_length(
                lambda waveforms: tower(waveforms, **kwargs).last_hidden_state, features, mask, time_dim=1
            )
        hidden_states = tower(features.masked_fill(mask == 0, 0.0), attention_mask=mask, **kwargs).last_hidden_state
        num_frames = mask.sum(-1)
        for kernel_size, stride in zip(tower.config.conv_kernel, tower.config.conv_stride, strict=True):
            num_frames = (num_frames - kernel_size) // stride + 1
        positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        return hidden_states, positions < num_frames.to(hidden_states.device)[:, None]

    def count_samples_per_feature(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        return 1

    def count_samples_per_frame(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        samples = 1
        for stride in audio_config.conv_stride:
            samples *= stride
        return samples

    def count_min_features(self, audio_config: PreTrainedConfig) -> int:
        return count_receptive_samples(audio_config.conv_kernel, audio_config.conv_stride)

    def count_min_samples(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        return self.count_min_features(audio_config)


def reads_padding(audio_config: PreTrainedConfig) -> bool:
    """Whether an encoder of the family of Wav2Vec2 cannot hide padding by a mask."""
    if audio_config.model_type in ("data2vec-audio", "wav2vec2-conformer"):
        return True
    return audio_config.feat_extract_norm == "group"


def count_receptive_samples(kernel_sizes: Sequence[int], strides: Sequence[int]) -> int:
    """Receptive field, in samples, of one frame after convolutions without padding."""
    samples = 1
    for kernel_size, stride in zip(reversed(kernel_sizes), reversed(strides), strict=True):
        samples = (samples - 1) * stride + kernel_size
    return samples


class MoonshineFamily(SpeechEncoder):
    """
    Moonshine. A normalisation over all samples reads padding, so that recordings of equal length are encoded together and
    without padding.
    """

    model_types = ("moonshine",)
    weight_prefix = r"(model\.)?encoder\."
    feature_layout = WAVEFORM
    # Of the convolutions, which the configuration does not have.
    kernel_sizes = (127, 7, 3)
    strides = (64, 3, 2)

    def find_class(self, audio_config: PreTrainedConfig) -> type[PreTrainedModel]:
        # Import it here, because the import is slow.
        from transformers.models.moonshine.modeling_moonshine import MoonshineEncoder

        return MoonshineEncoder

    def run(
        self, tower: PreTrainedModel, features: torch.Tensor, mask: torch.Tensor, padding: str, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return run_by_length(
            lambda waveforms: tower(waveforms, **kwargs).last_hidden_state, features, mask, time_dim=1
        )

    def count_samples_per_feature(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        return 1

    def count_samples_per_frame(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        return self.strides[0] * self.strides[1] * self.strides[2]

    def count_min_features(self, audio_config: PreTrainedConfig) -> int:
        return count_receptive_samples(self.kernel_sizes, self.strides)

    def count_min_samples(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        return self.count_min_features(audio_config)


__all__ = ["MoonshineFamily", "Wav2Vec2Family"]
