"""Finds the English name of a language, which prompts use, from its code or name."""

import difflib
import re
from collections.abc import Mapping
from functools import lru_cache

from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE


try:
    import langcodes
except ImportError:
    # A checkpoint's code also runs without this package. It then knows only the codes in `languages`.
    langcodes = None  # type: ignore[assignment]

# Names in prompts ("Spanish"), by code: Whisper's languages and the further languages of FLEURS.
LANGUAGE_CODE_TO_NAME = {code: name.title() for code, name in LANGUAGES.items()} | {
    "ast": "Asturian",
    "ceb": "Cebuano",
    "ckb": "Sorani Kurdish",
    "ff": "Fula",
    "ga": "Irish",
    "ig": "Igbo",
    "kam": "Kamba",
    "kea": "Kabuverdianu",
    "ky": "Kyrgyz",
    "lg": "Ganda",
    "luo": "Luo",
    "nso": "Northern Sotho",
    "ny": "Nyanja",
    "om": "Oromo",
    "or": "Oriya",
    "umb": "Umbundu",
    "wo": "Wolof",
    "xh": "Xhosa",
    "zu": "Zulu",
}

# Values for an unknown language.
UNKNOWN = ("", "auto")

# Largest distance by CLDR's measure. It includes other codes of a language and its standard forms (Bokmål for Norwegian), but
# no other language.
MAX_DISTANCE = 4


def find_language(language: str, languages: Mapping[str, str]) -> str | None:
    """
    Find the English name of a language.

    Args:
        language (`str`): A code of ISO 639-1, -2 or -3, with or without a script and a region (`"es"`, `"spa"`, `"es-MX"`,
            `"cmn_hans_cn"`), or an English name, in upper or lower case.
        languages (`Mapping[str, str]`): English names by code.

    Returns:
        `str`: English name, or `None` if `languages` does not have the language.
    """
    code = language.strip().lower()
    by_name = {name.lower(): name for name in languages.values()}
    if code in by_name or code in languages:
        return by_name.get(code) or languages[code]
    # `TO_LANGUAGE_CODE` has further names of some languages.
    primary = re.split("[-_]", TO_LANGUAGE_CODE.get(code, code))[0]
    return languages.get(primary) or languages.get(_equal_code(primary, tuple(languages)) or "")


def suggest_languages(language: str, languages: Mapping[str, str]) -> list[str]:
    """The names and codes of languages that are spelled most similarly to an unknown name."""
    known = {name.lower(): f"{name} ({code})" for code, name in languages.items()}
    found = difflib.get_close_matches(language.strip().lower(), known, n=3, cutoff=0.7)
    return [known[name] for name in found]


@lru_cache(maxsize=1024)
def _equal_code(code: str, codes: tuple[str, ...]) -> str | None:
    """Find the one of `codes` that means the same language as `code`."""
    if langcodes is None:
        return None
    try:
        found, distance = langcodes.closest_match(code, codes, max_distance=MAX_DISTANCE)
    except langcodes.LanguageTagError:
        return None
    return found if distance <= MAX_DISTANCE else None


__all__ = ["LANGUAGE_CODE_TO_NAME", "UNKNOWN", "find_language", "suggest_languages"]
