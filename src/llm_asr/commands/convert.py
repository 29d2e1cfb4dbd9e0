"""`llm-asr convert`: turn a published speech language model into a checkpoint of this package."""

import argparse
from pathlib import Path

from .options import DTYPES, UsageError, loading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="Folder or Hub id of the model.")
    parser.add_argument("output", metavar="OUT", type=Path, help="Folder to write. It must be new or empty.")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="Dtype of the weights; by default the saved one."
    )


def run(args: argparse.Namespace) -> int:
    """
    Convert the model; see [`add_arguments`].

    Raises:
        `UsageError`: If there is no such model, its family cannot be converted, or the output folder is not empty.
    """
    from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration
    from ..processing.processing_llm_asr import LlmAsrProcessor
    from ..publishing.checkpoint_forms import save_checkpoint
    from ..publishing.export import check_is_new

    try:
        check_is_new(args.output)
        with loading(repr(args.source)):
            processor = LlmAsrProcessor.from_speech_llm(args.source)
            model = LlmAsrForConditionalGeneration.from_speech_llm(args.source, processor=processor, dtype=args.dtype)
        save_checkpoint(model, processor, args.output)
    except (OSError, ValueError) as error:
        raise UsageError(error) from error
    print(f"{args.output}: {model.num_parameters() / 1e6:.1f} M parameters")
    return 0
