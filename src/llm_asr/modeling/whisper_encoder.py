"""Whisper's encoder at any length."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder, sinusoids
from transformers.utils.output_capturing import capture_outputs

from .batch_numbers import FrameNumbers, read_frame_numbers
from .chunked_attention import AttentionChunks, check_attention_implementation, lay_out_chunks


@dataclass
class LlmAsrEncoderOutput(BaseModelOutput):
    r"""
    Output of [`LlmAsrWhisperEncoder`].

    Args:
        attention_mask (`torch.BoolTensor` of shape `(num_recordings, num_frames)`): True for real frames.
    """

    attention_mask: torch.Tensor | None = None


class LlmAsrWhisperEncoder(WhisperEncoder):
    """
    Whisper's encoder at the length of the batch instead of 30 s: positions are sliced and padding is masked.

    Its parameters are those of [`WhisperEncoder`].
    """

    # Do not name the decoder layer: sharding raises an error for a class that the model does not contain.
    _no_split_modules = ["WhisperEncoderLayer"]
    # Names in checkpoints of the whole Whisper model.
    _keys_to_ignore_on_load_unexpected = [
        r"^(model\.)?(decoder|language_model|multi_modal_projector)\.",
        r"^(proj_out|lm_head)\.",
    ]
    # Number of frames that the mean after the last layer combines.
    num_pooled = 1

    def __init__(self, config: PreTrainedConfig):
        # Whisper's class asks for the padding token, which encoders of audio language models do not have.
        if not hasattr(config, "pad_token_id"):
            config.pad_token_id = None
        # These configurations have the fields of `WhisperConfig` that the encoder reads.
        super().__init__(config)  # type: ignore[arg-type]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        # Whisper does this for the encoder as a whole, which Transformers skips in classes outside of it.
        if module is self.embed_positions:
            init.copy_(module.weight, sinusoids(*module.weight.shape))

    @capture_outputs
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor,
        padding: str = "longest",
        chunks: AttentionChunks | None = None,
        frame_numbers: FrameNumbers | None = None,
        **kwargs,
    ) -> LlmAsrEncoderOutput:
        """
        Args:
            input_features (`torch.Tensor` of shape `(num_recordings, num_mel_bins, num_mel_frames)`): Log-mel features.
            attention_mask (`torch.Tensor` of shape `(num_recordings, num_mel_frames)`): Non-zero for real mel frames.
            padding (`str`, *optional*, defaults to `"longest"`): See [`LlmAsrConfig`].
            chunks ([`AttentionChunks`], *optional*): Chunks of attention, only with `padding="longest"`. Every frame attends to
                all frames if absent.
            frame_numbers ([`FrameNumbers`], *optional*): Of the mask; read from the device if absent.

        Returns:
            [`LlmAsrEncoderOutput`]: With a look-ahead, `hidden_states` and `attentions` of layers have the copies of
            [`ChunkLayout`] after the frames.

        Raises:
            `ValueError`: If there are more mel frames than positions, after trailing padding is cut, if there are none after the
                longest recording with `padding="features"`, or the attention implementation does not take the mask that `chunks`
                need.
        """
        attention_mask = attention_mask.bool()
        # Feature extractors pad to 30 s; what no recording of the batch fills is not worth encoding.
        if frame_numbers is None:
            frame_numbers = read_frame_numbers(attention_mask)
        num_mel_frames = frame_numbers.extent
        max_mel_frames = 2 * self.max_source_positions
        if num_mel_frames > max_mel_frames:
            raise ValueError(
                f"`input_features` has {num_mel_frames} mel frames and the speech encoder takes {max_mel_frames}; split "
                "the recording."
            )
        if padding == "features":
            # The frame of the second convolution that starts at the last mel frame sees so many after it.
            num_seen = min(num_mel_frames + 2, max_mel_frames)
            if input_features.shape[-1] < num_seen:
                raise ValueError(
                    f"`input_features` ends with the longest recording, at mel frame {num_mel_frames}, but with "
                    "`encoder_padding='features'` the encoder reads what follows it; pass `audio_padding='max_length'` to the processor."
                )
            real = self._frame_mask(attention_mask[:, :num_mel_frames])
            hidden_states = self._encode(
                input_features[:, :, :num_seen], attention_mask[:, :num_seen], True, sees_padding=True, **kwargs
            )
            hidden_states = hidden_states[:, : real.shape[1]]
            return LlmAsrEncoderOutput(last_hidden_state=hidden_states, attention_mask=real.to(hidden_states.device))
        attention_mask = attention_mask[:, :num_mel_frames]
        input_features = input_features[:, :, :num_mel_frames]
        if padding == "max_length":
            real = self._frame_mask(attention_mask)
            silent = pad_with_silence(input_features, attention_mask, max_mel_frames)
            everything = attention_mask.new_ones(len(silent), max_mel_frames)
            hidden_states = self._encode(silent, everything, has_padding=False, **kwargs)
            return LlmAsrEncoderOutput(last_hidden_state=hidden_states[:, : real.shape[1]], attention_mask=real)
        hidden_states = self._encode(input_features, attention_mask, frame_numbers.has_padding, chunks, **kwargs)
        mask = self._frame_mask(attention_mask).to(hidden_states.device)
        return LlmAsrEncoderOutput(last_hidden_state=hidden_states, attention_mask=mask)

    def _encode(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor,
        has_padding: bool,
        chunks: AttentionChunks | None = None,
        sees_padding: bool = False,
        **kwargs,
    ) -> torch.Tensor:
        """
        Return hidden states of shape `(num_recordings, num_frames, d_model)`. With `sees_padding`, convolutions read what features
        hold in padding.
        """
        # A convolution pads a single recording with zeros, so the padding in a batch must be zero too.
        is_hidden = torch.zeros_like(attention_mask[:, None, :]) if sees_padding else ~attention_mask[:, None, :]
        hidden_states = input_features.masked_fill(is_hidden, 0.0)
        hidden_states = nn.functional.gelu(self.conv1(hidden_states))
        hidden_states = hidden_states.masked_fill(is_hidden.to(hidden_states.device), 0.0)
        hidden_states = nn.functional.gelu(self.conv2(hidden_states)).transpose(1, 2)
        attention_mask = attention_mask[:, ::2].to(hidden_states.device)

        positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        hidden_states = hidden_states + self.embed_positions(positions).to(hidden_states.device)
        hidden_states = nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)
        num_frames = hidden_states.shape[1]
        if chunks is None:
            # Transformers would read the mask to see whether there is any padding.
            layer_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=hidden_states,
                attention_mask=attention_mask if has_padding else None,
                allow_is_bidirectional_skip=not has_padding,
            )
        else:
            check_attention_implementation(self.config._attn_implementation)
            layout = lay_out_chunks(num_frames, chunks, hidden_states.device)
            layer_mask = layout.make_mask(attention_mask, hidden_states.dtype)
            hidden_states = hidden_states[:, layout.positions]
        for layer in self.layers:
            if self.training and self.layerdrop > 0.0 and torch.rand([]) < self.layerdrop:
                continue
            hidden_states = layer(hidden_states, layer_mask, **kwargs)
        hidden_states = hidden_states[:, :num_frames]
        if self.num_pooled > 1:
            hidden_states = nn.functional.avg_pool1d(hidden_states.transpose(1, 2), self.num_pooled).transpose(1, 2)
        return self.layer_norm(hidden_states)

    def _frame_mask(self, mel_mask: torch.Tensor) -> torch.Tensor:
        """Mask of the output frames that include no padding."""
        return mel_mask[:, ::2][:, self.num_pooled - 1 :: self.num_pooled]


class LlmAsrPooledWhisperEncoder(LlmAsrWhisperEncoder):
    """Whisper's encoder with a mean over two frames before the last normalisation, as Qwen2-Audio and Audio Flamingo 3 have."""

    num_pooled = 2


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


__all__ = ["LlmAsrEncoderOutput", "LlmAsrPooledWhisperEncoder", "LlmAsrWhisperEncoder", "pad_with_silence"]
