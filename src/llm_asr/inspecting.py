"""`llm-asr inspect`: what is in a checkpoint, without reading its weights."""

import argparse
import json
from pathlib import Path

from rich.console import Console

from .publishing.inspect import inspect_checkpoint, print_inspection
from .transcribing import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="Folder of a checkpoint.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")


def run(args: argparse.Namespace) -> int:
    """
    Describe what `args` name; see [`add_arguments`].

    Raises:
        `UsageError`: If there is no such checkpoint, or it is damaged.
    """
    try:
        report = inspect_checkpoint(args.folder)
    except (OSError, ValueError) as error:
        raise UsageError(error) from error
    if args.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        print_inspection(report, Console())
    return 0
