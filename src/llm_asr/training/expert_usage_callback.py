"""Logs the usage of experts during training."""

from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import Trainer, TrainerCallback

from ..evaluation.expert_usage import normalized_entropy
from ..modeling.expert_balance import ExpertBalance, count_expert_load


class ExpertUsageCallback(TrainerCallback):
    """
    Logs how evenly the frames since the last log were distributed over the experts.

    - `expert_entropy`: entropy of the shares of frames, from 0 (one expert gets all frames) to 1 (equal shares);
    - `expert_min_share`: the smallest share;
    - `expert_max_violation`: excess of the largest load over the mean, relative to the mean (arXiv 2408.15664, eq. 4);
    - `dead_experts`: number of experts with less than a tenth of an equal share.

    Args:
        trainer ([`Trainer`]): The trainer. The callback calls its `log`.

    Raises:
        `ValueError`: If the model has no experts.

    Example:

    ```python
    >>> trainer.add_callback(ExpertUsageCallback(trainer))
    ```
    """

    def __init__(self, trainer: Trainer):
        model: Any = trainer.model
        balances = [module for module in model.modules() if isinstance(module, ExpertBalance)]
        if not balances:
            raise ValueError("`trainer.model` has no experts to watch; leave the callback out.")
        self.trainer = trainer
        self.balances = balances
        self.expert_load: torch.Tensor | None = None
        self.hooks: list[RemovableHandle] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.hooks = [balance.register_forward_pre_hook(self._count) for balance in self.balances]

    def on_train_end(self, args, state, control, **kwargs):
        for hook in self.hooks:
            hook.remove()

    def on_step_end(self, args, state, control, **kwargs):
        if not control.should_log or self.expert_load is None:
            return
        load = self.trainer.accelerator.reduce(self.expert_load)
        self.expert_load = None
        shares = (load / load.sum().clamp(min=1)).cpu().numpy()
        self.trainer.log(
            {
                "expert_entropy": normalized_entropy(shares),
                "expert_min_share": float(shares.min()),
                "expert_max_violation": float(shares.max() * len(shares) - 1),
                "dead_experts": int((shares < 0.1 / len(shares)).sum()),
            }
        )
        # `log` resets `should_log`; set it again for the `Trainer`'s own log.
        control.should_log = True

    def _count(self, balance: ExpertBalance, arguments: tuple) -> None:
        if balance.training:
            load = count_expert_load(*arguments[:2])
            self.expert_load = load if self.expert_load is None else self.expert_load + load


__all__ = ["ExpertUsageCallback"]
