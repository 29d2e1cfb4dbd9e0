"""A checkpoint's two parts, exported once for each content of the checkpoint."""

import hashlib
import os
from pathlib import Path

from peft import PeftConfig
from transformers.utils import logging

from .. import __version__
from ..modeling.slim_checkpoint import ADAPTER_FOLDER
from ..publishing.checkpoint_forms import fetch_checkpoint, find_form, load_checkpoint
from ..publishing.export import export_for_serving


logger = logging.get_logger(__name__)

# Whatever loading reads has one of these; the state of a training run has others.
SUFFIXES = (".jinja", ".json", ".model", ".safetensors", ".txt")


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/llm-asr/exports`, or the same below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-asr" / "exports"


def export_cached(model: str, cache: Path) -> Path:
    """
    The folder of [`export_for_serving`], which is written if there is none for what `model` holds.

    Args:
        model (`str`): Folder or Hub id of a checkpoint in any form; adapters are merged.
        cache (`Path`): Where exports are kept, one a content. Whatever is in it may be deleted while no server runs.

    Raises:
        `ValueError`: If it is of another family.
        `OSError`: If there is no such checkpoint.
    """
    folder = fetch_checkpoint(model)
    folders = [folder]
    if find_form(folder) == "adapter":
        settings = PeftConfig.from_pretrained(folder)
        folders.append(fetch_checkpoint(settings.base_model_name_or_path, settings.revision))
    exported = cache / checksum(folders)
    if exported.is_dir():
        return exported
    logger.warning(f"Exporting {model} to {exported}.")
    whole, processor = load_checkpoint(folder)
    try:
        export_for_serving(whole, processor, exported)
    except (OSError, ValueError):
        # Another server may have been quicker.
        if not exported.is_dir():
            raise
    return exported


def checksum(folders: list[Path]) -> str:
    """Of this release, and the names and contents of all files in `folders` that loading may read: 32 hexadecimal digits."""
    # Another release may write other exports.
    digest = hashlib.sha256(__version__.encode())
    for folder in folders:
        # What a slim checkpoint refers to, it refers to by digests, which loading insists on.
        for file in sorted([*folder.iterdir(), *folder.glob(f"{ADAPTER_FOLDER}/*")]):
            if file.suffix in SUFFIXES and file.is_file():
                with file.open("rb") as contents:
                    own = hashlib.file_digest(contents, "sha256").hexdigest()
                digest.update(f"{file.relative_to(folder)}\0{own}\0".encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]
