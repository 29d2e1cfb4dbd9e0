"""Effects of two parts of a model: contrasts of error rates over several seeds and the same utterances."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


try:
    import statsmodels.api as sm
    from scipy import stats
    from statsmodels.stats.multitest import multipletests
except ImportError as error:
    raise ImportError(
        f'Comparing systems over seeds needs {error.name}, which is not installed: `pip install "llm-asr[study]"`.'
    ) from error


# Number of random numbers to draw at once. The limit keeps a large corpus from filling the memory.
BLOCK = 20_000_000

Contrast = Mapping[str, float]
"""Weights of the error rates of arms. `{"moe": 1, "conv": -1}` is the error rate of `moe` minus that of `conv`."""


def factorial_contrasts(neither: str, first: str, second: str, both: str) -> dict[str, Contrast]:
    """
    Effects of two parts in a 2 × 2 factorial design.

    Args:
        neither, first, second, both (`str`): Arms without either part, with one of them, and with both.

    Returns:
        `dict[str, Contrast]`: `"first"` and `"second"`, the main effects: the change by one part, averaged over models with
        and without the other part. `"interaction"`: the effect of the first part with the second one minus its effect without
        the second one. It is zero if the effects are additive.
    """
    return {
        "first": {first: 0.5, both: 0.5, neither: -0.5, second: -0.5},
        "second": {second: 0.5, both: 0.5, neither: -0.5, first: -0.5},
        "interaction": {both: 1.0, second: -1.0, first: -1.0, neither: 1.0},
    }


@dataclass(frozen=True)
class SeededErrors:
    """
    Errors of several systems, each trained with the same seeds and tested on the same utterances.

    Attributes:
        arms (`tuple[str]`): Names of the systems.
        errors (`np.ndarray` of shape `(num_arms, num_seeds, num_utterances)`): Numbers of substitutions, insertions and
            deletions together.
        lengths (`np.ndarray` of shape `(num_utterances,)`): Numbers of words or characters of the references, which must be
            positive.

    Raises:
        `ValueError`: If the shapes are inconsistent, there are fewer than two seeds or utterances, or a reference is empty.
    """

    arms: tuple[str, ...]
    errors: np.ndarray
    lengths: np.ndarray

    def __post_init__(self):
        expected = (len(self.arms), self.errors.shape[1] if self.errors.ndim == 3 else None, len(self.lengths))
        if self.errors.shape != expected:
            raise ValueError(
                f"`errors` must have shape (num_arms, num_seeds, num_utterances), got {self.errors.shape}."
            )
        if min(self.errors.shape[1:]) < 2:
            raise ValueError(f"`errors` must have at least two seeds and two utterances, got {self.errors.shape[1:]}.")
        if not (self.lengths > 0).all():
            raise ValueError("`lengths` has utterances without words; leave them out.")

    @property
    def rates(self) -> np.ndarray:
        """Corpus error rates in percent, of shape `(num_arms, num_seeds)`."""
        return 100 * self.errors.sum(-1) / self.lengths.sum()

    def __getitem__(self, utterances: np.ndarray) -> "SeededErrors":
        return SeededErrors(self.arms, self.errors[:, :, utterances], self.lengths[utterances])

    def weigh(self, contrast: Contrast) -> np.ndarray:
        """Convert a contrast to a vector of weights of `arms`."""
        unknown = sorted(set(contrast) - set(self.arms))
        if unknown:
            raise ValueError(f"`contrast` weighs {unknown}, which are not among the arms {list(self.arms)}.")
        return np.array([contrast.get(arm, 0.0) for arm in self.arms])


def bootstrap_rates(data: SeededErrors, num_resamples: int = 10_000, seed: int = 0) -> np.ndarray:
    """
    Error rates in resamples of the experiment. A resample draws seeds and utterances.

    All arms use the same draws, so that differences between arms are paired. All seeds of a resample use the same utterances,
    as in the experiment (the bootstrap of crossed factors, [Owen 2007](https://doi.org/10.1214/07-AOAS122)). A resample draws
    `num_seeds - 1` seeds: with `num_seeds` draws, the variance would be too small by the factor `1 - 1 / num_seeds`
    ([Rao & Wu 1988](https://doi.org/10.1080/01621459.1988.10478591)).

    Args:
        data ([`SeededErrors`]): The experiment.
        num_resamples (`int`, *optional*, defaults to 10000): Number of resamples.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.

    Returns:
        `np.ndarray` of shape `(num_resamples, num_arms)`: Error rates in percent, averaged over seeds.
    """
    generator = np.random.default_rng(seed)
    num_arms, num_seeds, num_utterances = data.errors.shape
    by_utterance = data.errors.transpose(2, 0, 1).reshape(num_utterances, -1).astype(float)
    rates = np.empty((num_resamples, num_arms))
    size = max(1, BLOCK // num_utterances)
    for start in range(0, num_resamples, size):
        count = min(size, num_resamples - start)
        seeds = generator.multinomial(num_seeds - 1, [1 / num_seeds] * num_seeds, size=count) / (num_seeds - 1)
        drawn = generator.multinomial(num_utterances, [1 / num_utterances] * num_utterances, size=count)
        errors = (drawn @ by_utterance).reshape(count, num_arms, num_seeds)
        by_arm = (errors * seeds[:, None]).sum(-1)
        rates[start : start + count] = 100 * by_arm / (drawn @ data.lengths)[:, None]
    return rates


def arm_report(data: SeededErrors, resampled: np.ndarray) -> dict[str, dict]:
    """
    Error rates of each arm.

    Args:
        data ([`SeededErrors`]): The experiment.
        resampled (`np.ndarray`): Result of [`bootstrap_rates`].

    Returns:
        `dict`: For each arm `rate`, the mean over seeds in percent; `interval`, its 95 % bootstrap interval; `by_seed`, the
        rates of single seeds.
    """
    return {
        arm: {"rate": float(rates.mean()), "interval": _percentiles(column), "by_seed": rates.tolist()}
        for arm, rates, column in zip(data.arms, data.rates, resampled.T, strict=True)
    }


def contrast_report(data: SeededErrors, contrasts: Mapping[str, Contrast], resampled: np.ndarray) -> dict[str, dict]:
    """
    Estimates, intervals and tests of contrasts.

    `interval` and `p_value` come from a least-squares regression of the utterances' error rates on the arms. It is weighted by
    the words of the utterances, so that its coefficients are the corpus error rates. The standard errors are robust to the
    dependence of all errors under one seed and of all errors on one utterance ([Cameron, Gelbach & Miller
    2011](https://doi.org/10.1198/jbes.2010.07136), with statsmodels). Student's distribution has `num_seeds - 1` degrees of
    freedom. The largest of the standard errors clustered by seed, by utterance and by both is used, because the last one can
    be too small with few seeds.

    Args:
        data ([`SeededErrors`]): The experiment.
        contrasts (`dict[str, Contrast]`): Contrasts by name.
        resampled (`np.ndarray`): Result of [`bootstrap_rates`].

    Returns:
        `dict`: For each contrast, in percentage points: `estimate`, `interval` and `bootstrap_interval` (95 %),
        `standard_error`, `p_value` (two-sided, for the null hypothesis that the contrast is zero), `holm_p_value` (corrected
        for testing all `contrasts`, Holm 1979) and `by_seed`. Contrasts whose weights sum to zero also have `ratio`, the same
        contrast of the logarithms of the error rates as a factor, and its bootstrap interval `ratio_interval`, unless a
        resample has no errors.
    """
    means, covariances = _fit(data)
    degrees = data.errors.shape[1] - 1
    quantile = stats.t.ppf(0.975, degrees)
    report = {}
    for name, contrast in contrasts.items():
        weights = data.weigh(contrast)
        estimate = float(weights @ means)
        error = float(np.sqrt(max(0.0, *(weights @ covariance @ weights for covariance in covariances))))
        p_value = float(2 * stats.t.sf(abs(estimate) / error, degrees)) if error else 0.0
        if not np.tensordot(weights, data.errors, 1).any():
            # The arms have equal errors everywhere, so any estimate is a rounding error.
            estimate, error, p_value = 0.0, 0.0, 1.0
        report[name] = {
            "estimate": estimate,
            "interval": [float(estimate - quantile * error), float(estimate + quantile * error)],
            "bootstrap_interval": _percentiles(resampled @ weights),
            "standard_error": error,
            "p_value": p_value,
            "by_seed": (weights @ data.rates).tolist(),
        }
        used = weights != 0
        if abs(weights.sum()) < 1e-9 and (resampled[:, used] > 0).all() and (means[used] > 0).all():
            logs = np.log(resampled[:, used]) @ weights[used]
            report[name]["ratio"] = float(np.exp(np.log(means[used]) @ weights[used]))
            report[name]["ratio_interval"] = np.exp(_percentiles(logs)).tolist()
    corrected = multipletests([found["p_value"] for found in report.values()], method="holm")[1]
    for found, p_value in zip(report.values(), corrected, strict=True):
        found["holm_p_value"] = float(p_value)
    return report


def _fit(data: SeededErrors) -> tuple[np.ndarray, list[np.ndarray]]:
    """Fit the error rates of the arms in percent, and their covariances clustered by seed, by utterance and by both."""
    num_arms, num_seeds, num_utterances = data.errors.shape
    arm, seed, utterance = (index.ravel() for index in np.indices(data.errors.shape))
    lengths = np.broadcast_to(data.lengths, data.errors.shape).ravel()
    model = sm.WLS(100 * data.errors.ravel() / lengths, np.eye(num_arms)[arm], weights=lengths)
    clusters: Sequence[np.ndarray] = (seed, utterance, np.stack([seed, utterance], axis=1))
    # statsmodels' correction depends on the number of coefficients. Without it, the comparison of two arms does not depend on
    # the other arms. The correction for the number of seeds follows below.
    fits = [model.fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}) for groups in clusters]
    factors = (num_seeds / (num_seeds - 1), num_utterances / (num_utterances - 1), num_seeds / (num_seeds - 1))
    return fits[0].params, [fit.cov_params() * factor for fit, factor in zip(fits, factors, strict=True)]


def _percentiles(values: np.ndarray) -> list[float]:
    return np.quantile(values, [0.025, 0.975]).tolist()


__all__ = ["Contrast", "SeededErrors", "arm_report", "bootstrap_rates", "contrast_report", "factorial_contrasts"]
