"""Texts in scripts with and without spaces."""

import numpy as np
import pytest
from tiny_models import compose

from llm_asr.processing.timestamps import join_segments, split_words
from llm_asr.processing.writing import count_columns, joint, split_units


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("uno dos, tres", ["uno", "dos,", "tres"]),
        ("你好，世界。", ["你", "好，", "世", "界。"]),
        ("これは「テスト」です", ["こ", "れ", "は", "「テ", "ス", "ト」", "で", "す"]),
        ("用 Python 写code的", ["用", "Python", "写", "code", "的"]),
        ("2024年", ["2024", "年"]),
        # Vowel and tone marks above and below stay with their consonants.
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("ສະບາຍດີ", ["ສ", "ະ", "ບ", "າ", "ຍ", "ດີ"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("ខ្មែរ", ["ខ្", "មែ", "រ"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("foo(bar) baz", ["foo(bar)", "baz"]),
        ("", []),
        (" \n", []),
    ],
)
def test_units(text, units):
    assert split_units(text) == units
    assert "".join(units) == "".join(text.split())


@pytest.mark.parametrize(
    ("left", "right", "between"),
    [
        ("uno", "dos", " "),
        ("你好。", "世界", ""),
        ("สวัสดี", "ครับ", ""),
        ("你好", "world", " "),
        ("你好。", "2024年", ""),
        ("한국어", "문장", " "),
        ("", "dos", ""),
        ("uno", "", ""),
        ("42", "43", " "),
    ],
)
def test_joints(left, right, between):
    assert joint(left, right) == between


def test_columns():
    assert count_columns("abc") == 3
    assert count_columns("日本語。") == 8
    assert count_columns("สวัสดี") == 4
    assert count_columns("e\N{COMBINING ACUTE ACCENT}") == 1


@pytest.mark.parametrize("text", ["你好，世界", "これはテスト", "สวัสดีครับ", "မြန်မာ", "用 Python 写", "uno dos"])
def test_each_character_has_its_own_time(parts, text):
    """The tokenizer encodes most of these characters as bytes."""
    processor = compose(parts, "cif")[1]
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    alphas = np.zeros(4 * len(ids))
    alphas[1::4] = 1.0
    decoded = processor.decode(ids, output_offsets="word", alphas=alphas, frame_period=0.04)
    assert [part["text"] for part in decoded["offsets"]] == split_units(text)
    times = [part["timestamp"] for part in decoded["offsets"]]
    assert all(start < end for start, end in times)
    assert times == sorted(times)
    # A character starts with the first of its tokens.
    counts = [len(processor.tokenizer(unit, add_special_tokens=False)["input_ids"]) for unit in split_units(text)]
    if " " not in text:
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        assert [start for start, _ in times] == [round((4 * first + 1) * 0.04, 3) for first in starts]


def test_characters_that_share_a_token_share_its_time(parts, monkeypatch):
    processor = compose(parts, "cif")[1]
    pieces = {11: "你好", 12: "世", 13: "界"}
    monkeypatch.setattr(
        processor.tokenizer, "decode", lambda ids, **kwargs: "".join(pieces[token] for token in ids), raising=False
    )
    assert split_words(processor.tokenizer, [11, 12, 13]) == (["你", "好", "世", "界"], [0.5, 0.5, 1.0, 1.0])


def test_segments_are_joined_as_they_are_written():
    words = [{"text": text, "timestamp": (index, index + 1)} for index, text in enumerate(["你", "好，", "世", "界"])]
    assert join_segments(words, 0.5) == [{"text": "你好，世界", "timestamp": (0, 4)}]
