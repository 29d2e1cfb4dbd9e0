"""Shows a few transcripts of every evaluation."""

from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import EvalPrediction, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from ..processing.processing_llm_asr import LlmAsrProcessor


class SampleTranscripts:
    """
    `compute_metrics` of a `Seq2SeqTrainer` that computes other metrics and keeps the transcripts of a few fixed rows.
    [`SampleTranscriptsCallback`] shows them.

    Args:
        compute_metrics (`Callable`): The other metrics, such as [`ErrorRates`].
        processor ([`LlmAsrProcessor`]): Decodes token ids.
        num_samples (`int`, *optional*, defaults to 4): Number of rows to keep. They are spread evenly over the evaluation
            dataset.

    Attributes:
        samples (`list[tuple[int, str, str]]`): Number, reference and transcript of each kept row of the last evaluation.

    Raises:
        `ValueError`: If `num_samples` is not positive.

    Example:

    ```python
    >>> samples = SampleTranscripts(ErrorRates(processor), processor)
    >>> trainer = LlmAsrTrainer(compute_metrics=samples, ...)
    >>> trainer.add_callback(SampleTranscriptsCallback(trainer, samples))
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
        self.samples: list[tuple[int, str, str]] = []

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        size = len(prediction.label_ids)
        rows = np.unique(np.linspace(0, size - 1, min(self.num_samples, size)).astype(int))
        references, transcripts = (self._decode(ids[rows]) for ids in (prediction.label_ids, prediction.predictions))
        self.samples = list(zip(rows.tolist(), references, transcripts, strict=True))
        return self.compute_metrics(prediction)

    def _decode(self, token_ids: np.ndarray) -> Sequence[str]:
        texts = self.processor.batch_decode(
            np.where(token_ids == -100, self.processor.tokenizer.pad_token_id, token_ids)
        )
        return [" ".join(text.split()) for text in texts]


class SampleTranscriptsCallback(TrainerCallback):
    """
    Prints the transcripts of [`SampleTranscripts`], and writes them to TensorBoard as text (`eval/samples`).

    Args:
        trainer ([`Trainer`]): The trainer.
        samples ([`SampleTranscripts`]): The trainer's `compute_metrics`.
    """

    COLUMNS = ("row", "reference", "transcript")

    def __init__(self, trainer: Trainer, samples: SampleTranscripts):
        self.trainer = trainer
        self.samples = samples

    def on_evaluate(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or not self.samples.samples:
            return
        table = Table(*self.COLUMNS, title=f"Transcripts at step {state.global_step}")
        for row, reference, transcript in self.samples.samples:
            table.add_row(str(row), escape(reference), escape(transcript))
        Console().print(table)
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_text("eval/samples", self._markdown(), state.global_step)

    def _markdown(self) -> str:
        cells = [[str(cell).replace("|", "\\|") for cell in sample] for sample in self.samples.samples]
        lines = [self.COLUMNS, ("---",) * len(self.COLUMNS), *cells]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


__all__ = ["SampleTranscripts", "SampleTranscriptsCallback"]
