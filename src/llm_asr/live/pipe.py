"""Reads audio from a pipe while it is written."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase

import av
import numpy as np

from ..processing.container_audio import find_container
from .blocks import BlockQueue
from .microphone import AudioInput
from .stream import read_pcm


# Seconds of audio that are read ahead of the model.
READ_AHEAD_S = 10.0

# First bytes of formats that libsndfile reads from files, and FFmpeg's names of them.
PLAIN_FORMATS = {b"RIFF": "wav", b"fLaC": "flac", b"FORM": "aiff", b".snd": "au"}
HEAD_BYTES = 12
MAX_READ_BYTES = 8192

# FFmpeg would otherwise read several seconds before it returns the first samples.
QUICK_START = {"probesize": "8192", "analyzeduration": "0"}


class PipeError(ValueError):
    """A pipe holds no usable audio. The message says why."""


class Head:
    """
    A pipe for FFmpeg whose first bytes were read already. It cannot be searched.

    Args:
        file (`BufferedIOBase`): The pipe.
        head (`bytes`): Its first bytes.
    """

    def __init__(self, file: BufferedIOBase, head: bytes):
        self.file = file
        self.head = head

    def read(self, size: int) -> bytes:
        """Read what has arrived, at most `size` bytes; wait only if nothing has."""
        if self.head:
            found, self.head = self.head[:size], self.head[size:]
            return found
        return self.file.read1(size)


@contextmanager
def open_pipe(file: BufferedIOBase, pcm_rate: int | None = None) -> Iterator[AudioInput]:
    """
    Read a pipe in a thread while the context lasts.

    Args:
        file (`BufferedIOBase`): The pipe, such as `sys.stdin.buffer`.
        pcm_rate (`int`, *optional*): Samples per second of raw PCM: mono, signed, 16 bits, little-endian. By default the pipe
            holds a file: WAV, FLAC, MP3, OGG, OPUS, AAC, WebM, Matroska, AIFF, AU or fragmented MP4. Channels are averaged.

    Raises:
        [`PipeError`]: If the pipe holds no usable audio. The iteration raises it too.
    """
    blocks = _pcm_blocks(file, pcm_rate) if pcm_rate is not None else _file_blocks(file)
    # The first item is the sampling rate.
    rate = int(next(blocks))
    queue = BlockQueue(round(READ_AHEAD_S * rate))

    def read() -> None:
        try:
            for block in blocks:
                if not queue.put(block, wait=True):
                    return
        except Exception as error:
            queue.close(error)
        queue.close()

    # The thread may wait for a pipe that is never written to, so the program does not wait for it.
    threading.Thread(target=read, name="pipe", daemon=True).start()
    try:
        yield AudioInput(rate, queue)
    finally:
        queue.close()


def _pcm_blocks(file: BufferedIOBase, rate: int) -> Iterator:
    yield rate
    rest = b""
    while contents := file.read1(MAX_READ_BYTES):
        contents = rest + contents
        whole = len(contents) // 2 * 2
        rest = contents[whole:]
        if whole:
            yield read_pcm(contents[:whole])
    if rest:
        raise PipeError("The PCM ends in the middle of a sample: its number of bytes is odd.")


def _file_blocks(file: BufferedIOBase) -> Iterator:
    head = b""
    while len(head) < HEAD_BYTES and (more := file.read1(HEAD_BYTES - len(head))):
        head += more
    container = PLAIN_FORMATS.get(head[:4]) or find_container(head)
    if container is None:
        raise PipeError(
            "The pipe holds no file in a known format (WAV, FLAC, MP3, OGG, OPUS, AAC, WebM). For raw PCM, tell its sampling "
            "rate."
            if head
            else "The pipe is empty."
        )
    try:
        with av.open(Head(file, head), "r", format=container, options=QUICK_START) as opened:
            yield from _decode(opened)
    except av.FFmpegError as error:
        raise PipeError(f"The pipe cannot be decoded as {container}: {error.strerror}.") from error


def _decode(opened) -> Iterator:
    """Yield the sampling rate, and the samples of the first sound track with averaged channels."""
    if not opened.streams.audio:
        raise PipeError("There is no sound in the pipe.")
    rate, converter = 0, av.AudioResampler(format="fltp")
    for frame in opened.decode(audio=0):
        if not rate:
            rate = frame.sample_rate
            yield rate
        elif frame.sample_rate != rate:
            raise PipeError(f"The sampling rate changes from {rate} to {frame.sample_rate}.")
        for converted in converter.resample(frame):
            yield converted.to_ndarray().mean(axis=0, dtype=np.float32)
    if not rate:
        raise PipeError("There is no sound in the pipe.")


__all__ = ["PipeError", "open_pipe"]
