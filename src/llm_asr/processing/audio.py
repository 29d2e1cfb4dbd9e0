"""Reads recordings from any source into mono waveforms at a given sampling rate."""

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from .audio_files import open_audio, read_block, read_file_duration
from .fetching import fetch_audio
from .waveforms import check_waveform, open_resampler, resample


logger = logging.get_logger(__name__)

# [`load_audio`] lists the types. Some of them belong to optional packages, so a precise type is not possible.
AudioSource = Any


def load_audio(source: AudioSource, sampling_rate: int) -> np.ndarray:
    """
    Read a recording.

    Args:
        source (`str`, `os.PathLike`, `bytes`, `dict`, `np.ndarray`, `torch.Tensor` or others):
            - a path or an `http(s)` address of an audio file; the contents of an audio file (`bytes`, `bytearray`,
              `memoryview`); or a binary file object, which is read to its end. libsndfile reads WAV, FLAC and other formats.
              PyAV reads MP3, OGG, OPUS, AAC, MP4, Matroska, WMA and AMR (M4A, WebM, the sound of videos). Channels are
              averaged, and the sampling rate is converted;
            - `{"array" or "raw": waveform, "sampling_rate": int}`, converted to `sampling_rate`;
            - `{"path": ..., "bytes": ...}`, the form of undecoded recordings in `datasets`;
            - a torchcodec `AudioDecoder`, the form of decoded recordings in `datasets`, converted to `sampling_rate`;
            - `(sampling_rate, array)`, Gradio's form, with an array of shape `(num_samples,)` or
              `(num_samples, num_channels)`;
            - a waveform of shape `(num_samples,)` or `(num_channels, num_samples)`, which must be at `sampling_rate`;
              see [`check_waveform`] for its dtype.
        sampling_rate (`int`): Samples per second of the result.

    Returns:
        `np.ndarray` of shape `(num_samples,)`, float32, full scale at ±1.

    Raises:
        `ValueError`: If the file cannot be read, or the waveform is empty, not finite, or not at full scale ±1.
        `TypeError`: If `source` has another type.
        `ImportError`: If a package for reading the file or for converting the sampling rate is missing.
    """
    source = _simplify(source)
    if isinstance(source, dict):
        rate = _check_rate(source)
        return resample(load_audio(source["array"], sampling_rate), rate, sampling_rate)
    if isinstance(source, (str, os.PathLike, bytes)):
        # Resampling a very short recording may give no samples.
        return np.concatenate([np.empty(0, np.float32), *stream_audio(source, sampling_rate).blocks])
    return check_waveform(source)


@dataclass
class AudioStream:
    """
    A recording that is read in blocks.

    Attributes:
        duration (`float`, *optional*): Duration in seconds. `None` if the file does not contain it, for instance because it
            was written to a pipe.
        blocks (`Iterator[np.ndarray]`): Consecutive samples, float32 arrays of shape `(num_samples,)`. They can be iterated
            only once.
    """

    duration: float | None
    blocks: Iterator[np.ndarray]


def stream_audio(source: AudioSource, sampling_rate: int, block_seconds: float = 10.0) -> AudioStream:
    """
    Read a recording in blocks, so that a long recording needs no more memory than `block_seconds`.

    A file that ends earlier than its header states, or that contains undecodable parts, is read as far as possible, with a
    warning.

    Args:
        source (`AudioSource`): See [`load_audio`]. A file from an address is kept in memory as a whole, in encoded form.
        sampling_rate (`int`): Samples per second of the result.
        block_seconds (`float`, *optional*, defaults to 10.0): Seconds in a block. Blocks are shorter if the file has so many
            channels or samples per second that a block would exceed 64 MiB.

    Returns:
        [`AudioStream`]: A stream whose blocks together are the result of [`load_audio`].

    Raises:
        `ValueError`, `TypeError`, `ImportError`: See [`load_audio`]. Errors of unusable samples come during iteration.
    """
    if not 0 < block_seconds < math.inf:
        raise ValueError(f"`block_seconds` must be positive, got {block_seconds}.")
    source = _simplify(source)
    if not isinstance(source, (str, os.PathLike, bytes)):
        waveform = load_audio(source, sampling_rate)
        size = max(1, int(block_seconds * sampling_rate))
        starts = range(0, len(waveform), size)
        return AudioStream(len(waveform) / sampling_rate, (waveform[start : start + size] for start in starts))
    file, name = _open(source)
    blocks = _resample_blocks(_read_blocks(file, name, block_seconds), file.samplerate, sampling_rate)
    return AudioStream(file.duration, blocks)


