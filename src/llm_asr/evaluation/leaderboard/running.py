"""Runs a checkpoint on the datasets of the Open ASR Leaderboard."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import evaluate
from rich.console import Console

from ...dataset_transcription import (
    DatasetTranscription,
    check_same_run,
    load_transcriber,
    open_shards,
    start_processes,
    write_transcripts,
)
from ...file_stamps import file_stamps
from ..tables import Tables
from .chunked_recordings import write_chunk_table
from .dataset_list import DATASETS, SUITES, LeaderboardDataset, select_datasets
from .result_files import read_result_file, read_transcripts, score_lines, write_result_file


# File name of the table of a dataset's chunks, in the folder of their transcripts.
CHUNK_TABLE = "chunks.parquet"


@dataclass
class LeaderboardOptions:
    """
    Options of a leaderboard run.

    Args:
        model (`str`): Folder or Hub id of a checkpoint.
        output (`Path`): Folder for result files. Transcripts are saved in its subfolder `transcripts`.
        datasets (`Sequence[str]`, *optional*): See [`~dataset_list.select_datasets`]. Defaults to the English datasets.
        model_id (`str`, *optional*): `owner/name` of the model for the names of result files. Defaults to `model`.
        sources (`Mapping[str, str]`, *optional*):
            Names of datasets and the files or folders to read instead of the Hub; see [`~datasets_asr.open_dataset`]. A
            source of chunked recordings has the columns `parent_id` and `chunk_index`, and the text of the whole recording
            in each row.
        batch_size (`int`, *optional*, defaults to 16): Number of recordings to transcribe and time together.
        dtype (`str`, *optional*, defaults to `"auto"`): Dtype of the weights.

    Raises:
        `ValueError`: If a name is unknown or invalid, or a size is not positive.
    """

    model: str
    output: Path
    datasets: Sequence[str] = ("english",)
    model_id: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    batch_size: int = 16
    dtype: str = "auto"

    def __post_init__(self):
        self.model_id = self.model_id or self.model
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.model_id) or Path(self.model_id).exists():
            raise ValueError(
                f"`model_id` {self.model_id!r} must be the model's 'owner/name' on the Hub; result files are named after it."
            )
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {self.batch_size}.")
        chosen = [dataset.name for dataset in select_datasets(self.datasets)]
        unknown = sorted(set(self.sources) - set(chosen))
        if unknown:
            raise ValueError(f"`sources` names {', '.join(unknown)}, but the datasets to run are {', '.join(chosen)}.")


def run_leaderboard(options: LeaderboardOptions, console: Console | None = None) -> dict[str, dict[str, float]]:
    """
    Transcribe datasets of the leaderboard, write a result file for each, and score them.

    The function runs in one process or in several processes of `torchrun`. An interrupted run continues where it stopped. The
    prompt names the language of each dataset, which the leaderboard allows.

    Args:
        options ([`LeaderboardOptions`]): Options of the run.
        console (`Console`, *optional*): Prints the table of results. Defaults to the terminal.

    Returns:
        `dict[str, dict[str, float]]`: Result of [`score_folder`].

    Raises:
        `ValueError`: If a dataset lacks a column, a recording cannot be read, or `output` belongs to a run with another
            model.
        `OSError`: If there is no such checkpoint.
    """
    state = start_processes()
    datasets = select_datasets(options.datasets)
    plans = [plan_transcription(dataset, options) for dataset in datasets]
    if state.is_main_process:
        for dataset, plan in zip(datasets, plans, strict=True):
            if plan.dataset == str(plan.output / CHUNK_TABLE) and not Path(plan.dataset).exists():
                write_chunk_table(dataset, Path(plan.dataset))
    state.wait_for_everyone()
    with state.local_main_process_first():
        # Open all datasets first, so that a missing one is reported before any computation.
        shards = [open_shards(plan) for plan in plans]
    transcriber = load_transcriber(options.model, options.dtype, state)
    made_from = {
        "model": options.model,
        "model files": file_stamps(options.model),
        "model commit": getattr(transcriber.model.config, "_commit_hash", None),
        "dtype": options.dtype,
    }
    with state.main_process_first():
        check_same_run(transcripts_folder(options) / "model.json", made_from)
    for plan, opened in zip(plans, shards, strict=True):
        write_transcripts(plan, opened, transcriber, state)
    state.wait_for_everyone()
    with state.main_process_first():
        for dataset, plan in zip(datasets, plans, strict=True):
            if state.is_main_process:
                lines = read_transcripts(plan.output, dataset)
                write_result_file(lines, options.output / dataset.manifest_name(options.model_id))
        results = score_folder(options.output, options.model_id)
    if state.is_main_process:
        evaluate.save(
            options.output / f"MODEL_{options.model_id.replace('/', '-')}.json",
            model=options.model_id,
            results=results,
        )
        print_results(results, console or Console())
    state.destroy_process_group()
    return results


def transcripts_folder(options: LeaderboardOptions) -> Path:
    return options.output / "transcripts" / options.model_id.replace("/", "-")


def plan_transcription(dataset: LeaderboardDataset, options: LeaderboardOptions) -> DatasetTranscription:
    """Options for transcribing a dataset with a timed output file for each batch."""
    folder = transcripts_folder(options) / dataset.name
    chunked = dataset.parent is not None
    fetched = str(folder / CHUNK_TABLE) if chunked else dataset.path
    return DatasetTranscription(
        model=options.model,
        dataset=options.sources.get(dataset.name, fetched),
        output=folder,
        name=None if chunked or dataset.name in options.sources else dataset.config,
        split=dataset.split,
        audio_column=dataset.audio_column,
        language=dataset.language,
        timing=True,
        batch_size=options.batch_size,
        shard_size=options.batch_size,
        dtype=options.dtype,
    )


def score_folder(output: Path, model_id: str) -> dict[str, dict[str, float]]:
    """
    Score all result files of a model.

    Args:
        output (`Path`): Folder with result files of this run and of earlier runs.
        model_id (`str`): `owner/name` of the model.

    Returns:
        `dict[str, dict[str, float]]`: Result of [`~result_files.score_lines`] for each dataset. `"english"` and
        `"multilingual"` have the mean `wer` and the `rtfx` of a suite if results of all its datasets exist.
    """
    files = {dataset: output / dataset.manifest_name(model_id) for dataset in DATASETS.values()}
    results = {
        dataset.name: score_lines(read_result_file(file), dataset) for dataset, file in files.items() if file.is_file()
    }
    return results | summarize(results)


def summarize(results: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean error rate and overall speed of each suite with results of all its datasets."""
    suites = {}
    for suite, datasets in SUITES.items():
        members = [results[dataset.name] for dataset in datasets if dataset.name in results]
        if len(members) == len(datasets):
            duration, time = (sum(member[name] for member in members) for name in ("duration", "time"))
            suites[suite] = {"wer": sum(member["wer"] for member in members) / len(members), "rtfx": duration / time}
    return suites


def print_results(results: dict[str, dict[str, float]], console: Console) -> None:
    """Print a table with a row for each dataset and each complete suite."""
    rows = [
        [name, str(found.get("recordings", "")), f"{found['wer']:.2f}", f"{found['rtfx']:.2f}"]
        for name, found in results.items()
    ]
    Tables(console).add("Open ASR Leaderboard", ["dataset", "recordings", "WER %", "RTFx"], rows)


__all__ = ["LeaderboardOptions", "run_leaderboard", "score_folder"]
