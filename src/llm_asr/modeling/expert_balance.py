"""Keeping experts in use: balance statistics of an optimizer step, the losses and the router bias made from them."""

import torch
import torch.distributed as dist
from torch import nn


def count_expert_load(router_logits: torch.Tensor, selected_experts: torch.Tensor) -> torch.Tensor:
    """
    How much each expert was given to do.

    Args:
        router_logits (`torch.Tensor` of shape `(num_frames, num_experts)`): Of real frames only.
        selected_experts (`torch.LongTensor` of shape `(num_frames, num_experts_per_tok)`): The experts chosen.

    Returns:
        `torch.Tensor` of shape `(num_experts,)`, float32: Numbers of frames. Where every expert is chosen for every frame
        the numbers say nothing, and the sums of router probabilities are returned ("importance", arXiv 1701.06538, eq. 6).
    """
    num_experts = router_logits.shape[1]
    if selected_experts.shape[1] == num_experts:
        return router_logits.detach().softmax(-1).sum(0).float()
    return count_rows(selected_experts.flatten(), num_experts).float()


def count_rows(group: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Rows of each group, of shape `(num_groups,)`. `bincount` would synchronise with the GPU."""
    return torch.zeros(num_groups, dtype=torch.long, device=group.device).index_add(0, group, torch.ones_like(group))


def load_balancing_loss(
    router_logits: torch.Tensor, expert_load: torch.Tensor, num_frames: torch.Tensor | int | None = None
) -> torch.Tensor:
    """
    `E * sum_e f_e P_e` (Switch Transformers, arXiv 2101.03961, eq. 4-6), 1 when balanced, at most `num_experts`.

    `f_e` is the share of the load that expert `e` received, `P_e` its mean router probability.

    Args:
        router_logits (`torch.Tensor` of shape `(num_frames, num_experts)`): Of real frames only.
        expert_load (`torch.Tensor` of shape `(num_experts,)`): From [`count_expert_load`], of these frames or of more.
        num_frames (`torch.Tensor` or `int`, *optional*): What the sum of probabilities is divided by; the frames given if
            absent.

    Returns:
        `torch.Tensor`: A scalar; zero where there are no frames.
    """
    num_frames = router_logits.shape[0] if num_frames is None else num_frames
    shares = (expert_load / expert_load.sum().clamp(min=1)).to(router_logits.dtype)
    return router_logits.shape[1] * (shares * router_logits.softmax(-1).sum(0)).sum() / max_one(num_frames)


def router_z_loss(router_logits: torch.Tensor, num_frames: torch.Tensor | int | None = None) -> torch.Tensor:
    """
    Mean squared log-partition of the router (ST-MoE, arXiv 2202.08906, eq. 5), which keeps its logits small.

    Args:
        router_logits (`torch.Tensor` of shape `(num_frames, num_experts)`): Of real frames only.
        num_frames (`torch.Tensor` or `int`, *optional*): What the sum is divided by; the frames given if absent.

    Returns:
        `torch.Tensor`: A scalar; zero where there are no frames.
    """
    num_frames = router_logits.shape[0] if num_frames is None else num_frames
    return router_logits.logsumexp(-1).square().sum() / max_one(num_frames)


def max_one(count: torch.Tensor | int) -> torch.Tensor | int:
    """Return `count`, or one if it is zero."""
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)


class ExpertBalance(nn.Module):
    """
    The balance losses, over all processes and micro-batches of an optimizer step, and loss-free balancing.

    A micro-batch knows the labels it holds and, from the `Trainer`'s `num_items_in_batch`, those of the whole step, so it
    knows when a step ends. In training, the load that experts received is added up over processes and over the
    micro-batches of the step so far (arXiv 2501.11873), and the parts of the loss add up, over both, to means over all
    frames. In evaluation nothing is kept and nothing is exchanged.

    Loss-free balancing (arXiv 2408.15664, algorithm 1; DeepSeek-V3, arXiv 2412.19437, eq. 16): a bias is added to the
    router's probabilities when experts are chosen, and only then. At the end of each step it goes down by `bias_update_rate`
    for experts that received more than their share and up for the others.

    Args:
        num_experts (`int`): Number of experts.
        bias_update_rate (`float`): Step of the bias; without bias if zero.

    Attributes:
        process_group (`ProcessGroup`, *optional*): Processes with different batches, whose load is added up; all processes
            if absent. [`LlmAsrTrainer`] sets it where some processes share a batch, as in tensor parallelism.
    """

    e_score_correction_bias: torch.Tensor | None
    expert_load: torch.Tensor
    num_labels: torch.Tensor
    num_items: torch.Tensor

    def __init__(self, num_experts: int, bias_update_rate: float):
        super().__init__()
        self.process_group: dist.ProcessGroup | None = None
        self.bias_update_rate = bias_update_rate
        # The updates of the bias are too small for a lower precision.
        bias = torch.zeros(num_experts, dtype=torch.float32) if bias_update_rate else None
        self.register_buffer("e_score_correction_bias", bias)
        # Totals of the current optimizer step.
        self.register_buffer("expert_load", torch.zeros(num_experts, dtype=torch.float32), persistent=False)
        self.register_buffer("num_labels", torch.zeros((), dtype=torch.long), persistent=False)
        self.register_buffer("num_items", torch.zeros((), dtype=torch.long), persistent=False)

    def forward(
        self,
        router_logits: torch.Tensor,
        selected_experts: torch.Tensor,
        num_labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            router_logits (`torch.Tensor` of shape `(num_frames, num_experts)`): Of real frames only.
            selected_experts (`torch.LongTensor` of shape `(num_frames, num_experts_per_tok)`): The experts chosen.
            num_labels (`torch.LongTensor` of shape `()`): Labels in this micro-batch and process.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Labels in the whole step, over micro-batches and processes. Without it, each call is a step.

        Returns:
            `tuple(torch.Tensor)`: [`load_balancing_loss`] and [`router_z_loss`].
        """
        num_frames = router_logits.shape[0]
        expert_load = count_expert_load(router_logits, selected_experts)
        if not self.training:
            share = 1 if num_items_in_batch is None else num_labels / num_items_in_batch
            return (
                share * load_balancing_loss(router_logits, expert_load),
                share * router_z_loss(router_logits),
            )

        totals = torch.cat([expert_load, expert_load.new_full((1,), num_frames), num_labels[None]])
        num_processes = 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(totals, group=self.process_group)
            num_processes = dist.get_world_size(self.process_group)
        expert_load, total_frames, num_labels = totals[:-2], totals[-2], totals[-1].long()

        if num_items_in_batch is None:
            # Gradients are then averaged over processes, not summed.
            num_items, share = num_labels, num_processes
        else:
            num_items = torch.as_tensor(num_items_in_batch, device=num_labels.device).long()
            share = num_labels / num_items
        # Discard the totals of an interrupted step.
        goes_on = num_items == self.num_items
        step_load = torch.where(goes_on, self.expert_load, 0.0) + expert_load
        step_labels = torch.where(goes_on, self.num_labels, 0) + num_labels
        losses = (
            share * load_balancing_loss(router_logits, step_load, total_frames),
            share * router_z_loss(router_logits, total_frames),
        )
        self._keep(step_load, step_labels, num_items)
        return losses

    @torch.no_grad()
    def _keep(self, step_load: torch.Tensor, step_labels: torch.Tensor, num_items: torch.Tensor) -> None:
        """Add to the totals of the step. At its end, update the bias and reset the totals."""
        is_end = step_labels >= num_items
        if self.e_score_correction_bias is not None:
            direction = (step_load.mean() - step_load).sign()
            self.e_score_correction_bias += torch.where(is_end, self.bias_update_rate * direction, 0.0)
        self.expert_load.copy_(torch.where(is_end, 0.0, step_load))
        self.num_labels.copy_(torch.where(is_end, 0, step_labels))
        self.num_items.copy_(torch.where(is_end, 0, num_items))
