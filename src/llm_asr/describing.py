"""`llm-asr card`: the model card of a checkpoint, from what its training and its evaluations left."""

import argparse
from pathlib import Path

from .publishing.model_card import LICENSED, write_model_card
from .transcribing import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="Folder of a checkpoint.")
    parser.add_argument(
        "--run", dest="training_run", type=Path, help="Folder of the run that trained it; by default FOLDER itself."
    )
    parser.add_argument("--repo-id", metavar="USER/NAME", help="Where it is to be published.")
    parser.add_argument(
        "--evaluation",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="JSON reports of examples/evaluate.py; by default those in the run's folder.",
    )
    parser.add_argument("--language", metavar="CODE", nargs="+", help="By default those of the evaluations.")
    parser.add_argument(
        "--dataset", metavar="NAME", nargs="+", help="Training data; by default what the run recorded."
    )
    add_backbone_argument(parser)
    parser.add_argument("--license", metavar="ID", help="Of the whole, such as apache-2.0.")
    parser.add_argument(
        "--license-of",
        metavar="PART=ID",
        nargs="+",
        default=[],
        type=parse_pair,
        help=f"Of one of {', '.join(LICENSED)}; backbones say theirs themselves where they can be asked.",
    )
    parser.add_argument("--hardware", help="That trained; by default what the run recorded.")
    parser.add_argument("--hours", type=float, help="That it took; by default what the run recorded.")
    parser.add_argument("--limit", metavar="SENTENCE", nargs="+", default=[], help="What the model cannot do.")
    parser.add_argument("--no-pictures", action="store_true", help="Draw nothing; needs no matplotlib.")
    parser.add_argument("--overwrite", action="store_true", help="Replace a card that is there.")


def add_backbone_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backbone",
        metavar="PART=ID",
        nargs="+",
        default=[],
        type=parse_pair,
        help="Hub id of audio_tower or language_model, where the checkpoint does not say it.",
    )


def parse_pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        raise argparse.ArgumentTypeError(f"{text!r} must be of the form PART=ID.")
    return name, value


def run(args: argparse.Namespace) -> int:
    """
    Write the card that `args` describe; see [`add_arguments`].

    Raises:
        `UsageError`: If there is no such checkpoint, a card is there, or there is nothing to draw with.
    """
    try:
        card = write_model_card(
            args.folder,
            run=args.training_run,
            repo_id=args.repo_id,
            evaluations=args.evaluation,
            languages=args.language,
            datasets=args.dataset,
            backbones=dict(args.backbone),
            license=args.license,
            licenses=dict(args.license_of),
            hardware=args.hardware,
            hours=args.hours,
            limits=args.limit,
            pictures=not args.no_pictures,
            overwrite=args.overwrite,
        )
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(error) from error
    print(card)
    return 0
