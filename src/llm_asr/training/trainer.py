"""The `Trainer` with the parts of the loss in its logs."""

import copy

import torch
from peft import PeftModel
from transformers import Seq2SeqTrainer

from .arguments import LlmAsrTrainingArguments
from .interruption import stop_at_nonfinite_loss


LOSS_PARTS = ("lm_loss", "quantity_loss", "draft_loss", "router_aux_loss", "router_z_loss")


class LlmAsrTrainer(Seq2SeqTrainer):
    """
    [`Seq2SeqTrainer`] that logs `lm_loss`, `quantity_loss`, `draft_loss`, `router_aux_loss` and `router_z_loss` beside `loss`.

    The parts are averages over the optimizer steps since the last log, unweighted by their coefficients. The model also
    trains with a plain [`Trainer`] or [`Seq2SeqTrainer`].
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._loss_parts: dict[str, torch.Tensor] = {}
        self._last_logged_step = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        row_ids = inputs.pop("row_ids", None)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            stop_at_nonfinite_loss(self, loss, outputs, row_ids)
            if not self._loss_parts:
                self._last_logged_step = self.state.global_step
            for name in LOSS_PARTS:
                if outputs.get(name) is not None:
                    part = outputs[name].detach()
                    self._loss_parts[name] = self._loss_parts[name] + part if name in self._loss_parts else part
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model=None):
        if self.optimizer is not None or not isinstance(self.args, LlmAsrTrainingArguments):
            return super().create_optimizer(model)
        optimizer = super().create_optimizer(model)
        rates = {
            "audio_tower": self.args.audio_learning_rate,
            "language_model": self.args.text_learning_rate,
            "lm_head": self.args.text_learning_rate,
        }
        rate_of = {}
        for name, parameter in (self.model if model is None else model).named_parameters():
            own = [rates[part] for part in name.split(".") if rates.get(part) is not None]
            rate_of[parameter] = own[0] if own else self.args.learning_rate
        groups = []
        for group in optimizer.param_groups:
            for rate in sorted({rate_of[parameter] for parameter in group["params"]}):
                parameters = [parameter for parameter in group["params"] if rate_of[parameter] == rate]
                groups.append({**group, "params": parameters, "lr": rate})
        optimizer.param_groups[:] = groups
        return optimizer

    def _run_epoch(self, *args, **kwargs):
        # Resumed from its last step in the middle of an epoch, the `Trainer` would take one more.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def evaluate(self, *args, **gen_kwargs):
        # Counted without the prompt, whose length depends on the recording.
        if self.args.generation_max_length is not None and "max_length" not in gen_kwargs:
            gen_kwargs.setdefault("max_new_tokens", self.args.generation_max_length)
        return super().evaluate(*args, **gen_kwargs)

    def prediction_step(self, model, inputs, *args, **kwargs):
        inputs.pop("row_ids", None)
        # `Seq2SeqTrainer` writes the library's defaults into the model's generation configuration, which every later
        # checkpoint would carry.
        base_model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        generation_config = copy.deepcopy(base_model.generation_config)
        try:
            return super().prediction_step(model, inputs, *args, **kwargs)
        finally:
            base_model.generation_config = generation_config

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        num_steps = self.state.global_step - self._last_logged_step
        if "loss" in logs and num_steps:
            # Each process holds its own share of the step's labels.
            scale = self.accelerator.num_processes / num_steps
            logs.update({name: float(part) * scale for name, part in self._loss_parts.items()})
            self._loss_parts = {}
        super().log(logs, *args, **kwargs)
