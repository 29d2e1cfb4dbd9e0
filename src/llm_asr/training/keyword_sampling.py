"""Draws the keywords of training prompts. They differ between epochs and are the same in a resumed run."""

import random

import torch

from ..keyword_lists import KeywordLists


# Share of prompts without keywords, and of prompts with keywords of which none is spoken.
EMPTY_SHARE = 0.3
ABSENT_SHARE = 0.3

# Largest number of keywords that are spoken.
MAX_SPOKEN = 4


class KeywordSampling:
    """
    Draws a list of keywords for each row of a training set.

    Three tenths of the prompts have no keywords. Three tenths have distractors alone, so that the model learns not to write
    what is merely listed. The others have one to four of the rarest words of the transcript among distractors. A recording
    without speech has distractors, and its answer stays empty.

    The draws depend only on seed, epoch and row. A row therefore gets the same keywords in any batch, process or worker of the
    data loader, and in a resumed run.

    Args:
        lists ([`KeywordLists`]): The words of the training set.
        max_keywords (`int`): Largest number of keywords in a prompt.
        seed (`int`, *optional*, defaults to 0): Seed of all draws.

    Raises:
        `ValueError`: If `max_keywords` is not positive.
    """

    def __init__(self, lists: KeywordLists, max_keywords: int, seed: int = 0):
        if max_keywords < 1:
            raise ValueError(f"`max_keywords` must be positive, got {max_keywords}.")
        self.lists = lists
        self.max_keywords = max_keywords
        self.seed = seed
        # Persistent workers of the data loader have copies of this object. Shared memory tells them the new epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of all following draws. Call this before iterating over the epoch's data loader."""
        self._epoch.fill_(epoch)

    def draw(self, text: str, language: str | None, key: str) -> list[str]:
        """
        Draw the keywords of a row.

        Args:
            text (`str`): Its transcript.
            language (`str`, *optional*): Its language.
            key (`str`): Unique key of the row.

        Returns:
            `list[str]`: Keywords in random order, possibly none.
        """
        generator = random.Random(f"{self.seed} {int(self._epoch)} {key}")
        kind = generator.random()
        size = generator.randint(1, self.max_keywords)
        num_spoken = generator.randint(1, min(MAX_SPOKEN, size))
        if kind < EMPTY_SHARE:
            return []
        own = [] if kind < EMPTY_SHARE + ABSENT_SHARE else self.lists.rare_words(text, num_spoken)
        return self.lists.draw(text, language, own, size, generator)


__all__ = ["KeywordSampling"]
