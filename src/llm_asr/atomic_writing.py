"""Atomic writing: a file or folder gets its name only when it is complete."""

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


try:
    import fcntl
except ImportError:
    # Without these locks, as on Windows, the leftovers of killed processes remain.
    fcntl = None  # type: ignore[assignment]


UNFINISHED = re.compile(r"\..*\.[0-9a-f]{16}\.partial", re.DOTALL)
# Some file systems do not share locks between machines, so only files of this age are removed.
ABANDONED_S = 3600.0

# Folders that this process has searched for leftovers. Each is searched once, because it may have very many files.
_cleaned: set[Path] = set()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """
    Create a temporary file beside `path`, which replaces `path` at the end of the block. If the block fails, the temporary
    file is deleted.

    The name of the temporary file is random and new, so it cannot be someone else's link. Missing parent folders are created.
    Unfinished files of killed processes in the same folder are deleted.

    Args:
        path (`str` or `Path`): The file to write. It may exist.

    Raises:
        `OSError`: If `path` is a folder, or its folder cannot be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder.")
    partial = _name_unfinished(path)
    partial.touch(exist_ok=False)
    with _locked(partial):
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """
    Create a temporary folder beside `path`, which replaces `path` at the end of the block, as [`atomic_path`] does for a file.

    Args:
        path (`str` or `Path`): The folder to write. It must be empty or not exist.
    """
    path = Path(path)
    partial = _name_unfinished(path)
    partial.mkdir()
    with _locked(partial):
        try:
            yield partial
            os.replace(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8 atomically; see [`atomic_path`]."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _name_unfinished(path: Path) -> Path:
    """Create the parent folder, delete leftovers in it, and return a new temporary name beside `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent.resolve()
    if folder not in _cleaned:
        _cleaned.add(folder)
        _remove_leftovers(folder)
    return path.parent / f".{path.name[:50]}.{secrets.token_hex(8)}.partial"


def _remove_leftovers(folder: Path) -> None:
    if fcntl is None:
        return
    for leftover in folder.iterdir():
        if not UNFINISHED.fullmatch(leftover.name) or leftover.is_symlink():
            continue
        try:
            if time.time() - leftover.stat().st_mtime < ABANDONED_S:
                continue
            with _locked(leftover) as is_ours:
                if is_ours and leftover.is_dir():
                    shutil.rmtree(leftover)
                elif is_ours:
                    leftover.unlink()
        except OSError:
            # Another process has removed the leftover, or it belongs to another user.
            continue


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """
    Lock a file or folder, and yield whether this process got the lock. The system releases the lock when the process ends.
    """
    if fcntl is None:
        yield True
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = True
        except OSError:
            # Another process has the lock, or the file system has no locks. Nothing is removed in either case.
            is_ours = False
        yield is_ours
    finally:
        os.close(descriptor)


__all__ = ["atomic_folder", "atomic_path", "write_text"]
