"""Checks of `generation_config.json`. Without them, Transformers replaces a damaged file with default settings."""

import json
import math
import os

from transformers.utils import GENERATION_CONFIG_NAME

from .checkpoint_safety import check_json_files, find_file, naming_file


# Tokens that a second of a recording may have: more than is spoken in any script, and less than would empty a transcript.
TOKENS_PER_SECOND_RANGE = (0.1, 1000.0)

WHOLE_NUMBERS = (
    *("max_new_tokens", "max_length", "min_new_tokens", "min_length", "num_beams", "num_return_sequences", "top_k"),
    "no_repeat_ngram_size",
)
NUMBERS = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty")
TOKENS = ("bos_token_id", "pad_token_id")
LISTS_OF_TOKENS = ("eos_token_id", "transcription_prompt_ids", "suppress_tokens")


def check_tokens_per_second(value: float | None) -> None:
    """Raise a `ValueError` if `max_new_tokens_per_second` is not plausible. `None` means no limit."""
    low, high = TOKENS_PER_SECOND_RANGE
    if value is not None and (not _is_number(value) or not low <= value <= high):
        raise ValueError(
            f"`max_new_tokens_per_second` must be from {low:g} to {high:g}, or None for no limit, got {value!r}; correct it in "
            f"the call or in {GENERATION_CONFIG_NAME} (20 is usual)."
        )


def check_generation_settings(name_or_path: str | os.PathLike, vocab_size: int, **hub_kwargs) -> None:
    """
    Check the `generation_config.json` of a checkpoint.

    Args:
        name_or_path (`str` or `os.PathLike`): Local folder or Hub id.
        vocab_size (`int`): Tokens that the model knows.
        hub_kwargs: `revision`, `token`, ... as in `from_pretrained`.

    Raises:
        `OSError`: If it is not there.
        `ValueError`: If it is damaged, or holds what cannot be; the message names the field.
    """
    path = find_file(name_or_path, GENERATION_CONFIG_NAME, **hub_kwargs)
    if path is None:
        raise OSError(
            f"{str(name_or_path)!r} has no {GENERATION_CONFIG_NAME}, which says how the model transcribes; fetch the checkpoint "
            "again, or pass `generation_config`."
        )
    check_json_files(name_or_path, (GENERATION_CONFIG_NAME,), **hub_kwargs)
    with open(path, encoding="utf-8") as file:
        settings = json.load(file)
    for names, is_valid, what in (
        (WHOLE_NUMBERS, _is_whole, "a whole number, not negative"),
        (NUMBERS, _is_number, "a finite number"),
        (TOKENS, lambda value: _is_whole(value) and value < vocab_size, f"a token from 0 to {vocab_size - 1}"),
        (LISTS_OF_TOKENS, lambda value: _are_tokens(value, vocab_size), f"tokens from 0 to {vocab_size - 1}"),
    ):
        for name in names:
            if settings.get(name) is not None and not is_valid(settings[name]):
                raise ValueError(
                    f"{GENERATION_CONFIG_NAME} of {str(name_or_path)!r} is not valid: `{name}` must be {what}, got "
                    f"{settings[name]!r:.60}."
                )
    with naming_file(GENERATION_CONFIG_NAME, name_or_path):
        check_tokens_per_second(settings.get("max_new_tokens_per_second"))


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_tokens(value, vocab_size: int) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(_is_whole(one) and one < vocab_size for one in values)


__all__ = ["check_generation_settings", "check_tokens_per_second"]
