"""The `Trainer` with the parts of the loss in its logs, batches by duration and altered recordings."""

import copy
from dataclasses import replace
from functools import partial

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer
from transformers.trainer_utils import seed_worker

from .arguments import LlmAsrTrainingArguments
from .augmentation import Augmentation
from .duration_batches import DurationBatchSampler, read_durations
from .interruption import stop_at_nonfinite_loss


LOSS_PARTS = ("lm_loss", "quantity_loss", "draft_loss", "router_aux_loss", "router_z_loss")


class LlmAsrTrainer(Seq2SeqTrainer):
    """
    [`Seq2SeqTrainer`] that logs `lm_loss`, `quantity_loss`, `draft_loss`, `router_aux_loss` and `router_z_loss` beside `loss`.

    The parts are averages over the optimizer steps since the last log, unweighted by their coefficients. The model also
    trains with a plain [`Trainer`] or [`Seq2SeqTrainer`].

    Args:
        augmentation ([`Augmentation`], *optional*):
            What becomes of recordings that are trained on; those to evaluate on stay as they are. Needs
            [`LlmAsrDataCollator`].
    """

    def __init__(self, *args, augmentation: Augmentation | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.augmentation = augmentation
        self._duration_batches: DurationBatchSampler | None = None
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

    def get_train_dataloader(self) -> DataLoader:
        collator = self.data_collator
        if self.augmentation is not None:
            self.data_collator = replace(collator, augmentation=self.augmentation)
        try:
            if isinstance(self.args, LlmAsrTrainingArguments) and self.args.max_batch_seconds is not None:
                return self._load_batches_by_duration(self.args.max_batch_seconds)
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def _load_batches_by_duration(self, max_seconds: float) -> DataLoader:
        if not isinstance(self.train_dataset, Dataset):
            raise ValueError("`max_batch_seconds` needs a dataset that does not stream; set `streaming: false`.")
        args = self.args
        durations = read_durations(self.train_dataset, self.data_collator.audio_column)
        seed = args.seed if args.data_seed is None else args.data_seed
        self._duration_batches = DurationBatchSampler(durations, max_seconds, seed, args.dataloader_drop_last)
        dataloader = DataLoader(
            self.train_dataset,
            batch_sampler=self._duration_batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
            in_order=args.dataloader_in_order,
            worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        )
        return self.accelerator.prepare(dataloader)

    def _run_epoch(self, *args, **kwargs):
        # Resumed from its last step in the middle of an epoch, the `Trainer` would take one more.
        if self.state.global_step >= self.state.max_steps:
            return
        for part in (self.augmentation, self._duration_batches):
            if part is not None:
                # A sampler whose first batches are skipped is told by nobody else.
                part.set_epoch(kwargs["epoch"])
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
            # Each process holds its own share of the steps' labels.
            parts = self.accelerator.reduce(self._loss_parts)
            logs.update({name: float(part) / num_steps for name, part in parts.items()})
            self._loss_parts = {}
        super().log(logs, *args, **kwargs)
