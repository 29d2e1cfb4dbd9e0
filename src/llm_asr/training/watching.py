"""Logs CIF's token count errors, learning rates and speed during training."""

import time
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import Trainer, TrainerCallback

from ..modeling.projector_llm_asr import LlmAsrProjector


PARTS = ("audio_tower", "projector", "draft_head", "language_model", "lm_head")


class WatchingCallback(TrainerCallback):
    """
    Logs further quantities over the steps since the last log.

    - `length_error`: for projectors with CIF, `sum(|predicted - target|) / sum(target)` in percent, where the predicted
      number of tokens is the sum of the weights before scaling, without rounding;
    - `learning_rate_xxx`: the last learning rate of each trained part, such as `learning_rate_projector`;
    - `audio_hours_per_second`: hours of training audio per second, over all processes. The time of evaluating and saving is
      excluded.

    Args:
        trainer ([`Trainer`]): The trainer. The callback calls its `log`.

    Raises:
        `ValueError`: If the model has no projector.

    Example:

    ```python
    >>> trainer.add_callback(WatchingCallback(trainer))
    ```
    """

    def __init__(self, trainer: Trainer):
        # There may be several: PEFT keeps the original projector beside the one that runs.
        model: Any = trainer.model
        self.projectors = [module for module in model.modules() if isinstance(module, LlmAsrProjector)]
        if not self.projectors:
            raise ValueError("`trainer.model` has no projector to watch; leave the callback out.")
        self.trainer = trainer
        self.frame_rate = model.config.audio_frame_rate
        self.hooks: list[RemovableHandle] = []
        self.groups: dict[str, int] = {}
        self.rates: list[float] = []
        # Absolute errors of token counts, token counts, encoder frames.
        self.sums: torch.Tensor | None = None
        self.started = self.paused = 0.0

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.hooks = [projector.register_forward_hook(self._count) for projector in self.projectors]
        group_of = {
            id(parameter): i for i, group in enumerate(optimizer.param_groups) for parameter in group["params"]
        }
        for name, parameter in model.named_parameters():
            part = next((part for part in PARTS if part in name.split(".")), None)
            if part is not None and id(parameter) in group_of:
                self.groups[part] = group_of[id(parameter)]
        self.sums = None
        self.started = self.paused = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        for hook in self.hooks:
            hook.remove()

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        # At this point the scheduler has not changed the learning rates of the step.
        self.rates = [group["lr"] for group in optimizer.param_groups]

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_log and self.sums is not None:
            errors, tokens, frames = self.trainer.accelerator.reduce(self.sums).tolist()
            now = time.perf_counter()
            logs = {"length_error": 100 * errors / tokens} if tokens else {}
            logs.update({f"learning_rate_{part}": float(self.rates[group]) for part, group in self.groups.items()})
            logs["audio_hours_per_second"] = frames / self.frame_rate / 3600 / (now - self.started)
            self.sums = None
            self.started = now
            self.trainer.log(logs)
            # `log` resets `should_log`; set it again for the `Trainer`'s own log.
            control.should_log = True
        self.paused = time.perf_counter()

    def on_evaluate(self, args, state, control, **kwargs):
        self._resume()

    def on_save(self, args, state, control, **kwargs):
        self._resume()

    def _resume(self) -> None:
        now = time.perf_counter()
        self.started += now - self.paused
        self.paused = now

    def _count(self, projector: LlmAsrProjector, arguments: tuple, output) -> None:
        if not projector.training:
            return
        attention_mask, target_lengths = arguments[1:3]
        sums = torch.zeros(3, device=attention_mask.device)
        if output.quantities is not None and target_lengths is not None:
            # The true number is unknown where it is negative.
            sums[0] = (output.quantities.detach() - target_lengths).abs().masked_fill(target_lengths < 0, 0.0).sum()
            sums[1] = target_lengths.clamp(min=0).sum()
        sums[2] = attention_mask.sum()
        self.sums = sums if self.sums is None else self.sums + sums


__all__ = ["WatchingCallback"]
