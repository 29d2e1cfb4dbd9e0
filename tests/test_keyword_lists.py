import random

import pytest

from llm_asr.keyword_lists import KeywordLists, find_words


TEXTS = ["the cat saw Iñigo", "the dog saw the cat", "el perro vio a Qwen", "the end", ""]
LANGUAGES = ["en", "en", "es", "en", None]


@pytest.fixture
def lists():
    return KeywordLists(TEXTS, LANGUAGES)


def test_words_have_no_punctuation_and_languages_without_spaces_are_divided():
    assert find_words("«Hola», dijo A. O'Brien… 3.5") == ["Hola", "dijo", "O'Brien", "3.5"]
    assert find_words("今天天气很好 ok") == ["今天天", "气很好", "ok"]


def test_rare_words_come_first(lists):
    assert lists.rare_words("the cat saw Iñigo", 2) == ["Iñigo", "cat"]
    assert lists.rare_words("the cat saw Iñigo", 4, max_texts=1) == ["Iñigo"]
    assert lists.rare_words("unseen the", 2) == ["unseen", "the"]
    assert lists.rare_words("", 2) == []


def test_distractors_are_unspoken_words_of_the_same_language(lists):
    for seed in range(50):
        drawn = lists.draw("The cat saw Iñigo", "en", ["Iñigo"], 3, random.Random(seed))
        assert sorted(drawn) == ["Iñigo", "dog", "end"]
        assert set(lists.draw("", "es", [], 2, random.Random(seed))) <= {"el", "perro", "vio", "Qwen"}
    assert len(lists.draw("", "fr", [], 100, random.Random(0))) == len(lists.pools[None])


def test_draws_do_not_depend_on_the_order_of_the_transcripts(lists):
    other = KeywordLists(TEXTS[::-1], LANGUAGES[::-1])
    draws = [one.draw("", None, [], 4, random.Random(3)) for one in (lists, other)]
    assert draws[0] == draws[1]


def test_too_few_words_are_refused():
    with pytest.raises(ValueError, match="fewer than two distinct words"):
        KeywordLists(["one", "One"])