def read_duration(source: AudioSource) -> float | None:
    """
    Read the duration of a recording without decoding it.

    Args:
        source (`str`, `os.PathLike`, `bytes` or `dict`): A path, the contents of a file, or `{"bytes": ..., "path": ...}`.

    Returns:
        `float`: Duration in seconds. It may be wrong by a few tenths of a second for compressed formats. `None` if the file
        does not exist, cannot be read, or does not contain the duration.

    Raises:
        `ImportError`: See [`load_audio`].
    """
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, (bytearray, memoryview)):
        source = bytes(source)
    return read_file_duration(source) if isinstance(source, (str, os.PathLike, bytes)) else None


def _simplify(source: AudioSource) -> AudioSource:
    """Reduce any source to a path, `bytes`, an array, or a dict with `array` and `sampling_rate`."""
    if isinstance(source, dict):
        return _simplify_dict(source)
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        # NumPy has no bfloat16.
        return (source.float() if source.is_floating_point() else source).numpy()
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], np.ndarray):
        rate, array = source
        return {"array": array.T if array.ndim == 2 else array, "sampling_rate": rate}
    if isinstance(source, (list, tuple)) and (not source or isinstance(source[0], (int, float, np.generic))):
        return np.asarray(source)
    if hasattr(source, "get_all_samples"):
        samples = source.get_all_samples()
        return {"array": samples.data, "sampling_rate": samples.sample_rate}
    if hasattr(source, "read"):
        contents = source.read()
        if not isinstance(contents, bytes):
            raise TypeError(f"`audio` given as a file must be opened in binary mode, got {type(source).__name__}.")
        return contents
    if not isinstance(source, (str, os.PathLike, bytes, np.ndarray)):
        raise TypeError(
            "`audio` must be a path, the bytes of a file, a waveform, a file object, an `AudioDecoder`, or a dict with `array` "
            f"(or `raw`) and `sampling_rate`, or with `path` or `bytes`, got {type(source).__name__}."
        )
    return source


def _simplify_dict(source: dict) -> AudioSource:
    waveform = source["raw"] if source.get("array") is None and "raw" in source else source.get("array")
    if waveform is not None:
        if "sampling_rate" not in source:
            raise ValueError("`audio` given as a dict with `array` or `raw` must also have its `sampling_rate`.")
        return {"array": waveform, "sampling_rate": source["sampling_rate"]}
    encoded = source.get("bytes") or source.get("path")
    if encoded is None:
        raise ValueError(
            "`audio` given as a dict needs `array` (or `raw`) and `sampling_rate`, or `path` or `bytes`, got "
            f"{sorted(source)}."
        )
    return _simplify(encoded)


def _check_rate(source: dict) -> float:
    rate = source["sampling_rate"]
    if not isinstance(rate, (int, float, np.number)) or not 0 < rate < math.inf:
        raise ValueError(f"`sampling_rate` must be a positive number, got {rate!r}.")
    return float(rate)


def _open(source: str | os.PathLike | bytes):
    """Open a file, and return it with its name for errors."""
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return open_audio(fetch_audio(source), repr(source))
    return open_audio(source)


def _read_blocks(file, name: str, block_seconds: float) -> Iterator[np.ndarray]:
    """Yield consecutive blocks of samples at the file's own sampling rate. No block is empty."""
    size = max(1, int(block_seconds * file.samplerate))
    with file:
        for number in itertools.count():
            samples = read_block(file, name, size)
            # An empty block marks the end, except for the first block: `check_waveform` refuses an empty file.
            if number > 0 and len(samples) == 0:
                break
            yield check_waveform(samples, f"`audio` in {name}")
        if problems := file.problems():
            logger.warning(f"`audio` in {name} is damaged: {'; '.join(problems)}. The readable part is used.")


def _resample_blocks(blocks: Iterator[np.ndarray], from_rate: int, to_rate: int) -> Iterator[np.ndarray]:
    if from_rate == to_rate:
        yield from blocks
        return
    resampler = open_resampler(from_rate, to_rate)
    for block in itertools.chain(blocks, [None]):
        is_last = block is None
        samples = resampler.resample_chunk(np.empty(0, np.float32) if is_last else block, last=is_last)
        if len(samples):
            yield samples


__all__ = ["AudioSource", "AudioStream", "load_audio", "read_duration", "stream_audio"]
