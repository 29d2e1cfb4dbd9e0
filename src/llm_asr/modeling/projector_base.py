"""The base of the projectors: frames are reduced in number, then mapped into the space of the language model."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from .configuration_llm_asr import LlmAsrConfig
from .ctc import CtcScores
from .mixture_of_experts import MixtureOfExperts, Routing
from .text_projection import build_experts, build_mlp


@dataclass
class ReducedFrames:
    """
    What [`LlmAsrProjector.reduce_frames`] returns; "packed" means concatenated over the batch, in order, without padding.

    Attributes:
        frames (`torch.Tensor` of shape `(sum(lengths), reduced_size)`): Packed frames, one for each embedding.
        lengths (`torch.LongTensor` of shape `(num_recordings,)`): Embeddings of each recording.
        alphas, quantities, fire_times, ctc_labels (`torch.Tensor`, *optional*): See [`ProjectorOutput`].
        ctc_scores ([`CtcScores`], *optional*): See [`ProjectorOutput`].
        host_lengths (`list[int]`, *optional*): `lengths`, if they were read from the device already.
    """

    frames: torch.Tensor
    lengths: torch.Tensor
    alphas: torch.Tensor | None = None
    quantities: torch.Tensor | None = None
    fire_times: torch.Tensor | None = None
    ctc_scores: CtcScores | None = None
    ctc_labels: torch.Tensor | None = None
    host_lengths: list[int] | None = None


@dataclass
class ProjectorOutput:
    """
    What every projector returns; "packed" means concatenated over the batch, in order, without padding.

    Attributes:
        embeds (`torch.Tensor` of shape `(sum(lengths), text_hidden_size)`): Packed embeddings.
        lengths (`torch.LongTensor` of shape `(num_recordings,)`): Embeddings of each recording.
        router_logits (`torch.Tensor` of shape `(sum(lengths), num_experts)`, *optional*): With a mixture of experts.
        selected_experts (`torch.LongTensor` of shape `(sum(lengths), num_experts_per_tok)`, *optional*): Likewise.
        alphas (`torch.Tensor` of shape `(num_recordings, num_frames)`, *optional*): CIF weights, zero in padding.
        quantities (`torch.Tensor` of shape `(num_recordings,)`, *optional*): Numbers of embeddings CIF predicted.
        fire_times (`torch.Tensor` of shape `(sum(lengths),)`, *optional*): CIF fire times, in seconds.
        ctc_scores ([`CtcScores`], *optional*): With a CTC head, of its packed frames.
        ctc_labels (`torch.LongTensor` of shape `(num_recordings, num_frames)`, *optional*): Its labels, -100 in padding.
        host_lengths (`list[int]`, *optional*): `lengths` on the host.
    """

    embeds: torch.Tensor
    lengths: torch.Tensor
    router_logits: torch.Tensor | None = None
    selected_experts: torch.Tensor | None = None
    alphas: torch.Tensor | None = None
    quantities: torch.Tensor | None = None
    fire_times: torch.Tensor | None = None
    ctc_scores: CtcScores | None = None
    ctc_labels: torch.Tensor | None = None
    host_lengths: list[int] | None = None


class ProjectorStream(Protocol):
    """Reduces frames that arrive in pieces, in eval mode and without gradients."""

    def reduce(self, frames: torch.Tensor, is_last: bool) -> ReducedFrames:
        """
        Reduce the next frames of one recording as far as the reduced frames are complete. Over all calls they are those of
        [`LlmAsrProjector.reduce_frames`].

        Args:
            frames (`torch.Tensor` of shape `(num_frames, audio_hidden_size)`): Encoder frames. There may be none.
            is_last (`bool`): Whether they are the last ones.
        """
        ...


class LlmAsrProjector(nn.Module):
    """
    Base of the projectors. A subclass has the layers of `reduce_frames`, and calls `add_text_layers` when it has built them.

    A projector is called with the arguments of `reduce_frames` and returns a [`ProjectorOutput`].
    """

    # Whether `reduce_frames` takes `frame_lengths`, the real frames of each recording on the host, a `list[int]` or `None`.
    counts_frames_on_host = False
    # Frames pass through one of the two.
    moe: MixtureOfExperts
    mlp: nn.Sequential

    def __init__(self, config: LlmAsrConfig):
        super().__init__()
        self.uses_experts = config.projector_config.uses_experts

    def add_text_layers(self, config: LlmAsrConfig) -> None:
        """Build the layers between the reduced frames and the space of the language model."""
        if self.uses_experts:
            self.moe = build_experts(config)
        else:
            self.mlp = build_mlp(config)

    def reduce_frames(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        target_lengths: torch.Tensor | None = None,
        token_embeddings: torch.Tensor | None = None,
    ) -> ReducedFrames:
        """
        Reduce the number of frames. Padded frames influence nothing.

        Args:
            hidden_states (`torch.Tensor` of shape `(num_recordings, num_frames, audio_hidden_size)`): Encoder frames.
            attention_mask (`torch.BoolTensor` of shape `(num_recordings, num_frames)`): True for real frames, which come first.
            target_lengths (`torch.LongTensor` of shape `(num_recordings,)`, *optional*): Tokens of each transcript, which CIF fires.
            token_embeddings (`torch.Tensor` of shape `(vocab_size, text_hidden_size)`, *optional*): Input embeddings of the language
                model, off which a CTC head reads tokens.
        """
        raise NotImplementedError

    def open_stream(self) -> "ProjectorStream":
        """
        What reduces the frames of one stream.

        Raises:
            `ValueError`: If this type needs whole recordings.
        """
        raise ValueError(
            f"A {type(self).__name__} reduces frames by the whole recording, which a stream does not have; use another "
            "`projector_type`, such as 'conv' or 'cif'."
        )

    def count_reduction_flops(self, frame_rate: float) -> float:
        """
        Floating point operations of `reduce_frames` per second of audio, of products alone: a multiplication and an addition are
        two operations.

        Args:
            frame_rate (`float`): Encoder frames per second.
        """
        raise NotImplementedError

    def project(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, Routing | None]:
        """
        Map packed frames of shape `(sum(lengths), reduced_size)` to embeddings of shape `(sum(lengths), text_hidden_size)`. With
        experts, their routing is returned too.
        """
        return self.moe(frames, lengths) if self.uses_experts else (self.mlp(frames), None)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        target_lengths: torch.Tensor | None = None,
        token_embeddings: torch.Tensor | None = None,
        **kwargs,
    ) -> ProjectorOutput:
        reduced = self.reduce_frames(hidden_states, attention_mask, target_lengths, token_embeddings, **kwargs)
        embeds, routing = self.project(reduced.frames, reduced.lengths)
        routed: dict[str, Any] = {}
        if routing is not None:
            routed = {"router_logits": routing.router_logits, "selected_experts": routing.selected_experts}
        return ProjectorOutput(
            embeds=embeds,
            lengths=reduced.lengths,
            alphas=reduced.alphas,
            quantities=reduced.quantities,
            fire_times=reduced.fire_times,
            ctc_scores=reduced.ctc_scores,
            ctc_labels=reduced.ctc_labels,
            host_lengths=reduced.host_lengths,
            **routed,
        )


__all__ = ["LlmAsrProjector", "ProjectorOutput", "ProjectorStream", "ReducedFrames"]
