"""Parameters and operations of projectors, and projectors of equal size for fair comparisons."""

from dataclasses import dataclass

import torch

from ..modeling.configuration_llm_asr import LlmAsrConfig
from ..modeling.configuration_projector import LlmAsrProjectorConfig
from ..modeling.projector_llm_asr import build_projector


@dataclass
class ProjectorCost:
    """
    Cost of a projector.

    Attributes:
        total_parameters (`int`): Number of all parameters.
        active_parameters (`int`): Number of parameters that one frame uses, without the experts to which it is not routed.
            With `merge="parameters"` a frame uses all experts.
        flops_per_second (`float`): Floating point operations per second of audio. It counts convolutions, integration,
            attention and the products with weight matrices; a multiplication and an addition are two operations.
    """

    total_parameters: int
    active_parameters: int
    flops_per_second: float


def projector_cost(config: LlmAsrConfig, tokens_per_second: float | None = None) -> ProjectorCost:
    """
    Parameters and operations of the projector that `config` describes.

    Args:
        config ([`LlmAsrConfig`]): Configuration of the model.
        tokens_per_second (`float`, *optional*): Measured number of embeddings per second from CIF or a CTC head. Defaults to
            the configuration's `expected_tokens_per_second`. Other projectors ignore it, because their rate is fixed.

    Returns:
        [`ProjectorCost`]
    """
    projector_config = config.projector_config
    with torch.device("meta"):
        projector = build_projector(config)
    total = sum(parameter.numel() for parameter in projector.parameters())
    rate = 1 / config.projector_frame_period
    if not projector_config.has_dynamic_rate:
        tokens_per_second = rate
    elif tokens_per_second is None:
        tokens_per_second = projector_config.expected_tokens_per_second

    flops = projector.count_reduction_flops(config.audio_frame_rate)
    if not projector_config.uses_experts:
        matrices = sum(parameter.numel() for parameter in projector.mlp.parameters() if parameter.ndim > 1)
        return ProjectorCost(total, total, flops + 2 * matrices * tokens_per_second)

    moe = projector.moe
    one_expert = sum(parameter.numel() for parameter in moe.experts.parameters()) // projector_config.num_experts
    one_product = (moe.experts.up_proj.numel() + moe.experts.down_proj.numel()) // projector_config.num_experts
    router = sum(parameter.numel() for parameter in moe.router.parameters())
    shared = (
        0 if moe.shared_experts is None else sum(parameter.numel() for parameter in moe.shared_experts.parameters())
    )
    if projector_config.merge == "parameters":
        # One merged expert processes the frames. The cost of merging is left out: it arises once per recording, and
        # recordings have no fixed length.
        return ProjectorCost(total, total, flops + 2 * (one_product + shared) * tokens_per_second)
    idle = projector_config.num_experts - projector_config.num_experts_per_tok
    routed = projector_config.num_experts_per_tok * one_product
    if projector_config.routing_level == "frame":
        routed += router
    return ProjectorCost(total, total - idle * one_expert, flops + 2 * (routed + shared) * tokens_per_second)


def match_parameters(
    projector_type: str, reference: LlmAsrConfig, parameters: str = "total", **projector_kwargs
) -> LlmAsrProjectorConfig:
    """
    Configure a projector without experts with as many parameters as the projector of `reference`. The function adjusts
    `intermediate_size`, the width between the two linear layers.

    Args:
        projector_type (`str`): A type without experts, such as `"conv"` or `"cif"`.
        reference ([`LlmAsrConfig`]): Configuration of the model to match.
        parameters (`str`, *optional*, defaults to `"total"`): `"total"` or `"active"`.
        projector_kwargs: Further fields of [`LlmAsrProjectorConfig`]; `hidden_size` and others default to those of
            `reference`.

    Returns:
        [`LlmAsrProjectorConfig`]: The configuration whose number of parameters is closest to that of `reference`.

    Raises:
        `ValueError`: If the type has experts, or the narrowest projector has more parameters than `reference`.
    """
    if parameters not in ("total", "active"):
        raise ValueError(f"`parameters` must be 'total' or 'active', got {parameters!r}.")
    wanted = getattr(projector_cost(reference), f"{parameters}_parameters")
    names = ["hidden_size", "hidden_act", "conv_kernel_size", "cif_threshold", "expected_tokens_per_second"]
    own = vars(LlmAsrProjectorConfig)["__annotations__"]
    names += [name for name in own if name.startswith(("stack_", "qformer_"))]
    options = {name: getattr(reference.projector_config, name) for name in names}

    def build(width: int) -> LlmAsrProjectorConfig:
        config = LlmAsrProjectorConfig(
            projector_type=projector_type, intermediate_size=width, **{**options, **projector_kwargs}
        )
        if config.uses_experts:
            raise ValueError(
                f"`projector_type` must be a type without experts, such as 'conv', got {projector_type!r}."
            )
        return config

    def count(width: int) -> int:
        config = LlmAsrConfig(
            audio_config=reference.audio_config, text_config=reference.text_config, projector_config=build(width)
        )
        return projector_cost(config).total_parameters

    # The number of parameters is linear in the width.
    narrowest = count(1)
    width = 1 + round((wanted - narrowest) / (count(2) - narrowest))
    if width < 1:
        raise ValueError(
            f"`reference` has {wanted} {parameters} parameters, but a {projector_type!r} projector has at least {narrowest}; "
            "make `hidden_size` smaller."
        )
    return build(width)


__all__ = ["ProjectorCost", "match_parameters", "projector_cost"]
