"""Writes the prompt of a published speech language model as a transcription template."""

import json
from collections.abc import Mapping
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from .rendering import render_in_time


# The places of request and context while the source's template is read. No template writes these by itself.
REQUEST_MARK, CONTEXT_MARK = "REQUESTPLACE", "CONTEXTPLACE"


def write_transcription_template(
    family, chat_template: str | None, special_tokens: Mapping[str, Any], audio_token: str, beginning: str = ""
) -> str:
    """
    Read the prompt of a source off its chat template. What the chat template writes on the day of conversion, such as a date, stays.

    Args:
        family ([`SpeechLlmFamily`]): Of the source.
        chat_template (`str`, *optional*): Jinja template of the source's conversations. Not needed if the family has a `prompt`.
        special_tokens (`Mapping[str, Any]`): Special tokens of the tokenizer, variables of `chat_template`.
        audio_token (`str`): Token that stands for a recording.
        beginning (`str`, *optional*): Token that the tokenizer puts before a text. Transformers does so unless the text begins with it.

    Returns:
        `str`: The whole prompt. `transcription_template` of a processor whose `chat_template` adds nothing.

    Raises:
        `ValueError`: If there is no chat template, or it does not write each of recording, request and context once.
    """
    if family.prompt is not None:
        return family.prompt
    if chat_template is None:
        raise ValueError(
            "`source` has no chat template, so its prompt is not known; choose a checkpoint that has one."
        )
    rendered = {}
    for name, context in (("with context", CONTEXT_MARK), ("without context", None)):
        conversation = family.write_conversation(REQUEST_MARK, context)

        def render(conversation=conversation) -> str:
            return render_jinja_template(
                conversations=[conversation],
                chat_template=chat_template,
                add_generation_prompt=True,
                **{"bos_token": "", "eos_token": "", **special_tokens},
            )[0][0]

        prompt = render_in_time(render, "The chat template of `source`")
        rendered[name] = prompt if prompt.startswith(beginning) else beginning + prompt
    places = {"with context": {CONTEXT_MARK: "{{ prompt }}"}, "without context": {}}
    if family.request:
        places["without context"][REQUEST_MARK] = family.request
    with_context, without_context = (
        _fill(rendered[name], {audio_token: "{{ audio_token }}", **marks}) for name, marks in places.items()
    )
    return f"{{% if prompt %}}{with_context}{{% else %}}{without_context}{{% endif %}}{family.answer_start}"


def _fill(rendered: str, places: Mapping[str, str]) -> str:
    """Write a rendered prompt as a Jinja template, with templates in the places of marks."""
    for mark in places:
        if rendered.count(mark) != 1:
            raise ValueError(
                f"The chat template of `source` writes {mark!r} {rendered.count(mark)} times, where one is expected:\n{rendered}\n"
                "It is not the template of this family; correct it."
            )
    pieces = [rendered]
    for mark, template in places.items():
        pieces = [part for piece in pieces for part in _split(piece, mark, template)]
    return "".join(piece if piece in places.values() else _quote(piece) for piece in pieces)


def _split(piece: str, mark: str, template: str) -> list[str]:
    before, found, after = piece.partition(mark)
    return [before, template, after] if found else [piece]


def _quote(text: str) -> str:
    """Jinja reads JSON's strings. Outside of expressions, it would drop line breaks."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""


__all__ = ["write_transcription_template"]
