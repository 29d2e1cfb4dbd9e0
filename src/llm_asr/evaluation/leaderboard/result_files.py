"""Result files in the format of the Open ASR Leaderboard."""

import json
from pathlib import Path

import pyarrow.parquet

from ...atomic_writing import write_text
from .chunked_recordings import CHUNK_COLUMNS, join_chunks
from .dataset_list import LeaderboardDataset
from .scoring import is_scored, leaderboard_wer


# Columns that may name a recording. The first existing column is used.
NAME_COLUMNS = ("id", "file_name")


def read_transcripts(transcripts: Path, dataset: LeaderboardDataset) -> list[dict]:
    """
    Read transcripts as lines of a result file. A line has `audio_filepath`, `duration` and `time` in seconds, the dataset's
    original `text`, and the model's original output as `pred_text`.

    Args:
        transcripts (`Path`): Output folder of [`~dataset_transcription.transcribe_dataset`] with `timing`.
        dataset ([`LeaderboardDataset`]): The transcribed dataset.

    Raises:
        `ValueError`: If a recording could not be read. The leaderboard needs all recordings.
    """
    rows = [
        row
        for file in sorted(transcripts.glob("part-*.parquet"))
        for row in pyarrow.parquet.read_table(file).to_pylist()
    ]
    failed = [row for row in rows if row["error"] is not None]
    if failed:
        raise ValueError(
            f"{len(failed)} recordings of {dataset.name} cannot be read. The first error is: {failed[0]['error']}. Repair "
            f"the dataset, delete {str(transcripts)!r}, and start again."
        )
    lines = []
    for index, row in enumerate(rows):
        named = next((row[column] for column in NAME_COLUMNS if row.get(column) not in (None, "")), f"sample_{index}")
        line = {
            "audio_filepath": Path(str(named)).name,
            "duration": row["duration"],
            "time": row["time"],
            "text": row[dataset.text_column],
            "pred_text": row["transcript"],
            **{column: row[column] for column in CHUNK_COLUMNS if column in row},
        }
        if is_scored(line["text"], dataset.language):
            lines.append(line)
    return lines


def write_result_file(lines: list[dict], file: Path) -> None:
    """Write `lines` as JSON Lines."""
    write_text(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_result_file(file: Path) -> list[dict]:
    """Read the lines of a file that [`write_result_file`] wrote."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def score_lines(lines: list[dict], dataset: LeaderboardDataset) -> dict[str, float]:
    """
    Compute the figures that the leaderboard shows for a result file.

    Args:
        lines (`list[dict]`): Result of [`read_transcripts`].
        dataset ([`LeaderboardDataset`]): The transcribed dataset.

    Returns:
        `dict[str, float]`: `wer` in percent; `rtfx`, the seconds of audio per second of computing; `recordings`, their
        number; `duration` and `time`, the sums over all recordings in seconds.

    Raises:
        `ValueError`: If no recording has words.
    """
    joined = join_chunks(lines)
    duration, time = (sum(line[name] for line in lines) for name in ("duration", "time"))
    wer = leaderboard_wer([line["text"] for line in joined], [line["pred_text"] for line in joined], dataset.language)
    return {"wer": wer, "rtfx": duration / time, "recordings": len(lines), "duration": duration, "time": time}


__all__ = ["read_result_file", "read_transcripts", "score_lines", "write_result_file"]
