"""`llm-asr export`: write a checkpoint as front end and language model for a serving engine, or as ONNX graphs."""

import argparse
from pathlib import Path
from typing import Any

from .options import DTYPES, RECOGNITION_DTYPES, UsageError, loading


FORMATS = ("serving", "onnx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="FOLDER", help="Folder or Hub id of a checkpoint; adapters are merged.")
    parser.add_argument("output", metavar="OUT", type=Path, help="Folder to write. It must be new or empty.")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="serving",
        help="serving: front end and language model as two checkpoints. onnx: graphs that run without PyTorch.",
    )
    parser.add_argument(
        "--dtype",
        choices=RECOGNITION_DTYPES,
        default="auto",
        help="Dtype of the weights; by default the saved one. ONNX graphs have float32, their default, or int8.",
    )


def run(args: argparse.Namespace) -> int:
    """
    Export the checkpoint; see [`add_arguments`].

    Raises:
        `UsageError`: If there is no such checkpoint, it has another model type, the output folder is not empty, or the format
            does not have the dtype or a part of the model.
    """
    dtypes = DTYPES if args.format == "serving" else ("auto", "float32", "int8")
    if args.dtype not in dtypes:
        raise UsageError(f"--format {args.format} has no --dtype {args.dtype}; pass one of {', '.join(dtypes)}.")
    try:
        return _export_onnx(args) if args.format == "onnx" else _export_for_serving(args)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(error) from error


def _load(args: argparse.Namespace, dtype: str) -> tuple[Any, Any]:
    """The model and the processor, if the output folder can be written."""
    from ..modeling.checkpoint_safety import check_json_files
    from ..publishing.checkpoint_forms import fetch_checkpoint, load_checkpoint
    from ..publishing.export import check_is_new

    check_is_new(args.output)
    with loading(repr(args.model)):
        folder = fetch_checkpoint(args.model)
        check_json_files(folder)
        return load_checkpoint(folder, dtype)


def _export_for_serving(args: argparse.Namespace) -> int:
    from ..publishing.export import export_for_serving

    model, processor = _load(args, args.dtype)
    export_for_serving(model, processor, args.output)
    for part in ("front_end", "language_model"):
        size = sum(file.stat().st_size for file in (args.output / part).rglob("*.safetensors"))
        print(f"{args.output / part}: {size / 1e6:.1f} MB of weights")
    return 0


def _export_onnx(args: argparse.Namespace) -> int:
    from ..publishing.onnx_export import check_packages, export_onnx

    check_packages()
    model, processor = _load(args, "float32")
    export_onnx(model, processor, args.output, "float32" if args.dtype == "auto" else args.dtype)
    for graph in sorted(args.output.glob("*.onnx")):
        size = sum(file.stat().st_size for file in args.output.glob(f"{graph.name}*"))
        print(f"{graph}: {size / 1e6:.1f} MB")
    return 0
