"""`llm-asr train`: train a checkpoint with a recipe."""

import argparse

from .options import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "llm-asr train RECIPE.yaml [--learning_rate 1e-4 ...]"
    parser.epilog = (
        "All fields of ModelArguments, DataArguments and LlmAsrTrainingArguments can be options in the recipe or flags. Flags "
        "override the recipe. `llm-asr train --options` lists all of them. On several GPUs: torchrun --nproc_per_node 8 "
        "-m llm_asr train RECIPE.yaml"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="RECIPE.yaml --option value")


def run(args: argparse.Namespace) -> int:
    """
    Train with the recipe and the flags in `args`.

    Raises:
        `UsageError`: If the recipe or an option is invalid. Later errors keep their traceback.
    """
    from ..training.program import parse_arguments, train

    arguments = ["--help"] if args.arguments[:1] == ["--options"] else args.arguments
    try:
        options = parse_arguments(arguments)
    except (OSError, ValueError) as error:
        raise UsageError(error) from error
    train(*options)
    return 0


__all__ = ["add_arguments", "run"]
