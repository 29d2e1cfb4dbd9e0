"""Rows of a speech dataset in, a training batch out."""

import zlib
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence
from transformers.feature_extraction_utils import BatchFeature

from ..processing.processing_llm_asr import LlmAsrProcessor
from .augmentation import Augmentation


@dataclass
class LlmAsrDataCollator:
    """
    Reads recordings and makes prompts, labels and features of a batch; for the `data_collator` of a `Trainer`.

    Pass `remove_unused_columns=False` to the `TrainingArguments`: the columns of the dataset are not model inputs.

    Args:
        processor ([`LlmAsrProcessor`]):
            Of the model that is trained.
        audio_column (`str`, *optional*, defaults to `"audio"`):
            Column with recordings, in any form that [`load_audio`] reads.
        text_column (`str`, *optional*, defaults to `"text"`):
            Column with transcripts.
        language_column (`str`, *optional*, defaults to `"language"`):
            Column with language codes or names; rows without it are transcribed without naming a language.
        language_dropout (`float`, *optional*, defaults to 0.0):
            Share of rows whose prompts leave the language out, so that the model learns all ways to be asked: half of
            them ask the model to name it. Which rows these are is random but fixed.
        hidden_states_column (`str`, *optional*):
            Column with files written by [`cache_audio_hidden_states`], to be used in place of recordings.
        augmentation ([`Augmentation`], *optional*):
            Alters recordings and features. Give it to [`LlmAsrTrainer`] instead, and it trains with it alone.
        row_ids (`bool`, *optional*, defaults to `False`):
            Whether to add `row_ids`, a list of the `row` of each row, which [`LlmAsrTrainer`] takes out again and names
            when a loss is not finite.
    """

    processor: LlmAsrProcessor
    audio_column: str = "audio"
    text_column: str = "text"
    language_column: str = "language"
    language_dropout: float = 0.0
    hidden_states_column: str | None = None
    augmentation: Augmentation | None = None
    row_ids: bool = False

    def __post_init__(self):
        if not 0 <= self.language_dropout <= 1:
            raise ValueError(f"`language_dropout` must be a share in [0, 1], got {self.language_dropout}.")
        if self.augmentation is not None and self.hidden_states_column is not None:
            raise ValueError(
                "`augmentation` alters recordings, and those of `hidden_states_column` are encoded already; pass one of them."
            )

    def __call__(self, rows: list[dict]) -> BatchFeature:
        """
        Args:
            rows (`list[dict]`): Rows of the dataset; a `row` key, if present, names a row in errors.

        Returns:
            [`BatchFeature`]: See [`LlmAsrProcessor.__call__`].

        Raises:
            `ValueError`: If a recording cannot be used or a transcript is missing; it names the row.
        """
        batch = self._make_batch(rows)
        if self.row_ids:
            batch["row_ids"] = [row.get("row") for row in rows]
        return batch

    def _make_batch(self, rows: list[dict]) -> BatchFeature:
        transcripts = [self._transcript(row) for row in rows]
        languages, identifies = zip(*(self._language(row) for row in rows), strict=True)
        requests = {"language": languages, "identify_language": identifies}
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
        except ValueError as error:
            raise ValueError(f"{_name(row)}: {error}") from error
        if self.augmentation is None:
            return recording
        bounds = (self.processor.samples_per_frame, self.processor.max_audio_samples)
        return self.augmentation.perturb(recording, self._key(row), *bounds)

    def _key(self, row: dict) -> str:
        """What is drawn for a row depends on it alone, so that a resumed run sees what it would have seen."""
        return f"{row.get('row')} {row[self.text_column]}"

    def _transcript(self, row: dict) -> str:
        transcript = row.get(self.text_column)
        if not isinstance(transcript, str):
            raise ValueError(f"{_name(row)}: column {self.text_column!r} must hold a transcript, got {transcript!r}.")
        return transcript

    def _language(self, row: dict) -> tuple[str | None, bool]:
        """The language of a row, unless nobody is to know it, and whether it is the model that says it."""
        language = row.get(self.language_column)
        draw = zlib.crc32(self._key(row).encode()) / 2**32
        if language is None or draw < self.language_dropout / 2:
            return None, False
        return language, draw < self.language_dropout


def _name(row: dict) -> str:
    return f"Dataset row {row['row']}" if "row" in row else "A dataset row"
