"""Recordings and text in, model inputs out; token ids in, text out."""

import re

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer, WhisperFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE
from transformers.processing_utils import ProcessorMixin, prepare_prompt_input
from transformers.utils.chat_template_utils import render_jinja_template

from .audio import AudioSource, load_audio
from .timestamps import align_words, join_segments


# What the user says to the language model: the recording, the task, and what is known about the recording.
DEFAULT_TRANSCRIPTION_TEMPLATE = (
    "{{ audio_token }}{% if identify_language %}Name the language and transcribe the speech"
    "{% else %}Transcribe the speech{% if language %} in {{ language }}{% endif %}{% endif %}."
    "{% if prompt %} Context: {{ prompt }}{% endif %}"
)

# What a language that the model names is set off from the transcript by.
LANGUAGE_END = "\n"

# For language models that were never trained to chat.
DEFAULT_CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n{% endfor %}"

# Seconds of silence at which one segment ends and the next begins.
SEGMENT_PAUSE = 0.5

# Names as they are written in prompts ("Spanish"), by code: Whisper's languages, and those that FLEURS has beside them.
LANGUAGE_CODE_TO_NAME = {code: name.title() for code, name in LANGUAGES.items()} | {
    "ast": "Asturian",
    "ceb": "Cebuano",
    "ckb": "Sorani Kurdish",
    "ff": "Fula",
    "ga": "Irish",
    "ig": "Igbo",
    "kam": "Kamba",
    "kea": "Kabuverdianu",
    "ky": "Kyrgyz",
    "lg": "Ganda",
    "luo": "Luo",
    "nso": "Northern Sotho",
    "ny": "Nyanja",
    "om": "Oromo",
    "or": "Oriya",
    "umb": "Umbundu",
    "wo": "Wolof",
    "xh": "Xhosa",
    "zu": "Zulu",
}


