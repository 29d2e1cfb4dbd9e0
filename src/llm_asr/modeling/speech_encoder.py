"""The interface of a family of speech encoders, with defaults that suit most families."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from .chunked_attention import AttentionChunks
from .weight_checks import check_nothing_missing


# Layouts of a batch of features.
WAVEFORM = "waveform"  # (num_recordings, num_samples)
TIME_FIRST = "time_first"  # (num_recordings, num_feature_frames, feature_size)
MEL_FIRST = "mel_first"  # (num_recordings, num_mel_bins, num_feature_frames)
TIME_DIMS = {WAVEFORM: 1, TIME_FIRST: 1, MEL_FIRST: 2}


class SpeechEncoder:
    """
    One family of speech encoders. A subclass is entered in `SPEECH_ENCODERS` of `speech_encoders.py`.

    Attributes:
        model_types (`tuple[str]`): Values of `model_type` of the encoder's configuration.
        checkpoints (`Mapping[str, str]`): For each `model_type` of a whole model that contains the encoder, the field of its
            configuration that holds the encoder's.
        weight_prefix (`str`): Regular expression of what precedes the encoder's tensors in a checkpoint of a whole model.
            Empty where the encoder's own class finds them.
        optional_weights (`tuple[str]`): Tensors that a checkpoint may lack. They are zero then.
        feature_layout (`str`): Layout of the features: `"waveform"`, `"time_first"` or `"mel_first"`.
        paddings (`tuple[str]`): Values of `encoder_padding` of [`LlmAsrConfig`] that the family supports.
        attentions (`tuple[str]`): Values of `encoder_attention` of [`LlmAsrConfig`] that the family supports. With `"chunked"`,
            `run` takes an argument `chunks`, and the family has `open_stream` and `encode_stream`.
        reads_frame_numbers (`bool`): Whether `run` takes an argument `frame_numbers`, the [`FrameNumbers`] of the mask.
    """

    model_types: tuple[str, ...] = ()
    checkpoints: Mapping[str, str] = {}
    weight_prefix: str = ""
    optional_weights: tuple[str, ...] = ()
    feature_layout: str = TIME_FIRST
    paddings: tuple[str, ...] = ("longest",)
    attentions: tuple[str, ...] = ("full",)
    reads_frame_numbers = False

    def find_config(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Return the encoder's configuration from a checkpoint's configuration."""
        field = self.checkpoints.get(config.model_type)
        return config if field is None else getattr(config, field)

    def check(self, audio_config: PreTrainedConfig) -> None:
        """Raise a `ValueError` if an option of the encoder is not supported."""

    def find_class(self, audio_config: PreTrainedConfig) -> type[PreTrainedModel]:
        """The encoder's class."""
        model_class: Any = MODEL_MAPPING[type(audio_config)]
        return model_class

    def build(self, audio_config: PreTrainedConfig) -> PreTrainedModel:
        """An encoder with random weights."""
        return self.find_class(audio_config)(audio_config)

    def load(self, audio: str, config: PreTrainedConfig, **kwargs) -> PreTrainedModel:
        """
        The pretrained encoder of a checkpoint, which may hold more than the encoder.

        Args:
            audio (`str`): Local folder or Hub id.
            config (`PreTrainedConfig`): Configuration of the checkpoint.
            kwargs: Passed on to `from_pretrained`.

        Raises:
            `ValueError`: If weights are missing.
        """
        audio_config = self.find_config(config)
        if self.weight_prefix:
            kwargs["key_mapping"] = {f"^{self.weight_prefix}": ""}
        loaded: Any = self.find_class(audio_config).from_pretrained(
            audio, config=audio_config, output_loading_info=True, **kwargs
        )
        tower, info = loaded
        missing = set(info["missing_keys"])
        check_nothing_missing(missing - set(self.optional_weights), audio)
        for name in missing & set(self.optional_weights):
            nn.init.zeros_(tower.get_parameter(name))
        return tower

    def run(
        self, tower: PreTrainedModel, features: torch.Tensor, mask: torch.Tensor, padding: str, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Encode a padded batch. What a recording becomes must not depend on the batch.

        Args:
            tower (`PreTrainedModel`): From `build` or `load`.
            features (`torch.Tensor`): In `feature_layout`.
            mask (`torch.Tensor` of shape `(num_recordings, num_feature_frames)`): Non-zero for real frames, or samples.
            padding (`str`): One of `paddings`.

        Returns:
            `tuple(torch.Tensor)`: Hidden states of shape `(num_recordings, num_frames, audio_hidden_size)` and a boolean
            mask of shape `(num_recordings, num_frames)`.
        """
        raise NotImplementedError

    def open_stream(self, tower: PreTrainedModel, chunks: AttentionChunks) -> Any:
        """What `encode_stream` keeps of one stream."""
        raise NotImplementedError

    def encode_stream(
        self, tower: PreTrainedModel, states: list, features: list[torch.Tensor], is_last: list[bool]
    ) -> list[torch.Tensor]:
        """
        Encode the next features of several streams.

        Args:
            tower (`PreTrainedModel`): From `build` or `load`.
            states (`list`): One from `open_stream` for each stream.
            features (`list[torch.Tensor]`): For each stream, without a dimension of recordings. There may be none.
            is_last (`list[bool]`): Whether they are the last of their stream.

        Returns:
            `list[torch.Tensor]`: For each stream, new hidden states of shape `(num_frames, audio_hidden_size)`. Over all calls
            they are what `run` gives with the same chunks.
        """
        raise NotImplementedError

    def count_samples_per_feature(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        """Samples from one frame of the features to the next."""
        return feature_extractor.hop_length

    def count_samples_per_frame(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        """Samples from one output frame of the encoder to the next."""
        raise NotImplementedError

    def count_min_samples(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        """Samples of the shortest recording that the encoder accepts."""
        return self.count_samples_per_frame(audio_config, feature_extractor)

    def count_min_features(self, audio_config: PreTrainedConfig) -> int:
        """Feature frames, or samples of a waveform, that the encoder needs for its first frame."""
        return 1

    def count_frames(self, num_features: int) -> int | None:
        """Output frames of that many feature frames, which come first in their row; `None` if the family does not tell."""
        return None

    def count_max_samples(self, audio_config: PreTrainedConfig, feature_extractor) -> int | None:
        """Samples of the longest recording that the encoder accepts; unlimited if `None`."""
        return None


def run_by_length(
    encode: Callable[[torch.Tensor], torch.Tensor], features: torch.Tensor, mask: torch.Tensor, time_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Encode recordings of equal length together and without padding: exact for every encoder, also for one that has no mask or
    normalises over time.

    Args:
        encode (`Callable`): From features without padding to hidden states `(num_recordings, num_frames, hidden_size)`.
        features (`torch.Tensor`): Padded features.
        mask (`torch.Tensor` of shape `(num_recordings, num_feature_frames)`): Non-zero for real frames, which come first.
        time_dim (`int`): Dimension of `features` that is time.

    Returns:
        `tuple(torch.Tensor)`: Hidden states of shape `(num_recordings, num_frames, hidden_size)` and a boolean mask.
    """
    lengths = (mask != 0).sum(-1)
    rows: list[torch.Tensor] = [torch.empty(0)] * len(lengths)
    for length in lengths.unique().tolist():
        indices = (lengths == length).nonzero().flatten()
        encoded = encode(features[indices.to(features.device)].narrow(time_dim, 0, length))
        for index, row in zip(indices.tolist(), encoded, strict=True):
            rows[index] = row
    num_frames = torch.tensor([len(row) for row in rows], device=rows[0].device)
    hidden_states = pad_sequence(rows, batch_first=True)
    return hidden_states, torch.arange(hidden_states.shape[1], device=hidden_states.device) < num_frames[:, None]


def keep_own_blocks(tower: PreTrainedModel) -> PreTrainedModel:
    """
    Name among the modules that sharding must not split those that the encoder has. Transformers names a family's decoder
    layers, too, and sharding refuses names of absent modules.
    """
    found = {type(module).__name__ for module in tower.modules()}
    tower._no_split_modules = sorted(found & set(tower._no_split_modules or ()))
    return tower


__all__ = ["MEL_FIRST", "TIME_DIMS", "TIME_FIRST", "WAVEFORM", "SpeechEncoder", "keep_own_blocks", "run_by_length"]
