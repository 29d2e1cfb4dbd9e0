"""Turns rows of a speech dataset into training batches."""

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence
from transformers.feature_extraction_utils import BatchFeature

from ..processing.processing_llm_asr import LlmAsrProcessor
from .augmentation import Augmentation
from .keyword_sampling import KeywordSampling


@dataclass
class LlmAsrDataCollator:
    """
    Reads recordings and creates prompts, labels and features of a batch. Use it as the `data_collator` of a `Trainer`.

    Pass `remove_unused_columns=False` to the `TrainingArguments`, because the columns of the dataset are not model inputs.

    Args:
        processor ([`LlmAsrProcessor`]):
            The model's processor.
        audio_column (`str`, *optional*, defaults to `"audio"`):
            Column with recordings, in any form that [`load_audio`] reads.
        text_column (`str`, *optional*, defaults to `"text"`):
            Column with transcripts.
        language_column (`str`, *optional*, defaults to `"language"`):
            Column with language codes or names. Prompts of rows without a language do not name one.
        language_dropout (`float`, *optional*, defaults to 0.0):
            Share of rows whose prompts do not name the language, so that the model learns all forms of prompts. Half of these
            prompts ask the model to identify the language. The rows are chosen at random, but always the same.
        hidden_states_column (`str`, *optional*):
            Column with files of [`cache_audio_hidden_states`], which replace the recordings.
        augmentation ([`Augmentation`], *optional*):
            Augmentation of recordings and features. Pass it to [`LlmAsrTrainer`] to augment only training batches.
        keyword_sampling ([`KeywordSampling`], *optional*):
            Draws the keywords of prompts. Pass it to [`LlmAsrTrainer`] to list keywords only in training batches. The processor's
            `transcription_template` must have a place for keywords.
        row_ids (`bool`, *optional*, defaults to `False`):
            Whether to add `row_ids`, a list with the `row` of each row. [`LlmAsrTrainer`] removes it before the forward pass,
            and reports it if a loss is not finite.
    """

    processor: LlmAsrProcessor
    audio_column: str = "audio"
    text_column: str = "text"
    language_column: str = "language"
    language_dropout: float = 0.0
    hidden_states_column: str | None = None
    augmentation: Augmentation | None = None
    keyword_sampling: KeywordSampling | None = None
    row_ids: bool = False

    def __post_init__(self):
        if not 0 <= self.language_dropout <= 1:
            raise ValueError(f"`language_dropout` must be a share in [0, 1], got {self.language_dropout}.")
        if self.augmentation is not None and self.hidden_states_column is not None:
            raise ValueError(
                "`augmentation` changes recordings, but the recordings of `hidden_states_column` are encoded already; use one "
                "or the other."
            )

    def __call__(self, rows: list[dict]) -> BatchFeature:
        """
        Create a batch.

        Args:
            rows (`list[dict]`): Rows of the dataset. Errors name a row by its `row`, if it has one.

        Returns:
            [`BatchFeature`]: See [`LlmAsrProcessor.__call__`].

        Raises:
            `ValueError`: If a recording cannot be used or a transcript is missing. The error names the row.
        """
        batch = self._make_batch(rows)
        if self.row_ids:
            batch["row_ids"] = [row.get("row") for row in rows]
        return batch

    def _make_batch(self, rows: list[dict]) -> BatchFeature:
        transcripts = [self._transcript(row) for row in rows]
        languages, identifies = zip(*(self._language(row) for row in rows), strict=True)
        requests: dict[str, Any] = {"language": languages, "identify_language": identifies}
        if self.keyword_sampling is not None:
            requests["keywords"] = [self._keywords(row, self.keyword_sampling) for row in rows]
        if self.hidden_states_column is None:
            recordings = [self._recording(row) for row in rows]
            batch = self.processor.apply_transcription_request(recordings, transcription=transcripts, **requests)
            if self.augmentation is not None:
                self.augmentation.mask(batch, [self._key(row) for row in rows])
            return batch
        prompts = self.processor.apply_transcription_request(
            [row[self.audio_column] for row in rows], tokenize=False, **requests
        )
        named = [language if identify else None for language, identify in zip(languages, identifies, strict=True)]
        batch = self.processor.tokenize_requests(prompts, transcripts, named)
        hidden_states = [load_file(row[self.hidden_states_column])["hidden_states"].float() for row in rows]
        lengths = torch.tensor([len(states) for states in hidden_states])
        batch["audio_hidden_states"] = pad_sequence(hidden_states, batch_first=True)
        batch["audio_hidden_states_mask"] = torch.arange(int(lengths.max())) < lengths[:, None]
        return batch

    def _recording(self, row: dict):
        if self.audio_column not in row:
            raise ValueError(f"{_name(row)}: no column {self.audio_column!r}; its columns are {sorted(row)}.")
        try:
            recording = self.processor.load_recording(row[self.audio_column])
        except (TypeError, ValueError) as error:
            raise _named(row, error) from error
        if self.augmentation is None:
            return recording
        bounds = (self.processor.min_audio_samples, self.processor.max_audio_samples)
        return self.augmentation.perturb(recording, self._key(row), *bounds)

    def _keywords(self, row: dict, sampling: KeywordSampling) -> list[str]:
        keywords = sampling.draw(row[self.text_column], row.get(self.language_column), self._key(row))
        # A transcript may contain the name of a special token, which is refused in prompts.
        return [keyword for keyword in keywords if self.processor.find_special_token(keyword) is None]

    def _key(self, row: dict) -> str:
        """The key of a row's random draws. It depends only on the row, so that a resumed run repeats the draws."""
        return f"{row.get('row')} {row[self.text_column]}"

    def _transcript(self, row: dict) -> str:
        transcript = row.get(self.text_column)
        if not isinstance(transcript, str):
            raise ValueError(f"{_name(row)}: column {self.text_column!r} must hold a transcript, got {transcript!r}.")
        if self.processor.audio_token in transcript:
            raise ValueError(
                f"{_name(row)}: column {self.text_column!r} must not contain the audio token "
                f"{self.processor.audio_token!r}; remove it."
            )
        return transcript

    def _language(self, row: dict) -> tuple[str | None, bool]:
        """
        Decide how the language of a row is used: it may be named in the prompt, identified by the model, or dropped.

        Returns:
            `tuple`: The language, or `None` if it is unknown or dropped, and whether the model has to identify it.
        """
        language = row.get(self.language_column)
        try:
            is_unknown = self.processor.language_name(language) is None
        except (TypeError, ValueError) as error:
            raise _named(row, error) from error
        draw = zlib.crc32(self._key(row).encode()) / 2**32
        if is_unknown or draw < self.language_dropout / 2:
            return None, False
        return language, draw < self.language_dropout


def _named(row: dict, error: TypeError | ValueError) -> TypeError | ValueError:
    """An error of the same type whose message starts with the name of the row."""
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"{_name(row)}: {error}")


def _name(row: dict) -> str:
    return f"Dataset row {row['row']}" if "row" in row else "A dataset row"