class LlmAsrProcessor(ProcessorMixin):
    r"""
    Combines the feature extractor of a speech encoder and the tokenizer of a language model.

    Args:
        feature_extractor ([`SequenceFeatureExtractor`]):
            Of the speech encoder.
        tokenizer ([`PreTrainedTokenizer`]):
            Of the language model; `audio_token` must be in its vocabulary.
        chat_template (`str`, *optional*):
            Jinja template of a conversation with string contents. Defaults to the tokenizer's own, or to the bare
            contents where it has none.
        audio_token (`str`, *optional*, defaults to `"<|audio|>"`):
            Token that stands for one recording.
        samples_per_frame (`int`, *optional*, defaults to 320):
            Samples of audio to one frame of the speech encoder.
        max_audio_samples (`int`, *optional*):
            Longest recording the speech encoder takes, in samples; unlimited if absent.
        transcription_template (`str`, *optional*):
            Jinja template of the transcription request, given `audio_token`, `language` (an English name or `None`),
            `identify_language` (a bool) and `prompt` (a string or `None`). It is saved with the processor, so that a
            checkpoint is prompted as it was trained.
        languages (`dict[str, str]`, *optional*):
            English names of languages, by code. Defaults to those of Whisper and FLEURS; pass a longer dict to train
            others.
    """

    def __init__(
        self,
        feature_extractor,
        tokenizer,
        chat_template: str | None = None,
        audio_token: str = "<|audio|>",
        samples_per_frame: int = 320,
        max_audio_samples: int | None = None,
        transcription_template: str = DEFAULT_TRANSCRIPTION_TEMPLATE,
        languages: dict[str, str] | None = None,
    ):
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
        # The stock pipeline only batches where both parts pad the same side.
        tokenizer.padding_side = feature_extractor.padding_side
        self.audio_token = audio_token
        self.audio_token_id = audio_token_id
        self.samples_per_frame = samples_per_frame
        self.max_audio_samples = max_audio_samples
        self.transcription_template = transcription_template
        self.languages = LANGUAGE_CODE_TO_NAME if languages is None else languages
        super().__init__(
            feature_extractor,
            tokenizer,
            chat_template=chat_template or tokenizer.chat_template or DEFAULT_CHAT_TEMPLATE,
        )

    @classmethod
    def from_audio_text_pretrained(
        cls, audio: str, text: str, audio_kwargs: dict | None = None, text_kwargs: dict | None = None, **kwargs
    ) -> "LlmAsrProcessor":
        """
        Compose the processor of a speech encoder and a language model, adding the audio token to the tokenizer.

        Args:
            audio (`str`): Local folder or Hub id of the speech encoder.
            text (`str`): Local folder or Hub id of the language model.
            audio_kwargs, text_kwargs (`dict`, *optional*): Passed on to `from_pretrained` of the parts.
            kwargs: Passed on to [`LlmAsrProcessor`].
        """
        audio_kwargs, text_kwargs = audio_kwargs or {}, text_kwargs or {}
        audio_config = AutoConfig.from_pretrained(audio, **audio_kwargs)
        feature_extractor = AutoFeatureExtractor.from_pretrained(audio, **audio_kwargs)
        tokenizer = AutoTokenizer.from_pretrained(text, **text_kwargs)
        audio_token = kwargs.setdefault("audio_token", "<|audio|>")
        if audio_token not in tokenizer.get_vocab():
            tokenizer.add_special_tokens({"extra_special_tokens": [audio_token]}, replace_extra_special_tokens=False)
        samples_per_frame = _samples_per_frame(audio_config, feature_extractor)
        if audio_config.model_type == "whisper":
            kwargs.setdefault("max_audio_samples", audio_config.max_source_positions * samples_per_frame)
        kwargs.setdefault("samples_per_frame", samples_per_frame)
        return cls(feature_extractor, tokenizer, **kwargs)

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the recordings that the speech encoder was trained on."""
        return self.feature_extractor.sampling_rate

    @property
    def transcription_prompt_ids(self) -> list[int]:
        """Tokens of the transcription request when neither language nor context is known."""
        return self._tokenize(self._render_request(language=None, identify_language=False, prompt=None))

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "input_features", "input_features_mask"]

    def load_recording(self, source: AudioSource) -> np.ndarray:
        """
        Read one recording and check that the speech encoder can take it.

        Args:
            source (`AudioSource`): See [`load_audio`].

        Returns:
            `np.ndarray` of shape `(num_samples,)`, float32, at `sampling_rate`.

        Raises:
            `ValueError`: If it cannot be read, is empty, not finite, not mono, too short or too long.
        """
        waveform = load_audio(source, self.sampling_rate)
        if len(waveform) < self.samples_per_frame:
            raise ValueError(
                f"`audio` has {len(waveform)} samples, less than one frame of the speech encoder "
                f"({self.samples_per_frame}); remove it."
            )
        if self.max_audio_samples is not None and len(waveform) > self.max_audio_samples:
            raise ValueError(
                f"`audio` lasts {len(waveform) / self.sampling_rate:.1f} s, and the speech encoder takes "
                f"{self.max_audio_samples / self.sampling_rate:.1f} s; split it."
            )
        return waveform

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: AudioSource | list[AudioSource] | None = None,
        transcription: str | list[str] | None = None,
        named_languages: list[str | None] | None = None,
        sampling_rate: int | None = None,
        audio_padding: str = "longest",
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """
        Tokenize prompts and extract features from recordings.

        Args:
            text (`str` or `list[str]`, *optional*):
                Rendered prompts, with the audio token once for each recording.
            audio (`AudioSource` or `list[AudioSource]`, *optional*):
                Recordings; see [`load_audio`].
            transcription (`str` or `list[str]`, *optional*):
                What the model is to answer, one for each prompt. Adds `labels` and `target_lengths`.
            named_languages (`list[str]`, *optional*):
                Languages that the answers name before the transcripts; see [`LlmAsrProcessor.tokenize_requests`].
            sampling_rate (`int`, *optional*):
                Sampling rate of waveforms in `audio`, to make sure that it is the expected one.
            audio_padding (`str`, *optional*, defaults to `"longest"`):
                Pad features to the longest recording, or, with `"max_length"`, to the longest the speech encoder takes.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                Only `"pt"` is supported.

        Returns:
            [`BatchFeature`]: With `text`, `input_ids` and `attention_mask` of shape `(batch_size, sequence_length)`; with
            `audio`, `input_features` and `input_features_mask` of shape `(num_recordings, num_feature_frames)`; with
            `transcription`, `labels` of shape `(batch_size, sequence_length)` (the transcript and an end-of-sequence
            token, -100 elsewhere) and `target_lengths` of shape `(batch_size,)` (tokens of the transcript alone).

        Raises:
            `ValueError`: If counts differ, or a recording is empty, not finite, not mono, at another sampling rate, or
            shorter or longer than the speech encoder takes.
        """
        if return_tensors != "pt":
            raise ValueError(f"`return_tensors` must be 'pt', got {return_tensors!r}.")
        if text is None and audio is None:
            raise ValueError("Pass `text`, `audio`, or both.")
        if transcription is not None and text is None:
            raise ValueError("`transcription` needs the `text` of the prompt that it answers.")
        audio = None if audio is None else _as_list(audio)
        if audio is not None and not audio:
            raise ValueError("`audio` must contain at least one recording.")
        prompts = None if text is None else _as_list(text)
        if prompts is not None:
            num_audio_tokens = sum(prompt.count(self.audio_token) for prompt in prompts)
            num_recordings = 0 if audio is None else len(audio)
            if num_audio_tokens != num_recordings:
                raise ValueError(
                    f"`text` has {num_audio_tokens} audio token(s) {self.audio_token!r} and `audio` has {num_recordings} "
                    "recording(s); write one for each."
                )
        inputs = {}
        if prompts is not None:
            inputs.update(self.tokenize_requests(prompts, transcription, named_languages))
        if audio is not None:
            inputs.update(self._audio_inputs(audio, sampling_rate, audio_padding))
        return BatchFeature(inputs, tensor_type="pt")

    def apply_transcription_request(
        self,
        audio: AudioSource | list[AudioSource],
        language: str | list[str | None] | None = None,
        prompt: str | list[str | None] | None = None,
        transcription: str | list[str] | None = None,
        identify_language: bool | list[bool] = False,
        tokenize: bool = True,
        **kwargs,
    ) -> BatchFeature | list[str]:
        """
        Prepare inputs for speech recognition without writing a conversation.

        Args:
            audio (`AudioSource` or `list[AudioSource]`):
                Recordings; see [`load_audio`].
            language (`str` or `list[str]`, *optional*):
                Language spoken, as a code (`"es"`) or an English name (`"Spanish"`); one for all, or one (or `None`) for
                each recording. Without it the model finds out by itself.
            prompt (`str` or `list[str]`, *optional*):
                Context such as names or the subject; one for all, or one (or `None`) for each recording.
            transcription (`str` or `list[str]`, *optional*):
                Transcripts, for training; one for each recording.
            identify_language (`bool` or `list[bool]`, *optional*, defaults to `False`):
                Whether the model is to name the language before it transcribes; one for all, or one for each recording.
                With `transcription`, `language` is then what it is to name, and no part of the prompt.
            tokenize (`bool`, *optional*, defaults to `True`):
                With `False`, the rendered prompts are returned and the recordings are not read.
            kwargs:
                Passed on to [`LlmAsrProcessor.__call__`].

        Returns:
            [`BatchFeature`] or `list[str]`: Inputs for `forward` or `generate`, or rendered prompts.

        Raises:
            `ValueError`: As [`LlmAsrProcessor.__call__`], or if a language is unknown.
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
            raise ValueError("`identify_language` asks for what `language` tells; pass one of them.")
        prompts = prepare_prompt_input(prompt, len(audio), input_name="prompt")
        told = [None if identify else name for name, identify in zip(languages, identifies, strict=True)]
        text = [self._render_request(*request) for request in zip(told, identifies, prompts, strict=True)]
        if not tokenize:
            return text
        if transcription is not None:
            named = [name if identify else None for name, identify in zip(languages, identifies, strict=True)]
            kwargs["named_languages"] = named
        return self(text=text, audio=audio, transcription=transcription, **kwargs)

    def tokenize_requests(
        self,
        text: list[str],
        transcription: str | list[str] | None = None,
        named_languages: list[str | None] | None = None,
    ) -> BatchFeature:
        """
        Tokenize rendered prompts, and the transcripts that answer them, without recordings.

        Args:
            text (`list[str]`): Rendered prompts.
            transcription (`str` or `list[str]`, *optional*): Transcripts, one for each prompt.
            named_languages (`list[str]`, *optional*): Code or English name of the language, or `None`, that each answer
                names before its transcript. Silence has no language: before an empty transcript none is named.

        Returns:
            [`BatchFeature`]: The part of [`LlmAsrProcessor.__call__`]'s output that comes from `text` and
            `transcription`.
        """
        rows = [self._tokenize(prompt) for prompt in text]
        if transcription is None:
            return BatchFeature(self._pad(rows))
        transcripts = _as_list(transcription)
        if len(transcripts) != len(text):
            raise ValueError(f"`transcription` has {len(transcripts)} entries for {len(text)} prompt(s).")
        for transcript in transcripts:
            if not isinstance(transcript, str):
                raise TypeError(f"`transcription` must be a string for each prompt, got {transcript!r}.")
        if any(self.audio_token in transcript for transcript in transcripts):
            raise ValueError(f"`transcription` must not contain the audio token {self.audio_token!r}.")
        # Tokenized apart from the prompt, so that a transcript has the same tokens whatever precedes it.
        targets = [self._tokenize(transcript) for transcript in transcripts]
        names = self._language_names(named_languages, len(text))
        answers = [
            [*(self._tokenize(name + LANGUAGE_END) if name and target else ()), *target, self.tokenizer.eos_token_id]
            for name, target in zip(names, targets, strict=True)
        ]
        inputs = self._pad([row + answer for row, answer in zip(rows, answers, strict=True)])
        labels = torch.full_like(inputs["input_ids"], -100)
        for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            start = int(inputs["attention_mask"][index].argmax()) + len(row)
            labels[index, start : start + len(answer)] = torch.tensor(answer)
        target_lengths = torch.tensor([len(target) for target in targets])
        return BatchFeature({**inputs, "labels": labels, "target_lengths": target_lengths})

    def decode(
        self,
        token_ids,
        skip_special_tokens: bool = True,
        return_language: bool = False,
        output_offsets: bool | str = False,
        alphas: torch.Tensor | np.ndarray | None = None,
        frame_period: float | None = None,
        **kwargs,
    ) -> str | dict:
        """
        Text of one row of generated tokens.

        Args:
            token_ids (`torch.LongTensor` or `list[int]`): Generated tokens.
            skip_special_tokens (`bool`, *optional*, defaults to `True`): Whether special tokens are left out.
            return_language (`bool`, *optional*, defaults to `False`):
                Whether to tell the language that the model has named.
            output_offsets (`bool` or `str`, *optional*, defaults to `False`):
                `"word"` to say when each word was spoken, `True` for segments between pauses. Needs a projector with CIF.
            alphas (`torch.Tensor` of shape `(num_frames,)`, *optional*):
                CIF weights of the recording, as `generate(..., return_dict_in_generate=True)` returns them.
            frame_period (`float`, *optional*):
                Seconds from one weight to the next, `model.config.projector_frame_period`.
            kwargs:
                Passed on to the tokenizer.

        Returns:
            `str`, without the language where the model has named one; or with `return_language` and `output_offsets` a
            dict of `"text"`, `"language"` (an English name or `None`) and `"offsets"`, `[{"text": str, "timestamp": (start,
            end)}, ...]` in seconds.

        Raises:
            `ValueError`: If `output_offsets` is asked for without `alphas` and `frame_period`.
        """
        language, transcript_ids = self._split_language(token_ids)
        text = self.tokenizer.decode(transcript_ids, skip_special_tokens=skip_special_tokens, **kwargs).strip()
        decoded = {"text": text, "language": language} if return_language else {"text": text}
        if not output_offsets:
            return decoded if return_language else text
        if output_offsets not in (True, "word"):
            raise ValueError(f"`output_offsets` must be 'word', True or False, got {output_offsets!r}.")
        if alphas is None or frame_period is None:
            raise ValueError(
                "`output_offsets` needs `alphas` and `frame_period`, which only projectors with CIF ('cif', 'moe_cif') have."
            )
        words, token_counts = self._split_words(transcript_ids)
        times = align_words(token_counts, np.asarray(alphas, dtype=np.float64), frame_period)
        offsets = [{"text": word, "timestamp": time} for word, time in zip(words, times, strict=True)]
        return {**decoded, "offsets": offsets if output_offsets == "word" else join_segments(offsets, SEGMENT_PAUSE)}

    def batch_decode(self, sequences, skip_special_tokens: bool = True, **kwargs) -> list[str]:
        """Text of each row of generated tokens; special tokens are left out unless asked for."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens, **kwargs) for row in sequences]

    def _split_language(self, token_ids) -> tuple[str | None, list[int]]:
        """The language that the model has named, if it has, and the tokens of the transcript."""
        ids = [int(token_id) for token_id in token_ids]
        for count in range(1, len(ids) + 1):
            text = self.tokenizer.decode(ids[:count], skip_special_tokens=True)
            name, end, _ = text.partition(LANGUAGE_END)
            if end:
                return (name, ids[count:]) if name in self.languages.values() else (None, ids)
            # What no language's name begins with is a transcript.
            if not any(language.startswith(text) for language in self.languages.values()):
                break
        return None, ids

    def _split_words(self, token_ids) -> tuple[list[str], list[int]]:
        """Words of generated tokens, split at white space, and the number of tokens of each."""
        special = set(self.tokenizer.all_special_ids)
        ids = [int(token_id) for token_id in token_ids if int(token_id) not in special]
        words: list[str] = []
        token_counts: list[int] = []
        num_spaces = 0
        for count in range(1, len(ids) + 1):
            # A token alone may be part of a character, so that words are counted in the text so far.
            text = self.tokenizer.decode(ids[:count], skip_special_tokens=True)
            is_space = text[-1:].isspace()
            if len(text.split()) > len(words):
                token_counts.append(0)
            words = text.split()
            if is_space or not words:
                # Spaces that are tokens of their own belong to the word they precede.
                num_spaces += 1
            else:
                token_counts[-1] += num_spaces + 1
                num_spaces = 0
        if token_counts:
            token_counts[-1] += num_spaces
        return words, token_counts

    def _language_names(self, language: str | list[str | None] | None, count: int) -> list[str | None]:
        """English names of codes or names, one for each of `count` recordings."""
        languages = list(language) if isinstance(language, (list, tuple)) else [language] * count
        if len(languages) != count:
            raise ValueError(f"`language` has {len(languages)} entries for {count} recording(s).")
        return [self.language_name(one) for one in languages]

    def language_name(self, language: str | None) -> str | None:
        """
        English name of a language, as it is written in prompts.

        Args:
            language (`str`, *optional*): A code (`"es"`, `"es-MX"`) or an English name, in upper or lower case.

        Raises:
            `ValueError`: If it is none of `languages`; the message lists them.
        """
        if language is None:
            return None
        if not isinstance(language, str):
            raise TypeError(f"`language` must be a string, a code or a name, got {language!r}.")
        code = language.lower()
        # Regions do not matter ("pt-BR"), and Whisper knows some languages by several names.
        code = code if code in self.languages else re.split("[-_]", code)[0]
        code = TO_LANGUAGE_CODE.get(language.lower(), code)
        names = {name.lower(): name for name in self.languages.values()}
        name = self.languages.get(code, names.get(language.lower()))
        if name is None:
            known = ", ".join(f"{code} ({name})" for code, name in sorted(self.languages.items()))
            raise ValueError(
                f"`language` {language!r} is not known; choose one of {known}, or None if it is not known."
            )
        return name

    def _render_request(self, language: str | None, identify_language: bool, prompt: str | None) -> str:
        if prompt is not None and self.audio_token in prompt:
            raise ValueError(f"`prompt` must not contain the audio token {self.audio_token!r}.")
        (content,), _ = render_jinja_template(
            conversations=[[]],
            chat_template=self.transcription_template,
            audio_token=self.audio_token,
            language=language,
            identify_language=identify_language,
            prompt=prompt,
        )
        (text,), _ = render_jinja_template(
            conversations=[[{"role": "user", "content": content}]],
            chat_template=self.chat_template,
            add_generation_prompt=True,
            **{"bos_token": "", "eos_token": "", **self.tokenizer.special_tokens_map},
        )
        return text

    def _tokenize(self, text: str) -> list[int]:
        # The chat template has written the special tokens that the model expects.
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _pad(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        return dict(self.tokenizer.pad({"input_ids": rows}, return_attention_mask=True, return_tensors="pt"))

    def _audio_inputs(
        self, audio: list[AudioSource], sampling_rate: int | None, audio_padding: str
    ) -> dict[str, torch.Tensor]:
        if audio_padding not in ("longest", "max_length"):
            raise ValueError(f"`audio_padding` must be 'longest' or 'max_length', got {audio_padding!r}.")
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"`sampling_rate` is {sampling_rate} and the speech encoder expects {self.sampling_rate}; pass a dict with "
                "`array` and `sampling_rate` to have a recording converted."
            )
        waveforms = []
        for index, source in enumerate(audio):
            try:
                waveforms.append(self.load_recording(source))
            except ValueError as error:
                raise ValueError(f"Recording {index}: {error}") from error
        if isinstance(self.feature_extractor, WhisperFeatureExtractor):
            input_features, mask = self._whisper_features(waveforms)
            if audio_padding == "longest":
                longest = int(mask.sum(-1).max())
                input_features, mask = input_features[..., :longest], mask[:, :longest]
        else:
            input_features, mask = self._other_features(waveforms)
        return {"input_features": input_features, "input_features_mask": mask}

    def _whisper_features(self, waveforms: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        # The features of the last frames depend on what follows them, so a recording is always given the same 30 s window,
        # alone or in a batch. Left to itself, the feature extractor would cut what its window does not hold.
        features = self.feature_extractor(
            waveforms,
            sampling_rate=self.sampling_rate,
            padding="max_length",
            max_length=max(self.feature_extractor.n_samples, *map(len, waveforms)),
            truncation=False,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return features["input_features"], features["attention_mask"].long()

    def _other_features(self, waveforms: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        # One by one, because a feature extractor may let a recording's last frames see the padding of a batch.
        rows = []
        for index, waveform in enumerate(waveforms):
            features = self.feature_extractor(
                waveform, sampling_rate=self.sampling_rate, return_attention_mask=True, return_tensors="pt"
            )
            row = features["input_features"][0][features["attention_mask"][0].bool()]
            if not len(row) or not row.isfinite().all():
                raise ValueError(
                    f"Recording {index}: `audio` has {len(waveform)} samples, less than one frame of the feature extractor; "
                    "remove it."
                )
            rows.append(row)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return pad_sequence(rows, batch_first=True), mask.long()


def _as_list(value) -> list:
    if isinstance(value, (list, tuple)) and not (value and isinstance(value[0], (int, float, np.number))):
        return list(value)
    return [value]


def _both(language: str | None, identifies: bool) -> bool:
    return language is not None and identifies


def _samples_per_frame(audio_config, feature_extractor) -> int:
    """Samples of audio to one frame that the speech encoder puts out."""
    if audio_config.model_type == "whisper":
        return 2 * feature_extractor.hop_length
    if audio_config.model_type == "parakeet_encoder":
        return feature_extractor.hop_length * audio_config.subsampling_factor
    if audio_config.model_type == "wav2vec2-bert":
        # Ten milliseconds a mel frame, and the feature extractor stacks `stride` of them.
        return feature_extractor.sampling_rate // 100 * feature_extractor.stride
    raise ValueError(
        f"`audio` has model_type {audio_config.model_type!r}; supported speech encoders are whisper, wav2vec2-bert and "
        "parakeet_encoder."
    )


__all__ = ["LANGUAGE_CODE_TO_NAME", "LlmAsrProcessor"]
