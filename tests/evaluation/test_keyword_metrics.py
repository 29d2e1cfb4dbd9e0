import math

import pytest

from llm_asr.evaluation.keyword_metrics import keyword_report


def test_listed_and_other_words_are_scored_separately():
    report = keyword_report(
        references=["call Iñigo now please", "San José is far"],
        hypotheses=["call Inigo now", "San José is very far"],
        keywords=[["Iñigo", "Qwen"], ["san josé", "Oslo"]],
    )
    # One of three listed words is wrong; "please" is missing and "very" was added among five others.
    assert report["b_wer"] == pytest.approx(100 / 3)
    assert report["u_wer"] == pytest.approx(200 / 5)
    assert report["recall"] == pytest.approx(50)
    assert (report["leaked"], report["leakage"], report["silence_leaked"]) == (0, 0, 0)
    assert (report["recordings"], report["listed"], report["spoken"]) == (2, 4, 2)


def test_leaked_keywords_count_for_the_biased_rate_and_for_silence():
    report = keyword_report(
        references=["one two", "", "three three"],
        hypotheses=["one Qwen", "Qwen Oslo", "three three three"],
        keywords=[["Qwen", "two"], ["Qwen", "Oslo"], ["three"]],
    )
    assert (report["leaked"], report["silence_leaked"]) == (4, 2)
    assert report["leakage"] == 100
    # Wrong: "two", both words in silence, and the third "three". Listed and spoken: "two", "three", "three".
    assert report["b_wer"] == pytest.approx(100 * 4 / 3)
    assert report["u_wer"] == 0
    assert report["recall"] == pytest.approx(100 * 2 / 3)


def test_scripts_without_spaces_and_rates_that_are_not_defined():
    report = keyword_report(["今天很好"], ["今天好"], [["今天"]], ["zh"])
    assert (report["b_wer"], report["u_wer"], report["recall"]) == (0, 50, 100)
    nothing = keyword_report(["one"], ["one"], [[]])
    assert math.isnan(nothing["b_wer"])
    assert math.isnan(nothing["recall"])
    assert nothing["u_wer"] == 0


def test_columns_of_different_lengths():
    with pytest.raises(ValueError, match=r"same length and not be empty, got \[1, 1, 2, 1\]"):
        keyword_report(["one"], ["one"], [[], []])
    with pytest.raises(ValueError, match="same length"):
        keyword_report([], [], [])
