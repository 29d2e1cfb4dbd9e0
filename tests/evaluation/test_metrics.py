import math

import numpy as np
import pytest
from tiny_models import make_tokenizer
from transformers import EvalPrediction

from llm_asr.evaluation.compute_metrics import ErrorRates
from llm_asr.evaluation.metrics import count_errors, error_rates, error_report, silence_report


def test_error_rates_count_words_and_characters_over_the_corpus():
    # One error in three words and none in one word: rates are pooled, not averaged over recordings.
    rates = error_rates(["one two three", "four"], ["one too three", "four"])
    assert rates["wer"] == pytest.approx(100 / 4)
    assert rates["cer"] == pytest.approx(100 / 17)


def test_error_rates_by_language():
    rates = error_rates(["one two", "uno dos"], ["one two", "uno"], ["en", "es"])
    assert rates["wer_en"] == 0
    assert rates["wer_es"] == pytest.approx(50)
    assert rates["wer"] == pytest.approx(25)


def test_case_and_punctuation_do_not_count():
    assert error_rates(["Forty-two, please!"], ["forty two please"])["wer"] == 0


def test_an_empty_hypothesis_is_all_deletions():
    assert error_rates(["one two"], [""])["wer"] == 100


def test_kinds_of_errors_of_each_recording():
    words, characters = count_errors(["one two three", "", "four"], ["one too", "uh", "four four five"])
    assert words.substitutions.tolist() == [1, 0, 0]
    assert words.insertions.tolist() == [0, 1, 2]
    assert words.deletions.tolist() == [1, 0, 0]
    assert words.reference_lengths.tolist() == [3, 0, 1]
    assert words.rate == pytest.approx(100 * 5 / 4)
    assert words[[0, 2]].rate == 100
    assert characters.reference_lengths.tolist() == [13, 0, 4]


def test_spaces_do_not_count_in_languages_without_them():
    for language in ("zh", "Chinese"):
        rates = error_rates(["今天好吗", "one two"], ["今 天 不好", "one two"], [language, "en"])
        # There are one deletion and one insertion in four characters.
        assert rates[f"wer_{language}"] == rates[f"cer_{language}"] == 50
        assert rates["wer"] == pytest.approx(100 * 2 / 6)


def test_the_normalizer_of_whisper_equates_digits_and_number_words():
    pair = ["twenty one dogs"], ["21 dogs"]
    assert error_rates(*pair, ["en"])["wer"] > 0
    assert error_rates(*pair, ["en"], normalizer="whisper")["wer"] == 0


def test_the_report_of_errors_by_language_and_by_any_other_group():
    arguments = ["one two", "uno dos", "今天", "..."], ["one too", "uno", "今天", ""], ["en", "es", "zh", "fr"]
    report = error_report(*arguments)
    # A group without reference words has no rate.
    assert list(report) == ["en", "es", "zh", "all"]
    assert report["en"]["wer"] == 50
    assert [report[group]["headline"] for group in report] == ["wer", "wer", "cer", "wer"]
    assert (report["es"]["substitutions"], report["es"]["insertions"], report["es"]["deletions"]) == (0, 0, 1)
    low, high = report["all"]["wer_interval"]
    assert 0 <= low < report["all"]["wer"] < high
    assert report["all"] == error_report(*arguments)["all"]
    by_dataset = error_report(*arguments, groups=["a", "a", "b", None])
    assert {name: found["recordings"] for name, found in by_dataset.items()} == {"a": 2, "b": 1, "all": 4}
    assert by_dataset["a"]["wer"] == 50
    rates = error_rates(*(column[:3] for column in arguments))
    assert report["all"]["wer"] == rates["wer"]
    assert report["all"]["cer"] == rates["cer"]


def test_a_report_without_words_is_refused():
    with pytest.raises(ValueError, match="no words after normalisation"):
        error_report(["..."], ["one"])
    with pytest.raises(ValueError, match="`groups` has 1 entries for 2 recordings"):
        error_report(["one", "two"], ["one", "two"], groups=["a"])


def test_hallucinations_in_silence_are_reported():
    assert silence_report(["", "thank you", "", ""]) == {
        "recordings": 4,
        "hallucinated": 25,
        "words_per_recording": 0.5,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["one"], []), "same length"),
        ((["one"], ["one"], ["en", "es"]), "same length"),
        (([], []), "nothing to score"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        error_rates(*arguments)


def test_compute_metrics_decodes_predictions_padded_by_the_trainer():
    class Processor:
        tokenizer = make_tokenizer()

        def batch_decode(self, rows):
            return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    encode = lambda text: Processor.tokenizer(text)["input_ids"]  # noqa: E731
    labels, predictions = encode("one two"), encode("one two three")
    padded = np.array([[-100, *labels, Processor.tokenizer.eos_token_id, -100]])
    metrics = ErrorRates(Processor(), ["en"])(EvalPrediction(np.array([predictions]), padded))
    assert metrics["wer_en"] == pytest.approx(50)


def test_recordings_that_cannot_be_scored_are_counted():
    references, hypotheses = ["one two", "...", "", "(noise)", "uno"], ["one too", "two", "", "", "uno"]
    languages = ["en", "en", None, "fr", "es"]
    rates = error_rates(references, hypotheses, languages)
    assert rates["wer"] == pytest.approx(100 / 3)
    assert (rates["unscored"], rates["unscored_hypotheses"]) == (3, 1)
    # No French recording can be scored.
    assert {name for name in rates if name.startswith("wer")} == {"wer", "wer_en", "wer_es"}
    rates = error_rates(["...", ""], ["one", ""])
    assert math.isnan(rates["wer"])
    assert math.isnan(rates["cer"])
    assert (rates["unscored"], rates["unscored_hypotheses"]) == (2, 1)
    assert "unscored" not in error_rates(["one"], ["one"])
