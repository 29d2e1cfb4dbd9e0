"""Detecting speech at any loudness."""

import threading

import numpy as np
import pytest
import torch

from llm_asr.processing.segmentation import split_at_silences
from llm_asr.processing.voice_activity import VOICE_ACTIVITIES, EnergyActivity, SileroActivity, frame_levels


RATE = 16000

# Number of frames in ten seconds.
BLOCK = 312


def noise(levels, seed=0):
    """Frames of noise with the given levels in decibels."""
    samples = np.random.default_rng(seed).standard_normal((len(levels), 512))
    return (samples * 10 ** (np.asarray(levels)[:, None] / 20)).astype("float32")


def turns(loud, quiet, num_frames=3 * BLOCK):
    """Levels that alternate every second, and which frames are loud."""
    is_loud = np.arange(num_frames) // 31 % 2 == 1
    return np.where(is_loud, loud, quiet), is_loud


def in_blocks(find_speech, frames):
    return np.concatenate([find_speech(frames[start : start + BLOCK]) for start in range(0, len(frames), BLOCK)])


def voice(seconds, generator):
    """Synthetic vowels: harmonics of a varying pitch with varying formants."""

    def moving(low, high, per_second=5):
        points = np.linspace(0, seconds, per_second * seconds + 1)
        return np.interp(time, points, generator.uniform(low, high, len(points)))

    time = np.arange(seconds * RATE) / RATE
    pitch = moving(90, 170)
    formants = [(moving(300, 800), 60), (moving(900, 2200), 90), (moving(2300, 3000), 130)]
    waveform = np.zeros_like(time)
    for harmonic in range(1, 41):
        gain = sum(1 / (1 + ((harmonic * pitch - center) / width) ** 2) for center, width in formants)
        waveform += gain / harmonic**0.5 * np.sin(2 * np.pi * harmonic * np.cumsum(pitch) / RATE)
    return (0.5 * moving(0.2, 1.0, 8) * waveform / np.abs(waveform).max()).astype("float32")


def test_levels_are_decibels_below_full_scale():
    sine = np.sin(2 * np.pi * np.arange(512) / 32).astype("float32")
    np.testing.assert_allclose(frame_levels(np.stack([sine, 0.1 * sine, 0 * sine])), [-3.01, -23.01, -120], atol=0.01)


@pytest.mark.parametrize("contrast", [12, 20, 40, 80])
@pytest.mark.parametrize("loud", [-10, -30, -45])
def test_energy_activity_finds_the_loud_parts_of_a_recording(loud, contrast):
    levels, is_loud = turns(loud, loud - contrast)
    found = in_blocks(EnergyActivity(RATE), noise(levels))
    assert found.dtype == bool
    np.testing.assert_array_equal(found, is_loud)


def test_energy_activity_keeps_everything_at_a_constant_level():
    for level in (-10, -55):
        assert in_blocks(EnergyActivity(RATE), noise(np.full(3 * BLOCK, level))).all()


def test_nothing_below_60_db_is_speech():
    for levels in (np.full(3 * BLOCK, -65), turns(-65, -100)[0], np.full(3 * BLOCK, -np.inf)):
        assert not in_blocks(EnergyActivity(RATE), noise(levels)).any()


def test_a_hum_between_loud_speech_and_digital_silence_is_not_speech():
    """Digital silence must not determine the noise floor."""
    levels, is_loud = turns(-10.0, -120.0)
    levels[~is_loud] = np.where(np.arange((~is_loud).sum()) % 4 == 0, -50.0, -120.0)
    np.testing.assert_array_equal(in_blocks(EnergyActivity(RATE), noise(levels)), is_loud)


def test_energy_activity_adapts_to_the_recording():
    """A new steady noise counts as speech only until the window no longer contains the quiet part."""
    (before, _), (after, is_loud) = turns(-20, -70, 6 * BLOCK), turns(-20, -35, 6 * BLOCK)
    found = in_blocks(EnergyActivity(RATE), noise(np.concatenate([before, after])))
    np.testing.assert_array_equal(found[-3 * BLOCK :], is_loud[-3 * BLOCK :])


@pytest.mark.parametrize("sampling_rate", [8000, 16000, 44100])
def test_frames_have_the_same_duration_at_any_sampling_rate(sampling_rate):
    time = np.arange(12 * sampling_rate) / sampling_rate
    waveform = np.where(time % 3 > 1, 0.3 * np.sin(2 * np.pi * 300 * time), 0).astype("float32")
    segments = list(split_at_silences([waveform], sampling_rate))
    assert [round(segment.start) for segment in segments] == [1, 4, 7, 10]
    assert all(segment.end - segment.start == pytest.approx(2.4, abs=0.1) for segment in segments[:-1])


def test_silero_detects_a_voice_and_ignores_noise():
    pytest.importorskip("silero_vad")
    generator = np.random.default_rng(2)
    hiss = (0.1 * generator.standard_normal(2 * RATE)).astype("float32")
    waveform = np.concatenate([np.zeros(2 * RATE, dtype="float32"), hiss, voice(5, generator)])
    frames = waveform[: len(waveform) // 512 * 512].reshape(-1, 512)
    found = SileroActivity(RATE)(frames)
    assert found.dtype == bool
    assert found.shape == (len(frames),)
    assert not found[:124].any()
    assert found[124:].any()
    # The network keeps its state between calls, but not between recordings.
    find_speech = SileroActivity(RATE)
    pieces = np.split(frames, [1, 130, 200])
    np.testing.assert_array_equal(np.concatenate([find_speech(piece) for piece in pieces]), found)


def test_silero_needs_16_khz():
    pytest.importorskip("silero_vad")
    with pytest.raises(ValueError, match="16000 samples per second, got 8000; use 'energy'"):
        SileroActivity(8000)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("llm_asr.processing.voice_activity.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install \"llm-asr\[vad\]\""):
        VOICE_ACTIVITIES["silero"](RATE)


def test_silero_does_not_change_the_number_of_threads_of_the_process():
    """A server processes several recordings at a time."""
    pytest.importorskip("silero_vad")

    before = torch.get_num_threads()
    frames = (0.1 * np.random.default_rng(0).standard_normal((40, 512))).astype("float32")
    seen = set()

    def listen():
        activity = SileroActivity(16000)
        for _ in range(5):
            activity(frames)
            seen.add(torch.get_num_threads())

    torch.set_num_threads(2)
    try:
        threads = [threading.Thread(target=listen) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.get_num_threads() == 2
        assert seen == {2}
    finally:
        torch.set_num_threads(before)
