"""Reads and checks the form fields of a transcription request."""

from collections import defaultdict
from dataclasses import dataclass

from ..processing.processing_llm_asr import LlmAsrProcessor
from .errors import ApiError


RESPONSE_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
GRANULARITIES = ("segment", "word")
FIELDS = (
    *("model", "language", "prompt", "keywords", "temperature", "response_format", "stream"),
    *("timestamp_granularities", "chunking_strategy"),
)
# Fields that may be given several times.
REPEATABLE = ("keywords", "timestamp_granularities")


@dataclass
class TranscriptionParameters:
    """
    Attributes:
        language (`str`, *optional*): English name of the language.
        prompt (`str`, *optional*): Context for the language model.
        keywords (`list[str]`, *optional*): Words that may be spoken.
        target_language (`str`, *optional*): English name of the language to translate into. `None` means transcription.
        temperature (`float`, *optional*): Sampling temperature. `None` means the server's default.
        response_format (`str`): One of `RESPONSE_FORMATS`.
        granularities (`tuple[str, ...]`): Units that get times in `verbose_json`, each one of `GRANULARITIES`.
        stream (`bool`): Whether to send the text while it is generated.
    """

    language: str | None
    prompt: str | None
    keywords: list[str] | None
    target_language: str | None
    temperature: float | None
    response_format: str
    granularities: tuple[str, ...]
    stream: bool

    @property
    def needs_words(self) -> bool:
        return "word" in self.granularities


def read_parameters(
    fields: list[tuple[str, str]],
    model_names: tuple[str, ...],
    processor: LlmAsrProcessor,
    has_word_times: bool,
    is_translation: bool = False,
) -> TranscriptionParameters:
    """
    Read the form fields of a request.

    Args:
        fields (`list[tuple[str, str]]`): Names and values of the form fields.
        model_names (`tuple[str, ...]`): Names of the model.
        processor ([`LlmAsrProcessor`]): The model's processor.
        has_word_times (`bool`): Whether the model's projector gives the times of words.
        is_translation (`bool`, *optional*, defaults to `False`): Whether the recording is to be translated.

    Raises:
        `ApiError`: If a field is unknown or its value is invalid.
    """
    known = (*FIELDS, "target_language") if is_translation else FIELDS
    values: dict[str, list[str]] = defaultdict(list)
    for name, value in fields:
        values[name.removesuffix("[]")].append(value)
    for name, given in values.items():
        if name not in known:
            raise ApiError(400, f"`{name}` is not supported; supported are {', '.join(known)}.", name)
        if len(given) > 1 and name not in REPEATABLE:
            raise ApiError(400, f"`{name}` is given {len(given)} times.", name)
    single = {name: given[0] for name, given in values.items() if given[0] != ""}

    if single.get("model", model_names[0]) not in model_names:
        raise ApiError(
            404,
            f"The model {single['model']!r} does not exist; this server has {', '.join(model_names)}.",
            "model",
            "model_not_found",
        )
    if single.get("chunking_strategy", "auto") != "auto":
        raise ApiError(400, "`chunking_strategy` can only be 'auto'.", "chunking_strategy")
    response_format = single.get("response_format", "json")
    if response_format not in RESPONSE_FORMATS:
        raise _not_one_of("response_format", response_format, RESPONSE_FORMATS)
    stream = single.get("stream", "false").lower()
    if stream not in ("true", "false"):
        raise _not_one_of("stream", stream, ("true", "false"))
    if stream == "true" and response_format not in ("json", "text"):
        raise ApiError(
            400, f"`stream` works with `response_format` 'json' or 'text', got {response_format!r}.", "stream"
        )
    return TranscriptionParameters(
        language=_language(single, processor),
        prompt=_prompt(single, processor),
        keywords=_keywords(values["keywords"], processor),
        target_language=_target_language(single, processor) if is_translation else None,
        temperature=_temperature(single),
        response_format=response_format,
        granularities=_granularities(
            values["timestamp_granularities"], response_format, has_word_times, is_translation
        ),
        stream=stream == "true",
    )


def _not_one_of(name: str, value: str, choices: tuple[str, ...]) -> ApiError:
    return ApiError(400, f"`{name}` must be one of {', '.join(choices)}, got {value!r}.", name)


def _language(single: dict[str, str], processor: LlmAsrProcessor) -> str | None:
    try:
        return processor.language_name(single.get("language"))
    except ValueError as error:
        raise ApiError(400, str(error), "language", "unsupported_language") from error


def _target_language(single: dict[str, str], processor: LlmAsrProcessor) -> str:
    # As in OpenAI's API, the default is English.
    target = single.get("target_language", "English")
    try:
        processor.apply_transcription_request("", task="translate", target_language=target, tokenize=False)
        name = processor.language_name(target)
    except ValueError as error:
        raise ApiError(400, str(error), "target_language") from error
    assert name is not None
    return name


def _prompt(single: dict[str, str], processor: LlmAsrProcessor) -> str | None:
    prompt = single.get("prompt")
    try:
        # Rendering the request checks the prompt without reading a recording.
        processor.apply_transcription_request("", prompt=prompt, tokenize=False)
    except ValueError as error:
        raise ApiError(400, str(error), "prompt") from error
    return prompt


def _keywords(given: list[str], processor: LlmAsrProcessor) -> list[str] | None:
    keywords = [keyword for keyword in given if keyword.strip()] or None
    try:
        processor.apply_transcription_request("", keywords=keywords, tokenize=False)
    except ValueError as error:
        raise ApiError(400, str(error), "keywords") from error
    return keywords


def _temperature(single: dict[str, str]) -> float | None:
    if "temperature" not in single:
        return None
    try:
        temperature = float(single["temperature"])
    except ValueError:
        temperature = float("nan")
    if not 0 <= temperature <= 1:
        raise ApiError(
            400, f"`temperature` must be a number from 0 to 1, got {single['temperature']!r}.", "temperature"
        )
    return temperature


def _granularities(
    given: list[str], response_format: str, has_word_times: bool, is_translation: bool
) -> tuple[str, ...]:
    for granularity in given:
        if granularity not in GRANULARITIES:
            raise _not_one_of("timestamp_granularities", granularity, GRANULARITIES)
    if given and response_format != "verbose_json":
        raise ApiError(
            400, "`timestamp_granularities` needs `response_format` 'verbose_json'.", "timestamp_granularities"
        )
    if "word" in given and is_translation:
        raise ApiError(
            400,
            "The words of a translation are not spoken, so they have no times; request 'segment'.",
            "timestamp_granularities",
        )
    if "word" in given and not has_word_times:
        raise ApiError(
            400,
            "This model cannot give the times of words, because its projector has no CIF; request 'segment'.",
            "timestamp_granularities",
        )
    return tuple(dict.fromkeys(given)) or ("segment",)
