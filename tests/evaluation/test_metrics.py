import numpy as np
import pytest
from tiny_models import make_tokenizer
from transformers import EvalPrediction

from llm_asr.evaluation.metrics import ErrorRates, error_rates


def test_error_rates_count_words_and_characters_over_the_corpus():
    # One substitution in three words, and none in one: pooled, not averaged over recordings.
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["one"], []), "same length"),
        ((["one"], ["one"], ["en", "es"]), "same length"),
        (([], []), "nothing to score"),
        ((["one", "..."], ["one", "two"]), r"empty at \[1\]"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        error_rates(*arguments)


def test_compute_metrics_decodes_what_the_trainer_pads():
    class Processor:
        tokenizer = make_tokenizer()

        def batch_decode(self, rows):
            return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    encode = lambda text: Processor.tokenizer(text)["input_ids"]  # noqa: E731
    labels, predictions = encode("one two"), encode("one two three")
    padded = np.array([[-100, *labels, Processor.tokenizer.eos_token_id, -100]])
    metrics = ErrorRates(Processor(), ["en"])(EvalPrediction(np.array([predictions]), padded))
    assert metrics["wer_en"] == pytest.approx(50)
