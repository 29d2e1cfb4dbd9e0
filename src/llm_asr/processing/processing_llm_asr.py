"""Turns recordings and text into model inputs, and token ids into text."""

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoFeatureExtractor, AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin, prepare_prompt_input

from .audio import AudioSource, load_audio
from .features import extract_features
from .keywords import spread_keywords
from .languages import DEFAULT_LANGUAGE_TAG, LANGUAGE_CODE_TO_NAME, LANGUAGE_PLACE, name_languages
from .log_mel import check_log_mel_maximum
from .model_match import check_fits_model
from .processor_files import check_audio_padding, check_parts, check_processor_settings, naming_processor_file
from .rendering import render_request
from .source_processor import LlmAsrProcessorConversionMixin
from .tasks import check_translations, spread_tasks
from .transcripts_llm_asr import LlmAsrTranscriptsMixin


# The user's message to the language model: the recording, the task, and known facts about the recording.
DEFAULT_TRANSCRIPTION_TEMPLATE = (
    "{{ audio_token }}{% if target_language %}Translate the speech{% if language %} in {{ language }}{% endif %} into "
    "{{ target_language }}{% elif identify_language %}Name the language and transcribe the speech"
    "{% else %}Transcribe the speech{% if language %} in {{ language }}{% endif %}{% endif %}."
    "{% if keywords %} Keywords: {{ keywords | join(', ') }}.{% endif %}"
    "{% if prompt %} Context: {{ prompt }}{% endif %}"
)

# Keywords of all recordings, or of each recording.
Keywords = str | list[str] | list[list[str] | None] | None

# Why a request is refused. The template is saved with the checkpoint.
NO_PLACE = (
    "`{argument}` cannot be used: the `transcription_template` of this processor has no place for {what}, so the checkpoint "
    "was not trained with them; leave it out."
)

# For language models without a chat template.
DEFAULT_CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


