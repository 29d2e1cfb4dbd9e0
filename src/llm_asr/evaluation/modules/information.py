"""The description of a metric module that the library `evaluate` requires."""

import evaluate
from datasets import Features, Value


def transcript_metric_info(module: evaluate.Metric, description: str) -> evaluate.MetricInfo:
    """
    Describe a metric module that compares transcripts.

    Args:
        module (`evaluate.Metric`): The module. Its docstring must explain the arguments of `compute`.
        description (`str`): What the module measures.
    """
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description=type(module).__doc__,
        features=Features({"predictions": Value("string"), "references": Value("string")}),
        reference_urls=["https://github.com/jitsi/jiwer"],
    )


__all__ = ["transcript_metric_info"]
