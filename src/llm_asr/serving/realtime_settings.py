"""Settings of a realtime transcription session, in OpenAI's wire format."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..live.transcript import LiveSettings


# Seconds between transcripts of unfinished speech, by OpenAI's `delay`.
DELAYS = {"minimal": 0.4, "low": 0.7, "medium": 1.0, "high": 2.0, "xhigh": 4.0}

# Sampling rates of PCM. OpenAI's own is the default.
DEFAULT_RATE = 24000
RATES = (8000, 48000)

# Bounds of settings in milliseconds, so that they fit into a segment.
MAX_PADDING_MS = 2000
SILENCE_MS = (100, 5000)


class EventError(ValueError):
    """
    A client's event is refused. The session goes on.

    Args:
        message (`str`): Explanation for the author of the client.
        param (`str`, *optional*): Field that caused the error.
        code (`str`, *optional*): Machine-readable name of the error.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = "invalid_value"):
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


@dataclass(frozen=True)
class ServerVad:
    """
    Settings of the voice activity detection.

    Args:
        threshold (`float`): From 0 to 1; with a higher one, speech must be louder or clearer.
        prefix_padding_ms (`int`): Audio before speech that belongs to its segment.
        silence_duration_ms (`int`): Silence that ends a segment.
    """

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500


@dataclass(frozen=True)
class RealtimeSettings:
    """
    Settings of a session.

    Args:
        model (`str`): Name of the model.
        language (`str`, *optional*): Code or English name. By default the model identifies the language of each segment.
        prompt (`str`, *optional*): Context for the language model.
        keywords (`list[str]`, *optional*): Words that may be spoken. OpenAI's API does not have this field.
        delay (`str`): One of `DELAYS`.
        rate (`int`): Samples per second of the audio.
        turn_detection ([`ServerVad`], *optional*): `None` if only the client commits audio.
    """

    model: str
    language: str | None = None
    prompt: str | None = None
    keywords: list[str] | None = None
    delay: str = "medium"
    rate: int = DEFAULT_RATE
    turn_detection: ServerVad | None = ServerVad()

    def live_settings(self, vad: str) -> LiveSettings:
        """The options of the transcript. `vad` is the server's voice activity detection."""
        detection = self.turn_detection or ServerVad()
        return LiveSettings(
            language=self.language,
            prompt=self.prompt,
            keywords=self.keywords,
            latency_s=DELAYS[self.delay],
            min_silence_s=detection.silence_duration_ms / 1000,
            vad=vad,
            lead_s=detection.prefix_padding_ms / 1000,
            threshold=detection.threshold,
        )

    def as_session(self) -> dict:
        """The `session` of `session.created` and `session.updated`."""
        return {
            "type": "transcription",
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": self.rate},
                    "noise_reduction": None,
                    "transcription": {**self._transcription(), "delay": self.delay},
                    "turn_detection": self._turn_detection(),
                }
            },
            "include": [],
        }

    def as_beta_session(self) -> dict:
        """The `session` of `transcription_session.created` and `transcription_session.updated`."""
        return {
            "input_audio_format": "pcm16",
            "input_audio_noise_reduction": None,
            "input_audio_transcription": self._transcription(),
            "turn_detection": self._turn_detection(),
            "include": [],
        }

    def _transcription(self) -> dict:
        fields = {"model": self.model, "language": self.language, "prompt": self.prompt}
        return fields if self.keywords is None else {**fields, "keywords": self.keywords}

    def _turn_detection(self) -> dict | None:
        if self.turn_detection is None:
            return None
        return {"type": "server_vad", **vars(self.turn_detection)}


def read_session(session: Any, settings: RealtimeSettings, model_names: tuple[str, ...]) -> RealtimeSettings:
    """
    Apply the `session` of `session.update` to settings. Fields that are absent keep their values.

    Raises:
        [`EventError`]: If a field is unknown or has an invalid value.
    """
    fields = check_fields(session, "session", ("type", "audio", "include"))
    if fields.get("type") != "transcription":
        raise EventError("`session.type` must be 'transcription'.", "session.type")
    _check_include(fields)
    audio = check_fields(fields.get("audio", {}), "session.audio", ("input",))
    path = "session.audio.input"
    given = check_fields(
        audio.get("input", {}), path, ("format", "noise_reduction", "transcription", "turn_detection")
    )
    if "format" in given:
        settings = replace(settings, rate=_read_format(given["format"], f"{path}.format"))
    return _read_common(
        given, settings, model_names, path, {name: name for name in ("noise_reduction", "transcription")}
    )


def read_beta_session(session: Any, settings: RealtimeSettings, model_names: tuple[str, ...]) -> RealtimeSettings:
    """Apply the `session` of `transcription_session.update` to settings; see [`read_session`]."""
    names = {name: f"input_audio_{name}" for name in ("noise_reduction", "transcription")}
    given = check_fields(
        session, "session", (*names.values(), "input_audio_format", "turn_detection", "include", "modalities")
    )
    _check_include(given)
    if given.get("modalities", ["text"]) != ["text"]:
        raise EventError("`session.modalities` can only be ['text'].", "session.modalities")
    if given.get("input_audio_format", "pcm16") != "pcm16":
        raise EventError("`session.input_audio_format` can only be 'pcm16'.", "session.input_audio_format")
    return _read_common(given, settings, model_names, "session", names)


