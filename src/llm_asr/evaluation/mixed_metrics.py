"""Error rates by the language of the word, for speech that switches between languages."""

from collections.abc import Sequence

import jiwer

from ..processing.writing import split_units
from .normalization import get_normalizer


def word_language_report(
    words: Sequence[Sequence[dict]], hypotheses: Sequence[str], normalizer: str = "basic"
) -> dict[str, dict[str, float]]:
    """
    Count errors by the language of the word (the mixed error rate of code-switching, by language).

    In scripts without spaces, characters count as words. An inserted word counts for the language of the reference word before
    it, or of the first word.

    Args:
        words (`Sequence[Sequence[dict]]`): For each recording, `{"word": str, "language": str}` for each word that is spoken.
        hypotheses (`Sequence[str]`): Recognised transcripts.
        normalizer (`str`, *optional*, defaults to `"basic"`): See [`~normalization.get_normalizer`]. The rules of single languages
            are not applied, because it is not known which language a recognised word has.

    Returns:
        `dict[str, dict]`: For each language and for `"all"`: `words`, their number; `errors`; and `wer` in percent.

    Raises:
        `ValueError`: If the lengths differ, or no recording has a word.
    """
    if len(words) != len(hypotheses):
        raise ValueError(f"`words` ({len(words)}) and `hypotheses` ({len(hypotheses)}) must have the same length.")
    normalize = get_normalizer(None, normalizer)
    numbers: dict[str, int] = {}
    errors: dict[str, int] = {}
    for spoken, hypothesis in zip(words, hypotheses, strict=True):
        pairs = [(token, word["language"]) for word in spoken for token in split_units(normalize(word["word"]))]
        if not pairs:
            continue
        languages = [language for _, language in pairs]
        for language in languages:
            numbers[language] = numbers.get(language, 0) + 1
        reference = " ".join(token for token, _ in pairs)
        for chunk in jiwer.process_words(reference, " ".join(split_units(normalize(hypothesis)))).alignments[0]:
            if chunk.type == "insert":
                wrong = [languages[max(0, chunk.ref_start_idx - 1)]] * (chunk.hyp_end_idx - chunk.hyp_start_idx)
            else:
                wrong = languages[chunk.ref_start_idx : chunk.ref_end_idx] if chunk.type != "equal" else []
            for language in wrong:
                errors[language] = errors.get(language, 0) + 1
    if not numbers:
        raise ValueError("`words` has no word; there is nothing to score.")
    report = {
        language: {"words": numbers[language], "errors": errors.get(language, 0)} for language in sorted(numbers)
    }
    report["all"] = {"words": sum(numbers.values()), "errors": sum(errors.values())}
    return {name: {**found, "wer": 100 * found["errors"] / found["words"]} for name, found in report.items()}


__all__ = ["word_language_report"]
