"""Gives a model another projector. The new projector starts from the weights of the old one where it can."""

from inspect import get_annotations
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from ..modeling.configuration_projector import LlmAsrProjectorConfig
from ..modeling.draft_head import DraftHead
from ..modeling.initialization import find_initializers
from ..modeling.mixture_of_experts import MixtureOfExperts
from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration
from ..modeling.projector_llm_asr import build_projector


def replace_projector(
    model: LlmAsrForConditionalGeneration,
    projector_type: str,
    *,
    warm_start: bool = True,
    expert_noise: float = 0.0,
    **projector_kwargs,
) -> list[str]:
    """
    Replace the projector of a model. Its speech encoder and its language model are kept.

    Options that are not given are those of the old projector. `conv_strides` and the draft head have the defaults of the new
    type where only one of the two types has CIF, or convolutions. Forms of the linear layers (`mlp_...` and an
    `intermediate_size` of `None`) have their defaults where the new type has experts.

    With `warm_start`, each tensor of the new projector that has the name and the shape of an old one is copied. If the old
    projector has two linear layers without gate and normalisation, and the new one has experts for frames of the same size, each
    expert is a copy of the two layers (sparse upcycling, arXiv 2212.05055, section 3), and the router is new. For this,
    `expert_hidden_size` defaults to `intermediate_size`, and `expert_bias` to `mlp_bias`. Routing weights must sum to one. Shared
    experts begin with an output of zero. Where both types reduce frames in the same way (`"moe"` from `"conv"`, `"moe_stack"` from
    `"stack"`, and so on), the outputs then equal those of the old projector until training changes them.

    Args:
        model ([`LlmAsrForConditionalGeneration`]):
            The model, which is changed in place. Its configuration is changed too.
        projector_type (`str`):
            See [`LlmAsrProjectorConfig`].
        warm_start (`bool`, *optional*, defaults to `True`):
            Whether to copy weights. Otherwise all weights of the new projector are random.
        expert_noise (`float`, *optional*, defaults to 0.0):
            Standard deviation of the noise on the copied weights of each expert, as a fraction of the standard deviation of
            the weights. Sparse top-k needs no noise: experts become different because they learn from different frames. If
            every frame is sent to all experts, noise makes them different. With noise, outputs are no longer equal.
        projector_kwargs:
            Fields of [`LlmAsrProjectorConfig`].

    Returns:
        `list[str]`: Names of the parameters and buffers of `model` that started from old weights, in their order.

    Raises:
        `TypeError`: If `model` has adapters.
        `ValueError`: If an option of the projector is unknown or impossible, or `expert_noise` is negative or has nothing to act on.

    Example:

    ```python
    >>> replace_projector(model, "moe_cif", num_experts=8, num_experts_per_tok=2)
    ```"""
    if isinstance(model, PeftModel):
        raise TypeError(
            "`model` has adapters; call `model = model.merge_and_unload()` before its projector is replaced."
        )
    old_config, old_projector = model.config.projector_config, model.model.projector
    new_config = _derive_config(old_config, projector_type, warm_start, projector_kwargs)
    is_upcycled = warm_start and _can_upcycle(old_config, new_config, model.config.audio_config.hidden_size)
    if not (expert_noise >= 0 and (is_upcycled or not expert_noise)):
        raise ValueError(
            f"`expert_noise` must not be negative, and it is for experts that are copies of two plain linear layers, got "
            f"{expert_noise} for {projector_type!r} from {old_config.projector_type!r}; set it to 0."
        )

    model.config.projector_config = new_config
    device = next(old_projector.parameters()).device
    copied = []
    with torch.device(device):
        projector = build_projector(model.config)
        draft_head = DraftHead(model.config) if new_config.draft_head else None
    for prefix, old, new in (
        ("model.projector.", old_projector, projector),
        ("draft_head.", model.draft_head, draft_head),
    ):
        if new is None:
            continue
        for _, module, init_weights in find_initializers(new, model._init_weights):
            init_weights(module)
        if warm_start and old is not None:
            copied += [prefix + name for name in _copy_same_tensors(old, new)]
    if is_upcycled:
        copied += ["model.projector.moe." + name for name in _upcycle(old_projector.mlp, projector.moe, expert_noise)]
    owner: Any = model
    owner.model.projector = projector.train(old_projector.training)
    owner.draft_head = None if draft_head is None else draft_head.train(old_projector.training)
    order = list(model.state_dict())
    return sorted(copied, key=order.index)


