"""Computes the times of words from the weights of Continuous Integrate-and-Fire."""

import itertools
from collections.abc import Iterable

import numpy as np

from .writing import joint, split_units


# Cost of a boundary inside a full weight, relative to a word whose weight is wrong by one token. Weights of words are
# sometimes wrong by a token, while weights between words are almost zero. So pauses are the more reliable evidence.
PAUSE_PREFERENCE = 50.0

# A frame at the start or at the end of a word with a smaller weight does not count as speech.
ONSET_WEIGHT = 0.03
OFFSET_WEIGHT = 0.02


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
    # A text that ends in an incomplete character may have one more word than was counted.
    if len(words) > len(token_counts):
        token_counts.append(num_pending)
    elif token_counts:
        token_counts[-1] += num_pending
    return words, token_counts


def align_words(token_counts: list[float], alphas: np.ndarray, frame_period: float) -> list[tuple[float, float]]:
    """
    Compute the start and the end of each word.

    CIF is trained to give a word of `n` tokens a total weight of `n`. Dynamic programming finds the boundaries that minimise
    the sum of `(weight - n)^2 / n` over all words and `PAUSE_PREFERENCE * min(alpha before, alpha after)` over all boundaries.
    A word starts with the first frame of its span that has weight. It includes half of the pause after it, because speech
    fades more slowly than its weights.

    Args:
        token_counts (`list[float]`): Number of tokens of each word, with a fraction for a shared token.
        alphas (`np.ndarray` of shape `(num_frames,)`): CIF weights, zero in padding.
        frame_period (`float`): Seconds between consecutive weights.

    Returns:
        `list[tuple[float, float]]`: Start and end of each word in seconds, rounded to milliseconds, in order and without
        overlap.

    Raises:
        `ValueError`: If `alphas` is not one-dimensional, or no frame has weight.
    """
    if alphas.ndim != 1:
        raise ValueError(f"`alphas` must have shape (num_frames,), got {alphas.shape}.")
    if not token_counts:
        return []
    weighing = np.flatnonzero(alphas > 0)
    if not len(weighing):
        raise ValueError("`alphas` has no weight above zero, so the times of the words are unknown.")
    weights = alphas[: weighing[-1] + 1].astype(np.float64)
    weights *= sum(token_counts) / weights.sum()

    boundaries = _place_boundaries(np.array(token_counts), weights)
    firsts, lasts = [], []
    for first, last in itertools.pairwise(boundaries):
        span = weights[first:last]
        onsets, offsets = np.flatnonzero(span > ONSET_WEIGHT), np.flatnonzero(span > OFFSET_WEIGHT)
        firsts.append(first + (onsets[0] if len(onsets) else 0))
        lasts.append(first + offsets[-1] + 1 if len(offsets) else last)
    starts, ends = np.maximum.accumulate(np.array(firsts, dtype=float)), np.array(lasts, dtype=float)
    ends[:-1] = np.maximum((ends[:-1] + starts[1:]) / 2, starts[:-1])
    ends = np.maximum(ends, starts)
    times = np.stack([starts, ends], axis=1) * frame_period
    return [(round(start, 3), round(end, 3)) for start, end in times.tolist()]


def _place_boundaries(token_counts: np.ndarray, weights: np.ndarray) -> list[int]:
    """First frame of each word, and the end of the last word, as indices from 0 to `len(weights)`."""
    before = np.concatenate([[0.0], weights.cumsum()])
    crossing = np.concatenate([[np.inf], np.minimum(weights[:-1], weights[1:]), [np.inf]])
    is_valley = (crossing[1:-1] <= crossing[:-2]) & (crossing[1:-1] <= crossing[2:])
    places = np.concatenate([[0], np.flatnonzero(is_valley) + 1, [len(weights)]])
    if len(places) <= len(token_counts):
        places = np.arange(len(weights) + 1)

    # cost[i] is the lowest cost of the words so far if the last of them ends at places[i].
    cost = np.full(len(places), np.inf)
    cost[0] = 0.0
    masses = before[places][None, :] - before[places][:, None]
    is_backwards = np.tri(len(places), k=-1, dtype=bool)
    came_from = []
    for index, count in enumerate(token_counts):
        step = np.where(is_backwards, np.inf, cost[:, None] + (masses - count) ** 2 / count)
        came_from.append(step.argmin(axis=0))
        cost = step.min(axis=0)
        if index < len(token_counts) - 1:
            cost = cost + PAUSE_PREFERENCE * crossing[places]

    place = len(places) - 1
    boundaries = [int(places[place])]
    for previous in reversed(came_from):
        place = int(previous[place])
        boundaries.append(int(places[place]))
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


__all__ = ["align_words", "join_segments"]
