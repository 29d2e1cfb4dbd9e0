"""Transcribes datasets of any size into Parquet files, with any number of processes and machines."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import cast

import torch
from accelerate import PartialState
from datasets import Dataset, Features, IterableDataset, Value, disable_progress_bars
from tqdm.auto import tqdm
from transformers import pipeline

from . import registration  # noqa: F401 (registers the model for `pipeline`)
from .atomic_writing import atomic_path, write_text
from .datasets_asr import locate_audio, open_dataset
from .file_stamps import file_stamps
from .processing.audio import load_audio
from .processing.pipeline_llm_asr import LlmAsrPipeline


# Timeout for waiting processes: loading a model and a dataset may take much longer in one process than in another.
PATIENCE = timedelta(hours=2)

# Number of rows for inferring the types of columns, if a dataset does not provide them.
ROWS_TO_INFER_FROM = 100

TRANSCRIPT = {
    "shard": Value("int64"),
    "row": Value("int64"),
    "transcript": Value("string"),
    "transcript_language": Value("string"),
    "error": Value("string"),
}
TIMING = {"duration": Value("float64"), "time": Value("float64")}
CHUNKS = [{"text": Value("string"), "start": Value("float64"), "end": Value("float64")}]


@dataclass
class DatasetTranscription:
    """
    Options of transcribing a dataset.

    Args:
        model (`str`): Folder or Hub id of a checkpoint.
        dataset (`str`): JSON Lines, CSV, TSV or Parquet file, a folder that `datasets` reads, or a Hub id.
        output (`Path`): Folder for Parquet files.
        name (`str`, *optional*): Configuration of a Hub dataset.
        split (`str`, *optional*, defaults to `"train"`): Split of a Hub dataset.
        streaming (`bool`, *optional*, defaults to `False`): Whether to read rows during transcription instead of saving them
            on disk before.
        audio_column (`str`, *optional*, defaults to `"audio"`): Column with recordings.
        language_column (`str`, *optional*): Column with the language of each row. By default the model identifies it.
        language (`str`, *optional*): Language of all rows.
        timestamps (`str`, *optional*): `"segment"` or, with CIF, `"word"`.
        timing (`bool`, *optional*, defaults to `False`):
            Whether to add `duration`, the duration of each recording in seconds, and `time`, its share of the computing time
            of its file in seconds. The time does not include decoding. A process transcribes its first rows twice to warm up.
        batch_size (`int`, *optional*, defaults to 16): Number of segments in a batch.
        shard_size (`int`, *optional*, defaults to 256): Number of rows in a file. A killed process loses at most one file.
        dtype (`str`, *optional*, defaults to `"auto"`): Dtype of the weights.

    Raises:
        `ValueError`: If a size is not positive, or both `language` and `language_column` are set.
    """

    model: str
    dataset: str
    output: Path
    name: str | None = None
    split: str = "train"
    streaming: bool = False
    audio_column: str = "audio"
    language_column: str | None = None
    language: str | None = None
    timestamps: str | None = None
    timing: bool = False
    batch_size: int = 16
    shard_size: int = 256
    dtype: str = "auto"

    def __post_init__(self):
        for size in ("batch_size", "shard_size"):
            if getattr(self, size) < 1:
                raise ValueError(f"`{size}` must be positive, got {getattr(self, size)}.")
        if self.language is not None and self.language_column is not None:
            raise ValueError(
                "`language` applies to all rows, and `language_column` to each row; set only one of them."
            )


def open_shards(options: DatasetTranscription) -> tuple[IterableDataset, Features]:
    """Open the dataset as shards, which are distributed over processes, and return the features of the transcripts."""
    columns = (options.audio_column, *([options.language_column] if options.language_column else []))
    rows = open_dataset(options.dataset, options.name, options.split, columns, options.streaming)
    features = rows.features or Dataset.from_list(list(rows.take(ROWS_TO_INFER_FROM))).features
    if isinstance(rows, Dataset):
        rows = rows.to_iterable_dataset(num_shards=max(1, -(-len(rows) // options.shard_size)))
    added = {
        **TRANSCRIPT,
        **({"transcript_chunks": CHUNKS} if options.timestamps else {}),
        **(TIMING if options.timing else {}),
    }
    taken = set(added) & set(features)
    if taken:
        raise ValueError(
            f"Columns {sorted(taken)} of {options.dataset!r} have names that transcripts need; rename them."
        )
    kept = {name: feature for name, feature in features.items() if name != options.audio_column}
    return rows, Features({**kept, **added})


def transcribe(transcriber: LlmAsrPipeline, rows: list[dict], options: DatasetTranscription) -> Iterator[dict]:
    """Yield `transcript`, `transcript_language`, `error` and, with `timestamps`, `transcript_chunks` of each row in order."""
    requests: dict[str | None, dict] = {
        "segment": {"return_timestamps": True},
        "word": {"return_timestamps": "word"},
    }
    request = requests.get(options.timestamps, {})
    groups: dict[str | None, list[int]] = {}
    for index, row in enumerate(rows):
        language = row[options.language_column] if options.language_column else options.language
        groups.setdefault(language, []).append(index)
    outputs: list[dict] = [{}] * len(rows)
    for language, members in groups.items():
        recordings = [rows[index][options.audio_column] for index in members]
        request["language"] = language
        try:
            results = transcriber(recordings, batch_size=options.batch_size, **request)
        except (TypeError, ValueError):
            # One unreadable recording fails the whole call, so transcribe each recording alone.
            results = [_transcribe_alone(transcriber, recording, request) for recording in recordings]
        for index, result in zip(members, results, strict=True):
            outputs[index] = result
    for output in outputs:
        result = {
            "transcript": output.get("text"),
            "transcript_language": output.get("language"),
            "error": output.get("error"),
        }
        if options.timestamps:
            result["transcript_chunks"] = [
                {"text": chunk["text"], "start": chunk["timestamp"][0], "end": chunk["timestamp"][1]}
                for chunk in output.get("chunks", [])
            ]
        yield result


def time_transcription(transcriber: LlmAsrPipeline, rows: list[dict], options: DatasetTranscription) -> Iterator[dict]:
    """Yield the results of [`transcribe`], with `duration` and `time` for each readable recording."""
    decoded, unread = [], {}
    for index, row in enumerate(rows):
        try:
            audio = load_audio(row[options.audio_column], transcriber.processor.sampling_rate)
            decoded.append({**row, options.audio_column: audio})
        except (TypeError, ValueError) as error:
            unread[index] = {"error": str(error)}
    started = perf_counter()
    transcripts = iter(list(transcribe(transcriber, decoded, options)))
    share = (perf_counter() - started) / max(1, len(decoded))
    durations = iter([len(row[options.audio_column]) / transcriber.processor.sampling_rate for row in decoded])
    for index in range(len(rows)):
        yield unread.get(index) or {**next(transcripts), "duration": next(durations), "time": share}


def _transcribe_alone(transcriber: LlmAsrPipeline, recording: dict | str | None, request: dict) -> dict:
    try:
        return transcriber([recording], **request)[0]
    except (TypeError, ValueError) as error:
        return {"error": str(error)}


def check_same_run(file: Path, made_from: dict) -> None:
    """
    Record in `file` from what the transcripts are made.

    Raises:
        `ValueError`: If `file` exists and differs.
    """
    if not file.exists():
        write_text(file, json.dumps(made_from, indent=1))
    found = json.loads(file.read_text(encoding="utf-8"))
    differences = [name for name in made_from if found.get(name) != made_from[name]]
    if differences:
        raise ValueError(
            f"{str(file.parent)!r} was started with another {', '.join(differences)}; choose another `output`."
        )


def transcribe_dataset(options: DatasetTranscription) -> None:
    """
    Transcribe a dataset into Parquet files, in one process or in several processes of `torchrun`.

    Each process writes one file of up to `shard_size` rows after the other. A file gets its name when it is complete. An
    interrupted run continues when it is started again, with any number of processes, and writes every row exactly once. All
    processes must share the output folder.

    Rows have the columns of the dataset except the audio; `shard` and `row`, which together identify a row; `transcript`,
    `transcript_language` and, with `timestamps`, `transcript_chunks`; with `timing`, `duration` and `time`; and `error`, the reason
    why a recording could not be read.

    Args:
        options ([`DatasetTranscription`]): Options of the transcription.

    Raises:
        `ValueError`: If the dataset lacks a column, or the folder has transcripts of another model, dataset or option.
    """
    state = start_processes()
    with state.local_main_process_first():
        shards = open_shards(options)
    transcriber = load_transcriber(options.model, options.dtype, state)
    write_transcripts(options, shards, transcriber, state)
    state.destroy_process_group()


def start_processes() -> PartialState:
    """Join the processes of `torchrun`."""
    disable_progress_bars()
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def load_transcriber(model: str, dtype: str, state: PartialState) -> LlmAsrPipeline:
    """Load the pipeline of a checkpoint on the device of this process."""
    transcriber = pipeline("automatic-speech-recognition", model=model, device=state.device, dtype=dtype)
    # `registration` makes it the pipeline of the task.
    return cast(LlmAsrPipeline, transcriber)


def write_transcripts(
    options: DatasetTranscription,
    shards: tuple[IterableDataset, Features],
    transcriber: LlmAsrPipeline,
    state: PartialState,
) -> None:
    """
    Write the files of this process; see [`transcribe_dataset`].

    Args:
        options ([`DatasetTranscription`]): Options of the transcription.
        shards (`tuple[IterableDataset, Features]`): Result of [`open_shards`].
        transcriber ([`LlmAsrPipeline`]): Pipeline of the checkpoint `options.model`.
        state (`PartialState`): Result of [`start_processes`].

    Raises:
        `ValueError`: If the folder has transcripts of another model, dataset or option.
    """
    rows, features = shards
    made_from = {
        **{name: value for name, value in vars(options).items() if name not in ("batch_size", "output")},
        "model files": file_stamps(options.model),
        "model commit": getattr(transcriber.model.config, "_commit_hash", None),
        "dataset files": file_stamps(options.dataset),
        "number of shards": rows.num_shards,
    }
    with state.main_process_first():
        check_same_run(options.output / "transcription.json", made_from)
    if rows.num_shards < state.num_processes:
        state.print(f"{options.dataset} has {rows.num_shards} shards; further processes have nothing to do.")

    warm = not options.timing
    with tqdm(desc="Transcribing", unit="row", disable=not state.is_main_process) as progress:
        for shard in range(state.process_index, rows.num_shards, state.num_processes):
            begun = sorted(options.output.glob(f"part-{shard:05d}-*.parquet"))
            first = len(begun) * options.shard_size
            remaining = iter(rows.shard(rows.num_shards, shard).skip(first))
            while members := list(islice(remaining, options.shard_size)):
                file = options.output / f"part-{shard:05d}-{first // options.shard_size:05d}.parquet"
                audio = [locate_audio(row[options.audio_column], options.dataset) for row in members]
                located = [{**row, options.audio_column: source} for row, source in zip(members, audio, strict=True)]
                if not warm:
                    list(time_transcription(transcriber, located[: options.batch_size], options))
                    warm = True
                method = time_transcription if options.timing else transcribe
                transcripts = [
                    {**{name: row.get(name) for name in features}, "shard": shard, "row": first + index, **transcript}
                    for index, (row, transcript) in enumerate(
                        zip(members, method(transcriber, located, options), strict=True)
                    )
                ]
                with atomic_path(file) as partial:
                    Dataset.from_list(transcripts, features=features).to_parquet(partial)
                first += len(members)
                progress.update(len(members))


__all__ = [
    "DatasetTranscription",
    "check_same_run",
    "load_transcriber",
    "open_shards",
    "start_processes",
    "transcribe_dataset",
    "write_transcripts",
]
