"""How sure an error rate is, and whether one system is better than another."""

from collections.abc import Sequence

import numpy as np


# Utterances drawn at a time, so that a large corpus does not fill the memory.
BLOCK = 4_000_000


def bootstrap_interval(
    errors: Sequence[int],
    ref_words: Sequence[int],
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of a corpus error rate, as in
    [Bisani & Ney 2004](https://doi.org/10.1109/ICASSP.2004.1326009).

    Utterances are drawn with replacement, as if they were independent: where few speakers say many of them, the true
    interval is wider ([arXiv 1912.09508](https://arxiv.org/abs/1912.09508)).

    Args:
        errors (`Sequence[int]`): Substitutions, insertions and deletions of each utterance.
        ref_words (`Sequence[int]`): Words of each reference.
        num_resamples (`int`, *optional*, defaults to 1000): Corpora to draw.
        confidence (`float`, *optional*, defaults to 0.95): Share of them that the interval holds.
        seed (`int`, *optional*, defaults to 0): Of the draws.

    Returns:
        `tuple[float, float]`: Lower and upper end, in percent.

    Raises:
        `ValueError`: If the lengths differ, there is no word, or an option is out of range.
    """
    errors, ref_words = _columns(num_resamples, ref_words=ref_words, errors=errors)
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, got {confidence}.")
    rates = _resample(errors, ref_words, num_resamples, seed)
    low, high = np.quantile(rates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def compare_systems(
    errors_a: Sequence[int],
    errors_b: Sequence[int],
    ref_words: Sequence[int],
    num_resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, float | list[float]]:
    """
    Compare two systems on the same utterances.

    The interval and the probability of improvement are of the paired bootstrap of
    [Bisani & Ney 2004](https://doi.org/10.1109/ICASSP.2004.1326009): both systems meet the same draws, so that what makes
    an utterance hard for both does not blur the difference. The p-value is of a paired permutation test (approximate
    randomisation): were the systems the same, which of them made which errors on an utterance would be a matter of chance.

    Args:
        errors_a, errors_b (`Sequence[int]`): Substitutions, insertions and deletions of each utterance.
        ref_words (`Sequence[int]`): Words of each reference.
        num_resamples (`int`, *optional*, defaults to 10000): Corpora to draw, and permutations.
        seed (`int`, *optional*, defaults to 0): Of the draws.

    Returns:
        `dict`: `wer_a` and `wer_b` in percent; `delta`, the second minus the first, below zero where the second is
        better; `delta_interval`, its 95 % interval as `[low, high]`; `probability_of_improvement`, the share of draws in
        which the second is better, ties counted half; `p_value`, two-sided.

    Raises:
        `ValueError`: If the lengths differ, there is no word, or `num_resamples` is not positive.

    Example:

    ```python
    >>> compare_systems([1, 0, 2, 1], [0, 0, 1, 1], [5, 4, 6, 5])["delta"]
    -10.0
    ```
    """
    errors_a, errors_b, ref_words = _columns(num_resamples, ref_words=ref_words, errors_a=errors_a, errors_b=errors_b)
    total = ref_words.sum()
    difference = errors_b - errors_a
    deltas = _resample(difference, ref_words, num_resamples, seed)
    generator = np.random.default_rng(seed)
    more_extreme = 0
    for count in _blocks(num_resamples, len(difference)):
        signs = 2 * generator.integers(0, 2, size=(count, len(difference)), dtype=np.int8) - 1
        more_extreme += int((np.abs(signs @ difference) >= abs(difference.sum())).sum())
    return {
        "wer_a": float(100 * errors_a.sum() / total),
        "wer_b": float(100 * errors_b.sum() / total),
        "delta": float(100 * difference.sum() / total),
        "delta_interval": np.quantile(deltas, [0.025, 0.975]).tolist(),
        "probability_of_improvement": float((deltas < 0).mean() + (deltas == 0).mean() / 2),
        "p_value": (1 + more_extreme) / (1 + num_resamples),
    }


def _columns(num_resamples: int, ref_words: Sequence[int], **errors: Sequence[int]) -> list[np.ndarray]:
    """Counts as arrays, `ref_words` last, once they fit together."""
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` must be positive, got {num_resamples}.")
    for name, counts in errors.items():
        if len(counts) != len(ref_words):
            raise ValueError(f"`{name}` has {len(counts)} utterances and `ref_words` {len(ref_words)}; pair them.")
    if not sum(ref_words) > 0:
        raise ValueError("`ref_words` has no word; an error rate needs words to count.")
    return [np.asarray(counts, dtype=np.int64) for counts in (*errors.values(), ref_words)]


def _resample(errors: np.ndarray, ref_words: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """Error rates of `num_resamples` corpora that are drawn with replacement, in percent."""
    generator = np.random.default_rng(seed)
    rates = []
    for count in _blocks(num_resamples, len(errors)):
        drawn = generator.integers(0, len(errors), size=(count, len(errors)))
        # A draw may consist of utterances without words alone.
        rates.append(100 * errors[drawn].sum(1) / np.maximum(ref_words[drawn].sum(1), 1))
    return np.concatenate(rates)


def _blocks(num_resamples: int, num_utterances: int) -> list[int]:
    size = max(1, BLOCK // num_utterances)
    return [min(size, num_resamples - start) for start in range(0, num_resamples, size)]


__all__ = ["bootstrap_interval", "compare_systems"]
