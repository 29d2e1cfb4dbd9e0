"""Selects the files of a folder to publish, and lays them out as on the Hub."""

import json
import re
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    PROCESSOR_NAME,
)

from ..modeling.checkpoint_safety import CHECKSUMS_NAME, check_checksums
from ..modeling.slim_checkpoint import ADAPTER_FOLDER
from ..processing.processing_llm_asr import LlmAsrProcessor
from .checkpoint_forms import find_form
from .checksums import write_checksums
from .inspect import CARD_NAME, find_all_weights, read_json
from .remote_code import REMOTE_CODE, write_remote_code


# Files of a checkpoint. A training run writes many other files to the same folder, some of them pickled.
CHECKPOINT_FILES = (
    CONFIG_NAME,
    "generation_config.json",
    ADAPTER_CONFIG_NAME,
    "*.safetensors",
    "*.safetensors.index.json",
    CHECKSUMS_NAME,
    PROCESSOR_NAME,
    "preprocessor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template*",
)
DOCUMENTS = (CARD_NAME, "LICENSE*", "NOTICE*")
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s/]+\.(?:png|svg|jpg))\)")


def stage_checkpoint(folder: Path, staged: Path) -> None:
    """
    Lay out a checkpoint in `staged` as on the Hub, with links instead of copies.

    Raises:
        `ValueError`: If the checkpoint is incomplete, or cannot be loaded on another machine.
    """
    form = find_form(folder)
    _check_references(folder, form)
    weights = find_all_weights(folder, form)
    check_checksums(folder, weights)
    link_parts(folder, staged, weights)
    if any(name.startswith(f"{ADAPTER_FOLDER}/") for name in weights):
        link_parts(folder / ADAPTER_FOLDER, staged / ADAPTER_FOLDER)
    if not (staged / CHECKSUMS_NAME).exists():
        write_checksums(staged)
    if form != "adapter":
        # An adapter is loaded with the code of its base.
        write_remote_code(staged)


def _check_references(folder: Path, form: str) -> None:
    references = {}
    if form == "slim":
        references = _read_settings(folder / CONFIG_NAME)["backbones"]
    elif form == "adapter":
        settings = _read_settings(folder / ADAPTER_CONFIG_NAME)
        references["base"] = {
            "name_or_path": settings["base_model_name_or_path"],
            "revision": settings.get("revision"),
        }
    for part, reference in references.items():
        if reference["revision"] is None:
            argument = "base" if part == "base" else f'backbones={{"{part}": ...}}'
            raise ValueError(
                f"The {part} of this {form} checkpoint, {reference['name_or_path']!r}, is a folder on this machine or is not "
                f"pinned to a commit. Save the checkpoint again with `{argument}` for a checkpoint on the Hub, or push it "
                'with `form="full"`.'
            )


def _read_settings(path: Path) -> dict:
    settings = read_json(path)
    if settings is None:
        raise FileNotFoundError(f"{path} does not exist; save the checkpoint again.")
    return settings


def link_parts(folder: Path, staged: Path, weights: Collection[str] | None = None) -> None:
    """Link the files of a checkpoint without its code. If `weights` is given, link no other safetensors files."""
    staged.mkdir(exist_ok=True)
    for path in folder.iterdir():
        unused = weights is not None and ".safetensors" in path.name and path.name not in weights
        if path.is_file() and _is_checkpoint_file(path.name) and not unused:
            (staged / path.name).symlink_to(path.resolve())


def is_part(path: str) -> bool:
    """Whether the file at `path` in a repository belongs to a checkpoint or to its code."""
    name = path.removeprefix(f"{ADAPTER_FOLDER}/")
    return "/" not in name and (name in REMOTE_CODE or _is_checkpoint_file(name))


def _is_checkpoint_file(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in CHECKPOINT_FILES)


def add_processor_code(staged: Path) -> None:
    """Add the package's code to a processor without a model. [`write_remote_code`] does this for a model with a processor."""
    settings = _read_settings(staged / PROCESSOR_NAME)
    settings["auto_map"] = {
        "AutoProcessor": f"{LlmAsrProcessor.__module__.rpartition('.')[2]}.{LlmAsrProcessor.__name__}"
    }
    (staged / PROCESSOR_NAME).unlink()
    (staged / PROCESSOR_NAME).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name, source in REMOTE_CODE.items():
        (staged / name).write_bytes(source.read_bytes())


def stage_documents(folder: Path, staged: Path) -> None:
    """Link the model card, its pictures, and licences."""
    names = [path.name for path in folder.iterdir() if any(fnmatch(path.name, pattern) for pattern in DOCUMENTS)]
    if CARD_NAME in names:
        names += sorted(set(PICTURE.findall((folder / CARD_NAME).read_text(encoding="utf-8"))))
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{folder / CARD_NAME} shows {name}, which does not exist; write the card again.")
        (staged / name).symlink_to((folder / name).resolve())


__all__ = ["add_processor_code", "is_part", "link_parts", "stage_checkpoint", "stage_documents"]
