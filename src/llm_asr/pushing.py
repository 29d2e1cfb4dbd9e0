"""`llm-asr push`: a checkpoint to the Hub, with its code and its card, in one commit."""

import argparse
import sys
from pathlib import Path

from huggingface_hub.constants import DEFAULT_REVISION
from huggingface_hub.errors import HfHubHTTPError

from .describing import add_backbone_argument
from .publishing.checkpoint_forms import FORMS
from .publishing.push import push_checkpoint
from .transcribing import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="Folder of a checkpoint with its processor.")
    parser.add_argument("repo_id", metavar="REPO", help="user/name on the Hub; created if it does not exist.")
    parser.add_argument("--form", choices=FORMS, help="Form to publish; by default the one that it has.")
    add_backbone_argument(parser)
    parser.add_argument("--base", metavar="ID[@REVISION]", help="What an adapter is for, if it does not say it.")
    parser.add_argument("--revision", metavar="BRANCH", default=DEFAULT_REVISION, help="Created if it does not exist.")
    parser.add_argument("--private", action="store_true", default=None, help="If the repository is created.")
    parser.add_argument("--message", help="Of the commit.")
    parser.add_argument("--parent", metavar="COMMIT", help="Commit that FOLDER comes from, if it does not know.")
    parser.add_argument("--force", action="store_true", help="Replace whatever the newest commit has.")
    parser.add_argument("--dry-run", action="store_true", help="Only list what would be uploaded.")


def run(args: argparse.Namespace) -> int:
    """
    Push what `args` name; see [`add_arguments`]. Exit status 1 if the Hub refuses or fails.

    Raises:
        `UsageError`: If there is no such checkpoint, or it cannot be published.
    """
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
        # `huggingface_hub` raises a `RuntimeError` for one of its own where it knows the file.
        causes = " ".join(str(one) for one in (error, error.__cause__) if one)
        print(f"llm-asr push: error: {' '.join(causes.split())}", file=sys.stderr)
        print("Nothing has been committed; the same command goes on where it stopped.", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        raise UsageError(error) from error
    print(report)
    return 0
