"""Error rates for the evaluation of a `Trainer`."""

from collections.abc import Sequence

import numpy as np
from transformers import EvalPrediction

from .modules.cer_by_language.cer_by_language import CharacterErrorRateByLanguage
from .modules.wer_by_language.wer_by_language import WordErrorRateByLanguage


class ErrorRates:
    """
    `compute_metrics` of a `Seq2SeqTrainer` with `predict_with_generate=True`.

    The modules `wer_by_language` and `cer_by_language` compute the rates; see [`~metrics.error_rates`].

    Args:
        processor ([`LlmAsrProcessor`]): Decodes token ids.
        languages (`Sequence[str]`, *optional*): Language of each row of the evaluation dataset, in order.
    """

    def __init__(self, processor, languages: Sequence[str] | None = None):
        self.processor = processor
        self.languages = languages
        # All processes of a distributed run compute the metrics. In memory they need no locks on shared cache files.
        self.modules = [
            module(keep_in_memory=True) for module in (WordErrorRateByLanguage, CharacterErrorRateByLanguage)
        ]

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        pad_token_id = self.processor.tokenizer.pad_token_id
        references, predictions = (
            self.processor.batch_decode(np.where(token_ids == -100, pad_token_id, token_ids))
            for token_ids in (prediction.label_ids, prediction.predictions)
        )
        rates: dict[str, float] = {}
        for module in self.modules:
            rates |= module.compute(predictions=predictions, references=references, languages=self.languages)
        return rates


__all__ = ["ErrorRates"]
