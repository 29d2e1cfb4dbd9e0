import pytest

from llm_asr.evaluation.mixed_metrics import word_language_report


def words(*pairs):
    return [{"word": word, "language": language} for word, language in pairs]


def test_errors_by_the_language_of_the_word():
    spoken = [words(("Uno,", "es"), ("dos", "es"), ("one", "en")), words(("two", "en"), ("tres", "es"))]
    report = word_language_report([*spoken, words(("four", "en"))], ["uno too one more", "two", "extra four"])
    # "dos" was replaced and "tres" left out; "more" follows "one", and "extra" precedes "four".
    assert report["es"] == {"words": 3, "errors": 2, "wer": pytest.approx(200 / 3)}
    assert report["en"] == {"words": 3, "errors": 2, "wer": pytest.approx(200 / 3)}
    assert report["all"]["errors"] == 4


def test_characters_take_the_place_of_words():
    report = word_language_report([words(("今天很好", "zh"), ("okay", "en"))], ["今天好 okay"])
    assert report["zh"] == {"words": 4, "errors": 1, "wer": 25}
    assert report["en"]["wer"] == 0


def test_nothing_to_score():
    with pytest.raises(ValueError, match="no word"):
        word_language_report([[]], ["one"])
    with pytest.raises(ValueError, match="same length"):
        word_language_report([[]], [])
