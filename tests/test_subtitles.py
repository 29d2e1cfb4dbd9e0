"""SubRip, WebVTT, JSON and text."""

import json

import pytest

from llm_asr.subtitles import format_timestamp, join_words, to_json, to_srt, to_text, to_vtt


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
    assert format_timestamp(seconds) == expected
    assert format_timestamp(seconds, ",") == expected.replace(".", ",")


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


def test_what_would_end_a_cue_does_not():
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


def test_words_are_joined_until_a_pause_a_length_or_a_duration():
    def words(count, seconds, gap=0.0):
        return [
            {"text": f"w{index:03d}", "timestamp": (index * (seconds + gap), index * (seconds + gap) + seconds)}
            for index in range(count)
        ]

    assert len(join_words(words(5, 0.3))) == 1
    assert len(join_words(words(5, 0.3, gap=1.0))) == 5
    assert max(len(cue["text"]) for cue in join_words(words(100, 0.1))) <= 84
    # 84 characters do not always fit on two lines.
    long = [{"text": "w" * 25, "timestamp": (float(index), index + 1.0)} for index in range(3)]
    assert [len(cue["text"]) for cue in join_words(long)] == [51, 25]
    cues = join_words(words(30, 1.0))
    assert all(end - start <= 7.0 for start, end in (cue["timestamp"] for cue in cues))
    assert " ".join(cue["text"] for cue in cues).split() == [word["text"] for word in words(30, 1.0)]
    assert join_words([]) == []
