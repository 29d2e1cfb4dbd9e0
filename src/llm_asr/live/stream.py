"""Transcribes a stream of audio while it arrives."""

import numpy as np
import torch

from ..modeling.outputs_llm_asr import LlmAsrAudioOutput
from ..modeling.streaming_audio import batch_audio_outputs
from ..processing.pipeline_llm_asr import DEFAULT_MAX_NEW_TOKENS
from ..processing.processing_llm_asr import LlmAsrProcessor
from ..processing.waveforms import check_waveform, open_resampler
from .events import LiveEvent
from .segment_encoder import SegmentEncoder, encode_segments
from .transcript import LiveSettings, LiveTranscript, Pass


ENCODERS = ("reencode", "cached")

# Lowest sampling rate of speech on telephones, halved; a lower one must be a mistake.
MIN_SAMPLING_RATE = 4000


class LlmAsrStream:
    """
    Transcribes speech while it is spoken.

    Speech is split into segments at pauses. The unfinished segment is transcribed anew every `latency_s` seconds, and the
    previous transcript is the draft that the language model verifies in one pass. Words are committed when consecutive
    transcripts agree on them, and when their segment is finished. Silence is not transcribed. Cost per second of audio and
    memory are bounded by `max_segment_s`, however long the stream is.

    The result does not depend on the sizes of the blocks. Streams that are pushed with [`push_together`] form batches.

    Args:
        model ([`LlmAsrForConditionalGeneration`]): The model, of any type of projector. Its `generation_config` must be
            greedy.
        processor ([`LlmAsrProcessor`]): Its processor.
        language (`str`, *optional*): Code or English name. By default the model identifies the language of each segment.
        encoder (`str`, *optional*, defaults to `"reencode"`): `"reencode"` encodes the unfinished segment anew for each
            transcript, with any model. `"cached"` encodes each frame once, with a model that has `encoder_attention="chunked"`.
        latency_s (`float`, *optional*, defaults to 1.0): Seconds of new audio in the unfinished segment before it is
            transcribed again.
        sampling_rate (`int`, *optional*): Samples per second of the blocks. Defaults to the model's. Another rate needs soxr.
        prompt, agreement, max_segment_s, min_silence_s, vad, keywords, lead_s, threshold: See [`LiveSettings`].

    Raises:
        `ValueError`: If an option has an invalid value, or does not fit the model.
        `ImportError`: If an option needs a package that is not installed.

    Example:

    ```python
    >>> stream = LlmAsrStream(model, processor, sampling_rate=48000)
    >>> for block in microphone:
    ...     for event in stream.push(block):
    ...         print(event.committed, end="", flush=True)
    >>> for event in stream.finish():
    ...     print(event.committed)
    ```
    """

    def __init__(
        self,
        model,
        processor: LlmAsrProcessor,
        language: str | None = None,
        latency_s: float = 1.0,
        sampling_rate: int | None = None,
        encoder: str = "reencode",
        prompt: str | None = None,
        agreement: int | None = 2,
        max_segment_s: float | None = None,
        min_silence_s: float = 0.5,
        vad: str = "energy",
        keywords: list[str] | None = None,
        lead_s: float = 0.2,
        threshold: float = 0.5,
    ):
        processor.check_model(model.config)
        if encoder not in ENCODERS:
            raise ValueError(f"`encoder` must be one of {list(ENCODERS)}, got {encoder!r}.")
        self.segment_encoder = SegmentEncoder(model, processor) if encoder == "cached" else None
        config = model.generation_config
        if config.do_sample or config.num_beams not in (None, 1):
            raise ValueError(
                "`model.generation_config` must be greedy for live transcription; set `do_sample=False` and `num_beams=1`."
            )
        self.model = model
        self.processor = processor
        self.sampling_rate = processor.sampling_rate if sampling_rate is None else sampling_rate
        if not isinstance(self.sampling_rate, int) or self.sampling_rate < MIN_SAMPLING_RATE:
            raise ValueError(
                f"`sampling_rate` must be a whole number from {MIN_SAMPLING_RATE} up, got {self.sampling_rate!r}."
            )
        settings = LiveSettings(
            language=language,
            prompt=prompt,
            latency_s=latency_s,
            agreement=agreement,
            max_segment_s=max_segment_s,
            min_silence_s=min_silence_s,
            vad=vad,
            keywords=keywords,
            lead_s=lead_s,
            threshold=threshold,
        )
        self.transcript = LiveTranscript(processor, model.config.projector_frame_period, settings)
        self._resampler = None
        if self.sampling_rate != processor.sampling_rate:
            self._resampler = open_resampler(self.sampling_rate, processor.sampling_rate)
        self._is_finished = False

    def push(
        self, block: np.ndarray | bytes, sampling_rate: int | None = None, catch_up: bool = False
    ) -> list[LiveEvent]:
        """
        Add audio, and transcribe what it makes due.

        Args:
            block (`np.ndarray` of shape `(num_samples,)` or `(num_channels, num_samples)`, or `bytes`): The next samples, as
                [`check_waveform`] takes them; `bytes` hold mono PCM, signed, 16 bits, little-endian. It may be empty.
            sampling_rate (`int`, *optional*): Sampling rate of the block. It is only checked.
            catch_up (`bool`, *optional*, defaults to `False`): Whether to transcribe the unfinished segment only once for the
                whole block. For a source that does not wait: push everything that has arrived. Events then depend on the
                blocks; the text of segments does not.

        Returns:
            `list[LiveEvent]`: Changes of the transcript, in order.

        Raises:
            `ValueError`: If the stream is finished, the sampling rate has changed, or samples are not usable. The stream can
                then go on with other blocks.
        """
        return push_together([self], [block], sampling_rate, catch_up)[0]

    def finish(self) -> list[LiveEvent]:
        """
        Transcribe what remains. The stream takes no further blocks.

        Returns:
            `list[LiveEvent]`: The last changes of the transcript, in order.

        Raises:
            `ValueError`: If the stream is finished already.
        """
        return finish_together([self])[0]

    def _read(self, block: np.ndarray | bytes, sampling_rate: int | None) -> np.ndarray:
        """The samples of a block at the stream's sampling rate."""
        if self._is_finished:
            raise ValueError("The stream is finished and takes no further blocks; open another one.")
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"`sampling_rate` of the block is {sampling_rate}, but the stream was opened with {self.sampling_rate}; open "
                "another stream."
            )
        if isinstance(block, (bytes, bytearray, memoryview)):
            block = read_pcm(block)
        if not isinstance(block, np.ndarray):
            raise TypeError(f"`block` must be a NumPy array or bytes, got {type(block).__name__}.")
        return check_waveform(block, "`block`") if block.size else np.empty(0, np.float32)

    def _add(self, samples: np.ndarray, is_last: bool = False) -> None:
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=is_last)
        self.transcript.add(samples)


