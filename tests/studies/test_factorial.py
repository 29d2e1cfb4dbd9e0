import gc
import os
import subprocess
import sys
from pathlib import Path

import compare
import numpy as np
import pytest
from comparison import factorial
from comparison.factorial import (
    SeededErrors,
    arm_report,
    bootstrap_rates,
    contrast_report,
    factorial_contrasts,
)
from scipy import stats


ARMS = ("conv", "moe", "cif", "moe_cif")
EFFECTS = factorial_contrasts(*ARMS)


def report(data, contrasts=EFFECTS, num_resamples=500):
    return contrast_report(data, contrasts, bootstrap_rates(data, num_resamples))


def simulate(rng, rates, num_seeds=5, num_utterances=150, seed_sd=0.5):
    """Simulate errors of utterances with different lengths and difficulties. Seeds differ by `seed_sd` points."""
    lengths = rng.integers(2, 12, num_utterances)
    shared = rng.gamma(1.0, 1.0, num_utterances)
    errors = np.empty((len(rates), num_seeds, num_utterances))
    for arm, rate in enumerate(rates):
        own = rng.gamma(2.0, 0.5, num_utterances)
        for seed in range(num_seeds):
            expected = max(0.1, rate + rng.normal(0, seed_sd)) / 100 * shared * own * lengths
            errors[arm, seed] = rng.poisson(expected)
    return SeededErrors(ARMS[: len(rates)], errors, lengths)


def test_simulated_effects_are_recovered():
    # MoE lowers the rate by 3 points without CIF and by 5 with it. CIF lowers it by 6 without MoE and by 8 with it.
    words = np.array([100, 300])
    percent = np.array([20.0, 17.0, 14.0, 9.0])
    errors = np.broadcast_to(percent[:, None, None] / 100 * words, (4, 3, 2))
    found = report(SeededErrors(ARMS, errors, words), {**EFFECTS, "full": {"moe_cif": 1, "conv": -1}})
    estimates = {name: contrast["estimate"] for name, contrast in found.items()}
    assert estimates == pytest.approx({"first": -4.0, "second": -7.0, "interaction": -2.0, "full": -11.0})
    assert found["full"]["ratio"] == pytest.approx(9 / 20)
    assert found["first"]["ratio"] == pytest.approx(np.sqrt(17 / 20 * 9 / 14))
    assert found["interaction"]["ratio"] == pytest.approx(9 / 14 / (17 / 20))
    assert found["full"]["ratio_interval"] == pytest.approx([9 / 20, 9 / 20])


def test_rates_are_computed_over_the_corpus_and_not_averaged_over_utterances():
    data = SeededErrors(("a",), np.array([[[1, 0], [1, 4]]]), np.array([1, 9]))
    assert data.rates.tolist() == [[10.0, 50.0]]
    found = arm_report(data, bootstrap_rates(data, 100))["a"]
    assert found["rate"] == 30.0
    assert found["by_seed"] == [10.0, 50.0]
    assert found["interval"][0] < 30 < found["interval"][1]


def test_the_test_equals_the_paired_t_test_if_only_seeds_differ():
    rng = np.random.default_rng(0)
    by_seed = 10 + rng.normal(0, 1, (2, 5)) + np.array([[0.0], [1.0]])
    lengths = rng.integers(2, 12, 40)
    errors = by_seed[:, :, None] / 100 * lengths
    found = report(SeededErrors(("a", "b"), errors, lengths), {"b − a": {"b": 1, "a": -1}})["b − a"]
    expected = stats.ttest_rel(by_seed[1], by_seed[0])
    assert found["by_seed"] == pytest.approx(by_seed[1] - by_seed[0])
    assert found["p_value"] == pytest.approx(expected.pvalue)
    assert found["interval"] == pytest.approx(expected.confidence_interval(0.95))


