"""When words were spoken, read off the weights of Continuous Integrate-and-Fire."""

import numpy as np


# Tokens squared that a boundary within a full weight costs. Counts drift by a token or two over an utterance, while the
# weights between words are next to nothing: a pause nearby is the better witness.
PAUSE_PREFERENCE = 50.0

# Weights below which a frame is no longer taken for speech, at the start and at the end of a word.
ONSET_WEIGHT = 0.03
OFFSET_WEIGHT = 0.02


def align_words(token_counts: list[int], alphas: np.ndarray, frame_period: float) -> list[tuple[float, float]]:
    """
    Start and end of each word.

    CIF fires the `n`-th token when the weights add up to `n`, so the words' token counts say at which sums one word ends
    and the next begins. The boundary is moved to the pause nearest in sum: it minimises
    `(c_t - n)^2 + PAUSE_PREFERENCE * min(alpha_{t-1}, alpha_t)` over frames, where `c_t` is the weight before frame `t`,
    scaled so that all the words' tokens fit. A word starts with the first frame of its span that has weight; half of the
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

    before = np.concatenate([[0.0], weights.cumsum()])
    crossing = np.concatenate([[0.0], np.minimum(weights[:-1], weights[1:]), [0.0]])
    # The last word ends with the last weight; only boundaries between words are looked for.
    sums = np.cumsum(token_counts)[:-1]
    costs = (before - sums[:, None]) ** 2 + PAUSE_PREFERENCE * crossing
    boundaries = np.maximum.accumulate(costs.argmin(axis=1)) if len(sums) else np.zeros(0, dtype=int)
    spans = np.stack([np.concatenate([[0], boundaries]), np.concatenate([boundaries, [len(weights)]])], axis=1)

    starts, ends = [], []
    for first, last in spans:
        span = weights[first:last]
        onsets, offsets = np.flatnonzero(span > ONSET_WEIGHT), np.flatnonzero(span > OFFSET_WEIGHT)
        starts.append(first + (onsets[0] if len(onsets) else 0))
        ends.append(first + offsets[-1] + 1 if len(offsets) else last)
    starts, ends = np.array(starts, dtype=float), np.array(ends, dtype=float)
    starts = np.maximum.accumulate(starts)
    ends[:-1] = np.maximum((ends[:-1] + starts[1:]) / 2, starts[:-1])
    ends = np.maximum(ends, starts)
    return [(float(start), float(end)) for start, end in zip(starts * frame_period, ends * frame_period, strict=True)]


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
