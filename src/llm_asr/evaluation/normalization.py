"""Normalisation of transcripts before errors are counted: case, punctuation and, for English, spelling variants."""

import re
import unicodedata
from collections.abc import Callable
from functools import cache

import langcodes
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from ..processing.languages import LANGUAGE_CODE_TO_NAME
from ..processing.writing import UNSPACED_SCRIPTS


# Languages with a dotted i (İ, i) and a dotless one (I, ı): Turkish, Azerbaijani, Crimean Tatar and Tatar.
DOTLESS_LANGUAGES = ("tr", "az", "crh", "tt")

NORMALIZERS = ("basic", "whisper")


def language_code(language: str) -> str:
    """
    Code of a language, without its region or script.

    Args:
        language (`str`): A code (`"zh"`, `"zh-CN"`, `"cmn_hans_cn"`), or an English name from Whisper or FLEURS.
    """
    language = language.strip().lower()
    names = {name.lower(): code for code, name in LANGUAGE_CODE_TO_NAME.items()}
    return TO_LANGUAGE_CODE.get(language) or names.get(language) or re.split("[-_]", language)[0]


def is_unspaced(language: str | None) -> bool:
    """Whether a language, by its code or English name, is written without spaces between words."""
    if not language:
        return False
    code = _standard_code(language_code(language))
    return langcodes.tag_is_valid(code) and langcodes.get(code).maximize().script in UNSPACED_SCRIPTS


class MarkKeepingNormalizer(BasicTextNormalizer):
    """
    Whisper's `BasicTextNormalizer`, except that it keeps combining marks.

    The original replaces combining marks with spaces, as it does punctuation. In Hindi, Tamil, Thai and other languages
    whose vowels are marks, this removes vowels and splits words ("हिन्दी" becomes "ह न द"), so that error rates are too low
    ([arXiv 2409.02449](https://arxiv.org/abs/2409.02449)). For other languages both normalisers give the same text.

    Args:
        split_letters (`bool`, *optional*, defaults to `False`): Whether each letter, with its marks, becomes a word.
        dotless_i (`bool`, *optional*, defaults to `False`): Whether I and İ become ı and i in lower case, as in Turkish.
    """

    def __init__(self, split_letters: bool = False, dotless_i: bool = False):
        super().__init__(split_letters=split_letters)
        self.clean = _remove_symbols
        self.dotless_i = dotless_i

    def __call__(self, text: str) -> str:
        if self.dotless_i:
            text = unicodedata.normalize("NFC", text).replace("I", "ı").replace("İ", "i")
        return super().__call__(text)


def _remove_symbols(s: str) -> str:
    return "".join(" " if unicodedata.category(char)[0] in "SP" else char for char in unicodedata.normalize("NFKC", s))


def get_normalizer(language: str | None = None, normalizer: str = "basic") -> Callable[[str], str]:
    """
    Return the function that normalises transcripts in a language.

    Args:
        language (`str`, *optional*):
            Code or English name. Text in languages that are written without spaces is split into letters, so that each
            letter counts as a word, as in Whisper's paper.
        normalizer (`str`, *optional*, defaults to `"basic"`):
            - `"basic"`: converts text to lower case by the rules of the language, and removes punctuation and text in
              brackets.
            - `"whisper"`: exactly as in Whisper's paper ([arXiv 2212.04356](https://arxiv.org/abs/2212.04356), appendix
              C), for comparison with published numbers: `EnglishTextNormalizer` for English, which also expands
              contractions, removes "uh" and "hmm", and writes numbers in digits, and `BasicTextNormalizer` for other
              languages. Consecutive number words become one number ("forty seven ninety eight" → "4798"), so it suits
              corpora that mix words and digits, but not corpora of spoken numbers. British and American spellings remain
              different, because Whisper's tokenizers contain the mapping and Transformers does not.

    Raises:
        `ValueError`: If `normalizer` is unknown.
    """
    if normalizer not in NORMALIZERS:
        raise ValueError(f"`normalizer` must be one of {', '.join(NORMALIZERS)}, got {normalizer!r}.")
    return _build(normalizer, language_code(language) if language else "")


@cache
def _build(normalizer: str, code: str) -> Callable[[str], str]:
    split, code = is_unspaced(code), _standard_code(code)
    if normalizer == "basic":
        return MarkKeepingNormalizer(split_letters=split, dotless_i=code in DOTLESS_LANGUAGES)
    return EnglishTextNormalizer({}) if code == "en" else BasicTextNormalizer(split_letters=split)


def _standard_code(code: str) -> str:
    """The shortest form of a language code: `"tr"` for `"tur"`."""
    try:
        return langcodes.get(code).language or code
    except langcodes.LanguageTagError:
        return code


__all__ = ["NORMALIZERS", "get_normalizer", "is_unspaced", "language_code"]
