"""Reads compressed audio formats and containers to their real end, with FFmpeg."""

import math
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from transformers.utils import is_av_available, requires_backends


if is_av_available():
    import av

# Files up to this duration are decoded as a whole to find the exact length. Packets give the length only approximately.
EXACT_SECONDS = 60.0

# No real recording is sampled faster. Headers are untrusted, and a block of fixed duration must not grow without limit.
MAX_SAMPLING_RATE = 768_000

# First bytes of files, and FFmpeg's names of their formats.
SIGNATURES = {
    b"\x1aE\xdf\xa3": "matroska",
    b"OggS": "ogg",
    b"ID3": "mp3",
    b"#!AMR": "amr",
    b"0&\xb2u\x8ef\xcf\x11": "asf",
}

# Formats whose header contains the duration of the complete recording.
TELLS_LENGTH = ("mp4", "matroska", "asf")


class ContainerError(RuntimeError):
    """A file cannot be decoded. `error_string` is FFmpeg's reason."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error_string = f"{getattr(error, 'strerror', None) or error}."


def find_container(head: bytes) -> str | None:
    """FFmpeg's name of the format of a file, from its first 12 or more bytes. `None` for any other format."""
    if head[4:8] == b"ftyp":
        return "mp4"
    for signature, name in SIGNATURES.items():
        if head.startswith(signature):
            return name
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        # These bits are the layer, which is zero for AAC.
        return "mp3" if head[1] & 0x06 else "aac"
    return None


def read_container_duration(file: str | BinaryIO, container: str) -> float | None:
    """
    Sum the durations of a file's packets in seconds without decoding them. The sum may be wrong by some frames. `None` if
    there are no packets. See [`ContainerFile`] for the arguments and errors.
    """
    with _open_container(file, container) as opened:
        return _packet_seconds(opened)


class ContainerFile:
    """
    Reads the first sound track of a file with PyAV.

    Packets that cannot be decoded are skipped, as FFmpeg does, and counted. If the sampling rate or the channels change, as in
    concatenated files, the following samples are converted to the first rate.

    Args:
        file (`str` or `BinaryIO`): A path or an opened file.
        container (`str`): Format; see [`find_container`]. FFmpeg must not detect the format itself, because some of its
            formats are lists of other files and addresses, which it would read.

    Attributes:
        samplerate (`int`): Samples per second.
        duration (`float`, *optional*): Duration in seconds, exact for files of up to a minute.

    Raises:
        [`ContainerError`]: If nothing can be decoded. Reading may raise it too.
        `ImportError`: If PyAV is not installed.
    """

    def __init__(self, file: str | BinaryIO, container: str):
        self._opened = _open_container(file, container)
        self._promised = None
        if container in TELLS_LENGTH and self._opened.duration is not None:
            self._promised = self._opened.duration / av.time_base
        self.samplerate = 0
        self._num_decoded = self._num_bad_packets = 0
        self._samples = self._decode()
        self._ahead: list[np.ndarray] = []
        self._num_ahead = 0
        try:
            if not self._decode_ahead(1):
                raise ContainerError(ValueError("There is no sound in it"))
            if self.samplerate > MAX_SAMPLING_RATE:
                raise ContainerError(ValueError(f"Its header states {self.samplerate} samples per second"))
            is_short = not self._decode_ahead(math.ceil(EXACT_SECONDS * self.samplerate))
            self.duration = self._num_ahead / self.samplerate if is_short else _count_seconds(file, container)
        except ContainerError:
            self._opened.close()
            raise

    def read(self, frames: int) -> np.ndarray:
        """
        Read `frames` samples with averaged channels: shape `(num_samples,)`, float32. At the end there may be fewer or none.
        """
        self._decode_ahead(frames)
        samples = np.concatenate(self._ahead) if self._ahead else np.empty(0, np.float32)
        self._ahead = [samples[frames:]] if len(samples) > frames else []
        self._num_ahead = max(0, len(samples) - frames)
        return samples[:frames]

    def problems(self) -> list[str]:
        """Describe missing parts of the file. Call this after reading to the end."""
        found = []
        seconds = self._num_decoded / self.samplerate
        # The tolerance allows for rounded headers and for the padding of the last packet.
        if self._promised is not None and seconds < self._promised - 0.5:
            found.append(f"it ends after {seconds:.1f} s, but its header states {self._promised:.1f} s")
        if self._num_bad_packets:
            found.append(f"{self._num_bad_packets} packet(s) cannot be decoded")
        return found

    def _decode_ahead(self, frames: int) -> bool:
        """Decode until `frames` samples are available, and return whether the file has that many."""
        while self._num_ahead < frames:
            samples = next(self._samples, None)
            if samples is None:
                return False
            self._ahead.append(samples)
            self._num_ahead += len(samples)
        return True

    def _decode(self) -> Iterator[np.ndarray]:
        converter: av.AudioResampler | None = None
        converted_from = None
        for frame in self._frames():
            self.samplerate = self.samplerate or frame.sample_rate
            form = (frame.sample_rate, frame.layout.name, frame.format.name)
            if converter is None or form != converted_from:
                if converter is not None:
                    yield from self._mono(converter.resample(None))
                converter, converted_from = av.AudioResampler(format="fltp", rate=self.samplerate), form
            yield from self._mono(converter.resample(frame))
        if converter is not None:
            yield from self._mono(converter.resample(None))

    def _mono(self, frames: list["av.AudioFrame"]) -> Iterator[np.ndarray]:
        for frame in frames:
            samples = frame.to_ndarray().mean(axis=0)
            self._num_decoded += len(samples)
            yield samples

    def _frames(self) -> Iterator["av.AudioFrame"]:
        error = None
        try:
            for packet in self._opened.demux(audio=0):
                try:
                    yield from packet.decode()
                except av.FFmpegError as bad:
                    error = bad
                    self._num_bad_packets += 1
        except av.FFmpegError as bad:
            # The file is truncated, or other data follows.
            error = bad
            self._num_bad_packets += 1
        if not self.samplerate and error is not None:
            raise ContainerError(error) from error

    def __enter__(self) -> "ContainerFile":
        return self

    def __exit__(self, *exception) -> None:
        self._opened.close()


def _open_container(file: str | BinaryIO, container: str) -> "av.container.InputContainer":
    requires_backends(ContainerFile, "av")
    try:
        opened = av.open(file, "r", format=container, metadata_errors="replace")
    except av.FFmpegError as error:
        raise ContainerError(error) from error
    if not opened.streams.audio:
        opened.close()
        raise ContainerError(ValueError("There is no sound in it"))
    return opened


def _count_seconds(file: str | BinaryIO, container: str) -> float | None:
    """Call [`read_container_duration`] for a file that is being read, and restore its position."""
    if isinstance(file, str):
        return read_container_duration(file, container)
    place = file.tell()
    file.seek(0)
    try:
        return read_container_duration(file, container)
    finally:
        file.seek(place)


def _packet_seconds(opened: "av.container.InputContainer") -> float | None:
    """
    Sum the durations of all packets. The duration in the header is an estimate in some formats, and is wrong for truncated or
    concatenated files.
    """
    seconds = 0.0
    try:
        for packet in opened.demux(audio=0):
            seconds += float((packet.duration or 0) * packet.time_base)
    except av.FFmpegError:
        # The readable part of the file ends here.
        pass
    return seconds or None


__all__ = ["MAX_SAMPLING_RATE", "ContainerError", "ContainerFile", "find_container", "read_container_duration"]
