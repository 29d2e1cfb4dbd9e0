import pytest

from llm_asr.evaluation.normalization import get_normalizer, is_unspaced, language_code


@pytest.mark.parametrize(
    ("language", "code"),
    [("es", "es"), ("pt-BR", "pt"), ("cmn_hans_cn", "cmn"), ("Chinese", "zh"), ("Lao", "lo"), ("Cantonese", "yue")],
)
def test_codes_and_names(language, code):
    assert language_code(language) == code


def test_languages_without_spaces():
    unspaced = ["zh", "zh-CN", "yue_hant_hk", "Japanese", "th", "Lao", "Burmese", "my_mm", "Khmer", "bo", "Mandarin"]
    assert all(map(is_unspaced, unspaced))
    assert not any(map(is_unspaced, ["en", "Korean", "ko", "Vietnamese", "", None]))


def test_number_words_become_digits_only_on_request():
    text = "It's forty seven, ninety eight."
    assert get_normalizer("en")(text).strip() == "it s forty seven ninety eight"
    for language in ("en", "English", "en-GB"):
        assert get_normalizer(language, "whisper")(text).strip() == "it is 4798"
    assert get_normalizer("es", "whisper")("¡Forty, señor!").strip() == "forty señor"


def test_vowel_signs_are_not_punctuation():
    assert get_normalizer("hi")("हिन्दी में।").strip() == "हिन्दी में"
    assert get_normalizer("hi", "whisper")("हिन्दी").split() == ["ह", "न", "द"]
    assert get_normalizer("th")("ที่นี่").split() == ["ที่", "นี่"]


def test_basic_equals_the_normalizer_of_whisper_for_texts_without_marks():
    text = "«Ça, c'est [bruit] l'été» — Straße № 5, йод!"
    assert get_normalizer("fr")(text) == get_normalizer("fr", "whisper")(text)


def test_letters_are_words_in_languages_without_spaces():
    assert get_normalizer("Chinese")("今天,好 吗?").split() == list("今天好吗")


@pytest.mark.parametrize("language", ["tr", "tr_tr", "tur", "Turkish", "az_az"])
def test_dotted_and_dotless_i_differ_in_turkish(language):
    normalize = get_normalizer(language)
    assert normalize("IŞIK İzmir") == normalize("ışık izmir") == "ışık izmir"
    assert normalize("I\N{COMBINING DOT ABOVE}zmir") == "izmir"
    assert get_normalizer("de")("IN") == "in"


@pytest.mark.parametrize("language", ["tha", "jpn", "zho", "cmn_hans_cn", "mya", "khm", "lao", "Thai", "nan", "bod"])
def test_languages_without_spaces_are_known_by_every_code(language):
    assert is_unspaced(language)


def test_an_unknown_normalizer_is_refused():
    with pytest.raises(ValueError, match="`normalizer` must be one of basic, whisper, got 'none'"):
        get_normalizer("en", "none")
