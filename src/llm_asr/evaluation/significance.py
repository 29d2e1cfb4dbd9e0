"""Confidence intervals of error rates, and significance tests for two systems."""

from collections.abc import Sequence

import numpy as np


# Number of utterances to draw at once. The limit keeps a large corpus from filling the memory.
BLOCK = 4_000_000

Counts = Sequence[int] | np.ndarray


def bootstrap_interval(
    errors: Counts,
    ref_words: Counts,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of a corpus error rate, as in
    [Bisani & Ney 2004](https://doi.org/10.1109/ICASSP.2004.1326009).

    Utterances are drawn with replacement, as if they were independent. If a corpus has many utterances of few speakers, the
    true interval is wider ([arXiv 1912.09508](https://arxiv.org/abs/1912.09508)).

    Args:
        errors (`Sequence[int]`): Number of substitutions, insertions and deletions in each utterance.
        ref_words (`Sequence[int]`): Number of words in each reference.
        num_resamples (`int`, *optional*, defaults to 1000): Number of corpora to draw.
        confidence (`float`, *optional*, defaults to 0.95): Share of the drawn corpora inside the interval.
        seed (`int`, *optional*, defaults to 0): Seed of the random draws.

    Returns:
        `tuple[float, float]`: Lower and upper end in percent.

    Raises:
        `ValueError`: If the lengths differ, no reference has words, or an option is out of range.
    """
    counts = _columns(num_resamples, ref_words=ref_words, errors=errors)
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, got {confidence}.")
    rates = _resample(counts[0], counts[1], num_resamples, seed)
    low, high = np.quantile(rates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def compare_systems(
    errors_a: Counts,
    errors_b: Counts,
    ref_words: Counts,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, float | list[float]]:
    """
    Compare two systems on the same utterances.

    The interval and the probability of improvement come from the paired bootstrap of
    [Bisani & Ney 2004](https://doi.org/10.1109/ICASSP.2004.1326009). It scores both systems on the same draws, so that
    utterances that are hard for both do not add variance to the difference. The p-value comes from a paired permutation
    test (approximate randomisation). Its null hypothesis is that the errors of the two systems on an utterance are
    exchangeable.

    Args:
        errors_a, errors_b (`Sequence[int]`): Number of substitutions, insertions and deletions in each utterance.
        ref_words (`Sequence[int]`): Number of words in each reference.
        num_resamples (`int`, *optional*, defaults to 10000): Number of corpora to draw, and of permutations.
        seed (`int`, *optional*, defaults to 0): Seed of the draws and permutations.

    Returns:
        `dict`: `wer_a` and `wer_b` in percent; `delta`, `wer_b` minus `wer_a`, which is negative if system b is better;
        `delta_interval`, the 95 % interval of `delta` as `[low, high]`; `probability_of_improvement`, the share of draws in
        which system b is better, with ties counted as half; `p_value`, two-sided.

    Raises:
        `ValueError`: If the lengths differ, no reference has words, or `num_resamples` is not positive.

    Example:

    ```python
    >>> compare_systems([1, 0, 2, 1], [0, 0, 1, 1], [5, 4, 6, 5])["delta"]
    -10.0
    ```
    """
    found_a, found_b, lengths = _columns(num_resamples, ref_words=ref_words, errors_a=errors_a, errors_b=errors_b)
    total = lengths.sum()
    difference = found_b - found_a
    deltas = _resample(difference, lengths, num_resamples, seed)
    generator = np.random.default_rng(seed)
    more_extreme = 0
    for count in _blocks(num_resamples, len(difference)):
        signs = 2 * generator.integers(0, 2, size=(count, len(difference)), dtype=np.int8) - 1
        more_extreme += int((np.abs(signs @ difference) >= abs(difference.sum())).sum())
    return {
        "wer_a": float(100 * found_a.sum() / total),
        "wer_b": float(100 * found_b.sum() / total),
        "delta": float(100 * difference.sum() / total),
        "delta_interval": np.quantile(deltas, [0.025, 0.975]).tolist(),
        "probability_of_improvement": float((deltas < 0).mean() + (deltas == 0).mean() / 2),
        "p_value": (1 + more_extreme) / (1 + num_resamples),
    }


def _columns(num_resamples: int, ref_words: Counts, **errors: Counts) -> list[np.ndarray]:
    """Check the counts and return them as arrays, `ref_words` last."""
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` must be positive, got {num_resamples}.")
    for name, counts in errors.items():
        if len(counts) != len(ref_words):
            raise ValueError(
                f"`{name}` has {len(counts)} utterances and `ref_words` {len(ref_words)}; they must have the same length."
            )
    if not sum(ref_words) > 0:
        raise ValueError("`ref_words` has no word; an error rate needs reference words.")
    return [np.asarray(counts, dtype=np.int64) for counts in (*errors.values(), ref_words)]


def _resample(errors: np.ndarray, ref_words: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """Error rates in percent of `num_resamples` corpora drawn with replacement."""
    generator = np.random.default_rng(seed)
    rates = []
    for count in _blocks(num_resamples, len(errors)):
        drawn = generator.integers(0, len(errors), size=(count, len(errors)))
        # All utterances of a draw may be without words; avoid a division by zero.
        rates.append(100 * errors[drawn].sum(1) / np.maximum(ref_words[drawn].sum(1), 1))
    return np.concatenate(rates)


def _blocks(num_resamples: int, num_utterances: int) -> list[int]:
    size = max(1, BLOCK // num_utterances)
    return [min(size, num_resamples - start) for start in range(0, num_resamples, size)]


__all__ = ["bootstrap_interval", "compare_systems"]
