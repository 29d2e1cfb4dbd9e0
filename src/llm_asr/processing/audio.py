"""Reading recordings: anything a user may hand over becomes a mono waveform at the wanted sampling rate."""

import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import torch
from transformers.utils import is_soundfile_available, is_soxr_available, requires_backends

from .container_audio import MAX_SAMPLING_RATE, ContainerError, ContainerFile, find_container, read_container_duration


# Under conditions that Transformers knows, so that a checkpoint's code transcribes waveforms without either.
if is_soundfile_available():
    import soundfile
if is_soxr_available():
    import soxr


AudioSource = str | Path | bytes | dict | np.ndarray | torch.Tensor


def load_audio(source: AudioSource, sampling_rate: int) -> np.ndarray:
    """
    Read a recording.

    Args:
        source (`str`, `Path`, `bytes`, `dict`, `np.ndarray` or `torch.Tensor`):
            - a path or an `http(s)` address of an audio file, or the contents of one, in any format that libsndfile reads
              (WAV, FLAC, OGG, OPUS, MP3, ...) or, with PyAV, of MP4 and Matroska (M4A, WebM, the sound of videos); channels
              are averaged and the sampling rate is converted;
            - `{"array" or "raw": waveform, "sampling_rate": int}`, converted to `sampling_rate`;
            - `{"path": ..., "bytes": ...}`, as `datasets` keeps a recording it did not decode;
            - a one-dimensional waveform, taken to be at `sampling_rate`.
        sampling_rate (`int`): Samples per second wanted.

    Returns:
        `np.ndarray` of shape `(num_samples,)`, float32, full scale at ±1.

    Raises:
        `ValueError`: If the file cannot be read, or the waveform is empty, not mono, or holds NaN or infinity.
        `TypeError`: If `source` is none of the above.
        `ImportError`: If a file is to be read without soundfile (or PyAV, for its formats), or a sampling rate converted
            without soxr.
    """
    if isinstance(source, dict):
        return _load_dict(source, sampling_rate)
    if isinstance(source, (str, Path, bytes)):
        return _load_file(source, sampling_rate)
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        # NumPy has no bfloat16.
        source = (source.float() if source.is_floating_point() else source).numpy()
    if isinstance(source, (list, tuple)) and (not source or isinstance(source[0], (int, float, np.generic))):
        source = np.asarray(source)
    if not isinstance(source, np.ndarray):
        raise TypeError(
            "`audio` must be a path, the bytes of a file, a waveform, or a dict with `array` (or `raw`) and "
            f"`sampling_rate`, got {type(source).__name__}."
        )
    return check_waveform(source)


@dataclass
class AudioStream:
    """
    A recording that is read piece by piece.

    Attributes:
        duration (`float`, *optional*): Seconds; absent where the file does not tell, as one that was written to a pipe.
        blocks (`Iterator[np.ndarray]`): Consecutive samples, float32 arrays of shape `(num_samples,)`; to be iterated once.
    """

    duration: float | None
    blocks: Iterator[np.ndarray]


def stream_audio(source: AudioSource, sampling_rate: int, block_seconds: float = 10.0) -> AudioStream:
    """
    Read a recording piece by piece, so that an hour of it takes no more memory than `block_seconds`.

    Args:
        source (`AudioSource`): See [`load_audio`]. A file from an address is held whole, but encoded.
        sampling_rate (`int`): Samples per second wanted.
        block_seconds (`float`, *optional*, defaults to 10.0): Seconds to be read at a time.

    Returns:
        [`AudioStream`], whose blocks are together what [`load_audio`] returns.

    Raises:
        `ValueError`, `TypeError`, `ImportError`: As [`load_audio`]; unusable samples are found when they are reached.
    """
    if not 0 < block_seconds < math.inf:
        raise ValueError(f"`block_seconds` must be positive, got {block_seconds}.")
    encoded = source
    if isinstance(source, dict) and source.get("array") is None and source.get("raw") is None:
        encoded = source.get("bytes") or source.get("path")
    if not isinstance(encoded, (str, Path, bytes)):
        waveform = load_audio(source, sampling_rate)
        size = max(1, int(block_seconds * sampling_rate))
        blocks = (waveform[start : start + size] for start in range(0, len(waveform), size))
        return AudioStream(len(waveform) / sampling_rate, blocks)
    file, name = _open_file(encoded)
    blocks = _resample_blocks(_read_blocks(file, name, block_seconds), file.samplerate, sampling_rate)
    # What libsndfile says of a length it does not know.
    is_known = file.frames < 2**63 - 1
    return AudioStream(file.frames / file.samplerate if is_known else None, blocks)


def read_duration(source: str | Path | bytes | dict) -> float | None:
    """
    Read how long a recording lasts, from its header.

    Args:
        source (`str`, `Path`, `bytes` or `dict`): A path, the contents of a file, or `{"bytes": ..., "path": ...}`.

    Returns:
        `float`: Seconds, or `None` if there is no file, it cannot be read, or its header does not tell.

    Raises:
        `ImportError`: As [`load_audio`].
    """
    requires_backends(read_duration, "soundfile")
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    if source is None or (not isinstance(source, bytes) and not Path(source).is_file()):
        return None
    try:
        if container := find_container(_read_head(source)):
            return read_container_duration(_as_ffmpeg_takes_it(source), container)
        return soundfile.info(io.BytesIO(source) if isinstance(source, bytes) else source).duration
    except (ContainerError, soundfile.LibsndfileError):
        return None


