"""A transcript in the formats of OpenAI's API."""

import json

from starlette.responses import JSONResponse, PlainTextResponse, Response

from ..modeling.decoding_guards import compression_ratio
from ..subtitles import to_srt, to_text, to_vtt
from .parameters import TranscriptionParameters
from .transcriber import Transcriber, Transcript


MEDIA_TYPES = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}
WRITERS = {"text": to_text, "srt": to_srt, "vtt": to_vtt}


def make_response(
    transcriber: Transcriber, transcript: Transcript, parameters: TranscriptionParameters, temperature: float
) -> Response:
    """
    The HTTP response for a finished transcript.

    Args:
        transcriber ([`Transcriber`]): The transcriber that produced `transcript`.
        transcript ([`Transcript`])
        parameters ([`TranscriptionParameters`]): Parameters of the request.
        temperature (`float`): Sampling temperature of the transcript.
    """
    task = "transcribe" if parameters.target_language is None else "translate"
    result = transcriber.join(transcript, parameters.language, return_timestamps=True, task=task)
    if parameters.response_format in WRITERS:
        media_type = MEDIA_TYPES[parameters.response_format]
        return PlainTextResponse(WRITERS[parameters.response_format](result), media_type=media_type)
    usage = {"type": "duration", "seconds": round(transcript.duration, 3)}
    if parameters.response_format == "json":
        return JSONResponse({"text": result["text"], "usage": usage})
    body = {
        "task": task,
        # For a translation, OpenAI's API names the language of the text.
        "language": (parameters.target_language or result["language"] or "unknown").lower(),
        "duration": round(transcript.duration, 3),
        "text": result["text"],
    }
    if "segment" in parameters.granularities:
        body["segments"] = [
            _segment(number, chunk, transcriber, temperature) for number, chunk in enumerate(result["chunks"])
        ]
    if parameters.needs_words:
        words = transcriber.join(transcript, parameters.language, return_timestamps="word")["chunks"]
        body["words"] = [{"word": word["text"], **_times(word)} for word in words]
    return JSONResponse({**body, "usage": usage})


def _times(chunk: dict) -> dict[str, float]:
    start, end = chunk["timestamp"]
    return {"start": round(start, 3), "end": round(end, 3)}


def _segment(number: int, chunk: dict, transcriber: Transcriber, temperature: float) -> dict:
    tokenizer = transcriber.processor.tokenizer
    ids = tokenizer(chunk["text"], add_special_tokens=False)["input_ids"]
    return {
        "id": number,
        "seek": 0,
        **_times(chunk),
        "text": chunk["text"],
        "tokens": ids,
        "temperature": temperature,
        "avg_logprob": chunk["avg_logprob"],
        "compression_ratio": compression_ratio(ids, len(tokenizer)),
        "no_speech_prob": chunk["no_speech_prob"],
    }


def delta_event(text: str) -> bytes:
    """A server-sent event that adds `text` to the transcript."""
    return _event({"type": "transcript.text.delta", "delta": text})


def done_event(text: str, transcript: Transcript) -> bytes:
    """The last server-sent event of a stream, with the complete text."""
    read, written = transcript.num_prompt_tokens, transcript.num_new_tokens
    usage = {"type": "tokens", "input_tokens": read, "output_tokens": written, "total_tokens": read + written}
    return _event({"type": "transcript.text.done", "text": text, "usage": usage})


def error_event(body: dict) -> bytes:
    """The last server-sent event of a stream that has failed."""
    return _event(body)


def _event(data: dict) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
