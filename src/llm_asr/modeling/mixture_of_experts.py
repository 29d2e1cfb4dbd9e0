"""A mixture of two-layer experts over packed frames: router, experts, and their combination."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from .expert_balance import ExpertBalance, count_rows


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
    if can_use_grouped_mm(hidden_states, weight):
        offsets = group_sizes.cumsum(0).to(torch.int32)
        return F.grouped_mm(hidden_states, weight.transpose(1, 2).to(hidden_states.dtype), offs=offsets)

    # Otherwise pad the groups to the largest and multiply them as a batch.
    num_groups = weight.shape[0]
    num_rows = len(hidden_states)
    group = torch.arange(num_groups, device=weight.device).repeat_interleave(group_sizes, output_size=num_rows)
    position = torch.arange(num_rows, device=weight.device) - (group_sizes.cumsum(0) - group_sizes)[group]
    capacity = int(group_sizes.max())
    padded = hidden_states.new_zeros(num_groups, capacity, hidden_states.shape[1])
    padded = padded.index_put((group, position), hidden_states)
    return torch.bmm(padded, weight.transpose(1, 2).to(hidden_states.dtype))[group, position]


def can_use_grouped_mm(hidden_states: torch.Tensor, weight: torch.Tensor) -> bool:
    """
    Whether `torch.nn.functional.grouped_mm` takes these operands of [`grouped_matmul`], on their device, in this PyTorch.

    It has kernels for CPUs and for CUDA devices from compute capability 8.0. It takes float32, float16 and bfloat16, but
    only bfloat16 under `torch.compile`. Rows must begin at multiples of 16 bytes.
    """
    device, dtype = hidden_states.device, hidden_states.dtype
    if device.type not in ("cpu", "cuda") or dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return False
    if not len(hidden_states):
        # Its gradient fails without rows.
        return False
    if any(size * hidden_states.element_size() % 16 for size in weight.shape[1:]):
        return False
    if torch.compiler.is_compiling():
        return dtype == torch.bfloat16
    # Memory-mapped weights may have any alignment.
    return all(tensor.data_ptr() % 16 == 0 for tensor in (hidden_states, weight))


@dataclass
class Routing:
    """
    Which experts work on what, and how much each counts.

    Attributes:
        router_logits (`torch.Tensor` of shape `(num_rows, num_experts)`): float32 or wider.
        weights (`torch.Tensor` of shape `(num_rows, num_experts_per_tok)`): Routing weights of the chosen experts.
        selected_experts (`torch.LongTensor` of shape `(num_rows, num_experts_per_tok)`): Their indices.
    """

    router_logits: torch.Tensor
    weights: torch.Tensor
    selected_experts: torch.Tensor

    def to(self, device: torch.device) -> "Routing":
        """Return the routing on another device."""
        return Routing(*(rows.to(device) for rows in (self.router_logits, self.weights, self.selected_experts)))

    def repeat(self, lengths: torch.Tensor, num_frames: int) -> "Routing":
        """The routing of recordings as that of their `num_frames` frames."""
        return Routing(
            *(
                rows.repeat_interleave(lengths, dim=0, output_size=num_frames)
                for rows in (self.router_logits, self.weights, self.selected_experts)
            )
        )


class TopKRouter(nn.Module):
    """
    Softmax over all experts in float32, then the `num_experts_per_tok` largest (arXiv 2101.03961 with k = 1, arXiv
    2401.04088 with k = 2, arXiv 2508.18998 with all).

    Args:
        in_size (`int`): Size of a frame.
        num_experts (`int`): Number of experts.
        num_experts_per_tok (`int`): Experts chosen.
        hidden_size (`int`, *optional*): Width of a hidden layer; the router is linear if absent.
        hidden_act (`str`): Activation of that layer.
        norm_topk_prob (`bool`): Whether the weights of the chosen experts sum to one.
        jitter_noise (`float`): In training, what the router sees is multiplied by uniform noise in `1 ± jitter_noise`
            (arXiv 2101.03961, section 2.4).
    """

    def __init__(
        self,
        in_size: int,
        num_experts: int,
        num_experts_per_tok: int,
        hidden_size: int | None,
        hidden_act: str,
        norm_topk_prob: bool,
        jitter_noise: float,
    ):
        super().__init__()
        self.num_experts_per_tok = num_experts_per_tok
        self.norm_topk_prob = norm_topk_prob
        self.jitter_noise = jitter_noise
        self.up_proj = None if hidden_size is None else nn.Parameter(torch.empty(hidden_size, in_size))
        self.act_fn = ACT2FN[hidden_act]
        self.weight = nn.Parameter(torch.empty(num_experts, in_size if hidden_size is None else hidden_size))

    def forward(self, hidden_states: torch.Tensor, selection_bias: torch.Tensor | None = None) -> Routing:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(num_rows, in_size)`): Packed real frames, or means of recordings.
            selection_bias (`torch.Tensor` of shape `(num_experts,)`, *optional*): Added to the probabilities to choose
                experts by, but not to weigh them by; see [`ExpertBalance`].

        Returns:
            [`Routing`]
        """
        with torch.autocast(hidden_states.device.type, enabled=False):
            dtype = torch.promote_types(hidden_states.dtype, torch.float32)
            hidden_states = hidden_states.to(dtype)
            if self.training and self.jitter_noise:
                noise = torch.empty_like(hidden_states).uniform_(1 - self.jitter_noise, 1 + self.jitter_noise)
                hidden_states = hidden_states * noise
            if self.up_proj is not None:
                hidden_states = self.act_fn(F.linear(hidden_states, self.up_proj.to(dtype)))
            router_logits = F.linear(hidden_states, self.weight.to(dtype))
            probabilities = router_logits.softmax(-1)
            scores = probabilities
            if selection_bias is not None:
                scores = probabilities.detach() + selection_bias.to(probabilities.device)
            selected_experts = scores.topk(self.num_experts_per_tok, dim=-1).indices
            weights = probabilities.gather(-1, selected_experts)
            if self.norm_topk_prob:
                weights = weights / weights.sum(-1, keepdim=True)
        return Routing(router_logits, weights, selected_experts)


