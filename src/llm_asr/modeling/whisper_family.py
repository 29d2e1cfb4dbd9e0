"""Whisper, and the encoders of audio language models that were made from it."""

from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .chunked_attention import AttentionChunks
from .speech_encoder import MEL_FIRST, SpeechEncoder, run_by_length


if TYPE_CHECKING:
    from .whisper_encoder import LlmAsrWhisperEncoder


class WhisperFamily(SpeechEncoder):
    """Whisper's encoder. Padding is masked, or is silence up to the length of its window, or is what features hold there."""

    model_types: tuple[str, ...] = ("whisper",)
    weight_prefix = r"(model\.)?encoder\."
    feature_layout = MEL_FIRST
    paddings = ("longest", "max_length", "features")
    attentions: tuple[str, ...] = ("full", "chunked")
    reads_frame_numbers = True
    # Frames after the convolutions per output frame.
    num_pooled = 1

    def find_class(self, audio_config: PreTrainedConfig) -> type[PreTrainedModel]:
        # Import it here, because the import is slow.
        from .whisper_encoder import LlmAsrPooledWhisperEncoder, LlmAsrWhisperEncoder

        return LlmAsrWhisperEncoder if self.num_pooled == 1 else LlmAsrPooledWhisperEncoder

    def load(self, audio: str, config: PreTrainedConfig, **kwargs) -> PreTrainedModel:
        tower = super().load(audio, config, **kwargs)
        # Whisper never trains them, which `from_pretrained` forgets.
        tower.embed_positions.requires_grad_(False)
        return tower

    def run(
        self, tower: PreTrainedModel, features: torch.Tensor, mask: torch.Tensor, padding: str, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = tower(features, mask, padding, **kwargs)
        return outputs.last_hidden_state, outputs.attention_mask

    def open_stream(self, tower: PreTrainedModel, chunks: AttentionChunks) -> Any:
        from .streaming_whisper import StreamingEncoderState

        return StreamingEncoderState(cast("LlmAsrWhisperEncoder", tower), chunks)

    def encode_stream(
        self, tower: PreTrainedModel, states: list, features: list[torch.Tensor], is_last: list[bool]
    ) -> list[torch.Tensor]:
        from .streaming_whisper import encode_stream

        return encode_stream(cast("LlmAsrWhisperEncoder", tower), states, features, is_last)

    def count_samples_per_frame(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        return 2 * self.num_pooled * feature_extractor.hop_length

    def count_frames(self, num_features: int) -> int | None:
        return -(-num_features // 2) // self.num_pooled

    def count_min_features(self, audio_config: PreTrainedConfig) -> int:
        return 1 if self.num_pooled == 1 else 2 * self.num_pooled - 1

    def count_max_samples(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        return 2 * audio_config.max_source_positions * feature_extractor.hop_length


class VoxtralFamily(WhisperFamily):
    """Voxtral's encoder, which is Whisper's."""

    model_types = ("voxtral_encoder",)
    checkpoints = {"voxtral": "audio_config"}
    weight_prefix = r"(model\.)?audio_tower\."


class PooledWhisperFamily(WhisperFamily):
    """The encoders of Qwen2-Audio and Audio Flamingo 3: Whisper's, with a mean over two frames at its end."""

    model_types = ("qwen2_audio_encoder", "audioflamingo3_encoder")
    checkpoints = {"qwen2_audio": "audio_config", "audioflamingo3": "audio_config", "musicflamingo": "audio_config"}
    weight_prefix = r"(model\.)?audio_tower\."
    num_pooled = 2
    # Chunks would have to hold whole pairs of frames.
    attentions = ("full",)


class GlmAsrFamily(SpeechEncoder):
    """
    GLM-ASR's encoder: Whisper's convolutions, and rotary positions. It has no mask, so that recordings of equal length are
    encoded together and without padding, or whole windows are encoded with what features hold after the end of a recording.
    """

    model_types = ("glmasr_encoder",)
    checkpoints = {"glmasr": "audio_config"}
    weight_prefix = r"(model\.)?audio_tower\."
    feature_layout = MEL_FIRST
    paddings = ("longest", "features")

    def run(
        self, tower: PreTrainedModel, features: torch.Tensor, mask: torch.Tensor, padding: str, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if padding == "features":
            hidden_states = tower(features, **kwargs).last_hidden_state
            return hidden_states, mask[:, ::2].bool().to(hidden_states.device)
        return run_by_length(lambda rows: tower(rows, **kwargs).last_hidden_state, features, mask, time_dim=2)

    def count_samples_per_frame(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        return 2 * feature_extractor.hop_length

    def count_max_samples(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        return audio_config.max_position_embeddings * self.count_samples_per_frame(audio_config, feature_extractor)


class Qwen3AsrFamily(SpeechEncoder):
    """
    Qwen3-ASR's encoder. It cuts mel frames into pieces of a fixed length, and a recording's last piece is filled with zeros,
    in a batch as alone.
    """

    model_types = ("qwen3_asr_encoder",)
    checkpoints = {"qwen3_asr": "audio_config"}
    weight_prefix = r"(model\.)?audio_tower\."
    feature_layout = MEL_FIRST

    def run(
        self, tower: PreTrainedModel, features: torch.Tensor, mask: torch.Tensor, padding: str, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        piece = 2 * tower.config.n_window
        num_added = -features.shape[-1] % piece
        mask = torch.nn.functional.pad(mask, (0, num_added)).to(features.device)
        features = torch.nn.functional.pad(features, (0, num_added)).masked_fill(mask[:, None] == 0, 0.0)
        packed = tower(features, input_features_mask=mask, **kwargs).last_hidden_state
        num_frames = count_downsampled(mask.unflatten(1, (-1, piece)).sum(-1)).sum(-1)
        rows = packed.split(num_frames.tolist())
        hidden_states = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        positions = torch.arange(hidden_states.shape[1], device=packed.device)
        return hidden_states, positions < num_frames.to(packed.device)[:, None]

    def count_samples_per_frame(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        # Of 100 mel frames, 13: rounded to a whole number of samples, which differs by 0.2 per mille.
        piece = 2 * audio_config.n_window
        num_frames = int(count_downsampled(torch.tensor(piece)))
        return round(piece * feature_extractor.hop_length / num_frames)


def count_downsampled(num_mel_frames: torch.Tensor) -> torch.Tensor:
    """Number of frames after three convolutions of stride 2."""
    for _ in range(3):
        num_mel_frames = (num_mel_frames + 1) // 2
    return num_mel_frames


__all__ = ["GlmAsrFamily", "PooledWhisperFamily", "Qwen3AsrFamily", "VoxtralFamily", "WhisperFamily"]
