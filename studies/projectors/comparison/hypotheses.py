"""Hypotheses of the runs of an experiment, in single files or in one archive."""

import zipfile
from pathlib import Path


ARCHIVE_NAME = "hypotheses.zip"


def read_hypotheses(results: Path, name: str) -> bytes:
    """
    Read a file of hypotheses from the folder of an experiment's results or from the archive in this folder.

    Raises:
        `ValueError`: If neither the folder nor the archive contains the file.
    """
    if (results / name).is_file():
        return (results / name).read_bytes()
    archive = results / ARCHIVE_NAME
    if archive.is_file():
        with zipfile.ZipFile(archive) as opened:
            if name in opened.namelist():
                return opened.read(name)
    raise ValueError(f"{results} has no {name}, and no {ARCHIVE_NAME} that contains it; train that run again.")


def pack_hypotheses(results: Path) -> None:
    """Move the files of hypotheses in `results` into the archive. They replace entries of the same names."""
    files = {file.relative_to(results).as_posix(): file for file in sorted(results.rglob("*.jsonl.gz"))}
    if not files:
        return
    archive = results / ARCHIVE_NAME
    kept = {}
    if archive.is_file():
        with zipfile.ZipFile(archive) as opened:
            kept = {name: opened.read(name) for name in opened.namelist() if name not in files}
    contents = {**kept, **{name: file.read_bytes() for name, file in files.items()}}
    unfinished = archive.with_suffix(".unfinished")
    with zipfile.ZipFile(unfinished, "w") as opened:
        for name in sorted(contents):
            # A fixed date makes equal hypotheses give equal archives. The files are already compressed.
            opened.writestr(zipfile.ZipInfo(name), contents[name])
    unfinished.replace(archive)
    for file in files.values():
        file.unlink()


__all__ = ["ARCHIVE_NAME", "pack_hypotheses", "read_hypotheses"]
