"""Which of two parts makes a difference: contrasts of error rates over several seeds and the same utterances."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.multitest import multipletests


# Numbers drawn at a time, so that a large corpus does not fill the memory.
BLOCK = 20_000_000

Contrast = Mapping[str, float]
"""Weights of the error rates of arms; `{"moe": 1, "conv": -1}` is what `moe` has more than `conv`."""


def factorial_contrasts(neither: str, first: str, second: str, both: str) -> dict[str, Contrast]:
    """
    Effects of two parts in a 2 × 2 factorial design.

    Args:
        neither, first, second, both (`str`): Arms without either part, with one of them, and with both.

    Returns:
        `dict[str, Contrast]`: `"first"` and `"second"`, the main effects: what the part changes, averaged over the other
        part's absence and presence. `"interaction"`: how much more the first part changes where the second is than where it
        is not; zero if their effects add up.
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
        errors (`np.ndarray` of shape `(num_arms, num_seeds, num_utterances)`): Substitutions, insertions and deletions.
        lengths (`np.ndarray` of shape `(num_utterances,)`): Words or characters of the references, none of them zero.

    Raises:
        `ValueError`: If shapes do not fit, there are fewer than two seeds or utterances, or a reference is empty.
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
        """A contrast as weights of `arms`."""
        unknown = sorted(set(contrast) - set(self.arms))
        if unknown:
            raise ValueError(f"`contrast` weighs {unknown}, which are not among the arms {list(self.arms)}.")
        return np.array([contrast.get(arm, 0.0) for arm in self.arms])


def bootstrap_rates(data: SeededErrors, num_resamples: int = 10_000, seed: int = 0) -> np.ndarray:
    """
    Error rates in resamples of the experiment: first seeds are drawn, then utterances.

    All arms meet the same draws, so that a difference between them is paired; all seeds of a resample meet the same
    utterances, as they did in the experiment (the bootstrap of crossed factors, [Owen
    2007](https://doi.org/10.1214/07-AOAS122)). One seed less is drawn than there are: `num_seeds` draws of so few have a
    variance too small by the factor `1 - 1 / num_seeds`
    ([Rao & Wu 1988](https://doi.org/10.1080/01621459.1988.10478591)).

    Args:
        data ([`SeededErrors`]): The experiment.
        num_resamples (`int`, *optional*, defaults to 10000): Experiments to draw.
        seed (`int`, *optional*, defaults to 0): Of the draws.

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
        resampled (`np.ndarray`): From [`bootstrap_rates`].

    Returns:
        `dict`: For each arm `rate`, the mean over seeds in percent; `interval`, its 95 % bootstrap interval; `by_seed`.
    """
    return {
        arm: {"rate": float(rates.mean()), "interval": _percentiles(column), "by_seed": rates.tolist()}
        for arm, rates, column in zip(data.arms, data.rates, resampled.T, strict=True)
    }


def contrast_report(data: SeededErrors, contrasts: Mapping[str, Contrast], resampled: np.ndarray) -> dict[str, dict]:
    """
    Estimates, intervals and tests of contrasts.

    `interval` and `p_value` are of a least-squares regression of the utterances' error rates on the arms, weighted by their
    words, so that its coefficients are the corpus error rates, with standard errors that are robust to the dependence of
    all errors under one seed and of all errors on one utterance ([Cameron, Gelbach & Miller
    2011](https://doi.org/10.1198/jbes.2010.07136), by statsmodels), and Student's distribution with as many degrees of
    freedom as there are seeds but one. Of the standard errors by seed, by utterance and by both the largest counts, since
    with few seeds the last can come out too small.

    Args:
        data ([`SeededErrors`]): The experiment.
        contrasts (`dict[str, Contrast]`): By name.
        resampled (`np.ndarray`): From [`bootstrap_rates`].

    Returns:
        `dict`: For each contrast, in percentage points: `estimate`, `interval` and `bootstrap_interval` (95 %),
        `standard_error`, `p_value` (two-sided, that the contrast is zero), `holm_p_value` (corrected for testing all
        `contrasts`, Holm 1979) and `by_seed`. For contrasts whose weights sum to zero also `ratio`, the same contrast of the
        logarithms of the error rates, as a factor, and `ratio_interval` by bootstrap, unless some resample has no errors.
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
            # Arms that never differed are no evidence of a difference; what is left is rounding.
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
    """Error rates of the arms in percent, and their covariances clustered by seed, by utterance and by both."""
    num_arms, num_seeds, num_utterances = data.errors.shape
    arm, seed, utterance = (index.ravel() for index in np.indices(data.errors.shape))
    lengths = np.broadcast_to(data.lengths, data.errors.shape).ravel()
    model = sm.WLS(100 * data.errors.ravel() / lengths, np.eye(num_arms)[arm], weights=lengths)
    clusters: Sequence[np.ndarray] = (seed, utterance, np.stack([seed, utterance], axis=1))
    # Without statsmodels' correction for the number of coefficients, so that two arms compare alike whichever others there
    # are; that for the number of seeds is made here.
    fits = [model.fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}) for groups in clusters]
    factors = (num_seeds / (num_seeds - 1), num_utterances / (num_utterances - 1), num_seeds / (num_seeds - 1))
    return fits[0].params, [fit.cov_params() * factor for fit, factor in zip(fits, factors, strict=True)]


def _percentiles(values: np.ndarray) -> list[float]:
    return np.quantile(values, [0.025, 0.975]).tolist()


__all__ = ["Contrast", "SeededErrors", "arm_report", "bootstrap_rates", "contrast_report", "factorial_contrasts"]
