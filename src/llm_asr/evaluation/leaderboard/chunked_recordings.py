"""Leaderboard datasets whose rows are chunks of recordings. They have one transcript for each whole recording."""

from pathlib import Path

from huggingface_hub import snapshot_download

from ...atomic_writing import atomic_path
from ...datasets_asr import open_dataset
from .dataset_list import LeaderboardDataset


AUDIO_FOLDER = "audio"
# Result files need these columns for joining the chunks of a recording.
CHUNK_COLUMNS = ("parent_id", "chunk_index")


def write_chunk_table(dataset: LeaderboardDataset, file: Path) -> None:
    """
    Write a Parquet file with a row for each chunk. A row holds the chunk's audio and the transcript of the whole recording.

    Args:
        dataset ([`LeaderboardDataset`]): A dataset with a `parent`. Both may be folders instead of Hub ids.
        file (`Path`): Parquet file to write.

    Raises:
        `ValueError`: If the dataset has no `parent`, or a column or the transcript of a recording is missing.
    """
    if dataset.parent is None:
        raise ValueError(f"{dataset.name!r} has no `parent`, the dataset of the whole recordings; name one.")
    parents = open_dataset(dataset.parent, split=dataset.split, columns=("id", dataset.text_column))
    parents = parents.select_columns(["id", dataset.text_column])
    texts = dict(zip(parents["id"], parents[dataset.text_column], strict=True))
    chunks = open_dataset(dataset.path, split=dataset.split, columns=(*CHUNK_COLUMNS, "file_name"))
    missing = sorted(set(chunks["parent_id"]) - set(texts))
    if missing:
        raise ValueError(
            f"{dataset.parent!r} has no transcripts of {', '.join(missing)}, but {dataset.path!r} has chunks of them."
        )
    folder = Path(dataset.path)
    if not folder.is_dir():
        # `load_dataset` does not download the audio files, because no row of the dataset refers to them.
        folder = Path(snapshot_download(dataset.path, repo_type="dataset", allow_patterns=f"{AUDIO_FOLDER}/*"))
    rows = chunks.map(
        lambda row: {
            dataset.audio_column: str(folder.resolve() / AUDIO_FOLDER / row["file_name"]),
            dataset.text_column: texts[row["parent_id"]],
        },
        remove_columns=[name for name in chunks.column_names if name not in (*CHUNK_COLUMNS, "file_name")],
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as partial:
        rows.to_parquet(partial)


def join_chunks(lines: list[dict]) -> list[dict]:
    """
    Join the chunks of each recording.

    Args:
        lines (`list[dict]`): Lines of a result file.

    Returns:
        `list[dict]`: `text` and `pred_text` of each recording. If the lines are not chunks, `lines` unchanged.

    Raises:
        `ValueError`: If a chunk is missing or duplicated.
    """
    if not lines or "parent_id" not in lines[0]:
        return lines
    recordings: dict[str, list[dict]] = {}
    for line in sorted(lines, key=lambda line: line["chunk_index"]):
        recordings.setdefault(line["parent_id"], []).append(line)
    for parent_id, chunks in recordings.items():
        indices = [chunk["chunk_index"] for chunk in chunks]
        if indices != list(range(len(chunks))):
            raise ValueError(f"Recording {parent_id!r} has chunks {indices}; it must have each chunk from 0 on once.")
    return [
        {"text": chunks[0]["text"], "pred_text": " ".join(chunk["pred_text"].strip() for chunk in chunks)}
        for chunks in recordings.values()
    ]


__all__ = ["CHUNK_COLUMNS", "join_chunks", "write_chunk_table"]
