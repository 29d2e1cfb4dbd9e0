"""Opens speech datasets from local files or the Hub, with undecoded audio and numbered rows."""

from pathlib import Path

from datasets import Audio, Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk


FILE_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}

# Files that `save_to_disk` writes for a dataset, and for a dictionary of splits.
SAVED_DATASET = ("state.json", "dataset_dict.json")


def open_dataset(
    dataset: str,
    name: str | None = None,
    split: str = "train",
    columns: tuple[str, ...] = (),
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """
    Open a dataset without changing its rows.

    Args:
        dataset (`str`):
            A JSON Lines, CSV, TSV or Parquet file, a folder with Parquet files or from `save_to_disk`, or a Hub id.
        name (`str`, *optional*):
            Configuration of a Hub dataset or a folder.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a Hub dataset or a folder.
        columns (`tuple[str]`, *optional*):
            Required columns.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to read rows during iteration instead of saving them on disk before.

    Returns:
        `Dataset` or `IterableDataset`: The rows, with undecoded audio.

    Raises:
        `ValueError`: If the file is missing or has an unknown format, or a column or the split is missing.
    """
    path = Path(dataset)
    if path.suffix in FILE_FORMATS:
        if not path.is_file():
            raise ValueError(f"`dataset` file {dataset!r} does not exist.")
        rows = _open_file(path, streaming)
    elif any((path / marker).is_file() for marker in SAVED_DATASET):
        rows = _open_saved(path, split, streaming)
    else:
        rows = load_dataset(dataset, name, split=split, streaming=streaming)
    names = column_names(rows)
    for column in columns:
        if column not in names:
            raise ValueError(f"`dataset` {dataset!r} has no column {column!r}; its columns are {names}.")
    for column, feature in (rows.features or {}).items():
        if isinstance(feature, Audio):
            rows = rows.cast_column(column, Audio(decode=False))
    return rows


def _open_saved(path: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    """
    Open a folder that `save_to_disk` has written.

    Raises:
        `ValueError`: If the folder has splits, but not `split`.
    """
    rows = load_from_disk(path)
    if isinstance(rows, DatasetDict):
        if split not in rows:
            raise ValueError(f"`dataset` folder {str(path)!r} has no split {split!r}; its splits are {list(rows)}.")
        rows = rows[split]
    return rows.to_iterable_dataset() if streaming else rows


def _open_file(path: Path, streaming: bool) -> Dataset | IterableDataset:
    """
    Open a file and check it, because the errors of `datasets` do not name an empty or damaged file.

    Raises:
        `ValueError`: If the file is empty or damaged. The error names the file.
    """
    if not path.stat().st_size:
        raise ValueError(f"`dataset` file {str(path)!r} is empty; write it again.")
    options = {"sep": "\t"} if path.suffix == ".tsv" else {}
    try:
        rows = load_dataset(
            FILE_FORMATS[path.suffix], data_files=str(path), split="train", streaming=streaming, **options
        )
        if streaming:
            # Streaming has read nothing so far; read one row to check the file.
            next(iter(rows), None)
    # The readers of many libraries raise many types. The first error in the chain names the reason.
    except Exception as error:
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        text = " ".join(str(reason).split()) or type(reason).__name__
        raise ValueError(f"`dataset` file {str(path)!r} cannot be read: {text}. Is it complete?") from error
    if not streaming and not len(rows):
        raise ValueError(f"`dataset` file {str(path)!r} has no rows.")
    return rows


def column_names(rows: Dataset | IterableDataset) -> list[str]:
    """Columns of a dataset. For a streaming JSON or CSV file, they are known only after reading its first row."""
    return rows.column_names or list(next(iter(rows), {}))


def locate_audio(audio: dict | str | None, dataset: str) -> dict | str | None:
    """
    Make a path of a recording absolute.

    Args:
        audio (`dict` or `str`): The recording. Only a path changes.
        dataset (`str`): Dataset of the recording. Paths in a file are relative to the file.

    Returns:
        `dict` or `str`: The recording.
    """
    path = Path(dataset)
    if path.suffix in FILE_FORMATS and isinstance(audio, str) and "://" not in audio:
        return str(path.parent.resolve() / audio)
    return audio


def load_asr_dataset(
    dataset: str,
    name: str | None = None,
    split: str = "train",
    audio_column: str = "audio",
    text_column: str = "text",
) -> Dataset:
    """
    Load a dataset of recordings and transcripts.

    Args:
        dataset (`str`):
            A JSON Lines, CSV, TSV or Parquet file, a folder with Parquet files or from `save_to_disk`, or a Hub id. Audio
            paths in a file may be relative to the file.
        name (`str`, *optional*):
            Configuration of a Hub dataset or a folder.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a Hub dataset or a folder.
        audio_column, text_column (`str`, *optional*):
            Required columns.

    Returns:
        `Dataset`: The rows with a further column `row`, which names a row in errors. Audio stays encoded until
        [`load_audio`] reads it for a batch.

    Raises:
        `ValueError`: If the file is missing or has an unknown format, or a column is missing.
    """
    rows = open_dataset(dataset, name, split, (audio_column, text_column))
    return rows.map(
        _locate_row,
        with_indices=True,
        fn_kwargs={"audio_column": audio_column, "dataset": dataset},
        desc="Numbering rows",
    )


def _locate_row(row: dict, index: int, audio_column: str, dataset: str) -> dict:
    return {audio_column: locate_audio(row[audio_column], dataset), "row": index}
