"""Splits an uploaded file into segments of speech."""

from collections.abc import Iterator

import numpy as np

from ..processing.audio import stream_audio
from ..processing.audio_files import UnreadableAudioError
from ..processing.pipeline_llm_asr import DEFAULT_CHUNK_LENGTH_S
from ..processing.processing_llm_asr import LlmAsrProcessor
from ..processing.segmentation import Segment, read_segments


class UnusableRecordingError(ValueError):
    """The upload is not a recording, or the server does not accept it. The message says why."""


class SegmentReader:
    """
    Iterates over the segments of a recording, with the same boundaries as [`LlmAsrPipeline`]. A recording within the speech
    encoder's limit is one segment. A longer recording is split at silences while it is read.

    Args:
        contents (`bytes`): Contents of an audio file.
        processor ([`LlmAsrProcessor`]): The model's processor.
        max_recording_s (`float`): Longest recording, in seconds.
        vad (`str`): See [`split_at_silences`].

    Attributes:
        duration (`float`): Seconds of audio read so far.
    """

    def __init__(self, contents: bytes, processor: LlmAsrProcessor, max_recording_s: float, vad: str):
        self.contents = contents
        self.processor = processor
        self.max_recording_s = max_recording_s
        self.vad = vad
        self.num_samples = 0

    @property
    def duration(self) -> float:
        return self.num_samples / self.processor.sampling_rate

    def __iter__(self) -> Iterator[Segment]:
        """
        Raises:
            `UnusableRecordingError`: At the first part of the recording that cannot be used.
        """
        try:
            yield from self._segments()
        except ValueError as error:
            if isinstance(error, UnreadableAudioError):
                raise UnusableRecordingError(
                    f"The file cannot be read: {error.error_string} Is it an audio file? The server reads WAV, FLAC, OGG, "
                    "OPUS, MP3, M4A and WebM; convert other formats first."
                ) from error
            raise UnusableRecordingError(str(error)) from error

    def _segments(self) -> Iterator[Segment]:
        sampling_rate, longest = self.processor.sampling_rate, self.processor.max_audio_samples
        longest_s = DEFAULT_CHUNK_LENGTH_S if longest is None else longest / sampling_rate
        stream = stream_audio(self.contents, sampling_rate)
        stream.blocks = self._counted(stream.blocks)
        for segment in read_segments(stream, sampling_rate, max_segment_s=longest_s, vad=self.vad):
            yield Segment(segment.start, self.processor.load_recording(segment.waveform), sampling_rate)

    def _counted(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            self.num_samples += len(block)
            # Count the samples that were read: a header may be wrong, and a megabyte of FLAC can hold days of silence.
            if self.duration > self.max_recording_s:
                raise UnusableRecordingError(
                    f"The recording is longer than the limit of {self.max_recording_s:g} s; split it."
                )
            yield block
