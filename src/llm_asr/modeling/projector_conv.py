"""Projectors with a fixed rate by strided convolutions."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .batch_numbers import read_together, select
from .configuration_llm_asr import LlmAsrConfig
from .projector_base import LlmAsrProjector, ReducedFrames
from .streaming_convolution import StreamingConvolution


class ConvDownsampler(nn.Module):
    """Strided convolutions over time that never see a padded frame, not even at the border."""

    def __init__(self, config: LlmAsrConfig):
        super().__init__()
        projector_config = config.projector_config
        self.strides = list(projector_config.conv_strides or ())
        kernel_size = projector_config.conv_kernel_size
        sizes = [config.audio_config.hidden_size] + [projector_config.hidden_size] * len(self.strides)
        self.convs = nn.ModuleList(
            nn.Conv1d(in_size, out_size, kernel_size, stride=stride, padding=kernel_size // 2)
            for in_size, out_size, stride in zip(sizes[:-1], sizes[1:], self.strides, strict=True)
        )
        self.act_fn = ACT2FN[projector_config.hidden_act]

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(num_recordings, num_frames, audio_hidden_size)`): Encoder frames.
            attention_mask (`torch.BoolTensor` of shape `(num_recordings, num_frames)`): True for real frames.

        Returns:
            `tuple(torch.Tensor)`: Frames, in the dtype of the convolutions, and mask, shorter by the product of the strides.
        """
        hidden_states = hidden_states.to(next(self.convs.parameters()).dtype)
        for conv, stride in zip(self.convs, self.strides, strict=True):
            attention_mask = attention_mask.to(hidden_states.device)
            hidden_states = hidden_states.masked_fill(~attention_mask[:, :, None], 0.0)
            hidden_states = self.act_fn(conv(hidden_states.transpose(1, 2)).transpose(1, 2))
            attention_mask = attention_mask[:, ::stride].to(hidden_states.device)
        return hidden_states, attention_mask

    def count_flops(self, frame_rate: float) -> float:
        """Operations per second of audio; see [`LlmAsrProjector.count_reduction_flops`]."""
        flops = 0.0
        for conv, stride in zip(self.convs, self.strides, strict=True):
            frame_rate /= stride
            flops += 2 * conv.get_parameter("weight").numel() * frame_rate
        return flops


class ConvProjector(LlmAsrProjector):
    """Strided convolutions → two linear layers, the paper's baseline, or a mixture of experts."""

    counts_frames_on_host = True

    def __init__(self, config: LlmAsrConfig):
        super().__init__(config)
        self.downsampler = ConvDownsampler(config)
        self.add_text_layers(config)

    def reduce_frames(
        self,
        hidden_states,
        attention_mask,
        target_lengths=None,
        token_embeddings=None,
        frame_lengths: list[int] | None = None,
    ) -> ReducedFrames:
        hidden_states, attention_mask = self.downsampler(hidden_states, attention_mask)
        lengths = attention_mask.sum(-1)
        host_lengths = frame_lengths
        if host_lengths is None:
            host_lengths = read_together(lengths=lengths)["lengths"]
        else:
            for stride in self.downsampler.strides:
                host_lengths = [-(-length // stride) for length in host_lengths]
        frames = select(hidden_states, attention_mask, sum(host_lengths))
        return ReducedFrames(frames, lengths, host_lengths=host_lengths)

    def count_reduction_flops(self, frame_rate: float) -> float:
        return self.downsampler.count_flops(frame_rate)

    def open_stream(self) -> "ConvStream":
        return ConvStream(self.downsampler)


class ConvStream:
    """
    The ends of strided convolutions in one stream; see [`ProjectorStream`].

    Args:
        downsampler ([`ConvDownsampler`]): The convolutions.
    """

    def __init__(self, downsampler: ConvDownsampler):
        self._act_fn = downsampler.act_fn
        self._convs: list[StreamingConvolution] = []
        for conv in downsampler.convs:
            assert isinstance(conv, nn.Conv1d)
            self._convs.append(StreamingConvolution(conv))

    def reduce(self, frames: torch.Tensor, is_last: bool) -> ReducedFrames:
        for conv in self._convs:
            frames = self._act_fn(conv.push(frames, is_last))
        return ReducedFrames(frames, torch.tensor([len(frames)], device=frames.device))


__all__ = ["ConvDownsampler", "ConvProjector", "ConvStream"]