def test_the_error_equals_the_paired_standard_error_if_only_utterances_differ():
    rng = np.random.default_rng(1)
    lengths = np.full(60, 8)
    errors = np.repeat(rng.poisson(1.0, (2, 1, 60)), 4, axis=1)
    found = report(SeededErrors(("a", "b"), errors, lengths), {"b − a": {"b": 1, "a": -1}})["b − a"]
    difference = 100 * (errors[1, 0] - errors[0, 0]) / 8
    assert found["standard_error"] == pytest.approx(stats.sem(difference))
    assert found["p_value"] == pytest.approx(2 * stats.t.sf(abs(difference.mean()) / stats.sem(difference), 3))


def test_utterances_of_unequal_lengths_give_the_standard_error_of_a_ratio():
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 30, 80)
    errors = np.repeat(rng.binomial(lengths, 0.2, (2, 1, 80)), 3, axis=1)
    found = report(SeededErrors(("a", "b"), errors, lengths), {"b − a": {"b": 1, "a": -1}})["b − a"]
    difference = errors[1, 0] - errors[0, 0]
    deviations = difference - lengths * difference.sum() / lengths.sum()
    expected = 100 * np.sqrt((deviations**2).sum() * 80 / 79) / lengths.sum()
    assert found["standard_error"] == pytest.approx(expected)


def test_the_bootstrap_has_the_variance_of_seeds_and_of_utterances():
    rng = np.random.default_rng(3)
    num_seeds, num_utterances = 5, 200
    seeds, utterances = rng.normal(0, 2, num_seeds), rng.normal(0, 20, num_utterances)
    percent = 50 + seeds[:, None] + utterances
    data = SeededErrors(("a",), percent[None] / 100 * 10, np.full(num_utterances, 10))
    resampled = bootstrap_rates(data, 8000)[:, 0]
    # The variance over seeds is exactly unbiased. With many utterances, the variance over utterances is nearly unbiased.
    expected = np.sqrt(stats.sem(seeds) ** 2 + stats.sem(utterances) ** 2)
    assert resampled.std() == pytest.approx(expected, rel=0.03)
    assert resampled.mean() == pytest.approx(percent.mean(), abs=3 * expected / np.sqrt(8000))


def test_the_bootstrap_is_paired():
    data = simulate(np.random.default_rng(4), [10.0])
    twice = SeededErrors(("a", "b"), np.repeat(data.errors, 2, axis=0), data.lengths)
    resampled = bootstrap_rates(twice, 50)
    assert (resampled[:, 0] == resampled[:, 1]).all()
    assert len(set(resampled[:, 0])) == 50
    found = report(twice, {"b − a": {"b": 1, "a": -1}})["b − a"]
    assert found["bootstrap_interval"] == found["interval"] == [0, 0]
    assert found["p_value"] == 1


def test_the_bootstrap_is_reproducible_and_independent_of_the_block_size(monkeypatch):
    data = simulate(np.random.default_rng(5), [10.0, 8.0])
    whole = bootstrap_rates(data, 2000, seed=1)
    assert (whole == bootstrap_rates(data, 2000, seed=1)).all()
    assert not (whole == bootstrap_rates(data, 2000, seed=2)).any(axis=0).all()
    monkeypatch.setattr(factorial, "BLOCK", 300 * len(data.lengths) + 7)
    blocks = bootstrap_rates(data, 2000, seed=1)
    assert blocks.mean(0) == pytest.approx(whole.mean(0), rel=0.02)
    assert blocks.std(0) == pytest.approx(whole.std(0), rel=0.1)


