"""
Word error rates by the rules of the Open ASR Leaderboard.

The rules follow `normalizer/` in https://github.com/huggingface/open_asr_leaderboard as of August 2026. For languages other
than English this module has all of them. For English it has Whisper's normaliser and the leaderboard's rules for interjections and
initials. It lacks the leaderboard's tables of names and compounds and some of its contractions.
"""

import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from functools import cache
from itertools import groupby

from transformers.models.whisper.english_normalizer import BasicTextNormalizer


try:
    from kaldialign import batch_error_rate
    from num2words import num2words
    from whisper_normalizer.english import EnglishTextNormalizer
except ImportError as error:
    raise ImportError(
        f'The leaderboard needs a package that is not installed ({error}): `pip install "llm-asr[leaderboard]"`.'
    ) from error


# "10 000". Removing punctuation also turns "10.000" into this form.
THOUSANDS = re.compile(r"(\d)\s+(\d{3})\b")
# English interjections that Whisper's normaliser does not remove.
INTERJECTIONS = re.compile(r"\b(?:ah|aha|ahh|ahm|eh|ehehe|em|hm|huh|hum|mhum|uhm|uhuh|umm)\b")
# Some corpora have this marker instead of a transcript.
IGNORED = "ignore time segment in scoring"


@cache
def leaderboard_normalizer(language: str) -> Callable[[str], str]:
    """
    Return the leaderboard's function for normalising transcripts.

    Args:
        language (`str`):
            Language code. For `"en"` the function applies Whisper's English normaliser, including its mapping of British to
            American spellings, removes further interjections, and joins initials. For other languages it applies Whisper's
            basic normaliser, which keeps diacritics, and replaces digits by words of the language.
    """
    if language == "en":
        english = EnglishTextNormalizer()
        return lambda text: join_initials(english(INTERJECTIONS.sub("", text.lower())))
    basic = BasicTextNormalizer()

    def normalize(text: str) -> str:
        text = " ".join(re.sub(r"[^\w\s]", "", basic(text)).split())
        return re.sub(r"\d+", lambda number: _spell(number[0], language), THOUSANDS.sub(r"\1\2", text))

    return normalize


def _spell(digits: str, language: str) -> str:
    """Write a number in words. Without words for the language or the number, keep the digits."""
    try:
        return num2words(int(digits), lang=language)
    except (NotImplementedError, OverflowError, ValueError):
        return digits


def join_initials(text: str) -> str:
    """
    Join initials: `"the b b c"` becomes `"the bbc"`. A run with "a" or "i", which are also words, is joined only if it has at
    least three characters.
    """
    words: list[str] = []
    for single, run in groupby(text.split(), key=lambda word: len(word) == 1 and word.isalnum()):
        members = list(run)
        fewest = 3 if {"a", "i"} & set(members) else 2
        words.extend(["".join(members)] if single and len(members) >= fewest else members)
    return " ".join(words)


def join_compounds(reference: str, hypothesis: str) -> tuple[list[str], list[str]]:
    """
    Split two transcripts into words. Words that differ only by spaces are joined in both transcripts.

    Args:
        reference (`str`): For example `"das haus boot"`.
        hypothesis (`str`): For example `"das hausboot"`.

    Returns:
        `tuple[list[str], list[str]]`: For example twice `["das", "hausboot"]`.
    """
    texts = reference.split(), hypothesis.split()
    joined: tuple[list[str], list[str]] = [], []
    for _, first, last, other_first, other_last in SequenceMatcher(None, *texts).get_opcodes():
        spans = [texts[0][first:last], texts[1][other_first:other_last]]
        compounds = ["".join(span) for span in spans]
        if spans[0] != spans[1] and compounds[0] == compounds[1]:
            spans = [[compound] for compound in compounds]
        for words, span in zip(joined, spans, strict=True):
            words.extend(span)
    return joined


def leaderboard_wer(references: Sequence[str], hypotheses: Sequence[str], language: str) -> float:
    """
    Word error rate in percent. Writing a compound as one word or as two words does not count as an error.

    Args:
        references (`Sequence[str]`): True transcripts before normalisation.
        hypotheses (`Sequence[str]`): Recognised transcripts before normalisation.
        language (`str`): Language code; see [`leaderboard_normalizer`].

    Raises:
        `ValueError`: If the lengths differ, or no reference has words.
    """
    normalize = leaderboard_normalizer(language)
    pairs = [
        (normalize(reference), normalize(hypothesis))
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    if language == "en":
        words = [(reference.split(), hypothesis.split()) for reference, hypothesis in pairs]
    else:
        words = [join_compounds(*pair) for pair in pairs]
    if not any(reference for reference, _ in words):
        raise ValueError("`references` has no words after normalisation; an error rate needs reference words.")
    return 100 * batch_error_rate(*zip(*words, strict=True), merge_compounds=True)["err_rate"]


def is_scored(reference: str, language: str) -> bool:
    """Whether the leaderboard scores a recording. It skips empty references and segments that annotators marked as ignored."""
    text = leaderboard_normalizer(language)(reference) if language == "en" else reference
    return text.strip() not in ("", IGNORED)


__all__ = ["is_scored", "join_compounds", "leaderboard_normalizer", "leaderboard_wer"]