def check_fields(value: Any, path: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    """
    Return `value`, if it is an object with `known` fields alone.

    Raises:
        [`EventError`]: Otherwise.
    """
    if not isinstance(value, dict):
        raise EventError(f"`{path}` must be an object.", path, "invalid_type")
    for name in value:
        if name not in known:
            where = f"{path}.{name}" if path else name
            raise EventError(
                f"`{where}` is not supported; supported are {', '.join(known)}.", where, "unknown_parameter"
            )
    return value


def _check_include(fields: Mapping[str, Any]) -> None:
    if fields.get("include") not in (None, []):
        raise EventError("`session.include` must be empty: log-probabilities are not supported.", "session.include")


def _read_common(
    given: Mapping[str, Any],
    settings: RealtimeSettings,
    model_names: tuple[str, ...],
    path: str,
    names: dict[str, str],
) -> RealtimeSettings:
    """Read the fields that both forms of a session have. `names` are their names in this form."""
    if given.get(names["noise_reduction"]) is not None:
        where = f"{path}.{names['noise_reduction']}"
        raise EventError(f"`{where}` must be null: noise is not reduced.", where)
    if names["transcription"] in given:
        where = f"{path}.{names['transcription']}"
        settings = _read_transcription(given[names["transcription"]], settings, model_names, where)
    if "turn_detection" in given:
        detection = _read_turn_detection(given["turn_detection"], settings.turn_detection, f"{path}.turn_detection")
        settings = replace(settings, turn_detection=detection)
    return settings


def _read_format(value: Any, path: str) -> int:
    given = check_fields(value, path, ("type", "rate"))
    if given.get("type") != "audio/pcm":
        raise EventError(f"`{path}.type` can only be 'audio/pcm'.", f"{path}.type")
    rate = _number(given.get("rate", DEFAULT_RATE), f"{path}.rate", *RATES)
    return int(rate)


def _read_transcription(
    value: Any, settings: RealtimeSettings, model_names: tuple[str, ...], path: str
) -> RealtimeSettings:
    given = dict(check_fields(value, path, ("model", "language", "prompt", "keywords", "delay")))
    keywords = given.pop("keywords", settings.keywords)
    if keywords is not None and (
        not isinstance(keywords, list) or not all(isinstance(word, str) and word.strip() for word in keywords)
    ):
        raise EventError(f"`{path}.keywords` must be a list of words.", f"{path}.keywords", "invalid_type")
    for name in given:
        if not isinstance(given[name], str) and not (name in ("language", "prompt") and given[name] is None):
            raise EventError(f"`{path}.{name}` must be a string.", f"{path}.{name}", "invalid_type")
    if given.get("model", settings.model) not in model_names:
        raise EventError(
            f"The model {given['model']!r} does not exist; this server has {', '.join(model_names)}.",
            f"{path}.model",
            "model_not_found",
        )
    if given.get("delay", settings.delay) not in DELAYS:
        raise EventError(f"`{path}.delay` must be one of {', '.join(DELAYS)}.", f"{path}.delay")
    return replace(settings, keywords=keywords, **given)


def _read_turn_detection(value: Any, settings: ServerVad | None, path: str) -> ServerVad | None:
    if value is None:
        return None
    # These fields are about responses, which there are not.
    absent = {"create_response": False, "interrupt_response": False, "idle_timeout_ms": None}
    given = dict(check_fields(value, path, ("type", "threshold", "prefix_padding_ms", "silence_duration_ms", *absent)))
    if given.pop("type", None) != "server_vad":
        raise EventError(f"`{path}.type` can only be 'server_vad'.", f"{path}.type")
    for name, only in absent.items():
        if given.pop(name, only) is not only:
            raise EventError(f"`{path}.{name}` must be absent: a transcription has no responses.", f"{path}.{name}")
    bounds = {
        "threshold": (0.0, 1.0),
        "prefix_padding_ms": (0, MAX_PADDING_MS),
        "silence_duration_ms": SILENCE_MS,
    }
    numbers: dict[str, Any] = {
        name: _number(number, f"{path}.{name}", *bounds[name]) for name, number in given.items()
    }
    return replace(settings or ServerVad(), **numbers)


def _number(value: Any, path: str, low: float, high: float) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high or (isinstance(low, int) and value != int(value)):
        kind = "a whole number" if isinstance(low, int) else "a number"
        raise EventError(f"`{path}` must be {kind} from {low} to {high}, got {value!r}.", path)
    return value


__all__ = ["EventError", "RealtimeSettings", "ServerVad", "check_fields", "read_beta_session", "read_session"]
