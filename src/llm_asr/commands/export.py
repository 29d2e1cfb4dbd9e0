"""`llm-asr export`: split a checkpoint into front end and language model for a serving engine."""

import argparse
from pathlib import Path

from .options import DTYPES, UsageError, loading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="FOLDER", help="Folder or Hub id of a checkpoint; adapters are merged.")
    parser.add_argument("output", metavar="OUT", type=Path, help="Folder to write. It must be new or empty.")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="Dtype of the weights; by default the saved one."
    )


def run(args: argparse.Namespace) -> int:
    """
    Export the checkpoint; see [`add_arguments`].

    Raises:
        `UsageError`: If there is no such checkpoint, it has another model type, or the output folder is not empty.
    """
    from ..modeling.checkpoint_safety import check_json_files
    from ..publishing.checkpoint_forms import fetch_checkpoint, load_checkpoint
    from ..publishing.export import check_is_new, export_for_serving

    try:
        check_is_new(args.output)
        with loading(repr(args.model)):
            folder = fetch_checkpoint(args.model)
            check_json_files(folder)
            model, processor = load_checkpoint(folder, args.dtype)
        export_for_serving(model, processor, args.output)
    except (OSError, ValueError) as error:
        raise UsageError(error) from error
    for part in ("front_end", "language_model"):
        size = sum(file.stat().st_size for file in (args.output / part).rglob("*.safetensors"))
        print(f"{args.output / part}: {size / 1e6:.1f} MB of weights")
    return 0
