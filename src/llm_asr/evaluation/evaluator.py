"""Makes `evaluate.evaluator("automatic-speech-recognition")` work with pipelines of Transformers 5."""

from typing import Any, Final

from evaluate import load
from evaluate.evaluator import SUPPORTED_EVALUATOR_TASKS, AutomaticSpeechRecognitionEvaluator
from transformers import Pipeline, pipeline

from .modules import metric_folder


TASK: Final = "automatic-speech-recognition"


class LlmAsrEvaluator(AutomaticSpeechRecognitionEvaluator):
    """
    Evaluates a checkpoint, a model or a pipeline on a dataset. Importing this module registers the class for the task. The
    library's own evaluator needs a class that Transformers 5 does not have, and passes `truncation`, which audio pipelines
    do not accept.

    Example:

    ```python
    >>> import evaluate
    >>> import llm_asr.evaluation.evaluator
    >>> from llm_asr.evaluation.modules import metric_folder

    >>> evaluator = evaluate.evaluator("automatic-speech-recognition")
    >>> wer = evaluate.load(metric_folder("wer_by_language"))
    >>> results = evaluator.compute("runs/mine", data, metric=wer, input_column="audio", label_column="text")
    >>> evaluate.save("results/", **results)
    ```
    """

    PIPELINE_KWARGS: dict[str, Any] = {}

    def __init__(self, task: str = TASK, default_metric_name: str | None = None):
        # `compute` adds the options of one call, so each instance needs its own dictionary.
        self.PIPELINE_KWARGS = {}
        super().__init__(task, default_metric_name=default_metric_name)

    def prepare_pipeline(self, model_or_pipeline, tokenizer=None, feature_extractor=None, device=None) -> Pipeline:
        """Return a pipeline unchanged, and create one for a checkpoint or a model."""
        if isinstance(model_or_pipeline, Pipeline):
            return model_or_pipeline
        return pipeline(
            TASK, model=model_or_pipeline, tokenizer=tokenizer, feature_extractor=feature_extractor, device=device
        )

    def prepare_metric(self, metric):
        """Load `metric`. The default is the word error rate by language."""
        return load(metric_folder("wer_by_language")) if metric is None else super().prepare_metric(metric)

    def call_pipeline(self, pipe, *args, **kwargs):
        """Transcribe the recordings, and return the transcripts with the duration of the call."""
        (recordings,) = args
        return super().call_pipeline(
            pipe, list(recordings) if not isinstance(recordings, list) else recordings, **kwargs
        )


SUPPORTED_EVALUATOR_TASKS[TASK]["implementation"] = LlmAsrEvaluator


__all__ = ["LlmAsrEvaluator"]
