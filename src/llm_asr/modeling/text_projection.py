"""The layers of a projector behind its reduction of frames: linear layers, or a mixture of experts."""

from collections import OrderedDict

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_llm_asr import LlmAsrConfig
from .expert_balance import ExpertBalance
from .mixture_of_experts import Experts, MixtureOfExperts, TopKRouter


# As of Llama's normalisation in published projectors.
NORM_EPS = 1e-6


class GatedActivation(nn.Module):
    """`value * act(gate)` for `[value, gate]`, the halves of the last dimension (arXiv 2002.05202, equation 5)."""

    def __init__(self, act_fn: nn.Module):
        super().__init__()
        self.act_fn = act_fn

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        value, gate = hidden_states.chunk(2, dim=-1)
        return self.act_fn(gate) * value


def build_mlp(config: LlmAsrConfig) -> nn.Sequential:
    """
    The linear layers of the projectors without experts: `"0"`, the activation `"1"` and `"2"`, with normalisations by name. If
    `intermediate_size` is `None`, there is only `"0"`.
    """
    projector_config = config.projector_config
    in_size = projector_config.reduced_size(config.audio_config.hidden_size)
    out_size, inner_size = config.text_config.hidden_size, projector_config.intermediate_size
    bias, norms = projector_config.mlp_bias, projector_config.mlp_norms or ()
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if "input" in norms:
        layers["input_norm"] = nn.RMSNorm(in_size, eps=NORM_EPS)
    if inner_size is None:
        layers["0"] = nn.Linear(in_size, out_size, bias=bias)
    else:
        act_fn = ACT2FN[projector_config.hidden_act]
        is_gated = projector_config.mlp_gated
        layers["0"] = nn.Linear(in_size, 2 * inner_size if is_gated else inner_size, bias=bias)
        layers["1"] = GatedActivation(act_fn) if is_gated else act_fn
        if "hidden" in norms:
            layers["hidden_norm"] = nn.RMSNorm(inner_size, eps=NORM_EPS)
        layers["2"] = nn.Linear(inner_size, out_size, bias=bias)
    if "output" in norms:
        layers["output_norm"] = nn.RMSNorm(out_size, eps=NORM_EPS)
    return nn.Sequential(layers)


def build_experts(config: LlmAsrConfig) -> MixtureOfExperts:
    """The mixture of experts that replaces the linear layers."""
    projector_config = config.projector_config
    in_size = projector_config.reduced_size(config.audio_config.hidden_size)
    out_size = config.text_config.hidden_size
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


__all__ = ["GatedActivation", "build_experts", "build_mlp"]
