"""The registry of families of speech encoders. The rest of the package uses the families through this module."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .batch_numbers import FrameNumbers
from .chunked_attention import AttentionChunks
from .conformer_families import GraniteSpeechFamily, ParakeetFamily, SeamlessFamily, Wav2Vec2BertFamily
from .speech_encoder import TIME_DIMS, SpeechEncoder, keep_own_blocks
from .waveform_families import MoonshineFamily, Wav2Vec2Family
from .whisper_family import GlmAsrFamily, PooledWhisperFamily, Qwen3AsrFamily, VoxtralFamily, WhisperFamily


# A new family is a class in a file of its own, and one entry here. Configurations that this version of Transformers does
# not know never get here.
SPEECH_ENCODERS: list[SpeechEncoder] = [
    WhisperFamily(),
    VoxtralFamily(),
    PooledWhisperFamily(),
    GlmAsrFamily(),
    Qwen3AsrFamily(),
    Wav2Vec2Family(),
    MoonshineFamily(),
    Wav2Vec2BertFamily(),
    SeamlessFamily(),
    ParakeetFamily(),
    GraniteSpeechFamily(),
]


def find_speech_encoder(config: PreTrainedConfig) -> SpeechEncoder:
    """
    The family of a speech encoder, or of a whole model that contains one.

    Args:
        config (`PreTrainedConfig`): Configuration of a checkpoint.

    Raises:
        `ValueError`: If no family of `SPEECH_ENCODERS` has its `model_type`.
    """
    for family in SPEECH_ENCODERS:
        if config.model_type in family.model_types or config.model_type in family.checkpoints:
            return family
    names = sorted(name for family in SPEECH_ENCODERS for name in (*family.model_types, *family.checkpoints))
    raise ValueError(f"`audio` has model_type {config.model_type!r}; supported speech encoders are {names}.")


def describe_speech_encoder(config: PreTrainedConfig, feature_extractor) -> dict:
    """
    What a processor has to know of a speech encoder.

    Args:
        config (`PreTrainedConfig`): Configuration of a checkpoint.
        feature_extractor ([`SequenceFeatureExtractor`]): Of the checkpoint.

    Returns:
        `dict`: Arguments of [`LlmAsrProcessor`].

    Raises:
        `ValueError`: If the family, or an option of the encoder, is not supported.
    """
    family = find_speech_encoder(config)
    audio_config = family.find_config(config)
    family.check(audio_config)
    return {
        "feature_layout": family.feature_layout,
        "samples_per_feature": family.count_samples_per_feature(audio_config, feature_extractor),
        "samples_per_frame": family.count_samples_per_frame(audio_config, feature_extractor),
        "min_audio_samples": family.count_min_samples(audio_config, feature_extractor),
        "max_audio_samples": family.count_max_samples(audio_config, feature_extractor),
    }


def check_audio_config(audio_config: PreTrainedConfig) -> None:
    """
    Check that a speech encoder can be built from its configuration.

    Raises:
        `ValueError`: If the family, or an option of the encoder, is not supported.
    """
    family = find_speech_encoder(audio_config)
    if audio_config.model_type not in family.model_types:
        raise ValueError(
            f"`audio_config` is that of a whole model, {audio_config.model_type!r}; pass its "
            f"`{family.checkpoints[audio_config.model_type]}`."
        )
    family.check(audio_config)


def build_audio_tower(audio_config: PreTrainedConfig) -> PreTrainedModel:
    """
    Build a speech encoder with the architecture of `audio_config`, with random weights.

    Raises:
        `ValueError`: If the family, or an option of the encoder, is not supported.
    """
    check_audio_config(audio_config)
    return keep_own_blocks(find_speech_encoder(audio_config).build(audio_config))


def load_audio_tower(audio: str, config: PreTrainedConfig, **kwargs) -> PreTrainedModel:
    """
    The pretrained speech encoder of a checkpoint, without a decoder, a head or a language model.

    Args:
        audio (`str`): Local folder or Hub id.
        config (`PreTrainedConfig`): Configuration of the checkpoint.
        kwargs: Passed on to `from_pretrained`.

    Raises:
        `ValueError`: If the family, or an option of the encoder, is not supported, or weights are missing.
    """
    family = find_speech_encoder(config)
    family.check(family.find_config(config))
    return keep_own_blocks(family.load(audio, config, **kwargs))


def take_audio_tower(encoder: PreTrainedModel) -> PreTrainedModel:
    """
    The speech encoder of this package with the weights of an encoder of Transformers, which it shares.

    Args:
        encoder (`PreTrainedModel`): A part of a model that is not used further.

    Raises:
        `ValueError`: If the family, or an option of the encoder, is not supported.
    """
    check_audio_config(encoder.config)
    if isinstance(encoder, find_speech_encoder(encoder.config).find_class(encoder.config)):
        return keep_own_blocks(encoder)
    tower = build_audio_tower(encoder.config)
    tower.load_state_dict(encoder.state_dict(), assign=True)
    return tower


def run_audio_tower(
    audio_tower: PreTrainedModel,
    input_features: torch.Tensor,
    input_features_mask: torch.Tensor,
    frame_numbers: FrameNumbers,
    padding: str,
    chunks: AttentionChunks | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Encode a padded batch of features with an encoder of any family.

    Args:
        audio_tower (`PreTrainedModel`): From [`build_audio_tower`] or [`load_audio_tower`].
        input_features (`torch.Tensor`): In the layout of the family.
        input_features_mask (`torch.Tensor` of shape `(num_recordings, num_feature_frames)`): Non-zero for real frames, or
            samples where the features are waveforms.
        frame_numbers ([`FrameNumbers`]): Of the mask.
        padding (`str`): `encoder_padding` of [`LlmAsrConfig`].
        chunks ([`AttentionChunks`], *optional*): Chunks of attention. Every frame attends to all frames if absent.

    Returns:
        `tuple(torch.Tensor)`: Hidden states of shape `(num_recordings, num_frames, audio_hidden_size)` and a boolean mask
        of shape `(num_recordings, num_frames)`.

    Raises:
        `ValueError`: If a recording is longer than the encoder takes, or too short for a frame.
    """
    family = find_speech_encoder(audio_tower.config)
    fewest = family.count_min_features(audio_tower.config)
    short = [row for row, length in enumerate(frame_numbers.lengths) if length < fewest]
    if short:
        raise ValueError(
            f"`input_features_mask` leaves recording(s) {short} less than the {fewest} frames or samples of which the speech "
            "encoder makes one frame; remove them."
        )
    if chunks is not None:
        kwargs["chunks"] = chunks
    if family.reads_frame_numbers:
        kwargs["frame_numbers"] = frame_numbers
    return family.run(audio_tower, input_features, input_features_mask, padding, **kwargs)


