"""Cache of exported checkpoints. A checkpoint is exported again when its contents change."""

import hashlib
import os
import shutil
from pathlib import Path

from filelock import FileLock
from transformers.utils import logging

from .. import __version__
from ..modeling.adapter_weights import read_adapter_config
from ..modeling.checkpoint_safety import CHECKSUMS_NAME, check_checksums, read_checksums
from ..modeling.slim_checkpoint import ADAPTER_FOLDER
from ..publishing.checkpoint_forms import fetch_checkpoint, find_form, load_checkpoint
from ..publishing.export import export_for_serving


logger = logging.get_logger(__name__)

# Files that loading reads have one of these suffixes. The state of a training run has others.
SUFFIXES = (".jinja", ".json", ".model", ".safetensors", ".txt")


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/llm-asr/exports`. Without the variable, `~/.cache/llm-asr/exports`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-asr" / "exports"


def export_cached(model: str, cache: Path) -> Path:
    """
    Export a checkpoint with [`export_for_serving`] unless `cache` has an export of the same contents.

    Args:
        model (`str`): Folder or Hub id of a checkpoint in any form. Adapters are merged.
        cache (`Path`): Folder of the exports, one for each content. Its entries may be deleted while no server runs.

    Returns:
        `Path`: Folder of the export.

    Raises:
        `ValueError`: If the checkpoint has another model type.
        `OSError`: If there is no such checkpoint.
    """
    folder = fetch_checkpoint(model)
    folders = [folder]
    if find_form(folder) == "adapter":
        settings = read_adapter_config(folder)
        folders.append(fetch_checkpoint(settings.base_model_name_or_path, settings.revision))
    exported = cache / checksum(folders)
    cache.mkdir(parents=True, exist_ok=True)
    # A second server waits here and then finds the export of the first.
    with FileLock(cache / f".{exported.name}.lock"):
        # Killed servers leave incomplete exports behind.
        for leftover in cache.glob(f".{exported.name}.*/"):
            shutil.rmtree(leftover)
        if exported.is_dir():
            flaw = find_flaw(exported)
            if flaw is None:
                return exported
            logger.warning(f"{exported} is damaged ({flaw}); exporting it again.")
            shutil.rmtree(exported)
        logger.warning(f"Exporting {model} to {exported}.")
        whole, processor = load_checkpoint(folder)
        export_for_serving(whole, processor, exported)
    return exported


def find_flaw(exported: Path) -> str | None:
    """Describe the first missing or changed file of an export; `None` if the export is intact."""
    for part in ("front_end", "language_model"):
        folder = exported / part
        try:
            names = read_checksums(folder / CHECKSUMS_NAME)
            check_checksums(folder, {name: str(folder / name) for name in names})
        except (OSError, ValueError) as error:
            return str(error)
    return None


def checksum(folders: list[Path]) -> str:
    """
    32 hexadecimal digits that depend on this release and on the names and contents of all files in `folders` that
    loading may read.
    """
    # Another release may write different exports.
    digest = hashlib.sha256(__version__.encode())
    for folder in folders:
        # A slim checkpoint names its frozen parts by their digests, and loading checks them. So hashing its own files is
        # enough.
        for file in sorted([*folder.iterdir(), *folder.glob(f"{ADAPTER_FOLDER}/*")]):
            if file.suffix in SUFFIXES and file.is_file():
                with file.open("rb") as contents:
                    own = hashlib.file_digest(contents, "sha256").hexdigest()
                digest.update(f"{file.relative_to(folder)}\0{own}\0".encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]
