"""`llm-asr evaluate`: measure error rates of a checkpoint on a dataset, by language, and measures of its projector."""

import argparse
from pathlib import Path

from .options import INT8_HELP, RECOGNITION_DTYPES, UsageError, loading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="Folder or Hub id of a checkpoint.")
    parser.add_argument("--dataset", required=True, help="JSON Lines, CSV, TSV or Parquet file, or a Hub id.")
    parser.add_argument("--split", default="test", help="Split of a Hub dataset; by default test.")
    parser.add_argument("--batch-size", type=int, default=16, help="Number of segments in a batch; by default 16.")
    parser.add_argument("--tell-language", action="store_true", help="Name each recording's language in the prompt.")
    parser.add_argument(
        "--task",
        choices=["transcribe", "translate"],
        default="transcribe",
        help="'translate' reports BLEU and chrF against the columns translation and target_language.",
    )
    parser.add_argument(
        "--keywords",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="Also transcribe with lists of N keywords, such as 0 10 25 100, and report what they do.",
    )
    parser.add_argument("--dtype", choices=RECOGNITION_DTYPES, default="auto", help=INT8_HELP)
    parser.add_argument(
        "--normalizer",
        choices=["basic", "whisper"],
        default="basic",
        help="'basic' removes case and punctuation. 'whisper' is the normaliser of Whisper's paper, for comparison with "
        "published numbers; for English it writes spoken numbers in digits, and joins consecutive numbers to one word.",
    )
    parser.add_argument("--examples", type=int, default=3, help="Recordings of each language to show; by default 3.")
    parser.add_argument(
        "--output", type=Path, help="JSON file for the report; Markdown tables and hypotheses are written beside it."
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="Discard hypotheses of an earlier run with the same --output."
    )


def run(args: argparse.Namespace) -> int:
    """
    Run the evaluation; see [`add_arguments`].

    Raises:
        `UsageError`: If the checkpoint or the dataset cannot be used, or matplotlib is missing for pictures.
    """
    if args.output is not None and args.output.suffix != ".json":
        raise UsageError(f"--output {str(args.output)!r} must end in .json; other files are named after it.")
    if args.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {args.batch_size}.")
    with loading(f"--model {args.model!r}"):
        from ..evaluation.dataset_evaluation import EvaluationOptions, evaluate_dataset
        from ..modeling.checkpoint_safety import check_json_files

        check_json_files(args.model)
    names = EvaluationOptions.__dataclass_fields__
    try:
        evaluate_dataset(EvaluationOptions(**{name: getattr(args, name) for name in names}))
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(error) from error
    return 0
