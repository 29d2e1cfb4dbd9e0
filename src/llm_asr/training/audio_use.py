"""Measures whether a model uses its recordings: compares its loss with the loss for exchanged recordings."""

from collections.abc import Mapping

import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback


AUDIO_INPUTS = ("input_features", "input_features_mask", "audio_hidden_states", "audio_hidden_states_mask")


class AudioUseCallback(TrainerCallback):
    """
    Logs, at each evaluation, how much the loss rises when each row gets the recording of another row.

    - `eval_audio_gap`: `lm_loss` with the recording of another row, minus `lm_loss` with the right one, in nats per token;
    - `eval_draft_gap`: the same difference for `draft_loss`, for models with a draft head.

    A gap of zero means that the model ignores the audio and has only learned the language of the transcripts. The gap grows
    before error rates fall, so it shows early which runs to stop.

    Args:
        trainer ([`LlmAsrTrainer`]): The trainer. The callback reads its `eval_dataset` and calls its `log`.
        num_rows (`int`, *optional*, defaults to 64): Number of rows to use, from the start of the evaluation dataset.

    Raises:
        `ValueError`: If `num_rows` or the evaluation batch size is below 2, because recordings are exchanged within a batch.

    Example:

    ```python
    >>> trainer.add_callback(AudioUseCallback(trainer))
    ```
    """

    def __init__(self, trainer: Trainer, num_rows: int = 64):
        if num_rows < 2:
            raise ValueError(f"`num_rows` must be at least 2, got {num_rows}.")
        if trainer.args.per_device_eval_batch_size < 2:
            raise ValueError(
                "`per_device_eval_batch_size` must be at least 2, because recordings are exchanged within a batch; raise it, or "
                "leave the callback out."
            )
        self.trainer = trainer
        self.num_rows = num_rows

    def on_evaluate(self, args, state, control, **kwargs):
        rows = self._select_rows(self.trainer.eval_dataset)
        gaps = self._measure(rows)
        if gaps:
            self.trainer.log({f"eval_{name}": gap for name, gap in gaps.items()})

    def _select_rows(self, dataset) -> Dataset:
        if isinstance(dataset, Dataset):
            return dataset.select(range(min(self.num_rows, len(dataset))))
        # Streams and other iterables.
        iterator = iter(dataset)
        return Dataset.from_list([row for row, _ in zip(iterator, range(self.num_rows), strict=False)])

    def _measure(self, rows: Dataset) -> dict[str, float]:
        """The gaps, averaged over the labels of all processes."""
        trainer, model = self.trainer, self.trainer.model_wrapped
        was_training = model.training
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        has_lm = has_draft = False
        for batch in trainer.get_eval_dataloader(rows):
            batch.pop("row_ids", None)
            if len(batch["labels"]) < 2:
                continue
            num_labels = int((batch["labels"] != -100).sum())
            right, wrong = (self._losses(model, inputs) for inputs in (batch, exchange_recordings(batch)))
            has_lm, has_draft = has_lm or "lm_loss" in right, has_draft or "draft_loss" in right
            for index, name in enumerate(("lm_loss", "draft_loss")):
                sums[index] += num_labels * (wrong.get(name, 0.0) - right.get(name, 0.0))
            sums[2] += num_labels
        model.train(was_training)
        lm, draft, count = trainer.accelerator.reduce(sums.float().to(trainer.args.device)).tolist()
        if not count:
            return {}
        gaps = {"audio_gap": lm / count} if has_lm else {}
        return {**gaps, "draft_gap": draft / count} if has_draft else gaps

    @torch.no_grad()
    def _losses(self, model: torch.nn.Module, inputs: Mapping) -> dict[str, float]:
        with self.trainer.compute_loss_context_manager():
            _, outputs = self.trainer.compute_loss(model, dict(inputs), return_outputs=True)
        return {name: float(outputs[name]) for name in ("lm_loss", "draft_loss") if outputs.get(name) is not None}


def exchange_recordings(batch: Mapping) -> dict:
    """Give each row of a batch the recording of the row before it, and keep prompts, labels and target lengths."""
    return {name: value.roll(1, dims=0) if name in AUDIO_INPUTS else value for name, value in batch.items()}


__all__ = ["AudioUseCallback", "exchange_recordings"]
