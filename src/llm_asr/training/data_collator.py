"""Turns rows of a speech dataset into training batches."""

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence
from transformers.feature_extraction_utils import BatchFeature

from ..modeling.batch_numbers import read_batch_numbers
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
        translation_share (`float`, *optional*, defaults to 0.0):
            Share of the rows with a translation whose answer is the translation, so that the model learns both tasks. The others
            are transcribed. Rows without a transcript are always translated. The rows are chosen at random, but always the same.
        translation_column, target_language_column (`str`, *optional*, defaults to `"translation"` and `"target_language"`):
            Columns with translations and their languages.
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
        numbers (`bool`, *optional*, defaults to `False`):
            Whether to add `numbers`, the [`BatchNumbers`] of the batch, so that the model need not wait for the device to tell
            them. [`LlmAsrTrainer`] sets it for training batches. Code that changes a batch must leave `numbers` out.
    """

    processor: LlmAsrProcessor
    audio_column: str = "audio"
    text_column: str = "text"
    language_column: str = "language"
    language_dropout: float = 0.0
    translation_share: float = 0.0
    translation_column: str = "translation"
    target_language_column: str = "target_language"
    hidden_states_column: str | None = None
    augmentation: Augmentation | None = None
    keyword_sampling: KeywordSampling | None = None
    row_ids: bool = False
    numbers: bool = False

    def __post_init__(self):
        for name in ("language_dropout", "translation_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be a share in [0, 1], got {getattr(self, name)}.")
        if self.augmentation is None:
            return
        if self.augmentation.speed_perturbation is not None and self.hidden_states_column is not None:
            raise ValueError(
                "`augmentation` changes the speed of recordings, but the recordings of `hidden_states_column` are encoded "
                "already; use one or the other."
            )
        spec_augment = self.augmentation.spec_augment
        if spec_augment is not None and spec_augment.on_hidden_states != (self.hidden_states_column is not None):
            raise ValueError(
                f"`augmentation` has `SpecAugment(on_hidden_states={spec_augment.on_hidden_states})`, which is for "
                f"{'saved hidden states' if spec_augment.on_hidden_states else 'features'}, but `hidden_states_column` is "
                f"{self.hidden_states_column!r}; set one or the other."
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
        if self.numbers:
            batch["numbers"] = read_batch_numbers(
                batch["input_ids"] == self.processor.audio_token_id,
                batch["attention_mask"],
                batch.get("input_features_mask"),
                batch.get("audio_hidden_states_mask"),
                batch["labels"],
                target_lengths=batch["target_lengths"],
                is_translation=batch.get("is_translation"),
            )
        return batch

    def _make_batch(self, rows: list[dict]) -> BatchFeature:
        translations = [self._translation(row) for row in rows]
        transcripts = [
            self._transcript(row, is_optional=translation is not None)
            for row, translation in zip(rows, translations, strict=True)
        ]
        languages, identifies = zip(*(self._language(row) for row in rows), strict=True)
        answers: dict[str, Any] = {"transcription": transcripts}
        if any(translation is not None for translation in translations):
            # A translation does not name the spoken language.
            told = zip(identifies, translations, strict=True)
            identifies = tuple(identify and translation is None for identify, translation in told)
            answers["translation"] = translations
        requests: dict[str, Any] = {"language": languages, "identify_language": identifies}
        if "translation" in answers:
            pairs = list(zip(rows, translations, strict=True))
            requests["task"] = ["transcribe" if translation is None else "translate" for _, translation in pairs]
            requests["target_language"] = [
                None if translation is None else row.get(self.target_language_column) for row, translation in pairs
            ]
        if self.keyword_sampling is not None:
            requests["keywords"] = [self._keywords(row, self.keyword_sampling) for row in rows]
        if self.hidden_states_column is None:
            recordings = [self._recording(row) for row in rows]
            batch = self.processor.apply_transcription_request(recordings, **answers, **requests)
            if self.augmentation is not None:
                self.augmentation.mask(batch, [self._key(row) for row in rows])
            return batch
        prompts = self.processor.apply_transcription_request(
            [row[self.audio_column] for row in rows], tokenize=False, **requests
        )
        named = [language if identify else None for language, identify in zip(languages, identifies, strict=True)]
        batch = self.processor.tokenize_requests(prompts, named_languages=named, **answers)
        hidden_states = [load_file(row[self.hidden_states_column])["hidden_states"].float() for row in rows]
        lengths = torch.tensor([len(states) for states in hidden_states])
        batch["audio_hidden_states"] = pad_sequence(hidden_states, batch_first=True)
        batch["audio_hidden_states_mask"] = torch.arange(int(lengths.max())) < lengths[:, None]
        if self.augmentation is not None:
            self.augmentation.mask(batch, [self._key(row) for row in rows])
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
        keywords = sampling.draw(row.get(self.text_column) or "", row.get(self.language_column), self._key(row))
        # A transcript may contain the name of a special token, which is refused in prompts.
        return [keyword for keyword in keywords if self.processor.find_special_token(keyword) is None]

    def _key(self, row: dict) -> str:
        """The key of a row's random draws. It depends only on the row, so that a resumed run repeats the draws."""
        return f"{row.get('row')} {row.get(self.text_column)}"

    def _transcript(self, row: dict, is_optional: bool) -> str | None:
        transcript = row.get(self.text_column)
        if is_optional and not transcript:
            return None
        self._check_text(row, self.text_column, "a transcript")
        return transcript

    def _translation(self, row: dict) -> str | None:
        """The translation of a row, or `None` if the row is to be transcribed."""
        if not row.get(self.translation_column):
            return None
        draw = zlib.crc32(f"translation {self._key(row)}".encode()) / 2**32
        has_transcript = bool(row.get(self.text_column))
        if not self.translation_share or (has_transcript and draw >= self.translation_share):
            return None
        self._check_text(row, self.translation_column, "a translation")
        try:
            target = self.processor.language_name(row.get(self.target_language_column))
        except (TypeError, ValueError) as error:
            raise _named(row, error) from error
        if target is None:
            raise ValueError(
                f"{_name(row)}: column {self.target_language_column!r} must name the language of the translation."
            )
        return row[self.translation_column]

    def _check_text(self, row: dict, column: str, what: str) -> None:
        if not isinstance(row.get(column), str):
            raise ValueError(f"{_name(row)}: column {column!r} must hold {what}, got {row.get(column)!r}.")
        if self.processor.audio_token in row[column]:
            raise ValueError(
                f"{_name(row)}: column {column!r} must not contain the audio token {self.processor.audio_token!r}; remove it."
            )

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
