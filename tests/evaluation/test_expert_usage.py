import math

import numpy as np
import pytest

from llm_asr.evaluation.expert_usage import expert_usage, plot_expert_usage


def test_usage_of_experts_that_each_serve_one_language():
    usage = expert_usage(np.array([[4, 0], [0, 6], [8, 0], [0, 6]]), ["en", "es", "en", "es"])
    assert usage["shares"] == {"en": [1, 0], "es": [0, 1], "all": [0.5, 0.5]}
    assert usage["entropy"] == pytest.approx({"en": 0, "es": 0, "all": 1})
    assert usage["mutual_information"] == pytest.approx(1)
    assert usage["min_share"] == 0.5


def test_usage_of_experts_that_are_independent_of_the_language():
    usage = expert_usage(np.array([[2, 1, 1], [6, 3, 3]]), ["en", "es"])
    assert usage["shares"]["en"] == usage["shares"]["es"] == pytest.approx([0.5, 0.25, 0.25])
    assert usage["entropy"]["all"] == pytest.approx(1.5 * math.log(2) / math.log(3))
    assert usage["mutual_information"] == pytest.approx(0)


def test_mutual_information_equals_its_definition():
    load = np.random.default_rng(0).uniform(size=(6, 4))
    languages = ["en", "es", "fr"] * 2
    joint = {
        name: load[[index for index in range(6) if languages[index] == name]].sum(0) for name in ("en", "es", "fr")
    }
    total = load.sum()
    expected = sum(
        row[expert] / total * math.log2(row[expert] * total / (row.sum() * load[:, expert].sum()))
        for row in joint.values()
        for expert in range(4)
    )
    assert expert_usage(load, languages)["mutual_information"] == pytest.approx(expected)


def test_languages_are_optional():
    usage = expert_usage([[1, 3], [0, 4]])
    assert usage["shares"] == {"all": [0.125, 0.875]}
    assert usage["mutual_information"] == 0


def test_input_without_load_or_with_wrong_languages_is_refused():
    with pytest.raises(ValueError, match="`expert_load` is empty"):
        expert_usage(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="`languages` has 1 entries for 2 recordings"):
        expert_usage(np.ones((2, 4)), ["en"])


def test_the_heat_map_is_written_as_a_picture(tmp_path):
    plot_expert_usage(expert_usage(np.eye(3), ["en", "es", "fr"]), tmp_path / "new" / "usage.png")
    assert (tmp_path / "new" / "usage.png").read_bytes().startswith(b"\x89PNG")
