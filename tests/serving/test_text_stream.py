"""Decoding text while it is generated."""

import pytest
from tiny_models import compose


pytest.importorskip("starlette", reason='pip install "llm-asr[serve]"')

from llm_asr.processing.pipeline_llm_asr import join_pieces
from llm_asr.serving.text_stream import TextStream


@pytest.fixture(scope="module")
def processor(parts):
    return compose(parts, "conv")[1]


def tokens(processor, text):
    return [*processor.tokenizer(text, add_special_tokens=False)["input_ids"], processor.tokenizer.eos_token_id]


def write(processor, segments, language=None):
    """Decode token by token, and return the parts of the text and the transcript of the same tokens."""
    stream, parts, pieces = TextStream(processor), [], []
    for segment in segments:
        ids = tokens(processor, segment)
        stream.begin_segment()
        parts += [stream.add([token]) for token in ids]
        parts.append(stream.end_segment())
        pieces.append({"tokens": [ids], "has_speech": True, "start": 0.0, "end": 1.0})
    return parts, join_pieces(pieces, processor, 0.04, language=language)["text"]


@pytest.mark.parametrize(
    ("segments", "language", "expected"),
    [
        (["uno dos", "tres"], "Spanish", "uno dos tres"),
        (["Spanish\nuno dos", "English\none  two ", "three"], None, "uno dos one  two three"),
        # The model names a language, but the transcript is empty.
        (["Spanish\n", "uno"], None, "uno"),
        ([" uno ", "", "dos"], None, "uno dos"),
        (["一二", "三"], "Chinese", "一二三"),
        (["Chinese\n一二", "Chinese\n三", "English\none"], None, "一二三 one"),
        # The text only starts like the name of a language.
        (["Spanish", "Span"], None, "Spanish Span"),
        (["Spanish is spoken", "S"], None, "Spanish is spoken S"),
        (["Klingon\nuno"], None, "Klingon\nuno"),
        (["Spanish\nuno"], "Spanish", "uno"),
        (["naïve 😀 ok"], "English", "naïve 😀 ok"),
        ([], None, ""),
    ],
)
def test_the_parts_make_the_transcript(processor, segments, language, expected):
    parts, text = write(processor, segments, language)
    assert "".join(parts) == text == expected
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)


def test_text_is_sent_as_soon_as_it_is_final(processor):
    parts, _ = write(processor, ["Spanish\nuno dos tres cuatro"])
    assert sum(map(bool, parts)) >= 4
    assert "uno" in "".join(parts[: len(parts) // 2 + 2])
