"""Events of OpenAI's realtime API for transcription."""

import base64
import binascii
import json
import secrets
from typing import Any

import numpy as np

from ..live.stream import read_pcm
from .realtime_settings import EventError, check_fields


# Fields of the client's events, beside `type` and `event_id`.
CLIENT_EVENTS: dict[str, tuple[str, ...]] = {
    "session.update": ("session",),
    "transcription_session.update": ("session",),
    "input_audio_buffer.append": ("audio",),
    "input_audio_buffer.commit": (),
    "input_audio_buffer.clear": (),
}

# OpenAI's limit of the audio in an event.
MAX_AUDIO_BYTES = 15 * 2**20

TRANSCRIPTION = "conversation.item.input_audio_transcription"


def new_id(kind: str) -> str:
    """A new id, such as `item_0123456789abcdef`."""
    return f"{kind}_{secrets.token_hex(8)}"


def make_event(kind: str, **fields: Any) -> dict:
    """An event of the server."""
    return {"type": kind, "event_id": new_id("event"), **fields}


def make_error(message: str, param: str | None, code: str | None, cause: str | None = None, is_server=False) -> dict:
    """An `error` event. `cause` is the `event_id` of the client's event that is refused."""
    kind = "server_error" if is_server else "invalid_request_error"
    return make_event(
        "error", error={"type": kind, "code": code, "message": message, "param": param, "event_id": cause}
    )


def make_item(item_id: str, transcript: str | None = None) -> dict:
    """A conversation's item for committed audio."""
    content = {"type": "input_audio", "transcript": transcript}
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [content],
    }


def read_event(text: str) -> dict:
    """
    Read an event of the client.

    Raises:
        [`EventError`]: If it is not JSON, its type is unknown, or its fields are.
    """
    try:
        event = json.loads(text)
    except ValueError as error:
        raise EventError(f"The event is not JSON: {error}.", code="invalid_json") from error
    kind = event.get("type") if isinstance(event, dict) else None
    if not isinstance(kind, str) or kind not in CLIENT_EVENTS:
        raise EventError(
            f"`type` must be one of {', '.join(CLIENT_EVENTS)}, got {kind!r}.", "type", "unknown_event_type"
        )
    if not isinstance(event.get("event_id", ""), str):
        raise EventError("`event_id` must be a string.", "event_id", "invalid_type")
    fields = CLIENT_EVENTS[kind]
    check_fields(event, "", ("type", "event_id", *fields))
    for name in fields:
        if name not in event:
            raise EventError(f"`{name}` is missing.", name, "missing_required_parameter")
    return event


def event_id_of(text: str) -> str | None:
    """The `event_id` of an event that is refused, if it can be read."""
    try:
        event = json.loads(text)
    except ValueError:
        return None
    found = event.get("event_id") if isinstance(event, dict) else None
    return found if isinstance(found, str) else None


def read_audio(audio: Any) -> np.ndarray:
    """
    Samples of the `audio` of `input_audio_buffer.append`: shape `(num_samples,)`, int16.

    Raises:
        [`EventError`]: If it is not the base64 of whole samples.
    """
    if not isinstance(audio, str):
        raise EventError("`audio` must be a string.", "audio", "invalid_type")
    if len(audio) > MAX_AUDIO_BYTES * 4 / 3 + 4:
        raise EventError(f"`audio` has more than {MAX_AUDIO_BYTES >> 20} MiB; send it in parts.", "audio", "too_large")
    try:
        return read_pcm(base64.b64decode(audio, validate=True))
    except binascii.Error as error:
        raise EventError(f"`audio` is not base64: {error}.", "audio", "invalid_base64") from error
    except ValueError as error:
        raise EventError(f"`audio`: {error}", "audio", "invalid_audio") from error


__all__ = [
    "TRANSCRIPTION",
    "event_id_of",
    "make_error",
    "make_event",
    "make_item",
    "new_id",
    "read_audio",
    "read_event",
]
