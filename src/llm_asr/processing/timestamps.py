"""Computes the times of words from the weights of Continuous Integrate-and-Fire."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .writing import joint, split_units


# Cost of a boundary inside a full weight, relative to a word whose weight is wrong by one token. Weights of words are
# sometimes wrong by a token, while weights between words are almost zero. So pauses are the more reliable evidence.
PAUSE_PREFERENCE = 50.0

# Cost of a word without any frame. Words have none only where there are fewer places than words.
EMPTY_COST = 1e6

# A frame at the start or at the end of a word with a smaller weight does not count as speech.
ONSET_WEIGHT = 0.03
OFFSET_WEIGHT = 0.02

# Largest distance in tokens of a boundary from the place where the weights reach the tokens so far: `MIN_DRIFT + DRIFT_RATE *
# sqrt(n)`, with n the tokens before or after it, whichever are fewer. Errors of single words add up like a random walk.
MIN_DRIFT = 16.0
DRIFT_RATE = 3.0


def split_words(tokenizer, token_ids: Iterable[int]) -> tuple[list[str], list[float]]:
    """
    Split generated tokens into words, or into characters for scripts without spaces, and count the tokens of each. Words
    that share a token get equal shares of it.
    """
    special = set(tokenizer.all_special_ids)
    ids = [int(token_id) for token_id in token_ids if int(token_id) not in special]
    token_counts: list[float] = []
    num_pending = 0
    for count in range(1, len(ids) + 1):
        # A single token may be part of a character, so count the words in the whole text so far.
        text = tokenizer.decode(ids[:count], skip_special_tokens=True)
        num_pending += 1
        if not text or text[-1].isspace() or text[-1] == "\N{REPLACEMENT CHARACTER}":
            # A space or the start of a character belongs to the next word.
            continue
        num_words = len(split_units(text))
        if num_words > len(token_counts):
            num_new = num_words - len(token_counts)
            token_counts += [num_pending / num_new] * num_new
        else:
            token_counts[-1] += num_pending
        num_pending = 0
    words = split_units(tokenizer.decode(ids, skip_special_tokens=True))
    # A text that ends in an incomplete character may have more words than were counted.
    num_missing = len(words) - len(token_counts)
    if num_missing > 0:
        token_counts += [num_pending / num_missing] * num_missing
    elif token_counts:
        token_counts[-1] += num_pending
    return words, token_counts


@dataclass
class PlacedWord:
    """
    Where a word lies among the weights.

    Attributes:
        start, end (`float`): Times in seconds, rounded to milliseconds.
        weight (`float`): Sum of the CIF weights of the word, in tokens. A trained CIF gives a word of `n` tokens about `n`.
    """

    start: float
    end: float
    weight: float


def align_words(token_counts: list[float], alphas: np.ndarray, frame_period: float) -> list[tuple[float, float]]:
    """
    Compute the start and the end of each word of one segment; see [`place_words`].

    Returns:
        `list[tuple[float, float]]`: Start and end of each word in seconds, rounded to milliseconds, in order and without
        overlap.
    """
    return [(word.start, word.end) for word in place_words(token_counts, [alphas], [0.0], frame_period)]


def place_words(
    token_counts: list[float], alphas: list[np.ndarray], starts: list[float], frame_period: float
) -> list[PlacedWord]:
    """
    Find each word of a text among the CIF weights of consecutive segments.

    CIF is trained to give a word of `n` tokens a total weight of `n`. Dynamic programming finds the boundaries that minimise
    the sum of `(weight - n)^2 / n` over all words and `PAUSE_PREFERENCE * min(alpha before, alpha after)` over all boundaries.
    The weights are scaled to the number of tokens first. A boundary may differ from the place where the weights reach the
    tokens so far by `MIN_DRIFT` tokens, and by more in the middle of a long recording. A word starts with the first frame of
    its span that has weight. It includes half of the pause after it, because speech fades more slowly than its weights.

    Args:
        token_counts (`list[float]`): Number of tokens of each word, with a fraction for a shared token.
        alphas (`list[np.ndarray]` of shape `(num_frames,)`): CIF weights of each segment, zero in padding.
        starts (`list[float]`): Start of each segment in seconds, in order.
        frame_period (`float`): Seconds between consecutive weights.

    Returns:
        `list[PlacedWord]`: The words, in order and without overlap.

    Raises:
        `ValueError`: If `alphas` are not one-dimensional, or no frame has weight.
    """
    for row in alphas:
        if row.ndim != 1:
            raise ValueError(f"`alphas` must have shape (num_frames,), got {row.shape}.")
    if not token_counts:
        return []
    joined = np.concatenate(alphas).astype(np.float64)
    weighing = np.flatnonzero(joined > 0)
    if not len(weighing):
        raise ValueError("`alphas` has no weight above zero, so the times of the words are unknown.")
    joined = joined[: weighing[-1] + 1]
    weights = joined * (sum(token_counts) / joined.sum())

    boundaries = _place_boundaries(np.array(token_counts), weights)
    firsts, lasts = [], []
    for first, last in itertools.pairwise(boundaries):
        span = weights[first:last]
        onsets, offsets = np.flatnonzero(span > ONSET_WEIGHT), np.flatnonzero(span > OFFSET_WEIGHT)
        firsts.append(first + (onsets[0] if len(onsets) else 0))
        lasts.append(first + offsets[-1] + 1 if len(offsets) else last)
    # A word of no frames at the end of the weights stands after the last frame.
    segments = np.repeat(np.arange(len(alphas)), [len(row) for row in alphas])
    segments = np.append(segments[: len(weights)], segments[len(weights) - 1])
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in alphas])])
    in_first, in_last = segments[firsts], segments[np.maximum(np.array(lasts) - 1, firsts)]
    word_starts = np.array(starts)[in_first] + (np.array(firsts) - offsets[in_first]) * frame_period
    word_ends = np.array(starts)[in_last] + (np.array(lasts) - offsets[in_last]) * frame_period

    word_starts = np.maximum.accumulate(word_starts)
    middles = np.where(in_last[:-1] == in_first[1:], (word_ends[:-1] + word_starts[1:]) / 2, word_ends[:-1])
    word_ends[:-1] = np.clip(middles, word_starts[:-1], word_starts[1:])
    word_ends = np.maximum(word_ends, word_starts)
    before = np.concatenate([[0.0], joined.cumsum()])
    return [
        PlacedWord(round(float(start), 3), round(float(end), 3), float(weight))
        for start, end, weight in zip(word_starts, word_ends, np.diff(before[boundaries]), strict=True)
    ]


def _place_boundaries(token_counts: np.ndarray, weights: np.ndarray) -> list[int]:
    """First frame of each word, and the end of the last word, as indices from 0 to `len(weights)`."""
    before = np.concatenate([[0.0], weights.cumsum()])
    crossing = np.concatenate([[np.inf], np.minimum(weights[:-1], weights[1:]), [np.inf]])
    is_valley = (crossing[1:-1] <= crossing[:-2]) & (crossing[1:-1] <= crossing[2:])
    places = np.concatenate([[0], np.flatnonzero(is_valley) + 1, [len(weights)]])
    if len(places) <= len(token_counts):
        places = np.arange(len(weights) + 1)
    # All places in a pause without weight are equally good.
    places = places[np.unique(before[places], return_index=True)[1]]
    # The last weight may be too small to change the sum.
    places[-1] = len(weights)
    masses = before[places]

    # Boundary i may lie at the places firsts[i] to lasts[i].
    tokens = np.concatenate([[0.0], token_counts.cumsum()])
    drift = MIN_DRIFT + DRIFT_RATE * np.sqrt(np.minimum(tokens, tokens[-1] - tokens).clip(min=0))
    firsts = np.searchsorted(masses, tokens - drift).clip(max=len(places) - 1)
    lasts = np.maximum(np.searchsorted(masses, tokens + drift, side="right") - 1, firsts)
    firsts[0] = lasts[0] = 0
    firsts[-1] = lasts[-1] = len(places) - 1

    # cost[j] is the lowest cost of the words so far if the last of them ends at the j-th place of its boundary.
    cost = np.zeros(1)
    came_from = []
    for index, count in enumerate(token_counts):
        origins = np.arange(firsts[index], lasts[index] + 1)
        ends = np.arange(firsts[index + 1], lasts[index + 1] + 1)
        step = cost[:, None] + (masses[ends] - masses[origins, None] - count) ** 2 / count
        step[origins[:, None] > ends] = np.inf
        step[origins[:, None] == ends] += EMPTY_COST
        came_from.append(step.argmin(axis=0).astype(np.int32))
        cost = step.min(axis=0)
        if index < len(token_counts) - 1:
            cost = cost + PAUSE_PREFERENCE * crossing[places[ends]]

    place = 0
    boundaries = [int(places[-1])]
    for index in range(len(token_counts) - 1, -1, -1):
        place = int(came_from[index][place])
        boundaries.append(int(places[firsts[index] + place]))
    return boundaries[::-1]


def join_segments(words: list[dict], longest_pause: float) -> list[dict]:
    """
    Join words to segments. A pause of more than `longest_pause` seconds separates segments.

    Args:
        words (`list[dict]`): `{"text": str, "timestamp": (start, end)}`, in order.
        longest_pause (`float`): Longest pause inside a segment, in seconds.

    Returns:
        `list[dict]`: Segments in the same form.
    """
    segments: list[dict] = []
    for word in words:
        start, end = word["timestamp"]
        if segments and start - segments[-1]["timestamp"][1] <= longest_pause:
            segment = segments[-1]
            segment["text"] += joint(segment["text"], word["text"]) + word["text"]
            segment["timestamp"] = (segment["timestamp"][0], end)
        else:
            segments.append({"text": word["text"], "timestamp": (start, end)})
    return segments


__all__ = ["PlacedWord", "align_words", "join_segments", "place_words", "split_words"]
