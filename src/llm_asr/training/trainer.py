"""A `Trainer` with loss parts in its logs, batches by duration and augmentation."""

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.trainer_utils import seed_worker

from ..modeling.configuration_llm_asr import LOSS_PARTS
from .arguments import LlmAsrTrainingArguments
from .augmentation import Augmentation
from .balance_group import set_balance_group
from .data_collator import LlmAsrDataCollator
from .duration_batches import DurationBatchSampler, read_durations
from .full_disk import name_full_disk
from .interruption import stop_at_nonfinite_loss
from .keyword_sampling import KeywordSampling


def check_draft_head(model: Any) -> None:
    """
    Raises:
        `ValueError`: If a model cannot be trained with `draft_only`.
    """
    if not model.config.projector_config.draft_head:
        raise ValueError("`draft_only` needs a draft head; set `draft_head: true` in the projector configuration.")


class LlmAsrTrainer(Seq2SeqTrainer):
    """
    A [`Seq2SeqTrainer`] that logs `lm_loss`, `quantity_loss`, `draft_loss`, `ctc_loss`, `router_aux_loss` and `router_z_loss` in
    addition to `loss`. `ctc_skipped` is the number of recordings a step that have no CTC loss, because their transcripts have more
    tokens than their frames can be aligned with.

    The loss parts are averages over the optimizer steps since the last log, without their coefficients. A plain [`Trainer`] or
    [`Seq2SeqTrainer`] can also train the model.

    Args:
        augmentation ([`Augmentation`], *optional*):
            Augmentation of training recordings. Evaluation recordings do not change. It needs [`LlmAsrDataCollator`].
        keyword_sampling ([`KeywordSampling`], *optional*):
            Draws the keywords of training prompts. Prompts in evaluations have none. It needs [`LlmAsrDataCollator`].
    """

    args: Seq2SeqTrainingArguments
    # An LLM-ASR model, a `PeftModel` of it, or a wrapper for distributed training.
    model: Any
    data_collator: Any

    def __init__(
        self,
        *args,
        augmentation: Augmentation | None = None,
        keyword_sampling: KeywordSampling | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"`nn.DataParallel` on the {self.args.n_gpu} GPUs of this machine would lose the state of the routers; start the "
                f"program with `torchrun --nproc_per_node {self.args.n_gpu}`, or set CUDA_VISIBLE_DEVICES to one GPU."
            )
        set_balance_group(self.model, self.accelerator.torch_device_mesh)
        # The model smooths labels itself. The `Trainer`'s smoother would remove the labels from the inputs, and the model
        # would compute only part of the loss.
        self.label_smoother = None
        self.augmentation = augmentation
        self.keyword_sampling = keyword_sampling
        self._duration_batches: DurationBatchSampler | None = None
        self._loss_parts: dict[str, torch.Tensor] = {}
        self._last_logged_step = 0
        self._is_draft_only = isinstance(self.args, LlmAsrTrainingArguments) and self.args.draft_only
        if self._is_draft_only:
            check_draft_head(self.model)

    def train(self, *args, **kwargs):
        with name_full_disk(str(self.args.output_dir)):
            return super().train(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        row_ids = inputs.pop("row_ids", None)
        if self.args.label_smoothing_factor:
            inputs = {**inputs, "lm_loss_smoothing": self.args.label_smoothing_factor}
        if self._is_draft_only:
            inputs = {**inputs, "draft_only": True}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            stop_at_nonfinite_loss(self, loss, outputs, row_ids)
            if not self._loss_parts:
                self._last_logged_step = self.state.global_step
            for name in (*LOSS_PARTS, "ctc_skipped"):
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
            own = [rate for part in name.split(".") if (rate := rates.get(part)) is not None]
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
        own = {"augmentation": self.augmentation, "keyword_sampling": self.keyword_sampling}
        parts: dict[str, Any] = {name: part for name, part in own.items() if part is not None}
        if isinstance(collator, LlmAsrDataCollator):
            parts["numbers"] = True
        if parts:
            self.data_collator = replace(collator, **parts)
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
        # A `Trainer` that resumes from its last step inside an epoch would take one step too many.
        if self.state.global_step >= self.state.max_steps:
            return
        for part in (self.augmentation, self.keyword_sampling, self._duration_batches):
            if part is not None:
                # `accelerate` does not set the epoch of a sampler whose first batches are skipped.
                part.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def evaluate(self, *args, **gen_kwargs):
        # Count only new tokens, because the length of the prompt depends on the recording.
        if self.args.generation_max_length is not None and "max_length" not in gen_kwargs:
            gen_kwargs.setdefault("max_new_tokens", self.args.generation_max_length)
        return super().evaluate(*args, **gen_kwargs)

    def prediction_step(self, model, inputs, *args, **kwargs):
        inputs.pop("row_ids", None)
        if self._is_draft_only:
            # Both `forward` and `generate` take this argument.
            inputs["draft_only"] = True
        # `Seq2SeqTrainer` writes the library's defaults into the model's generation configuration. Without a copy, all later
        # checkpoints would contain them.
        base_model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        generation_config = copy.deepcopy(base_model.generation_config)
        try:
            return super().prediction_step(model, inputs, *args, **kwargs)
        finally:
            base_model.generation_config = generation_config

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        num_steps = self.state.global_step - self._last_logged_step
        if "loss" in logs and num_steps:
            # Each process has the loss parts of its own labels.
            parts = self.accelerator.reduce(self._loss_parts)
            logs.update({name: float(part) / num_steps for name, part in parts.items()})
            self._loss_parts = {}
        super().log(logs, *args, **kwargs)
