"""`llm-asr export`: a checkpoint in two parts, front end and language model, for a serving engine."""

import argparse
from pathlib import Path

from .publishing.checkpoint_forms import fetch_checkpoint, load_checkpoint
from .publishing.export import check_is_new, export_for_serving
from .transcribing import DTYPES, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="FOLDER", help="Folder or Hub id of a checkpoint; adapters are merged.")
    parser.add_argument("output", metavar="OUT", type=Path, help="Folder to write to; must be new or empty.")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="Of the weights; by default as saved.")


def run(args: argparse.Namespace) -> int:
    """
    Export what `args` name; see [`add_arguments`].

    Raises:
        `UsageError`: If there is no such checkpoint, it is of another family, or there is something in the output folder.
    """
    try:
        check_is_new(args.output)
        model, processor = load_checkpoint(fetch_checkpoint(args.model), args.dtype)
        export_for_serving(model, processor, args.output)
    except (OSError, ValueError) as error:
        raise UsageError(error) from error
    for part in ("front_end", "language_model"):
        size = sum(file.stat().st_size for file in (args.output / part).rglob("*.safetensors"))
        print(f"{args.output / part}: {size / 1e6:.1f} MB of weights")
    return 0
