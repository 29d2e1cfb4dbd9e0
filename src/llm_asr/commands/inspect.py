"""`llm-asr inspect`: describe a checkpoint without reading its weights."""

import argparse
import json
from pathlib import Path

from .options import UsageError, loading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="Folder of a checkpoint.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")


def run(args: argparse.Namespace) -> int:
    """
    Describe the checkpoint; see [`add_arguments`].

    Raises:
        `UsageError`: If there is no such checkpoint, or it is damaged.
    """
    if not args.folder.is_dir():
        raise UsageError(f"{str(args.folder)!r} is not a folder.")
    from rich.console import Console

    from ..modeling.checkpoint_safety import check_json_files
    from ..publishing.inspect import inspect_checkpoint, print_inspection

    with loading(repr(str(args.folder))):
        check_json_files(args.folder)
        report = inspect_checkpoint(args.folder)
    if args.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        print_inspection(report, Console())
    return 0
