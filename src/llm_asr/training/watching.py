"""Watching training: token counts of CIF, learning rates, speed, and what the model writes."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import EvalPrediction, Trainer, TrainerCallback

from ..modeling.projector_llm_asr import LlmAsrProjector
from ..processing.processing_llm_asr import LlmAsrProcessor


PARTS = ("audio_tower", "projector", "draft_head", "language_model", "lm_head")


class WatchingCallback(TrainerCallback):
    """
    Logs, wherever the `Trainer` reports to, what happened since the last log.

    - `length_error`: of CIF before it is told the number of tokens, `sum(|predicted - target|) / sum(target)` in percent,
      for projectors with CIF. Predicted numbers are not rounded.
    - `learning_rate_xxx`: the last one of each part of the model that learns, such as `learning_rate_projector`;
    - `audio_hours_per_second`: hours of audio trained on in a second, over all processes. Evaluating and saving do not
      count.

    Args:
        trainer ([`Trainer`]): Its `log` is called.

    Raises:
        `ValueError`: If the model has no projector.

    Example:

    ```python
    >>> trainer.add_callback(WatchingCallback(trainer))
    ```
    """

    def __init__(self, trainer: Trainer):
        # PEFT keeps an untrained copy beside the one that is run.
        self.projectors = [module for module in trainer.model.modules() if isinstance(module, LlmAsrProjector)]
        if not self.projectors:
            raise ValueError("`trainer.model` has no projector to watch; leave the callback out.")
        self.trainer = trainer
        self.frame_rate = trainer.model.config.audio_frame_rate
        self.hooks = []
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
        # The scheduler has not moved on yet.
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
            # Logging ends the wish to log, and the `Trainer` has yet to log its own.
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
        _, attention_mask, target_lengths = arguments
        sums = torch.zeros(3, device=attention_mask.device)
        if output.quantities is not None and target_lengths is not None:
            sums[0] = (output.quantities.detach() - target_lengths).abs().sum()
            sums[1] = target_lengths.sum()
        sums[2] = attention_mask.sum()
        self.sums = sums if self.sums is None else self.sums + sums


class SampleTranscripts:
    """
    `compute_metrics` of a `Seq2SeqTrainer` that adds a few transcripts, the same rows every time, to other metrics.

    They are a Markdown table named `samples`: `eval_samples` in logs and under TensorBoard's text.

    Args:
        compute_metrics (`Callable`): The other metrics, such as [`ErrorRates`].
        processor ([`LlmAsrProcessor`]): Decodes token ids.
        num_samples (`int`, *optional*, defaults to 4): Rows to show, from all over the evaluation dataset.

    Raises:
        `ValueError`: If `num_samples` is not positive.

    Example:

    ```python
    >>> trainer = LlmAsrTrainer(compute_metrics=SampleTranscripts(ErrorRates(processor), processor), ...)
    ```
    """

    def __init__(
        self,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]],
        processor: LlmAsrProcessor,
        num_samples: int = 4,
    ):
        if num_samples < 1:
            raise ValueError(f"`num_samples` must be positive, got {num_samples}.")
        self.compute_metrics = compute_metrics
        self.processor = processor
        self.num_samples = num_samples

    def __call__(self, prediction: EvalPrediction) -> dict[str, float | str]:
        size = len(prediction.label_ids)
        rows = np.unique(np.linspace(0, size - 1, min(self.num_samples, size)).astype(int))
        references, transcripts = (self._decode(ids[rows]) for ids in (prediction.label_ids, prediction.predictions))
        lines = ["| row | reference | transcript |", "|---|---|---|"]
        for row, reference, transcript in zip(rows, references, transcripts, strict=True):
            lines.append(f"| {row} | {_cell(reference)} | {_cell(transcript)} |")
        return {**self.compute_metrics(prediction), "samples": "\n".join(lines)}

    def _decode(self, token_ids: np.ndarray) -> Sequence[str]:
        return self.processor.batch_decode(
            np.where(token_ids == -100, self.processor.tokenizer.pad_token_id, token_ids)
        )


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


__all__ = ["SampleTranscripts", "WatchingCallback"]
