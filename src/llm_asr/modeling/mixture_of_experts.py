"""A sparse mixture of two-layer experts over packed frames, and its balance losses."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN


def grouped_matmul(hidden_states: torch.Tensor, weight: torch.Tensor, group_sizes: torch.Tensor) -> torch.Tensor:
    """
    Multiply each group of consecutive rows by its own matrix.

    Args:
        hidden_states (`torch.Tensor` of shape `(num_rows, in_features)`): Rows, sorted by group.
        weight (`torch.Tensor` of shape `(num_groups, out_features, in_features)`): One matrix a group.
        group_sizes (`torch.LongTensor` of shape `(num_groups,)`): Rows in each group; they sum to `num_rows`.

    Returns:
        `torch.Tensor` of shape `(num_rows, out_features)`.
    """
    row_bytes = hidden_states.element_size()
    # The kernel wants rows that begin at multiples of 16 bytes, and knows no float64.
    aligned = all(size * row_bytes % 16 == 0 for size in weight.shape[1:])
    if aligned and hidden_states.dtype in (torch.float32, torch.bfloat16, torch.float16):
        offsets = group_sizes.cumsum(0).to(torch.int32)
        return F.grouped_mm(hidden_states, weight.transpose(1, 2).to(hidden_states.dtype), offs=offsets)

    # Otherwise pad the groups to the largest and multiply them as a batch.
    num_groups = weight.shape[0]
    group = torch.repeat_interleave(torch.arange(num_groups, device=weight.device), group_sizes)
    position = torch.arange(group.numel(), device=weight.device) - (group_sizes.cumsum(0) - group_sizes)[group]
    capacity = int(group_sizes.max())
    padded = hidden_states.new_zeros(num_groups, capacity, hidden_states.shape[1])
    padded = padded.index_put((group, position), hidden_states)
    return torch.bmm(padded, weight.transpose(1, 2).to(hidden_states.dtype))[group, position]


class TopKRouter(nn.Module):
    """
    Linear router: softmax over all experts in float32, then the `num_experts_per_tok` largest (arXiv 2101.03961 with
    k = 1, arXiv 2401.04088 with k = 2).
    """

    def __init__(self, hidden_size: int, num_experts: int, num_experts_per_tok: int, norm_topk_prob: bool):
        super().__init__()
        self.num_experts_per_tok = num_experts_per_tok
        self.norm_topk_prob = norm_topk_prob
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(num_frames, hidden_size)`): Packed real frames.

        Returns:
            `tuple(torch.Tensor)`: `router_logits` of shape `(num_frames, num_experts)`, float32 or wider, and routing
            weights and expert indices of shape `(num_frames, num_experts_per_tok)`.
        """
        with torch.autocast(hidden_states.device.type, enabled=False):
            dtype = torch.promote_types(hidden_states.dtype, torch.float32)
            router_logits = F.linear(hidden_states.to(dtype), self.weight.to(dtype))
            weights, indices = router_logits.softmax(-1).topk(self.num_experts_per_tok, dim=-1)
            if self.norm_topk_prob:
                weights = weights / weights.sum(-1, keepdim=True)
        return router_logits, weights, indices


