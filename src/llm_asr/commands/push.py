"""`llm-asr push`: push a checkpoint to the Hub with its code and its card in one commit."""

import argparse
import sys
from pathlib import Path

from .card import add_backbone_argument
from .options import CHECKPOINT_FORMS, UsageError, loading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="Folder of a checkpoint with its processor.")
    parser.add_argument("repo_id", metavar="REPO", help="user/name on the Hub; created if it does not exist.")
    parser.add_argument("--form", choices=CHECKPOINT_FORMS, help="Form to publish; by default the form of FOLDER.")
    add_backbone_argument(parser)
    parser.add_argument(
        "--base", metavar="ID[@REVISION]", help="Base of an adapter, if the adapter does not record it."
    )
    parser.add_argument(
        "--revision", metavar="BRANCH", default="main", help="Branch; created if it does not exist. By default main."
    )
    parser.add_argument("--private", action="store_true", default=None, help="Make a new repository private.")
    parser.add_argument("--message", help="Commit message.")
    parser.add_argument(
        "--parent", metavar="COMMIT", help="Commit on which FOLDER is based, if FOLDER does not record it."
    )
    parser.add_argument("--force", action="store_true", help="Replace files on top of any newest commit.")
    parser.add_argument("--dry-run", action="store_true", help="List the changes without making them.")


def run(args: argparse.Namespace) -> int:
    """
    Push the checkpoint; see [`add_arguments`]. The exit status is 1 if the Hub refuses the request or fails.

    Raises:
        `UsageError`: If there is no such checkpoint, or it cannot be published.
    """
    if not args.folder.is_dir():
        raise UsageError(f"{str(args.folder)!r} is not a folder.")
    from huggingface_hub.errors import HfHubHTTPError

    from ..modeling.checkpoint_safety import check_json_files
    from ..publishing.push import push_checkpoint

    with loading(repr(str(args.folder))):
        check_json_files(args.folder)
    try:
        report = push_checkpoint(
            args.folder,
            args.repo_id,
            args.form,
            revision=args.revision,
            private=args.private,
            commit_message=args.message,
            parent_commit=args.parent,
            force=args.force,
            dry_run=args.dry_run,
            backbones=dict(args.backbone) or None,
            base=args.base,
        )
    except (HfHubHTTPError, RuntimeError, ConnectionError) as error:
        # `huggingface_hub` wraps some errors in a `RuntimeError` with the name of the file; the cause has the reason.
        causes = " ".join(str(one) for one in (error, error.__cause__) if one)
        print(f"llm-asr push: error: {' '.join(causes.split())}", file=sys.stderr)
        print("Nothing has been committed. Run the same command again to continue the upload.", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        raise UsageError(error) from error
    print(report)
    return 0
