"""`llm-asr leaderboard`: run a checkpoint on the datasets of the Open ASR Leaderboard, and write its result files."""

import argparse
import os
from pathlib import Path

from ..evaluation.leaderboard.dataset_list import DATASETS, SUITES
from .options import DTYPE_HELP, DTYPES, UsageError, load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="Folder or Hub id of a checkpoint.")
    parser.add_argument("--output", type=Path, required=True, help="Folder for result files and transcripts.")
    parser.add_argument(
        "--datasets",
        nargs="+",
        choices=[*SUITES, *DATASETS],
        default=["english"],
        metavar="NAME",
        help=f"Suites or datasets, by default english: {', '.join([*SUITES, *DATASETS])}.",
    )
    parser.add_argument(
        "--model-id", help="'owner/name' for the names of result files; by default --model, if it is a Hub id."
    )
    parser.add_argument(
        "--sources",
        nargs="+",
        default=[],
        metavar="NAME=PATH",
        help="Local copies of datasets: a JSON Lines, CSV, TSV or Parquet file, or a folder.",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=16,
        help="Number of recordings to transcribe and time together; by default 16.",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help=DTYPE_HELP)


def parse_sources(arguments: list[str]) -> dict[str, str]:
    """
    Parse the values of `--sources` into paths by the names of datasets.

    Raises:
        `UsageError`: If a value is not NAME=PATH, a name is unknown, or a path does not exist.
    """
    sources = {}
    for argument in arguments:
        name, _, path = argument.partition("=")
        if name not in DATASETS or not path:
            raise UsageError(f"--sources {argument!r} must be NAME=PATH, with one of the names {', '.join(DATASETS)}.")
        if not os.path.exists(path):
            raise UsageError(f"--sources {argument!r}: {path!r} does not exist.")
        sources[name] = path
    return sources


def run(args: argparse.Namespace) -> int:
    """
    Run the datasets; see [`add_arguments`].

    Raises:
        `UsageError`: If the checkpoint or a dataset cannot be used.
    """
    sources = parse_sources(args.sources)
    if args.model_id is None and os.path.isdir(args.model):
        raise UsageError(f"--model {args.model!r} is a folder; pass --model-id OWNER/NAME, which result files need.")
    load_config(args.model)
    try:
        from ..evaluation.leaderboard.running import LeaderboardOptions, run_leaderboard

        options = {
            name: getattr(args, name) for name in ("model", "output", "datasets", "model_id", "batch_size", "dtype")
        }
        run_leaderboard(LeaderboardOptions(**options, sources=sources))
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(error) from error
    return 0