def _read_blocks(
    file: "soundfile.SoundFile | ContainerFile", name: str, block_seconds: float = 10.0
) -> Iterator[np.ndarray]:
    """Consecutive samples at the file's own rate; none are empty."""
    size = max(1, int(block_seconds * file.samplerate))
    with file:
        for number in itertools.count():
            samples = _read(file, name, size).mean(axis=1)
            # A header may promise more than there is, but an empty file is refused.
            if number > 0 and len(samples) == 0:
                return
            yield check_waveform(samples, f"`audio` in {name}")


def _resample_blocks(blocks: Iterator[np.ndarray], from_rate: int, to_rate: int) -> Iterator[np.ndarray]:
    if from_rate == to_rate:
        yield from blocks
        return
    requires_backends(resample, "soxr")
    resampler = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32")
    for block in itertools.chain(blocks, [None]):
        is_last = block is None
        samples = resampler.resample_chunk(np.empty(0, np.float32) if is_last else block, last=is_last)
        if len(samples):
            yield samples


def check_waveform(waveform: np.ndarray, name: str = "`audio`") -> np.ndarray:
    """`waveform` as float32, or a `ValueError` that says why `name` is no mono recording."""
    if waveform.ndim != 1:
        raise ValueError(
            f"{name} must be mono, of shape (num_samples,), got {tuple(waveform.shape)}; average its channels first."
        )
    if not np.issubdtype(waveform.dtype, np.floating):
        raise ValueError(
            f"{name} must hold floating point samples in [-1, 1], got {waveform.dtype}; divide integers by full scale."
        )
    if waveform.size == 0:
        raise ValueError(f"{name} is empty; remove it.")
    # Finite numbers of float64 may not be finite in float32.
    with np.errstate(over="ignore"):
        waveform = waveform.astype(np.float32, copy=False)
    if not np.isfinite(waveform).all():
        raise ValueError(f"{name} holds NaN or infinite samples; repair or remove it.")
    return waveform


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Convert a waveform of shape `(num_samples,)` between sampling rates."""
    if from_rate == to_rate:
        return waveform
    requires_backends(resample, "soxr")
    return soxr.resample(waveform, from_rate, to_rate)


def _load_dict(source: dict, sampling_rate: int) -> np.ndarray:
    waveform = source["raw"] if source.get("array") is None and "raw" in source else source.get("array")
    if waveform is not None:
        if "sampling_rate" not in source:
            raise ValueError("`audio` given as a dict with `array` or `raw` needs its `sampling_rate` too.")
        rate = source["sampling_rate"]
        if not isinstance(rate, (int, float, np.number)) or not 0 < rate < math.inf:
            raise ValueError(f"`sampling_rate` must be a positive number, got {rate!r}.")
        return resample(load_audio(waveform, sampling_rate), rate, sampling_rate)
    encoded = source.get("bytes") or source.get("path")
    if encoded is None:
        raise ValueError(
            "`audio` given as a dict needs `array` (or `raw`) and `sampling_rate`, or `path` or `bytes`, got "
            f"{sorted(source)}."
        )
    return _load_file(encoded, sampling_rate)


def _load_file(source: str | Path | bytes, sampling_rate: int) -> np.ndarray:
    # Too short a recording may be resampled to nothing.
    return np.concatenate([np.empty(0, np.float32), *stream_audio(source, sampling_rate).blocks])


def _open_file(source: str | Path | bytes) -> tuple["soundfile.SoundFile | ContainerFile", str]:
    """The opened file, to be read from start to end, and what to call it in errors."""
    requires_backends(load_audio, "soundfile")
    name = "the given bytes" if isinstance(source, bytes) else f"{str(source)!r}"
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        try:
            with urlopen(source) as response:
                source = response.read()
        except (OSError, HTTPException) as error:
            raise ValueError(f"`audio` cannot be fetched from {name}: {error}.") from error
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise ValueError(f"`audio` file {name} does not exist.")
    try:
        if container := find_container(_read_head(source)):
            return ContainerFile(_as_ffmpeg_takes_it(source), container), name
        file = soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source)
    except (ContainerError, soundfile.LibsndfileError) as error:
        raise ValueError(_unreadable(name, error)) from error
    if file.samplerate > MAX_SAMPLING_RATE:
        raise ValueError(f"`audio` in {name} claims {file.samplerate} samples per second; repair or remove it.")
    # soundfile seeks after every read where it can, which spoils the next frames of an MP3 and fails in a FLAC that does
    # not tell its length.
    file.seekable = lambda: False
    return file, name


def _read_head(source: str | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:12]
    with open(source, "rb") as file:
        return file.read(12)


def _as_ffmpeg_takes_it(source: str | Path | bytes) -> io.BytesIO | str:
    # FFmpeg takes what is before a colon in a name for a protocol.
    return io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"


def _read(file: "soundfile.SoundFile | ContainerFile", name: str, frames: int) -> np.ndarray:
    try:
        return file.read(frames, dtype="float32", always_2d=True)
    except (ContainerError, soundfile.LibsndfileError) as error:
        raise ValueError(_unreadable(name, error)) from error


def _unreadable(name: str, error: "ContainerError | soundfile.LibsndfileError") -> str:
    return (
        f"`audio` cannot be read from {name}: {error}. Is it an audio file? WAV, FLAC, OGG, MP3, M4A and WebM are read; "
        "convert others first."
    )


__all__ = ["AudioSource", "AudioStream", "check_waveform", "load_audio", "read_duration", "resample", "stream_audio"]
