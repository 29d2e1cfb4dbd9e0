"""Normalises texts to one spelling of each word, and rejects texts with an ambiguous pronunciation."""

from __future__ import annotations

import re
import unicodedata


UNSAYABLE = re.compile(r"[\d%<>_^@()\[\]{}|=+*/\\#&€$£]")
"""Digits and signs, which have several pronunciations."""

DRAWN_OUT = re.compile(r"(\w)\1\1")
"""A letter three times in a row marks a cry ("Aaargh"), which has no fixed spelling."""

MIN_LETTERS = 2

APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "`": "'", "´": "'", "ʼ": "'"})
HYPHENS = re.compile(r"[-‐‑‒–—―…]+")
NOT_A_WORD = re.compile(r"[^\w\s']|_")
LOOSE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")

DUTCH_CLITIC = re.compile(r"(?<!\w)'(?=[tsnkmr]\b)")
"""Words that begin with an apostrophe: "'t" is "het"."""

SCRIPTS = {"ru": "CYRILLIC", "el": "GREEK"}
"""Letters of a language. Languages that are not listed have Latin letters."""


def normalize(text: str, language: str) -> str:
    """Convert ``text`` to lower case, and remove punctuation.

    Args:
        text: sentence in any spelling.
        language: ISO 639-1 code. In Russian, "ё" becomes "е". Dutch keeps the apostrophe of "'t".

    Returns:
        Words with one space between them. An apostrophe stays inside a word, and a hyphen becomes a space.
    """
    text = unicodedata.normalize("NFC", text).translate(APOSTROPHES).lower()
    if language == "ru":
        text = text.replace("ё", "е")
    text = NOT_A_WORD.sub(" ", HYPHENS.sub(" ", text))
    if language == "nl":
        text = DUTCH_CLITIC.sub("\0", text)
    text = LOOSE_APOSTROPHE.sub(" ", text).replace("\0", "'")
    return " ".join(text.split())


def reason_to_reject(text: str, language: str) -> str | None:
    """Return the reason to reject a package's ``text``, or ``None``.

    Args:
        text: text in the package's spelling.
        language: ISO 639-1 code.
    """
    if UNSAYABLE.search(text):
        return "digits or signs in the text"
    if DRAWN_OUT.search(text.lower()):
        return "a cry in the text"
    letters = [letter for letter in normalize(text, language) if letter.isalpha()]
    if len(letters) < MIN_LETTERS:
        return "no word in the text"
    script = SCRIPTS.get(language, "LATIN")
    if not all(unicodedata.name(letter).startswith(script) for letter in letters):
        return "letters of another script"
    return None
