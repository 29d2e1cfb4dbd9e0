"""`pipeline("automatic-speech-recognition")` for LLM-ASR checkpoints."""

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import AutomaticSpeechRecognitionPipeline, GenerationConfig
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils import logging

from .audio import stream_audio
from .cpu_precision import slow_dtypes
from .languages import LANGUAGE_SEPARATOR
from .processing_llm_asr import LlmAsrProcessor
from .segmentation import Segment, read_segments
from .tasks import check_translation_options, spread_tasks
from .undecoded import is_column, without_decoding
from .writing import joint


logger = logging.get_logger(__name__)

# Longest segment, if neither the speech encoder nor the caller sets a limit.
DEFAULT_CHUNK_LENGTH_S = 30.0

# Longest transcript of a segment, if neither the checkpoint nor the caller sets a limit.
DEFAULT_MAX_NEW_TOKENS = 1024


@dataclass
class RecordingRequest:
    """A recording with options of its own: `text` or `keywords`."""

    recording: Any
    options: dict[str, Any]


class LlmAsrPipeline(AutomaticSpeechRecognitionPipeline):
    """
    Transcribes recordings of any length in any form that [`load_audio`] reads. A list of recordings or a column of a dataset
    (`dataset["audio"]`) gives a list of results. A generator or a `KeyDataset` gives results one by one.

    Importing `llm_asr` makes this the pipeline of the task. For other model types it returns the stock
    [`AutomaticSpeechRecognitionPipeline`]. Published checkpoints contain the code of this pipeline, so that it also works
    without the package. It reads files without ffmpeg and converts sampling rates without torchaudio.

    A recording longer than `chunk_length_s` is read as a stream and split at silences. `batch_size` is then the number of
    segments in a batch.

    Arguments of a call:

    - `language` (`str`, *optional*): Code or English name, or several with commas between them for speech that switches between
      languages. By default the model identifies the languages of each segment.
    - `prompt` (`str`, *optional*): Context, such as names or the subject.
    - `keywords` (`list[str]` or `list[list[str]]`, *optional*): Words that may be spoken, such as names. A list of lists has a
      list for each recording.
    - `return_timestamps` (`bool` or `str`, *optional*): `True` adds `chunks` with the times of segments in seconds. `"word"`
      adds `chunks` with the times of words, which needs a projector with CIF.
    - `return_confidence` (`bool`, *optional*): Add `avg_logprob` and `no_speech_prob` to the `chunks` of segments; see
      [`Confidence`].
    - `chunk_length_s` (`float`, *optional*): Longest segment in seconds. Defaults to the speech encoder's limit. With 0,
      recordings are not split, and recordings beyond the speech encoder's limit are refused.
    - `min_silence_s` (`float`, *optional*, defaults to 0.5): Shortest silence in seconds that always separates segments.
    - `vad` (`str`, *optional*, defaults to `"energy"`): Voice activity detection; see [`split_at_silences`]. The transcript
      of a recording without speech is empty.
    - `task` (`str`, *optional*, defaults to `"transcribe"`): `"translate"` translates the speech into `target_language`. `language`
      is the spoken language, which a translation does not identify. Word times and drafts are refused for translations.
    - `target_language` (`str`, *optional*): Language of the translation, as a code or an English name.
    - `text` (`str` or `list[str]`, *optional*): What is said in the recording, or in each recording of a list. The pipeline
      then does not transcribe. It finds the times of the words of `text`, in `chunks`, each with a `confidence`; see
      [`LlmAsrProcessor.align`]. It needs a projector with CIF, and does not run the language model.
    - `progress_bar` (`bool`, *optional*, defaults to `False`): Show the progress of reading each recording.
    - `generate_kwargs` (`dict`, *optional*): Further arguments of `generate`.

    A call returns `{"text": str, "language": str or None, "languages": list[str]}` with English names, and `chunks` on request.
    `language` is the language of most of the recording, and the first of `languages`. Segments have both fields too.

    Example:

    ```python
    >>> import llm_asr
    >>> from transformers import pipeline

    >>> transcriber = pipeline("automatic-speech-recognition", model="path/to/checkpoint")
    >>> transcriber("recording.flac")
    {'text': 'veintiuno de marzo', 'language': 'Spanish', 'languages': ['Spanish']}
    >>> transcriber("recording.flac", return_timestamps="word")["chunks"][0]  # with CIF
    {'text': 'veintiuno', 'timestamp': (0.2, 0.86)}
    >>> transcriber("an_hour.mp3", batch_size=16, return_timestamps=True, progress_bar=True)["chunks"]
    ```
    """

    # The class of the model is in `modeling`, which the code here does not import.
    model: Any
    processor: LlmAsrProcessor

    # With `None`, `pipeline()` loads a processor if there is one, with its own revision and token. Other model types may have
    # none. The processor here contains tokenizer and feature extractor.
    _load_processor = None  # type: ignore[assignment]
    _load_tokenizer = None  # type: ignore[assignment]
    _load_feature_extractor = None  # type: ignore[assignment]

    def __new__(cls, model, *args, **kwargs):
        if model.config.model_type != "llm_asr":
            return AutomaticSpeechRecognitionPipeline(model, *args, **kwargs)
        return super().__new__(cls)

    def __init__(self, model, feature_extractor=None, tokenizer=None, processor=None, **kwargs):
        if processor is None:
            if not model.name_or_path:
                raise ValueError("`processor` must be passed with a model that was not loaded from a checkpoint.")
            # Without `config`, the parts of the processor would load the model's configuration, and ask whether to trust its
            # remote code.
            processor = LlmAsrProcessor.from_pretrained(model.name_or_path, config=model.config)
        processor.check_model(model.config)
        # Transformers keeps such options in private attributes, which differ between versions.
        names = {name for name in vars(GenerationConfig()) if not name.startswith("_")} | {"generation_config"}
        if options := {name: kwargs.pop(name) for name in names & kwargs.keys()}:
            kwargs["generate_kwargs"] = {**options, **kwargs.get("generate_kwargs", {})}
        super().__init__(
            model,
            feature_extractor=processor.feature_extractor,
            tokenizer=processor.tokenizer,
            processor=processor,
            **kwargs,
        )

    # Each pipeline of Transformers has parameters of its own in the methods below.
    def __call__(self, inputs, **kwargs):  # type: ignore[override]
        if isinstance(inputs, KeyDataset):
            inputs = KeyDataset(without_decoding(inputs.dataset, inputs.key), inputs.key)
        if is_column(inputs):
            if not is_column(inputs.source):
                inputs = without_decoding(inputs.source, inputs.column_name)[inputs.column_name]
            # A generator reads one recording at a time; a list would keep all of them in memory.
            recordings: Any = (recording for recording in inputs)
            return list(super().__call__(self._requests(recordings, kwargs, len(inputs)), **kwargs))
        if isinstance(inputs, list):
            requests: Any = list(self._requests(inputs, kwargs, len(inputs)))
            return super().__call__(requests, **kwargs)
        if isinstance(inputs, (KeyDataset, Iterator)):
            count = len(inputs) if isinstance(inputs, KeyDataset) else None
            return super().__call__(self._requests(inputs, kwargs, count), **kwargs)
        return super().__call__(inputs, **kwargs)

    def _requests(self, recordings: Any, options: dict[str, Any], count: int | None) -> Any:
        """
        Pair recordings with their own texts or keywords. The parameters of a call apply to all its recordings.

        Args:
            recordings (`Iterable`): The recordings.
            options (`dict`): Arguments of the call.
            count (`int`, *optional*): Number of recordings, if it is known.

        Raises:
            `ValueError`: If there are not as many entries as recordings.
        """
        own = {name: options[name] for name in ("text", "keywords") if _has_entries(name, options.get(name))}
        if not own:
            return recordings
        for name, entries in own.items():
            if count not in (None, len(entries)):
                raise ValueError(f"`{name}` has {len(entries)} entries for {count} recordings.")
        rows = [dict(zip(own, entries, strict=True)) for entries in zip(*own.values(), strict=True)]
        return (RecordingRequest(*pair) for pair in zip(recordings, rows, strict=True))

    def _sanitize_parameters(  # type: ignore[override]
        self,
        language=None,
        prompt=None,
        keywords=None,
        task=None,
        target_language=None,
        text=None,
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
                "`return_timestamps='word'` needs a projector with CIF ('cif' or 'moe_cif'), but this model's projector is "
                f"{self.model.config.projector_config.projector_type!r}; use True for the times of segments."
            )
        if return_confidence and return_timestamps == "word":
            raise ValueError("`return_confidence` applies to segments; use it with `return_timestamps=True`.")
        if text is not None:
            unused = {
                "prompt": prompt,
                "keywords": keywords,
                "task": task,
                "target_language": target_language,
                "return_timestamps": return_timestamps,
                "return_confidence": return_confidence,
            }
            self._check_given_text(text, {**kwargs, **unused})
        spread_tasks(task or "transcribe", target_language, 1)
        if task == "translate":
            check_translation_options(return_timestamps, options)
        longest = self.processor.max_audio_samples
        if (
            longest is not None
            and chunk_length_s is not None
            and chunk_length_s > longest / self.processor.sampling_rate
        ):
            raise ValueError(
                f"`chunk_length_s` is {chunk_length_s}, but the limit of the speech encoder is "
                f"{longest / self.processor.sampling_rate:g} s; make it smaller."
            )
        _, forward_params, postprocess_params = super()._sanitize_parameters(**kwargs)
        preprocess_params = {
            "language": language,
            "prompt": prompt,
            "keywords": keywords,
            "task": task,
            "target_language": target_language,
            "text": text,
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
        if task is not None:
            postprocess_params["task"] = task
            # Drafts are of transcripts.
            forward_params.setdefault("use_draft", False if task == "translate" else None)
        if language is not None:
            postprocess_params["language"] = self.processor.language_name(language)
        return preprocess_params, forward_params, postprocess_params

    def _check_given_text(self, text: str | list[str], options: dict[str, Any]) -> None:
        """
        Raises:
            `TypeError`, `ValueError`: If `text` cannot be aligned, or an option has no effect on it.
        """
        projector_config = self.model.config.projector_config
        if not projector_config.uses_cif:
            raise ValueError(
                "`text` needs a projector with CIF ('cif' or 'moe_cif') to find the times of its words, but this model's "
                f"projector is {projector_config.projector_type!r}."
            )
        for one in [text] if isinstance(text, str) else text:
            if not isinstance(one, str):
                raise TypeError(f"`text` must be a string, or a list of strings, got {one!r:.60}.")
            if not one.strip():
                raise ValueError("`text` has no word; pass what is said in the recording.")
        options = {**(options.pop("generate_kwargs", None) or {}), **options}
        given = [name for name, value in options.items() if value is not None and value is not False]
        if given:
            raise ValueError(
                f"`{given[0]}` has no effect with `text`, whose words get times and confidence without the language model; "
                "remove it."
            )

    def preprocess(  # type: ignore[override]
        self,
        inputs,
        language=None,
        prompt=None,
        keywords=None,
        task="transcribe",
        target_language=None,
        text=None,
        chunk_length_s=None,
        min_silence_s=0.5,
        vad="energy",
        progress_bar=False,
    ):
        if isinstance(inputs, RecordingRequest):
            text, keywords = inputs.options.get("text", text), inputs.options.get("keywords", keywords)
            inputs = inputs.recording
        for name, value in (("text", text), ("keywords", keywords)):
            if _has_entries(name, value):
                raise ValueError(f"`{name}` has {len(value)} entries for one recording; pass a list of recordings.")
        segments = self._segments(inputs, chunk_length_s, min_silence_s, vad, progress_bar)
        # Read one segment ahead, so that the last one is known. There is always at least one.
        current: tuple[Segment, bool] | None = next(segments)
        while current is not None:
            following = next(segments, None)
            segment, has_speech = current
            if text is None:
                model_inputs = self.processor.apply_transcription_request(
                    segment.waveform,
                    language=language,
                    prompt=prompt,
                    keywords=keywords,
                    task=task,
                    target_language=target_language,
                    identify_language=language is None and task == "transcribe",
                )
            else:
                model_inputs = self.processor(audio=segment.waveform)
            # Transformers pads the second dimension when it forms a batch.
            if self.processor.feature_layout == "mel_first":
                model_inputs["input_features"] = model_inputs["input_features"].transpose(1, 2)
            is_last = following is None
            times = {"start": segment.start, "end": segment.end}
            yield {"is_last": is_last, "has_speech": has_speech, "text": text, **times, **model_inputs}
            current = following

    def _segments(self, inputs, chunk_length_s, min_silence_s, vad, progress_bar) -> Iterator[tuple[Segment, bool]]:
        """Yield the segments of a recording, and whether each has speech. A short recording is one segment."""
        sampling_rate, longest = self.processor.sampling_rate, self.processor.max_audio_samples
        if chunk_length_s is None:
            chunk_length_s = DEFAULT_CHUNK_LENGTH_S if longest is None else longest / sampling_rate
        # As in the stock pipeline, zero disables splitting.
        chunk_length_s = chunk_length_s or None
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
            # Every recording needs a result, so one segment must pass through the model.
            waveform = np.concatenate([np.empty(0, np.float32), *beginning])[:sampling_rate]
            yield Segment(start=0.0, waveform=waveform, sampling_rate=sampling_rate), False

    def _complete_options(self, generate_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return arguments of `generate`: those of the caller and those that the pipeline needs."""
        options: dict[str, Any] = {"return_dict_in_generate": True}
        limits = ("max_new_tokens", "max_length", "max_new_tokens_per_second")
        # `generate` treats a length argument as the caller's choice, which overrides the model's own limit. So pass the
        # default only if nothing else sets a limit.
        if all(self.model._option(name, generate_kwargs) is None for name in limits):
            options["max_new_tokens"] = DEFAULT_MAX_NEW_TOKENS
        if "generation_config" not in generate_kwargs:
            return {**generate_kwargs, **options}
        # `generate` deprecates a configuration beside single options.
        config = copy.deepcopy(generate_kwargs["generation_config"])
        config.update(**options)
        return {**generate_kwargs, "generation_config": config}

    def _forward(self, model_inputs, **generate_kwargs):  # type: ignore[override]
        if self.model.device.type == "cpu" and (slow := slow_dtypes(self.model)):
            names = " and ".join(str(dtype).removeprefix("torch.") for dtype in slow)
            logger.warning_once(
                f"The model has weights in {names}, but this CPU has no instructions for them. Transcribing is several times "
                "slower than in float32. Pass `dtype=torch.float32` to `pipeline`."
            )
        piece = {name: model_inputs.pop(name) for name in ("is_last", "has_speech", "text", "start", "end")}
        if self.processor.feature_layout == "mel_first":
            model_inputs["input_features"] = model_inputs["input_features"].transpose(1, 2)
        if "input_ids" not in model_inputs:
            piece["alphas"] = self.model.get_audio_features(**model_inputs, return_dict=True).alphas.float()
            return piece
        outputs = self.model.generate(**model_inputs, **self._complete_options(generate_kwargs))
        piece["tokens"] = outputs.sequences
        for name in ("alphas", "avg_logprobs", "no_speech_probs"):
            if outputs.get(name) is not None:
                piece[name] = outputs[name].float()
        return piece

    def postprocess(  # type: ignore[override]
        self, model_outputs, return_timestamps=False, language=None, task="transcribe"
    ):
        frame_period = self.model.config.projector_frame_period
        if model_outputs[0]["text"] is not None:
            return align_pieces(model_outputs, self.processor, frame_period, language)
        return join_pieces(model_outputs, self.processor, frame_period, return_timestamps, language, task)


def _has_entries(name: str, value: Any) -> bool:
    """Whether an argument has an entry for each recording: a list of texts, or a list of lists of keywords."""
    if not isinstance(value, (list, tuple)):
        return False
    return name == "text" or any(not isinstance(entry, str) for entry in value)


def align_pieces(
    pieces: list[dict], processor: LlmAsrProcessor, frame_period: float, language: str | None = None
) -> dict:
    """
    Find the times of the words of a known text in the segments of a recording.

    Args:
        pieces (`list[dict]`): Segments in order. Each has `text`, the text of the whole recording, `has_speech`, `start` and
            `end` in seconds, and `alphas` of shape `(1, num_frames)`.
        processor, frame_period, language: See [`join_pieces`].

    Returns:
        `dict`: `{"text", "language", "languages", "chunks"}`; see [`LlmAsrPipeline`].

    Raises:
        `ValueError`: If there is no speech in the recording.
    """
    text = pieces[0]["text"]
    spoken = [piece for piece in pieces if piece["has_speech"]]
    if not spoken:
        raise ValueError("The recording has no speech, so the words of `text` have no times.")
    rows = []
    for piece in spoken:
        num_frames = math.ceil(round((piece["end"] - piece["start"]) / frame_period, 3))
        rows.append(piece["alphas"][0][:num_frames].cpu())
    chunks = processor.align(text, rows, frame_period, [piece["start"] for piece in spoken])
    end = spoken[-1]["end"]
    for chunk in chunks:
        chunk["timestamp"] = tuple(round(min(time, end), 3) for time in chunk["timestamp"])
    languages = language.split(LANGUAGE_SEPARATOR) if language else []
    return {"text": text, "language": languages[0] if languages else None, "languages": languages, "chunks": chunks}


def join_pieces(
    pieces: Iterable[dict],
    processor: LlmAsrProcessor,
    frame_period: float,
    return_timestamps: bool | str = False,
    language: str | None = None,
    task: str = "transcribe",
) -> dict:
    """
    Join the results of the segments of a recording.

    Args:
        pieces (`Iterable[dict]`): Results in order. Each has `has_speech`, `start` and `end` in seconds, and the outputs of
            `generate` for one row: `tokens` and possibly `alphas`, `avg_logprobs` and `no_speech_probs`.
        processor ([`LlmAsrProcessor`]): The model's processor.
        frame_period (`float`): Seconds between consecutive `alphas`.
        return_timestamps (`bool` or `str`, *optional*, defaults to `False`): See [`LlmAsrPipeline`].
        language (`str`, *optional*): English name of the language, or several names. By default the result has the languages
            that the model identified.
        task (`str`, *optional*, defaults to `"transcribe"`): With `"translate"`, the weights of CIF are not used, because they
            are those of the transcript.

    Returns:
        `dict`: `{"text", "language", "languages"}` and possibly `chunks`; see [`LlmAsrPipeline`].
    """
    text = ""
    chunks: list[dict] = []
    told = language.split(LANGUAGE_SEPARATOR) if language else []
    seconds: dict[str, float] = {}
    for piece in pieces:
        decoded = processor.decode(piece["tokens"][0], return_language=True)
        if not piece["has_speech"] or not decoded["text"]:
            continue
        spoken = told or decoded["languages"]
        for rank, name in enumerate(spoken):
            # The first language has most of the words.
            seconds[name] = seconds.get(name, 0.0) + (piece["end"] - piece["start"] if rank == 0 else 0.0)
        text += joint(text, decoded["text"]) + decoded["text"]
        if return_timestamps:
            if task == "translate":
                piece = {name: value for name, value in piece.items() if name != "alphas"}
            chunks += _chunks(piece, decoded["text"], spoken, processor, frame_period, return_timestamps)
    languages = sorted(seconds, key=lambda name: -seconds[name]) or told
    result = {"text": text, "language": languages[0] if languages else None, "languages": languages}
    return {**result, "chunks": chunks} if return_timestamps else result


def _chunks(
    piece: dict,
    text: str,
    languages: list[str],
    processor: LlmAsrProcessor,
    frame_period: float,
    return_timestamps: bool | str,
) -> list[dict]:
    """The parts of a segment with their times. Without CIF weights, the whole segment is one part."""
    start, end = round(piece["start"], 3), round(piece["end"], 3)
    chunks = [{"text": text, "timestamp": (start, end)}]
    if "alphas" in piece and piece["alphas"].any():
        decoded = processor.decode(
            piece["tokens"][0],
            return_language=True,
            output_offsets=return_timestamps,
            alphas=piece["alphas"][0],
            frame_period=frame_period,
        )
        chunks = [
            {"text": part["text"], "timestamp": tuple(round(min(start + time, end), 3) for time in part["timestamp"])}
            for part in decoded["offsets"]
        ]
    if return_timestamps == "word":
        return chunks
    details: dict[str, Any] = {"language": languages[0] if languages else None, "languages": languages}
    for name, scores in (("avg_logprob", "avg_logprobs"), ("no_speech_prob", "no_speech_probs")):
        if scores in piece:
            details[name] = float(piece[scores][0])
    return [{**chunk, **details} for chunk in chunks]


__all__ = ["LlmAsrPipeline", "align_pieces", "join_pieces"]
