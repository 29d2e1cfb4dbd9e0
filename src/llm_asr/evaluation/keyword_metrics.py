"""Word error rates on listed and on other words, recall and leakage of keywords."""

from collections.abc import Sequence

import jiwer

from .normalization import get_normalizer


def keyword_report(
    references: Sequence[str],
    hypotheses: Sequence[str],
    keywords: Sequence[Sequence[str]],
    languages: Sequence[str | None] | None = None,
    normalizer: str = "basic",
) -> dict[str, float]:
    """
    Measure what keywords do to transcripts.

    Reference words that belong to a keyword of their recording count for the biased error rate, and all others for the unbiased
    one. An inserted word counts for the biased rate if it belongs to a keyword (Le et al. 2021, arXiv 2104.02194, section 4).

    Args:
        references (`Sequence[str]`): True transcripts; empty for recordings without speech.
        hypotheses (`Sequence[str]`): Recognised transcripts.
        keywords (`Sequence[Sequence[str]]`): Keywords of each recording, each of one or several words.
        languages (`Sequence[str]`, *optional*): Code or English name of the language of each recording.
        normalizer (`str`, *optional*, defaults to `"basic"`): See [`~normalization.get_normalizer`]. Keywords are normalised too.

    Returns:
        `dict[str, float]`: `b_wer` and `u_wer`, error rates in percent on listed and on other words; `recall`, the percentage of
        spoken keywords that were written; `leaked`, the number of keywords that were written though they were not spoken;
        `leakage`, the percentage of recordings in which that happened; `silence_leaked`, the part of `leaked` in recordings
        without speech; `recordings`, `listed` and `spoken`, the numbers of recordings, of listed keywords and of spoken keywords.
        Rates without a denominator are NaN.

    Raises:
        `ValueError`: If the lengths differ or the sequences are empty.
    """
    languages = [None] * len(references) if languages is None else languages
    lengths = [len(column) for column in (references, hypotheses, keywords, languages)]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise ValueError(
            f"`references`, `hypotheses`, `keywords` and `languages` must have the same length and not be empty, got {lengths}."
        )
    counts = dict.fromkeys(("b_errors", "b_words", "u_errors", "u_words", "spoken", "found", "leaked", "leaking"), 0)
    silence_leaked = 0
    for reference, hypothesis, listed, language in zip(references, hypotheses, keywords, languages, strict=True):
        normalize = get_normalizer(language, normalizer)
        said, written = normalize(reference).split(), normalize(hypothesis).split()
        phrases = list(dict.fromkeys(tuple(normalize(keyword).split()) for keyword in listed))
        phrases = [phrase for phrase in phrases if phrase]
        said_marks, said_counts = _find_phrases(said, phrases)
        written_marks, written_counts = _find_phrases(written, phrases)
        errors = _count_errors(said, written, said_marks, written_marks)
        for name, number in zip(("b_errors", "u_errors"), errors, strict=True):
            counts[name] += number
        counts["b_words"] += sum(said_marks)
        counts["u_words"] += len(said) - sum(said_marks)
        counts["spoken"] += sum(said_counts)
        counts["found"] += sum(map(min, said_counts, written_counts))
        leaked = sum(max(0, wrote - spoke) for wrote, spoke in zip(written_counts, said_counts, strict=True))
        counts["leaked"] += leaked
        counts["leaking"] += bool(leaked)
        if not said:
            silence_leaked += leaked
    return {
        "b_wer": _percentage(counts["b_errors"], counts["b_words"]),
        "u_wer": _percentage(counts["u_errors"], counts["u_words"]),
        "recall": _percentage(counts["found"], counts["spoken"]),
        "leakage": _percentage(counts["leaking"], len(references)),
        "leaked": counts["leaked"],
        "silence_leaked": silence_leaked,
        "recordings": len(references),
        "listed": sum(map(len, keywords)),
        "spoken": counts["spoken"],
    }


def _percentage(part: int, whole: int) -> float:
    return 100 * part / whole if whole else float("nan")


def _find_phrases(words: list[str], phrases: list[tuple[str, ...]]) -> tuple[list[bool], list[int]]:
    """Whether each word belongs to one of `phrases`, and how often each phrase occurs."""
    marks, counts = [False] * len(words), []
    for phrase in phrases:
        size = len(phrase)
        starts = [start for start in range(len(words) - size + 1) if tuple(words[start : start + size]) == phrase]
        counts.append(len(starts))
        for start in starts:
            marks[start : start + size] = [True] * size
    return marks, counts


def _count_errors(
    said: list[str], written: list[str], said_marks: list[bool], written_marks: list[bool]
) -> tuple[int, int]:
    """Errors on marked and on other words. An inserted word counts by its own mark."""
    marked = total = 0
    for chunk in jiwer.process_words(" ".join(said), " ".join(written)).alignments[0]:
        if chunk.type == "equal":
            continue
        if chunk.type == "insert":
            marks = written_marks[chunk.hyp_start_idx : chunk.hyp_end_idx]
        else:
            marks = said_marks[chunk.ref_start_idx : chunk.ref_end_idx]
        marked += sum(marks)
        total += len(marks)
    return marked, total - marked


__all__ = ["keyword_report"]
