"""The seam to speech encoders: one way to build, and one way to run, each family."""

import torch
from torch import nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoder, sinusoids


class LlmAsrWhisperEncoder(WhisperEncoder):
    """
    Whisper's encoder at the length of the batch instead of 30 s: positions are sliced and padding is masked.

    Its parameters are those of [`WhisperEncoder`].
    """

    # Without the decoder's: sharding wraps what is named here and refuses what the model does not have.
    _no_split_modules = ["WhisperEncoderLayer"]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        # Whisper does this for the encoder as a whole, which Transformers skips in classes outside of it.
        if module is self.embed_positions:
            init.copy_(module.weight, sinusoids(*module.weight.shape))

    def forward(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor, padding: str = "longest", **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            input_features (`torch.Tensor` of shape `(num_recordings, num_mel_bins, num_mel_frames)`): Log-mel features.
            attention_mask (`torch.Tensor` of shape `(num_recordings, num_mel_frames)`): Non-zero for real mel frames.
            padding (`str`, *optional*, defaults to `"longest"`): See [`LlmAsrConfig`].

        Returns:
            `tuple(torch.Tensor)`: Hidden states of shape `(num_recordings, num_frames, d_model)` and a boolean mask.

        Raises:
            `ValueError`: If there are more mel frames than positions, after trailing padding is cut.
        """
        attention_mask = attention_mask.bool()
        # Feature extractors pad to 30 s; what no recording of the batch fills is not worth encoding.
        num_mel_frames = int(attention_mask.any(0).nonzero().max()) + 1
        max_mel_frames = 2 * self.max_source_positions
        if num_mel_frames > max_mel_frames:
            raise ValueError(
                f"`input_features` has {num_mel_frames} mel frames and the speech encoder takes {max_mel_frames}; split "
                "the recording."
            )
        attention_mask = attention_mask[:, :num_mel_frames]
        input_features = input_features[:, :, :num_mel_frames]
        if padding == "max_length":
            real = attention_mask[:, ::2]
            silent = pad_with_silence(input_features, attention_mask, max_mel_frames)
            hidden_states, _ = self(silent, attention_mask.new_ones(len(silent), max_mel_frames), **kwargs)
            return hidden_states[:, : real.shape[1]], real

        visible = attention_mask[:, None, :]
        hidden_states = input_features.masked_fill(~visible, 0.0)
        # A convolution pads its input with zeros, so that a recording's border must be zero in a batch too.
        hidden_states = nn.functional.gelu(self.conv1(hidden_states)).masked_fill(~visible, 0.0)
        hidden_states = nn.functional.gelu(self.conv2(hidden_states)).transpose(1, 2)
        attention_mask = attention_mask[:, ::2]

        hidden_states = hidden_states + self.embed_positions.weight[: hidden_states.shape[1]]
        hidden_states = nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)
        layer_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        for layer in self.layers:
            if self.training and self.layerdrop > 0.0 and torch.rand([]) < self.layerdrop:
                continue
            hidden_states = layer(hidden_states, layer_mask, **kwargs)
        return self.layer_norm(hidden_states), attention_mask


def pad_with_silence(input_features: torch.Tensor, attention_mask: torch.Tensor, num_mel_frames: int) -> torch.Tensor:
    """
    Put in the place of padding what Whisper's feature extractor makes of silence: 8 below the recording's largest base-10
    log-mel value or, at the least, the logarithm of its floor of 1e-10; both after its scaling `(x + 4) / 4`.

    Args:
        input_features (`torch.Tensor` of shape `(num_recordings, num_mel_bins, num_given_frames)`): Log-mel features.
        attention_mask (`torch.BoolTensor` of shape `(num_recordings, num_given_frames)`): True for real mel frames.
        num_mel_frames (`int`): Frames wanted.

    Returns:
        `torch.Tensor` of shape `(num_recordings, num_mel_bins, num_mel_frames)`.
    """
    visible = attention_mask[:, None, :]
    loudest = input_features.masked_fill(~visible, -torch.inf).amax(dim=(1, 2))
    silence = (loudest - 2.0).clamp(min=-1.5)[:, None, None]
    padded = silence.expand(-1, input_features.shape[1], num_mel_frames).clone()
    padded[:, :, : visible.shape[-1]] = torch.where(visible, input_features, silence)
    return padded


AUDIO_TOWERS = ("whisper", "wav2vec2-bert", "parakeet_encoder")


def check_family(audio_config: PreTrainedConfig) -> None:
    """Raise a `ValueError` if the speech encoder is not of one of `AUDIO_TOWERS`."""
    if audio_config.model_type not in AUDIO_TOWERS:
        raise ValueError(
            f"`audio_config` has model_type {audio_config.model_type!r}; supported speech encoders are "
            f"{list(AUDIO_TOWERS)}."
        )
    if audio_config.model_type == "wav2vec2-bert" and audio_config.add_adapter:
        raise ValueError(
            "`audio_config` has `add_adapter=True`, whose convolutions read padding; set it to False, the projector "
            "downsamples."
        )


def build_audio_tower(audio_config: PreTrainedConfig) -> nn.Module:
    """
    A speech encoder with the architecture of `audio_config`, with random weights.

    Raises:
        `ValueError`: If the family is not one of `AUDIO_TOWERS`.
    """
    check_family(audio_config)
    if audio_config.model_type == "whisper":
        return LlmAsrWhisperEncoder(audio_config)
    return AutoModel.from_config(audio_config)


def load_audio_tower(audio: str, audio_config: PreTrainedConfig, **kwargs) -> nn.Module:
    """
    The pretrained speech encoder of a checkpoint of its family, without its decoder or head.

    Args:
        audio (`str`): Local folder or Hub id.
        audio_config (`PreTrainedConfig`): Its configuration.
        kwargs: Passed on to `from_pretrained`.

    Raises:
        `ValueError`: If the family is not one of `AUDIO_TOWERS`.
    """
    check_family(audio_config)
    if audio_config.model_type != "whisper":
        return AutoModel.from_pretrained(audio, config=audio_config, **kwargs)
    # Whisper's checkpoints hold the whole model and `WhisperEncoder` on its own would not find its weights in them.
    encoder = AutoModel.from_pretrained(audio, config=audio_config, **kwargs).encoder
    tower = LlmAsrWhisperEncoder(encoder.config).to(encoder.dtype)
    tower.load_state_dict(encoder.state_dict())
    return tower


def run_audio_tower(
    audio_tower: nn.Module, input_features: torch.Tensor, input_features_mask: torch.Tensor, padding: str, **kwargs
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Encode a padded batch of features with any supported encoder.

    Args:
        audio_tower (`nn.Module`): From [`build_audio_tower`].
        input_features (`torch.Tensor`): As the encoder's own feature extractor makes them: `(num_recordings,
            num_mel_bins, num_feature_frames)` for Whisper, `(num_recordings, num_feature_frames, feature_size)` else.
        input_features_mask (`torch.Tensor` of shape `(num_recordings, num_feature_frames)`): Non-zero for real frames.
        padding (`str`): `encoder_padding` of [`LlmAsrConfig`].

    Returns:
        `tuple(torch.Tensor)`: Hidden states of shape `(num_recordings, num_frames, audio_hidden_size)` and a boolean mask
        of shape `(num_recordings, num_frames)`.
    """
    model_type = audio_tower.config.model_type
    if model_type == "whisper":
        return audio_tower(input_features, input_features_mask, padding, **kwargs)
    outputs = audio_tower(input_features, attention_mask=input_features_mask, **kwargs)
    if model_type == "parakeet_encoder":
        return outputs.last_hidden_state, outputs.attention_mask.bool()
    return outputs.last_hidden_state, input_features_mask.bool()