def _derive_config(
    old: LlmAsrProjectorConfig, projector_type: str, warm_start: bool, projector_kwargs: dict
) -> LlmAsrProjectorConfig:
    """The configuration of the new projector: what is given, and the rest from the old one."""
    names = [name for name in get_annotations(LlmAsrProjectorConfig) if name != "projector_type"]
    new_type = LlmAsrProjectorConfig(projector_type=projector_type)
    if new_type.uses_cif != old.uses_cif:
        names = [name for name in names if name not in ("conv_strides", "draft_head", "draft_residual")]
    if new_type.uses_convolutions != old.uses_convolutions:
        names = [name for name in names if name != "conv_strides"]
    if new_type.uses_experts:
        names = [name for name in names if not name.startswith("mlp_")]
        if old.intermediate_size is None:
            names.remove("intermediate_size")
    options = {name: getattr(old, name) for name in names}
    if warm_start and new_type.uses_experts and _is_plain(old):
        options.update(expert_hidden_size=old.intermediate_size, expert_bias=old.mlp_bias)
    return LlmAsrProjectorConfig(projector_type=projector_type, **{**options, **projector_kwargs})


def _is_plain(config: LlmAsrProjectorConfig) -> bool:
    """Whether a projector has two linear layers and nothing but an activation between them, as an expert has."""
    return not (config.uses_experts or config.intermediate_size is None or config.mlp_gated or config.mlp_norms)


def _can_upcycle(old: LlmAsrProjectorConfig, new: LlmAsrProjectorConfig, audio_size: int) -> bool:
    """Whether experts that are copies of the old linear layers compute the same as these."""
    weights_sum_to_one = new.norm_topk_prob or new.num_experts_per_tok == new.num_experts
    same = (old.reduced_size(audio_size), old.intermediate_size, old.mlp_bias, old.hidden_act) == (
        new.reduced_size(audio_size),
        new.expert_hidden_size,
        new.expert_bias,
        new.hidden_act,
    )
    return new.uses_experts and _is_plain(old) and weights_sum_to_one and same


@torch.no_grad()
def _copy_same_tensors(old: nn.Module, new: nn.Module) -> list[str]:
    """Copy the tensors with the same names and shapes, and return their names."""
    old_tensors, copied = old.state_dict(), []
    for name, tensor in new.state_dict().items():
        if name in old_tensors and old_tensors[name].shape == tensor.shape:
            tensor.copy_(old_tensors[name])
            copied.append(name)
    return copied


@torch.no_grad()
def _upcycle(mlp: nn.Sequential, moe: MixtureOfExperts, noise: float) -> list[str]:
    """Make each expert a copy of the two linear layers, and return the names of the tensors."""
    sources = {"up_proj": mlp.get_parameter("0.weight"), "down_proj": mlp.get_parameter("2.weight")}
    if moe.experts.up_proj_bias is not None:
        sources.update(up_proj_bias=mlp.get_parameter("0.bias"), down_proj_bias=mlp.get_parameter("2.bias"))
    for name, source in sources.items():
        experts = moe.experts.get_parameter(name)
        experts.copy_(source.expand_as(experts))
        if noise and source.ndim > 1:
            experts.add_(torch.randn_like(experts), alpha=noise * source.float().std().item())
    if moe.shared_experts is not None:
        nn.init.zeros_(moe.shared_experts.get_submodule("2").get_parameter("weight"))
    return [f"experts.{name}" for name in sources]


__all__ = ["replace_projector"]
