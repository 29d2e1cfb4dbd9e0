"""Checks what is to be done with a recording: transcribe it, or translate it into another language."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.processing_utils import prepare_prompt_input

from .languages import LANGUAGE_SEPARATOR, UNKNOWN


TASKS = ("transcribe", "translate")


def spread_tasks(
    task: str | Sequence[str], target_language: str | Sequence[str | None] | None, count: int
) -> list[str | None]:
    """
    Give each recording its target language.

    Args:
        task (`str` or `list[str]`): One of `TASKS`, for all recordings or for each.
        target_language (`str` or `list[str]`, *optional*): Language of the translation, for all recordings or for each.
        count (`int`): Number of recordings.

    Returns:
        `list[str | None]`: Target language of each translation, and `None` for each transcription.

    Raises:
        `ValueError`: If a task is unknown, a translation has no target language, or a transcription has one.
    """
    tasks = prepare_prompt_input(task, count, input_name="task")  # type: ignore[arg-type]
    unknown = next((one for one in tasks if one not in TASKS), None)
    if unknown is not None or None in tasks:
        raise ValueError(f"`task` must be 'transcribe' or 'translate', got {unknown!r}.")
    # The annotation of the function leaves out that a row may be `None`.
    targets = prepare_prompt_input(target_language, count, input_name="target_language")  # type: ignore[arg-type]
    for one, target in zip(tasks, targets, strict=True):
        if target and LANGUAGE_SEPARATOR.strip() in target:
            raise ValueError(f"`target_language` must be one language, got {target!r}.")
        if one == "translate" and (target is None or target.strip().lower() in UNKNOWN):
            raise ValueError(
                "`task='translate'` needs `target_language`, a code or an English name such as 'English'."
            )
        if one == "transcribe" and target:
            raise ValueError(
                f"`target_language` {target!r} is for translations; pass `task='translate'`, or `language` for the language "
                "that is spoken."
            )
    return targets


def check_translations(translation: str | Sequence[str | None], targets: Sequence[str | None]) -> list[str | None]:
    """
    Return the translation of each recording.

    Args:
        translation (`str` or `list[str]`): Translations for training.
        targets (`list[str]`): Target languages, `None` for transcriptions.

    Raises:
        `ValueError`: If a translation lacks its text, or a transcription has one.
    """
    rows: list[str | None] = [translation] if isinstance(translation, str) else list(translation)
    if len(rows) != len(targets):
        raise ValueError(f"`translation` has {len(rows)} entries for {len(targets)} recording(s).")
    for row, target in zip(rows, targets, strict=True):
        if (row is None) != (target is None) or not (row is None or isinstance(row, str)):
            raise ValueError(
                "`translation` must be a string for each recording whose `task` is 'translate', and None for each other, got "
                f"{row!r:.60}."
            )
    return rows


def check_translation_options(return_timestamps: bool | str | None, options: Mapping[str, Any]) -> None:
    """
    Raise a `ValueError` if an option needs a transcript.

    Args:
        return_timestamps (`bool` or `str`, *optional*): Times that the caller wants.
        options (`Mapping[str, Any]`): Options of `generate`.
    """
    if return_timestamps == "word":
        raise ValueError(
            "`return_timestamps='word'` is not possible for translations: CIF knows when the words of the transcript were "
            "spoken, and those of a translation were not. Use True for the times of segments."
        )
    for name in ("use_draft", "draft_only"):
        if options.get(name):
            raise ValueError(f"`{name}` is not possible for translations: drafts are of the transcript. Leave it out.")


__all__ = ["TASKS", "check_translation_options", "check_translations", "spread_tasks"]
