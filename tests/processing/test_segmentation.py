"""Splitting long recordings at silences, without losing or repeating speech."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_asr.processing.segmentation import BLOCK_SECONDS, Segment, split_at_silences
from llm_asr.processing.voice_activity import FRAME_SECONDS


RATE = 16000


def burst(seconds, generator, level=0.2):
    """Noise whose level changes as with syllables."""
    time = np.arange(int(seconds * RATE)) / RATE
    envelope = 0.3 + 0.7 * np.abs(np.sin(2 * np.pi * 3 * time))
    return (level * envelope * generator.standard_normal(len(time))).astype("float32")


def make_recording(pauses, noise, generator, seconds=(1.0, 4.0)):
    """A recording of bursts between pauses, with background noise, and the times of the bursts."""
    pieces, spans, position = [], [], 0
    for pause in pauses:
        pieces.append(np.zeros(int(pause * RATE), dtype="float32"))
        position += len(pieces[-1])
        pieces.append(burst(generator.uniform(*seconds), generator))
        spans.append((position / RATE, (position + len(pieces[-1])) / RATE))
        position += len(pieces[-1])
    waveform = np.concatenate(pieces)
    return waveform + (noise * generator.standard_normal(len(waveform))).astype("float32"), spans


def split(waveform, block_seconds=10.0, **kwargs):
    size = int(block_seconds * RATE)
    blocks = (waveform[start : start + size] for start in range(0, len(waveform), size))
    return list(split_at_silences(blocks, RATE, **kwargs))


def check(segments, waveform, max_segment_s=30.0):
    """Check that segments are parts of the recording, in order, without overlap, and within the limit."""
    end = 0.0
    for segment in segments:
        assert segment.start >= end - 1e-9
        assert 0 < segment.end - segment.start <= max_segment_s
        start = round(segment.start * RATE)
        np.testing.assert_array_equal(segment.waveform, waveform[start : start + len(segment.waveform)])
        end = segment.end
    assert end <= len(waveform) / RATE + 1e-9


@pytest.mark.parametrize("noise", [0.0, 0.0005, 0.005, 0.02])
def test_each_burst_between_long_pauses_is_a_segment(noise):
    generator = np.random.default_rng(0)
    waveform, spans = make_recording(generator.uniform(0.7, 2.5, size=40), noise, generator)
    segments = split(waveform)
    check(segments, waveform)
    assert len(segments) == len(spans)
    for segment, (start, end) in zip(segments, spans, strict=True):
        # The segment contains the whole burst, and adds at most its padding.
        assert start - 0.3 < segment.start <= start + FRAME_SECONDS
        assert end - FRAME_SECONDS <= segment.end < end + 0.3


def test_short_pauses_do_not_end_a_segment():
    generator = np.random.default_rng(1)
    waveform, spans = make_recording([1.0, 0.2, 0.3, 1.0, 0.2], 0.001, generator)
    segments = split(waveform)
    assert len(segments) == 2
    assert segments[0].end >= spans[2][1]
    assert segments[1].start <= spans[3][0]
    assert len(split(waveform, min_silence_s=0.15)) == 5


def test_speech_without_pauses_is_cut_and_nothing_is_lost():
    generator = np.random.default_rng(2)
    waveform = burst(125, generator)
    segments = split(waveform, max_segment_s=10.0)
    check(segments, waveform, 10.0)
    np.testing.assert_array_equal(np.concatenate([segment.waveform for segment in segments]), waveform)
    assert all(segment.end - segment.start >= 4.9 for segment in segments[:-1])
    # Cuts are at the quietest places, between the syllables, of which there are three per second.
    for segment in segments[:-1]:
        assert abs((segment.end * 6) % 1 - 0.5) > 0.2


def test_a_cut_is_in_the_longest_pause():
    generator = np.random.default_rng(3)
    waveform, spans = make_recording([0.0, 0.1, 0.35, 0.1, 0.1], 0.0005, generator, seconds=(3.0, 3.0))
    segments = split(waveform, max_segment_s=10.0)
    check(segments, waveform, 10.0)
    assert spans[1][1] - FRAME_SECONDS <= segments[0].end <= spans[2][0] + FRAME_SECONDS
    for start, end in spans:
        assert (
            sum(segment.start <= start + FRAME_SECONDS and segment.end >= end - FRAME_SECONDS for segment in segments)
            == 1
        )


def frames_of(runs):
    """A recording of alternating loud and silent runs with the given numbers of frames, and which frames are loud."""
    loud = np.repeat(np.arange(len(runs)) % 2 == 0, runs)
    noise = 0.2 * np.random.default_rng(len(loud)).standard_normal((len(loud), 512))
    return np.where(loud[:, None], noise, 0.0).astype("float32").ravel(), loud


def times_used(segments, num_frames):
    used = np.zeros(num_frames, dtype=int)
    for segment in segments:
        first = round(segment.start * RATE / 512)
        used[first : first + len(segment.waveform) // 512] += 1
    return used


@given(
    runs=st.lists(st.integers(1, 20) | st.integers(1, 120), min_size=1, max_size=12),
    max_segment_s=st.sampled_from([1.0, 2.0, 3.0]),
    min_silence_s=st.sampled_from([0.03, 0.2, 0.5]),
)
@example(runs=[93], max_segment_s=3.0, min_silence_s=0.5)
@example(runs=[94], max_segment_s=3.0, min_silence_s=0.5)
@example(runs=[1, 14, 40], max_segment_s=1.0, min_silence_s=0.5)
def test_every_frame_of_speech_is_in_exactly_one_segment(runs, max_segment_s, min_silence_s):
    waveform, loud = frames_of(runs)
    segments = split(waveform, max_segment_s=max_segment_s, min_silence_s=min_silence_s)
    check(segments, waveform, max_segment_s)
    used = times_used(segments, len(loud))
    silence = max(1, round(min_silence_s / FRAME_SECONDS))
    assert used.max() <= 1
    spoken = np.flatnonzero(loud)
    for group in np.split(spoken, np.flatnonzero(np.diff(spoken) > silence) + 1):
        # Only clicks are left out.
        assert used[group].all() or (not used[group].any() and len(group) < 3)
    for segment in segments:
        assert len(segment.waveform) >= 0.02 * RATE
        first = round(segment.start * RATE / 512)
        inside = np.flatnonzero(loud[first : first + len(segment.waveform) // 512])
        assert len(inside) > 0
        assert np.diff(inside).max(initial=0) <= silence


@pytest.mark.parametrize("runs", [[100, 30, 50], [0, 30, 94, 30, 50]])
def test_speech_that_just_fits_is_not_cut_for_its_padding(runs):
    waveform, loud = frames_of(runs)
    segments = split(waveform, max_segment_s=100.5 * FRAME_SECONDS)
    assert len(segments) == 2
    assert len(segments[0].waveform) == 100 * 512
    assert times_used(segments, len(loud))[loud].all()


@pytest.mark.parametrize("max_segment_s", [3.0, 30.0])
def test_segments_do_not_depend_on_the_block_size(max_segment_s):
    generator = np.random.default_rng(4)
    waveform, _ = make_recording(generator.uniform(0.1, 1.5, size=30), 0.002, generator)
    whole = split(waveform, block_seconds=1000, max_segment_s=max_segment_s)
    check(whole, waveform, max_segment_s)
    for block_seconds in (0.01, 1.0, 7.3, 10.0):
        other = split(waveform, block_seconds=block_seconds, max_segment_s=max_segment_s)
        assert [(one.start, one.end) for one in other] == [(one.start, one.end) for one in whole]


@pytest.mark.parametrize("level", [0.0, 1e-4])
def test_silence_has_no_segments(level):
    noise = np.random.default_rng(5).standard_normal(60 * RATE).astype("float32")
    assert split((level * noise).astype("float32")) == []
    assert split(np.empty(0, dtype="float32")) == []


def test_clicks_are_not_speech():
    waveform = np.zeros(40 * RATE, dtype="float32")
    waveform[20 * RATE : 20 * RATE + 200] = 0.5
    assert split(waveform) == []


def test_loud_steady_noise_is_kept():
    waveform = (0.2 * np.random.default_rng(6).standard_normal(65 * RATE)).astype("float32")
    segments = split(waveform)
    np.testing.assert_array_equal(np.concatenate([segment.waveform for segment in segments]), waveform)


def test_a_quiet_speaker_after_a_loud_one_is_detected():
    generator = np.random.default_rng(7)
    silence = np.zeros(2 * RATE, dtype="float32")
    waveform = np.concatenate([burst(5, generator, 0.3), silence, burst(5, generator, 0.01), silence])
    waveform += (1e-4 * generator.standard_normal(len(waveform))).astype("float32")
    assert len(split(waveform)) == 2


@pytest.mark.parametrize("pause", [0.0, 1.0])
def test_memory_holds_at_most_one_segment_and_one_block(pause):
    generator = np.random.default_rng(8)
    piece = np.concatenate([burst(7, generator), np.zeros(int(pause * RATE), dtype="float32")])
    num_read = 0

    def hour():
        nonlocal num_read
        for _ in range(4000 // round(len(piece) / RATE)):
            num_read += len(piece)
            yield piece

    for segment in split_at_silences(hour(), RATE, max_segment_s=20.0):
        assert num_read / RATE - segment.end <= 20 + 2 * BLOCK_SECONDS + 8
    assert segment.end > 4000 - 30


def test_an_hour_of_silence_is_not_held_in_memory():
    generator = np.random.default_rng(11)
    silence, speech = np.zeros(10 * RATE, dtype="float32"), burst(3, generator)
    tracemalloc.start()
    segments = list(split_at_silences(itertools.chain(itertools.repeat(silence, 360), [speech]), RATE))
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The whole recording has 230 MB.
    assert held < 10e6
    assert len(segments) == 1
    assert segments[0].start == pytest.approx(3600 - 0.2, abs=2 * FRAME_SECONDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vad": "ears"}, r"`vad` must be one of \['energy', 'silero'\], got 'ears'"),
        ({"min_silence_s": 0.0}, "`min_silence_s` must be positive"),
        ({"min_silence_s": np.nan}, "`min_silence_s` must be positive"),
        ({"max_segment_s": 0.2}, "at least 1 s"),
        ({"max_segment_s": np.inf}, "finite and last at least 1 s"),
        ({"max_segment_s": 2.0, "min_silence_s": 2.0}, "longer than `min_silence_s`, got 2.0 and 2.0"),
        ({"sampling_rate": 0}, "`sampling_rate` must be positive"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_read(options, message):
    def unread():
        raise AssertionError("nothing is to be read")
        yield

    with pytest.raises(ValueError, match=message):
        split_at_silences(unread(), **{"sampling_rate": RATE, **options})


def test_a_segment_has_its_end():
    assert Segment(start=1.5, waveform=np.zeros(8000, dtype="float32"), sampling_rate=16000).end == 2.0


@pytest.mark.parametrize("max_segment_s", [1.0, 3.0, 30.0])
@pytest.mark.parametrize("extra", [0.01, 0.033, 0.05, 0.1, 0.35, 0.5, 1.0])
def test_every_cut_segment_is_long_enough_for_a_speech_encoder(max_segment_s, extra):
    """The recording ends shortly after the longest segment, or shortly after a block."""
    for length in (max_segment_s + extra, 10.0 + extra, 2 * max_segment_s + extra):
        # Steady noise counts as speech as a whole.
        recording = (0.1 * np.random.default_rng(0).standard_normal(round(length * RATE))).astype("float32")
        segments = split(recording, max_segment_s=max_segment_s)
        np.testing.assert_array_equal(np.concatenate([segment.waveform for segment in segments]), recording)
        assert min(len(segment.waveform) for segment in segments) >= 0.3 * RATE
        assert max(len(segment.waveform) for segment in segments) <= max_segment_s * RATE
