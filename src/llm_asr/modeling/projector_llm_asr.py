"""The projectors: from masked speech-encoder frames to packed embeddings of the language model."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.activations import ACT2FN

from .cif import ContinuousIntegrateAndFire
from .configuration_llm_asr import LlmAsrConfig
from .expert_balance import ExpertBalance
from .mixture_of_experts import Experts, MixtureOfExperts, TopKRouter


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
    """

    embeds: torch.Tensor
    lengths: torch.Tensor
    router_logits: torch.Tensor | None = None
    selected_experts: torch.Tensor | None = None
    alphas: torch.Tensor | None = None
    quantities: torch.Tensor | None = None
    fire_times: torch.Tensor | None = None


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


def build_mlp(config: LlmAsrConfig) -> nn.Sequential:
    """The two linear layers of the projectors without experts."""
    projector_config = config.projector_config
    return nn.Sequential(
        nn.Linear(projector_config.hidden_size, projector_config.intermediate_size),
        ACT2FN[projector_config.hidden_act],
        nn.Linear(projector_config.intermediate_size, config.text_config.hidden_size),
    )


def build_experts(config: LlmAsrConfig) -> MixtureOfExperts:
    """The mixture of experts that replaces the two linear layers."""
    projector_config = config.projector_config
    in_size, out_size = projector_config.hidden_size, config.text_config.hidden_size
    num_experts, hidden_act = projector_config.num_experts, projector_config.hidden_act
    shared_experts = None
    if projector_config.num_shared_experts:
        # Side by side, shared experts are one wider two-layer network.
        shared_size = projector_config.num_shared_experts * projector_config.expert_hidden_size
        shared_experts = nn.Sequential(
            nn.Linear(in_size, shared_size, bias=False),
            ACT2FN[hidden_act],
            nn.Linear(shared_size, out_size, bias=False),
        )
    return MixtureOfExperts(
        router=TopKRouter(
            in_size=in_size,
            num_experts=num_experts,
            num_experts_per_tok=projector_config.num_experts_per_tok,
            hidden_size=projector_config.router_hidden_size if projector_config.router_type == "mlp" else None,
            hidden_act=hidden_act,
            norm_topk_prob=projector_config.norm_topk_prob,
            jitter_noise=projector_config.router_jitter_noise,
        ),
        experts=Experts(
            in_size,
            projector_config.expert_hidden_size,
            out_size,
            num_experts,
            hidden_act,
            bias=projector_config.expert_bias,
        ),
        shared_experts=shared_experts,
        balance=ExpertBalance(num_experts, projector_config.router_bias_update_rate),
        routing_level=projector_config.routing_level,
        merge=projector_config.merge,
    )


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


class LlmAsrProjector(nn.Module):
    """
    Base of the projectors: convolutions, then either a fixed or a dynamic rate, then layers into the text space.

    A projector is called with `hidden_states` of shape `(num_recordings, num_frames, audio_hidden_size)`, a boolean
    `attention_mask` of shape `(num_recordings, num_frames)` and `target_lengths` of shape `(num_recordings,)` or `None`,
    and returns a [`ProjectorOutput`]. Fixed-rate projectors do not look at `target_lengths`.
    """

    # Each projector has the parts that it needs.
    cif: ContinuousIntegrateAndFire
    moe: MixtureOfExperts
    mlp: nn.Sequential

    def __init__(self, config: LlmAsrConfig):
        super().__init__()
        self.downsampler = ConvDownsampler(config)
        self.frame_period = config.projector_frame_period

    def pack(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Packed real frames after the convolutions, and their number for each recording."""
        hidden_states, attention_mask = self.downsampler(hidden_states, attention_mask)
        return hidden_states[attention_mask], attention_mask.sum(-1)


class ConvProjector(LlmAsrProjector):
    """Strided convolutions → two linear layers: the paper's baseline."""

    def __init__(self, config: LlmAsrConfig):
        super().__init__(config)
        self.mlp = build_mlp(config)

    def forward(self, hidden_states, attention_mask, target_lengths=None) -> ProjectorOutput:
        frames, lengths = self.pack(hidden_states, attention_mask)
        return ProjectorOutput(embeds=self.mlp(frames), lengths=lengths)


class MoeProjector(LlmAsrProjector):
    """Strided convolutions → mixture of experts."""

    def __init__(self, config: LlmAsrConfig):
        super().__init__(config)
        self.moe = build_experts(config)

    def forward(self, hidden_states, attention_mask, target_lengths=None) -> ProjectorOutput:
        frames, lengths = self.pack(hidden_states, attention_mask)
        embeds, routing = self.moe(frames, lengths)
        return ProjectorOutput(
            embeds=embeds,
            lengths=lengths,
            router_logits=routing.router_logits,
            selected_experts=routing.selected_experts,
        )


class CifProjector(LlmAsrProjector):
    """Convolution → Continuous Integrate-and-Fire → two linear layers."""

    def __init__(self, config: LlmAsrConfig):
        super().__init__(config)
        self.cif = build_cif(config)
        self.mlp = build_mlp(config)

    def forward(self, hidden_states, attention_mask, target_lengths=None) -> ProjectorOutput:
        fired = self.cif(*self.downsampler(hidden_states, attention_mask), target_lengths)
        return ProjectorOutput(
            embeds=self.mlp(fired.embeds),
            lengths=fired.lengths,
            alphas=fired.alphas,
            quantities=fired.quantities,
            fire_times=fired.fire_times * self.frame_period,
        )


class MoeCifProjector(LlmAsrProjector):
    """Convolution → Continuous Integrate-and-Fire → mixture of experts: the paper's full method."""

    def __init__(self, config: LlmAsrConfig):
        super().__init__(config)
        self.cif = build_cif(config)
        self.moe = build_experts(config)

    def forward(self, hidden_states, attention_mask, target_lengths=None) -> ProjectorOutput:
        fired = self.cif(*self.downsampler(hidden_states, attention_mask), target_lengths)
        embeds, routing = self.moe(fired.embeds, fired.lengths)
        return ProjectorOutput(
            embeds=embeds,
            lengths=fired.lengths,
            router_logits=routing.router_logits,
            selected_experts=routing.selected_experts,
            alphas=fired.alphas,
            quantities=fired.quantities,
            fire_times=fired.fire_times * self.frame_period,
        )


PROJECTORS: dict[str, type[LlmAsrProjector]] = {
    "conv": ConvProjector,
    "moe": MoeProjector,
    "cif": CifProjector,
    "moe_cif": MoeCifProjector,
}


def build_projector(config: LlmAsrConfig) -> LlmAsrProjector:
    """The projector that `config.projector_config.projector_type` names."""
    return PROJECTORS[config.projector_config.projector_type](config)
