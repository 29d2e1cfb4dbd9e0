"""
Transcribe a whole dataset, of any size, on any number of processes and machines, into Parquet files.

    python examples/transcribe_dataset.py --model runs/demo --dataset data/demo/test.jsonl --output transcripts
    torchrun --nproc_per_node 8 --max-restarts 3 examples/transcribe_dataset.py --model MODEL --dataset google/fleurs \
        --name es_419 --split train --streaming --output transcripts

Each process writes files of up to --shard-size rows, one after the other, and each file appears when it is complete. So a run
that was killed, or of which a machine was lost, goes on where it stopped when it is started again, with any number of
processes: no row is missing and none is there twice. All processes must see the folder. Read it with
`load_dataset("parquet", data_files="transcripts/*.parquet")`.

Rows have the columns of the dataset but the audio; `shard` and `row`, which together name a row; `transcript`,
`transcript_language` and, with --timestamps, `transcript_chunks`; and `error`, which says why a recording could not be read.
"""

import argparse
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset, Features, IterableDataset, Value, disable_progress_bars
from evaluate import file_stamps
from tqdm.auto import tqdm
from transformers import Pipeline, pipeline

from llm_asr.training.datasets_asr import locate_audio, open_dataset


# Loading a model and a dataset may take one process longer than another.
PATIENCE = timedelta(hours=2)

# Rows that the types of columns are read off where a dataset does not tell them.
ROWS_TO_INFER_FROM = 100

TRANSCRIPT = {
    "shard": Value("int64"),
    "row": Value("int64"),
    "transcript": Value("string"),
    "transcript_language": Value("string"),
    "error": Value("string"),
}
CHUNKS = [{"text": Value("string"), "start": Value("float64"), "end": Value("float64")}]


