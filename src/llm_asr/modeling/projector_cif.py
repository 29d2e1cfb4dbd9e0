"""Projectors with a dynamic rate by Continuous Integrate-and-Fire."""

import torch

from .cif import CifState, ContinuousIntegrateAndFire, integrate_and_fire_chunk
from .configuration_llm_asr import LlmAsrConfig
from .projector_base import LlmAsrProjector, ReducedFrames
from .projector_conv import ConvDownsampler, ConvStream
from .streaming_convolution import StreamingConvolution


def build_cif(config: LlmAsrConfig) -> ContinuousIntegrateAndFire:
    """Integrate-and-fire whose untrained weights fire `expected_tokens_per_second`."""
    projector_config = config.projector_config
    tokens_per_frame = projector_config.expected_tokens_per_second * config.projector_frame_period
    return ContinuousIntegrateAndFire(
        hidden_size=projector_config.hidden_size,
        kernel_size=projector_config.conv_kernel_size,
        threshold=projector_config.cif_threshold,
        tail_threshold=projector_config.cif_tail_threshold,
        smooth_factor=projector_config.cif_smooth_factor,
        noise_threshold=projector_config.cif_noise_threshold,
        initial_alpha=projector_config.cif_threshold * tokens_per_frame,
    )


class CifProjector(LlmAsrProjector):
    """
    Convolution → Continuous Integrate-and-Fire (arXiv 1905.11235) → two linear layers, or a mixture of experts: the paper's full
    method.
    """

    def __init__(self, config: LlmAsrConfig):
        super().__init__(config)
        self.downsampler = ConvDownsampler(config)
        self.frame_period = config.projector_frame_period
        self.cif = build_cif(config)
        self.add_text_layers(config)

    def reduce_frames(
        self,
        hidden_states,
        attention_mask,
        target_lengths=None,
        token_embeddings=None,
        host_targets: list[int] | None = None,
    ) -> ReducedFrames:
        """`host_targets`: see [`integrate_and_fire`]."""
        fired = self.cif(*self.downsampler(hidden_states, attention_mask), target_lengths, host_targets)
        return ReducedFrames(
            frames=fired.embeds,
            lengths=fired.lengths,
            alphas=fired.alphas,
            quantities=fired.quantities,
            fire_times=fired.fire_times * self.frame_period,
            host_lengths=fired.host_lengths,
        )

    def count_reduction_flops(self, frame_rate: float) -> float:
        # The weight predictor, and the integration of frames of `in_channels`.
        weights = sum(parameter.numel() for parameter in self.cif.parameters() if parameter.ndim > 1)
        per_frame = 2 * (weights + self.cif.conv.in_channels)
        return self.downsampler.count_flops(frame_rate) + per_frame / self.frame_period

    def open_stream(self) -> "CifStream":
        return CifStream(self)


class CifStream:
    """
    The ends of the convolutions, the frames that wait for their weight, and the embedding that is not full yet; see
    [`ProjectorStream`]. The weights `alphas` are those that are known now.

    Args:
        projector ([`CifProjector`]): The projector.
    """

    def __init__(self, projector: CifProjector):
        self._cif, self._frame_period = projector.cif, projector.frame_period
        self._downsampling = ConvStream(projector.downsampler)
        self._weight_conv = StreamingConvolution(projector.cif.conv)
        self._waiting = projector.cif.conv.weight.new_zeros(0, projector.cif.conv.in_channels)
        self._fired: CifState | None = None

    def reduce(self, frames: torch.Tensor, is_last: bool) -> ReducedFrames:
        frames = self._downsampling.reduce(frames, is_last).frames
        self._waiting = torch.cat([self._waiting, frames])
        alphas = self._cif.weigh(self._weight_conv.push(frames, is_last))
        weighed, self._waiting = self._waiting[: len(alphas)], self._waiting[len(alphas) :]
        fired, self._fired = integrate_and_fire_chunk(
            weighed[None],
            alphas[None],
            self._fired,
            threshold=self._cif.threshold,
            tail_threshold=self._cif.tail_threshold,
            is_last=is_last,
        )
        return ReducedFrames(
            fired.embeds, fired.lengths, alphas=alphas[None], fire_times=fired.fire_times * self._frame_period
        )


__all__ = ["CifProjector", "CifStream"]
