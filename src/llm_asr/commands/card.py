"""`llm-asr card`: write the model card of a checkpoint from the files of its training and its evaluations."""

import argparse
from pathlib import Path

from .options import UsageError


# Parts that can have a licence of their own.
LICENSED = ("audio_tower", "language_model", "projector", "data")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="Folder of a checkpoint.")
    parser.add_argument(
        "--run", dest="training_run", type=Path, help="Folder of the training run; by default FOLDER itself."
    )
    parser.add_argument("--repo-id", metavar="USER/NAME", help="Future Hub id of the checkpoint.")
    parser.add_argument(
        "--evaluation",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="JSON reports of llm-asr evaluate; by default the reports in the run's folder.",
    )
    parser.add_argument(
        "--language", metavar="CODE", nargs="+", help="Languages; by default the languages of the evaluations."
    )
    parser.add_argument(
        "--dataset", metavar="NAME", nargs="+", help="Training datasets; by default the datasets in the run's record."
    )
    add_backbone_argument(parser)
    parser.add_argument("--license", metavar="ID", help="Licence of the whole checkpoint, such as apache-2.0.")
    parser.add_argument(
        "--license-of",
        metavar="PART=ID",
        nargs="+",
        default=[],
        type=parse_pair,
        help=f"Licence of one of {', '.join(LICENSED)}; by default audio_tower and language_model have the licence in their "
        "own model cards.",
    )
    parser.add_argument("--hardware", help="Hardware of the training; by default the hardware in the run's record.")
    parser.add_argument("--hours", type=float, help="Hours of training; by default the hours in the run's record.")
    parser.add_argument("--limit", metavar="SENTENCE", nargs="+", default=[], help="Further limits of the model.")
    parser.add_argument(
        "--no-pictures", action="store_true", help="Draw no pictures, so that matplotlib is not needed."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an existing card.")


def add_backbone_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backbone",
        metavar="PART=ID",
        nargs="+",
        default=[],
        type=parse_pair,
        help="Hub id of audio_tower or language_model, if the checkpoint does not record it.",
    )


def parse_pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        raise argparse.ArgumentTypeError(f"{text!r} must be of the form PART=ID.")
    return name, value


def run(args: argparse.Namespace) -> int:
    """
    Write the card; see [`add_arguments`].

    Raises:
        `UsageError`: If there is no such checkpoint, a card exists already, or matplotlib is missing for pictures.
    """
    if not args.folder.is_dir():
        raise UsageError(f"{str(args.folder)!r} is not a folder.")
    from ..publishing.model_card import write_model_card

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
