"""Stamps of files, by which a later run sees whether they have changed."""

from pathlib import Path


def file_stamps(path: str) -> list[list]:
    """
    Name, size and modification time of a file, or of the weights, configurations and tables in a folder. The list is empty
    for a Hub id.
    """
    folder = Path(path)
    files = [
        file
        for pattern in ("*.safetensors", "*config.json", "**/*.parquet", "**/*.arrow")
        for file in folder.glob(pattern)
    ]
    return [
        [file.name, file.stat().st_size, file.stat().st_mtime_ns]
        for file in ([folder] if folder.is_file() else sorted(files))
    ]


__all__ = ["file_stamps"]