def push_together(
    streams: list[LlmAsrStream],
    blocks: list[np.ndarray | bytes],
    sampling_rate: int | None = None,
    catch_up: bool = False,
) -> list[list[LiveEvent]]:
    """
    Add a block to each of several streams of one model. Speech encoder, projector and language model run on all of them in
    one batch.

    Args:
        streams (`list[LlmAsrStream]`): The streams.
        blocks (`list`): One block for each stream; see [`LlmAsrStream.push`].
        sampling_rate, catch_up: See [`LlmAsrStream.push`].

    Returns:
        `list[list[LiveEvent]]`: Changes of each transcript.

    Raises:
        `ValueError`, `TypeError`: See [`LlmAsrStream.push`]. No block has been added then.
    """
    if len(blocks) != len(streams):
        raise ValueError(f"`blocks` has {len(blocks)} entries for {len(streams)} stream(s).")
    samples = [stream._read(block, sampling_rate) for stream, block in zip(streams, blocks, strict=True)]
    _check_together(streams)
    for stream, added in zip(streams, samples, strict=True):
        stream._add(added)
    return _transcribe(streams, catch_up)


def finish_together(streams: list[LlmAsrStream]) -> list[list[LiveEvent]]:
    """
    Finish several streams of one model; see [`push_together`] and [`LlmAsrStream.finish`].

    Returns:
        `list[list[LiveEvent]]`: The last changes of each transcript.

    Raises:
        `ValueError`: If a stream is finished already. No stream has been finished then.
    """
    for stream in streams:
        stream._read(b"", None)
    _check_together(streams)
    for stream in streams:
        stream._add(np.empty(0, np.float32), is_last=True)
        stream._is_finished = True
        stream.transcript.end()
    return _transcribe(streams)


def read_pcm(contents: bytes | bytearray | memoryview) -> np.ndarray:
    """
    Samples of mono PCM, signed, 16 bits, little-endian.

    Raises:
        `ValueError`: If the number of bytes is odd.
    """
    if len(contents) % 2:
        raise ValueError(f"PCM of 16 bits has two bytes for each sample, got {len(contents)} bytes.")
    return np.frombuffer(contents, dtype="<i2")