def count_encoded_frames(audio_config: PreTrainedConfig, features: FrameNumbers) -> FrameNumbers | None:
    """The numbers of the frames that an encoder makes of features, if its family can tell without running it."""
    family = find_speech_encoder(audio_config)
    lengths = [family.count_frames(length) for length in features.lengths]
    extent = family.count_frames(features.extent)
    known = [length for length in lengths if length is not None]
    if extent is None or len(known) < len(lengths):
        return None
    return FrameNumbers(known, extent, features.comes_first)


@contextmanager
def record_outputs(audio_tower: PreTrainedModel) -> Iterator[dict[str, Any]]:
    """
    Record what the encoder returns beside its last hidden states, while the context is open.

    Yields:
        `dict`: `"hidden_states"` and `"attentions"`, filled in when the encoder has run. They are `None` if the encoder runs
        recordings of different lengths one after the other.
    """
    recorded: dict[str, Any] = {"hidden_states": None, "attentions": None}
    outputs = []
    hook = audio_tower.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    try:
        yield recorded
    finally:
        hook.remove()
    if len(outputs) == 1:
        recorded.update({name: outputs[0].get(name) for name in recorded})


def feature_time_dim(audio_config: PreTrainedConfig) -> int:
    """The time dimension of a batch of features."""
    return TIME_DIMS[find_speech_encoder(audio_config).feature_layout]


__all__ = [
    "SPEECH_ENCODERS",
    "build_audio_tower",
    "check_audio_config",
    "count_encoded_frames",
    "describe_speech_encoder",
    "feature_time_dim",
    "find_speech_encoder",
    "load_audio_tower",
    "record_outputs",
    "run_audio_tower",
    "take_audio_tower",
]
