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

# Between the names of several languages that are spoken in one recording.
LANGUAGE_SEPARATOR = ", "

# How an answer names them before its transcript, and the place of the names in it.
LANGUAGE_PLACE = "{language}"
DEFAULT_LANGUAGE_TAG = "{language}\n"

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


def split_language_tag(language_tag: str) -> tuple[str, str]:
    """What `language_tag` of [`LlmAsrProcessor`] has before the names of languages, and after them."""
    before, _, after = language_tag.partition(LANGUAGE_PLACE)
    return before, after


def suggest_languages(language: str, languages: Mapping[str, str]) -> list[str]:
    """The names and codes of languages that are spelled most similarly to an unknown name."""
    known = {name.lower(): f"{name} ({code})" for code, name in languages.items()}
    found = difflib.get_close_matches(language.strip().lower(), known, n=3, cutoff=0.7)
    return [known[name] for name in found]


def name_languages(language: str | None, languages: Mapping[str, str]) -> str | None:
    """
    See [`LlmAsrProcessor.language_name`].

    Args:
        language (`str`, *optional*): Codes or English names, with commas between several.
        languages (`Mapping[str, str]`): English names by code.
    """
    if language is None:
        return None
    if not isinstance(language, str):
        raise TypeError(f"`language` must be a string, a code or a name, got {language!r}.")
    if language.strip().lower() in UNKNOWN:
        return None
    whole = find_language(language, languages)
    if whole is not None:
        return whole
    names: dict[str, None] = {}
    for part in language.split(LANGUAGE_SEPARATOR.strip()):
        name = find_language(part, languages)
        if name is None:
            suggestions = suggest_languages(part, languages)
            hint = f"did you mean {' or '.join(suggestions)}? Otherwise pass" if suggestions else "pass"
            raise ValueError(
                f"`language` {part.strip()!r} is not among the {len(languages)} languages of this processor; {hint} a code "
                "such as 'es', an English name such as 'Spanish', or None for an unknown language. The processor's "
                "`languages` can add further languages."
            )
        names[name] = None
    return LANGUAGE_SEPARATOR.join(names)


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


__all__ = [
    "DEFAULT_LANGUAGE_TAG",
    "LANGUAGE_CODE_TO_NAME",
    "LANGUAGE_PLACE",
    "LANGUAGE_SEPARATOR",
    "UNKNOWN",
    "find_language",
    "name_languages",
    "split_language_tag",
    "suggest_languages",
]
