"""Decides which words of changing hypotheses are final."""

from collections import deque


class Agreement:
    """
    LocalAgreement-n (arXiv 2005.11185; for Whisper arXiv 2307.14743): a word is committed when `num_passes` consecutive hypotheses
    of a segment agree on it and on all words before it.

    A committed word stays, even if a later hypothesis has another one in its place. The words that follow it are then found
    by the smallest edit distance between the committed words and the beginnings of the hypothesis.

    Args:
        num_passes (`int`, *optional*): Hypotheses that must agree. `None` commits the last hypothesis alone.
    """

    def __init__(self, num_passes: int | None):
        self._earlier: deque[list[str]] = deque(maxlen=0 if num_passes is None else num_passes - 1)
        self._num_earlier = None if num_passes is None else num_passes - 1
        self._committed: list[str] = []

    def update(self, words: list[str]) -> tuple[int, int]:
        """
        Add a hypothesis of the unfinished segment.

        Args:
            words (`list[str]`): All words of the hypothesis.

        Returns:
            `tuple[int, int]`: The first of the words that this hypothesis commits, and the first word after them, as indices.
        """
        agreed = 0
        if len(self._earlier) == self._num_earlier:
            agreed = min((_count_equal(words, earlier) for earlier in self._earlier), default=len(words))
        self._earlier.append(words)
        return self._commit(words, agreed)

    def finish(self, words: list[str]) -> tuple[int, int]:
        """Add the hypothesis of the finished segment, which commits its remaining words; see `update`."""
        return self._commit(words, len(words))

    def _commit(self, words: list[str], end: int) -> tuple[int, int]:
        first = _find_end(self._committed, words)
        end = max(first, end)
        self._committed += words[first:end]
        return first, end


def _count_equal(left: list[str], right: list[str]) -> int:
    """Number of equal words at the start of two lists."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))


def _find_end(committed: list[str], words: list[str]) -> int:
    """Number of words at the start of `words` that correspond to `committed`: the smallest edit distance decides."""
    if words[: len(committed)] == committed:
        return len(committed)
    costs = list(range(len(words) + 1))
    for row, word in enumerate(committed, start=1):
        above, costs = costs, [row]
        for index, other in enumerate(words):
            costs.append(min(above[index] + (word != other), above[index + 1] + 1, costs[index] + 1))
    # Of two equally close places take the later one, so that no text is repeated.
    return min(range(len(costs)), key=lambda index: (costs[index], -index))


__all__ = ["Agreement"]
