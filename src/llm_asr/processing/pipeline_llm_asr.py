"""`pipeline("automatic-speech-recognition")` for LLM-ASR checkpoints."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from tqdm.auto import tqdm
from transformers import AutomaticSpeechRecognitionPipeline, GenerationConfig

from .audio import stream_audio
from .processing_llm_asr import LlmAsrProcessor
from .segmentation import Segment, read_segments


# Where neither the speech encoder nor the caller says how long a segment may be.
DEFAULT_CHUNK_LENGTH_S = 30.0

# Written without spaces, so that segments are joined without them too.
UNSPACED_LANGUAGES = ("Cantonese", "Chinese", "Japanese")


class LlmAsrPipeline(AutomaticSpeechRecognitionPipeline):
    """
    Transcribes paths, addresses, bytes, waveforms and `{"array" or "raw", "sampling_rate"}` dicts, one or many, of any
    length.

    Importing `llm_asr` makes this the pipeline of the task; for models of other families it returns the stock
    [`AutomaticSpeechRecognitionPipeline`]. To those without the package, a published checkpoint brings it along. It reads
    files without ffmpeg and converts sampling rates without torchaudio.

    A recording that is longer than `chunk_length_s` is read as a stream and split at silences; `batch_size` is then the
    number of segments that are transcribed together.

    Called with:

    - `language` (`str`, *optional*): Code or English name. Without it the model names the language of each segment.
    - `prompt` (`str`, *optional*): Context, such as names or the subject.
    - `return_timestamps` (`bool` or `str`, *optional*): `True` for the times of segments, `"word"` for those of words,
      which need a projector with CIF; in seconds, as `chunks`.
    - `return_confidence` (`bool`, *optional*): Add `avg_logprob` and `no_speech_prob` to the `chunks` of segments; see
      [`Confidence`].
    - `chunk_length_s` (`float`, *optional*): Longest segment, in seconds. Defaults to what the speech encoder takes.
    - `min_silence_s` (`float`, *optional*, defaults to 0.5): Shortest silence that always separates segments.
    - `vad` (`str`, *optional*, defaults to `"energy"`): What tells speech from silence; see [`split_at_silences`].
    - `progress_bar` (`bool`, *optional*, defaults to `False`): Show how much of each recording has been read.
    - `generate_kwargs` (`dict`, *optional*): Passed on to `generate`.

    and returns `{"text": str, "language": str or None}`, the language by its English name, and `chunks`, if asked for.

    Example:

    ```python
    >>> import llm_asr
    >>> from transformers import pipeline

    >>> transcriber = pipeline("automatic-speech-recognition", model="path/to/checkpoint")
    >>> transcriber("recording.flac")
    {'text': 'veintiuno de marzo', 'language': 'Spanish'}
    >>> transcriber("recording.flac", return_timestamps="word")["chunks"][0]  # with CIF
    {'text': 'veintiuno', 'timestamp': (0.2, 0.86)}
    >>> transcriber("an_hour.mp3", batch_size=16, return_timestamps=True, progress_bar=True)["chunks"]
    ```
    """

    _default_generation_config = GenerationConfig(max_new_tokens=1024)
    # `pipeline()` loads it if it can, of the revision and by the token it was given; other families may have none.
    _load_processor = None

    def __new__(cls, model, *args, **kwargs):
        if model.config.model_type != "llm_asr":
            return AutomaticSpeechRecognitionPipeline(model, *args, **kwargs)
        return super().__new__(cls)

    def __init__(self, model, feature_extractor=None, tokenizer=None, processor=None, **kwargs):
        if processor is None:
            if not model.name_or_path:
                raise ValueError("`processor` must be passed with a model that was not loaded from a checkpoint.")
            # Without a configuration, its parts would look for the model's, and ask whether to trust the code that it names.
            processor = LlmAsrProcessor.from_pretrained(model.name_or_path, config=model.config)
        super().__init__(
            model,
            feature_extractor=processor.feature_extractor,
            tokenizer=processor.tokenizer,
            processor=processor,
            **kwargs,
        )

    def _sanitize_parameters(
        self,
        language=None,
        prompt=None,
        return_timestamps=None,
        return_confidence=None,
        chunk_length_s=None,
        min_silence_s=None,
        vad=None,
        progress_bar=None,
        **kwargs,
    ):
        for name in ("stride_length_s", "decoder_kwargs"):
            if kwargs.pop(name, None) is not None:
                raise ValueError(f"`{name}` is not supported: segments end at silences and do not overlap; remove it.")
        options = {**kwargs.get("generate_kwargs", {}), **kwargs}
        if "generation_config" in options:
            options = {**options["generation_config"].to_diff_dict(), **options}
        if options.get("num_return_sequences", 1) != 1:
            raise ValueError("`num_return_sequences` must be 1: a recording has one transcript.")
        if return_timestamps not in (None, False, True, "word"):
            raise ValueError(f"`return_timestamps` must be 'word', True or False, got {return_timestamps!r}.")
        if return_timestamps == "word" and not self.model.config.projector_config.uses_cif:
            raise ValueError(
                "`return_timestamps='word'` needs a projector with CIF ('cif' or 'moe_cif'), and this model's is "
                f"{self.model.config.projector_config.projector_type!r}; use True for the times of segments."
            )
        if return_confidence and return_timestamps == "word":
            raise ValueError("`return_confidence` is of segments; use it with `return_timestamps=True`.")
        longest = self.processor.max_audio_samples
        if (
            longest is not None
            and chunk_length_s is not None
            and chunk_length_s > longest / self.processor.sampling_rate
        ):
            raise ValueError(
                f"`chunk_length_s` is {chunk_length_s}, and the speech encoder takes "
                f"{longest / self.processor.sampling_rate:g} s; make it no longer."
            )
        _, forward_params, postprocess_params = super()._sanitize_parameters(**kwargs)
        preprocess_params = {
            "language": language,
            "prompt": prompt,
            "chunk_length_s": chunk_length_s,
            "min_silence_s": min_silence_s,
            "vad": vad,
            "progress_bar": progress_bar,
        }
        preprocess_params = {name: value for name, value in preprocess_params.items() if value is not None}
        if return_confidence is not None:
            forward_params["output_confidence"] = return_confidence
        if return_timestamps is not None or return_confidence is not None:
            postprocess_params["return_timestamps"] = return_timestamps or bool(return_confidence)
        if language is not None:
            postprocess_params["language"] = self.processor.language_name(language)
        return preprocess_params, forward_params, postprocess_params

    def preprocess(
        self,
        inputs,
        language=None,
        prompt=None,
        chunk_length_s=None,
        min_silence_s=0.5,
        vad="energy",
        progress_bar=False,
    ):
        segments = self._segments(inputs, chunk_length_s, min_silence_s, vad, progress_bar)
        # The last one must be known as such, and there is always one.
        current = next(segments)
        for following in itertools.chain(segments, [None]):
            segment, has_speech = current
            model_inputs = self.processor.apply_transcription_request(
                segment.waveform,
                language=language,
                prompt=prompt,
                identify_language=language is None,
                audio_padding="max_length",
            )
            is_last = following is None
            times = {"start": segment.start, "end": segment.end}
            yield {"is_last": is_last, "has_speech": has_speech, **times, **model_inputs}
            current = following

    def _segments(self, inputs, chunk_length_s, min_silence_s, vad, progress_bar) -> Iterator[tuple[Segment, bool]]:
        """The recording as a whole, if it is no longer than a segment may be, or split at silences; and if it has speech."""
        sampling_rate, longest = self.processor.sampling_rate, self.processor.max_audio_samples
        if chunk_length_s is None:
            chunk_length_s = DEFAULT_CHUNK_LENGTH_S if longest is None else longest / sampling_rate
        stream = stream_audio(inputs, sampling_rate)
        beginning = list(itertools.islice(stream.blocks, 1))
        stream.blocks = itertools.chain(beginning, stream.blocks)
        found = False
        total = None if stream.duration is None else round(stream.duration)
        with tqdm(total=total, unit="s", disable=not progress_bar) as progress:
            for segment in read_segments(stream, sampling_rate, chunk_length_s, min_silence_s, vad):
                found = True
                yield segment, True
                progress.update(int(segment.end) - progress.n)
            progress.update((total or progress.n) - progress.n)
        if not found:
            # Something must go through the model, for every recording has a result.
            waveform = np.concatenate([np.empty(0, np.float32), *beginning])[:sampling_rate]
            yield Segment(start=0.0, waveform=waveform, sampling_rate=sampling_rate), False

    def _prepare_generate_kwargs(self, generate_kwargs, **overrides):
        defaults = self._generation_defaults
        asked = {**self._generate_kwargs, **generate_kwargs}
        if self.model._option("max_new_tokens_per_second", asked) is not None:
            # Passed on, the default would be taken for a length that the caller has set, which lifts the model's own limit.
            self._generation_defaults = {name: value for name, value in defaults.items() if name != "max_new_tokens"}
        try:
            return super()._prepare_generate_kwargs(generate_kwargs, **overrides)
        finally:
            self._generation_defaults = defaults

    def _forward(self, model_inputs, **generate_kwargs):
        piece = {name: model_inputs.pop(name) for name in ("is_last", "has_speech", "start", "end")}
        outputs = self.model.generate(
            **model_inputs, **self._prepare_generate_kwargs(generate_kwargs, return_dict_in_generate=True)
        )
        piece["tokens"] = outputs.sequences
        for name in ("alphas", "avg_logprobs", "no_speech_probs"):
            if outputs.get(name) is not None:
                piece[name] = outputs[name].float()
        return piece

    def postprocess(self, model_outputs, return_timestamps=False, language=None):
        frame_period = self.model.config.projector_frame_period
        return join_pieces(model_outputs, self.processor, frame_period, return_timestamps, language)


def join_pieces(
    pieces: Iterable[dict],
    processor: LlmAsrProcessor,
    frame_period: float,
    return_timestamps: bool | str = False,
    language: str | None = None,
) -> dict:
    """
    Join what has been generated for the segments of a recording.

    Args:
        pieces (`Iterable[dict]`): In order, each with `has_speech`, `start` and `end` in seconds, and, as `generate` returns
            them for one row, `tokens` and possibly `alphas`, `avg_logprobs` and `no_speech_probs`.
        processor ([`LlmAsrProcessor`]): Of the model.
        frame_period (`float`): Seconds from one of `alphas` to the next.
        return_timestamps (`bool` or `str`, *optional*, defaults to `False`): See [`LlmAsrPipeline`].
        language (`str`, *optional*): English name of the language; without it, what the model has named is reported.

    Returns:
        `dict`: `{"text", "language"}` and possibly `chunks`, as [`LlmAsrPipeline`] returns them.
    """
    text = ""
    chunks: list[dict] = []
    seconds: Counter[str | None] = Counter()
    for piece in pieces:
        decoded = processor.decode(piece["tokens"][0], return_language=True)
        if not piece["has_speech"] or not decoded["text"]:
            continue
        spoken = language or decoded["language"]
        seconds[spoken] += piece["end"] - piece["start"]
        text += ("" if not text or spoken in UNSPACED_LANGUAGES else " ") + decoded["text"]
        if return_timestamps:
            chunks += _chunks(piece, decoded["text"], spoken, processor, frame_period, return_timestamps)
    result = {"text": text, "language": seconds.most_common(1)[0][0] if seconds else language}
    return {**result, "chunks": chunks} if return_timestamps else result


def _chunks(
    piece: dict,
    text: str,
    language: str | None,
    processor: LlmAsrProcessor,
    frame_period: float,
    return_timestamps: bool | str,
) -> list[dict]:
    """When a segment's parts were spoken, as far as that is known."""
    start, end = piece["start"], piece["end"]
    chunks = [{"text": text, "timestamp": (start, end)}]
    if "alphas" in piece and piece["alphas"].any():
        decoded = processor.decode(
            piece["tokens"][0],
            output_offsets=return_timestamps,
            alphas=piece["alphas"][0],
            frame_period=frame_period,
        )
        chunks = [
            {"text": part["text"], "timestamp": tuple(min(start + time, end) for time in part["timestamp"])}
            for part in decoded["offsets"]
        ]
    if return_timestamps == "word":
        return chunks
    details = {"language": language}
    for name, scores in (("avg_logprob", "avg_logprobs"), ("no_speech_prob", "no_speech_probs")):
        if scores in piece:
            details[name] = float(piece[scores][0])
    return [{**chunk, **details} for chunk in chunks]


__all__ = ["LlmAsrPipeline", "join_pieces"]