def open_shards(args: argparse.Namespace) -> tuple[IterableDataset, Features]:
    """The dataset as shards that processes can share out, and the columns of the transcripts."""
    columns = (args.audio_column, *([args.language_column] if args.language_column else []))
    rows = open_dataset(args.dataset, args.name, args.split, columns, args.streaming)
    features = rows.features or Dataset.from_list(list(rows.take(ROWS_TO_INFER_FROM))).features
    if isinstance(rows, Dataset):
        rows = rows.to_iterable_dataset(num_shards=max(1, -(-len(rows) // args.shard_size)))
    taken = set(TRANSCRIPT) & set(features)
    if taken:
        raise ValueError(f"Columns {sorted(taken)} of {args.dataset!r} have names that transcripts need; rename them.")
    kept = {name: feature for name, feature in features.items() if name != args.audio_column}
    chunks = {"transcript_chunks": CHUNKS} if args.timestamps else {}
    return rows, Features({**kept, **TRANSCRIPT, **chunks})


def transcribe(transcriber: Pipeline, rows: list[dict], args: argparse.Namespace) -> Iterator[dict]:
    """`transcript`, `transcript_language`, `error` and, if asked for, `transcript_chunks` of each row, in order."""
    options = {"segment": {"return_timestamps": True}, "word": {"return_timestamps": "word"}}.get(args.timestamps, {})
    groups: dict[str | None, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row[args.language_column] if args.language_column else None, []).append(index)
    outputs: list[dict] = [{}] * len(rows)
    for language, members in groups.items():
        recordings = [locate_audio(rows[index][args.audio_column], args.dataset) for index in members]
        options["language"] = language
        try:
            results = transcriber(recordings, batch_size=args.batch_size, **options)
        except (TypeError, ValueError):
            # One that cannot be read must not take the others with it.
            results = [_transcribe_alone(transcriber, recording, options) for recording in recordings]
        for index, result in zip(members, results, strict=True):
            outputs[index] = result
    for output in outputs:
        result = {
            "transcript": output.get("text"),
            "transcript_language": output.get("language"),
            "error": output.get("error"),
        }
        if args.timestamps:
            result["transcript_chunks"] = [
                {"text": chunk["text"], "start": chunk["timestamp"][0], "end": chunk["timestamp"][1]}
                for chunk in output.get("chunks", [])
            ]
        yield result


def _transcribe_alone(transcriber: Pipeline, recording: dict | str | None, options: dict) -> dict:
    try:
        return transcriber([recording], **options)[0]
    except (TypeError, ValueError) as error:
        return {"error": str(error)}


def check_same_run(file: Path, made_from: dict) -> None:
    """
    Say in `file` what transcripts are made from.

    Raises:
        `ValueError`: If those that are there were made from something else.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(made_from, indent=1), encoding="utf-8")
        os.replace(partial, file)
    found = json.loads(file.read_text(encoding="utf-8"))
    differences = [name for name in made_from if found.get(name) != made_from[name]]
    if differences:
        raise ValueError(
            f"{str(file.parent)!r} was begun with another {', '.join(differences)}; choose another --output."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder or Hub id of a checkpoint.")
    parser.add_argument("--dataset", required=True, help="JSON Lines, CSV, TSV or Parquet file, or a Hub id.")
    parser.add_argument("--name", help="Configuration of a Hub dataset.")
    parser.add_argument("--split", default="train", help="Split of a Hub dataset.")
    parser.add_argument("--streaming", action="store_true", help="Read rows as they are needed and keep none on disk.")
    parser.add_argument("--audio-column", default="audio")
    parser.add_argument("--language-column", help="Tell the model the language of each row; else it finds out.")
    parser.add_argument("--timestamps", choices=["segment", "word"], help="Times of segments or, with CIF, of words.")
    parser.add_argument("--batch-size", type=int, default=16, help="Segments that are transcribed together.")
    parser.add_argument(
        "--shard-size", type=int, default=256, help="Rows of a file, of which a killed process loses one."
    )
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--output", type=Path, required=True, help="Folder for Parquet files.")
    args = parser.parse_args()
    for option in ("batch_size", "shard_size"):
        if vars(args)[option] < 1:
            parser.error(f"argument --{option.replace('_', '-')}: must be positive, got {vars(args)[option]}.")

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    disable_progress_bars()
    with state.local_main_process_first():
        rows, features = open_shards(args)
    transcriber = pipeline("automatic-speech-recognition", model=args.model, device=state.device, dtype=args.dtype)
    options = (
        "model",
        "dataset",
        "name",
        "split",
        "streaming",
        "audio_column",
        "language_column",
        "timestamps",
        "dtype",
    )
    made_from = {
        **{name: vars(args)[name] for name in (*options, "shard_size")},
        "model files": file_stamps(args.model),
        "model commit": getattr(transcriber.model.config, "_commit_hash", None),
        "dataset files": file_stamps(args.dataset),
        "number of shards": rows.num_shards,
    }
    with state.main_process_first():
        check_same_run(args.output / "transcription.json", made_from)
    if rows.num_shards < state.num_processes:
        state.print(f"{args.dataset} has {rows.num_shards} shards: other processes have nothing to do.")

    with tqdm(desc="Transcribing", unit="row", disable=not state.is_main_process) as progress:
        for shard in range(state.process_index, rows.num_shards, state.num_processes):
            begun = sorted(args.output.glob(f"part-{shard:05d}-*.parquet"))
            first = len(begun) * args.shard_size
            remaining = iter(rows.shard(rows.num_shards, shard).skip(first))
            while members := list(islice(remaining, args.shard_size)):
                file = args.output / f"part-{shard:05d}-{first // args.shard_size:05d}.parquet"
                transcripts = [
                    {**{name: row.get(name) for name in features}, "shard": shard, "row": first + index, **transcript}
                    for index, (row, transcript) in enumerate(
                        zip(members, transcribe(transcriber, members, args), strict=True)
                    )
                ]
                partial = file.with_suffix(".partial")
                Dataset.from_list(transcripts, features=features).to_parquet(partial)
                os.replace(partial, file)
                first += len(members)
                progress.update(len(members))
    state.destroy_process_group()


if __name__ == "__main__":
    main()
