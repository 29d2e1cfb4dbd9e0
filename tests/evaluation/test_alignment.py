import pytest

from llm_asr.evaluation.alignment import boundary_errors, length_report


def test_length_report_by_language():
    report = length_report([4, 9, 10], [5, 10, 10], [1.0, 2.0, 2.0], ["en", "es", "es"], fixed_rate=10)
    assert report["en"] == pytest.approx({"length_error": 20, "embeddings_per_second": 4, "prefill_saved": 60})
    assert report["es"] == pytest.approx({"length_error": 5, "embeddings_per_second": 4.75, "prefill_saved": 52.5})
    assert report["all"]["length_error"] == pytest.approx(100 * 2 / 25)
    with pytest.raises(ValueError, match=r"same length, got \[1, 2, 1\]"):
        length_report([1], [1, 2], [1.0])


def test_boundary_errors_of_units_with_several_words():
    reference = [{"word": "dix sept", "start": 0.1, "end": 0.6}, {"word": "mars", "start": 0.7, "end": 1.0}]
    hypothesis = [
        {"text": "dix", "timestamp": (0.0, 0.3)},
        {"text": "sept", "timestamp": (0.3, 0.65)},
        {"text": "mars", "timestamp": (0.7, 1.2)},
    ]
    assert boundary_errors(reference, hypothesis) == pytest.approx([0.1, 0.05, 0.0, 0.2])
    assert boundary_errors(reference, hypothesis[:2]) == []
