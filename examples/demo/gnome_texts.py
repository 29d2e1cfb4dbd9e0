"""Reads sentences with an unambiguous pronunciation from the GNOME user documentation and its translations."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from speech import SoundPackage


TEXTS = SoundPackage(
    name="gnome-user-docs",
    version="43.0-2",
    sha256="0d635a840747958ca84da778b40d341f1155603851f922c9a171f5a181d6a39f",
    licence="CC-BY-SA-3.0",
    sounds="usr/share/help",
)


@dataclass(frozen=True)
class Language:
    """
    A language of the corpus.

    Attributes:
        folder: Folder of the translation.
        voice: eSpeak NG's name of the language.
        script: First word of the Unicode names of its letters.
    """

    folder: str
    voice: str
    script: str = "LATIN"


LANGUAGES = {
    "cs": Language("cs", "cs"),
    "de": Language("de", "de"),
    "en": Language("C", "en-us"),
    "es": Language("es", "es"),
    "fr": Language("fr", "fr"),
    "hu": Language("hu", "hu"),
    "pl": Language("pl", "pl"),
    "pt": Language("pt_BR", "pt-br"),
    "ru": Language("ru", "ru", "CYRILLIC"),
    "sv": Language("sv", "sv"),
}

MALLARD = "{http://projectmallard.org/1.0/}"
CODE = {MALLARD + name for name in ("code", "cmd", "file", "input", "key", "keyseq", "output", "screen", "sys", "var")}
"""Elements for text that is typed and not spoken. Paragraphs with such elements are left out."""

MIN_WORDS, MAX_WORDS, MAX_CHARACTERS = 3, 14, 90

# Numbers of held-out pages per 20 pages.
TEST_PAGES, VALIDATION_PAGES = 2, 1


def read_sentences(page: Path) -> Iterator[str]:
    """Yield the original sentences of a page."""
    tree = ElementTree.parse(page)
    for tag in ("p", "desc"):
        for paragraph in tree.iter(MALLARD + tag):
            if not any(element.tag in CODE for element in paragraph.iter()):
                text = " ".join("".join(paragraph.itertext()).split())
                yield from re.split(r"(?<=[.!?;:])\s+", text)


def plain(sentence: str) -> str:
    """Convert a sentence to lower case, and remove punctuation except apostrophes."""
    kept = (character if character == "'" or character.isalpha() else " " for character in sentence.replace("’", "'"))
    return " ".join("".join(kept).lower().split())


def is_sayable(sentence: str, language: Language) -> bool:
    """Whether a sentence is complete, has a suitable length, and has an unambiguous pronunciation."""
    letters = [character for character in unicodedata.normalize("NFC", sentence) if character.isalpha()]
    words = [re.sub(r"\W", "", word) for word in sentence.split()]
    return (
        sentence.endswith((".", "!", "?"))
        and not re.search(r"[\d()\[\]/\\<>=+*@_…|&%]|\.\.", sentence)
        and not any(len(word) > 1 and word.isupper() for word in words)
        and MIN_WORDS <= len(plain(sentence).split()) <= MAX_WORDS
        and len(sentence) <= MAX_CHARACTERS
        and all(unicodedata.name(letter, "").startswith(language.script) for letter in letters)
    )


def split_of(page: str) -> str:
    """The split of a page. All translations of a page are in the same split."""
    draw = zlib.crc32(page.encode()) % 20
    return "test" if draw < TEST_PAGES else "validation" if draw < TEST_PAGES + VALIDATION_PAGES else "train"


def read_language(folder: Path, language: Language) -> dict[str, list[str]]:
    """Read the sentences of each split, without duplicates and without untranslated sentences."""
    originals: set[str] = set()
    if language.folder != "C":
        for page in (folder / "C" / "gnome-help").glob("*.page"):
            originals.update(read_sentences(page))
    splits: dict[str, dict[str, str]] = {"train": {}, "validation": {}, "test": {}}
    for page in sorted((folder / language.folder / "gnome-help").glob("*.page")):
        for sentence in read_sentences(page):
            if sentence not in originals and is_sayable(sentence, language):
                splits[split_of(page.stem)].setdefault(plain(sentence), sentence)
    seen: set[str] = set()
    chosen = {}
    for split, sentences in splits.items():
        chosen[split] = [sentence for text, sentence in sentences.items() if text not in seen]
        seen.update(sentences)
    return chosen
