"""Renders a checkpoint's Jinja templates, which are programs, within limited time."""

import ctypes
import threading
from collections.abc import Callable, Mapping
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template


# Longest time for rendering. A usual template needs less than a thousandth of it.
TIMEOUT_S = 10.0

# Longest rendered prompt.
MAX_CHARACTERS = 1_000_000


class _TimeIsUp(BaseException):
    """Ends a thread. It is not an `Exception`, because a template could catch that."""


def render_request(
    transcription_template: str, chat_template: str, special_tokens: Mapping[str, Any], **variables: Any
) -> str:
    """
    Render a transcription request as the first message of a conversation.

    Args:
        transcription_template (`str`): Jinja template of the request.
        chat_template (`str`): Jinja template of the conversation.
        special_tokens (`Mapping[str, Any]`): Special tokens of the tokenizer, variables of `chat_template`.
        variables: Variables of `transcription_template`.

    Returns:
        `str`: The prompt of the language model.

    Raises:
        `ValueError`: See [`render_in_time`].
    """

    def render() -> str:
        content = render_jinja_template(conversations=[[]], chat_template=transcription_template, **variables)[0][0]
        return render_jinja_template(
            conversations=[[{"role": "user", "content": content}]],
            chat_template=chat_template,
            add_generation_prompt=True,
            **{"bos_token": "", "eos_token": "", **special_tokens},
        )[0][0]

    return render_in_time(render, "`transcription_template` with `chat_template`")


def render_in_time(render: Callable[[], str], name: str) -> str:
    """
    Render a template in a thread of its own, and stop the thread after 10 s. A template may contain endless loops.

    Args:
        render (`Callable[[], str]`): Function that renders the template.
        name (`str`): Name of the template in errors.

    Returns:
        `str`: The rendered template.

    Raises:
        `ValueError`: If rendering fails, takes more than 10 s, or gives more than a million characters.
    """
    results: list[str] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(render())
        except _TimeIsUp:
            pass
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    if thread.ident is not None and thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_TimeIsUp))
        raise ValueError(f"{name} takes more than {TIMEOUT_S:g} s; correct its loops.")
    if errors:
        # A template is a program and may raise any error.
        raise ValueError(
            f"{name} cannot be rendered ({type(errors[0]).__name__}: {errors[0]}); correct it."
        ) from errors[0]
    if len(results[0]) > MAX_CHARACTERS:
        raise ValueError(f"{name} renders {len(results[0])} characters, more than {MAX_CHARACTERS}; correct it.")
    return results[0]


__all__ = ["render_in_time", "render_request"]
