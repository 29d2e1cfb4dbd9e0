"""An uploaded file as segments of speech."""

from collections.abc import Iterator

import numpy as np
import soundfile

from ..processing.audio import stream_audio
from ..processing.container_audio import ContainerError
from ..processing.pipeline_llm_asr import DEFAULT_CHUNK_LENGTH_S
from ..processing.processing_llm_asr import LlmAsrProcessor
from ..processing.segmentation import Segment, read_segments


class UnusableRecordingError(ValueError):
    """What was sent is no recording, or one that is not taken; the message says why."""


class SegmentReader:
    """
    Iterates over the segments of a recording, as [`LlmAsrPipeline`] makes them: the recording as a whole, if it is no longer
    than the speech encoder takes, or split at silences while it is read.

    Args:
        contents (`bytes`): Of an audio file.
        processor ([`LlmAsrProcessor`]): Of the model.
        max_recording_s (`float`): Longest recording, in seconds.
        vad (`str`): See [`split_at_silences`].

    Attributes:
        duration (`float`): Seconds that have been read.
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
            `UnusableRecordingError`: As soon as it shows.
        """
        try:
            yield from self._segments()
        except ValueError as error:
            if isinstance(error.__cause__, (ContainerError, soundfile.LibsndfileError)):
                raise UnusableRecordingError(
                    f"The file cannot be read: {error.__cause__.error_string} Is it an audio file? WAV, FLAC, OGG, OPUS, "
                    "MP3, M4A and WebM are taken; convert others first."
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
            # By what is read, not by what a header says: a megabyte of FLAC may hold days of silence.
            if self.duration > self.max_recording_s:
                raise UnusableRecordingError(
                    f"The recording is longer than the {self.max_recording_s:g} s that are taken; split it."
                )
            yield block
