"""Joins clips to recordings with gaps, noise and varying speed, as a telephone system plays them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import soxr
from grammars import Unit
from speech import SAMPLE_RATE


MIN_SECONDS = 0.8
MAX_SECONDS = 8.0
"""Duration of the shortest and the longest composed recording."""

JOIN_SAMPLES = SAMPLE_RATE // 50
"""Overlap of two recordings inside one word. It is the silent margin that trimming keeps."""

FADE_SAMPLES = SAMPLE_RATE // 200
GAP_SECONDS = (0.02, 0.25)
EDGE_SECONDS = (0.05, 0.4)

SILENCE_DB = (-75.0, -25.0)
"""Levels of noise in recordings without speech."""


@dataclass(frozen=True)
class Augmentation:
    """
    Ranges of the random properties of an utterance's sound.

    Attributes:
        speed: Factor of both tempo and pitch.
        gain_db: Change of level in decibels.
        snr_db: Ratio of speech power to noise power in decibels.
    """

    speed: tuple[float, float]
    gain_db: tuple[float, float]
    snr_db: tuple[float, float]


TRAIN_AUGMENTATION = Augmentation(speed=(0.9, 1.1), gain_db=(-9.0, 6.0), snr_db=(15.0, 40.0))
TEST_AUGMENTATION = Augmentation(speed=(0.95, 1.05), gain_db=(-3.0, 3.0), snr_db=(30.0, 45.0))


def join_clips(clips: Sequence[np.ndarray]) -> np.ndarray:
    """
    Join the recordings of one word with cross-fades, and fade its ends in and out.

    Args:
        clips: One or more recordings of shape `(samples,)`, 16 kHz.

    Returns:
        Samples of shape `(samples,)`.
    """
    rise = np.linspace(0.0, 1.0, JOIN_SAMPLES, dtype=np.float32)
    word = clips[0]
    for clip in clips[1:]:
        overlap = word[-JOIN_SAMPLES:] * rise[::-1] + clip[:JOIN_SAMPLES] * rise
        word = np.concatenate([word[:-JOIN_SAMPLES], overlap, clip[JOIN_SAMPLES:]])
    fade = np.linspace(0.0, 1.0, FADE_SAMPLES, dtype=np.float32)
    word = word.copy()
    word[:FADE_SAMPLES] *= fade
    word[-FADE_SAMPLES:] *= fade[::-1]
    return word


def noise_like(length: int, rng: np.random.Generator) -> np.ndarray:
    """White or pink noise of unit power, with equal probability: float32 of shape `(length,)`."""
    # Use a power of two, because the transform of a length with large prime factors is several times slower.
    noise = rng.standard_normal(1 << (length - 1).bit_length())
    if rng.random() < 0.5:
        spectrum = np.fft.rfft(noise)
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
        noise = np.fft.irfft(spectrum)
    noise = noise[:length]
    return (noise / np.sqrt(np.mean(np.square(noise)))).astype(np.float32)


def render(
    units: Sequence[Unit], clips: Mapping[str, np.ndarray], augmentation: Augmentation, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """
    Render the sound of an utterance.

    Args:
        units: Units of the utterance.
        clips: Samples by clip name, each of shape `(samples,)`, 16 kHz.
        augmentation: Ranges of random properties.
        rng: Random generator.

    Returns:
        The samples, float32 in [-1, 1] of shape `(samples,)`, and the start and end of each unit in seconds.
    """
    pieces = [_silence(EDGE_SECONDS, rng)]
    spans: list[tuple[int, int]] = []
    position = len(pieces[0])
    for index, unit in enumerate(units):
        if index:
            pieces.append(_silence(GAP_SECONDS, rng))
            position += len(pieces[-1])
        pieces.append(join_clips([clips[name] for name in unit.clips]))
        spans.append((position, position + len(pieces[-1])))
        position = spans[-1][1]
    pieces.append(_silence(EDGE_SECONDS, rng))

    speed = rng.uniform(*augmentation.speed)
    speech = soxr.resample(np.concatenate(pieces), SAMPLE_RATE * speed, SAMPLE_RATE)
    power = np.mean(np.square(speech))
    noise_power = power * 10 ** (-rng.uniform(*augmentation.snr_db) / 10)
    samples = speech + np.float32(np.sqrt(noise_power)) * noise_like(len(speech), rng)
    gain = 10 ** (rng.uniform(*augmentation.gain_db) / 20)
    samples *= np.float32(min(gain, 0.99 / np.max(np.abs(samples))))

    duration = len(samples) / SAMPLE_RATE
    scale = SAMPLE_RATE * speed
    return samples, [(round(start / scale, 4), min(round(end / scale, 4), duration)) for start, end in spans]


def render_synthetic(samples: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Add silence before and after the speech, add noise, and change the level."""
    edges = [np.zeros(int(rng.uniform(*EDGE_SECONDS) * SAMPLE_RATE), dtype=np.float32) for _ in range(2)]
    samples = np.concatenate([edges[0], samples, edges[1]])
    noise_power = np.mean(np.square(samples)) * 10 ** (-rng.uniform(*augmentation.snr_db) / 10)
    samples = samples + np.float32(np.sqrt(noise_power)) * noise_like(len(samples), rng)
    gain = 10 ** (rng.uniform(*augmentation.gain_db) / 20)
    return samples * np.float32(min(gain, 0.99 / np.max(np.abs(samples))))


def render_silence(rng: np.random.Generator) -> np.ndarray:
    """
    Render a recording without speech: noise of a random level, mains hum, both, or digital silence. The result is float32 of
    shape `(samples,)`.
    """
    length = int(rng.uniform(MIN_SECONDS, MAX_SECONDS) * SAMPLE_RATE)
    noise_level, hum_level = (10 ** (level / 20) for level in rng.uniform(*SILENCE_DB, size=2))
    kind = rng.choice(["noise", "hum", "both", "nothing"], p=[0.5, 0.1, 0.3, 0.1])
    samples = np.zeros(length, dtype=np.float32)
    if kind in ("noise", "both"):
        samples += np.float32(noise_level) * noise_like(length, rng)
    if kind in ("hum", "both"):
        frequency, phase = rng.choice([50.0, 60.0]), rng.uniform(0, 2 * np.pi)
        harmonics = np.arange(1, 6)[:, None]
        waves = np.sin(harmonics * (2 * np.pi * frequency * np.arange(length) / SAMPLE_RATE + phase)) / harmonics
        samples += np.float32(hum_level) * waves.sum(axis=0).astype(np.float32)
    return np.clip(samples, -0.99, 0.99)


def _silence(seconds: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Silence of a random duration within the range `seconds`."""
    return np.zeros(int(rng.uniform(*seconds) * SAMPLE_RATE), dtype=np.float32)
