"""Speech datasets from local files or the Hub, with undecoded audio and numbered rows."""

from pathlib import Path

from datasets import Audio, Dataset, load_dataset


FILE_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


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
            A JSON Lines, CSV, TSV or Parquet file, whose audio paths may be relative to it, or a Hub id.
        name (`str`, *optional*):
            Configuration of a Hub dataset.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a Hub dataset.
        audio_column, text_column (`str`, *optional*):
            Columns that must be there.

    Returns:
        `Dataset`: With a further column `row`, which names each row in errors. Audio stays encoded: it is read when a
        batch is made, by [`load_audio`].

    Raises:
        `ValueError`: If the file is missing or of an unknown format, or lacks a column.
    """
    path = Path(dataset)
    if path.suffix in FILE_FORMATS:
        if not path.is_file():
            raise ValueError(f"`dataset` file {dataset!r} does not exist.")
        options = {"sep": "\t"} if path.suffix == ".tsv" else {}
        rows = load_dataset(FILE_FORMATS[path.suffix], data_files=str(path), split="train", **options)
    else:
        rows = load_dataset(dataset, name, split=split)
    for column in (audio_column, text_column):
        if column not in rows.column_names:
            raise ValueError(f"`dataset` {dataset!r} has no column {column!r}; its columns are {rows.column_names}.")
    if isinstance(rows.features[audio_column], Audio):
        rows = rows.cast_column(audio_column, Audio(decode=False))
    folder = str(path.parent.resolve()) if path.suffix in FILE_FORMATS else None
    return rows.map(
        _locate_row,
        with_indices=True,
        fn_kwargs={"audio_column": audio_column, "folder": folder},
        desc="Numbering rows",
    )


def _locate_row(row: dict, index: int, audio_column: str, folder: str | None) -> dict:
    audio = row[audio_column]
    if folder is not None and isinstance(audio, str) and "://" not in audio:
        audio = str(Path(folder) / audio)
    return {audio_column: audio, "row": index}
