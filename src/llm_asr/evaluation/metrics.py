"""Word and character error rates, pooled and by language."""

from collections.abc import Sequence

import jiwer
import numpy as np
from transformers import EvalPrediction
from transformers.models.whisper.english_normalizer import BasicTextNormalizer


def error_rates(
    references: Sequence[str], hypotheses: Sequence[str], languages: Sequence[str] | None = None
) -> dict[str, float]:
    """
    Corpus error rates in percent, after lower-casing and removing punctuation as Whisper's `BasicTextNormalizer` does.

    Args:
        references (`Sequence[str]`): True transcripts, none of them empty once normalised.
        hypotheses (`Sequence[str]`): Recognised transcripts.
        languages (`Sequence[str]`, *optional*): Language of each recording.

    Returns:
        `dict[str, float]`: `wer` and `cer`, and with `languages`, `wer_xx` and `cer_xx` for each language `xx`.

    Raises:
        `ValueError`: If the lengths differ, nothing is given, or a reference is empty.
    """
    if len(references) != len(hypotheses) or (languages is not None and len(languages) != len(references)):
        raise ValueError(
            f"`references` ({len(references)}), `hypotheses` ({len(hypotheses)}) and `languages` "
            f"({len(references) if languages is None else len(languages)}) must have the same length."
        )
    if not references:
        raise ValueError("`references` is empty; there is nothing to score.")
    normalize = BasicTextNormalizer()
    references = [normalize(text).strip() for text in references]
    hypotheses = [normalize(text).strip() for text in hypotheses]
    empty = [index for index, text in enumerate(references) if not text]
    if empty:
        raise ValueError(f"`references` is empty at {empty}; an error rate needs words to count.")
    groups = {"": range(len(references))}
    for index, language in enumerate(languages or []):
        groups.setdefault(f"_{language}", []).append(index)
    rates = {}
    for suffix, indices in groups.items():
        pair = [references[index] for index in indices], [hypotheses[index] for index in indices]
        rates[f"wer{suffix}"] = 100 * jiwer.wer(*pair)
        rates[f"cer{suffix}"] = 100 * jiwer.cer(*pair)
    return rates


def silence_report(hypotheses: Sequence[str]) -> dict[str, float]:
    """
    What was made up where nobody speaks.

    Args:
        hypotheses (`Sequence[str]`): Recognised transcripts of recordings without speech.

    Returns:
        `dict[str, float]`: `recordings`; `hallucinated`, the percentage of those that have a transcript;
        `words_per_recording`.
    """
    words = [len(hypothesis.split()) for hypothesis in hypotheses]
    return {
        "recordings": len(words),
        "hallucinated": 100 * sum(map(bool, words)) / len(words),
        "words_per_recording": sum(words) / len(words),
    }


class ErrorRates:
    """
    `compute_metrics` of a `Seq2SeqTrainer` with `predict_with_generate=True`.

    Args:
        processor ([`LlmAsrProcessor`]): Decodes token ids.
        languages (`Sequence[str]`, *optional*): Language of each row of the evaluation dataset, in order.
    """

    def __init__(self, processor, languages: Sequence[str] | None = None):
        self.processor = processor
        self.languages = languages

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        pad_token_id = self.processor.tokenizer.pad_token_id
        texts = [
            self.processor.batch_decode(np.where(token_ids == -100, pad_token_id, token_ids))
            for token_ids in (prediction.label_ids, prediction.predictions)
        ]
        return error_rates(*texts, self.languages)
