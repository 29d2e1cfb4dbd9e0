"""Draws lists of keywords from transcripts, for training and evaluation."""

import random
import unicodedata
from collections import Counter
from collections.abc import Sequence

from .processing.writing import is_unspaced_letter, split_units


# Length in characters of a keyword in scripts without spaces.
UNSPACED_LENGTH = 3


def find_words(text: str) -> list[str]:
    """
    The words of a text that may be keywords: without punctuation around them, and with two characters or more. In scripts without
    spaces, pieces of three characters take the place of words.
    """
    words = []
    for run in text.split():
        pieces = [run]
        if any(map(is_unspaced_letter, run)):
            units = split_units(run)
            pieces = [
                "".join(units[first : first + UNSPACED_LENGTH]) for first in range(0, len(units), UNSPACED_LENGTH)
            ]
        for piece in pieces:
            first, last = 0, len(piece)
            while first < last and unicodedata.category(piece[first])[0] in "PSZ":
                first += 1
            while last > first and unicodedata.category(piece[last - 1])[0] in "PSZ":
                last -= 1
            if last - first > 1:
                words.append(piece[first:last])
    return words


class KeywordLists:
    """
    Draws lists of keywords: rare words of a transcript among distractors, words of other transcripts.

    Distractors are drawn from the distinct words of transcripts in the same language, each with the same probability. Most
    distinct words of a language are rare, so rare words are not a sign that a word is spoken.

    Args:
        texts (`Sequence[str]`): Transcripts of a dataset.
        languages (`Sequence[str]`, *optional*): Their languages. Transcripts without a language have distractors of all
            languages.

    Raises:
        `ValueError`: If the transcripts have fewer than two distinct words.
    """

    def __init__(self, texts: Sequence[str], languages: Sequence[str | None] | None = None):
        self.num_texts: Counter[str] = Counter()
        spellings: dict[str | None, dict[str, str]] = {}
        for text, language in zip(texts, languages or [None] * len(texts), strict=True):
            found = {word.casefold(): word for word in find_words(text)}
            self.num_texts.update(found.keys())
            for group in {language, None}:
                known = spellings.setdefault(group, {})
                known.update((folded, min(word, known.get(folded, word))) for folded, word in found.items())
        # Sorted, so that draws do not depend on the order of the transcripts.
        self.pools = {group: sorted(words.values()) for group, words in spellings.items()}
        if len(self.num_texts) < 2:
            raise ValueError("The transcripts have fewer than two distinct words, so there are no keywords to draw.")

    def rare_words(self, text: str, count: int, max_texts: int | None = None) -> list[str]:
        """
        Return the words of a transcript that occur in the fewest transcripts, rarest first, and longest first among these.

        Args:
            text (`str`): The transcript.
            count (`int`): Largest number of words.
            max_texts (`int`, *optional*): Largest number of transcripts that may have a word.
        """
        words = {word.casefold(): word for word in find_words(text)}
        rare = sorted(words, key=lambda word: (self.num_texts[word], -len(word), word))
        if max_texts is not None:
            rare = [word for word in rare if self.num_texts[word] <= max_texts]
        return [words[word] for word in rare[:count]]

    def draw(
        self, text: str, language: str | None, own: Sequence[str], size: int, generator: random.Random
    ) -> list[str]:
        """
        Draw a list of keywords.

        Args:
            text (`str`): Transcript of the recording. Distractors do not occur in it.
            language (`str`, *optional*): Its language.
            own (`Sequence[str]`): Words of the transcript that the list has.
            size (`int`): Number of keywords. Where there are too few distractors, the list is shorter.
            generator (`random.Random`): Source of randomness.

        Returns:
            `list[str]`: Keywords in random order.
        """
        pool = self.pools.get(language) or self.pools[None]
        # Draw more than needed, because some may be in the transcript, as words or as parts of words.
        drawn = generator.sample(pool, min(len(pool), size + len(text)))
        spoken = text.casefold()
        distractors = [word for word in drawn if word.casefold() not in spoken]
        keywords = [*own, *distractors][:size]
        generator.shuffle(keywords)
        return keywords


__all__ = ["KeywordLists", "find_words"]
