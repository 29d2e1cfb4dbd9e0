"""Mixes several speech datasets, with a chosen probability of each language."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import (
    Audio,
    ClassLabel,
    Dataset,
    Features,
    IterableDataset,
    Value,
    concatenate_datasets,
    interleave_datasets,
)
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from ..datasets_asr import column_names, locate_audio, open_dataset
from .filters import RowFilters, read_duration


# The storage of `Audio(decode=False)`. The feature itself would need torchcodec wherever a row is mapped.
ENCODED_AUDIO = {"bytes": Value("binary"), "path": Value("string")}

FEATURES = Features(
    {
        "audio": ENCODED_AUDIO,
        "text": Value("string"),
        "language": Value("string"),
        "translation": Value("string"),
        "target_language": Value("string"),
        "dataset": Value("string"),
        "row": Value("string"),
        "duration": Value("float64"),
    }
)

# Shards of a dataset that does not stream but is mixed with one that does.
NUM_SHARDS = 64


def unquote(text: str) -> str:
    """
    Remove the double quotes around some transcripts of Common Voice. Such a transcript doubles the quotes inside it.
    """
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return text[1:-1].replace('""', '"')
    return text


TEXT_NORMALIZERS: dict[str, Callable[[str], str]] = {
    "lower": str.lower,
    "unquote": unquote,
    "whisper_basic": lambda text: BasicTextNormalizer()(text).strip(),
}


@dataclass
class DatasetSpec:
    """
    One dataset of a mixture in a recipe.

    Args:
        dataset (`str`):
            A JSON Lines, CSV, TSV or Parquet file, a folder with Parquet files, or a Hub id. Audio paths in a file may be
            relative to the file.
        name (`str`, *optional*):
            Configuration of a Hub dataset or a folder.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a Hub dataset or a folder.
        audio_column (`str`, *optional*, defaults to `"audio"`):
            Column with recordings.
        text_column (`str`, *optional*, defaults to `"text"`):
            Column with transcripts.
        language (`str`, *optional*):
            Language of all rows.
        language_column (`str`, *optional*):
            Column with the language of each row, instead of `language`.
        translation_column (`str`, *optional*):
            Column with translations. `text_column` may then be empty in some rows.
        target_language (`str`, *optional*):
            Language of all translations.
        target_language_column (`str`, *optional*):
            Column with the language of each translation, instead of `target_language`.
        duration_column (`str`, *optional*):
            Column with durations in seconds. Defaults to the column `duration`, or to the header of the audio without such a
            column.
        text_normalizer (`str`, *optional*):
            `"lower"`, `"unquote"` for Common Voice, or `"whisper_basic"`, Whisper's [`BasicTextNormalizer`], which also
            removes punctuation.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to read rows during training instead of saving them on disk before.
        num_rows (`int`, *optional*):
            Number of rows of a streaming dataset that does not provide it.
    """

    dataset: str
    name: str | None = None
    split: str = "train"
    audio_column: str = "audio"
    text_column: str = "text"
    language: str | None = None
    language_column: str | None = None
    translation_column: str | None = None
    target_language: str | None = None
    target_language_column: str | None = None
    duration_column: str | None = None
    text_normalizer: str | None = None
    streaming: bool = False
    num_rows: int | None = None

    def __post_init__(self):
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "streaming":
                is_valid, kind = isinstance(value, bool), "true or false"
            elif item.name == "num_rows":
                is_valid = value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)
                kind = "a positive integer"
            else:
                is_valid = (value is None and item.default is None) or (isinstance(value, str) and value != "")
                kind = "a string"
            if not is_valid:
                raise ValueError(f"`{item.name}` of dataset {self.dataset!r} must be {kind}, got {value!r}.")
        if self.language is not None and self.language_column is not None:
            raise ValueError(f"Dataset {self.source!r} has both `language` and `language_column`; remove one.")
        targets = [name for name in ("target_language", "target_language_column") if getattr(self, name) is not None]
        if len(targets) != (self.translation_column is not None):
            raise ValueError(
                f"Dataset {self.source!r} needs `target_language` or `target_language_column` with `translation_column`, and "
                f"none without it; got {targets}."
            )
        if self.text_normalizer is not None and self.text_normalizer not in TEXT_NORMALIZERS:
            raise ValueError(
                f"`text_normalizer` of dataset {self.source!r} must be one of {sorted(TEXT_NORMALIZERS)}, got "
                f"{self.text_normalizer!r}."
            )
        if self.num_rows is not None and not self.streaming:
            raise ValueError(f"`num_rows` of dataset {self.source!r} is only for `streaming: true`; remove it.")

    @property
    def source(self) -> str:
        """Name of the dataset in rows, errors and reports."""
        parts = (self.dataset, self.name, None if self.split == "train" else self.split)
        return ":".join(part for part in parts if part is not None)

    @classmethod
    def from_dict(cls, spec: dict) -> "DatasetSpec":
        """
        Create the specification from an entry of a recipe.

        Args:
            spec (`dict`): An entry of a recipe's `train_datasets`.

        Returns:
            [`DatasetSpec`]

        Raises:
            `ValueError`: If the entry has unknown keys, lacks `dataset`, or has an invalid value.
        """
        if not isinstance(spec, dict) or "dataset" not in spec:
            raise ValueError(f"An entry of `train_datasets` must be a mapping with `dataset`, got {spec!r}.")
        known = [item.name for item in fields(cls)]
        unknown = sorted(str(key) for key in set(spec) - set(known))
        if unknown:
            raise ValueError(f"Dataset {spec['dataset']!r} has unknown keys {unknown}; it may have {known}.")
        return cls(**spec)


class StreamingMixture(torch.utils.data.IterableDataset):
    """
    Shuffles the rows of a streaming dataset. Training can resume at any position of any epoch.

    A resumed `datasets.IterableDataset.shuffle` loses the rows in its buffer. This class reads rows in blocks and permutes
    each block by seed, epoch and block number, so its state is only the start of the block and the position in it. Resuming
    reads at most one block again. The order of files (shards) and the order in which sources are drawn change every epoch.

    The class is not a `datasets.IterableDataset`, so `accelerate` distributes single rows over the processes, and all
    processes get the same number of batches. With a `datasets.IterableDataset`, `accelerate` would distribute files, and the
    first process without rows would block the others. Do not use `split_dataset_by_node`. Pass `dispatch_batches=False` to
    `accelerate`. By default one process would read all rows and concatenate batches of different lengths.

    Args:
        dataset (`IterableDataset`): The rows.
        shuffle_buffer_size (`int`, *optional*, defaults to 1000): Number of rows in a block, which is kept in memory. 1
            disables shuffling.
        seed (`int`, *optional*, defaults to 0): Seed of all random choices.
    """

    def __init__(self, dataset: IterableDataset, shuffle_buffer_size: int = 1000, seed: int = 0):
        if shuffle_buffer_size < 1:
            raise ValueError(f"`shuffle_buffer_size` must be at least 1, got {shuffle_buffer_size}.")
        self.dataset = dataset
        self.shuffle_buffer_size = shuffle_buffer_size
        self.seed = seed
        self._resumed: dict | None = None
        self._state: dict = {}
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """
        Change the order for a new epoch, also in running workers.

        Args:
            epoch (`int`): Number of the epoch.
        """
        # `datasets` shuffles shards by the epoch number alone, and does not shuffle them in epoch 0.
        self._set_epoch_seed(1 + int(np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0]) // 2)

    def _set_epoch_seed(self, epoch_seed: int) -> None:
        if epoch_seed != self._state.get("epoch_seed"):
            self.dataset.set_epoch(epoch_seed)
            self._state = {"epoch_seed": epoch_seed, "block": 0, "position": 0, "dataset": None}

    def state_dict(self) -> dict:
        """
        Returns:
            `dict`: Position after the last returned row, as values for JSON.
        """
        return self._state

    def load_state_dict(self, state_dict: dict) -> None:
        """
        Start the next iteration at a saved position, unless `set_epoch` selects another epoch.

        Args:
            state_dict (`dict`): Result of `state_dict` of a mixture with the same datasets, seed and buffer size.
        """
        self._set_epoch_seed(state_dict["epoch_seed"])
        self._resumed = state_dict

    def __iter__(self) -> Iterator[dict]:
        epoch_seed = self.dataset.epoch
        state = {"epoch_seed": epoch_seed, "block": 0, "position": 0, "dataset": None}
        if self._resumed is not None and self._resumed["epoch_seed"] == epoch_seed:
            state = self._resumed
        self._resumed = None
        self.dataset.load_state_dict(state["dataset"])
        rows = iter(self.dataset)
        while block := list(islice(rows, self.shuffle_buffer_size)):
            next_block = {**state, "block": state["block"] + 1, "position": 0, "dataset": self.dataset.state_dict()}
            order = np.random.default_rng((epoch_seed, state["block"])).permutation(len(block))
            for position in range(state["position"], len(block)):
                self._state = {**state, "position": position + 1}
                yield block[order[position]]
            state = next_block


def language_probabilities(sizes: dict[str | None, int], temperature: float) -> dict[str | None, float]:
    """
    Probability of drawing each language: p ∝ n^(1/τ), as in [XLM-R](https://arxiv.org/abs/1911.02116), where α = 1/τ.

    Args:
        sizes (`dict[str, int]`): Number of rows n of each language.
        temperature (`float`): τ. 1 gives probabilities in proportion to the sizes. Larger values make the probabilities more
            equal.

    Returns:
        `dict[str, float]`: Probability of each language.

    Raises:
        `ValueError`: If `temperature` is not positive.
    """
    if not temperature > 0:
        raise ValueError(
            f"`temperature` must be positive, got {temperature}; 1 draws languages in proportion to their sizes."
        )
    # Dividing by the largest size avoids an overflow for a temperature close to 0.
    largest = max(sizes.values())
    weights = {language: (size / largest) ** (1 / temperature) for language, size in sizes.items()}
    total = sum(weights.values())
    return {language: weight / total for language, weight in weights.items()}


def load_mixture(
    specs: list[DatasetSpec | dict],
    temperature: float = 1.0,
    seed: int = 0,
    filters: RowFilters | None = None,
    shuffle_buffer_size: int = 1000,
) -> Dataset | StreamingMixture:
    """
    Mix datasets. A language is drawn with p ∝ n^(1/τ), and then one of its datasets in proportion to its number of rows.

    An epoch ends when every row of every dataset was drawn (`stopping_strategy="all_exhausted"`). Rows of a language that is
    drawn more often than in proportion to its size are repeated, and no row is left out. Without streaming and with a
    `temperature` of 1, every row is drawn once.

    Args:
        specs (`list[DatasetSpec]` or `list[dict]`):
            Datasets. If one of them streams, the mixture streams.
        temperature (`float`, *optional*, defaults to 1.0):
            τ, see [`language_probabilities`]. If it is not 1, each streaming dataset needs a `language`. Rows without a
            language count as one language.
        seed (`int`, *optional*, defaults to 0):
            Seed of all random choices.
        filters ([`RowFilters`], *optional*):
            Selects the rows to keep. Its `report` is complete for datasets that do not stream. For streaming datasets it
            grows while rows are read. The size of a dataset that does not stream excludes rejected rows.
        shuffle_buffer_size (`int`, *optional*, defaults to 1000):
            Number of rows of a streaming mixture to shuffle together, which each worker keeps in memory. Without streaming,
            the `Trainer` shuffles.

    Returns:
        `Dataset` or [`StreamingMixture`], with the columns `audio` (`{"bytes": ..., "path": ...}`, undecoded), `text`,
        `language`, `dataset` (name of the row's dataset), `row` (name of the row in errors) and `duration` (in seconds, if the
        dataset provides it or a filter needs it).

    Raises:
        `ValueError`: If there are no datasets, if a dataset has an invalid specification, cannot be found, lacks a column or
            has no rows left, or if the required size or language of a streaming dataset is unknown.
    """
    if not specs:
        raise ValueError("`train_datasets` is empty; name at least one dataset.")
    parsed = [spec if isinstance(spec, DatasetSpec) else DatasetSpec.from_dict(spec) for spec in specs]
    language_probabilities({None: 1}, temperature)
    parts: list[tuple[Dataset | IterableDataset, str | None, int]] = []
    for spec in parsed:
        if filters is not None:
            filters.report.add_dataset(spec.source)
        if spec.streaming:
            if temperature != 1 and len(specs) > 1 and spec.language_column is not None:
                raise ValueError(
                    f"Dataset {spec.source!r} streams, so the rows of each language in `language_column` cannot be "
                    "counted; set one `language`, or `streaming: false`, or `temperature: 1`."
                )
            rows, size = _stream_rows(spec, filters)
            if size is None and len(specs) > 1:
                raise ValueError(f"Dataset {spec.source!r} streams and does not provide its size; set `num_rows`.")
            parts.append((rows, spec.language, size or 1))
        else:
            rows = _load_rows(spec, filters)
            languages = np.array(rows["language"], dtype=object)
            for language in dict.fromkeys(languages.tolist()):
                part = rows.select(np.flatnonzero(languages == language))
                parts.append((part, language, len(part)))

    sizes: dict[str | None, int] = {}
    for _, language, size in parts:
        sizes[language] = sizes.get(language, 0) + size
    of_language = language_probabilities(sizes, temperature)
    probabilities = [of_language[language] * size / sizes[language] for _, language, size in parts]

    is_streaming = any(spec.streaming for spec in parsed)
    sources = [part for part, _, _ in parts]
    if is_streaming:
        sources = [
            part.to_iterable_dataset(num_shards=min(NUM_SHARDS, len(part))).cast_column("audio", ENCODED_AUDIO)
            if isinstance(part, Dataset)
            else part
            for part in sources
        ]
    if len(sources) == 1:
        mixture = sources[0]
    elif not is_streaming and (temperature == 1 or len(sizes) == 1):
        # The probabilities follow the sizes, so every row is drawn once.
        mixture = concatenate_datasets(sources)
    else:
        if not is_streaming:
            # Without shuffling, the first rows of a dataset would be repeated more often than the others.
            sources = [source.shuffle(seed=seed) for source in sources]
        mixture = interleave_datasets(
            sources, probabilities=probabilities, seed=seed, stopping_strategy="all_exhausted"
        )
    return StreamingMixture(mixture, shuffle_buffer_size, seed) if is_streaming else mixture


def _open(spec: DatasetSpec) -> tuple[Dataset | IterableDataset, dict]:
    """Open a dataset without changing its rows, and return further arguments for `_describe`."""
    wanted = (
        *(spec.audio_column, spec.text_column, spec.language_column, spec.duration_column),
        *(spec.translation_column, spec.target_language_column),
    )
    columns = tuple(column for column in wanted if column is not None)
    rows = open_dataset(spec.dataset, spec.name, spec.split, columns, spec.streaming)
    feature = (rows.features or {}).get(spec.language_column)
    names = feature.names if isinstance(feature, ClassLabel) else None
    return rows, {"spec": spec, "language_names": names}


def _stream_rows(spec: DatasetSpec, filters: RowFilters | None) -> tuple[IterableDataset, int | None]:
    rows, options = _open(spec)
    size = spec.num_rows
    if size is None and rows.info.splits and spec.split in rows.info.splits:
        size = rows.info.splits[spec.split].num_examples
    rows = rows.map(_describe_stream, remove_columns=column_names(rows), features=FEATURES, fn_kwargs=options)
    return (rows if filters is None else rows.filter(filters)), size


def _load_rows(spec: DatasetSpec, filters: RowFilters | None) -> Dataset:
    rows, options = _open(spec)
    # Mapping the recordings would write all of them to disk again.
    audio = rows.select_columns([spec.audio_column])
    if spec.audio_column != "audio":
        audio = audio.rename_column(spec.audio_column, "audio")
    if audio.features["audio"] in (Value("string"), Value("large_string")):
        audio = audio.map(
            _locate,
            features=Features({"audio": Value("string")}),
            fn_kwargs={"dataset": spec.dataset},
            desc="Locating recordings",
        )
    audio = audio.cast_column("audio", Audio(decode=False))
    about = rows.remove_columns([name for name, feature in rows.features.items() if isinstance(feature, Audio)])
    about = about.map(
        _describe,
        with_indices=True,
        remove_columns=about.column_names,
        features=Features({name: feature for name, feature in FEATURES.items() if name != "audio"}),
        fn_kwargs=options,
        desc="Reading transcripts",
    )
    rows = concatenate_datasets([audio, about], axis=1)
    if filters is not None:
        judged = rows.map(
            _judge,
            remove_columns=rows.column_names,
            features=Features({"reason": Value("string"), "duration": Value("float64")}),
            # `replace` gives an empty report: counts would change the fingerprint of the result in the cache.
            fn_kwargs={"filters": replace(filters)},
            desc="Filtering",
        )
        rows = concatenate_datasets([rows.remove_columns("duration"), judged.select_columns("duration")], axis=1)
        reasons = judged["reason"][:]
        filters.report.add(spec.source, reasons)
        rows = rows.select([index for index, reason in enumerate(reasons) if reason is None])
    if len(rows) == 0:
        found = "" if filters is None else f" ({filters.report.counts[spec.source]})"
        raise ValueError(f"Dataset {spec.source!r} has no row left{found}; check its columns, or widen the filters.")
    return rows


def _locate(row: dict, dataset: str) -> dict:
    return {"audio": locate_audio(row["audio"], dataset)}


def _judge(row: dict, filters: RowFilters) -> dict:
    if row["duration"] is None and filters.needs_duration:
        row["duration"] = read_duration(row["audio"])
    return {"reason": filters.reason(row), "duration": row["duration"]}


def _describe(row: dict, index: int | str, spec: DatasetSpec, language_names: list[str] | None) -> dict:
    text = row[spec.text_column]
    text = None if text is None else str(text)
    if text is not None and spec.text_normalizer is not None:
        text = TEXT_NORMALIZERS[spec.text_normalizer](text)
    language: Any = spec.language if spec.language_column is None else row[spec.language_column]
    if language_names is not None and language is not None:
        # `datasets` stores -1 for an unknown label.
        language = language_names[language] if language >= 0 else None
    target_language = spec.target_language if spec.target_language_column is None else row[spec.target_language_column]
    return {
        "text": text,
        "language": language,
        "translation": None if spec.translation_column is None else row[spec.translation_column],
        "target_language": target_language,
        "dataset": spec.source,
        "row": f"{spec.source}#{index}",
        "duration": row.get(spec.duration_column or "duration"),
    }


def _describe_stream(row: dict, spec: DatasetSpec, language_names: list[str] | None) -> dict:
    audio = locate_audio(row[spec.audio_column], spec.dataset)
    if not isinstance(audio, dict):
        audio = {"bytes": None, "path": audio}
    # Shards come in any order, so rows have no number; name them by their path or contents.
    name = audio["path"] or hashlib.sha256(audio["bytes"] or b"").hexdigest()[:16]
    return {"audio": audio, **_describe(row, name, spec, language_names)}
