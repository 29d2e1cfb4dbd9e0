"""What is not counted as an error: case, punctuation and, for English, ways of writing."""

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE


# Chinese languages, Japanese, Thai, Lao, Burmese, Khmer, Tibetan and Dzongkha, in two letters and in three.
UNSPACED_LANGUAGE_CODES = frozenset(
    [
        "zh",
        "zho",
        "cmn",
        "yue",
        "wuu",
        "nan",
        "hak",
        "lzh",
        "ja",
        "jpn",
        "th",
        "tha",
        "lo",
        "lao",
        "my",
        "mya",
        "km",
        "khm",
        "bo",
        "bod",
        "dz",
        "dzo",
    ]
)

NORMALIZERS = ("basic", "whisper")


def language_code(language: str) -> str:
    """
    Code of a language, without its region or script.

    Args:
        language (`str`): A code (`"zh"`, `"zh-CN"`, `"cmn_hans_cn"`) or an English name that Whisper knows.
    """
    language = language.strip().lower()
    return TO_LANGUAGE_CODE.get(language, re.split("[-_]", language)[0])


def is_unspaced(language: str | None) -> bool:
    """Whether a language, by its code or English name, is written without spaces between words."""
    return bool(language) and language_code(language) in UNSPACED_LANGUAGE_CODES


class MarkKeepingNormalizer(BasicTextNormalizer):
    """
    Whisper's `BasicTextNormalizer`, but for combining marks, which stay.

    The original takes them for punctuation and puts a space in their place. That removes vowels and splits words wherever
    vowels are marks, as in Hindi, Tamil and Thai ("हिन्दी" becomes "ह न द"), and makes error rates look lower than they are
    ([arXiv 2409.02449](https://arxiv.org/abs/2409.02449)). Elsewhere the two are the same.

    Args:
        split_letters (`bool`, *optional*, defaults to `False`): Whether to make every letter, with its marks, a word.
    """

    def __init__(self, split_letters: bool = False):
        super().__init__(split_letters=split_letters)
        self.clean = _remove_symbols


def _remove_symbols(text: str) -> str:
    return "".join(
        " " if unicodedata.category(char)[0] in "SP" else char for char in unicodedata.normalize("NFKC", text)
    )


def get_normalizer(language: str | None = None, normalizer: str = "basic") -> Callable[[str], str]:
    """
    What makes transcripts in a language comparable.

    Args:
        language (`str`, *optional*):
            Code or English name. Languages that are written without spaces are split into letters, so that their words
            are letters, as Whisper's authors count them.
        normalizer (`str`, *optional*, defaults to `"basic"`):
            - `"basic"`: lower case, without punctuation and what stands in brackets, all languages alike.
            - `"whisper"`: exactly as in Whisper's paper ([arXiv 2212.04356](https://arxiv.org/abs/2212.04356), appendix
              C), for comparison with published numbers: `EnglishTextNormalizer` for English, which also expands
              contractions, drops "uh" and "hmm", and writes numbers in digits, and `BasicTextNormalizer` for others. As
              number words that follow each other become one number ("forty seven ninety eight" → "4798"), it suits
              corpora that mix words and digits, and not corpora of spoken numbers. British and American spellings remain
              different, for their mapping comes with Whisper's tokenizers and not with Transformers.

    Raises:
        `ValueError`: If `normalizer` is unknown.
    """
    if normalizer not in NORMALIZERS:
        raise ValueError(f"`normalizer` must be one of {', '.join(NORMALIZERS)}, got {normalizer!r}.")
    return _build(
        normalizer, english=bool(language) and language_code(language) in ("en", "eng"), split=is_unspaced(language)
    )


@cache
def _build(normalizer: str, english: bool, split: bool) -> Callable[[str], str]:
    if normalizer == "basic":
        return MarkKeepingNormalizer(split_letters=split)
    return EnglishTextNormalizer({}) if english else BasicTextNormalizer(split_letters=split)


__all__ = ["NORMALIZERS", "get_normalizer", "is_unspaced", "language_code"]
