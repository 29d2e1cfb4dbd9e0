"""Encodes the segments of a stream, each frame once."""

import numpy as np

from ..modeling.outputs_llm_asr import LlmAsrAudioOutput
from ..processing.processing_llm_asr import LlmAsrProcessor
from ..processing.segmentation import Segment
from .front_end import StreamingFrontEnd, push_front_ends


class SegmentEncoder:
    """
    Encodes a segment while it grows, with a [`StreamingFrontEnd`]. A segment that ends before samples that were encoded, because
    it was cut at its longest, is encoded anew.

    Args:
        model ([`LlmAsrForConditionalGeneration`]): A model with `encoder_attention="chunked"`.
        processor ([`LlmAsrProcessor`]): Its processor.

    Raises:
        `ValueError`: If the model cannot encode streams, or the processor does not fit it.
    """

    def __init__(self, model, processor: LlmAsrProcessor):
        self.model, self.processor = model, processor
        self.front_end = StreamingFrontEnd(model, processor)
        self._start: float | None = None
        self._num_pushed = 0

    def next_samples(self, segment: Segment, num_samples: int) -> np.ndarray:
        """The samples of the first `num_samples` of a segment that the front end does not have."""
        if segment.start != self._start or num_samples < self._num_pushed or self.front_end.state.is_finished:
            self.front_end = StreamingFrontEnd(self.model, self.processor)
            self._start, self._num_pushed = segment.start, 0
        samples = segment.waveform[self._num_pushed : num_samples]
        self._num_pushed = num_samples
        return samples


def encode_segments(
    encoders: list[SegmentEncoder], segments: list[Segment], speech_ends: list[int | None]
) -> list[LlmAsrAudioOutput]:
    """
    Encode segments of several streams in one batch.

    Args:
        encoders (`list[SegmentEncoder]`): One for each stream.
        segments (`list[Segment]`): A segment of each stream, as long as it is known.
        speech_ends (`list[int]`): For a segment that is not finished, how many of its samples it will have at least. `None` for
            a finished one.

    Returns:
        `list[LlmAsrAudioOutput]`: Outputs of each segment so far, as of one recording. Those of a finished one are those of
        `get_audio_features`.
    """
    counts = [
        len(segment.waveform) if end is None else min(max(end, 0), len(segment.waveform))
        for segment, end in zip(segments, speech_ends, strict=True)
    ]
    blocks = [
        encoder.next_samples(segment, count)
        for encoder, segment, count in zip(encoders, segments, counts, strict=True)
    ]
    front_ends = [encoder.front_end for encoder in encoders]
    push_front_ends(front_ends, blocks, [end is None for end in speech_ends])
    return [front_end.audio_outputs for front_end in front_ends]


__all__ = ["SegmentEncoder", "encode_segments"]
