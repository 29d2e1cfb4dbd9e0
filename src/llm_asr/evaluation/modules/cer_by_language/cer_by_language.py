"""Character error rate in percent after normalisation, pooled and by language."""

import evaluate

from llm_asr.evaluation.metrics import error_rates
from llm_asr.evaluation.modules.information import transcript_metric_info


class CharacterErrorRateByLanguage(evaluate.Metric):
    """
    `compute(predictions=..., references=..., languages=None, normalizer="basic")` returns `cer` and, with `languages` (a code
    or an English name for each reference), `cer_xx` for each language; see [`~metrics.error_rates`].
    """

    def _info(self) -> evaluate.MetricInfo:
        return transcript_metric_info(self, __doc__)

    def _compute(self, predictions, references, languages=None, normalizer="basic"):
        rates = error_rates(references, predictions, languages, normalizer)
        return {name: rate for name, rate in rates.items() if name.startswith(("cer", "unscored"))}
