"""Converts recordings to FLAC at 16 kHz, and rejects unsuitable ones."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import soundfile
from speech import SAMPLE_RATE, decode_audio

from llm_asr.atomic_writing import atomic_path

from .clips import Clip


SECONDS = (0.4, 20.0)
CHARACTERS_PER_SECOND = (4.0, 25.0)
"""Slower recordings are mostly silence or music. In faster ones, a part of the text is missing."""

MIN_PEAK = 0.01
MIN_BYTES = 400
"""Shorter files have no sound."""


def convert(clip: Clip, path: Path) -> np.ndarray | None:
    """Convert ``clip`` to the FLAC file ``path``, or read this file if it exists.

    Returns:
        The samples: float32, mono, 16 kHz, shape ``(samples,)``; ``None`` if the clip has no sound.
    """
    if path.is_file():
        return soundfile.read(path, dtype="float32")[0]
    data = clip.read()
    if len(data) < MIN_BYTES:
        return None
    try:
        samples = decode_audio(io.BytesIO(data))
    except (av.error.FFmpegError, ValueError):  # counted by its caller as "no sound"
        return None
    samples = np.clip(samples, -1.0, 1.0)
    with atomic_path(path) as unfinished:
        soundfile.write(unfinished, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return samples


def reason_to_reject(samples: np.ndarray | None, text: str) -> str | None:
    """Return the reason to reject a recording, or ``None``.

    Args:
        samples: result of :func:`convert`.
        text: normalised text of the recording.
    """
    if samples is None or not len(samples):
        return "no sound"
    seconds = len(samples) / SAMPLE_RATE
    if not SECONDS[0] <= seconds <= SECONDS[1]:
        return f"not between {SECONDS[0]} and {SECONDS[1]} s"
    if np.max(np.abs(samples)) < MIN_PEAK:
        return f"peak below {MIN_PEAK}"
    if not CHARACTERS_PER_SECOND[0] <= len(text) / seconds <= CHARACTERS_PER_SECOND[1]:
        return "not between {:g} and {:g} characters a second".format(*CHARACTERS_PER_SECOND)
    return None
