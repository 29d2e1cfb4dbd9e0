"""Draws the texts of utterances by the rules of a language, and finds the recordings of exactly these texts."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from grammars import Grammar, Lexicon, Unit
from rendering import EDGE_SECONDS, GAP_SECONDS, JOIN_SAMPLES, MAX_SECONDS, MIN_SECONDS, TRAIN_AUGMENTATION
from speech import SAMPLE_RATE


MAX_UNIT_WORDS = 3
"""Number of words in the longest entry of a lexicon ("quatre vingt dix")."""

DRAWS_PER_KIND = 50
DRAWS_PER_UTTERANCE = 20_000
"""Largest number of draws for one utterance, for one kind at a time and in total."""


def pronounce(text: str, lexicon: Lexicon) -> list[Unit] | None:
    """Split `text` into units of `lexicon`, trying the longest first. `None` if a word has no recording."""
    words = text.split()
    units: list[Unit] = []
    start = 0
    while start < len(words):
        lengths = range(min(MAX_UNIT_WORDS, len(words) - start), 0, -1)
        candidates = (" ".join(words[start : start + length]) for length in lengths)
        entry = next((candidate for candidate in candidates if candidate in lexicon), None)
        if entry is None:
            return None
        units.append(Unit(entry, lexicon[entry]))
        start += entry.count(" ") + 1
    return units


FIRST_DATE = datetime.date(2001, 1, 1)
DATES = (datetime.date(2101, 1, 1) - FIRST_DATE).days


def draw_number(grammar: Grammar, rng: np.random.Generator) -> str:
    """Draw a cardinal number of two to seven digits. Long numbers are mostly round."""
    digits = int(rng.integers(2, 8))
    significant = int(rng.integers(1, min(digits, 4) + 1))
    leading = int(rng.integers(10 ** (significant - 1), 10**significant))
    return grammar.number(leading * 10 ** (digits - significant))


def draw_telephone(grammar: Grammar, rng: np.random.Generator) -> str:
    """Draw a telephone number of three to eight digits, spoken one by one or in pairs."""
    if rng.random() < 0.5:
        groups = rng.integers(0, 10, size=rng.integers(3, 9))
    else:
        # Leave out multiples of ten: with the next pair, they may sound like another number (80 12 and 92 in French).
        pairs = rng.integers(1, 10, size=(rng.integers(2, 5), 2))
        groups = pairs @ (10, 1)
    return " ".join(grammar.number(int(group)) for group in groups)


def draw_date(grammar: Grammar, rng: np.random.Generator) -> str:
    """Draw a date of the 21st century, without its year."""
    date = FIRST_DATE + datetime.timedelta(days=int(rng.integers(DATES)))
    return grammar.date(date.isoweekday() % 7, date.day, date.month - 1)


def draw_time(grammar: Grammar, rng: np.random.Generator) -> str:
    """Draw a time of day. Half of the times follow a day."""
    time = grammar.time(int(rng.integers(24)), int(rng.integers(60)) if rng.random() < 0.9 else 0)
    return f"{rng.choice(grammar.days)} {time}" if rng.random() < 0.5 else time


KINDS: dict[str, Callable[[Grammar, np.random.Generator], str]] = {
    "number": draw_number,
    "telephone": draw_telephone,
    "date": draw_date,
    "time": draw_time,
}
KIND_SHARES = (0.4, 0.25, 0.15, 0.2)


@dataclass(frozen=True)
class Utterance:
    """
    The kind of an utterance (a key of `KINDS`), its units in order, and the state of the random generator that its number, date or
    time was drawn with.
    """

    kind: str
    units: tuple[Unit, ...]
    drawn_with: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def text(self) -> str:
        """The transcript."""
        return " ".join(unit.text for unit in self.units)

    def translate(self, grammar: Grammar) -> str:
        """Write the same number, date or time by the rules of another language. Grammars do not change what is drawn."""
        rng = np.random.default_rng()
        rng.bit_generator.state = self.drawn_with
        return KINDS[self.kind](grammar, rng)


def fits(utterance: Utterance, clips: Mapping[str, np.ndarray]) -> bool:
    """Whether the utterance lasts from MIN_SECONDS to MAX_SECONDS with any augmentation."""
    spoken = sum(len(clips[name]) for unit in utterance.units for name in unit.clips) / SAMPLE_RATE
    joins = sum(len(unit.clips) - 1 for unit in utterance.units) * JOIN_SAMPLES / SAMPLE_RATE
    gaps = len(utterance.units) - 1
    shortest = (spoken - joins + gaps * GAP_SECONDS[0] + 2 * EDGE_SECONDS[0]) / TRAIN_AUGMENTATION.speed[1]
    longest = (spoken - joins + gaps * GAP_SECONDS[1] + 2 * EDGE_SECONDS[1]) / TRAIN_AUGMENTATION.speed[0]
    return shortest >= MIN_SECONDS and longest <= MAX_SECONDS


def draw_utterance(
    grammar: Grammar, rng: np.random.Generator, accept: Callable[[Utterance], bool]
) -> Utterance | None:
    """Draw texts until one has recordings and is accepted. `None` after DRAWS_PER_UTTERANCE draws."""
    for draw in range(DRAWS_PER_UTTERANCE):
        # Drawing a kind several times keeps the shares of kinds if a language lacks recordings for many of its texts. Changing
        # the kind later is necessary if all its texts are used.
        if draw % DRAWS_PER_KIND == 0:
            kind = str(rng.choice(list(KINDS), p=KIND_SHARES))
        state = rng.bit_generator.state
        units = pronounce(KINDS[kind](grammar, rng), grammar.lexicon)
        if units is not None and accept(utterance := Utterance(kind, tuple(units), state)):
            return utterance
    return None


def draw_splits(
    grammar: Grammar, clips: Mapping[str, np.ndarray], counts: Mapping[str, int], rng: np.random.Generator
) -> dict[str, list[Utterance]]:
    """
    Draw the utterances of all splits of one language. No text occurs twice, in one split or in several.

    Args:
        grammar: Grammar of the language.
        clips: Samples by clip name, which determine the durations.
        counts: Number of utterances in each split, including "train".
        rng: Random generator.

    Returns:
        Utterances of each split. The utterances of "train" use all entries of the lexicon.

    Raises:
        `ValueError`: If the training split is too small to use the whole lexicon, or there are not enough texts.
    """
    seen: set[str] = set()
    unused = set(grammar.lexicon)

    def accept(utterance: Utterance) -> bool:
        covers = not unused or any(unit.text in unused for unit in utterance.units)
        return covers and utterance.text not in seen and fits(utterance, clips)

    splits: dict[str, list[Utterance]] = {}
    # Draw "train" first. While there are unused words, only utterances with one of them are accepted.
    for split in sorted(counts, key=lambda name: name != "train"):
        splits[split] = []
        for _ in range(counts[split]):
            utterance = draw_utterance(grammar, rng, accept)
            if utterance is None:
                raise ValueError(f"found only {len(splits[split])} utterances for {split!r}; unused words: {unused}")
            splits[split].append(utterance)
            seen.add(utterance.text)
            unused -= {unit.text for unit in utterance.units}
        if unused:
            raise ValueError(f"{counts['train']} training utterances leave words unused: {sorted(unused)}")
    rng.shuffle(splits["train"])
    return splits
