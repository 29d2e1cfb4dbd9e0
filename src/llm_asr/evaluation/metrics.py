"""Word and character error rates, pooled and by language, with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
from transformers import EvalPrediction

from .normalization import get_normalizer, is_unspaced
from .significance import bootstrap_interval


@dataclass(frozen=True)
class ErrorCounts:
    """
    Errors of each recording, in words or in characters.

    Attributes:
        substitutions, insertions, deletions (`np.ndarray` of shape `(num_recordings,)`): Of each kind.
        reference_lengths (`np.ndarray` of shape `(num_recordings,)`): Words or characters of the references.
    """

    substitutions: np.ndarray
    insertions: np.ndarray
    deletions: np.ndarray
    reference_lengths: np.ndarray

    @classmethod
    def from_alignments(cls, output: jiwer.WordOutput | jiwer.CharacterOutput) -> "ErrorCounts":
        """Take counts from what `jiwer.process_words` or `jiwer.process_characters` returns."""
        counts = {"substitute": [], "insert": [], "delete": []}
        for alignment in output.alignments:
            for kind, found in counts.items():
                spans = [
                    max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
                    for chunk in alignment
                    if chunk.type == kind
                ]
                found.append(sum(spans))
        return cls(*map(np.array, counts.values()), np.array([len(reference) for reference in output.references]))

    @property
    def errors(self) -> np.ndarray:
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        """Corpus error rate in percent."""
        return float(100 * self.errors.sum() / self.reference_lengths.sum())

    def __getitem__(self, rows: Sequence[int]) -> "ErrorCounts":
        columns = (self.substitutions, self.insertions, self.deletions, self.reference_lengths)
        return ErrorCounts(*(column[rows] for column in columns))


def count_errors(
    references: Sequence[str],
    hypotheses: Sequence[str],
    languages: Sequence[str | None] | None = None,
    normalizer: str = "basic",
) -> tuple[ErrorCounts, ErrorCounts]:
    """
    Count the errors of each recording in words and in characters.

    In languages that are written without spaces, a word is a letter with its marks, and spaces are no characters.

    Args:
        references (`Sequence[str]`): True transcripts. One that is empty has insertions alone.
        hypotheses (`Sequence[str]`): Recognised transcripts.
        languages (`Sequence[str]`, *optional*): Code or English name of the language of each recording.
        normalizer (`str`, *optional*, defaults to `"basic"`): See [`~normalization.get_normalizer`].

    Returns:
        `tuple[ErrorCounts, ErrorCounts]`: Of words, and of characters.

    Raises:
        `ValueError`: If the lengths differ or nothing is given.
    """
    if len(references) != len(hypotheses) or (languages is not None and len(languages) != len(references)):
        raise ValueError(
            f"`references` ({len(references)}), `hypotheses` ({len(hypotheses)}) and `languages` "
            f"({len(references) if languages is None else len(languages)}) must have the same length."
        )
    if not len(references):
        raise ValueError("`references` is empty; there is nothing to score.")
    languages = [None] * len(references) if languages is None else languages
    normalize = [get_normalizer(language, normalizer) for language in languages]
    words = [
        [apply(text).strip() for apply, text in zip(normalize, texts, strict=True)]
        for texts in (references, hypotheses)
    ]
    characters = [
        [
            text.replace(" ", "") if is_unspaced(language) else text
            for language, text in zip(languages, texts, strict=True)
        ]
        for texts in words
    ]
    return (
        ErrorCounts.from_alignments(jiwer.process_words(*words)),
        ErrorCounts.from_alignments(jiwer.process_characters(*characters)),
    )


def error_rates(
    references: Sequence[str],
    hypotheses: Sequence[str],
    languages: Sequence[str] | None = None,
    normalizer: str = "basic",
) -> dict[str, float]:
    """
    Corpus error rates in percent, after lower-casing and removing punctuation.

    Args:
        references (`Sequence[str]`): True transcripts, none of them empty once normalised.
        hypotheses (`Sequence[str]`): Recognised transcripts.
        languages (`Sequence[str]`, *optional*): Code or English name of the language of each recording. In one that is
            written without spaces, words are letters, and `cer` is what to look at.
        normalizer (`str`, *optional*, defaults to `"basic"`): See [`~normalization.get_normalizer`].

    Returns:
        `dict[str, float]`: `wer` and `cer`, and with `languages`, `wer_xx` and `cer_xx` for each language `xx`.

    Raises:
        `ValueError`: If the lengths differ, nothing is given, or a reference is empty.
    """
    words, characters = count_errors(references, hypotheses, languages, normalizer)
    empty = np.flatnonzero(words.reference_lengths == 0).tolist()
    if empty:
        raise ValueError(f"`references` is empty at {empty}; an error rate needs words to count.")
    groups = {"": list(range(len(references)))}
    for index, language in enumerate([] if languages is None else languages):
        groups.setdefault(f"_{language}", []).append(index)
    rates = {}
    for suffix, rows in groups.items():
        rates[f"wer{suffix}"] = words[rows].rate
        rates[f"cer{suffix}"] = characters[rows].rate
    return rates


def error_report(
    references: Sequence[str],
    hypotheses: Sequence[str],
    languages: Sequence[str | None] | None = None,
    groups: Sequence[str | None] | None = None,
    normalizer: str = "basic",
) -> dict[str, dict[str, float | str | list[float]]]:
    """
    Error rates with 95 % bootstrap intervals and kinds of errors.

    Args:
        references, hypotheses, languages, normalizer: See [`count_errors`].
        groups (`Sequence[str]`, *optional*): What each recording is reported under beside `"all"`, such as its dataset.
            Defaults to `languages`.

    Returns:
        `dict`: For each group and for `"all"`: `recordings`; `wer` and `cer` in percent, `wer_interval` and
        `cer_interval` as `[low, high]`; `headline`, the rate to look at: `"cer"` where all languages are written without
        spaces, or else `"wer"`; `substitutions`, `insertions`, `deletions` and `reference_length`, in words or, under a
        headline of `"cer"`, in characters. A group whose references have no words is left out.

    Raises:
        `ValueError`: If the lengths differ, nothing is given, or no reference has words.
    """
    words, characters = count_errors(references, hypotheses, languages, normalizer)
    if not words.reference_lengths.any():
        raise ValueError("`references` has no words once normalised; an error rate needs words to count.")
    groups = languages if groups is None else groups
    if groups is not None and len(groups) != len(references):
        raise ValueError(f"`groups` has {len(groups)} entries for {len(references)} recordings.")
    members: dict[str, list[int]] = {}
    for index, group in enumerate([] if groups is None else groups):
        if group:
            members.setdefault(group, []).append(index)
    unspaced = [is_unspaced(language) for language in languages or [None] * len(references)]
    report = {}
    for group, rows in [*sorted(members.items()), ("all", list(range(len(references))))]:
        if not words.reference_lengths[rows].any():
            continue
        headline = "cer" if all(unspaced[row] for row in rows) else "wer"
        counts = {"wer": words[rows], "cer": characters[rows]}
        report[group] = {"recordings": len(rows), "headline": headline}
        for name, errors in counts.items():
            report[group][name] = errors.rate
            report[group][f"{name}_interval"] = list(bootstrap_interval(errors.errors, errors.reference_lengths))
        for name in ("substitutions", "insertions", "deletions"):
            report[group][name] = int(getattr(counts[headline], name).sum())
        report[group]["reference_length"] = int(counts[headline].reference_lengths.sum())
    return report


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


__all__ = ["ErrorCounts", "ErrorRates", "count_errors", "error_rates", "error_report", "silence_report"]