@pytest.fixture
def few_objects():
    """statsmodels collects garbage in each correction of p-values, which is slow after many other tests."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_intervals_cover_the_true_effect_and_tests_rarely_reject_it(few_objects):
    rng = np.random.default_rng(6)
    # There is no interaction.
    rates = [12.0, 10.0, 9.0, 7.0]
    truth = {"first": -2.0, "second": -3.0, "interaction": 0.0}
    num_experiments, covered, bootstrapped, rejected = 300, 0, 0, 0
    for _ in range(num_experiments):
        found = report(simulate(rng, rates), num_resamples=200)
        for name, value in truth.items():
            covered += found[name]["interval"][0] <= value <= found[name]["interval"][1]
            bootstrapped += found[name]["bootstrap_interval"][0] <= value <= found[name]["bootstrap_interval"][1]
        rejected += found["interaction"]["p_value"] < 0.05
    assert covered / (3 * num_experiments) > 0.93
    # Percentile intervals of five seeds are too narrow, as is known.
    assert bootstrapped / (3 * num_experiments) > 0.86
    assert rejected / num_experiments < 0.08


def test_a_large_effect_is_found():
    found = report(simulate(np.random.default_rng(7), [20.0, 20.0, 10.0, 10.0], num_utterances=400))
    assert found["second"]["holm_p_value"] < 0.01
    assert found["second"]["interval"][1] < -5
    assert found["first"]["holm_p_value"] > 0.05


def test_holm_multiplies_by_the_number_of_remaining_tests():
    found = report(simulate(np.random.default_rng(8), [12.0, 10.0, 10.5, 9.0]))
    ordered = sorted(found.values(), key=lambda contrast: contrast["p_value"])
    largest = 0.0
    for left, contrast in zip((3, 2, 1), ordered, strict=True):
        largest = max(largest, min(1.0, left * contrast["p_value"]))
        assert contrast["holm_p_value"] == pytest.approx(largest)


def test_a_comparison_of_two_arms_does_not_depend_on_other_arms():
    four = simulate(np.random.default_rng(9), [12.0, 10.0, 9.0, 8.0])
    two = SeededErrors(ARMS[:2], four.errors[:2], four.lengths)
    contrast = {"moe − conv": {"moe": 1.0, "conv": -1.0}}
    one, other = (report(data, contrast)["moe − conv"] for data in (four, two))
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == pytest.approx(other[name]), name


def test_there_is_no_ratio_to_an_arm_without_errors():
    errors = np.stack([np.zeros((2, 3)), np.ones((2, 3))])
    found = report(SeededErrors(("a", "b"), errors, np.full(3, 4)), {"b − a": {"b": 1, "a": -1}})["b − a"]
    assert found["estimate"] == pytest.approx(25)
    assert "ratio" not in found
    assert found["p_value"] < 1e-3


def test_utterances_can_be_selected():
    data = simulate(np.random.default_rng(10), [12.0, 10.0])
    part = data[np.array([3, 5, 7])]
    assert part.lengths.tolist() == data.lengths[[3, 5, 7]].tolist()
    assert (part.errors == data.errors[:, :, [3, 5, 7]]).all()


@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [
        ((2, 3, 4), [1, 1, 1], "must have shape"),
        ((1, 3, 4), [1, 1, 1, 1], "must have shape"),
        ((2, 4), [1, 1, 1, 1], "must have shape"),
        ((2, 1, 4), [1, 1, 1, 1], "at least two seeds"),
        ((2, 3, 1), [1], "at least two seeds and two utterances"),
        ((2, 3, 4), [1, 0, 1, 1], "without words"),
    ],
)
def test_data_that_cannot_be_analysed_are_refused(shape, lengths, message):
    with pytest.raises(ValueError, match=message):
        SeededErrors(("a", "b"), np.zeros(shape), np.array(lengths))


def test_a_contrast_of_unknown_arms_is_refused():
    data = SeededErrors(("a", "b"), np.ones((2, 2, 2)), np.ones(2))
    with pytest.raises(ValueError, match=r"weighs \['c'\]"):
        report(data, {"c − a": {"c": 1, "a": -1}})


def test_missing_packages_are_named_before_work_begins():
    code = "import sys; sys.modules['statsmodels'] = None; import compare"
    path = os.pathsep.join([str(Path(compare.__file__).parent), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert ended.returncode == 1
    assert 'not installed: `pip install "llm-asr[study]"`' in ended.stderr
