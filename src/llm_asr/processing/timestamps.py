"""When words were spoken, read off the weights of Continuous Integrate-and-Fire."""

import itertools

import numpy as np


# What a boundary within a full weight costs, against a word that is one token too heavy or too light. Words miss their
# counts by a token now and then, while the weights between words are next to nothing: the pause is the better witness.
PAUSE_PREFERENCE = 50.0

# Weights below which a frame is no longer taken for speech, at the start and at the end of a word.
ONSET_WEIGHT = 0.03
OFFSET_WEIGHT = 0.02


def align_words(token_counts: list[int], alphas: np.ndarray, frame_period: float) -> list[tuple[float, float]]:
    """
    Start and end of each word.

    A word of `n` tokens holds a weight of `n`, as CIF was trained to give it. The boundaries between words are those that
    minimise, over all words, `(weight - n)^2 / n`, and over all boundaries, `PAUSE_PREFERENCE * min(alpha before, alpha
    behind)`, found by dynamic programming. A word starts with the first frame of its span that has weight; half of the
    pause behind it counts to it, since speech fades more slowly than its weights.

    Args:
        token_counts (`list[int]`): Tokens of each word.
        alphas (`np.ndarray` of shape `(num_frames,)`): CIF weights, zero in padding.
        frame_period (`float`): Seconds from one weight to the next.

    Returns:
        `list[tuple[float, float]]`: In seconds, in order, never overlapping; empty without words.

    Raises:
        `ValueError`: If `alphas` is not one-dimensional, or no frame has weight.
    """
    if alphas.ndim != 1:
        raise ValueError(f"`alphas` must have shape (num_frames,), got {alphas.shape}.")
    if not token_counts:
        return []
    weighing = np.flatnonzero(alphas > 0)
    if not len(weighing):
        raise ValueError("`alphas` has no weight, so that nothing says when the words were spoken.")
    weights = alphas[: weighing[-1] + 1].astype(np.float64)
    weights *= sum(token_counts) / weights.sum()

    boundaries = _place_boundaries(np.array(token_counts), weights)
    starts, ends = [], []
    for first, last in itertools.pairwise(boundaries):
        span = weights[first:last]
        onsets, offsets = np.flatnonzero(span > ONSET_WEIGHT), np.flatnonzero(span > OFFSET_WEIGHT)
        starts.append(first + (onsets[0] if len(onsets) else 0))
        ends.append(first + offsets[-1] + 1 if len(offsets) else last)
    starts, ends = np.array(starts, dtype=float), np.array(ends, dtype=float)
    starts = np.maximum.accumulate(starts)
    ends[:-1] = np.maximum((ends[:-1] + starts[1:]) / 2, starts[:-1])
    ends = np.maximum(ends, starts)
    return [(float(start), float(end)) for start, end in zip(starts * frame_period, ends * frame_period, strict=True)]


def _place_boundaries(token_counts: np.ndarray, weights: np.ndarray) -> list[int]:
    """The frame that each word begins before, and the end of the last, as indices from 0 to `len(weights)`."""
    before = np.concatenate([[0.0], weights.cumsum()])
    crossing = np.concatenate([[np.inf], np.minimum(weights[:-1], weights[1:]), [np.inf]])
    is_valley = (crossing[1:-1] <= crossing[:-2]) & (crossing[1:-1] <= crossing[2:])
    places = np.concatenate([[0], np.flatnonzero(is_valley) + 1, [len(weights)]])
    if len(places) <= len(token_counts):
        places = np.arange(len(weights) + 1)

    # cost[i] is the least cost of the words so far if the last of them ends at places[i].
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
    Words joined to segments that a pause longer than `longest_pause` seconds separates.

    Args:
        words (`list[dict]`): `{"text": str, "timestamp": (start, end)}`, in order.
        longest_pause (`float`): Seconds.

    Returns:
        `list[dict]`: Of the same form.
    """
    segments: list[dict] = []
    for word in words:
        start, end = word["timestamp"]
        if segments and start - segments[-1]["timestamp"][1] <= longest_pause:
            segment = segments[-1]
            segment["text"] += f" {word['text']}"
            segment["timestamp"] = (segment["timestamp"][0], end)
        else:
            segments.append({"text": word["text"], "timestamp": (start, end)})
    return segments


__all__ = ["align_words", "join_segments"]
