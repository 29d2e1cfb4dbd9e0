"""Conformer encoders that stack or subsample mel frames."""

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .speech_encoder import SpeechEncoder, run_by_length


class Wav2Vec2BertFamily(SpeechEncoder):
    """Wav2Vec2-BERT. Its own mask hides padding from attention and from convolutions."""

    model_types = ("wav2vec2-bert",)
    optional_weights = ("masked_spec_embed",)

    def check(self, audio_config: PreTrainedConfig) -> None:
        if audio_config.add_adapter:
            raise ValueError(
                "`audio_config` has `add_adapter=True`, whose convolutions read padding; set it to False, the projector "
                "downsamples."
            )

    def run(
        self, tower: PreTrainedModel, features: torch.Tensor, mask: torch.Tensor, padding: str, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_states = tower(features, attention_mask=mask, **kwargs).last_hidden_state
        return hidden_states, mask.to(hidden_states.device).bool()

    def count_samples_per_feature(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        # A mel frame is 10 ms, and the feature extractor stacks `stride` mel frames.
        return feature_extractor.sampling_rate // 100 * feature_extractor.stride

    def count_samples_per_frame(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        return self.count_samples_per_feature(audio_config, feature_extractor)


class ParakeetFamily(SpeechEncoder):
    """Parakeet's FastConformer. Its own mask hides padding from attention and from convolutions."""

    model_types = ("parakeet_encoder",)
    checkpoints = {
        "parakeet_ctc": "encoder_config",
        "parakeet_rnnt": "encoder_config",
        "parakeet_tdt": "encoder_config",
    }

    def run(
        self, tower: PreTrainedModel, features: torch.Tensor, mask: torch.Tensor, padding: str, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = tower(features, attention_mask=mask, **kwargs)
        return outputs.last_hidden_state, outputs.attention_mask.to(outputs.last_hidden_state.device).bool()

    def count_samples_per_frame(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        return feature_extractor.hop_length * audio_config.subsampling_factor

    def count_max_samples(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        return audio_config.max_position_embeddings * self.count_samples_per_frame(audio_config, feature_extractor)


class SeamlessFamily(SpeechEncoder):
    """
    The speech encoder of SeamlessM4T v2. The convolutions of its adapter read padding, so that with an adapter, which the
    published checkpoints have, recordings of equal length are encoded together and without padding.
    """

    model_types = ("seamless_m4t_v2",)
    weight_prefix = r"speech_encoder\."

    def find_class(self, audio_config: PreTrainedConfig) -> type[PreTrainedModel]:
        # Import it here, because the import is slow.
        from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder

        return SeamlessM4Tv2SpeechEncoder

    def run(
        self, tower: PreTrainedModel, features: torch.Tensor, mask: torch.Tensor, padding: str, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if tower.config.add_adapter:
            return run_by_length(lambda rows: tower(rows, **kwargs).last_hidden_state, features, mask, time_dim=1)
        hidden_states = tower(features, attention_mask=mask, **kwargs).last_hidden_state
        return hidden_states, mask.to(hidden_states.device).bool()

    def count_samples_per_feature(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        # A mel frame is 10 ms, and the feature extractor stacks `stride` mel frames.
        return feature_extractor.sampling_rate // 100 * feature_extractor.stride

    def count_samples_per_frame(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        num_features = audio_config.adaptor_stride**audio_config.num_adapter_layers if audio_config.add_adapter else 1
        return num_features * self.count_samples_per_feature(audio_config, feature_extractor)


class GraniteSpeechFamily(SpeechEncoder):
    """
    Granite Speech's Conformer. It has no mask, so that recordings of equal length are encoded together and without padding.
    """

    model_types = ("granite_speech_encoder",)
    checkpoints = {"granite_speech": "encoder_config"}
    weight_prefix = r"(model\.)?encoder\."

    def find_class(self, audio_config: PreTrainedConfig) -> type[PreTrainedModel]:
        # Import it here, because the import is slow.
        from transformers.models.granite_speech.modeling_granite_speech import GraniteSpeechCTCEncoder

        return GraniteSpeechCTCEncoder

    def run(
        self, tower: PreTrainedModel, features: torch.Tensor, mask: torch.Tensor, padding: str, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return run_by_length(lambda rows: tower(rows, **kwargs).last_hidden_state, features, mask, time_dim=1)

    def count_samples_per_feature(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        # The feature extractor stacks two mel frames.
        return 2 * feature_extractor.melspec_kwargs["hop_length"]

    def count_samples_per_frame(self, audio_config: PreTrainedConfig, feature_extractor) -> int:
        return self.count_samples_per_feature(audio_config, feature_extractor)


__all__ = ["GraniteSpeechFamily", "ParakeetFamily", "SeamlessFamily", "Wav2Vec2BertFamily"]
