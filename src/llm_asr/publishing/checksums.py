"""Writes SHA-256 digests of the files in a folder."""

import os
from pathlib import Path

from ..modeling.checkpoint_safety import CHECKSUMS_NAME, hash_files


WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def write_checksums(folder: str | os.PathLike, *patterns: str) -> None:
    """
    Write the SHA-256 digests of files in `folder` to its `SHA256SUMS`. Loading compares the weights with them.

    Args:
        folder (`str` or `os.PathLike`): Local folder.
        patterns (`str`): Patterns of file names at any depth. Defaults to the patterns of weight files.
    """
    folder = Path(folder)
    paths = {path for pattern in patterns or WEIGHTS for path in folder.rglob(pattern) if path.is_file()}
    names = {path.relative_to(folder).as_posix(): str(path) for path in sorted(paths)}
    names.pop(CHECKSUMS_NAME, None)
    lines = [f"{digest}  {name}\n" for name, digest in hash_files(names).items()]
    (folder / CHECKSUMS_NAME).write_text("".join(lines), encoding="utf-8")


__all__ = ["write_checksums"]
