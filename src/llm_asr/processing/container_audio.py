"""Sound in MP4 (M4A) and Matroska (WebM) files, which telephones and browsers record and libsndfile does not read."""

import math
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from transformers.utils import is_av_available, requires_backends


if is_av_available():
    import av

# Of a file this short, all is decoded to know its length: containers tell it to within some frames.
EXACT_SECONDS = 60.0

# Of no recording; a small file may claim any, and what is read at a time is told in seconds.
MAX_SAMPLING_RATE = 768_000


class ContainerError(RuntimeError):
    """A file cannot be decoded; `error_string` is FFmpeg's reason."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error_string = f"{getattr(error, 'strerror', None) or error}."


def find_container(head: bytes) -> str | None:
    """FFmpeg's name of the container that a file of these first 12 bytes or more is, or `None` if it is neither."""
    if head[4:8] == b"ftyp":
        return "mp4"
    return "matroska" if head[:4] == b"\x1aE\xdf\xa3" else None


def read_container_duration(file: str | BinaryIO, container: str) -> float | None:
    """
    Seconds that the header tells, which may be off by some frames; `None` if it does not. The rest is as in
    [`ContainerFile`].
    """
    with _open_container(file, container) as opened:
        return _told_seconds(opened)


class ContainerFile:
    """
    The first sound track of a file, read from start to end as by `soundfile.SoundFile`; by PyAV.

    Args:
        file (`str` or `BinaryIO`): A path or an opened file.
        container (`str`): See [`find_container`]. FFmpeg is not left to find out: some formats that it knows are lists of
            other files and addresses, which it would read.

    Attributes:
        samplerate (`int`): Samples per second.
        frames (`int`): Samples a channel; exact for up to a minute. What libsndfile says, `2**63 - 1`, if it is not known.

    Raises:
        [`ContainerError`]: If there is nothing to be decoded, here or later.
        `ImportError`: Without PyAV.
    """

    def __init__(self, file: str | BinaryIO, container: str):
        self._opened = _open_container(file, container)
        self.samplerate = 0
        self._samples = self._decode()
        self._ahead: list[np.ndarray] = []
        self._num_ahead = 0
        try:
            if not self._decode_ahead(1):
                raise ContainerError(ValueError("There is no sound in it"))
            if self.samplerate > MAX_SAMPLING_RATE:
                raise ContainerError(ValueError(f"It claims {self.samplerate} samples per second"))
            is_short = not self._decode_ahead(math.ceil(EXACT_SECONDS * self.samplerate))
        except ContainerError:
            self._opened.close()
            raise
        told = self._num_ahead / self.samplerate if is_short else _told_seconds(self._opened)
        self.frames = 2**63 - 1 if told is None else round(told * self.samplerate)

    def read(self, frames: int, dtype: str = "float32", always_2d: bool = True) -> np.ndarray:
        """The next samples, channels averaged, of shape `(num_samples, 1)`, float32; fewer than `frames` at the end."""
        self._decode_ahead(frames)
        samples = np.concatenate(self._ahead) if self._ahead else np.empty((0, 1), np.float32)
        self._ahead = [samples[frames:]] if len(samples) > frames else []
        self._num_ahead = max(0, len(samples) - frames)
        return samples[:frames]

    def _decode_ahead(self, frames: int) -> bool:
        """Have so many samples at hand, or all there are; whether there were enough."""
        while self._num_ahead < frames:
            samples = next(self._samples, None)
            if samples is None:
                return False
            self._ahead.append(samples)
            self._num_ahead += len(samples)
        return True

    def _decode(self) -> Iterator[np.ndarray]:
        to_float = av.AudioResampler(format="fltp")
        try:
            for frame in self._opened.decode(audio=0):
                self.samplerate = self.samplerate or frame.sample_rate
                for converted in to_float.resample(frame):
                    yield converted.to_ndarray().mean(axis=0)[:, None]
        except (av.FFmpegError, ValueError) as error:
            # PyAV refuses a track whose rate or channels change.
            raise ContainerError(error) from error

    def __enter__(self) -> "ContainerFile":
        return self

    def __exit__(self, *exception) -> None:
        self._opened.close()


def _open_container(file: str | BinaryIO, container: str) -> "av.container.InputContainer":
    requires_backends(ContainerFile, "av")
    try:
        opened = av.open(file, format=container, metadata_errors="replace")
    except av.FFmpegError as error:
        raise ContainerError(error) from error
    if not opened.streams.audio:
        opened.close()
        raise ContainerError(ValueError("There is no sound in it"))
    return opened


def _told_seconds(opened: "av.container.InputContainer") -> float | None:
    return None if opened.duration is None else opened.duration / av.time_base


__all__ = ["MAX_SAMPLING_RATE", "ContainerError", "ContainerFile", "find_container", "read_container_duration"]
