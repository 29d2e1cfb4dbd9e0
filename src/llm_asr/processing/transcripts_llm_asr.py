"""Turns token ids and CIF weights into transcripts with languages and times."""

import re
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
import torch

from .given_text import align_text
from .languages import LANGUAGE_SEPARATOR, split_language_tag
from .timestamps import align_words, join_segments, split_words


# What the answers of Qwen3-ASR name in the place of a language if nothing is spoken.
NO_LANGUAGE = "None"

# Longest pause in seconds inside a segment.
SEGMENT_PAUSE = 0.5


class LlmAsrTranscriptsMixin:
    """Adds `decode` and `align` to [`LlmAsrProcessor`]."""

    tokenizer: Any
    languages: dict[str, str]
    language_tag: str

    @overload
    def decode(
        self,
        token_ids,
        skip_special_tokens: bool = ...,
        return_language: Literal[False] = ...,
        output_offsets: Literal[False] = ...,
        **kwargs: Any,
    ) -> str: ...

    @overload
    def decode(self, token_ids, *, return_language: Literal[True], **kwargs: Any) -> dict: ...

    @overload
    def decode(self, token_ids, *, output_offsets: Literal[True, "word"], **kwargs: Any) -> dict: ...

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
        Decode one row of generated tokens.

        Args:
            token_ids (`torch.LongTensor` or `list[int]`): Generated tokens.
            skip_special_tokens (`bool`, *optional*, defaults to `True`): Whether to remove special tokens.
            return_language (`bool`, *optional*, defaults to `False`):
                Whether to return the languages that the model has named.
            output_offsets (`bool` or `str`, *optional*, defaults to `False`):
                `"word"` adds the times of words, `True` the times of segments between pauses. It needs a projector with
                CIF.
            alphas (`torch.Tensor` of shape `(num_frames,)`, *optional*):
                CIF weights of the recording from `generate(..., return_dict_in_generate=True)`.
            frame_period (`float`, *optional*):
                Seconds between consecutive weights, `model.config.projector_frame_period`.
            kwargs:
                Further arguments of the tokenizer's `decode`.

        Returns:
            `str`: The transcript without the named language. With `return_language` or `output_offsets`, a dict of
            `"text"`, `"language"` (the English name of the first language, which most of the words have, or `None`),
            `"languages"` (a list of all names) and `"offsets"`, `[{"text": str, "timestamp": (start,
            end)}, ...]` in seconds.

        Raises:
            `ValueError`: If `output_offsets` is set without `alphas` and `frame_period`.
        """
        languages, transcript_ids = self._split_languages(token_ids)
        text = self.tokenizer.decode(transcript_ids, skip_special_tokens=skip_special_tokens, **kwargs).strip()
        decoded: dict[str, Any] = {"text": text}
        if return_language:
            decoded |= {"language": languages[0] if languages else None, "languages": languages}
        if not output_offsets:
            return decoded if return_language else text
        if output_offsets not in (True, "word"):
            raise ValueError(f"`output_offsets` must be 'word', True or False, got {output_offsets!r}.")
        if alphas is None or frame_period is None:
            raise ValueError(
                "`output_offsets` needs `alphas` and `frame_period`, which only models with CIF ('cif', 'moe_cif') have."
            )
        words, token_counts = split_words(self.tokenizer, transcript_ids)
        times = align_words(token_counts, np.asarray(alphas, dtype=np.float64), frame_period)
        offsets = [{"text": word, "timestamp": time} for word, time in zip(words, times, strict=True)]
        return {**decoded, "offsets": offsets if output_offsets == "word" else join_segments(offsets, SEGMENT_PAUSE)}

    def batch_decode(self, sequences, skip_special_tokens: bool = True, **kwargs) -> list[str]:
        """Decode each row of generated tokens; see [`LlmAsrProcessor.decode`]."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens, **kwargs) for row in sequences]

    def align(
        self,
        text: str,
        alphas: torch.Tensor | np.ndarray | Sequence[torch.Tensor | np.ndarray],
        frame_period: float,
        starts: Sequence[float] | None = None,
    ) -> list[dict]:
        """
        Compute when each word of a known text was spoken, from the weights of CIF alone.

        CIF is trained to give a word of `n` tokens a total weight of `n`, so neither the language nor the language model
        matters. The text must be written as the checkpoint writes, for instance with numbers in words.

        Args:
            text (`str`):
                What is said in the recording.
            alphas (`torch.Tensor` of shape `(num_frames,)`, or a list of them):
                CIF weights of the recording, `model.get_audio_features(...).alphas[row]`, or those of its consecutive
                segments.
            frame_period (`float`):
                Seconds between consecutive weights, `model.config.projector_frame_period`.
            starts (`list[float]`, *optional*):
                Start of each segment in seconds, in order. Needed with a list of `alphas`.

        Returns:
            `list[dict]`: `{"text": str, "timestamp": (start, end), "confidence": float}` for each word, or for each character
            in scripts without spaces, in order and without overlap. Times are in seconds, rounded to milliseconds. The
            confidence is the smaller of two numbers divided by the larger: the word's weight, and its tokens. It is 1 if CIF
            heard as many tokens as the word has, and near 0 if the word was not spoken there.

        Raises:
            `ValueError`: If `text` has no word, `alphas` are `None` (as for projectors without CIF) or have no weight, `starts`
                do not fit, or the tokenizer is not a fast one.
        """
        if not isinstance(text, str):
            raise TypeError(f"`text` must be a string, got {text!r:.60}.")
        if not text.strip():
            raise ValueError("`text` has no word; pass what is said in the recording.")
        if alphas is None:
            raise ValueError("`alphas` is None: only models with CIF ('cif', 'moe_cif') know when words are spoken.")
        rows = list(alphas) if isinstance(alphas, (list, tuple)) else [alphas]
        if starts is None and len(rows) == 1:
            starts = [0.0]
        if starts is None or len(starts) != len(rows) or list(starts) != sorted(starts):
            raise ValueError(
                f"`starts` must have the start in seconds of each of the {len(rows)} segments, in order, got {starts}."
            )
        arrays = [np.asarray(row, dtype=np.float64) for row in rows]
        return align_text(self.tokenizer, text, arrays, list(starts), frame_period)

    def may_name_languages(self, text: str) -> bool:
        """Whether a text may be the beginning of the names of languages, which precede a transcript."""
        before, _ = split_language_tag(self.language_tag)
        if len(text) < len(before):
            return before.startswith(text)
        if not text.startswith(before):
            return False
        text = text[len(before) :]
        names = [*self.languages.values(), *([NO_LANGUAGE] if before else ())]
        *complete, last = re.split(", ?", text)
        if all(name in names for name in complete) and any(name.startswith(last) for name in names):
            return True
        return any(name.startswith(text) for name in names)

    def _split_languages(self, token_ids) -> tuple[list[str], list[int]]:
        """Split generated tokens into the languages that the model has named, and the tokens of the transcript."""
        ids = [int(token_id) for token_id in token_ids]
        before, after = split_language_tag(self.language_tag)
        for count in range(1, len(ids) + 1):
            text = self.tokenizer.decode(ids[:count], skip_special_tokens=True)
            named, end, _ = text.partition(after)
            if end:
                if not named.startswith(before):
                    return [], ids
                named = named[len(before) :]
                if before and named == NO_LANGUAGE:
                    return [], ids[count:]
                # A processor's own languages may have names with commas.
                names = [named] if named in self.languages.values() else named.split(LANGUAGE_SEPARATOR)
                is_named = all(name in self.languages.values() for name in names)
                return (names, ids[count:]) if is_named else ([], ids)
            if not self.may_name_languages(text):
                break
        return [], ids


__all__ = ["LlmAsrTranscriptsMixin"]