class Experts(nn.Module):
    """
    Two-layer experts `E_e(x) = down_proj[e] act(up_proj[e] x)` as stacked parameters, without a loop over them.

    With `bias`, both layers have one: `E_e(x) = down_proj[e] act(up_proj[e] x + up_proj_bias[e]) + down_proj_bias[e]`.
    """

    def __init__(
        self, in_size: int, hidden_size: int, out_size: int, num_experts: int, hidden_act: str, bias: bool = False
    ):
        super().__init__()
        self.num_experts = num_experts
        self.up_proj = nn.Parameter(torch.empty(num_experts, hidden_size, in_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, out_size, hidden_size))
        self.up_proj_bias = nn.Parameter(torch.empty(num_experts, hidden_size)) if bias else None
        self.down_proj_bias = nn.Parameter(torch.empty(num_experts, out_size)) if bias else None
        self.act_fn = ACT2FN[hidden_act]

    def forward(self, hidden_states: torch.Tensor, routing: Routing) -> torch.Tensor:
        """
        `y_n = sum_k weights[n, k] E_e(x_n)`, with `e = selected_experts[n, k]`.

        Args:
            hidden_states (`torch.Tensor` of shape `(num_frames, in_size)`): Packed real frames.
            routing ([`Routing`]): Of the frames.

        Returns:
            `torch.Tensor` of shape `(num_frames, out_size)`, in the dtype that the experts computed in.
        """
        routing = routing.to(hidden_states.device)
        num_frames, num_experts_per_tok = routing.selected_experts.shape
        experts = routing.selected_experts.flatten()
        order = experts.argsort(stable=True)
        group_sizes = count_rows(experts, self.num_experts)

        hidden_states = _to_compute_dtype(hidden_states)
        sorted_states = hidden_states.index_select(0, order // num_experts_per_tok)
        hidden = grouped_matmul(sorted_states, self.up_proj, group_sizes)
        hidden = self.act_fn(_add_bias(hidden, self.up_proj_bias, group_sizes))
        outputs = grouped_matmul(hidden, self.down_proj, group_sizes)
        outputs = _add_bias(outputs, self.down_proj_bias, group_sizes)
        # Restore the order, then sum. On a GPU, an in-place addition has no fixed order of summation.
        outputs = outputs.index_select(0, order.argsort()).unflatten(0, (num_frames, num_experts_per_tok))
        return torch.einsum("nk,nko->no", routing.weights.to(outputs.dtype), outputs)

    def forward_merged(self, hidden_states: torch.Tensor, lengths: torch.Tensor, routing: Routing) -> torch.Tensor:
        """
        `y_n = W2_r act(W1_r x_n)` for frame `n` of recording `r`, with `Wi_r = sum_k weights[r, k] Wi_e`, `e =
        selected_experts[r, k]` (SMEAR, arXiv 2306.03745, section 3; SMEAR-MoE, arXiv 2601.19451). Biases are averaged likewise.

        Args:
            hidden_states (`torch.Tensor` of shape `(num_frames, in_size)`): Packed real frames.
            lengths (`torch.LongTensor` of shape `(num_recordings,)`): Frames of each recording.
            routing ([`Routing`]): Of the recordings.

        Returns:
            `torch.Tensor` of shape `(num_frames, out_size)`, in the dtype that the experts computed in.
        """
        hidden_states = _to_compute_dtype(hidden_states)
        routing, lengths = routing.to(hidden_states.device), lengths.to(hidden_states.device)
        weights = torch.zeros_like(routing.router_logits).scatter(1, routing.selected_experts, routing.weights)
        weights = weights.to(hidden_states.dtype)
        up_proj, down_proj = (
            torch.einsum("re,eoi->roi", weights, projection.to(hidden_states.dtype))
            for projection in (self.up_proj, self.down_proj)
        )
        up_bias, down_bias = (
            None if bias is None else weights @ bias.to(weights.dtype)
            for bias in (self.up_proj_bias, self.down_proj_bias)
        )
        hidden = self.act_fn(_add_bias(grouped_matmul(hidden_states, up_proj, lengths), up_bias, lengths))
        return _add_bias(grouped_matmul(hidden, down_proj, lengths), down_bias, lengths)


class MixtureOfExperts(nn.Module):
    """
    `y = sum_k g_k(x) E_k(x)` over the experts a router picks, plus the shared experts that see every frame.

    It takes packed frames, so padding cannot be routed.

    Args:
        router ([`TopKRouter`]): Picks experts.
        experts ([`Experts`]): The routed experts.
        shared_experts (`nn.Module` or `None`): What every frame passes through besides (arXiv 2401.06066).
        balance ([`ExpertBalance`]): Holds the bias by which experts are chosen.
        routing_level (`str`): `"frame"`, or `"utterance"` for one choice a recording, by the mean of its frames.
        merge (`str`): What is averaged by the routing weights, `"output"` or `"parameters"` of experts.
    """

    def __init__(
        self,
        router: TopKRouter,
        experts: Experts,
        shared_experts: nn.Module | None,
        balance: ExpertBalance,
        routing_level: str,
        merge: str,
    ):
        super().__init__()
        self.router = router
        self.experts = experts
        self.shared_experts = shared_experts
        self.balance = balance
        self.routing_level = routing_level
        self.merge = merge

    def forward(self, hidden_states: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(num_frames, in_size)`): Packed real frames.
            lengths (`torch.LongTensor` of shape `(num_recordings,)`): Frames of each recording.

        Returns:
            `tuple(torch.Tensor, Routing)`: Outputs of shape `(num_frames, out_size)`, and the routing of each frame.
        """
        lengths = lengths.to(hidden_states.device)
        is_utterance = self.routing_level == "utterance"
        routed = mean_of_recordings(hidden_states, lengths) if is_utterance else hidden_states
        routing = self.router(routed, self.balance.e_score_correction_bias)
        if self.merge == "parameters":
            outputs = self.experts.forward_merged(hidden_states, lengths, routing)
        if is_utterance:
            routing = routing.to(lengths.device).repeat(lengths, len(hidden_states))
        if self.merge == "output":
            outputs = self.experts(hidden_states, routing)
        if self.shared_experts is not None:
            outputs = outputs + self.shared_experts(hidden_states).to(outputs.device)
        return outputs, routing


def mean_of_recordings(hidden_states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """
    Mean frame of each recording, in float32 or wider.

    Args:
        hidden_states (`torch.Tensor` of shape `(num_frames, size)`): Packed real frames.
        lengths (`torch.LongTensor` of shape `(num_recordings,)`): Frames of each recording.

    Returns:
        `torch.Tensor` of shape `(num_recordings, size)`: Zero for recordings without frames.
    """
    num_frames, size = hidden_states.shape
    recording = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths, output_size=num_frames)
    hidden_states = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
    sums = hidden_states.new_zeros(len(lengths), size).index_add(0, recording, hidden_states)
    return sums / lengths.clamp(min=1)[:, None]


def _add_bias(rows: torch.Tensor, bias: torch.Tensor | None, group_sizes: torch.Tensor) -> torch.Tensor:
    """Add `bias[g]` to the rows of group `g`."""
    if bias is None:
        return rows
    return rows + bias.to(rows.dtype).repeat_interleave(group_sizes, dim=0, output_size=len(rows))


def _to_compute_dtype(hidden_states: torch.Tensor) -> torch.Tensor:
    """Cast as autocast does, because autocast does not cover grouped products."""
    device_type = hidden_states.device.type
    if not torch.is_autocast_enabled(device_type):
        return hidden_states
    return hidden_states.to(torch.get_autocast_dtype(device_type))
