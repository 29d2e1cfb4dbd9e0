"""SubRip, WebVTT, JSON and text."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_asr.processing.writing import count_columns, is_mark
from llm_asr.subtitles import format_timestamp, join_words, split_cues, to_json, to_srt, to_text, to_vtt


RESULT = {
    "file": "a.wav",
    "text": "uno dos tres",
    "language": "Spanish",
    "chunks": [{"text": "uno dos", "timestamp": (0.0, 1.5)}, {"text": "tres", "timestamp": (3661.9996, 3662.25)}],
}


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "00:00:00.000"),
        (1.0004, "00:00:01.000"),
        (59.9996, "00:01:00.000"),
        (3599.9999, "01:00:00.000"),
        (360000.5, "100:00:00.500"),
    ],
)
def test_timestamps(seconds, expected):
    milliseconds = round(1000 * seconds)
    assert format_timestamp(milliseconds) == expected
    assert format_timestamp(milliseconds, ",") == expected.replace(".", ",")


def test_subrip():
    assert to_srt(RESULT) == ("1\n00:00:00,000 --> 00:00:01,500\nuno dos\n\n2\n01:01:02,000 --> 01:01:02,250\ntres\n")
    assert to_srt({"text": "", "chunks": []}) == ""


def test_webvtt():
    assert to_vtt(RESULT) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nuno dos\n\n01:01:02.000 --> 01:01:02.250\ntres\n"
    )
    assert to_vtt({"text": "", "chunks": []}) == "WEBVTT\n"


def test_text_and_json():
    assert to_text(RESULT) == "uno dos tres\n"
    assert json.loads(to_json(RESULT))["chunks"][0] == {"text": "uno dos", "timestamp": [0.0, 1.5]}
    assert "ñ" in to_json({"text": "año"})


def test_text_cannot_end_a_cue():
    chunk = {"text": "one\n\ntwo --> three", "timestamp": (0.0, 1.0)}
    assert to_srt({"chunks": [chunk]}).count("-->") == 1
    assert to_srt({"chunks": [chunk]}).split("\n", 2)[2] == "one two → three\n"


def test_markup_is_escaped_in_webvtt():
    chunk = {"text": "<b> R&D --> a", "timestamp": (0.0, 1.0)}
    assert to_vtt({"chunks": [chunk]}).splitlines()[3] == "&lt;b&gt; R&amp;D → a"
    assert to_srt({"chunks": [chunk]}).splitlines()[2] == "<b> R&D → a"


def test_every_cue_is_shown():
    chunks = [{"text": " ", "timestamp": (0.0, 1.0)}, {"text": "one", "timestamp": (2.0, 2.0)}]
    assert to_srt({"chunks": chunks}) == "1\n00:00:02,000 --> 00:00:02,001\none\n"
    assert to_vtt({"chunks": chunks[:1]}) == "WEBVTT\n"


def test_long_lines_are_broken():
    text = " ".join(["word"] * 16)
    lines = to_vtt({"chunks": [{"text": text, "timestamp": (0.0, 4.0)}]}).splitlines()[3:]
    assert len(lines) == 2
    assert all(len(line) <= 42 for line in lines)
    assert " ".join(lines) == text


def test_words_are_joined_up_to_a_pause_a_length_or_a_duration():
    def words(count, seconds, gap=0.0):
        return [
            {"text": f"w{index:03d}", "timestamp": (index * (seconds + gap), index * (seconds + gap) + seconds)}
            for index in range(count)
        ]

    assert len(join_words(words(5, 0.3))) == 1
    assert len(join_words(words(5, 0.3, gap=1.0))) == 5
    assert max(len(cue["text"]) for cue in join_words(words(100, 0.1))) <= 84
    # Words of 84 characters together do not always fit on two lines.
    long = [{"text": "w" * 25, "timestamp": (float(index), index + 1.0)} for index in range(3)]
    assert [len(cue["text"]) for cue in join_words(long)] == [51, 25]
    cues = join_words(words(30, 1.0))
    assert all(end - start <= 7.0 for start, end in (cue["timestamp"] for cue in cues))
    assert " ".join(cue["text"] for cue in cues).split() == [word["text"] for word in words(30, 1.0)]
    assert join_words([]) == []


TEXTS = st.lists(
    st.one_of(
        st.text(alphabet="abcdefghij", min_size=1, max_size=60),
        st.text(alphabet="日本語テキスト。、", min_size=1, max_size=90),
        st.text(alphabet="สวัดีครบ่้า", min_size=1, max_size=90),
    ),
    max_size=40,
).map(" ".join)


@given(TEXTS, st.floats(0, 1e5), st.floats(-1, 60))
@example("字" * 200, 0.0, 29.5)
@example("word " * 100, 0.0, 29.5)
@example("ครั้" * 100, 0.0015, 0.001)
@example("ั", 0.0, 0.0)
def test_every_cue_has_two_lines_of_42_columns_at_most(text, start, seconds):
    cues = split_cues({"text": text, "timestamp": (start, start + seconds)})
    assert "".join("".join(lines) for *_, lines in cues).replace(" ", "") == "".join(text.split())
    previous = round(1000 * start)
    for begin, end, lines in cues:
        assert previous == begin < end
        previous = end
        assert 1 <= len(lines) <= 2
        for line in lines:
            # A mark without a letter has no width.
            assert line
            assert count_columns(line) <= 42
            assert line == line.strip()
            # A mark without a letter can only be at the start of the text or after a space.
            assert not is_mark(line[0]) or text.startswith(line[0]) or f" {line[0]}" in text
    if cues:
        assert previous == max(round(1000 * (start + seconds)), round(1000 * start) + len(cues))


def test_a_long_segment_is_divided_into_cues():
    cues = split_cues({"text": "word " * 110, "timestamp": (10.0, 39.5)})
    assert len(cues) == 7
    assert cues[0][0] == 10_000
    assert cues[-1][1] == 39_500
    # Each cue gets time in proportion to its text.
    assert all(3500 < end - begin < 4800 for begin, end, _ in cues[:-1])


def test_characters_are_joined_to_cues_without_spaces():
    words = [
        {"text": char, "timestamp": (0.1 * index, 0.1 * index + 0.1)}
        for index, char in enumerate("今日は良い天気" * 10)
    ]
    cues = join_words(words)
    assert "".join(cue["text"] for cue in cues) == "今日は良い天気" * 10
    assert max(count_columns(cue["text"]) for cue in cues) <= 84
    assert len(cues) == 2
