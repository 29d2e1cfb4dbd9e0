"""The parts of a model as modules that `torch.export` can trace: one recording, no padding, no shapes that the host reads."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from ..modeling.batch_numbers import FrameNumbers
from ..modeling.cif import ContinuousIntegrateAndFire, count_fires, token_weights
from ..modeling.mixture_of_experts import MixtureOfExperts
from ..modeling.projector_base import LlmAsrProjector
from ..modeling.projector_cif import CifProjector
from ..modeling.projector_conv import ConvProjector
from ..modeling.projector_stack import StackProjector
from ..modeling.transformers_versions import CACHE_NAME


# Families of language models, and whether their classes take a mask for each type of layer.
DECODERS = {"llama": False, "qwen2": True, "qwen3": True, "gemma3_text": True}
PROJECTORS = ("conv", "moe", "cif", "moe_cif", "stack", "moe_stack")


class EncoderGraph(nn.Module):
    """
    A Whisper encoder.

    Args:
        tower (`LlmAsrWhisperEncoder`): The encoder.
        padding (`str`): `encoder_padding` of [`LlmAsrConfig`].
    """

    def __init__(self, tower: PreTrainedModel, padding: str):
        super().__init__()
        self.tower = tower
        self.padding = padding

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """From log-mel features `(1, num_mel_bins, num_mel_frames)` to hidden states `(1, num_frames, audio_hidden_size)`."""
        num_mel_frames = input_features.shape[2]
        mask = torch.ones(1, num_mel_frames, dtype=torch.bool)
        numbers = FrameNumbers([num_mel_frames], num_mel_frames)
        return self.tower(input_features, mask, self.padding, frame_numbers=numbers).last_hidden_state


class ProjectorGraph(nn.Module):
    """
    A projector.

    Args:
        projector ([`LlmAsrProjector`]): Of a type in `PROJECTORS`.
    """

    def __init__(self, projector: LlmAsrProjector):
        super().__init__()
        self.projector = projector

    def forward(self, audio_hidden_states: torch.Tensor) -> torch.Tensor:
        """From hidden states `(1, num_frames, audio_hidden_size)` to embeddings `(num_embeddings, text_hidden_size)`."""
        projector = self.projector
        if isinstance(projector, StackProjector):
            frames = _stack_frames(audio_hidden_states[0], projector.block_size, projector.is_remainder_dropped)
        elif isinstance(projector, (ConvProjector, CifProjector)):
            everything = torch.ones(audio_hidden_states.shape[:2], dtype=torch.bool)
            frames = projector.downsampler(audio_hidden_states, everything)[0][0]
            if isinstance(projector, CifProjector):
                frames = _integrate(projector.cif, frames)
        else:
            raise ValueError(f"`projector` is a {type(projector).__name__}, which has no graph.")
        return _mix_experts(projector.moe, frames) if projector.uses_experts else projector.mlp(frames)


def _stack_frames(frames: torch.Tensor, size: int, is_remainder_dropped: bool) -> torch.Tensor:
    """Put `size` frames of shape `(num_frames, hidden_size)` beside each other; see [`StackProjector`]."""
    num_frames, hidden_size = frames.shape
    num_stacks = (num_frames + (0 if is_remainder_dropped else size - 1)) // size
    # Frames that are missing are zeros, and frames that are left over are cut off.
    filled = torch.cat([frames, frames.new_zeros(size - 1, hidden_size)])[: num_stacks * size]
    return filled.reshape(num_stacks, size * hidden_size)


def _integrate(cif: ContinuousIntegrateAndFire, frames: torch.Tensor) -> torch.Tensor:
    """
    [`integrate_and_fire`] for one recording without a target length: the overlap of each embedding with each frame is an
    entry of one matrix. From `(num_frames, hidden_size)` to `(num_embeddings, hidden_size)`.
    """
    alphas = cif.weigh(cif.conv(frames.T[None])[0].T)
    weights = token_weights(alphas, None, cif.threshold)
    ends = weights.cumsum(0)
    num_embeddings = count_fires(ends[-1], cif.tail_threshold)
    lower = torch.arange(num_embeddings.item(), device=frames.device).to(ends.dtype)[:, None]
    overlaps = torch.minimum(ends, lower + 1) - torch.maximum(ends - weights, lower)
    return (overlaps.clamp(min=0) * cif.threshold).to(frames.dtype) @ frames


def _mix_experts(moe: MixtureOfExperts, frames: torch.Tensor) -> torch.Tensor:
    """
    [`MixtureOfExperts`] for one recording. Every expert works on every frame, with a weight of zero where it is not chosen,
    because the numbers of frames of experts are no shapes of a graph.
    """
    experts, routed = moe.experts, frames
    if moe.routing_level == "utterance":
        num_frames = torch.ones_like(frames[:, 0]).sum().clamp(min=1)
        routed = frames.sum(0, keepdim=True) / num_frames
    routing = moe.router(routed, moe.balance.e_score_correction_bias)
    weights = torch.zeros_like(routing.router_logits).scatter(1, routing.selected_experts, routing.weights)
    if moe.merge == "parameters":
        merged: list[Any] = [
            None if stacked is None else torch.tensordot(weights[0], stacked, dims=1)
            for stacked in (experts.up_proj, experts.up_proj_bias, experts.down_proj, experts.down_proj_bias)
        ]
        outputs = F.linear(experts.act_fn(F.linear(frames, *merged[:2])), *merged[2:])
    else:
        hidden = torch.einsum("ni,ehi->neh", frames, experts.up_proj)
        if experts.up_proj_bias is not None:
            hidden = hidden + experts.up_proj_bias
        outputs = torch.einsum("neh,eoh->no", experts.act_fn(hidden) * weights[:, :, None], experts.down_proj)
        if experts.down_proj_bias is not None:
            outputs = outputs + weights @ experts.down_proj_bias
    if moe.shared_experts is not None:
        outputs = outputs + moe.shared_experts(frames)
    return outputs


class EmbeddingGraph(nn.Module):
    """
    The input embedding of the language model.

    Args:
        embedding (`nn.Module`): The layer.
    """

    def __init__(self, embedding: nn.Module):
        super().__init__()
        self.embedding = embedding

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """From `(batch_size, sequence_length)` to `(batch_size, sequence_length, text_hidden_size)`."""
        return self.embedding(input_ids)


class DecoderGraph(nn.Module):
    """
    The language model with its head. Prompts and single tokens pass through the same graph.

    Args:
        text_model (`PreTrainedModel`): A causal language model of a family in `DECODERS`.
    """

    def __init__(self, text_model: PreTrainedModel):
        super().__init__()
        self.text_model = text_model

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """
        Args:
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, text_hidden_size)`): Padded on the left.
            attention_mask (`torch.LongTensor` of shape `(batch_size, past_length + sequence_length)`): Non-zero for real tokens.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Positions among real tokens.
            past (`list[torch.Tensor]` of shape `(batch_size, num_heads, past_length, head_size)`): Keys and values, layer by layer.

        Returns:
            `tuple[torch.Tensor]`: Logits of the next token, `(batch_size, vocab_size)`, and keys and values up to here.
        """
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        outputs = self.text_model(
            inputs_embeds=inputs_embeds,
            attention_mask=self._make_masks(attention_mask, inputs_embeds.shape[1], past[0].shape[2]),
            position_ids=position_ids,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
            **{CACHE_NAME: cache},
        )
        return (outputs.logits[:, -1], *list_keys_and_values(cache))

    def _make_masks(self, attention_mask: torch.Tensor, sequence_length: int, past_length: int) -> Any:
        """What Transformers adds to the scores of attention. Its own masks depend on values that a graph does not know."""
        keys = torch.arange(past_length + sequence_length)
        distances = (torch.arange(sequence_length) + past_length)[:, None] - keys
        is_real = attention_mask[:, None, None, :] != 0
        config = self.text_model.config
        if not DECODERS[config.model_type]:
            return _to_additive(is_real & (distances >= 0))
        masks = {"full_attention": _to_additive(is_real & (distances >= 0))}
        if "sliding_attention" in config.layer_types:
            is_near = (distances >= 0) & (distances < config.sliding_window)
            masks["sliding_attention"] = _to_additive(is_real & is_near)
        return masks


def list_keys_and_values(cache: DynamicCache) -> list[torch.Tensor]:
    """Keys and values of a cache of attention, layer by layer, of shape `(batch_size, num_heads, length, head_size)`."""
    layers: Any = cache.layers
    return [tensor for layer in layers for tensor in (layer.keys, layer.values)]


def _to_additive(is_visible: torch.Tensor) -> torch.Tensor:
    return torch.where(is_visible, 0.0, torch.finfo(torch.float32).min)


__all__ = [
    "DECODERS",
    "PROJECTORS",
    "DecoderGraph",
    "EmbeddingGraph",
    "EncoderGraph",
    "ProjectorGraph",
    "list_keys_and_values",
]
