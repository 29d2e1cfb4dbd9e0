"""Word and character error rates with bootstrap intervals, pooled and by language."""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np

from .normalization import get_normalizer, is_unspaced
from .significance import bootstrap_interval


@dataclass(frozen=True)
class ErrorCounts:
    """
    Numbers of errors in each recording, in words or in characters.

    Attributes:
        substitutions, insertions, deletions (`np.ndarray` of shape `(num_recordings,)`): Number of errors of each kind.
        reference_lengths (`np.ndarray` of shape `(num_recordings,)`): Number of words or characters in each reference.
    """

    substitutions: np.ndarray
    insertions: np.ndarray
    deletions: np.ndarray
    reference_lengths: np.ndarray

    @classmethod
    def from_alignments(cls, output: jiwer.WordOutput | jiwer.CharacterOutput) -> "ErrorCounts":
        """Count the errors in the output of `jiwer.process_words` or `jiwer.process_characters`."""
        counts: dict[str, list[int]] = {"substitute": [], "insert": [], "delete": []}
        for alignment in output.alignments:
            for kind, found in counts.items():
                spans = [
                    max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
                    for chunk in alignment
                    if chunk.type == kind
                ]
                found.append(sum(spans))
        return cls(
            substitutions=np.array(counts["substitute"]),
            insertions=np.array(counts["insert"]),
            deletions=np.array(counts["delete"]),
            reference_lengths=np.array([len(reference) for reference in output.references]),
        )

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

    In languages that are written without spaces, each letter with its marks counts as a word, and spaces do not count as
    characters.

    Args:
        references (`Sequence[str]`): True transcripts. An empty reference can only have insertions.
        hypotheses (`Sequence[str]`): Recognised transcripts.
        languages (`Sequence[str]`, *optional*): Code or English name of the language of each recording.
        normalizer (`str`, *optional*, defaults to `"basic"`): See [`~normalization.get_normalizer`].

    Returns:
        `tuple[ErrorCounts, ErrorCounts]`: Errors in words, and errors in characters.

    Raises:
        `ValueError`: If the lengths differ or the sequences are empty.
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
        ErrorCounts.from_alignments(jiwer.process_words(words[0], words[1])),
        ErrorCounts.from_alignments(jiwer.process_characters(characters[0], characters[1])),
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
        references (`Sequence[str]`): True transcripts. References that are empty after normalisation are not scored.
        hypotheses (`Sequence[str]`): Recognised transcripts.
        languages (`Sequence[str]`, *optional*): Code or English name of the language of each recording. For a language that
            is written without spaces, `cer` is the usual measure, because each letter counts as a word.
        normalizer (`str`, *optional*, defaults to `"basic"`): See [`~normalization.get_normalizer`].

    Returns:
        `dict[str, float]`: `wer` and `cer`, and with `languages` also `wer_xx` and `cer_xx` for each language `xx` with words
        to score. Without any words to score, `wer` and `cer` are NaN. If references are empty, `unscored` is their number,
        and `unscored_hypotheses` is the number of these recordings that have a hypothesis.

    Raises:
        `ValueError`: If the lengths differ or the sequences are empty.
    """
    words, characters = count_errors(references, hypotheses, languages, normalizer)
    scored = np.flatnonzero(words.reference_lengths > 0).tolist()
    groups = {"": scored}
    if languages is not None:
        for index in scored:
            groups.setdefault(f"_{languages[index]}", []).append(index)
    rates = {}
    for suffix, rows in groups.items():
        rates[f"wer{suffix}"] = words[rows].rate if rows else float("nan")
        rates[f"cer{suffix}"] = characters[rows].rate if rows else float("nan")
    if len(scored) < len(references):
        rates["unscored"] = len(references) - len(scored)
        made_up = (words.reference_lengths == 0) & (words.insertions > 0)
        rates["unscored_hypotheses"] = int(made_up.sum())
    return rates


def error_report(
    references: Sequence[str],
    hypotheses: Sequence[str],
    languages: Sequence[str | None] | None = None,
    groups: Sequence[str | None] | None = None,
    normalizer: str = "basic",
) -> dict[str, dict[str, float | str | list[float]]]:
    """
    Error rates with 95 % bootstrap intervals and numbers of substitutions, insertions and deletions.

    Args:
        references, hypotheses, languages, normalizer: See [`count_errors`].
        groups (`Sequence[str]`, *optional*): Group of each recording, such as its dataset. Each group gets an entry in the
            report. Defaults to `languages`.

    Returns:
        `dict`: For each group and for `"all"`: `recordings`; `wer` and `cer` in percent, `wer_interval` and
        `cer_interval` as `[low, high]`; `headline`, the name of the usual rate: `"cer"` if all languages of the group are
        written without spaces, otherwise `"wer"`; `substitutions`, `insertions`, `deletions` and `reference_length`, in
        characters if `headline` is `"cer"`, otherwise in words. The report omits groups whose references have no words.

    Raises:
        `ValueError`: If the lengths differ, the sequences are empty, or no reference has words.
    """
    words, characters = count_errors(references, hypotheses, languages, normalizer)
    if not words.reference_lengths.any():
        raise ValueError("`references` has no words after normalisation; an error rate needs reference words.")
    groups = languages if groups is None else groups
    if groups is not None and len(groups) != len(references):
        raise ValueError(f"`groups` has {len(groups)} entries for {len(references)} recordings.")
    members: dict[str, list[int]] = {}
    for index, group in enumerate([] if groups is None else groups):
        if group:
            members.setdefault(group, []).append(index)
    unspaced = [is_unspaced(language) for language in languages or [None] * len(references)]
    report: dict[str, dict[str, float | str | list[float]]] = {}
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
    Measure hallucinations in recordings without speech.

    Args:
        hypotheses (`Sequence[str]`): Recognised transcripts of recordings without speech.

    Returns:
        `dict[str, float]`: `recordings`, their number; `hallucinated`, the percentage of recordings with a transcript;
        `words_per_recording`, the mean number of words.
    """
    words = [len(hypothesis.split()) for hypothesis in hypotheses]
    return {
        "recordings": len(words),
        "hallucinated": 100 * sum(map(bool, words)) / len(words),
        "words_per_recording": sum(words) / len(words),
    }


__all__ = ["ErrorCounts", "count_errors", "error_rates", "error_report", "silence_report"]