class LlmAsrProcessor(LlmAsrTranscriptsMixin, LlmAsrProcessorConversionMixin, ProcessorMixin):
    r"""
    Combines the feature extractor of a speech encoder and the tokenizer of a language model.

    Args:
        feature_extractor ([`SequenceFeatureExtractor`]):
            The speech encoder's feature extractor.
        tokenizer ([`PreTrainedTokenizer`]):
            The language model's tokenizer. Its vocabulary must contain `audio_token`.
        chat_template (`str`, *optional*):
            Jinja template of a conversation with string contents. Defaults to the tokenizer's template. Without one,
            the contents are joined.
        audio_token (`str`, *optional*, defaults to `"<|audio|>"`):
            Token that represents one recording.
        feature_layout (`str`, *optional*, defaults to `"mel_first"`):
            Output of the feature extractor: `"waveform"` (samples), `"time_first"` (frames before mel bins) or
            `"mel_first"`.
        samples_per_feature (`int`, *optional*, defaults to 160):
            Audio samples per frame of the features.
        samples_per_frame (`int`, *optional*, defaults to 320):
            Audio samples per frame of the speech encoder.
        min_audio_samples (`int`, *optional*):
            Shortest recording for the speech encoder, in samples. Defaults to `samples_per_frame`.
        max_audio_samples (`int`, *optional*):
            Longest recording for the speech encoder, in samples. `None` sets no limit.
        transcription_template (`str`, *optional*):
            Jinja template of the transcription request. Its variables are `audio_token`, `language` (an English name or
            `None`), `language_code` (its first code in `languages`), `target_language` (an English name for a translation,
            `None` for a transcription), `identify_language` (a bool), `prompt` (a string or `None`) and `keywords` (a list
            of strings or `None`). It is saved with the processor, so that prompts at inference are the same as in training.
        languages (`dict[str, str]`, *optional*):
            English names of languages, by code. Defaults to the languages of Whisper and FLEURS. Pass a larger dict to
            train other languages.
        log_mel_maximum (`str`, *optional*, defaults to `"recording"`):
            Whisper's log-mel values are clipped to 8 below the loudest value of the `"recording"`, or below the loudest value so
            far (`"running"`), which a stream knows. Models with `encoder_attention="chunked"` need `"running"`.
        audio_padding (`str`, *optional*, defaults to `"longest"`):
            What features hold after the end of a recording. `"longest"` pads them to the longest recording of a batch,
            `"max_length"` to the window of Whisper's feature extractor, which models with `encoder_padding="features"` need.
            `"silence"` makes silence up to the end of the window a part of the recording, as Voxtral does. `"mirror"` is `"longest"`
            with spectra that mirror the samples at the end of a recording, as Ultravox has them.
        language_tag (`str`, *optional*, defaults to `"{language}\\n"`):
            How an answer names the languages of a recording before its transcript.
    """

    chat_template: str

    def __init__(
        self,
        feature_extractor,
        tokenizer,
        chat_template: str | None = None,
        audio_token: str = "<|audio|>",
        feature_layout: str = "mel_first",
        samples_per_feature: int = 160,
        samples_per_frame: int = 320,
        min_audio_samples: int | None = None,
        max_audio_samples: int | None = None,
        transcription_template: str = DEFAULT_TRANSCRIPTION_TEMPLATE,
        languages: dict[str, str] | None = None,
        log_mel_maximum: str = "recording",
        audio_padding: str = "longest",
        language_tag: str = DEFAULT_LANGUAGE_TAG,
    ):
        check_parts(feature_extractor, tokenizer)
        check_log_mel_maximum(log_mel_maximum, feature_extractor)
        check_audio_padding(audio_padding, feature_extractor, log_mel_maximum)
        audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)
        if audio_token_id is None or audio_token_id == tokenizer.unk_token_id:
            raise ValueError(
                f"`tokenizer` has no token {audio_token!r}; add it with `tokenizer.add_special_tokens("
                f"{{'extra_special_tokens': [{audio_token!r}]}})` or pass another `audio_token`."
            )
        if tokenizer.eos_token_id is None:
            raise ValueError("`tokenizer` has no `eos_token`, which ends every transcript; set one.")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        # The stock pipeline forms batches only if both parts pad the same side.
        tokenizer.padding_side = feature_extractor.padding_side
        self.audio_token = audio_token
        self.audio_token_id = audio_token_id
        self.feature_layout = feature_layout
        self.samples_per_feature = samples_per_feature
        self.samples_per_frame = samples_per_frame
        self.min_audio_samples = samples_per_frame if min_audio_samples is None else min_audio_samples
        self.max_audio_samples = max_audio_samples
        self.transcription_template = transcription_template
        self.languages = LANGUAGE_CODE_TO_NAME if languages is None else languages
        self.log_mel_maximum = log_mel_maximum
        self.audio_padding = audio_padding
        self.language_tag = language_tag
        check_processor_settings(self)
        super().__init__(
            feature_extractor,
            tokenizer,
            chat_template=chat_template or tokenizer.chat_template or DEFAULT_CHAT_TEMPLATE,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs) -> "LlmAsrProcessor":
        """
        See [`ProcessorMixin.from_pretrained`].

        Raises:
            `OSError`: If a file is missing.
            `ValueError`: If a file is damaged or has a field of a wrong type. The error names the file.
        """
        with naming_processor_file(pretrained_model_name_or_path, **kwargs):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_audio_text_pretrained(
        cls, audio: str, text: str, audio_kwargs: dict | None = None, text_kwargs: dict | None = None, **kwargs
    ) -> "LlmAsrProcessor":
        """
        Compose the processor of a speech encoder and a language model, and add the audio token to the tokenizer.

        Args:
            audio (`str`): Local folder or Hub id of the speech encoder.
            text (`str`): Local folder or Hub id of the language model.
            audio_kwargs, text_kwargs (`dict`, *optional*): Arguments of the parts' `from_pretrained`.
            kwargs: Further arguments of [`LlmAsrProcessor`].

        Raises:
            `ValueError`: If the type of the speech encoder is not supported, or `llm_asr` has not been imported.
        """
        audio_kwargs, text_kwargs = audio_kwargs or {}, text_kwargs or {}
        audio_config = AutoConfig.from_pretrained(audio, **audio_kwargs)
        feature_extractor = AutoFeatureExtractor.from_pretrained(audio, **audio_kwargs)
        tokenizer = AutoTokenizer.from_pretrained(text, **text_kwargs)
        audio_token = kwargs.setdefault("audio_token", "<|audio|>")
        if audio_token not in tokenizer.get_vocab():
            tokenizer.add_special_tokens({"extra_special_tokens": [audio_token]}, replace_extra_special_tokens=False)
        if "llm_asr" not in CONFIG_MAPPING:
            raise ValueError("Composition needs the package: `import llm_asr` first.")
        # `modeling` and `processing` do not import each other, so find the class in Transformers' registry.
        config_class: Any = CONFIG_MAPPING["llm_asr"]
        settings = config_class.describe_speech_encoder(audio_config, feature_extractor)
        return cls(feature_extractor, tokenizer, **{**settings, **kwargs})

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the recordings for the speech encoder."""
        return self.feature_extractor.sampling_rate

    @property
    def transcription_prompt_ids(self) -> list[int]:
        """Tokens of the transcription request without language and context."""
        return self._tokenize(self._render_request(None, identify_language=False))

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "input_features", "input_features_mask"]

    def check_model(self, config) -> None:
        """
        Raise a `ValueError` if this processor does not fit a model.

        Args:
            config ([`LlmAsrConfig`]): Configuration of the model.
        """
        check_fits_model(self, config)

    def load_recording(self, source: AudioSource) -> np.ndarray:
        """
        Read one recording and check that the speech encoder supports its length.

        Args:
            source (`AudioSource`): See [`load_audio`].

        Returns:
            `np.ndarray` of shape `(num_samples,)`, float32, at `sampling_rate`.

        Raises:
            `ValueError`: If the recording cannot be read, is empty, not finite, not mono, too short or too long.
        """
        waveform = load_audio(source, self.sampling_rate)
        if len(waveform) < self.min_audio_samples:
            raise ValueError(
                f"`audio` has {len(waveform)} samples, less than one frame of the speech encoder "
                f"({self.min_audio_samples}); remove it."
            )
        if self.max_audio_samples is not None and len(waveform) > self.max_audio_samples:
            raise ValueError(
                f"`audio` lasts {len(waveform) / self.sampling_rate:.1f} s, but the limit of the speech encoder is "
                f"{self.max_audio_samples / self.sampling_rate:.1f} s; split it."
            )
        return waveform

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: AudioSource | list[AudioSource] | None = None,
        transcription: str | Sequence[str | None] | None = None,
        named_languages: list[str | None] | None = None,
        translation: list[str | None] | None = None,
        sampling_rate: int | None = None,
        audio_padding: str | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """
        Tokenize prompts and extract features from recordings.

        Args:
            text (`str` or `list[str]`, *optional*):
                Rendered prompts, with one audio token for each recording.
            audio (`AudioSource` or `list[AudioSource]`, *optional*):
                Recordings; see [`load_audio`].
            transcription (`str` or `list[str]`, *optional*):
                Target transcripts, one for each prompt. They add `labels` and `target_lengths`.
            named_languages (`list[str]`, *optional*):
                Languages that the answers name before the transcripts; see [`LlmAsrProcessor.tokenize_requests`].
            translation (`list[str]`, *optional*):
                Answers that are translations; see [`LlmAsrProcessor.tokenize_requests`].
            sampling_rate (`int`, *optional*):
                Sampling rate of waveforms in `audio`. It is only checked.
            audio_padding (`str`, *optional*):
                In place of the processor's `audio_padding`.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                Only `"pt"` is supported.

        Returns:
            [`BatchFeature`]: For `text`, `input_ids` and `attention_mask` of shape `(batch_size, sequence_length)`. For
            `audio`, `input_features` in `feature_layout` and `input_features_mask` of shape `(num_recordings,
            num_feature_frames)`. For `transcription`, `labels` of shape `(batch_size, sequence_length)` (the transcript and
            an end-of-sequence token, -100 elsewhere) and `target_lengths` of shape `(batch_size,)` (number of tokens of the
            transcript alone). For `translation`, also `is_translation`.

        Raises:
            `ValueError`: If counts differ, or a recording is empty, not finite, not mono, at another sampling rate, or
            too short or too long for the speech encoder.
        """
        if return_tensors != "pt":
            raise ValueError(f"`return_tensors` must be 'pt', got {return_tensors!r}.")
        if text is None and audio is None:
            raise ValueError("Pass `text`, `audio`, or both.")
        if transcription is not None and text is None:
            raise ValueError("`transcription` needs the `text` of its prompt.")
        audio = None if audio is None else _as_list(audio)
        if audio is not None and not audio:
            raise ValueError("`audio` must contain at least one recording.")
        prompts = None if text is None else _as_list(text)
        if prompts is not None:
            num_audio_tokens = sum(prompt.count(self.audio_token) for prompt in prompts)
            num_recordings = 0 if audio is None else len(audio)
            if num_audio_tokens != num_recordings:
                raise ValueError(
                    f"`text` has {num_audio_tokens} audio token(s) {self.audio_token!r}, but `audio` has {num_recordings} "
                    "recording(s); write one audio token for each recording."
                )
        inputs: dict[str, torch.Tensor] = {}
        if prompts is not None:
            inputs.update(self.tokenize_requests(prompts, transcription, named_languages, translation))
        if audio is not None:
            inputs.update(self._audio_inputs(audio, sampling_rate, audio_padding))
        return BatchFeature(inputs, tensor_type="pt")

    @overload
    def apply_transcription_request(
        self,
        audio: AudioSource | list[AudioSource],
        language: str | list[str | None] | None = ...,
        prompt: str | list[str | None] | None = ...,
        transcription: str | Sequence[str | None] | None = ...,
        identify_language: bool | list[bool] = ...,
        keywords: Keywords = ...,
        task: str | list[str] = ...,
        target_language: str | list[str | None] | None = ...,
        translation: str | list[str | None] | None = ...,
        tokenize: Literal[True] = ...,
        **kwargs: Any,
    ) -> BatchFeature: ...

    @overload
    def apply_transcription_request(
        self, audio: AudioSource | list[AudioSource], *, tokenize: Literal[False], **kwargs: Any
    ) -> list[str]: ...

    def apply_transcription_request(
        self,
        audio: AudioSource | list[AudioSource],
        language: str | list[str | None] | None = None,
        prompt: str | list[str | None] | None = None,
        transcription: str | Sequence[str | None] | None = None,
        identify_language: bool | list[bool] = False,
        keywords: Keywords = None,
        task: str | list[str] = "transcribe",
        target_language: str | list[str | None] | None = None,
        translation: str | list[str | None] | None = None,
        tokenize: bool = True,
        **kwargs,
    ) -> BatchFeature | list[str]:
        """
        Prepare inputs for speech recognition.

        Args:
            audio (`AudioSource` or `list[AudioSource]`):
                Recordings; see [`load_audio`].
            language (`str` or `list[str]`, *optional*):
                Spoken language, as a code (`"es"`) or an English name (`"Spanish"`): one for all recordings, or one (or
                `None`) for each recording. By default the prompt does not name a language.
            prompt (`str` or `list[str]`, *optional*):
                Context such as names or the subject: one for all recordings, or one (or `None`) for each recording.
            transcription (`str` or `list[str]`, *optional*):
                Transcripts for training, one for each recording. Those of translations may be `None`.
            identify_language (`bool` or `list[bool]`, *optional*, defaults to `False`):
                Whether the model names the language before the transcript: one for all recordings, or one for each. With
                `transcription`, the answer then names `language`, and the prompt does not.
            keywords (`str`, `list[str]` or `list[list[str]]`, *optional*):
                Words that may be spoken, such as names: a list for all recordings, or a list (or `None`) for each recording.
                They help a checkpoint that was trained with keywords.
            task (`str` or `list[str]`, *optional*, defaults to `"transcribe"`):
                `"transcribe"` or `"translate"`: one for all recordings, or one for each.
            target_language (`str` or `list[str]`, *optional*):
                Language of the translation, as a code or an English name: one for all recordings, or one (or `None`) for each.
            translation (`str` or `list[str]`, *optional*):
                Translations for training, one for each recording, and `None` for transcriptions.
            tokenize (`bool`, *optional*, defaults to `True`):
                `False` returns the rendered prompts without reading the recordings.
            kwargs:
                Further arguments of [`LlmAsrProcessor.__call__`].

        Returns:
            [`BatchFeature`] or `list[str]`: Inputs for `forward` or `generate`, or rendered prompts.

        Raises:
            `ValueError`: See [`LlmAsrProcessor.__call__`]; also if a language is unknown, if `transcription_template` has no
                place for keywords or translations that are passed, or if options contradict each other.
        """
        audio = _as_list(audio)
        if not audio:
            raise ValueError("`audio` must contain at least one recording.")
        languages = self._language_names(language, len(audio))
        identifies = (
            identify_language if isinstance(identify_language, (list, tuple)) else [identify_language] * len(audio)
        )
        if len(identifies) != len(audio):
            raise ValueError(f"`identify_language` has {len(identifies)} entries for {len(audio)} recording(s).")
        if transcription is None and tokenize and any(map(_both, languages, identifies)):
            raise ValueError("`language` and `identify_language` exclude each other; pass only one.")
        # The annotation of the function leaves out that a row may be `None`.
        prompts = prepare_prompt_input(prompt, len(audio), input_name="prompt")  # type: ignore[arg-type]
        listed = spread_keywords(keywords, len(audio))
        targets = self._language_names(spread_tasks(task, target_language, len(audio)), len(audio), "target_language")
        if any(map(_both, targets, identifies)):
            raise ValueError("`identify_language` is for transcriptions; leave it out for translations.")
        told = [None if identify else name for name, identify in zip(languages, identifies, strict=True)]
        requests = zip(told, identifies, prompts, listed, targets, strict=True)
        text = [self._render_request(*request) for request in requests]
        if not tokenize:
            return text
        if translation is not None:
            kwargs["translation"] = translation = check_translations(translation, targets)
            transcription = [None] * len(audio) if transcription is None else transcription
        elif transcription is not None and any(targets):
            raise ValueError("`translation` must be passed with `transcription` for translations.")
        if transcription is not None:
            named = [name if identify else None for name, identify in zip(languages, identifies, strict=True)]
            kwargs["named_languages"] = named
        return self(text=text, audio=audio, transcription=transcription, **kwargs)

    def tokenize_requests(
        self,
        text: list[str],
        transcription: str | Sequence[str | None] | None = None,
        named_languages: list[str | None] | None = None,
        translation: list[str | None] | None = None,
    ) -> BatchFeature:
        """
        Tokenize rendered prompts and their transcripts, without recordings.

        Args:
            text (`list[str]`): Rendered prompts.
            transcription (`str` or `list[str]`, *optional*): Transcripts, one for each prompt.
            named_languages (`list[str]`, *optional*): Code or English name of the language, or `None`, that each answer
                names before its transcript. Answers with an empty transcript do not name a language.
            translation (`list[str]`, *optional*): For each prompt, the translation that is its answer, or `None` if the
                transcript is. The transcript of a translation may be `None`. Its `target_lengths` is then -1.

        Returns:
            [`BatchFeature`]: The part of [`LlmAsrProcessor.__call__`]'s output for `text` and `transcription`.
        """
        rows = [self._tokenize(prompt) for prompt in text]
        if transcription is None:
            return BatchFeature(self._pad(rows))
        transcripts = _as_list(transcription)
        if len(transcripts) != len(text):
            raise ValueError(f"`transcription` has {len(transcripts)} entries for {len(text)} prompt(s).")
        translations = [None] * len(text) if translation is None else translation
        for transcript, translated in zip(transcripts, translations, strict=True):
            if not isinstance(transcript, str) and (translated is None or transcript is not None):
                raise TypeError(f"`transcription` must be a string for each prompt, got {transcript!r}.")
        for name, texts in (("transcription", transcripts), ("translation", translations)):
            if any(self.audio_token in one for one in texts if one is not None):
                raise ValueError(f"`{name}` must not contain the audio token {self.audio_token!r}.")
        # Tokenize transcripts without the prompt, so that their tokens do not depend on it. The name of a special token in
        # a transcript is ordinary text.
        spoken, translated_ids = (
            [None if one is None else self._tokenize(one, split_special_tokens=True) for one in texts]
            for texts in (transcripts, translations)
        )
        targets = [(said or []) if ids is None else ids for said, ids in zip(spoken, translated_ids, strict=True)]
        names = self._language_names(named_languages, len(text))
        answers = [
            [*(self._tokenize(self._write_tag(name)) if name and target else ()), *target, self.tokenizer.eos_token_id]
            for name, target in zip(names, targets, strict=True)
        ]
        inputs = self._pad([row + answer for row, answer in zip(rows, answers, strict=True)])
        labels = torch.full_like(inputs["input_ids"], -100)
        for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            start = int(inputs["attention_mask"][index].argmax()) + len(row)
            labels[index, start : start + len(answer)] = torch.tensor(answer)
        # What CIF fires are the tokens of the transcript, whatever the answer's language.
        inputs["target_lengths"] = torch.tensor([-1 if said is None else len(said) for said in spoken])
        if translation is not None:
            inputs["is_translation"] = torch.tensor([ids is not None for ids in translated_ids])
        return BatchFeature({**inputs, "labels": labels})

    def _write_tag(self, languages: str) -> str:
        return self.language_tag.replace(LANGUAGE_PLACE, languages)

    def _language_names(
        self, language: str | list[str | None] | None, count: int, argument: str = "language"
    ) -> list[str | None]:
        """English names of the languages of `count` recordings."""
        languages = list(language) if isinstance(language, (list, tuple)) else [language] * count
        if len(languages) != count:
            raise ValueError(f"`{argument}` has {len(languages)} entries for {count} recording(s).")
        names = []
        for index, one in enumerate(languages):
            try:
                names.append(self.language_name(one))
            except (TypeError, ValueError) as error:
                message = str(error).replace("`language`", f"`{argument}`", 1)
                raise type(error)(f"Recording {index}: {message}" if count > 1 else message) from error
        return names

    def language_name(self, language: str | None) -> str | None:
        """
        English name of a language for prompts.

        Args:
            language (`str`, *optional*): A code (`"es"`, `"spa"`, `"es-MX"`, `"cmn_hans_cn"`) or an English name, in upper
                or lower case, or several with commas between them (`"es,en"`) for speech that switches between languages.
                `None`, `""` and `"auto"` mean an unknown language.

        Returns:
            `str`: English name, several names (`"Spanish, English"`), or `None` for an unknown language.

        Raises:
            `ValueError`: If `languages` does not have the language. The message suggests similar names.
            `TypeError`: If `language` is not a string.
        """
        return name_languages(language, self.languages)

    def _render_request(
        self,
        language: str | None,
        identify_language: bool,
        prompt: str | None = None,
        keywords: list[str] | None = None,
        target_language: str | None = None,
    ) -> str:
        for name, texts in (("prompt", [prompt] if prompt else []), ("keywords", keywords or [])):
            special = next(filter(None, map(self.find_special_token, texts)), None)
            if special is not None:
                what = "the audio token" if special == self.audio_token else "the special token"
                raise ValueError(f"`{name}` must not contain {what} {special!r}; remove it.")
        variables: dict[str, Any] = {
            "audio_token": self.audio_token,
            "language": language,
            "language_code": next((code for code, name in self.languages.items() if name == language), None),
            "identify_language": identify_language,
            "prompt": prompt,
            "keywords": keywords,
            "target_language": target_language,
        }

        def render(**changes: None) -> str:
            special_tokens = self.tokenizer.special_tokens_map
            return render_request(
                self.transcription_template, self.chat_template, special_tokens, **{**variables, **changes}
            )

        rendered = render()
        if target_language and rendered == render(target_language=None):
            raise ValueError(NO_PLACE.format(argument="task='translate'", what="translations"))
        if keywords and rendered == render(keywords=None):
            raise ValueError(NO_PLACE.format(argument="keywords", what="keywords"))
        return rendered

    def find_special_token(self, text: str) -> str | None:
        """Return the first token in a text that controls the language model and is not text, or `None`."""
        added = self.tokenizer.added_tokens_decoder.values()
        special = [self.audio_token, *(token.content for token in added if token.special)]
        return next((token for token in special if token in text), None)

    def _tokenize(self, text: str, split_special_tokens: bool = False) -> list[int]:
        # The chat template already contains the special tokens that the model expects.
        options = {"add_special_tokens": False, "split_special_tokens": split_special_tokens}
        return self.tokenizer(text, **options)["input_ids"]

    def _pad(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        return dict(self.tokenizer.pad({"input_ids": rows}, return_attention_mask=True, return_tensors="pt"))

    def _audio_inputs(
        self, audio: list[AudioSource], sampling_rate: int | None, audio_padding: str | None
    ) -> dict[str, torch.Tensor]:
        audio_padding = self.audio_padding if audio_padding is None else audio_padding
        check_audio_padding(audio_padding, self.feature_extractor, self.log_mel_maximum)
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"`sampling_rate` is {sampling_rate}, but the speech encoder needs {self.sampling_rate}; pass a dict with "
                "`array` and `sampling_rate` to convert a recording."
            )
        waveforms = []
        for index, source in enumerate(audio):
            try:
                waveforms.append(self.load_recording(source))
            except ValueError as error:
                raise ValueError(f"Recording {index}: {error}") from error
        input_features, mask = extract_features(
            self.feature_extractor, waveforms, self.feature_layout, audio_padding, self.log_mel_maximum
        )
        return {"input_features": input_features, "input_features_mask": mask}


def _as_list(value) -> list:
    """Turn a single value, a list, a tuple or a column of a dataset into a list of values."""
    is_one = isinstance(value, (str, bytes, bytearray, memoryview)) or not isinstance(value, Sequence)
    if is_one or (isinstance(value, (list, tuple)) and value and isinstance(value[0], (int, float, np.number))):
        return [value]
    return list(value)


def _both(language: str | None, identifies: bool) -> bool:
    return language is not None and identifies


__all__ = ["LANGUAGE_CODE_TO_NAME", "LlmAsrProcessor"]
