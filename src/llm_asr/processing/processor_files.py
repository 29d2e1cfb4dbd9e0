"""Checks a processor's files. Errors name the wrong file and field, which the errors of other libraries do not."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

from tokenizers import Tokenizer
from transformers import AutoTokenizer, WhisperFeatureExtractor
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import PROCESSOR_NAME, cached_file

from .features import AUDIO_PADDINGS, FEATURE_LAYOUTS
from .languages import LANGUAGE_PLACE


TOKENIZER_FILE = "tokenizer.json"
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
# Fields of feature extractors. A feature extractor need not have all of them.
WHOLE_NUMBERS = ("sampling_rate", "feature_size", "hop_length", "n_fft", "chunk_length", "stride", "win_length")
NUMBERS = ("dither", "padding_value", "preemphasis")


@contextmanager
def naming_processor_file(name_or_path: str | os.PathLike, **kwargs) -> Iterator[None]:
    """
    Turn errors of loading a processor into errors that name the wrong file.

    Args:
        name_or_path (`str` or `os.PathLike`): Local folder or Hub id.
        kwargs: Arguments of `from_pretrained`.

    Raises:
        `ValueError`: Instead of any error except an `OSError`, such as the error of a missing file.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        hub_kwargs = {name: value for name, value in kwargs.items() if name in HUB_OPTIONS}
        name = _find_culprit(name_or_path, hub_kwargs)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        raise ValueError(f"{name} of {str(name_or_path)!r} is not valid: {reason}") from error


def check_processor_settings(processor) -> None:
    """
    Raise a `ValueError` if a field of a processor has a wrong type or value.

    Args:
        processor ([`LlmAsrProcessor`]): The processor, with all fields set.
    """
    for name in ("audio_token", "transcription_template"):
        value = getattr(processor, name)
        _require(isinstance(value, str) and bool(value), name, "a string", value)
    layout = processor.feature_layout
    is_layout = isinstance(layout, str) and layout in FEATURE_LAYOUTS
    _require(is_layout, "feature_layout", f"one of {list(FEATURE_LAYOUTS)}", layout)
    for name in ("samples_per_feature", "samples_per_frame", "min_audio_samples"):
        samples = getattr(processor, name)
        _require(_is_whole(samples), name, "a positive whole number", samples)
    longest = processor.max_audio_samples
    _require(longest is None or _is_whole(longest), "max_audio_samples", "a positive whole number or None", longest)
    tag = processor.language_tag
    is_tag = isinstance(tag, str) and tag.count(LANGUAGE_PLACE) == 1 and not tag.endswith(LANGUAGE_PLACE)
    _require(is_tag, "language_tag", f"a string with {LANGUAGE_PLACE!r} once, and text after it", tag)
    languages = processor.languages
    are_names = isinstance(languages, dict) and all(isinstance(one, str) for pair in languages.items() for one in pair)
    _require(are_names, "languages", "a dict of names by codes", languages)


def check_audio_padding(audio_padding, feature_extractor, log_mel_maximum: str) -> None:
    """
    Raise a `ValueError` unless features can be padded so.

    Args:
        audio_padding, log_mel_maximum (`str`): See [`LlmAsrProcessor`].
        feature_extractor ([`SequenceFeatureExtractor`]): Of the processor.
    """
    is_known = isinstance(audio_padding, str) and audio_padding in AUDIO_PADDINGS
    _require(is_known, "audio_padding", f"one of {list(AUDIO_PADDINGS)}", audio_padding)
    if audio_padding in ("silence", "mirror") and not isinstance(feature_extractor, WhisperFeatureExtractor):
        raise ValueError(
            f"`audio_padding={audio_padding!r}` is for Whisper's feature extractor, and `feature_extractor` is a "
            f"{type(feature_extractor).__name__}; use 'longest'."
        )
    if audio_padding == "mirror" and log_mel_maximum == "running":
        raise ValueError(
            "`audio_padding='mirror'` needs the end of a recording, which streams with `log_mel_maximum='running'` do not know; use "
            "'longest'."
        )


def check_parts(feature_extractor, tokenizer) -> None:
    """Raise a `ValueError` if a numeric field of a feature extractor or a tokenizer has an invalid value."""
    for name in WHOLE_NUMBERS:
        value = getattr(feature_extractor, name, 1)
        _require(_is_whole(value), f"feature_extractor.{name}", "a positive whole number", value)
    for name in NUMBERS:
        value = getattr(feature_extractor, name, 0.0)
        _require(_is_number(value), f"feature_extractor.{name}", "a finite number", value)
    longest = tokenizer.model_max_length
    # 1e30 means a tokenizer without a limit.
    _require(_is_number(longest) and longest > 0, "model_max_length", "a positive number", longest)


def _require(condition: bool, name: str, what: str, value) -> None:
    if not condition:
        raise ValueError(f"`{name}` must be {what}, got {value!r:.60}; correct it.")


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _find_culprit(name_or_path: str | os.PathLike, hub_kwargs: dict) -> str:
    """Find the first file that cannot be read on its own. If all can be read, the processor's file is wrong."""
    for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, PROCESSOR_NAME):
        path = cached_file(name_or_path, name, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
        if path is not None and not _succeeds(lambda path=path: _read_object(path)):
            return name
        if name == TOKENIZER_FILE and path is not None and not _succeeds(lambda path=path: Tokenizer.from_file(path)):
            return name
    if not _succeeds(lambda: AutoTokenizer.from_pretrained(name_or_path, **hub_kwargs)):
        return f"{TOKENIZER_CONFIG_FILE} or {TOKENIZER_FILE}"
    return PROCESSOR_NAME


def _read_object(path: str) -> dict:
    with open(path, encoding="utf-8") as file:
        return {**json.load(file)}


def _succeeds(read) -> bool:
    try:
        read()
    # The tokenizers library raises plain exceptions. The caller reports its own, original error.
    except Exception:
        return False
    return True


__all__ = ["check_parts", "check_processor_settings", "naming_processor_file"]
