"""Aligns a text that is known with the CIF weights of its recording."""

import numpy as np

from .timestamps import place_words
from .writing import split_units


# Smallest number of tokens of a word, so that a word that the tokenizer drops has a place.
MIN_TOKENS = 0.01


def count_unit_tokens(tokenizer, text: str) -> tuple[list[str], list[float]]:
    """
    Split a text into words, or into characters for scripts without spaces, and count the tokens of each.

    A token that lies in several words counts for each of them in equal shares. A token of white space alone counts for the
    word after it.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): The language model's tokenizer.
        text (`str`): The text.

    Returns:
        `tuple[list[str], list[float]]`: Words and their numbers of tokens.

    Raises:
        `ValueError`: If the tokenizer does not tell which characters its tokens cover.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"`text` cannot be aligned with {type(tokenizer).__name__}, which does not tell which characters its tokens "
            "cover; use a fast tokenizer (`AutoTokenizer`, if the checkpoint has a tokenizer.json)."
        )
    # As in training, the name of a special token is ordinary text.
    options = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}
    spans = tokenizer(text, **options)["offset_mapping"]
    units = split_units(text)
    # The unit of each character. White space belongs to the unit after it.
    unit_of = np.full(len(text), len(units) - 1)
    position = 0
    for index, unit in enumerate(units):
        end = text.index(unit, position) + len(unit)
        unit_of[position:end] = index
        position = end
    counts = np.zeros(len(units))
    for start, end in spans:
        if start < len(text):
            characters = [place for place in range(start, max(end, start + 1)) if not text[place].isspace()]
            covered = np.unique(unit_of[characters or [start]])
            counts[covered] += 1 / len(covered)
    # The tokenizer may drop characters, such as a mark that it does not know.
    return units, np.maximum(counts, MIN_TOKENS).tolist()


def align_text(tokenizer, text: str, alphas: list[np.ndarray], starts: list[float], frame_period: float) -> list[dict]:
    """See [`LlmAsrProcessor.align`]; `alphas` and `starts` have an entry for each segment."""
    units, token_counts = count_unit_tokens(tokenizer, text.strip())
    words = place_words(token_counts, alphas, starts, frame_period)
    return [
        {
            "text": unit,
            "timestamp": (word.start, word.end),
            "confidence": round(min(word.weight, count) / max(word.weight, count), 3),
        }
        for unit, count, word in zip(units, token_counts, words, strict=True)
    ]


__all__ = ["align_text", "count_unit_tokens"]
