"""Splits, joins and measures text, including text in scripts that are written without spaces between words."""

import unicodedata
from functools import cache


# Scripts by ISO 15924: Han, Japanese, Thai, Lao, Burmese, Khmer and Tibetan.
UNSPACED_SCRIPTS = frozenset(["Hani", "Hans", "Hant", "Jpan", "Thai", "Laoo", "Mymr", "Khmr", "Tibt"])

# Prefixes of the Unicode names of letters in these scripts.
LETTER_NAMES = ("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "THAI", "LAO", "MYANMAR", "KHMER", "TIBETAN")


@cache
def is_unspaced_letter(char: str) -> bool:
    """Whether a character is a letter of a script that is written without spaces between words."""
    return unicodedata.category(char)[0] == "L" and unicodedata.name(char, "").startswith(LETTER_NAMES)


def is_mark(char: str) -> bool:
    """Whether a character modifies the character before it and does not stand alone."""
    return unicodedata.category(char)[0] == "M" or char == "\N{ZERO WIDTH JOINER}"


def split_units(text: str) -> list[str]:
    """
    Split a text into the smallest parts that get a time: words, or characters in scripts without spaces.

    Marks belong to the letter before them. Punctuation belongs to the unit before it, except for opening brackets and quotes.

    Args:
        text (`str`): Any text.

    Returns:
        `list[str]`: Units without white space.
    """
    units: list[str] = []
    for word in text.split():
        is_first, is_open, is_unspaced = True, False, False
        for char in word:
            opens, is_letter = unicodedata.category(char) in ("Ps", "Pi"), is_unspaced_letter(char)
            if is_first or (not is_open and (is_letter or (is_unspaced and (opens or char.isalnum())))):
                units.append(char)
                is_unspaced = is_letter
            else:
                units[-1] += char
                is_unspaced = is_unspaced or is_letter
            is_first, is_open = False, opens
    return units


def joint(left: str, right: str) -> str:
    """The separator of two parts of a text: nothing between letters of scripts without spaces, otherwise a space."""
    if not left or not right:
        return ""
    last = next((char for char in reversed(left) if char.isalpha()), None)
    first = next((char for char in right if char.isalpha()), None)
    letters = [char for char in (last, first) if char is not None]
    return "" if letters and all(map(is_unspaced_letter, letters)) else " "


def count_columns(text: str) -> int:
    """Width of a text on a screen in columns. Wide East Asian characters take two columns, and marks take none."""
    return sum(0 if is_mark(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


__all__ = ["UNSPACED_SCRIPTS", "count_columns", "is_mark", "is_unspaced_letter", "joint", "split_units"]
