"""Speech datasets from local files or the Hub, with undecoded audio and numbered rows."""

from pathlib import Path

from datasets import Audio, Dataset, IterableDataset, load_dataset


FILE_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


def open_dataset(
    dataset: str,
    name: str | None = None,
    split: str = "train",
    columns: tuple[str, ...] = (),
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """
    Open a dataset as it is.

    Args:
        dataset (`str`):
            A JSON Lines, CSV, TSV or Parquet file, a folder with Parquet files, or a Hub id.
        name (`str`, *optional*):
            Configuration of a Hub dataset or a folder.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a Hub dataset or a folder.
        columns (`tuple[str]`, *optional*):
            Columns that must be there.
        streaming (`bool`, *optional*, defaults to `False`):
            Read rows as they are needed and keep none on disk.

    Returns:
        `Dataset` or `IterableDataset`, none of whose audio is decoded.

    Raises:
        `ValueError`: If the file is missing or of an unknown format, or lacks a column.
    """
    path = Path(dataset)
    if path.suffix in FILE_FORMATS:
        if not path.is_file():
            raise ValueError(f"`dataset` file {dataset!r} does not exist.")
        options = {"sep": "\t"} if path.suffix == ".tsv" else {}
        rows = load_dataset(
            FILE_FORMATS[path.suffix], data_files=str(path), split="train", streaming=streaming, **options
        )
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


def column_names(rows: Dataset | IterableDataset) -> list[str]:
    """Columns of a dataset; a file of JSON or CSV that streams does not tell them before it is read."""
    return rows.column_names or list(next(iter(rows), {}))


def locate_audio(audio: dict | str | None, dataset: str) -> dict | str | None:
    """
    Make a path of a recording absolute.

    Args:
        audio (`dict` or `str`): The recording; only a path is changed.
        dataset (`str`): Where it is from: paths in a file are relative to that file.

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
            A JSON Lines, CSV, TSV or Parquet file, whose audio paths may be relative to it, a folder with Parquet
            files, or a Hub id.
        name (`str`, *optional*):
            Configuration of a Hub dataset or a folder.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a Hub dataset or a folder.
        audio_column, text_column (`str`, *optional*):
            Columns that must be there.

    Returns:
        `Dataset`: With a further column `row`, which names each row in errors. Audio stays encoded: it is read when a
        batch is made, by [`load_audio`].

    Raises:
        `ValueError`: If the file is missing or of an unknown format, or lacks a column.
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
