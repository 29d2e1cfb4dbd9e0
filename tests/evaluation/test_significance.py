import numpy as np
import pytest

from llm_asr.evaluation import significance
from llm_asr.evaluation.significance import bootstrap_interval, compare_systems


def test_the_interval_is_binomial_if_every_utterance_is_one_word():
    errors = np.repeat([1, 0], [100, 900])
    low, high = bootstrap_interval(errors, np.ones(1000, dtype=int))
    half = 100 * 1.96 * np.sqrt(0.1 * 0.9 / 1000)
    assert (low, high) == pytest.approx((10 - half, 10 + half), abs=0.4)


def test_about_95_of_100_intervals_contain_the_true_value():
    generator = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        words = generator.integers(3, 20, size=150)
        low, high = bootstrap_interval(generator.binomial(words, 0.2), words, num_resamples=400, seed=seed)
        held += low <= 20 <= high
    assert 180 <= held <= 199


def test_the_interval_is_reproducible_and_independent_of_the_block_size(monkeypatch):
    errors, words = [0, 1, 3, 0, 2], [4, 5, 6, 0, 8]
    whole = bootstrap_interval(errors, words, seed=3)
    assert bootstrap_interval(errors, words, seed=3) == whole
    monkeypatch.setattr(significance, "BLOCK", 35)
    assert bootstrap_interval(errors, words, seed=3) == whole


def test_without_errors_there_is_no_interval():
    assert bootstrap_interval([0, 0], [3, 4]) == (0, 0)


def test_a_system_does_not_differ_from_itself():
    found = compare_systems([1, 0, 2], [1, 0, 2], [5, 5, 5])
    assert found["wer_a"] == found["wer_b"] == 20
    assert (found["delta"], found["delta_interval"]) == (0, [0, 0])
    assert (found["probability_of_improvement"], found["p_value"]) == (0.5, 1)


def test_a_small_consistent_difference_is_significant():
    generator = np.random.default_rng(0)
    words = np.full(200, 10)
    errors_a = generator.integers(1, 9, size=200)
    errors_b = errors_a - (generator.random(200) < 0.2)
    found = compare_systems(errors_a, errors_b, words)
    assert found["delta"] == pytest.approx(found["wer_b"] - found["wer_a"])
    assert found["delta_interval"][0] < found["delta"] < found["delta_interval"][1] < 0
    assert found["probability_of_improvement"] == 1
    assert found["p_value"] < 0.001
    # The interval of a single system is wider than the difference.
    assert bootstrap_interval(errors_a, words)[0] < found["wer_b"]


def test_the_p_value_approximates_the_exact_permutation_test():
    # Two of the 2 ** 5 permutations give a difference of five.
    found = compare_systems([1] * 5, [0] * 5, [1] * 5, num_resamples=20_000)
    assert found["p_value"] == pytest.approx(2 / 32, abs=0.006)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: bootstrap_interval([1], [1, 2]),
            "`errors` has 1 utterances and `ref_words` 2; they must have the same length",
        ),
        (lambda: bootstrap_interval([1], [0]), "`ref_words` has no word"),
        (lambda: bootstrap_interval([1], [1], confidence=95), "`confidence` must be between 0 and 1, got 95"),
        (lambda: compare_systems([1], [1, 2], [1]), "`errors_b` has 2 utterances"),
        (lambda: compare_systems([1], [1], [1], num_resamples=0), "`num_resamples` must be positive"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