class Experts(nn.Module):
    """Two-layer experts as stacked parameters, applied without a loop over them."""

    def __init__(self, in_size: int, hidden_size: int, out_size: int, num_experts: int, hidden_act: str):
        super().__init__()
        self.num_experts = num_experts
        self.up_proj = nn.Parameter(torch.empty(num_experts, hidden_size, in_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, out_size, hidden_size))
        self.act_fn = ACT2FN[hidden_act]

    def forward(self, hidden_states: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """
        `y_n = sum_k weights[n, k] * down_proj[e] act(up_proj[e] x_n)`, with `e = indices[n, k]`.

        Args:
            hidden_states (`torch.Tensor` of shape `(num_frames, in_size)`): Packed real frames.
            weights, indices (`torch.Tensor` of shape `(num_frames, num_experts_per_tok)`): From the router.

        Returns:
            `torch.Tensor` of shape `(num_frames, out_size)`, in the dtype that the experts computed in.
        """
        num_frames, num_experts_per_tok = indices.shape
        order = indices.flatten().argsort(stable=True)
        frame = order // num_experts_per_tok
        group_sizes = torch.bincount(indices.flatten(), minlength=self.num_experts)

        device_type = hidden_states.device.type
        if torch.is_autocast_enabled(device_type):
            hidden_states = hidden_states.to(torch.get_autocast_dtype(device_type))
        hidden = self.act_fn(grouped_matmul(hidden_states[frame], self.up_proj, group_sizes))
        outputs = grouped_matmul(hidden, self.down_proj, group_sizes)
        outputs = outputs * weights.flatten()[order, None].to(outputs.dtype)
        return outputs.new_zeros(num_frames, outputs.shape[1]).index_add(0, frame, outputs)


class MixtureOfExperts(nn.Module):
    """
    `y = sum_k g_k(x) E_k(x)` over the experts a router picks, plus the shared experts that see every frame.

    It takes packed frames, so padding cannot be routed.
    """

    def __init__(
        self,
        in_size: int,
        expert_hidden_size: int,
        out_size: int,
        num_experts: int,
        num_experts_per_tok: int,
        num_shared_experts: int,
        norm_topk_prob: bool,
        hidden_act: str,
    ):
        super().__init__()
        self.router = TopKRouter(in_size, num_experts, num_experts_per_tok, norm_topk_prob)
        self.experts = Experts(in_size, expert_hidden_size, out_size, num_experts, hidden_act)
        self.shared_experts = None
        if num_shared_experts:
            # Side by side, shared experts are one wider two-layer network.
            shared_size = num_shared_experts * expert_hidden_size
            self.shared_experts = nn.Sequential(
                nn.Linear(in_size, shared_size, bias=False),
                ACT2FN[hidden_act],
                nn.Linear(shared_size, out_size, bias=False),
            )

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(num_frames, in_size)`): Packed real frames.

        Returns:
            `tuple(torch.Tensor)`: Outputs of shape `(num_frames, out_size)` and `router_logits` of shape
            `(num_frames, num_experts)`.
        """
        router_logits, weights, indices = self.router(hidden_states)
        outputs = self.experts(hidden_states, weights, indices)
        if self.shared_experts is not None:
            outputs = outputs + self.shared_experts(hidden_states)
        return outputs, router_logits


def load_balancing_loss(router_logits: torch.Tensor, num_experts_per_tok: int) -> torch.Tensor:
    """
    `E * sum_e f_e P_e` (Switch Transformers, arXiv 2101.03961, eq. 4-6), 1 when balanced, at most `num_experts`.

    `f_e` is the share of assignments that expert `e` received, `P_e` its mean router probability.

    Args:
        router_logits (`torch.Tensor` of shape `(num_frames, num_experts)`): Of real frames only.
        num_experts_per_tok (`int`): Experts chosen for each frame.

    Returns:
        `torch.Tensor`: A scalar; zero where there are no frames.
    """
    num_frames, num_experts = router_logits.shape
    if num_frames == 0:
        return router_logits.sum()
    probabilities = router_logits.softmax(-1)
    chosen = router_logits.detach().topk(num_experts_per_tok, dim=-1).indices
    shares = torch.bincount(chosen.flatten(), minlength=num_experts) / chosen.numel()
    return num_experts * (shares * probabilities.mean(0)).sum()


def router_z_loss(router_logits: torch.Tensor) -> torch.Tensor:
    """
    Mean squared log-partition of the router (ST-MoE, arXiv 2202.08906, eq. 5), which keeps its logits small.

    Args:
        router_logits (`torch.Tensor` of shape `(num_frames, num_experts)`): Of real frames only.

    Returns:
        `torch.Tensor`: A scalar; zero where there are no frames.
    """
    return router_logits.logsumexp(-1).square().sum() / max(router_logits.shape[0], 1)
