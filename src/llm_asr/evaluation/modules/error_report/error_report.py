"""Word and character error rates by language or another group, with intervals and numbers of each kind of error."""

import evaluate

from llm_asr.evaluation.metrics import error_report
from llm_asr.evaluation.modules.information import transcript_metric_info


class ErrorReport(evaluate.Metric):
    """
    `compute(predictions=..., references=..., languages=None, groups=None, normalizer="basic")` returns a dictionary for each
    group (by default, each language) and for `"all"`; see [`~metrics.error_report`].
    """

    def _info(self) -> evaluate.MetricInfo:
        return transcript_metric_info(self, __doc__)

    def _compute(self, predictions, references, languages=None, groups=None, normalizer="basic"):
        return error_report(references, predictions, languages, groups, normalizer)