def transcribe_passes(
    model, processor: LlmAsrProcessor, passes: list[Pass], audio: list[LlmAsrAudioOutput] | None = None
) -> list[tuple[list[int], torch.Tensor | None]]:
    """
    Transcribe segments in one batch, as `generate` does.

    Args:
        model ([`LlmAsrForConditionalGeneration`]): The model.
        processor ([`LlmAsrProcessor`]): Its processor.
        passes (`list[Pass]`): Segments. Their drafts are verified.
        audio (`list[LlmAsrAudioOutput]`, *optional*): The segments from [`encode_segments`].

    Returns:
        `list[tuple]`: New tokens, and CIF weights of shape `(num_frames,)` or `None`, for each segment.
    """
    request: dict = {
        "language": [one.language for one in passes],
        # The annotation leaves out that a row may be `None`.
        "prompt": [one.prompt for one in passes],
        "keywords": [one.keywords for one in passes],
        "identify_language": [one.language is None for one in passes],
    }
    waveforms = [one.segment.waveform for one in passes]
    inputs: dict
    if audio is None:
        inputs = processor.apply_transcription_request(waveforms, **request).to(model.device)
    else:
        prompts = processor.apply_transcription_request(waveforms, **request, tokenize=False)
        inputs = {**processor.tokenize_requests(prompts).to(model.device), "audio_outputs": batch_audio_outputs(audio)}
    options: dict = {}
    if model.generation_config.max_new_tokens is None and model.generation_config.max_new_tokens_per_second is None:
        options["max_new_tokens"] = DEFAULT_MAX_NEW_TOKENS
    if any(one.draft_ids for one in passes):
        options["draft_ids"] = [torch.tensor(one.draft_ids, dtype=torch.long) for one in passes]
    outputs = model.generate(**inputs, **options, return_dict_in_generate=True)
    alphas = outputs.get("alphas")
    rows = [None] * len(passes) if alphas is None else list(alphas.float().cpu())
    return list(zip(outputs.sequences.tolist(), rows, strict=True))


def _check_together(streams: list[LlmAsrStream]) -> None:
    if len({id(stream) for stream in streams}) < len(streams):
        raise ValueError("`streams` must not repeat a stream.")
    if any(stream.model is not streams[0].model for stream in streams):
        raise ValueError("`streams` must have the same model.")
    if len({stream.segment_encoder is None for stream in streams}) > 1:
        raise ValueError("`streams` must have the same `encoder`.")


def _transcribe_due(streams: list[LlmAsrStream], passes: list[Pass]) -> list[tuple[list[int], torch.Tensor | None]]:
    """Results of a pass of each stream."""
    model, processor = streams[0].model, streams[0].processor
    encoders = [stream.segment_encoder for stream in streams if stream.segment_encoder is not None]
    if not encoders:
        return transcribe_passes(model, processor, passes)
    ends = [
        None if given.is_last else stream.transcript.count_certain_samples(given.segment)
        for stream, given in zip(streams, passes, strict=True)
    ]
    audio = encode_segments(encoders, [given.segment for given in passes], ends)
    # Before the first embedding there is nothing to transcribe.
    results: list[tuple[list[int], torch.Tensor | None]] = [([], None)] * len(passes)
    rows = [row for row, one in enumerate(audio) if one["audio_lengths"].item()]
    if rows:
        found = transcribe_passes(model, processor, [passes[row] for row in rows], [audio[row] for row in rows])
        for row, result in zip(rows, found, strict=True):
            results[row] = result
    return results


@torch.no_grad()
def _transcribe(streams: list[LlmAsrStream], catch_up: bool = False) -> list[list[LiveEvent]]:
    """Transcribe what is due, one pass of each stream at a time."""
    events: list[list[LiveEvent]] = [[] for _ in streams]
    while due := [
        (stream, found, given)
        for stream, found in zip(streams, events, strict=True)
        if (given := stream.transcript.next_pass(catch_up)) is not None
    ]:
        results = _transcribe_due([stream for stream, _, _ in due], [given for _, _, given in due])
        for (stream, found, given), (token_ids, alphas) in zip(due, results, strict=True):
            event = stream.transcript.take(given, token_ids, alphas)
            if event is not None:
                found.append(event)
    return events


__all__ = ["LlmAsrStream", "finish_together", "push_together"]
