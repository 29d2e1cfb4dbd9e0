"""Opens audio files: uncompressed formats and FLAC with libsndfile, all others with FFmpeg."""

import io
import math
import os
import re
from pathlib import Path

import numpy as np
from transformers.utils import is_soundfile_available, requires_backends

from .container_audio import MAX_SAMPLING_RATE, ContainerError, ContainerFile, find_container, read_container_duration
from .waveforms import MAX_CHANNELS


# Transformers recognises this condition, so a checkpoint's code can transcribe waveforms without the package.
if is_soundfile_available():
    import soundfile

# Largest block of decoded samples, all channels together.
MAX_BLOCK_BYTES = 2**26

# libsndfile's value for an unknown length.
UNKNOWN_FRAMES = 2**63 - 1

# Programs write lengths from this value on into a header when they do not know the length yet.
UNKNOWN_BYTES = 2**31 - 2**16

# libsndfile stops reading these formats at its estimate of the end, or where an appended file starts. FFmpeg reads on.
NOT_READ_TO_THE_END = {"MP3": "mp3", "OGG": "ogg"}


class UnreadableAudioError(ValueError):
    """A file is not an audio file or cannot be decoded. `error_string` is the decoder's reason."""

    error_string = ""

    @classmethod
    def of(cls, name: str, reason: str) -> "UnreadableAudioError":
        error = cls(
            f"`audio` cannot be read from {name}: {reason} Is it an audio file? Readable formats are WAV, FLAC, AIFF, MP3, "
            "OGG, OPUS, AAC, M4A, WebM, WMA and AMR; convert other formats first."
        )
        error.error_string = reason
        return error


class PlainFile:
    """
    An uncompressed file or a FLAC file, read by libsndfile.

    Args:
        file (`str` or `BinaryIO`): A path or an opened file.

    Attributes:
        samplerate (`int`): Samples per second.
        duration (`float`, *optional*): Duration in seconds. `None` if the file does not contain it, for instance because it
            was written to a pipe.
    """

    def __init__(self, file):
        self._file = soundfile.SoundFile(file)
        # soundfile seeks after every read of a seekable file. This fails for a FLAC file of unknown length.
        self._file.seekable = lambda: False
        self.format = self._file.format
        self.samplerate = self._file.samplerate
        self.channels = self._file.channels
        self.duration = None if self._file.frames == UNKNOWN_FRAMES else self._file.frames / self.samplerate
        self._num_read = 0

    def read(self, frames: int) -> np.ndarray:
        """
        Read at most `frames` samples with averaged channels: shape `(num_samples,)`, float32. The array is empty at the end.
        """
        frames = max(1, min(frames, MAX_BLOCK_BYTES // (4 * self.channels)))
        samples = self._file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
        self._num_read += len(samples)
        return samples

    def problems(self) -> list[str]:
        """Describe missing parts of the file. Call this after reading to the end."""
        if self.duration is not None and self._num_read < math.floor(self.duration * self.samplerate):
            seconds = self._num_read / self.samplerate
            return [f"it ends after {seconds:.1f} s, but its header states {self.duration:.1f} s"]
        # libsndfile corrects a wrong size in the header and only notes it in its log.
        sizes = re.search(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", self._file.extra_info, re.MULTILINE)
        if sizes and int(sizes[2]) < int(sizes[1]) < UNKNOWN_BYTES:
            return [f"it holds {sizes[2]} bytes of sound, but its header states {sizes[1]}"]
        return []

    def __enter__(self) -> "PlainFile":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()


def open_audio(source: str | os.PathLike | bytes, name: str | None = None) -> tuple[PlainFile | ContainerFile, str]:
    """
    Open a file.

    Args:
        source (`str`, `os.PathLike` or `bytes`): A path, or the contents of a file.
        name (`str`, *optional*): Name of the file in errors.

    Returns:
        `tuple`: The opened file, and its name in errors.

    Raises:
        `ValueError`: If the file does not exist, cannot be read, or its header has impossible values.
        `ImportError`: If soundfile, or PyAV for a compressed format, is not installed.
    """
    requires_backends(open_audio, "soundfile")
    if name is None:
        name = "the given bytes" if isinstance(source, bytes) else f"{str(source)!r}"
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise ValueError(f"`audio` file {name} does not exist.")
    try:
        file = _open(source)
    except (ContainerError, soundfile.LibsndfileError) as error:
        raise UnreadableAudioError.of(name, error.error_string) from error
    if isinstance(file, PlainFile) and (file.samplerate > MAX_SAMPLING_RATE or file.channels > MAX_CHANNELS):
        raise ValueError(
            f"`audio` in {name} claims {file.samplerate} samples per second and {file.channels} channels; repair or remove "
            "it."
        )
    return file, name


def read_block(file: PlainFile | ContainerFile, name: str, frames: int) -> np.ndarray:
    """Read at most `frames` samples. Errors name the file."""
    try:
        return file.read(frames)
    except (ContainerError, soundfile.LibsndfileError) as error:
        raise UnreadableAudioError.of(name, error.error_string) from error


def read_file_duration(source: str | os.PathLike | bytes) -> float | None:
    """Read the duration of a file in seconds without decoding it. `None` if it is unknown or the file cannot be read."""
    requires_backends(read_file_duration, "soundfile")
    if not isinstance(source, bytes) and not Path(source).is_file():
        return None
    try:
        if container := _find_container(source):
            return read_container_duration(_for_ffmpeg(source), container)
        info = soundfile.info(_for_libsndfile(source))
    except (ContainerError, soundfile.LibsndfileError):
        return None
    return None if info.frames == UNKNOWN_FRAMES else info.duration


def _open(source: str | os.PathLike | bytes) -> PlainFile | ContainerFile:
    container = _find_container(source)
    return ContainerFile(_for_ffmpeg(source), container) if container else PlainFile(_for_libsndfile(source))


def _find_container(source: str | os.PathLike | bytes) -> str | None:
    """FFmpeg's name of the format, if libsndfile cannot read the file or cannot read it to its end. Otherwise `None`."""
    head = source[:12] if isinstance(source, bytes) else _read_head(source)
    if container := find_container(head):
        return container
    info = soundfile.info(_for_libsndfile(source))
    if container := NOT_READ_TO_THE_END.get(info.format):
        return container
    # The program that wrote this file was stopped before it wrote the length; libsndfile would read nothing.
    return "wav" if info.frames == 0 and head[:4] == b"RIFF" and _num_bytes(source) > 1024 else None


def _read_head(source: str | os.PathLike) -> bytes:
    with open(source, "rb") as file:
        return file.read(12)


def _num_bytes(source: str | os.PathLike | bytes) -> int:
    return len(source) if isinstance(source, bytes) else Path(source).stat().st_size


def _for_libsndfile(source: str | os.PathLike | bytes) -> io.BytesIO | bytes:
    # Pass names as bytes, because they need not be UTF-8.
    return io.BytesIO(source) if isinstance(source, bytes) else os.fsencode(source)


def _for_ffmpeg(source: str | os.PathLike | bytes) -> io.BytesIO | str:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        str(source).encode()
    except UnicodeEncodeError:
        # PyAV only accepts names in UTF-8.
        return io.BytesIO(Path(source).read_bytes())
    # Without a protocol, FFmpeg would read the part of a name before a colon as one.
    return f"file:{source}"


__all__ = ["UnreadableAudioError", "open_audio", "read_block", "read_file_duration"]
