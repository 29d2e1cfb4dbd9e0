"""Word error rates on listed and on other words, recall and leakage of keywords."""

import evaluate

from llm_asr.evaluation.keyword_metrics import keyword_report
from llm_asr.evaluation.modules.information import transcript_metric_info


class KeywordReport(evaluate.Metric):
    """
    `compute(predictions=..., references=..., keywords=[[...], ...], languages=None, normalizer="basic")` returns `b_wer`,
    `u_wer`, `recall`, `leakage` and the numbers behind them; see [`~keyword_metrics.keyword_report`].
    """

    def _info(self) -> evaluate.MetricInfo:
        return transcript_metric_info(self, __doc__)

    def _compute(self, predictions, references, keywords, languages=None, normalizer="basic"):
        return keyword_report(references, predictions, keywords, languages, normalizer)
