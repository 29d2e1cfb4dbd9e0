"""The speech encoder and the projector of a stream, for checkpoints that were trained in chunks."""

import numpy as np

from ..modeling.outputs_llm_asr import LlmAsrAudioOutput
from ..modeling.streaming_audio import join_audio_outputs
from ..processing.log_mel import StreamingLogMel
from ..processing.processing_llm_asr import LlmAsrProcessor
from ..processing.waveforms import check_waveform


class StreamingFrontEnd:
    """
    Turns the samples of one segment of speech into embeddings for the language model while they arrive. Each frame is encoded
    once. Memory is bounded by the left context of the encoder, apart from the outputs, which are kept for `audio_outputs`.

    However the samples are cut into blocks, all outputs together are those of the whole segment with the same chunks: features,
    hidden states, CIF weights, embeddings and fire times.

    An encoder frame is known when its chunk and the look-ahead after it are known, and 20 + 12.5 ms for Whisper's convolutions and
    spectra. An embedding also waits for `config.projector_lookahead_s` of encoder frames.

    A segment may be as long as the encoder takes, 30 s for Whisper. Open another front end for the next segment. Front ends that
    are pushed with [`push_front_ends`] form batches.

    Args:
        model ([`LlmAsrForConditionalGeneration`]): A model with `encoder_attention="chunked"`.
        processor ([`LlmAsrProcessor`]): Its processor, with `log_mel_maximum="running"`.

    Raises:
        `ValueError`: If the model cannot encode streams, or the processor does not fit it.

    Example:

    ```python
    >>> front_end = StreamingFrontEnd(model, processor)
    >>> for block in blocks:
    ...     new = front_end.push(block)
    ...     print(new.pooler_output.shape, new.fire_times)
    >>> new = front_end.finish()
    >>> model.generate(input_ids=prompt_ids, audio_outputs=front_end.audio_outputs)
    ```
    """

    def __init__(self, model, processor: LlmAsrProcessor):
        processor.check_model(model.config)
        self.model = model
        self.state = model.model.open_audio_stream()
        self._log_mel = StreamingLogMel(processor.feature_extractor)
        self._pieces: list[LlmAsrAudioOutput] = []

    @property
    def audio_outputs(self) -> LlmAsrAudioOutput:
        """
        All outputs so far, as of one recording, for `generate(audio_outputs=...)`. [`batch_audio_outputs`] makes a batch of
        several.

        Raises:
            `ValueError`: If nothing was pushed.
        """
        if not self._pieces:
            raise ValueError("The front end has no outputs yet; push samples first.")
        self._pieces = [join_audio_outputs(self._pieces)]
        return self._pieces[0]

    def push(self, block: np.ndarray) -> LlmAsrAudioOutput:
        """
        Add samples.

        Args:
            block (`np.ndarray` of shape `(num_samples,)`): The next samples at the processor's sampling rate. There may be none.

        Returns:
            [`LlmAsrAudioOutput`]: What is new, as of one recording: `last_hidden_state` `(1, num_frames, audio_hidden_size)`,
            `pooler_output` `(num_embeds, text_hidden_size)`, `audio_lengths` `(1,)`, `num_frames` `(1,)` and, with CIF, `alphas`
            `(1, num_projector_frames)` and `fire_times` `(num_embeds,)` in seconds from the start of the segment. All may be
            empty.

        Raises:
            `ValueError`: If samples are not usable, the segment is finished, or it is longer than the encoder takes.
        """
        return push_front_ends([self], [block])[0]

    def finish(self) -> LlmAsrAudioOutput:
        """
        End the segment, and encode what remains.

        Returns:
            [`LlmAsrAudioOutput`]: See [`StreamingFrontEnd.push`].

        Raises:
            `ValueError`: If the segment is finished already.
        """
        return push_front_ends([self], [np.empty(0, np.float32)], is_last=[True])[0]


def push_front_ends(
    front_ends: list[StreamingFrontEnd], blocks: list[np.ndarray], is_last: list[bool] | None = None
) -> list[LlmAsrAudioOutput]:
    """
    Add a block to each of several front ends of one model. Their chunks are one batch of the encoder.

    Args:
        front_ends (`list[StreamingFrontEnd]`): The front ends.
        blocks (`list[np.ndarray]`): One for each; see [`StreamingFrontEnd.push`].
        is_last (`list[bool]`, *optional*): Whether the block ends the segment, for each.

    Returns:
        `list[LlmAsrAudioOutput]`: What is new of each.

    Raises:
        `ValueError`: See [`StreamingFrontEnd.push`]. If samples are not usable, or a segment is finished, no block has been added.
            A segment that is too long cannot go on.
    """
    is_last = [False] * len(front_ends) if is_last is None else is_last
    if not front_ends or not len(blocks) == len(is_last) == len(front_ends):
        raise ValueError(
            f"`front_ends` must have at least one entry, and `blocks` and `is_last` as many, got {len(front_ends)}, {len(blocks)} "
            f"and {len(is_last)}."
        )
    model = front_ends[0].model
    if len({id(front_end) for front_end in front_ends}) < len(front_ends) or any(
        front_end.model is not model for front_end in front_ends
    ):
        raise ValueError("`front_ends` must be different front ends of the same model.")
    if any(front_end.state.is_finished for front_end in front_ends):
        raise ValueError("The segment is finished and takes no further samples; open another front end.")
    checked = [check_waveform(block, "`block`") if len(block) else block for block in blocks]
    features = [
        front_end._log_mel.push(block, last)
        for front_end, block, last in zip(front_ends, checked, is_last, strict=True)
    ]
    states = [front_end.state for front_end in front_ends]
    outputs = model.model.stream_audio_features(states, features, is_last)
    for front_end, output in zip(front_ends, outputs, strict=True):
        front_end._pieces.append(output)
    return outputs


__all__ = ["StreamingFrontEnd", "push_front_ends"]
